"""The latest members of every hash bucket, for cached decoding with `"strict_lsh"` attention: no sort of the history.

A token sees the latest W members of its own bucket, in each round. Each (row, head, round, bucket) has a ring of W + SLACK
slots and a counter; member number r of a bucket stands in place r % (W + SLACK). So a token costs the same whatever the
length of the history, and as long as no more than SLACK tokens are taken back, lowering the counters is enough.

Shapes: B batch, H heads, R rounds, n new tokens, L tokens, N buckets per round: one more than there are, for padding.
"""

import torch

from .sorting import bucket_bounds

SLACK = 32  # tokens that can be added, or taken back, at a time


class BucketMembers:
    """Rings of the latest members, all empty at first.

    Attributes:
        rings: (B, H, R, N * (W + SLACK)) int32, tokens.
        counts: (B, H, R, N) int64, members so far.
    """

    def __init__(self, batch, heads, rounds, num_buckets, window, device):
        self.window, self.depth, self.num_buckets = window, window + SLACK, num_buckets
        self.rings = torch.zeros((batch, heads, rounds, num_buckets * self.depth), dtype=torch.int32, device=device)
        self.counts = torch.zeros((batch, heads, rounds, num_buckets), dtype=torch.int64, device=device)
        self.high = 0  # most tokens ever held: what lies more than SLACK below it may be overwritten
        self._offsets = torch.arange(-window, 0, device=device)

    def refill(self, order, sorted_buckets, length):
        """Starts again from the first `length` tokens, given sorted by bucket: (R, B * H, at least L) int32 each."""
        batch, heads, rounds = self.counts.shape[:3]
        order, buckets = (x.transpose(0, 1).to(torch.int64) for x in (order, sorted_buckets))  # (B * H, R, L)
        first, last = bucket_bounds(buckets)
        slots = torch.arange(buckets.shape[-1], device=buckets.device)
        bucket = buckets + self._first_buckets.view(batch * heads, rounds, 1)
        is_token = order < length
        self.counts.zero_().view(-1).scatter_add_(0, bucket[is_token], torch.ones_like(bucket[is_token]))
        kept = is_token & (last - slots < self.depth)
        places = bucket * self.depth + (slots - first) % self.depth
        self.rings.view(-1)[places[kept]] = order[kept].to(torch.int32)
        self.high = length

    @property
    def _first_buckets(self):
        """(B, H, R, 1): number of bucket 0 when all of them are counted through."""
        return torch.arange(0, self.counts.numel(), self.num_buckets, device=self.counts.device).view(
            *self.counts.shape[:3], 1
        )

    def add(self, buckets, start):
        """Adds at most SLACK tokens, numbered from `start`; buckets: (B, H, R, n).

        Returns:
            members, seen: (B, H, R, n, W), the latest members of each token's bucket before it, and whether they exist.
        """
        new = buckets.shape[-1]
        bucket = self._first_buckets + buckets
        flat, counts, rings = bucket.reshape(-1), self.counts.view(-1), self.rings.view(-1)
        rank = counts.index_select(0, flat).view(bucket.shape)
        if new > 1:
            rank += (bucket[..., :, None] == bucket[..., None, :]).tril_(-1).sum(-1)
        ring = bucket * self.depth
        tokens = torch.arange(start, start + new, dtype=torch.int32, device=bucket.device).expand_as(bucket)
        rings.index_copy_(0, (ring + rank % self.depth).reshape(-1), tokens.reshape(-1))
        counts.index_add_(0, flat, torch.ones_like(flat))
        self.high = max(self.high, start + new)
        wanted = rank[..., None] + self._offsets
        seen = wanted >= 0
        members = rings.take(ring[..., None] + wanted % self.depth)
        return members.masked_fill_(~seen, 0), seen

    def take_back(self, buckets, length):
        """Removes the latest tokens, with these buckets (B, H, R, n), so that `length` are left.

        Returns:
            False where too many were taken back since `high`: then it must be filled again.
        """
        if self.high - length > SLACK:
            return False
        flat = (self._first_buckets + buckets).reshape(-1)
        self.counts.view(-1).index_add_(0, flat, torch.full_like(flat, -1))
        return True

    def select_rows(self, select):
        """Applies `select` to every tensor with a batch dimension."""
        self.rings, self.counts = select(self.rings), select(self.counts)
