"""Computing again in backward what forward computed: the one mechanism of reversible layers and of token-wise pieces.

Forward runs without a graph and keeps the inputs, a `Snapshot` of the modules and a `Replay` of generators and autocast.
Backward runs the snapshot on the inputs again (`vjp`) and differentiates. A snapshot is a shallow copy of the modules as
they were: the same parameters, but modes, settings, adapters and hooks of that moment, so that nothing that is changed in
between (`eval()`, `set_adapter`, a caller's `functional_call`) changes a gradient, and nothing is ever swapped in a module
that other threads may use.

`tokenwise` does this for functions that treat every token alike, some tokens at a time: the paper's chunked feed-forward
(eq. 10) and, for large vocabularies, the output. Shapes: B batch, L length.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from transformers.activations import ACT2CLS

from .tracing import tracing

MANY_TOKENS = 2**16  # in a batch; beyond, memory counts for more than time
SMALL_BUFFER = 2**16  # numbers: buffers up to this size are copied into a snapshot, since forward may change them

# --- the modules as they are now --------------------------------------------------------------------------------------


class Snapshot:
    """Copies of modules as they are now.

    Attributes:
        modules: the copies. They call each other, and hold the very parameters that stand in the originals now.
        parameters: all of them, each once.
    """

    def __init__(self, *modules):
        self._copies = {}
        self.modules = tuple(self._copy(module) for module in modules)
        found = (p for copy in self._copies.values() for p in copy._parameters.values() if p is not None)
        self.parameters = list({id(p): p for p in found}.values())

    def _copy(self, module):
        if id(module) in self._copies:
            return self._copies[id(module)]
        copy = object.__new__(type(module))
        self._copies[id(module)] = copy
        state = {name: _rebound(value, module, copy) for name, value in module.__dict__.items()}
        state["_parameters"] = dict(module._parameters)
        state["_buffers"] = {name: _own_buffer(b) for name, b in module._buffers.items()}
        state["_modules"] = {n: None if m is None else self._copy(m) for n, m in module._modules.items()}
        copy.__dict__.update(state)
        return copy

    def leaves(self, needed):
        """The parameters to differentiate for, where `needed` says which take a gradient: the modules' own, but where
        something would happen to these on the way (hooks, a graph that they come from), stand-ins that share memory."""
        pairs = zip(self.parameters, needed, strict=True)
        return self.use([p if _is_plain(p, need) else p.detach().requires_grad_(need) for p, need in pairs])

    def use(self, parameters):
        """Puts these, which share the memory of `self.parameters`, into the copies; returns them."""
        replaced = {id(p): new for p, new in zip(self.parameters, parameters, strict=True) if new is not p}
        if replaced:
            for copy in self._copies.values():
                copy._parameters = {n: replaced.get(id(p), p) for n, p in copy._parameters.items()}
            self.parameters = parameters
        return parameters


def _is_plain(parameter, needed):
    return parameter.is_leaf and parameter.requires_grad == needed and not parameter._backward_hooks


def _own_buffer(buffer):
    small = buffer is not None and buffer.numel() <= SMALL_BUFFER
    return buffer.detach().clone() if small else buffer


def _rebound(value, module, copy):
    """A function of the module that somebody stored on it (as accelerate's hooks do with `forward`), of the copy."""
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


_TOKENWISE = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TOKENWISE += (nn.Dropout, nn.ParameterList, nn.ParameterDict)
_TOKENWISE += tuple({c[0] if isinstance(c, tuple) else c for c in ACT2CLS.values() if isinstance(c, (type, tuple))})
_LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")  # whose subclasses of these are no more than these


def is_tokenwise(module):
    """Whether a module surely treats every token alike: the kinds that this package, PyTorch, peft and the libraries of
    quantised weights have for that. What somebody else has put into a layer is given all tokens at once."""
    path = type(module).__module__
    package = path.split(".")[0]
    ours = path.rpartition(".")[0] == __name__.rpartition(".")[0] and getattr(module, "tokenwise", False)
    theirs = package == "peft" or (package in _LIBRARIES and isinstance(module, _TOKENWISE))
    return (ours or theirs) and all(is_tokenwise(child) for child in module.children())


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


def vjp(function, inputs, needed):
    """function(*inputs), detached, and its `Pullback`; `needed`: which inputs take a gradient."""
    leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    with torch.enable_grad():
        outputs = as_tuple(function(*leaves))
        pull = Pullback([x for x in outputs if x is not None], leaves)
    return tuple(None if x is None else x.detach() for x in outputs), pull


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
                self.sums[id(leaf)] = grad.to(wide) if total is None else total.add_(grad)

    def result(self):
        sums = (self.sums.get(id(leaf)) for leaf in self.leaves)
        return [None if total is None else total.to(leaf.dtype) for total, leaf in zip(sums, self.leaves, strict=True)]


# --- some tokens at a time --------------------------------------------------------------------------------------------


def fitting_tokens(like, numbers, batch_size):
    """How many tokens of each sequence to work on at a time, with so many `numbers` each: on a CPU what stays in its cache
    (2 MiB in float32) and in memory that need not be asked for anew, elsewhere 64 times as many; 16 at least."""
    budget = 2**19 if like.device.type == "cpu" else 2**25
    return max(16, budget // (batch_size * numbers))


def parts(length, step):
    """Slices of at most `step` tokens that cover `length`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def pieces_of(modules, step, length):
    """The slices in which functions of these modules may work: one where one of the modules must see all tokens."""
    if length <= step or is_watched(*modules):
        return [slice(0, length)]
    return parts(length, step if all(map(is_tokenwise, modules)) else length)


def tokenwise(function, modules, *inputs, numbers=None, step=None, halo=0):
    """function(*modules, *inputs), some tokens at a time.

    Args:
        function: maps modules and tensors (B, L, ...) to one tensor (B, L, ...) or a tuple of them (or None), token by
            token, or with nothing but the `halo` tokens before a token.
        modules: whose parameters it uses.
        numbers: for each token, of its largest tensor: then as many tokens as fit into the cache are worked on at a time,
            and what backward needs is kept while the tokens are few (`MANY_TOKENS`), which is faster.
        step: tokens at a time, instead: nothing is kept.
        halo: tokens before each piece that the function is given too; what it says of them is thrown away.

    One call with all tokens where a graph is made by somebody else, where one step holds them, and where one of the
    modules is hooked or not known to treat every token alike.
    """
    batch, length = inputs[0].shape[:2]
    keep = step is None and batch * length <= MANY_TOKENS
    step = step or fitting_tokens(inputs[0], numbers, batch)
    slices = [slice(0, length)] if tracing() else pieces_of(modules, step, length)
    if len(slices) == 1:
        return function(*modules, *inputs)
    if not torch.is_grad_enabled():
        return _Pieces(function, modules, slices, halo).outputs(inputs)[0]
    snapshot = Snapshot(*modules)
    call = _Call(_Pieces(function, snapshot.modules, slices, halo), snapshot, len(inputs), keep)
    outputs = iter(_Tokenwise.apply(call, *inputs, *snapshot.parameters))
    given = [next(outputs) if exists else None for exists in call.exists]
    return tuple(given) if call.is_tuple else given[0]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@dataclass
class _Pieces:
    """A function of modules and tensors, and the slices of tokens in which it works."""

    function: object
    modules: tuple
    slices: list
    halo: int

    def wide(self, part):
        """The slice of a piece and its halo, and how long that is."""
        start = max(0, part.start - self.halo)
        return slice(start, part.stop), part.start - start

    def of(self, part):
        """The function of one piece's tensors, halo and all, for the piece alone."""
        extra = self.wide(part)[1]
        if extra == 0:
            return partial(self.function, *self.modules)

        def without_halo(*pieces):
            result = self.function(*self.modules, *pieces)
            kept = tuple(None if x is None else x[:, extra:] for x in as_tuple(result))
            return kept if isinstance(result, tuple) else kept[0]

        return without_halo

    def cut(self, inputs, part):
        return [x[:, self.wide(part)[0]] for x in inputs]

    def outputs(self, inputs, run=None):
        """What the function makes of the inputs, put together, and whether that is a tuple. `run(part)`: a piece's."""
        whole = None
        for part in self.slices:
            result = self.of(part)(*self.cut(inputs, part)) if run is None else run(part)
            pieces = as_tuple(result)
            if whole is None:
                shapes = [None if x is None else (x.shape[0], inputs[0].shape[1], *x.shape[2:]) for x in pieces]
                whole = [None if s is None else x.new_empty(s) for x, s in zip(pieces, shapes, strict=True)]
            for target, piece in zip(whole, pieces, strict=True):
                if piece is not None:
                    target[:, part] = piece
        return (tuple(whole), True) if isinstance(result, tuple) else (whole[0], False)


@dataclass
class _Call:
    pieces: _Pieces
    snapshot: Snapshot
    inputs: int
    keep: bool
    is_tuple: bool = False
    exists: tuple = ()  # which outputs are not None

    def vjp(self, inputs, needed, part):
        return vjp(self.pieces.of(part), self.pieces.cut(inputs, part), needed)


class _Tokenwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.set_materialize_grads(False)
        ctx.call, ctx.replay, ctx.pulls = call, Replay(tensors[0]), []
        ctx.save_for_backward(*tensors)
        inputs, needed = tensors[: call.inputs], ctx.needs_input_grad[1:]
        if call.keep:
            call.snapshot.leaves(needed[call.inputs :])

        def kept(part):
            outputs, pull = call.vjp(inputs, needed[: call.inputs], part)
            ctx.pulls.append(pull)
            return outputs if len(outputs) > 1 else outputs[0]

        outputs, call.is_tuple = call.pieces.outputs(inputs, kept if call.keep else None)
        call.exists = tuple(x is not None for x in as_tuple(outputs))
        return tuple(x for x in as_tuple(outputs) if x is not None)

    @staticmethod
    def backward(ctx, *grad_outputs):
        call = ctx.call
        inputs, needed = ctx.saved_tensors[: call.inputs], ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a derivative of this derivative may follow
            return None, *_differentiable(ctx, inputs, needed, grad_outputs)
        leaves = call.snapshot.leaves(needed[call.inputs :])
        pulls, ctx.pulls = ctx.pulls, []  # a second backward, if there is one, computes again
        if pulls:
            return None, *_gradients(call, inputs, needed, leaves, grad_outputs, lambda part: pulls.pop(0))
        with ctx.replay():
            again = lambda part: call.vjp(inputs, needed[: call.inputs], part)[1]
            return None, *_gradients(call, inputs, needed, leaves, grad_outputs, again)


def _gradients(call, inputs, needed, leaves, grad_outputs, pull_of):
    """Gradients of the inputs and of the parameters, piece by piece."""
    new = torch.zeros_like if call.pieces.halo else torch.empty_like
    grads = [new(x) if n else None for x, n in zip(inputs, needed[: call.inputs], strict=True)]
    totals = Totals(leaves)
    for part in call.pieces.slices:
        wide = call.pieces.wide(part)[0]
        pieces, more = pull_of(part)(leaves, [None if g is None else g[:, part] for g in grad_outputs])
        for grad, piece in zip(grads, pieces, strict=True):
            if grad is not None and call.pieces.halo:
                grad[:, wide] += 0 if piece is None else piece
            elif grad is not None:
                grad[:, wide] = 0 if piece is None else piece
        totals.add(leaves, more)
    return *grads, *totals.result()


def _differentiable(ctx, inputs, needed, grad_outputs):
    """The same as a graph of ordinary operations, all tokens at once, for a derivative of the gradient. Views, so that
    hooks on the tensors themselves run once."""
    call, pieces = ctx.call, ctx.call.pieces
    inputs, parameters = ([x.view_as(x) for x in group] for group in (inputs, ctx.saved_tensors[call.inputs :]))
    own = call.snapshot.parameters
    call.snapshot.use(parameters)
    with ctx.replay():
        outputs = [x for x in as_tuple(pieces.function(*pieces.modules, *inputs)) if x is not None]
    call.snapshot.use(own)
    wanted = [x for x, n in zip((*inputs, *parameters), needed, strict=True) if n]
    ends = [(x, g.to(x.dtype)) for x, g in zip(outputs, grad_outputs, strict=True) if g is not None and x.requires_grad]
    outputs, grads = zip(*ends, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True, create_graph=True))
    return [next(found) if n else None for n in needed]
