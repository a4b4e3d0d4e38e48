r"""Attention inside windows of chunks, block by block, for local and LSH layers; forward and backward.

With all scores s_ij^r of query i over rounds r and the keys j of its window in that round (masks folded in), the paper's
merge of rounds (appendix A, eq. 13-16) is one softmax over all of them,

    Z_i = \log\sum_{r,j} e^{s_{ij}^r},    o_i = \sum_{r,j} e^{s_{ij}^r - Z_i} v_j,

so, with P_{ij}^r = e^{s_{ij}^r - Z_i}

    dv_j = \sum_{r,i} P_{ij}^r do_i,    ds_{ij}^r = P_{ij}^r (do_i \cdot v_j - do_i \cdot o_i).

No gradient flows through the logsumexp of a round, no probability outlives its block, and what is kept between forward and
backward is the merged output, Z and the order. A gradient that is to be differentiated in turn (`create_graph`) is taken by
ordinary autograd. Queries and keys that are shared are normalised inside the block (k = q / sqrt(mean(q^2) + 1e-6) / sqrt(D),
as Trax and transformers do). Logsumexps are in base 2, see `attention_blocks.py`.

Shapes as in `attention_layout.py`; matrices of tokens are (B * L * H, D), D head size.
"""

import torch
from transformers.utils import logging

from .attention_blocks import (
    ALONE,
    LOG2E,
    EagerBlocks,
    Gradients,
    SdpaBlocks,
    add_,
    gather,
    or_own,
    put_,
    sdpa_applies,
    take,
    unit_keys_backward,
)
from .attention_varlen import VarlenRings, varlen_applies
from .hashing import without_autocast

logger = logging.get_logger(__name__)


def chunked_attention(q, k, v, layout, dropout_mask=None, implementation="eager"):
    """Attention of every token to its windows.

    Args:
        q, v: (B, L, H, D).
        k: the same, or None where queries and keys are shared and normalised (LSH).
        layout: which slots, which windows, which rule.
        dropout_mask: (M, W), 0 or 1 / (1 - p), or None; one mask for all chunks, rounds, heads and examples, as in Trax.
        implementation: `"eager"` or `"sdpa"`, PyTorch's fused kernels: on a CPU inside a block, on a GPU variable-length
            flash attention for strict layers in half precision. They know no dropout mask and no correction of duplicates:
            then, and wherever else they cannot run, the eager one does, and one warning says why.

    Returns:
        (B, L, H, D) in the type of `v`. Products of half-precision inputs are taken in half precision where the device has
        that (`product_type`), all else in float32. A token that sees nothing in any round gets its own value.
    """
    shape, dtype = v.shape, v.dtype
    q, k, v = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    if torch._C._are_functorch_transforms_active():
        out = plain_attention(q, k, v, layout, dropout_mask)
    else:
        kernel = EagerBlocks if implementation == "eager" else _fused_kernel(v, layout, dropout_mask)
        out = ChunkedAttention.apply(q, k, v, layout, dropout_mask, kernel)
    return out.view(shape).to(dtype)


def _fused_kernel(v, layout, dropout_mask):
    if dropout_mask is not None or layout.correct_duplicates:
        what = "attention dropout" if dropout_mask is not None else "allow_duplicate_attention=False"
        logger.warning_once(f"attn_implementation='sdpa' runs as 'eager': its kernels know no {what}.")
        return EagerBlocks
    if varlen_applies(v, layout):
        return VarlenRings
    return SdpaBlocks if sdpa_applies(v) else EagerBlocks


class ChunkedAttention(torch.autograd.Function):
    """The two passes over all blocks; see the module's docstring for the formulas."""

    @staticmethod
    def forward(ctx, q, k, v, layout, dropout_mask, kernel):
        with without_autocast(v):
            if kernel is VarlenRings:
                out, lse = VarlenRings.forward(q, k, v, layout)
            else:
                out, lse = _forward(q, k, v, layout, dropout_mask, kernel)
        ctx.save_for_backward(q, k, v, out, lse, dropout_mask)
        ctx.layout, ctx.kernel = layout, kernel
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out, lse, dropout_mask = ctx.saved_tensors
        with without_autocast(v):
            if torch.is_grad_enabled():  # `create_graph`: these gradients are to be differentiated in turn
                grads = _gradients_with_graph(grad_out, q, k, v, ctx.layout, dropout_mask)
            elif ctx.kernel is VarlenRings:
                grads = VarlenRings.backward(grad_out, q, k, v, out, lse, ctx.layout)
            else:
                grads = _backward(grad_out, q, k, v, out, lse, ctx.layout, dropout_mask, ctx.kernel)
        return *grads, None, None, None


def _forward(q, k, v, layout, dropout_mask, kernel):
    """All blocks, round by round: the merged output and Z."""
    working = torch.promote_types(v.dtype, torch.float32)
    out = v.new_empty(v.shape, dtype=working)
    lse = v.new_empty((v.shape[0], 1), dtype=working)
    for block in layout.blocks():
        x = gather(q, k, v, layout, block)
        new_out, new_lse = kernel.forward(x, layout, block, dropout_mask)
        if block.round > 0:
            old_out, old_lse = take(out, x.query_rows), take(lse, x.query_rows)
            new_out, new_lse = _merge(old_out, old_lse, new_out, new_lse)
        if block.round == layout.rings.rounds - 1:
            own = layout.windows.own(x.v).reshape(new_out.shape).to(working)
            new_out = or_own(layout, x.query_rows, new_out, new_lse, own)
        put_(out, x.query_rows, new_out)
        put_(lse, x.query_rows, new_lse)
    return out, lse


