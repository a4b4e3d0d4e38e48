"""Modules that treat every token alike, some tokens at a time: nothing of the whole length is kept but inputs and outputs.

The paper chunks the feed-forward (eq. 10) and, for large vocabularies, the output; here that is one function. In backward
each chunk is computed again, with the forward's random numbers and autocast, and differentiated. Shapes: B batch, L length.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.utils.checkpoint import get_device_states, set_device_states

from .tracing import tracing


def fitting_tokens(like, numbers, batch_size):
    """How many tokens of each sequence to work on at a time, with so many `numbers` each: on a CPU what stays in its cache
    (2 MiB in float32) and in memory that need not be asked for anew, elsewhere 64 times as many."""
    budget = 2**19 if like.device.type == "cpu" else 2**25
    return max(1, budget // (batch_size * numbers))


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


def parts(length, step):
    """Slices of at most `step` tokens that cover `length`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def in_token_chunks(module, step, *inputs, halo=0, keep=False):
    """`module(*inputs)`, `step` tokens at a time; as it is where one step holds all tokens.

    Args:
        module: maps tensors (B, L, ...) to one tensor (B, L, ...) or a tuple of them (or None), token by token, or with
            nothing but the `halo` tokens before a token.
        inputs: tensors (B, L, ...).
        halo: tokens before each chunk that the module is given too; what it says of them is thrown away.
        keep: keep what backward needs instead of computing it again: faster, with the memory of ordinary autograd.
    """
    if tracing() or inputs[0].shape[1] <= step:
        return module(*inputs)
    call = _Call(module, [n for n, _ in module.named_parameters()], step, halo, len(inputs), keep)
    if not torch.is_grad_enabled():
        return call.outputs(inputs)
    outputs = _TokenChunks.apply(call, *inputs, *(p for _, p in module.named_parameters()))
    if not call.is_tuple:
        return outputs[0]
    outputs = iter(outputs)
    return tuple(next(outputs) if exists else None for exists in call.exists)


def _with_halo(part, halo):
    """The slice of a chunk and the tokens before it, and how many of those there are."""
    start = max(0, part.start - halo)
    return slice(start, part.stop), part.start - start


def _cut(result, extra):
    """Without the tokens of the halo."""
    cut = tuple(None if x is None else x[:, extra:] for x in as_tuple(result))
    return cut if isinstance(result, tuple) else cut[0]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@dataclass
class _Call:
    module: nn.Module
    names: list[str]  # of its parameters
    step: int
    halo: int
    inputs: int
    keep: bool
    is_tuple: bool = False
    exists: list[bool] = field(default_factory=list)  # which outputs are not None

    def parts(self, inputs):
        return parts(inputs[0].shape[1], self.step)

    def outputs(self, inputs):
        """What the module makes of the inputs, without gradient."""
        return self._joined(inputs, lambda pieces, extra: _cut(self.module(*pieces), extra))

    def outputs_and_graphs(self, inputs, needed, leaves):
        """The same, and the graph of each chunk. `leaves`: the parameters."""
        graphs = []

        def chunk(pieces, extra):
            graph, result = self._graph(pieces, needed, extra)
            graphs.append(graph)
            return result

        return with_parameters(self.module, self.names, leaves, lambda: self._joined(inputs, chunk)), graphs

    def graphs(self, inputs, needed):
        """The graph of each chunk, one after another."""
        for part in self.parts(inputs):
            wide, extra = _with_halo(part, self.halo)
            yield self._graph([x[:, wide] for x in inputs], needed, extra)[0]

    def _graph(self, pieces, needed, extra):
        pieces = [x.detach().requires_grad_(n) for x, n in zip(pieces, needed, strict=True)]
        with torch.enable_grad():
            result = _cut(self.module(*pieces), extra)
            return Graph([x for x in as_tuple(result) if x is not None], pieces), result

    def _joined(self, inputs, chunk):
        whole = None
        for part in self.parts(inputs):
            wide, extra = _with_halo(part, self.halo)
            result = chunk([x[:, wide] for x in inputs], extra)
            pieces = as_tuple(result)
            if whole is None:
                shapes = ((x.shape[0], inputs[0].shape[1], *x.shape[2:]) if x is not None else None for x in pieces)
                whole = [None if s is None else x.new_empty(s) for x, s in zip(pieces, shapes, strict=True)]
            for target, piece in zip(whole, pieces, strict=True):
                if piece is not None:
                    target[:, part] = piece.detach()
        return tuple(whole) if isinstance(result, tuple) else whole[0]


