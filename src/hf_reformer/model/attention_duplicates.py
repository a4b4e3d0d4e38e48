"""How often a query meets the same key, over the rounds and inside one window: used where that must not count, or is felt.

Shapes as in `attention_layout.py`.
"""

import torch

SELF_MASK = -1e5  # the score that Trax and transformers give a token with itself


def log_counts(layout, block, dtype):
    r"""\(\log N_{ij}\) of the paper's correction (appendix A, eq. 13-16), (n * G, M, W).

    N_ij is the number of times that key j stands in a window of query i, over all rounds; 1 where it never does.
    """
    rows = layout.take(layout.rings.head_rows, block)

    def of_queries(per_token):
        return layout.windows.per_query(per_token.take(rows))

    def of_keys(per_token):
        return layout.windows.per_key(per_token.take(rows))

    if layout.bounds is None:
        count = ring_counts(layout.places, layout.ring_chunks, layout.windows.offsets, of_queries, of_keys)
    else:
        count = strict_counts(layout.places, layout.rule, of_queries, of_keys)
    return count.clamp_(min=1).to(dtype).log_()


def strict_counts(places, rule, of_queries, of_keys):
    """places: for each round, the slot of each token and its steps to its bucket's first and last slot."""
    return sum(
        rule.sees(of_keys(slot) - of_queries(slot), of_queries(left), of_queries(right)).to(torch.float32)
        for slot, left, right in places
    )


def ring_counts(places, ring, offsets, of_queries, of_keys):
    """places: for each round, the chunk of each token, of the `ring` chunks that all rounds have."""
    return sum(times_in_window(of_keys(key) - of_queries(query), ring, offsets) for query in places for key in places)


def times_in_window(step, ring, offsets):
    """How often a chunk that is `step` chunks ahead stands in a window."""
    offsets = [offset if abs(offset) < ring else 0 for offset in offsets]
    return sum(((step - offset) % ring == 0).to(torch.float32) for offset in offsets)


def self_weight(layout, rows):
    """Weight of the own value of tokens that see nothing else: None for 1, or in float32 `"lsh"` what the originals get.

    They score a token with itself at -1e5, where float32 numbers are 2^-7 apart: if it stands m times in its windows, the
    probabilities add up to 1, 0.99784, 0.99705, ... for m = 1, 2, 3, ... That is part of the published numbers.

    Args:
        rows: (n) int64, the tokens' rows in a (B * L * H, D) matrix.

    Returns:
        (n, 1) float32, or None.
    """
    rings, windows = layout.rings, layout.windows
    once = rings.rounds == 1 and layout.chunks_per_round >= windows.chunks
    if not rings.joined or rings.order is None or not layout.rule.exclude_self or layout.correct_duplicates or once:
        return None
    token, head = rows // rings.heads, rows % rings.heads
    head_rows = (token // rings.length * rings.heads + head) * rings.length + token % rings.length
    places, ring = [place.take(head_rows) for place in layout.places], layout.ring_chunks
    met = torch.stack([sum(times_in_window(key - query, ring, windows.offsets) for key in places) for query in places])
    per_round = SELF_MASK + met.log()
    return (met * (SELF_MASK - torch.logsumexp(per_round, 0)).exp()).sum(0)[:, None]
