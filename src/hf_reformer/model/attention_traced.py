r"""Chunked attention as one expression over all chunks: for `torch.compile` and `torch.export`, and for `torch.func`.

`attention_chunked.py` works block by block: its loop and its overlapping views depend on the length, so a graph of it
would be one of that length, and its backward is its own. Here every chunk is worked on at once by ordinary operations: the
length may stay a symbol, at the price of memory for all scores (R L W each head). The numbers are the same: see
`attention_rule.py` for what a query sees, and the paper's appendix A for the merge of rounds.

Shapes: B batch, L length, H heads, D head size, R rounds, G rings, N chunks of a ring, M chunk length, W slots of a window.
"""

import math
from typing import NamedTuple

import torch

from .attention_blocks import unit_keys
from .attention_duplicates import ring_counts
from .hashing import hash_vectors

UNSEEN = -1e30  # logsumexp of a round in which a strict token sees nothing
FUTURE, ITSELF = 1e9, 1e5  # subtracted from the scores of published layers, in float32, as in Trax


class Grid(NamedTuple):
    """N chunks of M slots in a ring, and the neighbours in a window."""

    chunks: int
    chunk: int
    before: int
    after: int

    @property
    def offsets(self):
        return range(-self.before, self.after + 1)

    @property
    def slots(self):
        return self.chunk * (self.before + 1 + self.after)


def traced_attention(layer, q, k, v, real_tokens=None, rotations=None):
    """What `layer` (local or LSH, strict or published) computes of its vectors.

    Args:
        q, v: (B, L, H, D); k: the same, or None where queries and keys are shared.
        real_tokens: (B, L) bool or None. rotations: as the layer draws them, or None.

    Returns:
        (B, L, H, D) in the type of `v`.
    """
    if not v.is_meta and torch.is_autocast_enabled(v.device.type):
        with torch.autocast(v.device.type, enabled=False):
            return traced_attention(layer, q, k, v, real_tokens, rotations)
    length, dtype, working = v.shape[1], v.dtype, torch.promote_types(v.dtype, torch.float32)
    grid = _grid(layer, length)
    places = torch.arange(grid.chunks * grid.chunk, device=v.device)
    real = (places < length)[None].expand(v.shape[0], -1)
    if real_tokens is not None:
        real = real & real_tokens.index_select(1, places.clamp(max=length - 1))
    q, k, v = (None if x is None else _extended(x, places, length).transpose(1, 2).to(working) for x in (q, k, v))
    keys, kept = unit_keys(q) if k is None else k * q.shape[-1] ** -0.5, layer.window_dropout(grid.chunk, grid.slots, v)
    if layer.strict:
        out = _strict(layer, q, keys, v, _buckets(layer, q, real, rotations), real_tokens is not None, grid, kept)
    else:
        buckets = _buckets(layer, q, real, rotations) if layer.hashes and grid.chunks > 1 else None
        out = _published(layer, q, keys, v, real, buckets, grid, kept)
    return out.transpose(1, 2).index_select(1, torch.arange(length, device=out.device)).to(dtype)


