"""How often a query meets the same key, over the rounds and inside one window: used where that must not count, or is felt.

Shapes as in `layout.py`.
"""

import torch

SELF_MASK = -1e5  # the score that Trax and transformers give a token with itself


def log_counts(layout, block, dtype):
    r"""\(\log N_{ij}\) of the paper's correction (appendix A, eq. 13-16), (n * G, M, W).

    N_ij is the number of times that key j stands in a window of query i, over all rounds; 1 where it never does.
    """
    tokens = layout.take(layout.as_rings(layout.tokens.to(torch.int64)), block)
    heads = torch.arange(block.ring, block.ring_end, device=layout.device) % layout.heads_in_batch

    def of_queries(per_token):
        return layout.middle(per_token[heads].gather(1, tokens)).reshape(-1, layout.chunk_length, 1)

    def of_keys(per_token):
        return layout.windows(per_token[heads].gather(1, tokens))[:, None, :]

    count = _strict_counts if layout.strict else _ring_counts
    return count(layout, of_queries, of_keys).clamp_(min=1).to(dtype).log_()


def _strict_counts(layout, of_queries, of_keys):
    slots = _slot_of_token(layout)
    first, last = (b.expand(slots.shape).to(torch.int64).gather(2, slots) for b in layout.bounds)
    total = 0
    for r in range(layout.rounds):
        step = of_keys(slots[r]) - of_queries(slots[r])
        left = torch.maximum(of_queries(first[r] - slots[r]), torch.tensor(-layout.reach_before))
        right = torch.minimum(of_queries(last[r] - slots[r]), torch.tensor(layout.reach_after))
        total = total + ((step >= left) & (step <= right)).to(torch.float32)
    return total


def _ring_counts(layout, of_queries, of_keys):
    chunks = _ring_chunk_of_token(layout)
    return sum(_times_in_window(layout, of_keys(key) - of_queries(query)) for query in chunks for key in chunks)


def _times_in_window(layout, step):
    """How often a chunk that is `step` chunks ahead stands in a window."""
    ring = layout.ring_chunks
    offsets = [offset if abs(offset) < ring else 0 for offset in layout.offsets]
    return sum(((step - offset) % ring == 0).to(torch.float32) for offset in offsets)


def _slot_of_token(layout):
    """(R, B * H, L) int64: the inverse of `layout.tokens`."""
    tokens = layout.tokens.to(torch.int64)
    slots = torch.arange(layout.length, device=layout.device).expand_as(tokens)
    return torch.empty_like(tokens).scatter_(2, tokens, slots)


def _ring_chunk_of_token(layout):
    chunk = torch.div(_slot_of_token(layout), layout.chunk_length, rounding_mode="floor")
    return chunk + layout.chunks_per_round * torch.arange(layout.rounds, device=layout.device)[:, None, None]


def self_weight(layout, dtype, rows):
    """Weight of the own value of tokens that see nothing else: 1, or in float32 `"lsh"` what the originals get.

    They score a token with itself at -1e5, where float32 numbers are 2^-7 apart: if it stands m times in its windows, the
    probabilities add up to 1, 0.99784, 0.99705, ... for m = 1, 2, 3, ... That is part of the published numbers.

    Args:
        rows: (T) int64, these tokens' rows of a (B * L * H, D) matrix.

    Returns:
        1, or (T, 1).
    """
    once = layout.rounds == 1 and layout.chunks_per_round >= layout.window_chunks
    ordinary = layout.strict or not layout.exclude_self or layout.order is None or layout.correct_duplicates
    if ordinary or once or dtype != torch.float32:
        return 1
    chunks = _ring_chunk_of_token(layout).unflatten(1, (layout.batch, layout.heads)).transpose(2, 3)
    chunks = chunks.flatten(1)[:, rows]
    met = torch.stack([sum(_times_in_window(layout, other - r) for other in chunks) for r in chunks])
    per_round = SELF_MASK + met.to(dtype).log()
    merged = torch.logsumexp(per_round, 0)
    return (met * (SELF_MASK - per_round).exp() * (per_round - merged).exp()).sum(0)[:, None]
