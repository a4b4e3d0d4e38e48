"""The layers of a `ReformerCache` that hash: bucket numbers of all tokens, and who is where.

Shapes: B batch, H heads, D head size, R hash rounds, n new tokens, L tokens so far, C slots there is room for.
"""

import math

import torch

from .cache_decoding import (
    attend_members,
    insert_in_order,
    inverse_order,
    is_long,
    member_block,
    ring_windows,
    rounds_side_by_side,
    sees_all,
)
from .cache_layers import ReformerCacheLayer
from .cache_members import SLACK, BucketMembers
from .hashing import compute_buckets
from .sorting import sort_by_bucket


class HashedCacheLayer(ReformerCacheLayer):
    """What `"lsh"` and `"strict_lsh"` share: bucket numbers of all tokens, and pieces so long that they go through the
    module's own attention over everything.

    Padding is in a bucket of its own, the last one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.factors = self.config.bucket_factors(self.layer_type)
        self.num_buckets = math.prod(self.factors)
        self.buckets = None  # (B, H, R, C)

    def fill(self, module, q, k, v, rotations, routing):
        self.store(q, k, v)
        if routing is None:
            self.hash(q, rotations, 0)
            self.reindex()
        else:
            self.index(routing.order, routing.sorted_buckets)
            of_token = torch.empty_like(routing.order)
            of_token.scatter_(2, routing.order.to(torch.int64), routing.sorted_buckets)
            self._keep_buckets(of_token.transpose(0, 1).unflatten(0, (len(q), -1))[..., : self.length], 0)

    def attend(self, module, q, k, v, rotations):
        start, new = self.store(q, k, v), q.shape[1]
        self.hash(q, rotations, start)
        members = self.members_per_query(module)
        once = not self.config.allow_duplicate_attention
        block = min(member_block(len(q), self.keys.shape[1], members, q.shape[-1], once), SLACK)
        if is_long(new, self.length, block):
            return self.attend_with_everything(module, new, rotations), None
        outputs, probabilities = [], []
        own = self.values[:, :, start : self.length]
        for part, q_part in enumerate(q.transpose(1, 2).split(block, 2)):
            i = part * block
            members, seen = self.members(module, start + i, start + i + q_part.shape[2], start + new)
            out, probs = attend_members(
                q_part, self.keys, self.values, self.scales, members, seen, own[:, :, i : i + block], once
            )
            outputs.append(out)
            probabilities.append(probs)
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return out.transpose(1, 2), probabilities[0] if len(outputs) == 1 else torch.cat(probabilities, 2)

    def attend_with_everything(self, module, new, rotations):
        """The last `new` outputs of the module's attention over all tokens: (B, n, H, D)."""
        q, v = (x[:, :, : self.length].transpose(1, 2) for x in (self.keys, self.values))
        output = module.attend_all(q, None, v, real_tokens=self.real(), rotations=rotations)
        self.reindex()
        return output.hidden_states.unflatten(-1, (v.shape[2], -1))[:, -new:]

    def hash(self, q, rotations, start):
        """Bucket numbers of the tokens stored last."""
        buckets = compute_buckets(q, rotations, self.factors)
        real = self.real()
        if real is not None:
            buckets = buckets.masked_fill(~real[:, None, None, start:], self.num_buckets)
        self._keep_buckets(buckets, start)

    def _keep_buckets(self, buckets, start):
        room = self.keys.shape[2]
        if self.buckets is None or self.buckets.shape[:3] != buckets.shape[:3] or self.buckets.shape[3] < self.length:
            old, dtype = self.buckets, torch.int16 if self.num_buckets < 2**15 else torch.int32
            self.buckets = torch.empty((*buckets.shape[:3], room), dtype=dtype, device=buckets.device)
            if start > 0:
                self.buckets[..., :start] = old[..., :start]
        self.buckets[..., start : self.length] = buckets

    def reindex(self):
        """Builds what `members` needs from the bucket numbers of all tokens."""
        buckets = self.buckets[..., : self.length].to(torch.int32)
        order, sorted_buckets = sort_by_bucket(buckets, None, self.num_buckets)
        self.index(*(x.permute(2, 0, 1, 3).flatten(1, 2) for x in (order, sorted_buckets)))

    def select_rows(self, select):
        super().select_rows(select)
        if self.length > 0:
            self._select_used("buckets", select, dim=3)

    def members_per_query(self, module):
        """K, tokens in the list of a query."""
        raise NotImplementedError

    def members(self, module, start, end, stored):
        """Slots that the queries in the slots from `start` to `end` see, and whether they count: (B, H, n, K) each.

        Called for every query once, in order; `stored`: how many tokens there are, later queries included.
        """
        raise NotImplementedError

    def index(self, order, sorted_buckets):
        """Starts again from all tokens, sorted by bucket: (R, B * H, at least L) int32 each."""
        raise NotImplementedError


