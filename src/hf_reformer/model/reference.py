"""Every attention of this package once more, dense and slow: the truth that the fast paths are tested against.

Nothing here is imported by the model. Each function builds, for every query i, the multiset of keys it may look at as a
table of counts N_ij, and takes one softmax over that multiset with ordinary autograd. Memory is O(R L^2). Meant for
float64.

Shapes: B batch, H heads, R hash rounds, L length, D head size, S half the sum of the bucket factors.

From the paper (arXiv 2001.04451) to counts. Eq. 2 and 3 write attention over a set P_i,

    o_i = sum_j exp(q_i . k_j - m(j, P_i) - z(i, P_i)) v_j,    m = 0 where j is in P_i and infinity where it is not.

Several rounds (eq. 6, appendix A eq. 13 to 16) are merged as o_i = sum_r exp(z(i, P_i^(r)) - z(i, P_i)) o_i^(r). Put
the per-round outputs in and the z(i, P_i^(r)) cancel: what is left is a single softmax in which a key counts as often
as it is met, so only N_ij = sum_r N_ij^(r) matters. Eq. 16's term log N_ij makes each key count once: N_ij becomes 1.
Eq. 16's 1e5 at i = j is, in exact arithmetic, "itself only where nothing else is visible in any round".
"""

import torch
import torch.nn.functional as F

LSH_NORM_EPSILON = 1e-6


