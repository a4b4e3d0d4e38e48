r"""Attention inside windows of chunks, block by block, for local and LSH layers; forward and backward.

With all scores s_ij^r of query i over rounds r and the keys j of its window in that round (masks folded in), the paper's
merge of rounds (appendix A, eq. 13-16) is one softmax over all of them,

    Z_i = \log\sum_{r,j} e^{s_{ij}^r},    o_i = \sum_{r,j} e^{s_{ij}^r - Z_i} v_j,

so with p^r the softmax inside round r, z_i^r its logsumexp and w_i^r = e^{z_i^r - Z_i}

    dv_j = \sum_{r,i} p_{ij}^r (w_i^r do_i),    ds_{ij}^r = p_{ij}^r (w_i^r do_i \cdot v_j - w_i^r do_i \cdot o_i).

No gradient flows through z^r, no probability outlives its block, and what is kept between forward and backward is the
merged output, Z, z^r and the order. Queries and keys that are shared are normalised inside the block
(k = q / sqrt(mean(q^2) + 1e-6) / sqrt(D), as Trax and transformers do).

Shapes as in `layout.py`; matrices of tokens are (B * L * H, D), D head size.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .layout import MASKED, Layout
from .multiplicity import log_counts, self_weight

NORM_EPSILON = 1e-6


def chunked_attention(q, k, v, layout, dropout_mask=None):
    """Attention of every token to its windows.

    Args:
        q, v: (B, L, H, D).
        k: the same, or None where queries and keys are shared and normalised (LSH).
        layout: which slots, which windows, which masks.
        dropout_mask: (M, W), 0 or 1 / (1 - p), or None; one mask for all chunks, rounds, heads and examples, as in Trax.

    Returns:
        (B, L, H, D) in the type of `v`. Half-precision inputs are worked on in float32. A token that sees nothing in any
        round gets its own value.
    """
    shape, dtype = v.shape, v.dtype
    matrices = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    return ChunkedAttention.apply(*matrices, layout, dropout_mask).view(shape).to(dtype)


class ChunkedAttention(torch.autograd.Function):
    """The two passes over all blocks; see the module's docstring for the formulas."""

    @staticmethod
    def forward(ctx, q, k, v, layout: Layout, dropout_mask):
        with torch.autocast(v.device.type, enabled=False):
            out, lse_rounds, lse = _forward(q, k, v, layout, dropout_mask)
        ctx.save_for_backward(q, k, v, out, lse_rounds, lse, dropout_mask)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        q, k, v, out, lse_rounds, lse, dropout_mask = ctx.saved_tensors
        with torch.autocast(v.device.type, enabled=False):
            grads = _backward(grad_out, q, k, v, out, lse_rounds, lse, ctx.layout, dropout_mask)
        return *grads, None, None


class _Vectors(NamedTuple):
    """What one block works on. `rows`, `query_rows`: rows of its tokens, with and without the chunks around it."""

    rows: torch.Tensor  # (n * U)
    query_rows: torch.Tensor  # (n * G * M)
    shared: torch.Tensor | None  # (n, U, D), queries before they are normalised to keys
    q: torch.Tensor  # (n * G, M, D)
    k: torch.Tensor  # (n, U, D)
    v: torch.Tensor  # (n, U, D)


def _gather(q, k, v, layout, block):
    rows = layout.rows(block)
    query_rows = layout.middle(rows).reshape(-1)
    shape, rows = (*rows.shape, -1), rows.reshape(-1)
    working = torch.promote_types(v.dtype, torch.float32)
    values = v.index_select(0, rows).view(shape).to(working)
    if k is None:
        shared = q.index_select(0, rows).view(shape).to(working)
        queries, keys = layout.middle(shared), unit_keys(shared)
    else:
        shared, keys = None, k.index_select(0, rows).view(shape).to(working) * v.shape[-1] ** -0.5
        queries = q.index_select(0, query_rows).to(working)
    return _Vectors(rows, query_rows, shared, queries.reshape(-1, layout.chunk_length, v.shape[-1]), keys, values)


def _inverse_norm(x):
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)


def unit_keys(x):
    """Keys of unit length from shared queries, x / sqrt(mean(x^2) + 1e-6) / sqrt(D): a score is then q . k alone."""
    return x * (_inverse_norm(x) * x.shape[-1] ** -0.5)


def _unit_keys_backward(x, grad_k):
    """dk/dx: with n the inverse norm, k = x n / sqrt(D), dx = n / sqrt(D) (dk - x n^2 (x . dk) / D)."""
    norm = _inverse_norm(x)
    along = (x * grad_k).sum(-1, keepdim=True).mul_(norm * norm / x.shape[-1])
    return torch.addcmul(grad_k, x, along, value=-1).mul_(norm * x.shape[-1] ** -0.5)


def _softmax(x, layout, block):
    """p^r (n * G, M, W) and its logsumexp z^r (n * G, M, 1); about -MASKED where nothing is seen."""
    scores = torch.bmm(x.q, layout.windows(x.k).transpose(1, 2))
    layout.mask_(scores, block)
    if layout.correct_duplicates:
        scores.sub_(log_counts(layout, block, scores.dtype))
    probs = torch.softmax(scores, -1)
    # softmax and two maxima are faster than a logsumexp, which would exponentiate twice
    return probs, scores.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log_()


