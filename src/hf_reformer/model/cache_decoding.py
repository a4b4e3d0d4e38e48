r"""Attention of a few new tokens to what a cache holds: pure functions.

Each query has a list of keys, the same for all heads (`attend`, keys (B, H, K, D)) or its own (`attend_members`, K slots
per query and head, gathered from all hash rounds), and there is one softmax over the list. A key met in several rounds
stands in the list several times, which is the paper's merge of rounds (appendix A, eq. 13-16) written out.

Shapes: B batch, H heads, D head size, R hash rounds, n new tokens, L tokens in the cache including the new ones,
C slots there is room for, K keys of a query, M chunk length.
"""

import math

import torch

from .attention_rule import FAR

BLOCK_QUERIES = 256  # queries at a time against keys that they share
GATHERED_ELEMENTS = 2**22  # elements of gathered keys at a time
COMPARED_MEMBERS = 2**24  # pairs of keys compared at a time where duplicates must not count


def attend(q, k, v, scale, seen=None, weights=None, own=None):
    """softmax(q k^T scale) v, and the probabilities.

    Args:
        q, k, v: (..., n, D), (..., K, D) and (..., K, D).
        scale: a number, or a tensor (..., 1, K), one for each key.
        seen: bool, broadcast to (..., n, K), which key a query sees, or None for all.
        weights: the same shape; how often each key counts, or None for once.
        own: (..., n, D), the output of a query that sees nothing, or None where every query sees something.
    """
    working = torch.promote_types(v.dtype, torch.float32)
    scores = torch.matmul(q.to(working), k.to(working).transpose(-1, -2)) * scale
    if weights is not None:
        scores = scores + weights.log()
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    probs = torch.softmax(scores, -1)
    out = torch.matmul(probs, v.to(working))
    if own is not None and seen is not None:
        alone = ~seen.any(-1, keepdim=True).expand_as(out[..., :1])
        out, probs = torch.where(alone, own.to(working), out), probs.masked_fill(alone, 0)
    return out.to(v.dtype), probs


def attend_members(q, keys, values, scales, members, seen, own, count_once=False):
    """Attention of each query to its own list of cached tokens.

    Args:
        q, own: (B, H, n, D), queries and the values of the same tokens.
        keys, values, scales: (B, H, C, D) twice and (B, H, C), contiguous.
        members, seen: (B, H, n, K), slots below C, and whether they count.
        count_once: a slot that is seen several times counts once.

    Returns:
        (B, H, n, D), and the probabilities (B, H, n, K), 0 throughout for a token that sees nothing.
    """
    batch, heads, room, size = keys.shape
    shape = members.shape
    rows = torch.arange(0, batch * heads * room, room, device=keys.device).view(batch, heads, 1, 1) + members
    rows = rows.reshape(-1)
    weights = None
    if count_once:
        same = (members[..., :, None] == members[..., None, :]) & seen[..., None, :]
        weights = same.sum(-1).clamp(min=1).to(scales.dtype).reciprocal()[..., None, :]
    out, probs = attend(
        q[..., None, :],
        keys.view(-1, size).index_select(0, rows).view(*shape, size),
        values.view(-1, size).index_select(0, rows).view(*shape, size),
        scales.view(-1).index_select(0, rows).view(*shape[:3], 1, shape[3]),
        seen[..., None, :],
        weights,
        own[..., None, :],
    )
    return out[..., 0, :], probs[..., 0, :]


def member_block(batch, heads, members, head_size, count_once):
    """Queries at a time in `attend_members`."""
    block = GATHERED_ELEMENTS // (batch * heads * members * head_size)
    if count_once:
        block = min(block, COMPARED_MEMBERS // (batch * heads * members**2))
    return max(1, block)


# --- which cached tokens the new ones see: one list for all heads ---------------------------------------------------


def sees_cached(rule, start, end, first, real, device, chunk=None, before=0):
    """(B or 1, 1, n, K) bool: which of the keys in the slots from `first` to `end` the queries from `start` on see.

    Args:
        real: (B, L) bool or None. Where the rule's reach is bounded, it counts real tokens.
        chunk, before: a window begins with the chunk that is `before` chunks before the query's (`"local"`), or None.
    """
    slots = torch.arange(first, end, device=device)[None]
    left = None if chunk is None else (((slots // chunk - before) * chunk - slots)[:, start - first :, None])
    places = slots if real is None or rule.before == FAR else real[:, first:end].cumsum(1)
    keys = places if real is None else places.masked_fill(~real[:, first:end], 2 * FAR + 1)
    seen = rule.sees(keys[:, None, :] - places[:, start - first :, None], left)
    if real is not None and not rule.exclude_self:  # so that no query sees nothing, not even one that is padding
        seen = seen | (slots[:, None, :] == slots[:, start - first :, None])
    return seen[:, None]


def own_chunk_repeats(length, chunk, before, after):
    """How often a query's own chunk stands in its window: more than once where a ring of `length // chunk` chunks is
    shorter than the reach of the window (the originals then repeat the chunk itself)."""
    ring = length // chunk
    if ring <= 1:
        return 1
    return 1 + max(0, before - ring + 1) + max(0, after - ring + 1)


# --- which cached tokens the new ones see: one list for each head, from all rounds ----------------------------------


def ring_windows(slots, chunk, before, after, rounds_length, rounds):
    """Window of a slot in the ring of all rounds, as `"lsh"` has it.

    Args:
        slots: (B, H, R, n) int64, the slot of each query in each round.
        rounds_length: slots of one round, a multiple of the chunk length.

    Returns:
        Round and slot of each key, (B, H, R, n, K) each with K = chunk * (before + 1 + after).
    """
    ring = rounds * rounds_length // chunk
    own = slots // chunk + torch.arange(rounds, device=slots.device)[:, None] * (rounds_length // chunk)
    offsets = torch.arange(-before, after + 1, device=slots.device)
    chunks = (own[..., None] + offsets * (offsets.abs() < ring)) % ring
    keys = (chunks[..., None] * chunk + torch.arange(chunk, device=slots.device)).flatten(-2)
    return keys // rounds_length, keys % rounds_length


def insert_in_order(padded, slots, token):
    """An order of L tokens, into which one more is put: (B, H, R, L + 2) int32 -> (B, H, R, L + 3).

    Both have one place more at either end than they have tokens, so that the tokens behind the new one can be moved on in
    one pass. slots: (B, H, R, 1), where `token` goes.
    """
    longer = padded.new_empty((*padded.shape[:-1], padded.shape[-1] + 1))
    moved_on = torch.arange(padded.shape[-1] - 1, device=padded.device) > slots
    torch.where(moved_on, padded[..., :-1], padded[..., 1:], out=longer[..., 1:-1])
    longer[..., 1:-1].scatter_(-1, slots, token)
    return longer


def inverse_order(order):
    """(..., L) -> (..., L): where each token stands."""
    slots = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.empty_like(slots).scatter_(-1, order.to(torch.int64), slots)


def rounds_side_by_side(per_round):
    """(B, H, R, n, K) -> (B, H, n, R * K)."""
    if per_round.shape[3] == 1:
        return per_round.flatten(2, 4)[:, :, None]
    return per_round.transpose(2, 3).flatten(3)


def capacity(length, reserve, maximum):
    """Slots to make room for: what was asked for, but not more than twice what is needed now and 1,024."""
    wanted = min(max(reserve, length + length // 2), 2 * length + 1024)
    return max(length, min(wanted, maximum))


def is_long(new, total, block):
    """Whether a piece is better run through the blocks of `chunked_attention`, with all that is cached before it."""
    return new > block and math.ceil(total / new) <= 4
