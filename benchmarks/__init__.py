"""Ours beside its peers: time and memory over length, every figure measured in a fresh process, peers in alternation."""
