"""A sequence that lies on several processes, a contiguous shard on each, and how attention still sees all of it.

Everything but attention treats tokens alike and works on the shard. Around attention two all-to-alls exchange shards of the
sequence for rows, each one head of one example with all its tokens (Jacobs et al., DeepSpeed-Ulysses, arXiv 2309.14509, deals
out heads): B * H rows are dealt out to N processes in turn, so that hashing, sorting and attention are those of one process.
`hf_reformer.parallel.sequence_parallel` is the way in.

A process with l of the L tokens sends, in each direction of one layer's forward, B * l * H * W * (N - 1) / N numbers: W is 2 D
on the way in where queries and keys are shared, else 3 D, and D on the way out. Reversible layers send three times that in
a training step (forward, the same again in backward, gradients), ordinary ones twice.

Shapes: B batch, l tokens of this process, L of all, H heads, D head size, N processes, P = B * H / N rows of a process.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist

from .losses import IGNORED


class _Exchange(torch.autograd.Function):
    """Vectors (B, l, H, D) each of this process's tokens -> (P, L, D) each of its rows, or `back`: one all-to-all for all of
    them, whose transpose is the way back. (PyTorch's all-to-all with a backward of our own: that of `distributed.nn` is
    deprecated, and the functional one has a backward since 2.13 only.)"""

    @staticmethod
    def forward(ctx, shards, back, *vectors):
        ctx.shards, ctx.back = shards, back
        return (shards.rows_to_tokens if back else shards.tokens_to_rows)(*vectors)

    @staticmethod
    def backward(ctx, *grads):
        return None, None, *_Exchange.apply(ctx.shards, not ctx.back, *grads)


class SequenceGroup:
    """The processes that a sequence is spread over.

    Args:
        group: of torch.distributed; shards stand in the order of its ranks.

    Attributes:
        common: state of the generator (of the CPU) that all processes draw from alike, where the global one is this process's
            own, so that dropout differs from shard to shard; or None.
    """

    def __init__(self, group):
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.common = None

    @contextmanager
    def drawing_alike(self):
        """Within it the generator of the CPU is the one that all processes have in common."""
        if self.common is None:
            yield
            return
        own = torch.get_rng_state()
        torch.set_rng_state(self.common)
        try:
            yield
        finally:
            self.common = torch.get_rng_state()
            torch.set_rng_state(own)

    def sum(self, number):
        """The sum of a tensor () over the processes. No gradient."""
        total = number.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def next_token_labels(self, labels):
        """(B, l) -> (B, l): the label of position t is token t + 1, of the next shard where this one ends."""
        first = self._gather(labels[:, 0])
        last = first[self.rank + 1] if self.rank + 1 < self.size else torch.full_like(first[0], IGNORED)
        return torch.cat([labels[:, 1:], last[:, None]], 1)

    def shards(self, shape, heads, device, attention_mask=None, position_ids=None):
        """What the processes say of themselves to each other before a forward pass: `Shards`, the mask (B, L) and the positions
        (B or 1, L), each None where nobody has it.

        shape: (B, l). Every process learns of a contradiction between any two, and raises.
        """
        rows = 0 if position_ids is None else len(position_ids)
        if position_ids is not None and (position_ids.dim() != 2 or position_ids.shape[1] != shape[1]):
            raise ValueError(f"`position_ids` has the shape {tuple(position_ids.shape)}, but must have {shape}.")
        own = torch.tensor([*shape, attention_mask is not None, rows], device=device)
        facts = torch.stack(self._gather(own)).tolist()
        for at, name in ((0, "rows of `input_ids`"), (3, "rows of `position_ids` (0: None)")):
            if len({fact[at] for fact in facts}) > 1:
                found = [fact[at] for fact in facts]
                raise ValueError(f"The processes of a sequence have {found} {name}, but must all have the same number.")
        shards = Shards(self, shape[0], heads, tuple(fact[1] for fact in facts))
        shards.check()
        if any(fact[2] for fact in facts):
            given = torch.ones(shape, device=device) if attention_mask is None else attention_mask
            attention_mask = shards.whole(given.to(torch.uint8))
        return shards, attention_mask, position_ids if position_ids is None else shards.whole(position_ids)

    def _gather(self, x):
        found = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(found, x.contiguous(), group=self.group)
        return found


@dataclass(frozen=True)
class Shards:
    """How the tokens of one forward pass lie.

    Args:
        sequence: the processes.
        batch, heads: B, H.
        lengths: l of every process.
    """

    sequence: SequenceGroup
    batch: int
    heads: int
    lengths: tuple

    def check(self):
        """Raises where the rows cannot be dealt out evenly."""
        vectors, size = self.batch * self.heads, self.sequence.size
        if vectors % size:
            raise ValueError(
                f"A batch of {self.batch} sequences with {self.heads} heads has {vectors} rows to attend in, but the number must "
                f"be a multiple of the {size} processes that share a sequence: take another batch size, or fewer processes."
            )

    @property
    def shape(self):
        """(B, L)."""
        return self.batch, sum(self.lengths)

    @property
    def longest(self):
        """(B, the largest l): what all processes decide by alike."""
        return self.batch, max(self.lengths)

    @property
    def own(self):
        """The slice of this process's tokens."""
        start = sum(self.lengths[: self.sequence.rank])
        return slice(start, start + self.lengths[self.sequence.rank])

    @property
    def rows(self):
        """P."""
        return self.batch * self.heads // self.sequence.size

    def whole(self, x):
        """(n, l) -> (n, L). No gradient."""
        missing = max(self.lengths) - x.shape[1]
        parts = self.sequence._gather(torch.nn.functional.pad(x, (0, missing)))
        return torch.cat([part[:, :length] for part, length in zip(parts, self.lengths, strict=True)], 1)

    # --- around attention -------------------------------------------------------------------------------------------

    def to_rows(self, vectors):
        """Queries, keys (or None) and values (B, l, H, D) of this process's tokens -> (P, L, 1, D) of its rows."""
        found = iter(_Exchange.apply(self, False, *(x for x in vectors if x is not None)))
        return tuple(None if x is None else next(found).unsqueeze(2) for x in vectors)

    def to_tokens(self, x):
        """What attention makes of this process's rows, (P, L, D) -> (B, l, H * D) of its tokens."""
        return _Exchange.apply(self, True, x)[0].flatten(2)

    def tokens_to_rows(self, *vectors):
        sizes = [x.shape[3] for x in vectors]
        packed = torch.cat([x.transpose(1, 2) for x in vectors], -1).view(-1)  # the rows one behind the other
        flat = packed.new_empty(self.rows * sum(self.lengths) * sum(sizes))
        self._exchange(packed, flat, sum(sizes))
        del packed
        parts = self._by_process(flat, sum(sizes))
        ends = list(accumulate(sizes))
        return tuple(torch.cat([p[..., e - n : e] for p in parts], 1) for n, e in zip(sizes, ends, strict=True))

    def rows_to_tokens(self, *vectors):
        sizes, length = [x.shape[2] for x in vectors], self.lengths[self.sequence.rank]
        flat = vectors[0].new_empty(self.rows * sum(self.lengths) * sum(sizes))
        for part, *pieces in zip(
            self._by_process(flat, sum(sizes)), *(x.split(self.lengths, 1) for x in vectors), strict=True
        ):
            torch.cat(pieces, -1, out=part)
        packed = flat.new_empty(self.batch * self.heads * length * sum(sizes))
        self._exchange(packed, flat, sum(sizes), back=True)
        del flat
        whole = packed.view(self.batch, self.heads, length, sum(sizes))
        return tuple(part.transpose(1, 2).contiguous() for part in whole.split(sizes, 3))

    def _by_process(self, flat, width):
        """Views (P, l of process n, width) of each process's tokens in this process's rows."""
        parts = flat.split([self.rows * length * width for length in self.lengths])
        return [part.view(self.rows, -1, width) for part in parts]

    def _exchange(self, packed, flat, width, back=False):
        """All-to-all from `packed`, this process's tokens in the rows of all, to `flat`, all tokens in its rows; or `back`."""
        of_packed = [self.rows * self.lengths[self.sequence.rank] * width] * self.sequence.size
        of_flat = [self.rows * length * width for length in self.lengths]
        if back:
            dist.all_to_all_single(packed, flat, of_packed, of_flat, group=self.sequence.group)
        else:
            dist.all_to_all_single(flat, packed, of_flat, of_packed, group=self.sequence.group)

    def of_rows(self, context):
        """A `Context` of all examples and heads, for this process's rows: real tokens and documents (P, L), and rotations
        (P, 1, D, R, S), those of each row's head."""
        start = self.sequence.rank * self.rows
        row = torch.arange(start, start + self.rows)
        example, head = row // self.heads, row % self.heads
        rotations = context.rotations
        if rotations is not None:
            rotations = (rotations[head] if rotations.dim() == 4 else rotations[example, head])[:, None]
        real_tokens, documents = (None if x is None else x[example] for x in (context.real_tokens, context.documents))
        return replace(context, rotations=rotations, real_tokens=real_tokens, documents=documents)
