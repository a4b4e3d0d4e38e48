"""Reversible layers: activations live once, at the top of the stack, and backward rebuilds what was below (paper section 3).

A layer maps two streams (B, L, hidden) to two, with F attention and G feed-forward (eq. 9), and has the inverse (eq. 8)

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

The layer of a decoder that reads an encoder's output has three such halves, self-attention, cross-attention and feed-forward,
each of which reads one stream and adds to the other, in turn; so the streams leave it swapped. Each layer is one
`torch.autograd.Function` that takes the streams and its parameters as inputs, so that autograd, DDP, FSDP, LoRA and
`functional_call` see ordinary gradients. What backward computes again is a `Snapshot` of the layer under the generators,
autocast and routing of the forward (`recompute.py`); a few numbers of what the layer was given are compared with what is
rebuilt, and a difference beyond rounding is an error. So a gradient is right, or there is none.

In half precision (autocast, or half-precision weights) the streams stay float32, and what is added to them is rounded to
multiples of 2^-15, far below a half-precision rounding of it. Then y1 - F(x2) gives back x1 bit for bit (up to 512), the
halves see in backward what they saw in forward, and no rounding flips on the way down: without it, gradients of 12 layers
with large weights under bf16 were up to 2.3 times as wrong as ordinary autograd's. With `config.exact_reversible` the last
module of each half rounds so in float32 and float64 too, and nothing else changes.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from transformers.utils import logging

from .recompute import HOOKS, Replay, Snapshot, Totals, has_own_hooks, is_watched, vjp
from .tokenwise import pieces_of

logger = logging.get_logger(__name__)

# adding and subtracting it rounds to a multiple of 2^-15 (float32) or 2^-44 (float64): sums below 512 are exact
GRID_SHIFT = {torch.float32: 1.5 * 2**23 * 2**-15, torch.float64: 1.5 * 2**52 * 2**-44}
WORTH_REUSING = (
    2**18
)  # numbers of a stream (1 MiB): memory of this size is slow to get anew, and written over if nobody looks
SAMPLES = 61  # numbers of each stream that are compared
DRIFT = {torch.float64: 1e-9, torch.float32: 1e-4}  # allowed in one layer, of the largest number looked at
HALF_DRIFT = 2e-2


# --- where a layer stands ---------------------------------------------------------------------------------------------


class Handover:
    """Carries the streams from the backward of one layer to that of the layer below, which then owns them."""

    def __init__(self):
        self.streams = None

    def put(self, x1, x2, drift, checks):
        self.streams = x1, x2, drift, checks

    def take(self, device):
        if self.streams is None:
            raise RuntimeError("A reversible layer's backward ran before that of the layer above it.")
        (x1, x2, drift, checks), self.streams = self.streams, None
        return x1.to(device), x2.to(device), drift, checks


@dataclass
class Place:
    """Where a layer stands in a stack at one call: a fact of the call, not of the layer.

    Attributes:
        name: of the layer, for errors.
        above, below: the handovers to its neighbours; without `above` it keeps the streams that it gives, without `below`
            it hands down nothing.
        unseen: nobody but the neighbours sees streams and gradients on their way, so that they may be written over.
    """

    name: str
    above: Handover | None = None
    below: Handover | None = None
    unseen: bool = False

    def run(self, layer, x1, x2, context):
        """The layer, keeping nothing for backward but what this place asks for."""
        return reversible_layer(self, layer.halves, x1, x2, context)


def places(layers, as_built, hidden_states, seen_between, handed_out):
    """The place of each layer, or None where it must keep its graph, since hooks inside it may look at that or change it, or
    it is not `as_built`.

    `seen_between`: the streams between the layers are handed out; `handed_out`: streams or their gradients may be anybody's.
    """
    inside = [not built or is_watched(*layer.children()) for layer, built in zip(layers, as_built, strict=True)]
    around = [has_own_hooks(layer) for layer in layers]
    hooked = any(inside) or any(getattr(layer, kind) for layer in layers for kind in HOOKS)  # FSDP2's count here
    unseen = hidden_states.numel() >= WORTH_REUSING and not handed_out and not hooked
    found = [None if inside[i] else Place(f"encoder.layers[{i}]", unseen=unseen) for i in range(len(layers))]
    for i, (lower, upper) in enumerate(pairwise(found)):
        if lower and upper and not (seen_between or around[i] or around[i + 1]):
            lower.above = upper.below = Handover()
    return found


# --- streams ----------------------------------------------------------------------------------------------------------


def as_streams(hidden_states, reversible, exact=False):
    """Where the two equal streams start: float32 or more, and on the grid if `exact`, or if reversible halves work in half
    precision."""
    streams = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    half = working_type(hidden_states) != streams.dtype
    return on_grid(streams) if exact or (reversible and half) else streams


def widened(stream):
    """A stream that somebody has rounded to half precision on its way between two layers, in float32 again."""
    if stream.dtype not in (torch.float16, torch.bfloat16):
        return stream
    logger.warning_once(
        f"The streams between reversible layers are float32, but reach a layer as {stream.dtype}: gradients are less exact. "
        "With FSDP2, use MixedPrecisionPolicy(..., cast_forward_inputs=False, output_dtype=None)."
    )
    return stream.to(torch.float32)


def working_type(hidden_states):
    """Type that the halves work in."""
    kind = hidden_states.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind) and hidden_states.dtype == torch.float32
    return torch.get_autocast_dtype(kind) if autocast else hidden_states.dtype


def on_grid(x):
    """A float32 or float64 tensor rounded to the grid, with the identity for gradient; one of half precision as it is, since it
    is rounded where it is added."""
    shift = GRID_SHIFT.get(x.dtype)
    return x if shift is None else x + shift - shift


def _residual(output, stream):
    """What a half adds to its stream: its output, on the grid if that is in half precision."""
    return output if output.dtype == stream.dtype else on_grid(output.to(stream.dtype))


def add_half(module, inputs, stream, step, out=None):
    """stream + module(inputs), `step` tokens at a time, without gradient; `out` may be the stream itself."""
    out = torch.empty_like(stream) if out is None else out
    for part in pieces_of((module,), step, stream.shape[1]):
        torch.add(stream[:, part], _residual(module(inputs[:, part]), stream), out=out[:, part])
    return out


# --- what a layer was given, and what is rebuilt ----------------------------------------------------------------------


def _samples(x1, x2):
    """A few numbers of both streams, from all over them: (2, at most `SAMPLES`)."""
    step = max(1, x1.numel() // SAMPLES)
    return torch.stack([x.flatten()[::step][:SAMPLES] for x in (x1, x2)])


class Check:
    """Compares the numbers that a layer was given with those that its backward rebuilds."""

    def __init__(self, name, x1, x2, half):
        self.name, self.given = name, _samples(x1, x2)
        self.allowed = HALF_DRIFT if half else DRIFT.get(self.given.dtype, HALF_DRIFT)

    def compare(self, x1, x2, size, drift_above):
        """How far off what is rebuilt is, and by how much too far. A layer may multiply what it is handed from above."""
        given = self.given.to(x1.device)
        drift = (_samples(x1, x2) - given).abs()
        # of each number by itself, and of the middle one: a single huge feature must not hide what happens to the others
        limit = self.allowed * (given.abs() + size + given.abs().median())
        allowed = limit if drift_above is None else limit + 100 * drift_above.to(x1.device)
        return drift.max(), (drift - allowed).max()


def verify(checks):
    """Raises for the uppermost layer whose backward did not rebuild what its forward was given: one look at a device.

    `checks`: (name, by how much too far off) of each layer, from above.
    """
    off = torch.stack([excess.to(checks[0][1].device) for _, excess in checks]) > 0
    if bool(off.any()):
        name = checks[int(off.to(torch.int8).argmax())][0]
        raise RuntimeError(
            f"In backward, {name} did not give what it gave in forward, so that its gradients would be wrong: something that "
            "it computes with has changed in between, or draws from a random source of its own. Leave it as it is until "
            "after backward, or set `reversible=False` in the configuration."
        )


# --- the layer --------------------------------------------------------------------------------------------------------


def mixes(half):
    """Whether a half mixes tokens in a core, which is followed by an output projection that does not."""
    return hasattr(half, "core")


class _Call:
    """One forward call of a layer: its halves as they were then, and what they were given."""

    def __init__(self, place, halves, x2, context):
        self.place, self.context = place, context
        self.snapshot = Snapshot(*halves)
        self.halves = self.snapshot.modules
        self.step = halves[-1].chunk_length(x2)
        self.above = place.above or Handover()
        self.attentions, self.routings, self.states = [], {}, []

    def add(self, at, half, source, target, memory, over):
        """target + half(source), the `at`-th of the halves; `over`: memory for it, or None."""
        if not mixes(half):
            self.states.append((Replay(source),))
            return add_half(half, source, target, self.step, over)
        state = Replay(source)
        core = half.core(source, replace(self.context, memory=memory))
        self.routings[at] = core.routing
        self.attentions.append(core.attentions)
        self.states.append((state, Replay(source)))
        return add_half(half.output, core.hidden_states, target, self.step, over)

    def core(self, at, source, *memory):
        """What the core of a half gave, computed again."""
        context = replace(self.context, memory=memory[0] if memory else None)
        return self.halves[at].core(source, context, self.routings[at]).hidden_states

    def undo(self, module, state, totals, inputs, stream, grad_stream, *, owned, grad):
        """stream - module(inputs), in the stream's memory where that is `owned`, and its gradient for the inputs, added to
        `grad`; one pass over the tokens."""
        rebuilt, leaves = stream if owned else torch.empty_like(stream), list(module.parameters())
        with state():
            for part in pieces_of((module,), self.step, stream.shape[1]):
                (output,), pull = vjp(module, (inputs[:, part],), (True,), leaves if part.start == 0 else None)
                torch.sub(stream[:, part], _residual(output, stream), out=rebuilt[:, part])
                del output
                (piece,), grads = pull(leaves, [grad_stream[:, part]])
                if piece is not None:
                    grad[:, part].add_(piece)
                totals.add(leaves, grads)
        return rebuilt, grad


def reversible_layer(place, halves, x1, x2, context):
    """x1 += halves[0](x2), x2 += halves[1](x1), and so on in turn, without keeping anything for backward that can be rebuilt.

    Args:
        place: of the layer in this forward pass.
        halves: modules. One that mixes tokens has `core(x, context, routing)`, which gives `hidden_states`, `routing`
            (given back to it in backward) and `attentions`, and `output`, which maps the hidden states token by token; the
            others map the stream token by token. `output` and these are called with `halves[-1].chunk_length(stream)` tokens
            at a time.
        context: its `memory`, if there is one, is read by halves and gets its gradient.

    Returns:
        Both streams (of an odd number of halves, swapped), and of each half that mixes the probabilities (no gradient) or None.
    """
    call = _Call(place, halves, x2, replace(context, memory=None))
    y1, y2 = _ReversibleLayer.apply(call, halves, x1, x2, context.memory, *call.snapshot.parameters)
    if place.above is None:
        y1, y2 = _Anchor.apply(call.above, y1, y2)
    return y1, y2, *call.attentions


class _Anchor(torch.autograd.Function):
    """Identity that keeps the streams above a layer which no other one hands them to. A node of its own, so that they are
    let go of while that layer's backward is still at work."""

    @staticmethod
    def forward(ctx, handover, y1, y2):
        ctx.handover = handover
        ctx.save_for_backward(y1, y2)
        return y1.view_as(y1), y2.view_as(y2)

    @staticmethod
    def backward(ctx, grad_y1, grad_y2):
        ctx.handover.put(*ctx.saved_tensors, None, [])
        return None, grad_y1, grad_y2


