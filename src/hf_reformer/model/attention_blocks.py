"""One block of chunked attention, forward and backward: plain PyTorch, or PyTorch's fused kernels that return a logsumexp.

Scores are counted in base 2: keys carry a factor log2(e), so that 2^(q . k) is what the softmax needs. (On CPUs exp2 is
vectorised; exp takes 4 times as long, and 40 times where a masked score underflows.) A block kernel has two functions:
- `forward(x, layout, block, dropout_mask)` -> the softmax-weighted values of one round (n * G * M, D), and the logsumexp
  z^r of its scores (n * G * M, 1), in base 2, about -MASKED where a query sees nothing;
- `backward(x, layout, block, dropout_mask, y)` -> gradients for queries times log2(e) (n * G, M, D), keys and values
  (n, U, D), through the softmax over all rounds: its probabilities are 2^(s_ij^r - Z_i).

On a CPU none of what was tried is faster than the plain one. `python -m benchmarks.blocks`, one block of 32 chunks of 64,
windows of 128, head size 64, causal, forward, AMD EPYC, in ms with 2 threads (two runs) and 1 thread: the two products alone
0.34, 0.34 (0.67); plain 0.45, 0.45 (0.86); through `torch.compile` 0.48, 0.44 (0.98), after compiling; PyTorch's fused kernel,
with the additive mask it needs, 0.51, 0.46 (0.98). Larger blocks are slower for each chunk and vary from run to run.

Shapes as in `attention_layout.py`.
"""

import math
from typing import NamedTuple

import torch

from .attention_duplicates import log_counts, self_weight
from .attention_rule import MASKED
from .tracing import readable

NORM_EPSILON = 1e-6
LOG2E = math.log2(math.e)
ALONE = -0.5 * MASKED  # the logsumexp of a token that sees nothing lies below


class Vectors(NamedTuple):
    """What one block works on: queries, keys and values in the type that their products are taken in (`product_type`).
    `rows`, `query_rows`: rows of its tokens, with and without the chunks around it."""

    rows: torch.Tensor | slice  # (n * U)
    query_rows: torch.Tensor | slice  # (n * G * M)
    shared: torch.Tensor | None  # (n, U, D), queries before they are normalised to keys
    q: torch.Tensor  # (n * G, M, D)
    k: torch.Tensor  # (n, U, D), times log2(e)
    v: torch.Tensor  # (n, U, D)


def product_type(v):
    """The type of the vectors, but float32 for half precision that a CPU has no instructions for; sums, maxima and what they
    are added up to are at least float32 anyway."""
    half = v.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and v.device.type == "cpu" and not cpu_multiplies(v.dtype) else v.dtype


