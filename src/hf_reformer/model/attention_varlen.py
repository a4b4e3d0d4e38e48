r"""Strict attention through PyTorch's variable-length flash attention, on GPUs in half precision.

In the order of (bucket, position) a strict layer is a sliding window over sequences of unequal length, the buckets (of
`"strict_local"`: the rows). A sequence is cut into pieces of at most `PIECE` windows, so that the kernel's grid is known
without asking the device how long the longest bucket is. The keys of a piece are its own slots and the window before it,
gathered into a row of keys of its own; the kernel aligns the last query with the last key, so a query that must not see
itself is given keys that end one slot earlier. What stands after a query (`after`) is a second call, on the slots in reverse.

Each round is a call (or several, since a grid has at most `SEQUENCES` sequences); rounds are merged by their logsumexps, and
backward is handed the merged output and logsumexp, which gives the gradients of the softmax over all rounds (see
`attention_chunked.py`).

Shapes as in `attention_layout.py`; P pieces of a ring, T = N * S slots, U slots of keys, the latter a static bound.
"""

from typing import NamedTuple

import torch
from transformers.utils import logging

from .attention_blocks import ALONE, LOG2E, or_own, take, unit_keys, unit_keys_backward
from .attention_rule import MASKED, Rule

logger = logging.get_logger(__name__)

PIECE = 4  # windows in a piece of queries: a fourth more keys are read than there are
SEQUENCES = 65535  # that a call of the kernel may have: they are one dimension of its grid


def varlen_applies(v, layout):
    """Whether the kernel can run; where it was asked for on a GPU and cannot, one warning says why."""
    if v.device.type != "cuda":
        return False
    reason = None
    if v.dtype not in (torch.float16, torch.bfloat16):
        reason = f"inputs are {v.dtype}, and the kernel knows float16 and bfloat16"
    elif layout.bounds is None or type(layout.rule).near is not Rule.near:
        reason = "the layer is not of a strict type"
    elif _pieces_of_a_ring(layout) > SEQUENCES:
        reason = f"a ring has {_pieces_of_a_ring(layout)} pieces, and the kernel takes {SEQUENCES}"
    if reason is not None:
        logger.warning_once(f"attn_implementation='sdpa' runs as 'eager': {reason}.")
    return reason is None