class _ReversibleLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, halves, x1, x2, memory, *parameters):
        """Each half reads one stream and adds to the other, without a graph."""
        place = call.place
        half = working_type(x2) != x2.dtype or any(p.dtype != x2.dtype for p in parameters)
        ctx.call, ctx.check = call, Check(place.name, x1, x2, half)
        streams, own = [x1, x2], place.unseen and place.below is not None
        for at, module in enumerate(halves):
            to, other = at % 2, 1 - at % 2
            over = streams[to].detach() if own or at > 1 else None
            streams[to] = call.add(at, module, streams[other], streams[to], memory, over)
        call.snapshot.check_nothing_is_stashed()
        ctx.save_for_backward(memory, *parameters)
        return tuple(_in_turn(streams, len(halves)))

    @staticmethod
    def backward(ctx, *grads):
        """The halves from the last to the first, each with its gradient: stream - half(the other stream)."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Reversible layers have no second derivative (`create_graph=True`): set `reversible=False` in the configuration."
            )
        call, place, (memory, *_) = ctx.call, ctx.call.place, ctx.saved_tensors  # raises where a parameter has changed
        count, leaves = len(call.halves), call.snapshot.leaves(ctx.needs_input_grad[5:])
        *streams, drift, checks = call.above.take(grads[0].device)
        size, undo = _samples(*streams).abs(), _Undo(call, leaves, memory, ctx.needs_input_grad[4])
        undo.streams, undo.grads = _in_turn(streams, count), _in_turn(grads, count)
        undo.owned, undo.free = [place.above is not None] * 2, [place.unseen] * 2
        del streams, grads
        for at in reversed(range(count)):
            undo.half(at)

        drift, excess = ctx.check.compare(*undo.streams, size, drift)
        _verify_soon(checks, (place.name, excess))
        if place.below is not None and any(ctx.needs_input_grad[2:4]):
            place.below.put(*undo.streams, drift, checks)
        return None, None, *undo.grads, undo.grad_memory, *undo.totals.result()


def _in_turn(streams, count):
    """The streams as they leave a layer of so many halves: the one that was added to last comes second."""
    return list(streams) if count % 2 == 0 else list(reversed(streams))


class _Undo:
    """The backward of one call on its way down.

    Attributes:
        streams, grads: as they are at this height.
        owned: whether the memory of each stream may be written over; `free`: that of each gradient.
    """

    def __init__(self, call, leaves, memory, grad_to_memory):
        self.call, self.leaves, self.totals = call, leaves, Totals(leaves)
        self.memory, self.grad_to_memory, self.grad_memory = memory, grad_to_memory, None

    def half(self, at):
        call, to, other = self.call, at % 2, 1 - at % 2
        module, states = call.halves[at], call.states[at]
        if mixes(module):
            self._undo_mixing(at, to, other)
        else:
            if not self.free[other]:
                self.grads[other] = self.grads[other].clone()
            self.streams[to], _ = call.undo(
                module, states[0], self.totals, self.streams[other], self.streams[to], self.grads[to],
                owned=self.owned[to], grad=self.grads[other],
            )  # fmt: skip
        self.owned[to] = self.free[other] = True

    def _undo_mixing(self, at, to, other):
        call, (core_state, output_state) = self.call, self.call.states[at]
        memory = () if self.memory is None else (self.memory,)
        with core_state():
            inputs, needed = (self.streams[other], *memory), (True, self.grad_to_memory)[: 1 + len(memory)]
            (attended,), pull = vjp(partial(call.core, at), inputs, needed, self.leaves)
        grad = torch.zeros_like(attended)
        self.streams[to], grad = call.undo(
            call.halves[at].output, output_state, self.totals, attended, self.streams[to], self.grads[to],
            owned=self.owned[to], grad=grad,
        )  # fmt: skip
        del attended
        (found, *to_memory), grads = pull(self.leaves, [grad])
        self.totals.add(self.leaves, grads)
        found = 0 if found is None else found
        self.grads[other] = self.grads[other].add_(found) if self.free[other] else self.grads[other] + found
        if to_memory and to_memory[0] is not None:
            self.grad_memory = to_memory[0]


def _verify_soon(checks, check):
    """Adds a layer's check to those of the layers above. A CPU looks at once; a GPU is asked only once, at the end of
    backward, whatever of it has run."""
    checks.append(check)
    device = check[1].device.type
    if device == "cpu":
        verify(checks[-1:])
    elif device != "meta" and len(checks) == 1:
        torch.autograd.Variable._execution_engine.queue_callback(lambda: verify(checks))