class StrictLSHCacheLayer(HashedCacheLayer):
    """`"strict_lsh"`: every bucket knows its latest members."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.window = self.config.lsh_num_chunks_before * self.config.lsh_attn_chunk_length
        self.latest = None
        self.indexed = 0  # tokens that `latest` knows of

    def members_per_query(self, module):
        return self.window * self.buckets.shape[2]

    def members(self, module, start, end, stored):
        if self.indexed != start:  # cropped too far
            length, self.length = self.length, start
            self.reindex()
            self.length = length
        self.indexed = end
        found = self.latest.add(self.buckets[..., start:end].to(torch.int64), start)
        return tuple(rounds_side_by_side(x) for x in found)

    def index(self, order, sorted_buckets):
        batch, heads = self.keys.shape[:2]
        rounds = len(order)
        if self.latest is None or self.latest.counts.shape[:3] != (batch, heads, rounds):
            self.latest = BucketMembers(batch, heads, rounds, self.num_buckets + 1, self.window, self.device)
        self.latest.refill(order, sorted_buckets, self.length)
        self.indexed = self.length

    def crop_to(self, length):
        if self.latest is not None and 0 < length < self.indexed:
            known = self.latest.take_back(self.buckets[..., length : self.indexed].to(torch.int64), length)
            self.indexed = length if known else -1
        super().crop_to(length)

    def select_rows(self, select):
        super().select_rows(select)
        if self.length > 0:
            self.latest.select_rows(select)


class LSHCacheLayer(HashedCacheLayer):
    """`"lsh"`: the sorted order of all tokens, into which new ones are put."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.padded = None  # (B, H, R, 1 + L + 1) int32, the order between two unused places, or None after a crop
        self.counts = None  # (B, H, R, buckets + 1), tokens in each bucket

    @property
    def order(self):
        """(B, H, R, L) int32, or None."""
        return None if self.padded is None else self.padded[..., 1:-1]

    def members_per_query(self, module):
        return module.chunk_length * (module.before + 1 + module.after) * self.buckets.shape[2]

    def members(self, module, start, end, stored):
        if module.padded_length(self.length) <= module.chunk_length:
            return self._all_before(start, end)
        slots = self._slots(stored)[..., start - stored :][..., : end - start]
        rounds = slots.shape[2]
        r, s = ring_windows(
            slots, module.chunk_length, module.before, module.after, module.padded_length(stored), rounds
        )
        real = self.real()
        seen = s < (stored if real is None else real.sum(1).view(-1, 1, 1, 1, 1))
        places = (r * (stored + 2) + s.clamp(max=stored - 1) + 1).flatten(2)
        members = self.padded.flatten(2).gather(2, places).view(s.shape).to(torch.int64)
        queries = torch.arange(start, end, device=members.device)[:, None]
        seen = seen & (members < queries)
        return rounds_side_by_side(members), rounds_side_by_side(seen)

    def _slots(self, stored):
        """Slots of the latest tokens in each round, (B, H, R, at least as many as are new)."""
        if self.order is not None and self.order.shape[-1] == stored - 1:
            bucket = self.buckets[..., stored - 1 : stored].to(torch.int64)
            place = self.counts.cumsum(-1).gather(-1, bucket)
            self.counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
            self.padded = insert_in_order(self.padded, place, stored - 1)
            return place
        if self.order is None or self.order.shape[-1] != stored:
            self.reindex()
        return inverse_order(self.order)

    def _all_before(self, start, end):
        """What a prefix of one chunk attends to: everything, without hashing."""
        seen = sees_all(start, end, True, self.real(), self.device)
        shape = (*self.keys.shape[:2], end - start, self.length)
        slots = torch.arange(self.length, device=self.device).expand(shape)
        return slots, seen[..., : self.length].expand(shape)

    def index(self, order, sorted_buckets):
        order, sorted_buckets = (
            x.transpose(0, 1).unflatten(0, (self.keys.shape[0], -1)) for x in (order, sorted_buckets)
        )
        if order.shape[-1] > self.length:  # padded by the module: those stand last
            order, sorted_buckets = order[..., : self.length], sorted_buckets[..., : self.length]
        self.padded = torch.nn.functional.pad(order, (1, 1))
        buckets = sorted_buckets.to(torch.int64)
        self.counts = buckets.new_zeros((*buckets.shape[:3], self.num_buckets + 1))
        self.counts.scatter_add_(-1, buckets, torch.ones_like(buckets))

    def crop_to(self, length):
        self.padded = None if length != self.length else self.padded
        super().crop_to(length)

    def select_rows(self, select):
        super().select_rows(select)
        if self.length > 0 and self.padded is not None:
            self.padded, self.counts = select(self.padded), select(self.counts)
