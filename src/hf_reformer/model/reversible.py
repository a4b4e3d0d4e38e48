"""Reversible layers: activations live once, at the top of the stack, and backward rebuilds what was below (paper section 3).

A layer maps two streams (B, L, hidden) to two: y1 = x1 + F(x2), y2 = x2 + G(y1) with F attention and G feed-forward; its
inverse is x2 = y2 - G(y1), x1 = y1 - F(x2). Each layer is one `torch.autograd.Function` that takes the streams and its
parameters as inputs, so that autograd, DDP, FSDP, LoRA and `functional_call` see ordinary gradients. Backward replays the
forward's random numbers, autocast state and routing; G is rebuilt and differentiated in one pass, chunk by chunk.

In half precision (autocast, or half-precision weights) the streams stay float32, and what is added to them is rounded to
multiples of 2^-15, far below a half-precision rounding of it. Then y1 - F(x2) gives back x1 bit for bit (up to 512), the
halves see in backward what they saw in forward, and no rounding flips on the way down: without it, gradients of 12 layers
with large weights under bf16 were up to 2.3 times as wrong as ordinary autograd's.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .recompute import Graph, ReplayState, add, parts, with_parameters

GRID_SHIFT = 1.5 * 2**23 * 2**-15  # adding and subtracting it rounds a float32 to a multiple of 2^-15


MANY_TOKENS = 2**16  # beyond, memory counts for more than time


class Tape:
    """Carries the streams from the backward of one layer to that of the layer below.

    `exposed`: whether what happens between the layers may be seen from outside, and gradients there be anybody's.
    """

    def __init__(self, exposed=False):
        self.exposed = exposed
        self.streams = None
        self.owned = False  # whether nobody else holds the streams, so that they may be overwritten
        self.grads = (None, None)  # of the streams, made by the layer above and held by nobody else

    def put(self, *streams, owned, grads=(None, None)):
        self.streams, self.owned, self.grads = streams, owned, grads

    def made(self, *grads):
        """Whether these gradients come straight from the layer above, so that they may be overwritten."""
        mine, self.grads = self.grads, (None, None)
        return not self.exposed and all(a is b for a, b in zip(mine, grads, strict=True))

    def take(self):
        if self.streams is None:
            raise RuntimeError("A reversible layer's backward ran before that of the layer above it.")
        streams, self.streams = self.streams, None
        return (*streams, self.owned)


class _Anchor(torch.autograd.Function):
    """Identity on the streams that keeps them for the layers below: once at the top of the stack, and after every layer
    whose hidden states are handed out."""

    @staticmethod
    def forward(ctx, tape, y1, y2):
        ctx.tape = tape
        ctx.save_for_backward(y1, y2)
        return y1.view_as(y1), y2.view_as(y2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y1, grad_y2):
        many = grad_y1.shape[0] * grad_y1.shape[1] > MANY_TOKENS  # then even what others may hold is overwritten
        ctx.tape.put(*ctx.saved_tensors, owned=False, grads=(grad_y1, grad_y2) if many else (None, None))
        return None, grad_y1, grad_y2


def anchor(tape, y1, y2):
    """Keeps the streams (B, L, hidden) for the backward of the layers below; returns them."""
    return _Anchor.apply(tape, y1, y2)


def as_streams(hidden_states, tape):
    """Where the two equal streams start: float32 or more, on the grid if the halves work in half precision."""
    streams = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    half = streams.dtype != hidden_states.dtype or torch.is_autocast_enabled(hidden_states.device.type)
    if tape is None or not half or streams.dtype != torch.float32:
        return streams
    return streams + (_on_grid(streams.detach()) - streams.detach())


def _on_grid(x):
    return x + GRID_SHIFT - GRID_SHIFT


def _residual(output, stream):
    """What a half adds to its stream: its output, on the grid if that is in half precision."""
    return output if output.dtype == stream.dtype else _on_grid(output.to(stream.dtype))


@dataclass
class Call:
    """One forward call of a layer: its halves, what they are given, and what they give beside the streams.

    F is an attention core, which mixes tokens, followed by an output projection, which does not.
    """

    attention: torch.nn.Module
    feed_forward: torch.nn.Module
    bottom: bool
    overwrite: bool
    arguments: dict[str, Any]
    attentions: torch.Tensor | None = None
    names: list[list[str]] = field(default_factory=list)

    def parts(self):
        """The three modules and their named parameters: core, output projection, feed-forward."""
        core = {n: p for n, p in self.attention.named_parameters() if not n.startswith("output.")}
        others = (self.attention.output, self.feed_forward)
        return [core, *(dict(module.named_parameters()) for module in others)]


def reversible_layer(tape, attention, feed_forward, x1, x2, bottom=False, overwrite=False, **arguments):
    """y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1), without keeping anything for backward.

    Args:
        tape: of this forward pass; an `anchor` above must put streams on it in backward.
        attention: called with (x2, project_output=False, **arguments); what it returns has `hidden_states`, which
            `attention.output` then maps token by token, `routing` (given back to it as `routing` in backward) and
            `attentions`.
        feed_forward: maps y1 token by token; both are called with `feed_forward.chunk_length(batch size)` tokens at a time.
        bottom: there is no layer below, and so nothing to put on the tape.
        overwrite: y1 and y2 may stand in the memory of x1 and x2, which must be two tensors that nobody needs any more.

    Returns:
        y1, y2, and the attention probabilities (no gradient) or None.
    """
    call = Call(attention, feed_forward, bottom, overwrite, {**arguments, "project_output": False})
    named = call.parts()
    call.names = [list(part) for part in named]
    y1, y2 = _ReversibleLayer.apply(tape, call, x1, x2, *(p for part in named for p in part.values()))
    return y1, y2, call.attentions


class _ReversibleLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tape, call, x1, x2, *parameters):
        ctx.tape, ctx.call = tape, call
        ctx.save_for_backward(*parameters)
        ctx.core_state = ReplayState(x2)
        core = call.attention(x2, **call.arguments)
        ctx.routing, call.attentions = core.routing, core.attentions
        step = call.feed_forward.chunk_length(len(x2))
        ctx.output_state = ReplayState(x2)
        over1, over2 = (x1.detach(), x2.detach()) if call.overwrite else (None, None)
        y1 = add_half(call.attention.output, core.hidden_states, x1, step, over1)
        del core
        ctx.feed_forward_state = ReplayState(x2)
        y2 = add_half(call.feed_forward, y1, x2, step, over2)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y1, grad_y2):
        y1, y2, owned = ctx.tape.take()
        call, overwrite = ctx.call, ctx.tape.made(grad_y1, grad_y2)
        core, output, feed_forward = _split(ctx)
        step = call.feed_forward.chunk_length(len(y1))
        x2, grad_x1, feed_forward_grads = _undo_half(
            call.feed_forward, *feed_forward, ctx.feed_forward_state, step, y1, y2, grad_y2,
            rebuilt=y2 if owned else torch.empty_like(y2), grad=grad_y1 if overwrite else grad_y1.clone(),
        )  # fmt: skip
        del y2, grad_y1
        attended, graph = _core_again(ctx, x2, core)
        x1, grad_attended, output_grads = _undo_half(
            call.attention.output, *output, ctx.output_state, step, attended, y1, grad_x1,
            rebuilt=y1 if owned else torch.empty_like(y1), grad=torch.zeros_like(attended),
        )  # fmt: skip
        del y1, attended
        (grad_x2,), core_grads = graph.gradients(core[1], [grad_attended])
        grad_x2 = grad_y2.add_(grad_x2) if overwrite else grad_x2.add_(grad_y2)
        if not call.bottom:
            ctx.tape.put(x1, x2, owned=True, grads=(grad_x1, grad_x2))
        return None, None, grad_x1, grad_x2, *core_grads, *output_grads, *feed_forward_grads


def _split(ctx):
    """(names, detached parameters) of the three parts."""
    saved = zip(ctx.saved_tensors, ctx.needs_input_grad[4:], strict=True)
    parameters = iter([p.detach().requires_grad_(needed) for p, needed in saved])
    return [(names, [next(parameters) for _ in names]) for names in ctx.call.names]


def add_half(module, inputs, stream, step, out=None):
    """stream + module(inputs), `step` tokens at a time, without gradient; `out` may be the stream itself."""
    out = torch.empty_like(stream) if out is None else out
    for part in parts(stream.shape[1], step):
        torch.add(stream[:, part], _residual(module(inputs[:, part]), stream), out=out[:, part])
    return out


def _undo_half(module, names, parameters, state, step, inputs, stream, grad_stream, *, rebuilt, grad):
    """`rebuilt` = stream - module(inputs), with the gradients for inputs (added to `grad`) and parameters, in one pass."""

    def work():
        totals = [None] * len(parameters)
        for part in parts(stream.shape[1], step):
            leaf = inputs[:, part].detach().requires_grad_()
            with torch.enable_grad():
                output = module(leaf)
                graph = Graph([output], [leaf])
            torch.sub(stream[:, part], _residual(output.detach(), stream), out=rebuilt[:, part])
            del output
            (piece,), grads = graph.gradients(parameters, [grad_stream[:, part]])
            grad[:, part].add_(piece)
            totals = [add(total, more) for total, more in zip(totals, grads, strict=True)]
        return totals

    with state.replay():
        return rebuilt, grad, with_parameters(module, names, parameters, work)


def _core_again(ctx, x2, core):
    """The attention core's output and its graph."""
    names, parameters = core
    arguments = {**ctx.call.arguments, "routing": ctx.routing, "output_attentions": False}
    leaf = x2.detach().requires_grad_()

    def work():
        with torch.enable_grad():
            attended = ctx.call.attention(leaf, **arguments).hidden_states
            return attended.detach(), Graph([attended], [leaf])

    with ctx.core_state.replay():
        return with_parameters(ctx.call.attention, names, parameters, work)