def _forward(q, k, v, layout, dropout_mask):
    working = torch.promote_types(v.dtype, torch.float32)
    out = v.new_empty(v.shape, dtype=working)
    lse = v.new_empty((v.shape[0], 1), dtype=working)
    lse_rounds = v.new_empty((layout.rounds, v.shape[0], 1), dtype=working)
    for block in layout.blocks():
        x = _gather(q, k, v, layout, block)
        probs, new_lse = _softmax(x, layout, block)
        if dropout_mask is not None:
            probs = probs.mul_(dropout_mask)
        new_out, new_lse = torch.bmm(probs, layout.windows(x.v)).flatten(0, 1), new_lse.flatten(0, 1)
        lse_rounds[block.round].index_copy_(0, x.query_rows, new_lse)
        if block.round > 0:
            old_out, old_lse = out.index_select(0, x.query_rows), lse.index_select(0, x.query_rows)
            new_out, new_lse = _merge(old_out, old_lse, new_out, new_lse)
        out.index_copy_(0, x.query_rows, new_out)
        lse.index_copy_(0, x.query_rows, new_lse)
    out = torch.where(_alone(lse), v * self_weight(layout, working), out)
    return out, lse_rounds, lse


def _alone(lse):
    """Tokens that saw nothing in any round."""
    return lse < -0.5 * MASKED


def _merge(out, lse, new_out, new_lse):
    """Adds a round to what the rounds before it gave (eq. 13)."""
    merged = torch.logaddexp(lse, new_lse)
    return out.mul_((lse - merged).exp_()).addcmul_(new_out, (new_lse - merged).exp_()), merged


def _backward(grad_out, q, k, v, out, lse_rounds, lse, layout, dropout_mask):
    grad_out = grad_out.to(out.dtype)
    weights = (lse_rounds - lse).exp_()
    weights.masked_fill_(_alone(lse), 0)
    grad_q, grad_k = torch.zeros_like(out), None if k is None else torch.zeros_like(out)
    grad_v = torch.where(_alone(lse), grad_out * self_weight(layout, out.dtype), 0)
    delta = (grad_out * out).sum(-1, keepdim=True)
    for block in layout.blocks():
        x = _gather(q, k, v, layout, block)
        weight = weights[block.round].index_select(0, x.query_rows)
        block_grad, block_delta = (
            (y.index_select(0, x.query_rows) * weight).unflatten(0, (-1, layout.chunk_length))
            for y in (grad_out, delta)
        )
        d_q, d_k, d_v = _block_backward(x, layout, block, dropout_mask, block_grad, block_delta)
        grad_v.index_add_(0, x.rows, d_v.flatten(0, 1))
        if k is None:
            d_x = _unit_keys_backward(x.shared, d_k)
            layout.middle(d_x).add_(d_q.view(layout.middle(d_x).shape))
            grad_q.index_add_(0, x.rows, d_x.flatten(0, 1))
        else:
            grad_q.index_add_(0, x.query_rows, d_q.flatten(0, 1))
            grad_k.index_add_(0, x.rows, d_k.flatten(0, 1).mul_(v.shape[-1] ** -0.5))
    return tuple(None if g is None else g.to(v.dtype) for g in (grad_q, grad_k, grad_v))


def _block_backward(x, layout, block, dropout_mask, grad_out, delta):
    """Gradients of one block: dq (n * G, M, D), dk and dv (n, U, D)."""
    probs, _ = _softmax(x, layout, block)
    grad_probs = torch.bmm(grad_out, layout.windows(x.v).transpose(1, 2))
    if dropout_mask is None:
        seen = probs
    else:
        seen, grad_probs = probs * dropout_mask, grad_probs.mul_(dropout_mask)
    d_v = layout.add_windows(torch.bmm(seen.transpose(1, 2), grad_out), x.v)
    d_scores = grad_probs.sub_(delta).mul_(probs)
    d_q = torch.bmm(d_scores, layout.windows(x.k))
    return d_q, layout.add_windows(torch.bmm(d_scores.transpose(1, 2), x.q), x.k), d_v


def attention_probabilities(q, k, v, layout):
    """The probabilities themselves, for `output_attentions`: (B, H, R * L / M, M, W), each round normalised on its own
    as in transformers, and a token that sees nothing on itself. No gradient, and memory for all of it."""
    q, k, v = (None if x is None else x.detach().reshape(-1, x.shape[-1]) for x in (q, k, v))
    own = layout.before * layout.chunk_length
    parts = []
    for block in layout.blocks():
        probs, lse = _softmax(_gather(q, k, v, layout, block), layout, block)
        itself = torch.eye(layout.chunk_length, probs.shape[-1] - own, dtype=probs.dtype, device=probs.device)
        probs = torch.where(_alone(lse), torch.nn.functional.pad(itself, (own, 0)), probs)
        parts.append(probs.flatten(0, 1))
    # blocks come round by round, ring by ring
    shape = (layout.rounds, layout.batch, layout.heads, layout.chunks_per_round, layout.chunk_length, -1)
    return torch.cat(parts).view(shape).permute(1, 2, 0, 3, 4, 5).flatten(2, 3)
