"""Where chunked attention happens: rings of slots, windows of chunks, blocks of work.

One layout serves local and LSH attention, published and strict. Tokens stand in slots of rings; a ring is cut into chunks
of M slots; the queries of a chunk are scored with the keys of a window: their own chunk, `before` chunks to the left and
`after` to the right, going round the ring's end. Which of these a query sees is what `attention_rule.py` says.

Shapes: B batch, L length (a multiple of M), H heads, R rounds, N rings, S slots of a ring, M chunk length,
W slots of a window (M * (before + 1 + after)), n rings and G chunks of a block, U slots of a block with the chunks around.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from .attention_rule import MASKED, Rule
from .pieces import piece_numbers

BLOCK_SCORES = 2**19  # scores of one block on a CPU (2 MiB in float32): the work on them stays in cache


@dataclass(frozen=True)
class Rings:
    """Which token stands in which slot.

    Args:
        batch, length, heads, rounds: B, L, H, R.
        order: (R, B * H, L) int32, the token in each slot, or None where slot and token are the same.
        joined: the rounds of one head follow each other in one ring, as in Trax; else each has rings of its own.
    """

    batch: int
    length: int
    heads: int
    device: torch.device
    rounds: int = 1
    order: torch.Tensor | None = None
    joined: bool = False

    @property
    def rows(self):
        """B * H: rings of a round."""
        return self.batch * self.heads

    @property
    def tokens(self):
        """(R, B * H, L): the token in each slot."""
        if self.order is not None:
            return self.order
        return torch.arange(self.length, device=self.device).expand(self.rounds, self.rows, -1)

    @cached_property
    def slots(self):
        """(R, B * H, L) int64, the inverse of `tokens`: the slot of each token."""
        tokens = self.tokens.to(torch.int64)
        slots = torch.arange(self.length, device=self.device).expand_as(tokens)
        return torch.empty_like(tokens).scatter_(2, tokens, slots)

    def as_rings(self, per_round):
        """(R, B * H, L) -> (N, S)."""
        return per_round.transpose(0, 1).reshape(self.rows, -1) if self.joined else per_round.reshape(-1, self.length)

    def as_rounds(self, per_ring):
        """(N, S, ...) -> (R, B * H, L, ...): the inverse of `as_rings`."""
        if self.joined:
            return per_ring.unflatten(1, (self.rounds, -1)).transpose(0, 1)
        return per_ring.unflatten(0, (self.rounds, -1))

    @cached_property
    def token_rows(self):
        """(N, S) int64: the row of each slot's token in a (B * L * H, D) matrix, where row = (b * L + t) * H + h."""
        ring = torch.arange(self.rows, device=self.device)
        base = ring // self.heads * (self.length * self.heads) + ring % self.heads
        return self.as_rings(self.tokens.to(torch.int64) * self.heads + base[:, None])

    @cached_property
    def head_rows(self):
        """(N, S) int64: the same in a (B * H, L) matrix."""
        return self.as_rings(self.tokens + self.length * torch.arange(self.rows, device=self.device)[:, None])

    @cached_property
    def positions(self):
        """(N, S): position of each slot's token, exact."""
        return self.as_rings(self.tokens.to(torch.float32 if self.length <= 2**24 else torch.float64))


