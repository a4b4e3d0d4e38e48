"""Functions that treat every token alike, some tokens at a time: nothing of the whole length is kept but inputs and outputs.

The paper chunks the feed-forward (eq. 10) and, for large vocabularies, the output; here that is one function, `tokenwise`. What
backward needs is computed again, or kept while the tokens are few (`recompute.py`). Shapes: B batch, L length.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.activations import ACT2CLS

from .pieces import piece_numbers
from .recompute import Replay, Snapshot, Totals, as_tuple, is_ours, is_watched, vjp
from .tracing import tracing

MANY_TOKENS = 2**16  # in a batch; beyond, memory counts for more than time

_TOKENWISE = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TOKENWISE += (nn.Dropout, nn.ParameterList, nn.ParameterDict)
_TOKENWISE += tuple({c[0] if isinstance(c, tuple) else c for c in ACT2CLS.values() if isinstance(c, (type, tuple))})
_LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")  # whose subclasses of these are no more than these


def is_tokenwise(module):
    """Whether a module surely treats every token alike: the kinds that this package, PyTorch, peft and the libraries of
    quantised weights have for that. What somebody else has put into a layer is given all tokens at once."""
    package = type(module).__module__.split(".")[0]
    ours = is_ours(module) and getattr(module, "tokenwise", False)
    theirs = package == "peft" or (package in _LIBRARIES and isinstance(module, _TOKENWISE))
    return (ours or theirs) and all(is_tokenwise(child) for child in module.children())


def fitting_tokens(like, numbers, batch_size):
    """How many tokens of each sequence to work on at a time, with so many `numbers` each: on a CPU what stays in its cache
    (2 MiB in float32) and in memory that need not be asked for anew, elsewhere 256 times as many; 16 at least."""
    return max(16, piece_numbers(like.device, 2**19, 2**27) // (batch_size * numbers))


def parts(length, step):
    """Slices of at most `step` tokens that cover `length`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def pieces_of(modules, step, length):
    """The slices in which functions of these modules may work: one where one of the modules must see all tokens."""
    if length <= step or is_watched(*modules):
        return [slice(0, length)]
    return parts(length, step if all(map(is_tokenwise, modules)) else length)


def tokenwise(function, modules, *inputs, numbers=None, least=1, step=None, halo=0):
    """function(*modules, *inputs), some tokens at a time.

    Args:
        function: maps modules and tensors (B, L, ...) to one tensor (B, L, ...) or a tuple of them (or None), token by
            token, or with nothing but the `halo` tokens before a token.
        modules: whose parameters it uses.
        numbers: for each token, of its largest tensor: then as many tokens as fit into the cache are worked on at a time,
            (and at `least` so many), and what backward needs is kept while the tokens are few (`MANY_TOKENS`), which is faster.
        step: tokens at a time, instead: nothing is kept.
        halo: tokens before each piece that the function is given too; what it says of them is thrown away.

    One call with all tokens where a graph is made by somebody else, where one step holds them, and where one of the
    modules is hooked or not known to treat every token alike.
    """
    if tracing():
        return function(*modules, *inputs)
    batch, length = inputs[0].shape[:2]
    keep = step is None and batch * length <= MANY_TOKENS
    step = step or max(least, fitting_tokens(inputs[0], numbers, batch))
    slices = pieces_of(modules, step, length)
    if len(slices) == 1:
        return function(*modules, *inputs)
    if not torch.is_grad_enabled():
        return _Pieces(function, modules, slices, halo).outputs(inputs)[0]
    snapshot = Snapshot(*modules)
    call = _Call(_Pieces(function, snapshot.modules, slices, halo), snapshot, len(inputs), keep)
    outputs = iter(_Tokenwise.apply(call, *inputs, *snapshot.parameters))
    given = [next(outputs) if exists else None for exists in call.exists]
    return tuple(given) if call.is_tuple else given[0]


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
        known = self.snapshot.parameters if part.start == 0 else None  # pieces are alike
        return vjp(self.pieces.of(part), self.pieces.cut(inputs, part), needed, known)


class _Tokenwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.set_materialize_grads(False)
        ctx.call, ctx.replay, ctx.pulls = call, Replay(tensors[0]), []
        ctx.save_for_backward(*tensors)
        inputs, needed = tensors[: call.inputs], ctx.needs_input_grad[1:]
        if call.keep:  # what is kept must not depend on what happens to the parameters later
            call.snapshot.leaves(needed[call.inputs :], own=False)

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
        leaves = call.snapshot.parameters if ctx.pulls else call.snapshot.leaves(needed[call.inputs :])
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
