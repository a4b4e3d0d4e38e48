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
    sees_cached,
)
from .cache_layers import ReformerCacheLayer, thaw
from .cache_members import SLACK, BucketMembers
from .hashing import compute_buckets
from .sorting import sort_by_bucket


class HashedCacheLayer(ReformerCacheLayer):
    """What `"lsh"` and `"strict_lsh"` share: bucket numbers of all tokens, an index of them, and pieces so long that they
    go through the module's own attention over everything.

    Padding is in a bucket of its own, the last one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.buckets = None  # (B, H, R, C)
        self.indexed = 0  # the index knows the first so many tokens; 0: there is none

    def fill(self, module, q, k, v, rotations, routing):
        self.store(q, k, v)
        if routing is None:
            self.hash(module, q, rotations, 0)
        else:
            order, sorted_buckets = (x.transpose(0, 1).unflatten(0, (len(q), -1)) for x in routing)
            buckets = torch.empty_like(order).scatter_(3, order.to(torch.int64), sorted_buckets)
            self._keep_buckets(module, buckets[..., : self.length], 0)
            self.index(module, order, sorted_buckets, self.length)

    def attend(self, module, q, k, v, rotations):
        start, new = self.store(q, k, v), q.shape[1]
        self.hash(module, q, rotations, start)
        once = not module.config.allow_duplicate_attention
        members = self.members_per_query(module)
        block = min(member_block(len(q), self.keys.shape[1], members, q.shape[-1], once), SLACK)
        if is_long(new, self.length, block):
            return self.attend_with_everything(module, new, rotations), None
        outputs, probabilities = [], []
        own = self.values[:, :, start : self.length]
        for part, q_part in enumerate(q.transpose(1, 2).split(block, 2)):
            i = part * block
            members, seen = self.members(module, start + i, start + i + q_part.shape[2])
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
        output = module.over_all((q, None, v), rotations, self.real())
        return output.hidden_states.unflatten(-1, (v.shape[2], -1))[:, -new:]

    # --- the index

    def hash(self, module, q, rotations, start):
        """Bucket numbers of the tokens stored last."""
        factors, real = module.config.bucket_factors(module.layer_type), self.real()
        buckets = compute_buckets(q, rotations, factors)
        if real is not None:
            buckets = buckets.masked_fill(~real[:, None, None, start:], math.prod(factors))
        self._keep_buckets(module, buckets, start)

    def _keep_buckets(self, module, buckets, start):
        self.num_buckets = math.prod(module.config.bucket_factors(module.layer_type))
        room = self.keys.shape[2]
        if self.buckets is None or self.buckets.shape[:3] != buckets.shape[:3] or self.buckets.shape[3] < self.length:
            old, dtype = self.buckets, torch.int16 if self.num_buckets < 2**15 else torch.int32
            self.buckets = torch.empty((*buckets.shape[:3], room), dtype=dtype, device=buckets.device)
            if start > 0:
                self.buckets[..., :start] = old[..., :start]
        self.buckets[..., start : self.length] = buckets

    def bring_up_to(self, module, length):
        """After this, the index knows the first `length` tokens and no others."""
        if self.indexed != length:
            order, buckets = sort_by_bucket(self.buckets[..., :length].to(torch.int32), None, self.num_buckets)
            self.index(module, order, buckets, length)

    def index(self, module, order, sorted_buckets, length):
        """Makes the index of the first `length` tokens, given sorted by bucket: (B, H, R, at least `length`) int32 each."""
        raise NotImplementedError

    def members_per_query(self, module):
        """K, tokens in the list of a query."""
        raise NotImplementedError

    def members(self, module, start, end):
        """Slots that the queries in the slots from `start` to `end` see, and whether they count: (B, H, n, K) each.

        Called for every query once, in order, when all of a piece is stored.
        """
        raise NotImplementedError

    def crop_to(self, length):
        self.indexed = 0 if length < self.indexed else self.indexed
        super().crop_to(length)

    def select_rows(self, select):
        super().select_rows(select)
        if self.length > 0:
            self._select_used("buckets", select, dim=3)


class StrictLSHCacheLayer(HashedCacheLayer):
    """`"strict_lsh"`: every bucket knows its latest members."""

    latest = None

    def index(self, module, order, sorted_buckets, length):
        self.latest = BucketMembers(order, sorted_buckets, length, self.num_buckets + 1, module.rule)
        self.indexed = length

    def members_per_query(self, module):
        return (module.rule.before + int(not module.rule.exclude_self)) * self.buckets.shape[2]

    def members(self, module, start, end):
        self.bring_up_to(module, start)
        self.indexed = 0  # while it changes
        found = self.latest.add(self.buckets[..., start:end].to(torch.int64), start)
        self.indexed = end
        return tuple(rounds_side_by_side(x) for x in found)

    def crop_to(self, length):
        if 0 < length < self.indexed:
            self.thaw()
            taken = self.buckets[..., length : self.indexed].to(torch.int64)
            self.indexed = length if self.latest.take_back(taken, length) else 0
        super().crop_to(length)

    def select_rows(self, select):
        super().select_rows(select)
        if self.indexed > 0:
            self.latest.select_rows(select)

    def thaw(self):
        super().thaw()
        if self.latest is not None and not torch.is_inference_mode_enabled():
            thaw(self.latest)


class LSHCacheLayer(HashedCacheLayer):
    """`"lsh"`: the sorted order of all tokens, into which new ones are put."""

    padded = None  # (B, H, R, 1 + L + 1) int32, the order between two unused places
    counts = None  # (B, H, R, buckets + 1), tokens in each bucket

    def index(self, module, order, sorted_buckets, length):
        # what the module padded stands last
        order, buckets = order[..., :length], sorted_buckets[..., :length].to(torch.int64)
        self.padded = torch.nn.functional.pad(order, (1, 1))
        self.counts = buckets.new_zeros((*buckets.shape[:3], self.num_buckets + 1))
        self.counts.scatter_add_(-1, buckets, torch.ones_like(buckets))
        self.indexed = length

    def bring_up_to(self, module, length):
        if self.indexed == 0 or self.indexed != length - 1:
            super().bring_up_to(module, length)
            return
        bucket, self.indexed = self.buckets[..., length - 1 : length].to(torch.int64), 0  # while it changes
        self.counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
        self.padded = insert_in_order(self.padded, self._slot_of(length - 1), length - 1)
        self.indexed = length

    def _slot_of(self, token):
        """(B, H, R, 1): where the latest token stands, behind all of its bucket."""
        return self.counts.cumsum(-1).gather(-1, self.buckets[..., token : token + 1].to(torch.int64)) - 1

    def members_per_query(self, module):
        return module.chunk_length * (module.before + 1 + module.after) * self.buckets.shape[2]

    def members(self, module, start, end):
        stored = self.length
        padded_length = module.padded_length(stored)
        if padded_length <= module.chunk_length:
            return self._all_before(module, start, end)
        self.bring_up_to(module, stored)
        slots = self._slot_of(start) if start == stored - 1 else inverse_order(self.padded[..., 1:-1])[..., start:end]
        r, s = ring_windows(slots, module.chunk_length, module.before, module.after, padded_length, slots.shape[2])
        real = self.real()
        seen = s < (stored if real is None else real.sum(1).view(-1, 1, 1, 1, 1))
        places = (r * (stored + 2) + s.clamp(max=stored - 1) + 1).flatten(2)
        members = self.padded.flatten(2).gather(2, places).view(s.shape).to(torch.int64)
        seen = seen & module.rule.sees(members - torch.arange(start, end, device=members.device)[:, None])
        return rounds_side_by_side(members), rounds_side_by_side(seen)

    def _all_before(self, module, start, end):
        """What a prefix of one chunk attends to: everything, without hashing."""
        shape, real = (*self.keys.shape[:2], end - start, self.length), self.real()
        seen = sees_cached(module.rule, start, end, 0, None if real is None else real[:, :end], self.device)
        slots = torch.arange(self.length, device=self.device).expand(shape)
        return slots, torch.nn.functional.pad(seen, (0, self.length - end)).expand(shape)

    def select_rows(self, select):
        super().select_rows(select)
        if self.indexed > 0:
            self.padded, self.counts = select(self.padded), select(self.counts)
