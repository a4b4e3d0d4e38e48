r"""Chunked attention as one expression over all chunks, for `torch.compile` and `torch.export` in evaluation.

`chunked_attention.py` works block by block: its loop and its overlapping views depend on the length, so a graph of it
would be one of that length. Here every chunk is worked on at once: the length may stay a symbol, at the price of memory
for all scores (R L W each head). The numbers are the same: see `layout.py` for what a query sees, and the paper's appendix
A for the merge of rounds.

Shapes: B batch, L length, H heads, D head size, R rounds, G rings, N chunks of a ring, M chunk length, W slots of a window.
"""

import math
from typing import NamedTuple

import torch

from .attention_blocks import unit_keys
from .hashing import combine_factors

UNSEEN = -1e30  # logsumexp of a round in which a strict token sees nothing
FUTURE, ITSELF = 1e9, 1e5  # subtracted from the scores of published layers, in float32, as in Trax


def traced_attention(layer, q, k, v, real_tokens=None, rotations=None):
    """What `layer` (local or LSH, strict or published) computes of its vectors.

    Args:
        q, v: (B, L, H, D); k: the same, or None where queries and keys are shared.
        real_tokens: (B, L) bool or None. rotations: as the layer draws them, or None.

    Returns:
        (B, L, H, D) in the type of `v`.
    """
    length, dtype, working = v.shape[1], v.dtype, torch.promote_types(v.dtype, torch.float32)
    chunk, around = layer.chunk_length, (layer.before, layer.after)
    if layer.strict:
        chunks = (length - 1) // chunk + 2  # one more than needed: never 1, so that no graph is of a single chunk only
    elif (padded := layer.padded_length(length)) <= chunk:
        chunks, chunk, around = 1, padded, (0, 0)
    else:
        chunks = padded // chunk
    places = torch.arange(chunks * chunk, device=v.device)
    real = (places < length)[None].expand(v.shape[0], -1)
    if real_tokens is not None:
        real = real & real_tokens.index_select(1, places.clamp(max=length - 1))
    q, k, v = (None if x is None else _extended(x, places, length).transpose(1, 2).to(working) for x in (q, k, v))
    hashes = rotations is not None and (layer.strict or chunks > 1)
    buckets = _buckets(q, rotations, layer.config.bucket_factors(layer.layer_type)) if hashes else None
    grid = Grid(chunks, chunk, *around)
    if layer.strict:
        out = _strict(layer, q, k, v, real, real_tokens is not None, buckets, grid)
    else:
        out = _published(layer, q, k, v, real, buckets, grid)
    return out.transpose(1, 2).index_select(1, torch.arange(length, device=out.device)).to(dtype)


class Grid(NamedTuple):
    """N chunks of M slots in a round, and the neighbours in a window."""

    chunks: int
    chunk: int
    before: int
    after: int


def _extended(x_BLHD, places, length):
    """(B, N * M, H, D), zeros behind the last token. By an index: a graph then holds for every length."""
    return x_BLHD.index_select(1, places.clamp(max=length - 1)) * (places < length)[:, None, None]


def _buckets(q_BHLD, rotations, factors):
    """(B, H, R, L) int64."""
    if math.prod(factors) == 1:
        return q_BHLD.new_zeros((*q_BHLD.shape[:2], rotations.shape[-2], q_BHLD.shape[2]), dtype=torch.int64)
    rotated = torch.matmul(q_BHLD, rotations.to(q_BHLD.dtype).flatten(-2)).unflatten(-1, rotations.shape[-2:])
    return combine_factors(rotated, factors).to(torch.int64).transpose(2, 3)


# --- strict layers: a ring per round, same bucket only --------------------------------------------------------------


