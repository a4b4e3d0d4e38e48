"""Modules that treat every token alike, some tokens at a time: nothing of the whole length is kept but inputs and outputs.

The paper chunks the feed-forward (eq. 10) and, for large vocabularies, the output; here that is one function. In backward
each chunk is computed again, with the forward's random numbers and autocast, and differentiated. Shapes: B batch, L length.
"""

from contextlib import contextmanager

import torch
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


def in_token_chunks(module, step, *inputs, halo=0):
    """`module(*inputs)`, `step` tokens at a time; as it is where one step holds all tokens.

    Args:
        module: maps tensors (B, L, ...) to one tensor (B, L, ...) or a tuple of them (or None), token by token, or with
            nothing but the `halo` tokens before a token.
        inputs: tensors (B, L, ...).
        halo: tokens before each chunk that the module is given too; what it says of them is thrown away.
    """
    if tracing() or inputs[0].shape[1] <= step:
        return module(*inputs)
    if not torch.is_grad_enabled():
        return _forward(module, step, halo, inputs)
    call = {"module": module, "step": step, "halo": halo, "inputs": len(inputs)}
    call["names"] = [n for n, _ in module.named_parameters()]
    outputs = _TokenChunks.apply(call, *inputs, *(p for _, p in module.named_parameters()))
    if not call["is_tuple"]:
        return outputs[0]
    outputs = iter(outputs)
    return tuple(next(outputs) if exists else None for exists in call["exists"])


def _with_halo(part, halo):
    """The slice of a chunk and the tokens before it, and how many of those there are."""
    start = max(0, part.start - halo)
    return slice(start, part.stop), part.start - start


def _forward(module, step, halo, inputs):
    whole = None
    for part in parts(inputs[0].shape[1], step):
        wide, extra = _with_halo(part, halo)
        result = module(*(x[:, wide] for x in inputs))
        pieces = result if isinstance(result, tuple) else (result,)
        pieces = [None if x is None else x[:, extra:] for x in pieces]
        if whole is None:
            shapes = ((x.shape[0], inputs[0].shape[1], *x.shape[2:]) if x is not None else None for x in pieces)
            whole = [None if s is None else x.new_empty(s) for x, s in zip(pieces, shapes, strict=True)]
        for target, piece in zip(whole, pieces, strict=True):
            if piece is not None:
                target[:, part] = piece
    return tuple(whole) if isinstance(result, tuple) else whole[0]


class _TokenChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.call, ctx.state = call, ReplayState(tensors[0])
        ctx.save_for_backward(*tensors)
        outputs = _forward(call["module"], call["step"], call["halo"], tensors[: call["inputs"]])
        call["is_tuple"] = isinstance(outputs, tuple)
        outputs = outputs if call["is_tuple"] else (outputs,)
        call["exists"] = [x is not None for x in outputs]
        return tuple(x for x in outputs if x is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        count = ctx.call["inputs"]
        inputs, parameters = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        needed = ctx.needs_input_grad[1:]
        parameters = [p.detach().requires_grad_(n) for p, n in zip(parameters, needed[count:], strict=True)]
        new = torch.zeros_like if ctx.call["halo"] else torch.empty_like
        grads = [new(x) if n else None for x, n in zip(inputs, needed[:count], strict=True)]
        totals = [None] * len(parameters)
        with ctx.state.replay():
            for part in parts(inputs[0].shape[1], ctx.call["step"]):
                wide, extra = _with_halo(part, ctx.call["halo"])
                leaves = [x[:, wide].detach().requires_grad_(n) for x, n in zip(inputs, needed[:count], strict=True)]
                outputs = call_with(ctx.call["module"], ctx.call["names"], parameters, leaves)
                with torch.enable_grad():
                    outputs = [x[:, extra:] for x in outputs]
                some, more = gradients(outputs, leaves, parameters, [g[:, part] for g in grad_outputs])
                for grad, piece in zip(grads, some, strict=True):
                    if grad is not None and ctx.call["halo"]:
                        grad[:, wide] += 0 if piece is None else piece
                    elif grad is not None:
                        grad[:, wide] = 0 if piece is None else piece
                totals = [add(total, grad) for total, grad in zip(totals, more, strict=True)]
        return None, *grads, *totals


def call_with(module, names, parameters, arguments, keywords=None):
    """Outputs of the module with these parameters in place of its own, as a list of tensors, with gradient."""
    with torch.enable_grad():
        outputs = functional_call(module, dict(zip(names, parameters, strict=True)), tuple(arguments), keywords)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [x for x in outputs if isinstance(x, torch.Tensor)]


def gradients(outputs, inputs, parameters, grad_outputs):
    """Gradients for inputs and parameters, None where one needs none. Without autocast, as a backward outside of it.

    Empties the list `outputs`: where nobody else holds them, backward frees them as soon as it has used them.
    """
    wanted = [x for x in (*inputs, *parameters) if x.requires_grad]
    grad_outputs = [g.to(o.dtype) for g, o in zip(grad_outputs, outputs, strict=True)]
    device_type, edges = outputs[0].device.type, [get_gradient_edge(x) for x in outputs] if wanted else []
    outputs.clear()
    with torch.autocast(device_type, enabled=False):
        grads = iter(torch.autograd.grad(edges, wanted, grad_outputs, allow_unused=True) if wanted else ())
    results = [next(grads) if x.requires_grad else None for x in (*inputs, *parameters)]
    return results[: len(inputs)], results[len(inputs) :]


def add(total, grad):
    """A running sum, written over."""
    return grad if total is None else total if grad is None else total.add_(grad)