def _pieces_of_a_ring(layout):
    step = PIECE * max(layout.rule.before, layout.rule.after, 1)
    return layout.buckets + -(-layout.rings.length // step)


class Pieces(NamedTuple):
    """Sequences for one call: those of the rings of one round, seen to one side."""

    query_slots: torch.Tensor | slice  # (T): slots of the call's rings, in the order that they are read in
    key_slots: torch.Tensor  # (U) int64, the same of the keys; those behind `keys[-1]` are of no sequence
    queries: torch.Tensor  # (P * N + 1) int32, where each sequence of queries begins
    keys: torch.Tensor  # (P * N + 1) int32
    longest: int
    window: int  # keys that a query sees before the one it is aligned with
    blind: torch.Tensor  # (T) bool: queries, as they are read, that see nothing here


def pieces(first, last, reach, itself, most):
    """The sequences of rings whose queries look back.

    Args:
        first, last: (N, S) int64, of each slot's bucket.
        reach: slots that a query sees before it.
        itself: whether it sees itself.
        most: buckets that a ring may have.
    """
    (rings, size), device = first.shape, first.device
    step, slots = PIECE * reach, torch.arange(size, device=device)
    # where buckets begin: as many as there may be, the others behind the last slot
    begins = slots == first
    place = torch.where(begins, begins.cumsum(1) - 1, most)
    starts = torch.full((rings, most + 1), size, device=device).scatter_(1, place, slots.expand(rings, -1))[:, :most]
    starts = torch.cat([starts, torch.arange(0, size, step, device=device).expand(rings, -1)], 1).sort(1).values
    ends = torch.cat([starts[:, 1:], starts.new_full((rings, 1), size)], 1)
    length, inside = ends - starts, starts.clamp(max=size - 1)
    before = (starts - first.gather(1, inside)).clamp(max=reach)
    key_length = torch.where(length > 0, length + before - int(not itself), 0)
    # as one row of sequences over all rings
    offsets = (torch.arange(rings, device=device) * size)[:, None]
    total = torch.full((1,), rings * size, device=device)
    queries, keys = torch.cat([(starts + offsets).flatten(), total]), key_length.flatten().cumsum(0)
    room = rings * (size + -(-size // step) * reach)
    nth = torch.arange(room, device=device)
    owner = torch.searchsorted(keys, nth, right=True).clamp(max=keys.numel() - 1)
    keys = torch.nn.functional.pad(keys, (1, 0))
    key_slots = ((starts - before + offsets).flatten()[owner] + nth - keys[owner]).clamp(max=rings * size - 1)
    blind = torch.zeros_like(begins) if itself else begins
    window = reach - int(not itself)
    return Pieces(slice(None), key_slots, queries.int(), keys.int(), step, window, blind.flatten())


def calls(layout):
    """(round, rings, Pieces) for each call: round by round, as many rings at a time as the grid takes."""
    rings, rule, size = layout.rings, layout.rule, layout.rings.length
    at_once = max(1, SEQUENCES // _pieces_of_a_ring(layout))
    shape = (rings.rounds, rings.rows, size)
    first, last = (torch.as_tensor(b, device=rings.device).to(torch.int64).expand(shape) for b in layout.bounds)
    if not torch.is_tensor(layout.bounds[1]):  # one bucket; what was padded behind it is another
        behind = torch.arange(size, device=rings.device) > layout.bounds[1]
        first, last = first.masked_fill(behind, layout.bounds[1] + 1), last.masked_fill(behind, size - 1)
    for r in range(rings.rounds):
        for n in range(0, rings.rows, at_once):
            ends = first[r, n : n + at_once], last[r, n : n + at_once]
            part = slice(r * rings.rows + n, r * rings.rows + n + len(ends[0]))
            if rule.before > 0:
                yield part, pieces(*ends, rule.before, not rule.exclude_self, layout.buckets)
            if rule.after > 0:
                mirrored = (size - 1 - x.flip(1) for x in reversed(ends))
                itself = rule.before == 0 and not rule.exclude_self
                yield part, _mirrored(pieces(*mirrored, rule.after, itself, layout.buckets), len(ends[0]), size)


def _mirrored(found, rings, size):
    """Pieces of slots in reverse, said of the slots as they stand."""
    slots = torch.arange(rings * size, device=found.key_slots.device).view(rings, size).flip(1).flatten()
    return found._replace(query_slots=slots, key_slots=slots[found.key_slots])


class VarlenRings:
    """Forward and backward of all rounds, in the place of a loop over blocks."""

    @staticmethod
    def forward(q, k, v, layout):
        """What `attention_chunked._forward` gives, for q, k, v (B * L * H, D): output and Z in base 2."""
        keys = _keys(q, k)
        out = torch.zeros_like(_wide(v))
        lse = out.new_full((len(v), 1), -MASKED)
        rows, blind = layout.rings.token_rows, out.new_full((), -MASKED)
        for part, p in calls(layout):
            own = rows[part].flatten()
            query_rows, key_rows = own[p.query_slots], own[p.key_slots]
            new_out, new_lse = torch.ops.aten._flash_attention_forward(
                *_sequences(q, keys, v, query_rows, key_rows), *_lengths(p), 0.0, False, False, scale=1.0, **_window(p)
            )[:2]
            new_lse = torch.where(p.blind, blind, new_lse[0] * LOG2E)[:, None]
            old = take(lse, query_rows)
            both = torch.logaddexp2(old, new_lse)
            weight = (new_lse - both).exp2_().masked_fill_(new_lse < ALONE, 0)
            merged = take(out, query_rows).mul_((old - both).exp2_()).addcmul_(_wide(new_out[:, 0]), weight)
            out.index_copy_(0, query_rows, merged)
            lse.index_copy_(0, query_rows, both)
        return or_own(layout, torch.arange(len(v), device=v.device), out, lse, _wide(v)), lse

    @staticmethod
    def backward(grad_out, q, k, v, out, lse, layout):
        """Gradients of queries, keys and values."""
        keys, rows, alone = _keys(q, k), layout.rings.token_rows, lse < ALONE
        grad_q, grad_k, grad_v = (torch.zeros_like(out) for _ in range(3))
        natural, half = lse.masked_fill(alone, 0) / LOG2E, out.to(v.dtype)
        state = torch.zeros(2, dtype=torch.uint64, device=v.device)
        for part, p in calls(layout):
            own = rows[part].flatten()
            query_rows, key_rows = own[p.query_slots], own[p.key_slots]
            given, outs, lses = (take(x, query_rows)[:, None] for x in (grad_out.to(v.dtype), half, natural))
            grads = torch.ops.aten._flash_attention_backward(
                given, *_sequences(q, keys, v, query_rows, key_rows), outs, lses[:, :, 0].T.contiguous(), *_lengths(p),
                0.0, False, state, state, scale=1.0, **_window(p),
            )  # fmt: skip
            d_q, d_k, d_v = (_wide(x[:, 0]) for x in grads)
            used = (torch.arange(len(key_rows), device=v.device) < p.keys[-1])[:, None]
            grad_q.index_add_(0, query_rows, torch.where(p.blind[:, None], 0, d_q))
            grad_k.index_add_(0, key_rows, torch.where(used, d_k, 0))
            grad_v.index_add_(0, key_rows, torch.where(used, d_v, 0))
        grad_v += torch.where(alone, grad_out.to(out.dtype), 0)
        if k is None:
            grad_q += unit_keys_backward(q, grad_k)
            return grad_q.to(v.dtype), None, grad_v.to(v.dtype)
        return grad_q.to(v.dtype), (grad_k * v.shape[-1] ** -0.5).to(v.dtype), grad_v.to(v.dtype)


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _keys(q, k):
    return unit_keys(q).to(q.dtype) if k is None else k * q.shape[-1] ** -0.5


def _sequences(q, keys, v, query_rows, key_rows):
    """One head: (T, 1, D), (U, 1, D), (U, 1, D)."""
    return take(q, query_rows)[:, None], take(keys, key_rows)[:, None], take(v, key_rows)[:, None]


def _lengths(p):
    return p.queries, p.keys, p.longest, p.longest + p.window + 1


def _window(p):
    return {"window_size_left": p.window, "window_size_right": 0}