def _strict(layer, q, k, v, real, padding, buckets, grid):
    shared = layer.prefix == "lsh"
    number = math.prod(layer.config.bucket_factors(layer.layer_type)) if shared else 1
    if buckets is None:  # local: one bucket, sorted only where padding may stand between tokens
        buckets = torch.zeros_like(real, dtype=torch.int64)[:, None, None].expand(-1, q.shape[1], -1, -1)
    buckets = torch.where(real[:, None, None], buckets, number)
    order = _order(buckets) if shared or padding else None
    buckets = buckets if order is None else buckets.gather(3, order)
    keys = unit_keys(q) if shared else k * q.shape[-1] ** -0.5
    queries, keys, values = (_chunks(_sorted(x, order, buckets.shape[2]), grid) for x in (q, keys, v))
    scores = queries @ _windows(keys, grid).transpose(-1, -2)
    buckets = _chunks(buckets, grid)
    seen = buckets[..., None] == _windows(buckets, grid)[..., None, :]
    seen = seen & _within_reach(layer, grid, v.device) & _inside(grid, v.device)
    top = scores.masked_fill(~seen, UNSEEN).amax(-1, keepdim=True)
    weights = (scores - top).clamp(max=0).exp() * seen
    total = weights.sum(-1, keepdim=True)
    out = weights @ _windows(values, grid) / total.clamp(min=torch.finfo(torch.float32).tiny)
    lse = torch.where(total > 0, top + total.clamp(min=1e-30).log(), UNSEEN)
    out, lse = (_unsorted(x.flatten(3, 4), order) for x in (out, lse))
    alone = (lse <= UNSEEN).all(2)
    return torch.where(alone, v, (out * lse.softmax(2)).sum(2))


def _within_reach(layer, grid, device):
    """(M, W) bool: which slots of its window a query may see for their distance; causal layers have none after it."""
    query = torch.arange(grid.chunk, device=device)[:, None]
    key = torch.arange(grid.chunk * (grid.before + 1 + grid.after), device=device) - grid.before * grid.chunk
    steps = key - query
    seen = (steps >= -layer.before * layer.chunk_length) & (steps <= layer.after * layer.chunk_length)
    return seen & (steps != 0) if layer.prefix == "lsh" else seen


def _inside(grid, device):
    """(N, 1, W) bool: False for the slots of chunks before the first or after the last."""
    offsets = torch.arange(-grid.before, grid.after + 1, device=device).repeat_interleave(grid.chunk)
    index = torch.arange(grid.chunks, device=device)[:, None, None] + offsets
    return (index >= 0) & (index < grid.chunks)


# --- published layers: one ring for all rounds, any bucket ----------------------------------------------------------


def _published(layer, q, k, v, real, buckets, grid):
    shared, order = layer.prefix == "lsh", None
    positions = torch.arange(real.shape[1], device=v.device)[None, None, None].expand(*q.shape[:2], 1, -1)
    if buckets is not None:
        number = math.prod(layer.config.bucket_factors(layer.layer_type))
        order = positions = _order(torch.where(real[:, None, None], buckets, number))
    rounds = positions.shape[2]
    ring = grid._replace(chunks=rounds * grid.chunks)
    keys = unit_keys(q) if shared else k * q.shape[-1] ** -0.5
    queries, keys, values = (_ring(_sorted(x, order, rounds), ring) for x in (q, keys, v))
    visible = real[:, None, None].expand_as(positions).gather(3, positions)
    places, visible = (_ring(x, ring) for x in (positions, visible))
    distance = _windows(places, ring)[..., None, :] - places[..., None]
    scores = queries @ _windows(keys, ring).transpose(-1, -2)
    scores = scores - FUTURE * (~_windows(visible, ring)[..., None, :]).float()
    scores = scores - FUTURE * (distance > 0).float() if layer.config.is_decoder else scores
    scores = scores - ITSELF * (distance == 0).float() if shared else scores
    lse = scores.logsumexp(-1, keepdim=True)
    out = (scores - lse).exp() @ _windows(values, ring)
    out, lse = (_unsorted(x.flatten(2, 4).unflatten(2, (rounds, -1)), order) for x in (out, lse))
    return (out * (lse - lse.logsumexp(2, keepdim=True)).exp()).sum(2)  # not softmax: it rounds as the original does


def _ring(x, ring):
    """(B, H, R, L, ...) -> (B, H, 1, R * N, M, ...): the rounds one behind the other."""
    return x.flatten(2, 3).unflatten(2, (1, -1, ring.chunk))


# --- sorting and windows --------------------------------------------------------------------------------------------


def _order(buckets):
    """(B, H, R, L): tokens by bucket, then position. The keys are unique, so any sort will do."""
    length = buckets.shape[-1]
    return (buckets * length + torch.arange(length, device=buckets.device)).argsort(-1)


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
