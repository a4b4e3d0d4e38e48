"""Where chunked attention happens: rings of slots, blocks of chunks, and what a query may see in its window.

One layout serves local and LSH attention, published and strict. Tokens stand in slots of rings; a ring is cut into chunks
of M slots; the queries of a chunk see the keys of a window: their own chunk, `before` chunks to the left and `after` to
the right, going round the ring's end. What is not allowed inside the window is masked.

Shapes: B batch, L length (a multiple of M), H heads, R rounds, N rings, S slots of a ring, M chunk length,
W slots of a window (M * (before + 1 + after)), n rings and G chunks of a block, U slots of a block with the chunks around.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

MASKED = 1e30  # subtracted from the score of a key that must not be seen; leaves exp(score) at exactly 0
BLOCK_SCORES = 2**18  # scores of one block on a CPU (1 MiB in float32): the work on them stays in cache


class Block(NamedTuple):
    """Chunks `chunk` to `chunk_end` of the rings `ring` to `ring_end`, all of hash round `round`."""

    round: int
    ring: int
    ring_end: int
    chunk: int
    chunk_end: int


@dataclass(frozen=True)
class Layout:
    """Rings of one attention call.

    Args:
        batch, length, heads, rounds: B, L, H, R; `length` is a multiple of `chunk_length`.
        chunk_length, before, after: M, and the neighbouring chunks in a window.
        causal, exclude_self: a query sees no later token; no query sees itself (shared queries and keys).
        order: (R, B * H, L) int32, the token in each slot, or None where slot and token are the same.
        real_tokens: (B, L) bool, False for padding, or None. Not needed with `bounds`.
        bounds: for strict layers, the first and the last slot with a token of the query's bucket, each (R, B * H, L)
            or broadcast to it; then each round has rings of its own. None for published layers: the rounds of one head
            follow each other in one ring, as in Trax.
        reach_before, reach_after: slots that a strict query sees to its left and right at most.
        correct_duplicates: a key met several times counts once (`allow_duplicate_attention=False`).
    """

    batch: int
    length: int
    heads: int
    rounds: int
    chunk_length: int
    before: int
    after: int
    causal: bool
    exclude_self: bool
    device: torch.device
    order: torch.Tensor | None = None
    real_tokens: torch.Tensor | None = None
    bounds: tuple[torch.Tensor, torch.Tensor] | None = None
    reach_before: int = 0
    reach_after: int = 0
    correct_duplicates: bool = False

    @property
    def strict(self):
        return self.bounds is not None

    @property
    def window_chunks(self):
        return self.before + 1 + self.after

    @property
    def offsets(self):
        """Chunks of a window, seen from the query's."""
        return range(-self.before, self.after + 1)

    @property
    def ring_chunks(self):
        return self.chunks_per_round * (1 if self.strict else self.rounds)

    @property
    def _short_ring(self):
        return not self.strict and max(self.before, self.after) > self.ring_chunks

    def _neighbour(self, chunk, offset):
        return (chunk + offset) % self.ring_chunks if abs(offset) < self.ring_chunks else chunk

    @property
    def chunks_per_round(self):
        return self.length // self.chunk_length

    @property
    def heads_in_batch(self):
        return self.batch * self.heads

    # --- rings ------------------------------------------------------------------------------------------------------

    @property
    def tokens(self):
        """(R, B * H, L): the token in each slot."""
        if self.order is not None:
            return self.order
        return torch.arange(self.length, device=self.device).expand(self.rounds, self.heads_in_batch, -1)

    def as_rings(self, per_round):
        """(R, B * H, L) -> (N, S)."""
        if self.strict:
            return per_round.reshape(-1, self.length)
        return per_round.transpose(0, 1).reshape(self.heads_in_batch, -1)

    def as_rounds(self, per_ring):
        """(N, S, ...) -> (R, B * H, L, ...): the inverse of `as_rings`."""
        if self.strict:
            return per_ring.unflatten(0, (self.rounds, -1))
        return per_ring.unflatten(1, (self.rounds, -1)).transpose(0, 1)

    @cached_property
    def ring_rows(self):
        """(N, S) int64: the row of each slot's token in a (B * L * H, D) matrix, where row = (b * L + t) * H + h."""
        ring = torch.arange(self.heads_in_batch, device=self.device)
        base = ring // self.heads * (self.length * self.heads) + ring % self.heads
        return self.as_rings(self.tokens.to(torch.int64) * self.heads + base[:, None])

    @cached_property
    def _ring_positions(self):
        exact = torch.float32 if self.length <= 2**24 else torch.float64
        return self.as_rings(self.tokens.to(exact))

    @cached_property
    def _ring_keys(self):
        """Positions of the keys, infinite for padding."""
        if self.real_tokens is None:
            return self._ring_positions
        padding = (~self.real_tokens).repeat_interleave(self.heads, dim=0).expand(self.rounds, -1, -1)
        if self.order is not None:
            padding = padding.gather(2, self.order.to(torch.int64))
        return self._ring_positions.masked_fill(self.as_rings(padding), float("inf"))

    @cached_property
    def _ring_bounds(self):
        """Slots from a query back to its bucket's first slot (negative), and on to its last one."""
        slots = torch.arange(self.length, device=self.device)
        shape = (self.rounds, self.heads_in_batch, self.length)
        return tuple(self.as_rings((bound - slots).to(torch.float32).expand(shape)) for bound in self.bounds)

    # --- blocks -----------------------------------------------------------------------------------------------------

    def blocks(self):
        """Blocks that cover every chunk once. A block never crosses rounds, so no token has two queries in it."""
        budget = BLOCK_SCORES if self.device.type == "cpu" else 64 * BLOCK_SCORES
        chunks = max(1, budget // (self.chunk_length**2 * self.window_chunks))
        rings = max(1, min(self.heads_in_batch, chunks // self.chunks_per_round))
        chunks = 1 if self._short_ring else min(chunks, self.chunks_per_round)
        for r in range(self.rounds):
            ring_start = r * self.heads_in_batch if self.strict else 0
            chunk_start = 0 if self.strict else r * self.chunks_per_round
            ring_stop, chunk_stop = ring_start + self.heads_in_batch, chunk_start + self.chunks_per_round
            for n in range(ring_start, ring_stop, rings):
                for c in range(chunk_start, chunk_stop, chunks):
                    yield Block(r, n, min(n + rings, ring_stop), c, min(c + chunks, chunk_stop))

    def take(self, per_ring, block):
        """(N, S) -> (n, U): the slots of a block and of the chunks around it, round the ring's end.

        A neighbour further away than the ring is long is the chunk itself, as in Trax and transformers.
        """
        start = (block.chunk - self.before) * self.chunk_length
        end = (block.chunk_end + self.after) * self.chunk_length
        rings = per_ring[block.ring : block.ring_end]
        if start >= 0 and end <= rings.shape[1]:
            return rings[:, start:end]
        if self._short_ring:
            chunks = rings.unflatten(1, (-1, self.chunk_length))
            return chunks[:, [self._neighbour(block.chunk, i) for i in self.offsets]].flatten(1)
        return rings.index_select(1, torch.arange(start, end, device=rings.device) % rings.shape[1])

    def rows(self, block):
        """Rows of a block's tokens, see `ring_rows`, with and without the chunks around: (n * U) and (n * G * M) int64.
        Slices where a block is a piece of one ring whose tokens stand in their own order: they need no gathering."""
        start, end = block.chunk - self.before, block.chunk_end + self.after
        if self.order is None and block.ring_end == block.ring + 1 and start >= 0 and end <= self.chunks_per_round:
            return self._slice(block.ring, start, end), self._slice(block.ring, block.chunk, block.chunk_end)
        rows = self.take(self.ring_rows, block)
        return rows.reshape(-1), self.middle(rows).reshape(-1)

    def _slice(self, ring, chunk, chunk_end):
        first = (ring // self.heads * self.length + chunk * self.chunk_length) * self.heads + ring % self.heads
        return slice(first, first + (chunk_end - chunk) * self.chunk_length * self.heads, self.heads)

    def middle(self, per_block):
        """(n, U, ...) -> (n, G * M, ...): the block's own slots, without the chunks around them."""
        start = self.before * self.chunk_length
        return per_block[:, start : per_block.shape[1] - self.after * self.chunk_length]

    def windows(self, per_block):
        """(n, U, ...) -> (n * G, W, ...): each chunk with its neighbours. An overlapping view where n is 1, else a copy."""
        rings, slots = per_block.shape[:2]
        chunks = slots // self.chunk_length - self.window_chunks + 1
        ring, step, *rest = per_block.stride()
        shape = (rings, chunks, self.chunk_length * self.window_chunks, *per_block.shape[2:])
        strides = (ring, self.chunk_length * step, step, *rest)
        return per_block.as_strided(shape, strides, per_block.storage_offset()).flatten(0, 1)

    def add_windows(self, per_window, like):
        """The transpose of `windows`: (n * G, W, D) -> (n, U, D), each slot the sum over the windows it stands in."""
        rings, slots, size = like.shape
        chunks = slots // self.chunk_length - self.window_chunks + 1
        parts = per_window.view(rings, chunks, self.window_chunks, self.chunk_length, size)
        summed = per_window.new_zeros((rings, slots // self.chunk_length, self.chunk_length, size))
        for i in range(self.window_chunks):
            summed[:, i : i + chunks].add_(parts[:, :, i])
        return summed.view(rings, slots, size)

    # --- masks: arithmetic instead of comparisons, several times faster on a CPU ------------------------------------

    def mask_(self, scores, block):
        """Subtracts MASKED from the scores (n * G, M, W) of what a query must not see, in place."""
        if self._same_everywhere and self._inside(block):
            scores.sub_(self._window_mask, alpha=MASKED)
        elif self.strict:
            self._mask_slots_(scores, block)
        else:
            self._mask_positions_(scores, block)

    @property
    def _same_everywhere(self):
        """Whether all windows inside the ring have the same mask: tokens stand in their own order, none is padding."""
        return self.order is None and self.real_tokens is None

    def _inside(self, block):
        return block.chunk >= self.before and (block.chunk_end + self.after) * self.chunk_length < self.length

    @cached_property
    def _window_mask(self):
        """(M, W): 1 where a query must not see."""
        never = self._steps > 0 if self.causal else torch.zeros_like(self._steps, dtype=torch.bool)
        if self.exclude_self:
            never = never | (self._steps == 0)
        if self.strict:
            never = never | (self._steps < -self.reach_before) | (self._steps > self.reach_after)
        return never.to(torch.float32)

    def _mask_positions_(self, scores, block):
        keys = self.windows(self.take(self._ring_keys, block))[:, None, :]
        queries = self._per_query(self.take(self._ring_positions, block))
        if self.causal:  # padding stands infinitely late
            scores.sub_((keys - (queries - int(self.exclude_self))).clamp_(0, 1), alpha=MASKED)
        elif self.exclude_self or self.real_tokens is not None:
            distance = (keys - queries).abs_()
            near = distance.neg().add_(1) if self.exclude_self else torch.zeros_like(distance)
            scores.sub_(torch.maximum(near, distance.sub_(self.length)).clamp_(0, 1), alpha=MASKED)

    def _mask_slots_(self, scores, block):
        first, last = (self._per_query(self.take(bound, block)) for bound in self._ring_bounds)
        scores.sub_((first - self._steps_left).clamp_(0, 1), alpha=MASKED)
        if not self.causal:
            scores.sub_((self._steps_right - last).clamp_(0, 1), alpha=MASKED)

    def _per_query(self, per_block):
        return self.middle(per_block).reshape(-1, self.chunk_length, 1)

    @cached_property
    def _steps(self):
        """(M, W): slots from query to key."""
        query = torch.arange(self.chunk_length, device=self.device)[:, None]
        key = torch.arange(self.chunk_length * self.window_chunks, device=self.device)
        return (key - self.before * self.chunk_length - query).to(torch.float32)

    @cached_property
    def _steps_left(self):
        """`_steps`, or far left of any bucket for a key that no query in this place sees."""
        never = self._steps < -self.reach_before
        if self.exclude_self:
            never |= self._steps == 0
        if self.causal:
            never |= self._steps > 0
        return self._steps.masked_fill(never, -MASKED)

    @cached_property
    def _steps_right(self):
        return self._steps.masked_fill(self._steps > self.reach_after, MASKED)

    def slot_mask(self):
        """The same as a predicate (ring, _, query slot, key slot) -> bool, for `flex_attention`; it includes the window."""
        if self.strict:
            first, last = (bound + torch.arange(self.length, device=self.device) for bound in self._ring_bounds)

            def seen(n, _, query, key):
                inside = (key >= torch.maximum(first[n, query], query - self.reach_before)) & (key <= last[n, query])
                inside = inside & (key <= (query if self.causal else query + self.reach_after))
                return inside & (key != query) if self.exclude_self else inside

            return seen
        keys, queries, chunks = self._ring_keys, self._ring_positions, self.ring_chunks

        def seen(n, _, query, key):
            step = (key // self.chunk_length - query // self.chunk_length + self.before) % chunks
            inside = (step < self.window_chunks) & (keys[n, key] <= self.length)
            if self.causal:
                inside = inside & (keys[n, key] <= queries[n, query])
            return inside & (keys[n, key] != queries[n, query]) if self.exclude_self else inside

        return seen
