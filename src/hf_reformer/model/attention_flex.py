"""Chunked attention through PyTorch's `flex_attention`: one block-sparse mask over the rings, and autograd for the rest.

Each ring is one sequence; a block of queries is a chunk and its blocks of keys are the chunks of its window, so nothing is
scored that no window holds. Compiled on CUDA, with its own backward (not run there by us). Elsewhere it runs uncompiled,
which is readable but scores everything, for comparison at small sizes; since it has no backward on a CPU, the gradient is
then that of `EagerBlocks`. Shapes as in `attention_layout.py`.
"""

from functools import cache

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .attention_blocks import LOG2E, EagerBlocks, or_own, unit_keys
from .attention_rule import MASKED


def flex_applies(layout):
    """Where a window meets a chunk twice, the mask cannot say so."""
    return layout.bounds is not None or layout.ring_chunks >= layout.windows.chunks


def flex_forward(q, k, v, layout):
    """What `attention_chunked._forward` gives, for q, k, v (B * L * H, D): output and Z in base 2."""
    working = torch.promote_types(v.dtype, torch.float32)
    q, k, v = (None if x is None else x.to(working) for x in (q, k, v))
    k = unit_keys(q) if k is None else k * q.shape[-1] ** -0.5
    rows, mask = layout.rings.token_rows, _block_mask(layout)
    vectors = (x[rows][:, None] for x in (q, k, v))  # (N, 1, S, D)
    out, aux = _flex(v.device.type)(*vectors, block_mask=mask, scale=1.0, return_aux=AuxRequest(lse=True))
    outs, lses, rows = (layout.rings.as_rounds(x) for x in (out[:, 0], aux.lse[:, 0, :, None], rows))
    outs = torch.stack([_in_order(x, r, v) for x, r in zip(outs, rows, strict=True)])
    lses = torch.stack([_in_order(x, r, v[:, :1]) for x, r in zip(lses, rows, strict=True)]).clamp(min=-MASKED)
    merged, lse = merge_rounds(outs, lses, v, layout)
    return merged, lse * LOG2E


def merge_rounds(outs, lses, v, layout):
    """One softmax over all rounds (eq. 13): (R, B * L * H, D), (R, B * L * H, 1) and values -> output and Z."""
    lse = lses.logsumexp(0)
    merged = (outs * (lses - lse).exp()).sum(0)
    rows = torch.arange(len(v), device=v.device)
    return or_own(layout, rows, merged, lse, v.to(merged.dtype)), lse


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
    """Which chunks of its ring a chunk meets; which slots of these, `slot_mask` says."""
    (rings, slots), windows, device = layout.rings.token_rows.shape, layout.windows, layout.rings.device
    chunks = slots // windows.chunk
    met = torch.arange(chunks, device=device)[:, None] + torch.arange(-windows.before, windows.after + 1, device=device)
    # no way round the end of a strict ring: what lies beyond is not visited
    inside = (met >= 0) & (met < chunks) if layout.bounds is not None else torch.ones_like(met, dtype=torch.bool)
    indices = (met % chunks).masked_fill(~inside, chunks).sort(-1).values.clamp(max=chunks - 1)
    indices = torch.nn.functional.pad(indices, (0, max(0, chunks - windows.chunks)))[:, :chunks]
    return BlockMask.from_kv_blocks(
        inside.sum(-1).to(torch.int32).expand(rings, 1, -1).contiguous(),
        indices.to(torch.int32).expand(rings, 1, -1, -1).contiguous(),
        BLOCK_SIZE=windows.chunk,
        mask_mod=layout.slot_mask(),
    )
