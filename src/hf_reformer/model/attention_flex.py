"""Chunked attention through PyTorch's `flex_attention`: one block-sparse mask over the rings, and autograd for the rest.

Each ring is one sequence; a block of queries is a chunk and its blocks of keys are the chunks of its window, so nothing is
scored that no window holds. Compiled on CUDA, with its own backward (not run there by us). Elsewhere it runs uncompiled,
which is readable but scores everything, for comparison at small sizes; since it has no backward on a CPU, the gradient is
then that of `EagerBlocks`. Shapes as in `layout.py`.
"""

from functools import cache

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .attention_blocks import EagerBlocks, alone, unit_keys
from .attention_duplicates import self_weight
from .attention_layout import MASKED


def flex_applies(layout):
    """Where a window meets a chunk twice, the mask cannot say so."""
    return layout.strict or layout.ring_chunks >= layout.window_chunks


def flex_forward(q, k, v, layout):
    """What `chunked_attention._forward` gives, for q, k, v (B * L * H, D): output, z^r and Z."""
    working = torch.promote_types(v.dtype, torch.float32)
    q, k, v = (None if x is None else x.to(working) for x in (q, k, v))
    k = unit_keys(q) if k is None else k * q.shape[-1] ** -0.5
    rows, mask = layout.ring_rows, _block_mask(layout)
    vectors = (x[rows][:, None] for x in (q, k, v))  # (N, 1, S, D)
    out, aux = _flex(v.device.type)(*vectors, block_mask=mask, scale=1.0, return_aux=AuxRequest(lse=True))
    outs, lses, rows = (layout.as_rounds(x) for x in (out[:, 0], aux.lse[:, 0, :, None], rows))
    outs = torch.stack([_in_order(x, r, v) for x, r in zip(outs, rows, strict=True)])
    lses = torch.stack([_in_order(x, r, v[:, :1]) for x, r in zip(lses, rows, strict=True)]).clamp(min=-MASKED)
    lse = lses.logsumexp(0)
    merged = (outs * (lses - lse).exp()).sum(0)
    own = alone(lse)
    merged = merged.index_copy(0, own, v.index_select(0, own) * self_weight(layout, working, own))
    return merged, lses, lse


class FlexRings:
    """`flex_forward` in the place of a loop over blocks, with the plain kernel's backward."""

    rings = staticmethod(flex_forward)
    backward = EagerBlocks.backward


def _in_order(per_slot, rows, like):
    """(B * H, L, ...) by slot -> (B * L * H, ...) by token."""
    return torch.empty_like(like, dtype=per_slot.dtype).index_copy(0, rows.flatten(), per_slot.flatten(0, 1))


@cache
def _flex(device_type):
    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention


def _block_mask(layout):
    rings, slots = layout.ring_rows.shape
    chunks = slots // layout.chunk_length
    chunk = torch.arange(chunks, device=layout.device)[:, None]
    offsets = torch.arange(-layout.before, layout.after + 1, device=layout.device)
    seen = chunk + offsets
    if layout.strict:  # no way round a strict ring's end: what lies beyond is not visited
        inside = (seen >= 0) & (seen < chunks)
        indices = seen.masked_fill(~inside, chunks).sort(-1).values.clamp(max=chunks - 1)
        counts = inside.sum(-1)
    else:
        indices = (seen % chunks).sort(-1).values
        counts = torch.full((chunks,), layout.window_chunks, device=layout.device)
    indices = torch.nn.functional.pad(indices, (0, max(0, chunks - layout.window_chunks)))[:, :chunks]
    return BlockMask.from_kv_blocks(
        counts.to(torch.int32).expand(rings, 1, -1).contiguous(),
        indices.to(torch.int32).expand(rings, 1, -1, -1).contiguous(),
        BLOCK_SIZE=layout.chunk_length,
        mask_mod=layout.slot_mask(),
    )
