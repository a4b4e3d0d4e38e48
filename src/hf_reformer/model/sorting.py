"""From bucket numbers to the order in which blocks of queries attend, and to what each query may see in it.

Shapes: N rings (one per batch row and head, or per batch row, head and round), S slots of a ring in sorted order,
L tokens, R hash rounds. A slot holds one token; tokens of one bucket stand together, earlier tokens first.
"""

import torch


def sort_by_bucket(buckets, real_tokens, num_buckets):
    """Tokens of each round in the order of (bucket, position), padding last (paper section 2, i -> s_i).

    Args:
        buckets: (B, H, R, L) int32, numbers below `num_buckets` in every round.
        real_tokens: (B, L) bool, or None where every token is real. Padding goes to an extra bucket of its own.

    Returns:
        order: (B, H, R, L) int32, the token in each slot.
        sorted_buckets: (B, H, R, L) int32, its bucket.

    Keys bucket * L + position are unique, so the fast unstable sort gives the stable order.
    """
    length = buckets.shape[-1]
    if real_tokens is not None:
        buckets = buckets.masked_fill(~real_tokens[:, None, None, :], num_buckets)
    wide = (num_buckets + 1) * length >= 2**31
    buckets = buckets.to(torch.int64 if wide else torch.int32)
    position = torch.arange(length, device=buckets.device, dtype=buckets.dtype)
    keys = (buckets * length + position).sort(dim=-1).values
    sorted_buckets = torch.div(keys, length, rounding_mode="floor")
    order = keys - sorted_buckets * length
    return order.to(torch.int32), sorted_buckets.to(torch.int32)


def bucket_bounds(sorted_buckets):
    """First and last slot of the bucket that each slot belongs to, both (..., S) int32."""
    slots = torch.arange(sorted_buckets.shape[-1], device=sorted_buckets.device, dtype=torch.int32)
    slots = slots.expand_as(sorted_buckets)
    edge = sorted_buckets[..., 1:] != sorted_buckets[..., :-1]
    ones = edge.new_ones((*edge.shape[:-1], 1))
    starts = torch.where(torch.cat([ones, edge], -1), slots, 0)
    ends = torch.where(torch.cat([edge, ones], -1), slots, sorted_buckets.shape[-1])
    first = starts.cummax(-1).values
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    return first, last
