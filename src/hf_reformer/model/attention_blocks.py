"""One block of chunked attention, forward and backward: plain PyTorch, or PyTorch's fused kernels that return a logsumexp.

A block kernel has two functions:
- `forward(x, layout, block, dropout_mask)` -> the softmax-weighted values of one round (n * G * M, D), and the logsumexp
  z^r of its scores (n * G * M, 1), about -MASKED where a query sees nothing;
- `backward(x, layout, block, dropout_mask, y)` -> gradients for queries (n * G, M, D), keys and values (n, U, D).

On a CPU none of what was tried is faster than the plain one. `python -m benchmarks.blocks`, one block of 32 chunks of 64,
windows of 128, head size 64, causal, forward, AMD EPYC, in ms with 2 threads (two runs) and 1 thread: the two products alone
0.34, 0.34 (0.67); plain 0.45, 0.45 (0.86); through `torch.compile` 0.48, 0.44 (0.98), after compiling; PyTorch's fused kernel,
with the additive mask it needs, 0.51, 0.46 (0.98). Larger blocks are slower for each chunk and vary from run to run.

Shapes as in `attention_layout.py`.
"""

from typing import NamedTuple

import torch

from .attention_duplicates import log_counts
from .attention_rule import MASKED

NORM_EPSILON = 1e-6
ALONE = -0.5 * MASKED  # the logsumexp of a token that sees nothing lies below


class Vectors(NamedTuple):
    """What one block works on. `rows`, `query_rows`: rows of its tokens, with and without the chunks around it."""

    rows: torch.Tensor | slice  # (n * U)
    query_rows: torch.Tensor | slice  # (n * G * M)
    shared: torch.Tensor | None  # (n, U, D), queries before they are normalised to keys
    q: torch.Tensor  # (n * G, M, D)
    k: torch.Tensor  # (n, U, D)
    v: torch.Tensor  # (n, U, D)


def gather(q, k, v, layout, block):
    rows, query_rows = layout.rows(block)
    shape = (block.ring_end - block.ring, -1, v.shape[-1])
    working = torch.promote_types(v.dtype, torch.float32)
    values = take(v, rows).view(shape).to(working)
    if k is None:
        shared = take(q, rows).view(shape).to(working)
        queries, keys = layout.windows.own(shared), unit_keys(shared)
    else:
        shared, keys = None, take(k, rows).view(shape).to(working) * v.shape[-1] ** -0.5
        queries = take(q, query_rows).to(working)
    return Vectors(rows, query_rows, shared, queries.reshape(-1, layout.windows.chunk, v.shape[-1]), keys, values)


def take(x, rows):
    """x[rows]; a view where `rows` is a slice."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def put_(x, rows, values):
    """x[rows] = values."""
    if isinstance(rows, slice):
        x[rows] = values
    else:
        x.index_copy_(0, rows, values)


def add_(x, rows, values):
    """x[rows] += values; a row that stands there twice gets both."""
    if isinstance(rows, slice):
        x[rows] += values
    else:
        x.index_add_(0, rows, values)


def unit_key_scale(x):
    """1 / sqrt(mean(x^2) + 1e-6) / sqrt(D), (..., 1): a score q . (x times this) is one with a key of unit length."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * x.shape[-1] ** -0.5


