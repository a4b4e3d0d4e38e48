r"""Which keys a query sees: one rule, for every layer type and for every way to compute it.

Query and key stand in places. What counts is the step from one to the other, and how far the query's bucket reaches:

    sees(step) = -before <= step <= after, left <= step <= right, and step != 0 where no query sees itself.

| layer type | its places | before, after | its bucket |
|---|---|---|---|
| `"local"`, `"lsh"` | positions | FAR, FAR (causal: 0) | the chunks of its window (`Windows`) |
| `"strict_local"` | ranks among the real tokens | as configured (causal: after 0) | the sequence |
| `"strict_lsh"` | ranks in the order of (bucket, position) | as configured (causal: after 0) | its hash bucket |
| `"full"`, `"full_shared_qk"` | positions | FAR, FAR (causal: 0) | the sequence |

Padding stands further off than FAR, or has a bucket of its own. Layers with shared queries and keys see nobody at step 0; a
query that sees nothing at all gets its own value.
"""

from typing import NamedTuple

FAR = 2**30  # steps: no sequence is as long, and what stands further off is seen by nobody
MASKED = 1e30  # subtracted from the score of a key that is not seen; leaves exp(score) at exactly 0


class Rule(NamedTuple):
    """Steps to the left and to the right at most, and whether a query is hidden from itself.

    A new rule is a class derived from this one with a `near` of its own: all else follows from it.
    """

    before: int = FAR
    after: int = FAR
    exclude_self: bool = False

    def near(self, step):
        """What the step alone decides; step: integers or floats of any shape -> bool."""
        near = (step >= -self.before) & (step <= self.after)
        return near & (step != 0) if self.exclude_self else near

    def sees(self, step, left=None, right=None):
        """left, right: steps from the query to the first and to the last place of its bucket, where that has ends."""
        seen = self.near(step)
        seen = seen if left is None else seen & (step >= left)
        return seen if right is None else seen & (step <= right)

    @property
    def is_interval(self):
        """Whether a query sees all steps between two, its own among them."""
        return not self.exclude_self and type(self).near is Rule.near

    def subtract_unseen_(self, scores, keys, queries):
        """scores -= MASKED where a query does not see a key, by arithmetic: several times faster than comparisons on a CPU.

        Args:
            scores: (..., M, W), floats.
            keys, queries: their places, (..., 1, W) and (..., M, 1); those of padding infinite.
        """
        if type(self).near is not Rule.near:
            scores.masked_fill_(~self.sees(keys - queries), -MASKED)
            return
        earlier = int(self.exclude_self and self.after == 0)
        scores.sub_((keys - (queries + (self.after - earlier))).clamp_(0, 1), alpha=MASKED)
        if self.before < FAR:
            scores.sub_(((queries - self.before) - keys).clamp_(0, 1), alpha=MASKED)
        if self.exclude_self and not earlier:
            scores.sub_((keys - queries).abs_().neg_().add_(1).clamp_(0, 1), alpha=MASKED)
