"""Computing again in backward what forward computed: the one mechanism of reversible layers and of token-wise pieces.

Forward runs without a graph and keeps the inputs, a `Snapshot` of the modules and a `Replay` of generators and autocast.
Backward runs the snapshot on the inputs again (`vjp`) and differentiates. A snapshot is a shallow copy of the modules as
they were: the same parameters, but modes, settings, adapters and hooks of that moment, so that nothing that is changed in
between (`eval()`, `set_adapter`, a caller's `functional_call`) changes a gradient, and nothing is ever swapped in a module
that other threads may use.
"""

from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

_CONTAINERS = (dict, OrderedDict, list, set)
SMALL_BUFFER = 2**16  # numbers: buffers up to this size are copied into a snapshot, since forward may change them

# --- the modules as they are now --------------------------------------------------------------------------------------


class Snapshot:
    """Copies of modules as they are now.

    Attributes:
        modules: the copies. They call each other, and hold the very parameters that stand in the originals now.
        parameters: all of them, each once.
    """

    def __init__(self, *modules):
        self._copies, self._originals = {}, []
        self.modules = tuple(self._copy(module) for module in modules)
        found = (p for copy in self._copies.values() for p in copy._parameters.values() if p is not None)
        self.parameters = list({id(p): p for p in found}.values())

    def _copy(self, module):
        if id(module) in self._copies:
            return self._copies[id(module)]
        copy = object.__new__(type(module))
        self._copies[id(module)] = copy
        self._originals.append(module)
        state = {name: _own(value, module, copy) for name, value in module.__dict__.items()}
        state["_compiled_call_impl"] = None  # it is bound to the original
        state["_parameters"] = dict(module._parameters)
        state["_buffers"] = {name: _own_buffer(b) for name, b in module._buffers.items()}
        state["_modules"] = {n: None if m is None else self._copy(m) for n, m in module._modules.items()}
        copy.__dict__.update(state)
        return copy

    def leaves(self, needed, own=True):
        """The parameters to differentiate for, where `needed` says which take a gradient: the modules' own, but where
        something would happen to these on the way (hooks, a graph that they come from), stand-ins that share memory.
        Not `own`: stand-ins for all that take one, since something may still happen to the modules' own."""
        pairs = zip(self.parameters, needed, strict=True)
        plain = [(p, need, _is_plain(p, need) and (own or not need)) for p, need in pairs]
        return self.use([p if kept else p.detach().requires_grad_(need) for p, need, kept in plain])

    def use(self, parameters):
        """Puts these, which share the memory of `self.parameters`, into the copies; returns them."""
        replaced = {id(p): new for p, new in zip(self.parameters, parameters, strict=True) if new is not p}
        if replaced:
            for copy in self._copies.values():
                copy._parameters = {n: replaced.get(id(p), p) for n, p in copy._parameters.items()}
            self.parameters = parameters
        return parameters

    def check_nothing_is_stashed(self):
        """Raises where a module of somebody else's has set a tensor on itself since: without gradients, which a loss on it
        would miss."""
        for module, copy in zip(self._originals, self._copies.values(), strict=True):
            if type(module).__module__.split(".")[0] in _LIBRARIES or is_ours(module):
                continue
            for name, value in module.__dict__.items():
                new = torch.is_tensor(value) and value.is_floating_point() and copy.__dict__.get(name) is not value
                if new and name in module.__dict__:
                    raise RuntimeError(
                        f"`{type(module).__name__}` inside a reversible layer keeps the tensor `{name}`, to which no gradient "
                        "would flow. Collect it with a forward hook (such a layer keeps its graph), or set `reversible=False`."
                    )


_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "accelerate")


def is_ours(module):
    """Whether the module is of this package, wherever that lies (its code may travel with a checkpoint)."""
    return type(module).__module__.rpartition(".")[0] == __name__.rpartition(".")[0]


def _is_plain(parameter, needed):
    return parameter.is_leaf and parameter.requires_grad == needed and not parameter._backward_hooks


def _own_buffer(buffer):
    small = buffer is not None and buffer.numel() <= SMALL_BUFFER and not buffer.requires_grad
    return buffer.detach().clone() if small else buffer


def _own(value, module, copy):
    """What stands on the module, for the copy: containers (hooks, adapters' scales) as they are now, and functions of the
    module that somebody stored on it (as accelerate's hooks do with `forward`) as functions of the copy."""
    if type(value) in _CONTAINERS:
        return type(value)(value)
    if type(value) is MethodType and value.__self__ is module:
        return MethodType(value.__func__, copy)
    if type(value) is partial and any(x is module for x in value.args):
        return partial(value.func, *(copy if x is module else x for x in value.args), **value.keywords)
    return value


# --- who may look inside ----------------------------------------------------------------------------------------------

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_watched(*modules):
    """Whether hooks may see, keep or change what these modules, or any within them, are given or give. Those of
    torch.distributed (FSDP2), which only bring parameters in, do not count."""
    return nn.modules.module._has_any_global_hook() or any(
        not _is_of_fsdp(hook)
        for module in _all(modules)
        for hooks in _hooks_of(module)
        if hooks
        for hook in hooks.values()
    )