def unit_keys(x):
    """Keys of unit length from shared queries; in float32 at least, where x^2 does not overflow."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * unit_key_scale(x)


def unit_keys_backward(x, grad_k):
    """dk/dx: with s the scale, k = x s, dx = s (dk - x s^2 (x . dk))."""
    scale = unit_key_scale(x)
    along = (x * grad_k).sum(-1, keepdim=True).mul_(scale * scale)
    return torch.addcmul(grad_k, x, along, value=-1).mul_(scale)


class Gradients(NamedTuple):
    """What backward knows of the queries of a block, (n * G * M, ...) each."""

    grad_out: torch.Tensor
    out: torch.Tensor  # merged over rounds
    lse: torch.Tensor  # Z, over all rounds
    weight: torch.Tensor  # w^r, this round's share of it; 0 for tokens that saw nothing


def or_own(out, lse, v, weight):
    """`out` (rows, D), but a token that sees nothing, by its logsumexp (rows, 1), has its own value."""
    return torch.where(lse < ALONE, v if weight is None else v * weight, out)


class EagerBlocks:
    """Scores, softmax and products of one block as ordinary tensors."""

    @staticmethod
    def forward(x, layout, block, dropout_mask):
        probs, lse = EagerBlocks.softmax(x, layout, block)
        if dropout_mask is not None:  # under autograd the softmax's result must stay as it is
            probs = probs * dropout_mask if torch.is_grad_enabled() else probs.mul_(dropout_mask)
        return torch.bmm(probs, layout.windows.of(x.v)).flatten(0, 1), lse.flatten(0, 1)

    @staticmethod
    def softmax(x, layout, block):
        """p^r (n * G, M, W) and z^r (n * G, M, 1)."""
        scores = torch.bmm(x.q, layout.windows.of(x.k).transpose(1, 2))
        layout.mask_(scores, block)
        if layout.correct_duplicates:
            scores.sub_(log_counts(layout, block, scores.dtype))
        probs = torch.softmax(scores, -1)
        # softmax and two maxima are faster than a logsumexp, which would exponentiate twice
        return probs, scores.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log()

    @staticmethod
    def backward(x, layout, block, dropout_mask, y):
        chunks = (-1, layout.windows.chunk)
        grad_out = (y.grad_out * y.weight).unflatten(0, chunks)
        delta = (grad_out * y.out.unflatten(0, chunks)).sum(-1, keepdim=True)
        probs, _ = EagerBlocks.softmax(x, layout, block)
        grad_probs = torch.bmm(grad_out, layout.windows.of(x.v).transpose(1, 2))
        if dropout_mask is None:
            seen = probs
        else:
            seen, grad_probs = probs * dropout_mask, grad_probs.mul_(dropout_mask)
        d_v = layout.windows.sum(torch.bmm(seen.transpose(1, 2), grad_out), x.v)
        d_scores = grad_probs.sub_(delta).mul_(probs)
        d_q = torch.bmm(d_scores, layout.windows.of(x.k))
        return d_q, layout.windows.sum(torch.bmm(d_scores.transpose(1, 2), x.q), x.k), d_v


def sdpa_applies(v):
    """The fused kernel that returns its logsumexp is PyTorch's for CPUs; elsewhere the plain one runs."""
    return v.device.type == "cpu"


class SdpaBlocks:
    """`scaled_dot_product_attention`'s fused kernel for CPUs. Its backward is given the merged output and Z instead of this
    round's, and so gives the gradients of the merged softmax (see `chunked_attention.py`)."""

    @staticmethod
    def forward(x, layout, block, dropout_mask):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *SdpaBlocks.inputs(x, layout), 0.0, False, attn_mask=SdpaBlocks.mask(x, layout, block), scale=1.0
        )
        return out.flatten(0, 2), lse.reshape(-1, 1)

    @staticmethod
    def inputs(x, layout):
        """Chunks as a batch, one head: (n * G, 1, M or W, D)."""
        return x.q[:, None], layout.windows.of(x.k)[:, None], layout.windows.of(x.v)[:, None]

    @staticmethod
    def mask(x, layout, block):
        mask = x.q.new_zeros((len(x.q), layout.windows.chunk, layout.windows.slots))
        layout.mask_(mask, block)
        return mask[:, None]

    @staticmethod
    def backward(x, layout, block, dropout_mask, y):
        seeing = (y.lse >= ALONE).to(y.out.dtype)  # the others get no gradient here
        grad_out, out = ((z * seeing).view(-1, 1, layout.windows.chunk, z.shape[-1]) for z in (y.grad_out, y.out))
        d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, *SdpaBlocks.inputs(x, layout), out, y.lse.view(-1, 1, layout.windows.chunk), 0.0, False,
            attn_mask=SdpaBlocks.mask(x, layout, block), scale=1.0,
        )  # fmt: skip
        d_k, d_v = (layout.windows.sum(d[:, 0].contiguous(), like) for d, like in ((d_k, x.k), (d_v, x.v)))
        return d_q[:, 0], d_k, d_v