def cpu_multiplies(dtype):
    """Whether this CPU has instructions for products in a type of half precision."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10
    names = ("avx512_bf16", "amx_bf16") if dtype == torch.bfloat16 else ("amx_fp16",)
    return any(able.get(name, False) for name in names)


def gather(q, k, v, layout, block):
    rows, query_rows = layout.rows(block)
    shape, kind = (block.ring_end - block.ring, -1, v.shape[-1]), product_type(v)
    values = take(v, rows).view(shape).to(kind)
    if k is None:
        shared = take(q, rows).view(shape)
        queries, wide = layout.windows.own(shared), _wide(shared)
        keys = wide * (unit_key_scale(wide) * LOG2E)
    else:
        shared, keys = None, take(k, rows).view(shape) * (LOG2E * v.shape[-1] ** -0.5)
        queries = take(q, query_rows)
    queries = queries.reshape(-1, layout.windows.chunk, v.shape[-1]).to(kind)
    return Vectors(rows, query_rows, shared, queries, keys.to(kind), values)


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
    x = x.to(grad_k.dtype)
    scale = unit_key_scale(x)
    along = (x * grad_k).sum(-1, keepdim=True).mul_(scale * scale)
    return torch.addcmul(grad_k, x, along, value=-1).mul_(scale)


class Gradients(NamedTuple):
    """What backward knows of all tokens, (B * L * H, ...) each."""

    grad_out: torch.Tensor
    out: torch.Tensor  # merged over rounds
    lse: torch.Tensor  # Z, over all rounds; infinite for tokens that saw nothing, which then weigh nothing
    delta: torch.Tensor  # grad_out . out


def or_own(layout, rows, out, lse, v):
    """`out` (n, D), but a token that sees nothing, by its logsumexp (n, 1), has its own value v (n, D). `rows`: of these
    tokens, (n) or a slice."""
    alone = lse < ALONE
    if readable(lse):  # few are: the others need no weight
        few = alone.flatten().nonzero().flatten()
        if len(few) == 0:
            return out
        own = v[few] * _weight(layout, rows, few, out.dtype)
        return out.index_copy(0, few, own)
    return torch.where(alone, v * _weight(layout, rows, slice(None), out.dtype), out)


def _weight(layout, rows, some, dtype):
    """Of the own values of `some` of the tokens of `rows`: float32 alone has the published artefact."""
    if dtype != torch.float32 or isinstance(rows, slice):
        return 1
    weight = self_weight(layout, rows[some])
    return 1 if weight is None else weight


def product(a, b):
    """(n, I, J) @ (n, J, K) in the type of `b`, whose sums are float32 inside; the result is at least float32."""
    return _wide(torch.bmm(a.to(b.dtype), b))


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


class EagerBlocks:
    """Scores, softmax and products of one block as ordinary tensors."""

    @staticmethod
    def forward(x, layout, block, dropout_mask):
        weights, total, lse = EagerBlocks.softmax(x, layout, block)
        if dropout_mask is not None:
            weights = weights * dropout_mask
        return (product(weights, layout.windows.of(x.v)) / total).flatten(0, 1), lse.flatten(0, 1)

    @staticmethod
    def softmax(x, layout, block):
        """2^(s^r - its maximum) (n * G, M, W), their sum over a window and z^r (n * G, M, 1)."""
        scores = EagerBlocks.scores(x.q, window_keys(layout, x.k), layout, block)
        highest = scores.detach().amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp2_()
        total = weights.sum(-1, keepdim=True)
        return weights, total, highest + total.log2()

    @staticmethod
    def scores(q, k, layout, block):
        """s^r (n * G, M, W), far below all others where a query does not see a key."""
        scores = product(q, k.transpose(1, 2))
        layout.mask_(scores, block)
        if layout.correct_duplicates:
            scores.sub_(log_counts(layout, block, scores.dtype), alpha=LOG2E)
        return scores

    @staticmethod
    def backward(x, layout, block, dropout_mask, y):
        windows, chunks = layout.windows, (-1, layout.windows.chunk)
        grad_out, lse, delta = (take(z, x.query_rows).unflatten(0, chunks) for z in (y.grad_out, y.lse, y.delta))
        grad_out, k, v = grad_out.to(x.v.dtype), window_keys(layout, x.k), window_keys(layout, x.v)
        probs = EagerBlocks.scores(x.q, k, layout, block).sub_(lse).exp2_()
        grad_probs = product(grad_out, v.transpose(1, 2))
        if dropout_mask is None:
            seen = probs
        else:
            seen, grad_probs = probs * dropout_mask, grad_probs.mul_(dropout_mask)
        d_v = windows.sum(product(seen.transpose(1, 2), grad_out), x.v)
        d_scores = grad_probs.sub_(delta).mul_(probs).to(k.dtype)
        return product(d_scores, k), windows.sum(product(d_scores.transpose(1, 2), x.q), x.k), d_v


def window_keys(layout, per_block):
    """(n, U, D) -> (n * G, W, D), to be transposed in a product: of half precision a copy, which makes that faster."""
    windows = layout.windows.of(per_block)
    return windows.contiguous() if windows.dtype.itemsize == 2 else windows


def sdpa_applies(v):
    """The fused kernel that returns its logsumexp is PyTorch's for CPUs; elsewhere the plain one runs."""
    return v.device.type == "cpu"


class SdpaBlocks:
    """`scaled_dot_product_attention`'s fused kernel for CPUs. Its backward is given the merged output and Z instead of this
    round's, and so gives the gradients of the merged softmax (see `chunked_attention.py`)."""

    @staticmethod
    def forward(x, layout, block, dropout_mask):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *SdpaBlocks.inputs(x, layout), 0.0, False, attn_mask=SdpaBlocks.mask(x, layout, block), scale=1 / LOG2E
        )
        return _wide(out.flatten(0, 2)), lse.reshape(-1, 1) * LOG2E

    @staticmethod
    def inputs(x, layout):
        """Chunks as a batch, one head: (n * G, 1, M or W, D)."""
        return x.q[:, None], layout.windows.of(x.k)[:, None], layout.windows.of(x.v)[:, None]

    @staticmethod
    def mask(x, layout, block):
        mask = _wide(x.q).new_zeros((len(x.q), layout.windows.chunk, layout.windows.slots))
        layout.mask_(mask, block)
        return mask[:, None].to(x.q.dtype)

    @staticmethod
    def backward(x, layout, block, dropout_mask, y):
        shape, kind = (-1, 1, layout.windows.chunk, y.out.shape[-1]), x.q.dtype
        grad_out, out = (take(z, x.query_rows).view(shape).to(kind) for z in (y.grad_out, y.out))
        lse = take(y.lse, x.query_rows).view(shape[:-1]) / LOG2E
        d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, *SdpaBlocks.inputs(x, layout), out, lse, 0.0, False,
            attn_mask=SdpaBlocks.mask(x, layout, block), scale=1 / LOG2E,
        )  # fmt: skip
        d_k, d_v = (layout.windows.sum(_wide(d[:, 0]).contiguous(), like) for d, like in ((d_k, x.k), (d_v, x.v)))
        return _wide(d_q[:, 0]) * LOG2E, d_k * LOG2E, d_v