def _all(modules):
    """These and all within them: `modules()`, which takes a tenth of a decoded token's time, without its care."""
    found = list(modules)
    for module in found:
        found.extend(child for child in module._modules.values() if child is not None)
    return found


def _hooks_of(module):
    state = module.__dict__
    return [state[kind] for kind in HOOKS]


def has_own_hooks(module):
    """Whether the module itself is watched."""
    return nn.modules.module._has_any_global_hook() or any(
        not _is_of_fsdp(hook) for hooks in _hooks_of(module) for hook in hooks.values()
    )


def _is_of_fsdp(hook):
    hook = getattr(hook, "func", hook)
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.")


# --- computing again --------------------------------------------------------------------------------------------------


class Replay:
    """State of the random generators and of autocast at one point of the forward; `tensor` says on which device."""

    def __init__(self, tensor):
        self.device = tensor.device
        self.type = "cpu" if self.device.type == "meta" else self.device.type
        self.states = self._states()
        self.autocast = torch.is_autocast_enabled(self.type), torch.get_autocast_dtype(self.type)

    def _states(self):
        return torch.get_rng_state(), None if self.type == "cpu" else self._generators().get_rng_state(*self._index())

    def _set(self, states):
        torch.set_rng_state(states[0])
        if self.type != "cpu":
            self._generators().set_rng_state(states[1], *self._index())

    def _generators(self):
        return torch.get_device_module(self.type)

    def _index(self):
        return () if self.type == "mps" else (self.device,)  # it has one device, and no argument for it

    @contextmanager
    def __call__(self):
        """Inside, the state is as it was; outside, as it would be anyway."""
        now = self._states()
        enabled, dtype = self.autocast
        try:
            self._set(self.states)
            with torch.autocast(self.type, enabled=enabled, dtype=dtype, cache_enabled=False):
                yield
        finally:
            self._set(now)


def vjp(function, inputs, needed, parameters=None):
    """function(*inputs), detached, and its `Pullback`; `needed`: which inputs take a gradient. `parameters`: all tensors
    besides that a gradient may flow to; that there are no others is looked at, where they are given."""
    leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    with torch.enable_grad():
        outputs = as_tuple(function(*leaves))
        pull = Pullback([x for x in outputs if x is not None], leaves)
    if parameters is not None:
        _check_leaves(outputs, [*leaves, *parameters])
    return tuple(None if x is None else x.detach() for x in outputs), pull


def _check_leaves(outputs, known):
    """Raises where a gradient would flow to a tensor that is not known, and be lost."""
    known = {id(x) for x in known}
    pending, seen = [x.grad_fn for x in outputs if x is not None and x.grad_fn is not None], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise RuntimeError(
                f"A module inside a reversible layer computes with a tensor of shape {tuple(leaf.shape)} that takes a gradient "
                "and is none of its parameters: the gradient would be lost. Make it a parameter, or set `reversible=False`."
            )
        pending.extend(upper for upper, _ in node.next_functions if upper is not None)


class Pullback:
    """The graph from some inputs to some outputs, which it does not hold: backward frees what nobody else does as soon as
    it has used it."""

    def __init__(self, outputs, inputs):
        self.inputs = inputs
        self.type = outputs[0].device.type
        self.ends = [(get_gradient_edge(x), x.dtype) if x.requires_grad else None for x in outputs]

    def __call__(self, parameters, grad_outputs):
        """Gradients for the inputs and for the parameters, None where one needs none or gets none. Without autocast, as a
        backward outside of it."""
        pairs = [(*end, g) for end, g in zip(self.ends, grad_outputs, strict=True) if end is not None and g is not None]
        wanted = [x for x in (*self.inputs, *parameters) if x.requires_grad]
        found = iter(())
        if wanted and pairs:
            edges, dtypes, grads = zip(*pairs, strict=True)
            grads = [g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)]
            with torch.autocast("cpu" if self.type == "meta" else self.type, enabled=False):
                found = iter(torch.autograd.grad(edges, wanted, grads, allow_unused=True))
        results = [next(found, None) if x.requires_grad else None for x in (*self.inputs, *parameters)]
        return results[: len(self.inputs)], results[len(self.inputs) :]


class Totals:
    """Running sums of parameters' gradients: those in half precision are added up in float32."""

    def __init__(self, leaves):
        self.leaves, self.sums = leaves, {}

    def add(self, leaves, grads):
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                total = self.sums.get(id(leaf))
                wide = torch.promote_types(grad.dtype, torch.float32)
                # a copy: autograd may give the same tensor as a gradient of two
                self.sums[id(leaf)] = grad.to(wide, copy=True) if total is None else total.add_(grad)

    def result(self):
        sums = (self.sums.get(id(leaf)) for leaf in self.leaves)
        return [None if total is None else total.to(leaf.dtype) for total, leaf in zip(sums, self.leaves, strict=True)]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)
