"""The latest members of every hash bucket, for cached decoding with `"strict_lsh"` attention: no sort of the history.

A token sees the latest W members of its own bucket, in each round. Each (row, head, round, bucket) has a ring of W + SLACK
slots and a counter; member number r of a bucket stands in place r % (W + SLACK). So a token costs the same whatever the
length of the history, and as long as no more than SLACK tokens are taken back, lowering the counters is enough.

Shapes: B batch, H heads, R rounds, n new tokens, L tokens, N buckets per round: one more than there are, for padding.
"""

import torch

SLACK = 32  # tokens that can be added, or taken back, at a time


class BucketMembers:
    """Rings of the latest members.

    Args:
        order, sorted_buckets: (B, H, R, at least L), int32 each: tokens by (bucket, position), of which only the first
            `length` count; padding, in bucket N - 1, and what does not count stand last.
        rule: how far back a token sees.

    Attributes:
        rings: (B, H, R, N * (W + SLACK)) int32, tokens.
        counts: (B, H, R, N) int64, members so far.
    """

    def __init__(self, order, sorted_buckets, length, num_buckets, rule):
        self.steps = torch.arange(-rule.before, 0 if rule.exclude_self else 1, device=order.device)
        self.near = rule.near(self.steps)
        self.depth, self.num_buckets = rule.before + SLACK, num_buckets
        self.high = length  # most tokens ever held: what lies more than SLACK below it may be overwritten
        buckets = sorted_buckets.to(torch.int64)
        self.counts = buckets.new_zeros((*order.shape[:3], num_buckets))
        self.counts.scatter_add_(-1, buckets, (order < length).to(torch.int64))
        # place p of a bucket holds its latest member with a number that is p modulo the depth
        number = self.counts[..., None] - 1
        number = number - (number - torch.arange(self.depth, device=order.device)) % self.depth
        first = (self.counts.cumsum(-1) - self.counts)[..., None]
        slots = (first + number).clamp_(0, order.shape[-1] - 1)
        self.rings = order.gather(-1, slots.flatten(-2))

    @property
    def _first_buckets(self):
        """(B, H, R, 1): number of bucket 0 when all of them are counted through."""
        return torch.arange(0, self.counts.numel(), self.num_buckets, device=self.counts.device).view(
            *self.counts.shape[:3], 1
        )

    def add(self, buckets, start):
        """Adds at most SLACK tokens, numbered from `start`; buckets: (B, H, R, n).

        Returns:
            members, seen: (B, H, R, n, K), the latest members of each token's bucket, and whether the token sees them.
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
        wanted = rank[..., None] + self.steps
        seen = (wanted >= 0) & self.near
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