@dataclass(frozen=True)
class Windows:
    """Chunks of M slots, each with its neighbours: views of a block's slots, and back."""

    chunk: int  # M
    before: int
    after: int

    @property
    def chunks(self):
        return self.before + 1 + self.after

    @property
    def slots(self):
        """W."""
        return self.chunk * self.chunks

    @property
    def offsets(self):
        """Chunks of a window, seen from the query's."""
        return range(-self.before, self.after + 1)

    def steps(self, device):
        """(M, W): slots from query to key."""
        query = torch.arange(self.before * self.chunk, (self.before + 1) * self.chunk, device=device)[:, None]
        return (torch.arange(self.slots, device=device) - query).to(torch.float32)

    def own(self, per_block):
        """(n, U, ...) -> (n, G * M, ...): the block's own slots, without the chunks around them."""
        return per_block[:, self.before * self.chunk : per_block.shape[1] - self.after * self.chunk]

    def per_query(self, per_block):
        """(n, U) -> (n * G, M, 1)."""
        return self.own(per_block).reshape(-1, self.chunk, 1)

    def per_key(self, per_block):
        """(n, U) -> (n * G, 1, W)."""
        return self.of(per_block)[:, None, :]

    def of(self, per_block):
        """(n, U, ...) -> (n * G, W, ...): each chunk with its neighbours. An overlapping view where n is 1, else a copy."""
        rings, slots = per_block.shape[:2]
        ring, step, *rest = per_block.stride()
        shape = (rings, slots // self.chunk - self.chunks + 1, self.slots, *per_block.shape[2:])
        strides = (ring, self.chunk * step, step, *rest)
        return per_block.as_strided(shape, strides, per_block.storage_offset()).flatten(0, 1)

    def sum(self, per_window, like):
        """The transpose of `of`: (n * G, W, D) -> (n, U, D), each slot the sum over the windows it stands in."""
        rings, slots, size = like.shape
        chunks = slots // self.chunk - self.chunks + 1
        parts = per_window.view(rings, chunks, self.chunks, self.chunk, size)
        summed = per_window.new_zeros((rings, slots // self.chunk, self.chunk, size))
        for i in range(self.chunks):
            summed[:, i : i + chunks].add_(parts[:, :, i])
        return summed.view(rings, slots, size)


class Block(NamedTuple):
    """Chunks `chunk` to `chunk_end` of the rings `ring` to `ring_end`, all of hash round `round`."""

    round: int
    ring: int
    ring_end: int
    chunk: int
    chunk_end: int


@dataclass(frozen=True)
class Layout:
    """One call of chunked attention.

    Args:
        real_tokens: (B, L) bool, False for padding, or None. Not needed with `bounds`.
        bounds: the first and the last slot with a token of the query's bucket, each an integer or (R, B * H, L); steps are
            then counted in slots. None (published layers): in positions.
        buckets: how many a ring may have, with that of padding; of strict layers.
        correct_duplicates: a key met several times counts once (`allow_duplicate_attention=False`).
    """

    rings: Rings
    windows: Windows
    rule: Rule
    real_tokens: torch.Tensor | None = None
    bounds: tuple | None = None
    buckets: int = 2
    correct_duplicates: bool = False

    @property
    def chunks_per_round(self):
        return self.rings.length // self.windows.chunk

    @property
    def ring_chunks(self):
        return self.chunks_per_round * (self.rings.rounds if self.rings.joined else 1)

    @property
    def _short(self):
        """Whether a window reaches further than a ring of positions is long."""
        return self.bounds is None and max(self.windows.before, self.windows.after) > self.ring_chunks

    # --- blocks -----------------------------------------------------------------------------------------------------

    def blocks(self):
        """Blocks that cover every chunk once. A block never crosses rounds, so no token has two queries in it."""
        budget = piece_numbers(self.rings.device, BLOCK_SCORES, 64 * BLOCK_SCORES)
        rows, joined, per_round = self.rings.rows, self.rings.joined, self.chunks_per_round
        chunks = max(1, budget // (self.windows.chunk * self.windows.slots))
        rings = max(1, min(rows, chunks // per_round))
        chunks = 1 if self._short else min(chunks, per_round)
        for r in range(self.rings.rounds):
            ring, chunk = (0, r * per_round) if joined else (r * rows, 0)
            for n in range(ring, ring + rows, rings):
                for c in range(chunk, chunk + per_round, chunks):
                    yield Block(r, n, min(n + rings, ring + rows), c, min(c + chunks, chunk + per_round))

    def take(self, per_ring, block):
        """(N, S) -> (n, U): the slots of a block and of the chunks around it, round the ring's end."""
        rings, chunk = per_ring[block.ring : block.ring_end], self.windows.chunk
        start, end = block.chunk - self.windows.before, block.chunk_end + self.windows.after
        if start >= 0 and end <= self.ring_chunks:
            return rings[:, start * chunk : end * chunk]
        if not self._short:
            return rings.index_select(1, torch.arange(start * chunk, end * chunk, device=rings.device) % rings.shape[1])
        # a neighbour further away than the ring is long is the chunk itself, as in Trax and transformers
        around = torch.arange(start, end, device=rings.device)
        around = torch.where((around - block.chunk).abs() < self.ring_chunks, around, block.chunk) % self.ring_chunks
        return rings.unflatten(1, (-1, chunk)).index_select(1, around).flatten(1)

    def rows(self, block):
        """Rows of a block's tokens, see `Rings.token_rows`, with and without the chunks around: (n * U), (n * G * M) int64.
        Slices where a block is a piece of one ring whose tokens stand in their own order: they need no gathering."""
        start, end = block.chunk - self.windows.before, block.chunk_end + self.windows.after
        if self.rings.order is None and block.ring_end == block.ring + 1 and start >= 0 and end <= self.ring_chunks:
            return self._slice(block.ring, start, end), self._slice(block.ring, block.chunk, block.chunk_end)
        rows = self.take(self.rings.token_rows, block)
        return rows.reshape(-1), self.windows.own(rows).reshape(-1)

    def _slice(self, ring, chunk, chunk_end):
        heads, size = self.rings.heads, self.windows.chunk
        first = (ring // heads * self.rings.length + chunk * size) * heads + ring % heads
        return slice(first, first + (chunk_end - chunk) * size * heads, heads)

    # --- masks ------------------------------------------------------------------------------------------------------

    def mask_(self, scores, block):
        """Subtracts MASKED from the scores (n * G, M, W) of what a query does not see, in place."""
        windows = self.windows
        inside = block.chunk >= windows.before and block.chunk_end + windows.after < self.ring_chunks
        if self.rings.order is None and self.real_tokens is None and inside:  # all these windows have the same mask
            scores.sub_(self._hidden, alpha=MASKED)
        elif self.bounds is None:
            keys, queries = self.take(self._key_positions, block), self.take(self.rings.positions, block)
            self.rule.subtract_unseen_(scores, windows.per_key(keys), windows.per_query(queries))
        else:
            left, right = (windows.per_query(self.take(edge, block)) for edge in self._edges)
            scores.sub_((left - self._near).clamp_(0, 1), alpha=MASKED)
            if self.rule.after > 0:
                scores.sub_((self._near - right).clamp_(0, 1), alpha=MASKED)

    @cached_property
    def _hidden(self):
        """(M, W): 1 where a query does not see a key for their distance, in a window of tokens in their own order."""
        return (~self.rule.near(self.windows.steps(self.rings.device))).to(torch.float32)

    @cached_property
    def _near(self):
        """(M, W): steps, infinitely far left where a query does not see a key for their distance."""
        steps = self.windows.steps(self.rings.device)
        return steps.masked_fill(~self.rule.near(steps), float("-inf"))

    @cached_property
    def _edges(self):
        """Steps from a query to the first and to the last slot of its bucket, (N, S) each."""
        slots = torch.arange(self.rings.length, device=self.rings.device)
        shape = (self.rings.rounds, self.rings.rows, -1)
        return tuple(self.rings.as_rings((bound - slots).to(torch.float32).expand(shape)) for bound in self.bounds)

    @cached_property
    def _key_positions(self):
        """(N, S): positions of the keys, infinite for padding."""
        rings = self.rings
        if self.real_tokens is None:
            return rings.positions
        padding = (~self.real_tokens).repeat_interleave(rings.heads, dim=0).expand(rings.rounds, -1, -1)
        padding = padding if rings.order is None else padding.gather(2, rings.order.to(torch.int64))
        return rings.positions.masked_fill(rings.as_rings(padding), float("inf"))

    # --- what repeats -----------------------------------------------------------------------------------------------

    @cached_property
    def places(self):
        """For each round what counting asks of a token, (B * H, L) each: its chunk in the ring (published), or its slot and
        the steps from there to the ends of its bucket (strict). Made once for all blocks."""
        slots = self.rings.slots
        if self.bounds is not None:
            return list(zip(slots, *(self.rings.as_rounds(e).gather(2, slots) for e in self._edges), strict=True))
        rounds = torch.arange(self.rings.rounds, device=slots.device)[:, None, None]
        return list(slots // self.windows.chunk + self.chunks_per_round * rounds)
