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

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import get_device_states, set_device_states

GRID_SHIFT = 1.5 * 2**23 * 2**-15  # adding and subtracting it rounds a float32 to a multiple of 2^-15


class Tape:
    """Carries the streams from the backward of one layer to that of the layer below."""

    def __init__(self):
        self.streams = None
        self.owned = False  # whether nobody else holds the streams, so that they may be overwritten

    def put(self, *streams, owned):
        self.streams, self.owned = streams, owned

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
        ctx.tape.put(*ctx.saved_tensors, owned=False)
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


class ReplayState:
    """State of the random generators and of autocast at one point of the forward."""

    def __init__(self, tensor):
        self.device_type = tensor.device.type
        self.cpu_state = torch.get_rng_state()
        self.devices, self.states = get_device_states(tensor)
        self.autocast = {
            "enabled": torch.is_autocast_enabled(self.device_type),
            "dtype": torch.get_autocast_dtype(self.device_type),
        }

    @contextmanager
    def replay(self):
        """Inside, the state is as it was; outside, as it would be anyway."""
        fork = {} if self.device_type == "cpu" else {"device_type": self.device_type}
        with torch.random.fork_rng(devices=self.devices, **fork):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.states, **fork)
            with torch.autocast(self.device_type, cache_enabled=False, **self.autocast):
                yield


@dataclass
class Call:
    """One forward call of a layer: its halves, what they are given, and what they give beside the streams."""

    attention: torch.nn.Module
    feed_forward: torch.nn.Module
    bottom: bool
    arguments: dict[str, Any]
    attention_names: list[str] = field(default_factory=list)
    feed_forward_names: list[str] = field(default_factory=list)
    attentions: torch.Tensor | None = None


def reversible_layer(tape, attention, feed_forward, x1, x2, bottom=False, **arguments):
    """y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1), without keeping anything for backward.

    Args:
        tape: of this forward pass; an `anchor` above must put streams on it in backward.
        attention: called with (x2, **arguments); its output has `hidden_states`, `routing` (given back to it as
            `routing` in backward) and `attentions`.
        bottom: there is no layer below, and so nothing to put on the tape.
        feed_forward: called with (y1), and in backward with chunks of it of `chunk_length(batch size)` tokens.

    Returns:
        y1, y2, and the attention probabilities (no gradient) or None.
    """
    halves = [dict(module.named_parameters()) for module in (attention, feed_forward)]
    call = Call(attention, feed_forward, bottom, arguments, *(list(half) for half in halves))
    parameters = [p for half in halves for p in half.values()]
    y1, y2 = _ReversibleLayer.apply(tape, call, x1, x2, *parameters)
    return y1, y2, call.attentions


class _ReversibleLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tape, call, x1, x2, *parameters):
        ctx.tape, ctx.call = tape, call
        ctx.save_for_backward(*parameters)
        ctx.attention_state = ReplayState(x2)
        output = call.attention(x2, **call.arguments)
        ctx.routing, call.attentions = output.routing, output.attentions
        y1 = x1 + _residual(output.hidden_states, x1)
        del output
        ctx.feed_forward_state = ReplayState(y1)
        y2 = torch.empty_like(x2)
        for part in _parts(call.feed_forward, y1):
            y2[:, part] = x2[:, part] + _residual(call.feed_forward(y1[:, part]), x2)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y1, grad_y2):
        y1, y2, owned = ctx.tape.take()
        count = len(ctx.call.attention_names)
        parameters = [p.detach().requires_grad_(needed) for p, needed in _with_needs(ctx)]
        x2, grad_y1, feed_forward_grads = _undo_feed_forward(ctx, y1, y2, owned, grad_y1, grad_y2, parameters[count:])
        x1, grad_x2, attention_grads = _undo_attention(ctx, y1, x2, owned, grad_y1, grad_y2, parameters[:count])
        if not ctx.call.bottom:
            ctx.tape.put(x1, x2, owned=True)
        return None, None, grad_y1, grad_x2, *attention_grads, *feed_forward_grads


def _with_needs(ctx):
    return zip(ctx.saved_tensors, ctx.needs_input_grad[4:], strict=True)


def _parts(feed_forward, x):
    step = feed_forward.chunk_length(len(x))
    return [slice(start, start + step) for start in range(0, x.shape[1], step)]


def _undo_feed_forward(ctx, y1, y2, owned, grad_y1, grad_y2, parameters):
    """x2 = y2 - G(y1), with the gradients through G, one chunk at a time."""
    named = dict(zip(ctx.call.feed_forward_names, parameters, strict=True))
    x2, grad_x1 = (y2 if owned else torch.empty_like(y2)), torch.empty_like(y1)
    totals = [None] * len(parameters)
    with ctx.feed_forward_state.replay():
        for part in _parts(ctx.call.feed_forward, y1):
            with torch.enable_grad():
                y1_part = y1[:, part].detach().requires_grad_()
                output = functional_call(ctx.call.feed_forward, named, (y1_part,))
            x2[:, part] = y2[:, part] - _residual(output.detach(), x2)
            grad_part, grads = _grads(output, y1_part, parameters, grad_y2[:, part])
            grad_x1[:, part] = grad_y1[:, part] + grad_part
            totals = [_add(total, grad) for total, grad in zip(totals, grads, strict=True)]
    return x2, grad_x1, totals


def _undo_attention(ctx, y1, x2, owned, grad_y1, grad_y2, parameters):
    """x1 = y1 - F(x2), with the gradients through F."""
    named = dict(zip(ctx.call.attention_names, parameters, strict=True))
    arguments = {**ctx.call.arguments, "routing": ctx.routing, "output_attentions": False}
    with ctx.attention_state.replay():
        with torch.enable_grad():
            x2_leaf = x2.detach().requires_grad_()
            output = functional_call(ctx.call.attention, named, (x2_leaf,), arguments).hidden_states
        residual = _residual(output.detach(), x2)
        x1 = y1.sub_(residual) if owned else y1 - residual
        del residual
        grad_x2, grads = _grads(output, x2_leaf, parameters, grad_y1)
    return x1, grad_x2.add_(grad_y2), grads


def _grads(output, x, parameters, grad_output):
    """Gradients for x and for each parameter (None where it is frozen or unused)."""
    wanted = [p for p in parameters if p.requires_grad]
    grad_x, *grads = torch.autograd.grad(output, [x, *wanted], grad_output.to(output.dtype), allow_unused=True)
    grads = iter(grads)
    return grad_x, [next(grads) if p.requires_grad else None for p in parameters]


def _add(total, grad):
    return grad if total is None else total if grad is None else total.add_(grad)