def _grid(layer, length):
    chunk = layer.chunk_length
    if layer.strict:  # one chunk more than needed: never 1, so that no graph is of a single chunk only
        return Grid((length - 1) // chunk + 2, chunk, layer.before, layer.after)
    padded = layer.padded_length(length)
    return Grid(1, padded, 0, 0) if padded <= chunk else Grid(padded // chunk, chunk, layer.before, layer.after)


def _extended(x_BLHD, places, length):
    """(B, N * M, H, D), zeros behind the last token. By an index: a graph then holds for every length."""
    return x_BLHD.index_select(1, places.clamp(max=length - 1)) * (places < length)[:, None, None]


def _buckets(layer, q_BHLD, real, rotations):
    """(B, H, R, L) int64; padding in a bucket of its own, the last."""
    if not layer.hashes:
        number, rounds, buckets = 1, 1, None
    else:
        factors, rounds = layer.config.bucket_factors(layer.layer_type), rotations.shape[-2]
        number = math.prod(factors)
        buckets = (
            hash_vectors(q_BHLD.detach(), rotations, factors).to(torch.int64).transpose(2, 3) if number > 1 else None
        )
    if buckets is None:
        buckets = torch.zeros_like(real, dtype=torch.int64)[:, None, None].expand(-1, q_BHLD.shape[1], rounds, -1)
    return torch.where(real[:, None, None], buckets, number)


# --- strict layers: a ring per round, same bucket only --------------------------------------------------------------


def _strict(layer, q, k, v, buckets, padding, grid, kept):
    # local: one bucket, sorted only where padding may stand between tokens
    order, rounds = _order(buckets) if layer.hashes or padding else None, buckets.shape[2]
    queries, keys, values = (_chunks(_sorted(x, order, rounds), grid) for x in (q, k, v))
    seen = _strictly_seen(layer, _in_order(buckets, order), grid)
    scores = queries @ _windows(keys, grid).transpose(-1, -2)
    if layer.hashes and not layer.config.allow_duplicate_attention:
        scores = scores - _strict_counts(layer, buckets, order, grid).clamp(min=1).to(scores.dtype).log()
    top = scores.masked_fill(~seen, UNSEEN).amax(-1, keepdim=True).detach()
    weights = (scores - top).masked_fill(~seen, -math.inf).exp()  # torch 2.15: no gradient at the limit of a clamp
    total = weights.sum(-1, keepdim=True)
    weights = weights if kept is None else weights * kept
    out = weights @ _windows(values, grid) / total.clamp(min=torch.finfo(torch.float32).tiny)
    lse = torch.where(total > 0, top + total.clamp(min=1e-30).log(), UNSEEN)
    out, lse = (_unsorted(x.flatten(3, 4), order) for x in (out, lse))
    alone = (lse <= UNSEEN).all(2)
    return torch.where(alone, v, (out * lse.softmax(2)).sum(2))


def _strictly_seen(layer, buckets, grid):
    """(B, H, R, N, M, W) bool, for buckets (B, H, R, L) in order: near slots of the same bucket, none beyond the ends."""
    chunk, slot = (torch.arange(n, device=buckets.device)[:, None] for n in (grid.chunks, grid.chunk))
    steps = torch.arange(grid.slots, device=buckets.device) - grid.before * grid.chunk - slot
    slots = chunk[:, None] * grid.chunk + slot  # (N, M, 1)
    seen = layer.rule.sees(steps, left=-slots, right=grid.chunks * grid.chunk - 1 - slots)
    buckets = _chunks(buckets, grid)
    return seen & (buckets[..., None] == _windows(buckets, grid)[..., None, :])


def _strict_counts(layer, buckets, order, grid):
    """N_ij (B, H, R, N, M, W): the rounds in which a key is seen, wherever it stands in this round's order."""
    slots, count = order.argsort(-1), 0
    for slot, bucket in zip(slots.unbind(2), buckets.unbind(2), strict=True):
        slot, bucket = (_chunks(_in_order(x[:, :, None].expand_as(order), order), grid) for x in (slot, bucket))
        same = bucket[..., None] == _windows(bucket, grid)[..., None, :]
        count = count + (layer.rule.sees(_windows(slot, grid)[..., None, :] - slot[..., None]) & same).to(torch.int64)
    return count


# --- published layers: one ring for all rounds, any bucket ----------------------------------------------------------


def _published(layer, q, k, v, real, buckets, grid, kept):
    positions = torch.arange(real.shape[1], device=v.device)[None, None, None].expand(*q.shape[:2], 1, -1)
    order = None if buckets is None else _order(buckets)
    positions = positions if order is None else order
    rounds = positions.shape[2]
    ring = grid._replace(chunks=rounds * grid.chunks)
    queries, keys, values = (_ring(_sorted(x, order, rounds), ring) for x in (q, k, v))
    visible = _ring(real[:, None, None].expand_as(positions).gather(3, positions), ring)
    places = _ring(positions, ring)
    distance = _windows(places, ring)[..., None, :] - places[..., None]
    seen = layer.rule._replace(exclude_self=False).sees(distance) & _windows(visible, ring)[..., None, :]
    scores = queries @ _windows(keys, ring).transpose(-1, -2) - FUTURE * (~seen).float()
    scores = scores - ITSELF * (distance == 0).float() if layer.rule.exclude_self else scores
    if order is not None and not layer.config.allow_duplicate_attention:
        scores = scores - _published_counts(order, ring, grid).clamp(min=1).to(scores.dtype).log()
    lse = scores.logsumexp(-1, keepdim=True)
    probs = (scores - lse).exp()
    if kept is not None:  # a token that sees only itself keeps its own value
        probs = probs * torch.where(lse < -ITSELF / 2, 1.0, kept)
    out = probs @ _windows(values, ring)
    out, lse = (_unsorted(x.flatten(2, 4).unflatten(2, (rounds, -1)), order) for x in (out, lse))
    return (out * (lse - lse.logsumexp(2, keepdim=True)).exp()).sum(2)  # not softmax: it rounds as the original does


def _published_counts(order, ring, grid):
    """N_ij (B, H, 1, R * N, M, W): how often a key stands in the windows of a query, over all rounds."""
    rounds = torch.arange(order.shape[2], device=order.device)[:, None] * grid.chunks
    chunks = (order.argsort(-1) // grid.chunk + rounds).unbind(2)

    def of_queries(per_token):
        return _ring(_in_order(per_token[:, :, None].expand_as(order), order), ring)[..., None]

    def of_keys(per_token):
        return _windows(of_queries(per_token)[..., 0], ring)[..., None, :]

    return ring_counts(chunks, ring.chunks, ring.offsets, of_queries, of_keys)


def _ring(x, ring):
    """(B, H, R, L, ...) -> (B, H, 1, R * N, M, ...): the rounds one behind the other."""
    return x.flatten(2, 3).unflatten(2, (1, -1, ring.chunk))


# --- sorting and windows --------------------------------------------------------------------------------------------


def _order(buckets):
    """(B, H, R, L): tokens by bucket, then position. The keys are unique, so any sort will do."""
    length = buckets.shape[-1]
    return (buckets * length + torch.arange(length, device=buckets.device)).argsort(-1)


def _in_order(per_token, order):
    """(B, H, R, L) by token -> by slot."""
    return per_token if order is None else per_token.gather(3, order)


def _sorted(x_BHLD, order, rounds):
    """(B, H, R, L, D) in the order of each round."""
    x = x_BHLD[:, :, None].expand(-1, -1, rounds, -1, -1)
    return x if order is None else x.gather(3, order[..., None].expand(-1, -1, -1, -1, x.shape[-1]))


def _unsorted(x_BHRLD, order):
    if order is None:
        return x_BHRLD
    return x_BHRLD.gather(3, order.argsort(-1)[..., None].expand(-1, -1, -1, -1, x_BHRLD.shape[-1]))


def _chunks(x, grid):
    """(B, H, R, L, ...) -> (B, H, R, N, M, ...). By an index too: to split a length that is a symbol asks for a proof."""
    slots = torch.arange(grid.chunk, device=x.device)
    return x[:, :, :, torch.arange(grid.chunks, device=x.device)[:, None] * grid.chunk + slots]


def _windows(x, grid):
    """(B, H, G, N, M, ...) -> (B, H, G, N, W, ...): each chunk with its neighbours, round the ring's end. A neighbour
    further away than the ring is long is the chunk itself, as in Trax."""
    own = torch.arange(grid.chunks, device=x.device)[:, None]
    offsets = torch.arange(-grid.before, grid.after + 1, device=x.device)
    index = own + offsets
    index = torch.where(index < 0, index + grid.chunks, torch.where(index >= grid.chunks, index - grid.chunks, index))
    return x[:, :, :, torch.where(offsets.abs() < grid.chunks, index, own)].flatten(4, 5)