class _TokenChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.set_materialize_grads(False)
        ctx.call, ctx.state = call, ReplayState(tensors[0])
        ctx.save_for_backward(*tensors)
        if call.keep:
            inputs, needed, ctx.leaves = _split(ctx, tensors)
            outputs, ctx.graphs = call.outputs_and_graphs(inputs, needed, ctx.leaves)
        else:
            ctx.graphs = None
            outputs = call.outputs(tensors[: call.inputs])
        call.is_tuple = isinstance(outputs, tuple)
        outputs = as_tuple(outputs)
        call.exists = [x is not None for x in outputs]
        return tuple(x for x in outputs if x is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        call = ctx.call
        inputs, needed, leaves = _split(ctx, ctx.saved_tensors)
        graphs, ctx.graphs = ctx.graphs, None
        if graphs is not None:  # a second backward, if there is one, computes them again
            return None, *_backward(call, _emptied(graphs), inputs, needed, ctx.leaves, grad_outputs)

        def work():
            return _backward(call, call.graphs(inputs, needed), inputs, needed, leaves, grad_outputs)

        with ctx.state.replay():
            return None, *with_parameters(call.module, call.names, leaves, work)


def _split(ctx, tensors):
    """The inputs, which of them need a gradient, and the parameters as leaves of graphs of their own."""
    count, needed = ctx.call.inputs, ctx.needs_input_grad[1:]
    leaves = [p.detach().requires_grad_(n) for p, n in zip(tensors[count:], needed[count:], strict=True)]
    return tensors[:count], needed[:count], leaves


def _emptied(graphs):
    """The graphs of a list, each let go of when the next is asked for."""
    graphs.reverse()
    while graphs:
        yield graphs.pop()


def _backward(call, graphs, inputs, needed, leaves, grad_outputs):
    """Gradients of the inputs and of the parameters, chunk by chunk."""
    new = torch.zeros_like if call.halo else torch.empty_like
    grads = [new(x) if n else None for x, n in zip(inputs, needed, strict=True)]
    totals = [None] * len(leaves)
    for part in call.parts(inputs):
        wide, _ = _with_halo(part, call.halo)
        pieces, more = next(graphs).gradients(leaves, [None if g is None else g[:, part] for g in grad_outputs])
        for grad, piece in zip(grads, pieces, strict=True):
            if grad is not None and call.halo:
                grad[:, wide] += 0 if piece is None else piece
            elif grad is not None:
                grad[:, wide] = 0 if piece is None else piece
        totals = [add(total, one) for total, one in zip(totals, more, strict=True)]
    return *grads, *totals


class _WithModule(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, work):
        return work()


def with_parameters(module, names, parameters, work):
    """work() while the module has these parameters in place of its own."""
    named = {f"module.{name}": p for name, p in zip(names, parameters, strict=True)}
    return functional_call(_WithModule(module), named, (work,))


class Graph:
    """The graph from some inputs to some outputs, which it does not hold: backward frees what nobody else does as soon as
    it has used it."""

    def __init__(self, outputs, inputs):
        self.inputs = inputs
        self.device_type = outputs[0].device.type
        self.ends = [(get_gradient_edge(x), x.dtype) if x.requires_grad else None for x in outputs]

    def gradients(self, parameters, grad_outputs):
        """Gradients for the inputs and for the parameters, None where one needs none or gets none. Without autocast, as a
        backward outside of it."""
        pairs = [(*end, g) for end, g in zip(self.ends, grad_outputs, strict=True) if end is not None and g is not None]
        wanted = [x for x in (*self.inputs, *parameters) if x.requires_grad]
        found = iter(())
        if wanted and pairs:
            edges, dtypes, grads = zip(*pairs, strict=True)
            grads = [g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)]
            with torch.autocast(self.device_type, enabled=False):
                found = iter(torch.autograd.grad(edges, wanted, grads, allow_unused=True))
        results = [next(found, None) if x.requires_grad else None for x in (*self.inputs, *parameters)]
        return results[: len(self.inputs)], results[len(self.inputs) :]


def add(total, grad):
    """A running sum, written over."""
    return grad if total is None else total if grad is None else total.add_(grad)