def _merge(out, lse, new_out, new_lse):
    """Adds a round to what the rounds before it gave (eq. 13)."""
    merged = torch.logaddexp2(lse, new_lse)
    return out.mul_((lse - merged).exp2_()).addcmul_(new_out, (new_lse - merged).exp2_()), merged


def _backward(grad_out, q, k, v, out, lse, layout, dropout_mask, kernel):
    """The same blocks again: gradients of queries, keys and values."""
    windows, alone = layout.windows, lse < ALONE
    y = Gradients(grad_out, out, lse.masked_fill(alone, torch.inf), (grad_out * out).sum(-1, keepdim=True))
    grad_q, grad_k, grad_v = torch.zeros_like(out), None if k is None else torch.zeros_like(out), torch.zeros_like(out)
    for block in layout.blocks():
        x = gather(q, k, v, layout, block)
        d_q, d_k, d_v = kernel.backward(x, layout, block, dropout_mask, y)
        if block.round == layout.rings.rounds - 1:
            given, own_lse = (take(z, x.query_rows).to(out.dtype) for z in (grad_out, lse))
            own = or_own(layout, x.query_rows, torch.zeros_like(given), own_lse, given)
            windows.own(d_v).add_(own.view(windows.own(d_v).shape))
        add_(grad_v, x.rows, d_v.flatten(0, 1))
        if k is None:
            d_x = unit_keys_backward(x.shared, d_k)
            windows.own(d_x).add_(d_q.view(windows.own(d_x).shape), alpha=1 / LOG2E)
            add_(grad_q, x.rows, d_x.flatten(0, 1))
        else:
            add_(grad_q, x.query_rows, d_q.flatten(0, 1).mul_(1 / LOG2E))
            add_(grad_k, x.rows, d_k.flatten(0, 1).mul_(v.shape[-1] ** -0.5))
    return tuple(None if g is None else g.to(v.dtype) for g in (grad_q, grad_k, grad_v))


def plain_attention(q, k, v, layout, dropout_mask=None):
    """What `_forward` gives, by ordinary operations, which can be differentiated as often as one likes: nothing is written
    over, and the rounds are merged at the end."""
    outs, lses, rows = ([[] for _ in range(layout.rings.rounds)] for _ in range(3))
    for block in layout.blocks():
        x = gather(q, k, v, layout, block)
        out, lse = EagerBlocks.forward(x, layout, block, dropout_mask)
        row = x.query_rows
        row = torch.arange(row.start, row.stop, row.step, device=v.device) if isinstance(row, slice) else row
        for parts, part in ((outs, out), (lses, lse), (rows, row)):
            parts[block.round].append(part)
    in_order = [torch.cat(row).argsort() for row in rows]
    outs, lses = (
        torch.stack([torch.cat(p).index_select(0, i) for p, i in zip(parts, in_order, strict=True)])
        for parts in (outs, lses)
    )
    return _merge_rounds(outs, lses / LOG2E, v, layout)


def _merge_rounds(outs, lses, v, layout):
    """One softmax over all rounds (eq. 13): (R, B * L * H, D), (R, B * L * H, 1) and values -> output."""
    lse = lses.logsumexp(0)
    merged = (outs * (lses - lse).exp()).sum(0)
    rows = torch.arange(len(v), device=v.device)
    return or_own(layout, rows, merged, lse, v.to(merged.dtype))


def _gradients_with_graph(grad_out, q, k, v, layout, dropout_mask):
    given = [x for x in (q, k, v) if x is not None and x.requires_grad]
    again = {id(x): x.view_as(x) for x in given}  # one of the vectors may have been made from another
    out = plain_attention(*(again.get(id(x), x) for x in (q, k, v)), layout, dropout_mask)
    grads = iter(torch.autograd.grad(out, list(again.values()), grad_out.to(out.dtype), create_graph=True))
    return tuple(next(grads) if id(x) in again else None for x in (q, k, v))


def attention_probabilities(q, k, v, layout):
    """The probabilities themselves, for `output_attentions`: (B, H, R * L / M, M, W), each round normalised on its own
    as in transformers, and a token that sees nothing on itself. No gradient, and memory for all of it."""
    q, k, v = (None if x is None else x.detach().reshape(-1, x.shape[-1]) for x in (q, k, v))
    rings, windows, parts = layout.rings, layout.windows, []
    itself = (windows.steps(v.device) == 0).to(torch.promote_types(v.dtype, torch.float32))
    for block in layout.blocks():
        weights, total, lse = EagerBlocks.softmax(gather(q, k, v, layout, block), layout, block)
        parts.append(torch.where(lse < ALONE, itself, weights / total).flatten(0, 1))
    # blocks come round by round, ring by ring
    shape = (rings.rounds, rings.batch, rings.heads, layout.chunks_per_round, windows.chunk, windows.slots)
    return torch.cat(parts).view(shape).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)