def hash_buckets(vectors_BHLD, rotations, num_buckets):
    """Bucket numbers h(x) = argmax([xR ; -xR]) of the paper's section 2, one per round: (B, H, R, L), int64.

    `rotations` is (H, D, R, S), or (B, H, D, R, S) for one rotation per example. `num_buckets` is an even integer or a
    sequence of even factors; several factors are hashed one by one and combined, the first one least significant.
    """
    factors = [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)
    vectors_BHLD = vectors_BHLD.detach()
    if rotations.dim() == 4:
        rotations = rotations.unsqueeze(0).expand(vectors_BHLD.shape[0], *rotations.shape)
    if factors == [1]:
        shape = (*vectors_BHLD.shape[:2], rotations.shape[3], vectors_BHLD.shape[2])
        return torch.zeros(shape, dtype=torch.long, device=vectors_BHLD.device)
    rotated_BHRLS = torch.einsum("bhld,bhdrs->bhrls", vectors_BHLD, rotations)
    buckets_BHRL, start, product = 0, 0, 1
    for factor in factors:
        part = rotated_BHRLS[..., start : start + factor // 2]
        buckets_BHRL = buckets_BHRL + product * torch.cat([part, -part], dim=-1).argmax(dim=-1)
        start, product = start + factor // 2, product * factor
    return buckets_BHRL


def ring_counts(buckets_BHRL, *, chunk_length, num_chunks_before, num_chunks_after):
    """How often query i meets key j in each round of a published "lsh" layer: N^(r)_ij, (B, H, R, L, L), int64.

    The R * L (round, token) slots, sorted by round, bucket and position, form one ring cut into chunks. A query meets
    every slot of its own chunk and of the neighbouring ones (eq. 5).

    Differs from the paper, as Trax and transformers do: no same-bucket condition, and the ring goes on across rounds,
    so the first chunk of a round looks back at the last chunk of the round before it (and the first at the very last).
    A neighbour further away than the ring is long is the chunk itself.
    """
    batch, heads, rounds, length = buckets_BHRL.shape
    num_slots = rounds * length
    if num_slots % chunk_length:
        raise ValueError(f"{rounds} rounds of {length} tokens must be a multiple of chunk_length {chunk_length}")
    order_BHRL = torch.argsort(buckets_BHRL, dim=-1, stable=True)
    rank_BHRL = torch.argsort(order_BHRL, dim=-1)
    window_SS = _ring_window(num_slots, chunk_length, num_chunks_before, num_chunks_after, buckets_BHRL.device)
    token_of_slot_BHSL = F.one_hot(order_BHRL.reshape(batch, heads, num_slots), length)
    met_BHSL = (window_SS.double() @ token_of_slot_BHSL.double()).long()
    met_BHRLL = met_BHSL.reshape(batch, heads, rounds, length, length)
    return met_BHRLL.gather(3, rank_BHRL.unsqueeze(-1).expand_as(met_BHRLL))


def _ring_window(num_slots, chunk_length, num_chunks_before, num_chunks_after, device):
    """How often a slot looks at another on a ring of slots cut into chunks: (S, S), int64."""
    num_chunks = num_slots // chunk_length
    seen = torch.zeros(num_chunks, num_chunks, dtype=torch.long, device=device)
    for chunk in range(num_chunks):
        for step in range(-num_chunks_before, num_chunks_after + 1):
            seen[chunk, (chunk + step) % num_chunks if abs(step) < num_chunks else chunk] += 1
    chunk_of_slot = torch.arange(num_slots, device=device) // chunk_length
    return seen[chunk_of_slot][:, chunk_of_slot]


def strict_counts(buckets_BHRL, *, window_before, window_after, attention_mask=None):
    """The sets P_i^(r) of a strict layer: 1 where query i sees key j in round r, else 0, (B, H, R, L, L), int64.

    Real tokens are ranked by (bucket, position). A query sees the keys of its own bucket (eq. 4) at most
    `window_before` ranks before it and `window_after` ranks after it, itself included. Padding has no rank: it sees
    nobody and nobody sees it.
    """
    batch, heads, rounds, length = buckets_BHRL.shape
    real_BL = _as_bool(attention_mask, buckets_BHRL)
    counts = buckets_BHRL.new_zeros(batch, heads, rounds, length, length, dtype=torch.long)
    for b in range(batch):
        positions = real_BL[b].nonzero().squeeze(-1)
        buckets_HRN = buckets_BHRL[b][:, :, positions]
        order_HRN = torch.argsort(buckets_HRN, dim=-1, stable=True)
        rank_HRN = torch.argsort(order_HRN, dim=-1)
        distance_HRNN = rank_HRN.unsqueeze(-1) - rank_HRN.unsqueeze(-2)
        same_bucket = buckets_HRN.unsqueeze(-1) == buckets_HRN.unsqueeze(-2)
        seen = same_bucket & (distance_HRNN <= window_before) & (distance_HRNN >= -window_after)
        counts[b][:, :, positions[:, None], positions[None, :]] = seen.long()
    return counts


def dense_lsh_attention(
    qk_BHLD,
    v_BHLD,
    buckets_BHRL,
    *,
    chunk_length,
    num_chunks_before,
    num_chunks_after,
    causal,
    attention_mask=None,
    strict,
    allow_duplicate_attention=True,
    padded_length=None,
):
    """LSH attention with shared queries and keys, paper eq. 2 to 6 and 13 to 16: (B, H, L, D).

    `strict=True` is "strict_lsh": own bucket only, by rank. `strict=False` is the published "lsh": chunks on a ring,
    for which `padded_length` appends masked tokens, as the model does to reach a multiple of its chunk lengths; an
    input no longer than one chunk is attended to in full. `attention_mask` (B, L) is true or 1 at real tokens; the
    published type sorts the others into a bucket of their own after all other buckets.
    """
    if strict:
        counts_BHRLL = strict_counts(
            buckets_BHRL,
            window_before=chunk_length * num_chunks_before,
            window_after=chunk_length * num_chunks_after,
            attention_mask=attention_mask,
        )
        return _attend_to_others(qk_BHLD, v_BHLD, counts_BHRLL, causal, attention_mask, allow_duplicate_attention)

    length = qk_BHLD.shape[2]
    (qk_BHLD, v_BHLD), attention_mask = _pad([qk_BHLD, v_BHLD], attention_mask, padded_length)
    buckets_BHRL = F.pad(buckets_BHRL, (0, qk_BHLD.shape[2] - length))
    if attention_mask is not None:
        real_BL = _as_bool(attention_mask, buckets_BHRL)
        buckets_BHRL = torch.where(real_BL[:, None, None, :], buckets_BHRL, buckets_BHRL.max() + 1)
    if qk_BHLD.shape[2] <= chunk_length:
        counts_BHRLL = _everything(qk_BHLD).unsqueeze(2)
    else:
        counts_BHRLL = ring_counts(
            buckets_BHRL,
            chunk_length=chunk_length,
            num_chunks_before=num_chunks_before,
            num_chunks_after=num_chunks_after,
        )
    out = _attend_to_others(qk_BHLD, v_BHLD, counts_BHRLL, causal, attention_mask, allow_duplicate_attention)
    return out[:, :, :length]


def dense_local_attention(
    q_BHLD,
    k_BHLD,
    v_BHLD,
    *,
    chunk_length,
    num_chunks_before,
    num_chunks_after,
    causal,
    attention_mask=None,
    strict,
    padded_length=None,
):
    """Local attention, eq. 2 and 3 over a window by position; a token sees itself: (B, H, L, D).

    `strict=True` is "strict_local": the `chunk_length * num_chunks_before` real tokens before, and correspondingly
    after. `strict=False` is the published "local": own chunk and its neighbours on a ring of chunks, so that without a
    causal mask the first chunk sees the last; `padded_length` and short inputs as in `dense_lsh_attention`.
    """
    batch, heads, length, _ = q_BHLD.shape
    if strict:
        counts_BHRLL = strict_counts(
            q_BHLD.new_zeros(batch, heads, 1, length, dtype=torch.long),
            window_before=chunk_length * num_chunks_before,
            window_after=chunk_length * num_chunks_after,
            attention_mask=attention_mask,
        )
        return _attend(_scores(q_BHLD, k_BHLD), v_BHLD, _visible(counts_BHRLL, causal, attention_mask))

    (q_BHLD, k_BHLD, v_BHLD), attention_mask = _pad([q_BHLD, k_BHLD, v_BHLD], attention_mask, padded_length)
    counts_BHRLL = _everything(q_BHLD).unsqueeze(2)
    if q_BHLD.shape[2] > chunk_length:
        counts_BHRLL = counts_BHRLL * _ring_window(
            q_BHLD.shape[2], chunk_length, num_chunks_before, num_chunks_after, q_BHLD.device
        )
    return _attend(_scores(q_BHLD, k_BHLD), v_BHLD, _visible(counts_BHRLL, causal, attention_mask))[:, :, :length]


def dense_full_attention(q_BHLD, k_BHLD, v_BHLD, *, causal, attention_mask=None):
    """Textbook attention softmax(q k^T / sqrt(D)) v (the paper's eq. 1), a token sees itself: (B, H, L, D)."""
    counts_BHRLL = _everything(q_BHLD).unsqueeze(2)
    return _attend(_scores(q_BHLD, k_BHLD), v_BHLD, _visible(counts_BHRLL, causal, attention_mask))


def dense_full_shared_qk_attention(qk_BHLD, v_BHLD, *, causal, attention_mask=None):
    """What LSH approximates: shared queries and keys, everything but itself (itself if alone): (B, H, L, D)."""
    counts_BHRLL = _everything(qk_BHLD).unsqueeze(2)
    return _attend_to_others(qk_BHLD, v_BHLD, counts_BHRLL, causal, attention_mask, True)


def _attend_to_others(qk_BHLD, v_BHLD, counts_BHRLL, causal, attention_mask, allow_duplicate_attention):
    """Attention with k_j = q_j / |q_j| in which a token sees itself only where it sees nothing else (eq. 16)."""
    mean_square = qk_BHLD.pow(2).mean(dim=-1, keepdim=True)
    k_BHLD = qk_BHLD / torch.sqrt(mean_square + LSH_NORM_EPSILON)
    counts_BHLL = _visible(counts_BHRLL, causal, attention_mask)
    if not allow_duplicate_attention:
        counts_BHLL = counts_BHLL.clamp(max=1)
    itself = torch.eye(qk_BHLD.shape[2], dtype=torch.bool, device=qk_BHLD.device)
    others_BHLL = counts_BHLL.masked_fill(itself, 0)
    alone_BHL1 = (others_BHLL.sum(dim=-1, keepdim=True) == 0).long()
    return _attend(_scores(qk_BHLD, k_BHLD), v_BHLD, others_BHLL + alone_BHL1 * itself.long())


def _attend(scores_BHLL, v_BHLD, counts_BHLL):
    """Softmax over the multiset in which key j occurs counts_ij times; a query that sees nothing gets zeros."""
    seen = counts_BHLL > 0
    sees_nothing = ~seen.any(dim=-1, keepdim=True)
    top_BHL1 = scores_BHLL.detach().masked_fill(~seen, -torch.inf).amax(dim=-1, keepdim=True)
    exponents = (scores_BHLL - top_BHL1.masked_fill(sees_nothing, 0.0)).masked_fill(~seen, -torch.inf)
    weights_BHLL = counts_BHLL * torch.exp(exponents)
    return weights_BHLL @ v_BHLD / (weights_BHLL.sum(dim=-1, keepdim=True) + sees_nothing)


def _scores(q_BHLD, k_BHLD):
    return q_BHLD @ k_BHLD.transpose(-1, -2) / q_BHLD.shape[-1] ** 0.5


def _everything(x_BHLD):
    batch, heads, length, _ = x_BHLD.shape
    return x_BHLD.new_ones(batch, heads, length, length, dtype=torch.long)


def _visible(counts_BHRLL, causal, attention_mask):
    """N_ij over all rounds, without the future (causal) and without padding: (B, H, L, L)."""
    counts_BHLL = counts_BHRLL.sum(dim=2)
    if causal:
        counts_BHLL = counts_BHLL.tril()
    return counts_BHLL * _as_bool(attention_mask, counts_BHLL)[:, None, None, :].long()


def _as_bool(attention_mask, like):
    """(B, L) bool; without a mask all true, B and L being the first and the last size of `like`."""
    if attention_mask is None:
        return like.new_ones(like.shape[0], like.shape[-1], dtype=torch.bool)
    return attention_mask.bool()


def _pad(tensors_BHLD, attention_mask, padded_length):
    """Append masked zero rows up to `padded_length` (None or the length itself: nothing to do)."""
    extra = 0 if padded_length is None else padded_length - tensors_BHLD[0].shape[2]
    if extra == 0:
        return tensors_BHLD, attention_mask
    mask = F.pad(_as_bool(attention_mask, tensors_BHLD[0][..., 0]), (0, extra))
    return [F.pad(tensor, (0, 0, 0, extra)) for tensor in tensors_BHLD], mask
