"""The self-attention of each layer type: projections around the pure functions of the other modules.

Parameter names are those of transformers: `query_key` and `value` where queries and keys are shared (LSH), else `query`,
`key` and `value`; no biases. A new layer type is a class in `ATTENTION_CLASSES`, made from the nearest one here, with a `rule`
of its own: attention, its gradients, decoding over a cache and exported graphs follow from that.

Shapes: B batch, L length, H heads, D head size, R hash rounds.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from .attention_chunked import attention_probabilities, chunked_attention
from .attention_full import full_attention
from .attention_layout import Layout, Rings, Windows
from .attention_rule import FAR, Rule
from .attention_traced import traced_attention
from .configuration_checks import ATTN_LAYERS
from .hashing import compute_buckets, hash_rotations
from .sorting import bucket_bounds, sort_by_bucket
from .tracing import tracing


class Routing(NamedTuple):
    """Which token stands in which slot, (R, B * H, L) int32 each: kept for backward, which neither hashes nor sorts."""

    order: torch.Tensor
    sorted_buckets: torch.Tensor


class SelfAttentionOutput(NamedTuple):
    hidden_states: torch.Tensor  # (B, L, H * D), heads side by side
    routing: Routing | None
    attentions: torch.Tensor | None


class ReformerSelfAttention(nn.Module):
    """What all layer types share. The configuration is read at each call, so that a field changed in between counts."""

    tokenwise = True  # the projections; what mixes tokens is called with all of them
    projections = ("query", "key", "value")
    prefix = "local"  # of the fields of the configuration for windows and dropout
    hashes = False
    strict = False  # steps are counted in slots, of one bucket; else in positions
    chunked = True

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.attn_layers[layer_idx]
        self.heads, self.head_size = config.num_attention_heads, config.attention_head_size
        for name in self.projections:
            setattr(self, name, nn.Linear(config.hidden_size, self.heads * self.head_size, bias=False))

    @property
    def shared(self):
        """Whether the queries, normalised, are the keys."""
        return "key" not in self.projections

    @property
    def chunk_length(self):
        return getattr(self.config, f"{self.prefix}_attn_chunk_length")

    @property
    def before(self):
        return getattr(self.config, f"{self.prefix}_num_chunks_before")

    @property
    def after(self):
        return getattr(self.config, f"{self.prefix}_num_chunks_after")

    @property
    def dropout(self):
        return getattr(self.config, f"{self.prefix}_attention_probs_dropout_prob") if self.training else 0.0

    @property
    def rule(self):
        before = self.before * self.chunk_length if self.strict else FAR
        after = self.after * self.chunk_length if self.strict else FAR
        return Rule(before, 0 if self.config.is_decoder else after, exclude_self=self.shared)

    def project(self, hidden_states):
        """(B, L, hidden) -> queries, keys (None where shared), values, each (B, L, H, D)."""
        vectors = {n: getattr(self, n)(hidden_states).unflatten(-1, (self.heads, -1)) for n in self.projections}
        return vectors.get("query", vectors.get("query_key")), vectors.get("key"), vectors["value"]

    def sample_rotations(self, num_hashes, device, dtype):
        """Rotations for one forward pass, drawn before anything else is; None for layers that do not hash."""
        return None

    def forward(
        self, vectors, cache=None, rotations=None, output_attentions=False, keep_last=0, real_tokens=None, routing=None,
        documents=None,
    ):  # fmt: skip
        """Queries, keys and values as `project` gives them -> `SelfAttentionOutput`, by the way that fits the call.

        Args:
            cache: a layer of `ReformerCache`, which is added to; what it holds stands before the L tokens.
            rotations: as `sample_rotations` gives them.
            keep_last: see `prefill`.
            real_tokens: (B, L) bool, False for padding, or None. With a filled cache the cache knows.
            routing: what an earlier call with these queries gave.
            documents: (B, L) int32, of packed rows, whose tokens do not see each other across documents, or None.
        """
        if cache is None and tracing() and not output_attentions:
            return self.traced(vectors, rotations, real_tokens)
        if cache is None:
            return self.over_all(vectors, rotations, real_tokens, routing, output_attentions, documents)
        if cache.get_seq_length() == 0:
            return self.prefill(vectors, cache, rotations, real_tokens, output_attentions, keep_last)
        return self.decode(vectors, cache, rotations, output_attentions)

    def over_all(
        self, vectors, rotations=None, real_tokens=None, routing=None, output_attentions=False, documents=None
    ):
        """Every token attends: block by block, with a backward of its own."""
        (q, k, v), length = vectors, vectors[2].shape[1]
        padded = self.padded_length(length)
        q, k, v = (pad(x, padded) for x in vectors)
        layout, routing = self.layout(q, length, rotations, real_tokens, routing, documents)
        dropout_mask = self.window_dropout(layout.windows.chunk, layout.windows.slots, v)
        attended = chunked_attention(q, k, v, layout, dropout_mask, self.config._attn_implementation)
        probabilities = attention_probabilities(q, k, v, layout) if output_attentions else None
        if output_attentions and padded == layout.windows.chunk and layout.rings.rounds == 1:
            probabilities = probabilities.squeeze(2)
        return SelfAttentionOutput(attended[:, :length].flatten(2), routing, probabilities)

    def traced(self, vectors, rotations=None, real_tokens=None):
        """The same as one expression, for graphs with an open length and for `torch.func`."""
        return SelfAttentionOutput(traced_attention(self, *vectors, real_tokens, rotations).flatten(2), None, None)

    def prefill(self, vectors, cache, rotations=None, real_tokens=None, output_attentions=False, keep_last=0):
        """The first piece for an empty cache. With `keep_last` only so many tokens attend, the last."""
        if keep_last:
            start = vectors[2].shape[1] - keep_last
            cache.fill(self, *(None if x is None else x[:, :start] for x in vectors), rotations, None)
            return self.decode([None if x is None else x[:, start:] for x in vectors], cache, rotations)
        attended = self.over_all(vectors, rotations, real_tokens, None, output_attentions)
        cache.fill(self, *vectors, rotations, attended.routing)
        return attended

    def decode(self, vectors, cache, rotations=None, output_attentions=False):
        """A piece that follows what is cached."""
        attended, probabilities = cache.attend(self, *vectors, rotations)
        return SelfAttentionOutput(attended.flatten(2), None, probabilities if output_attentions else None)

    # --- for layers that work in chunks

    def layout(self, q, length, rotations, real_tokens, routing, documents=None):
        """The `Layout` for queries (B, padded length, H, D), `length` of them tokens, and the routing (or None)."""
        raise NotImplementedError

    def make_layout(self, q, rounds=1, order=None, **others):
        batch, padded, heads, _ = q.shape
        rings = Rings(batch, padded, heads, q.device, rounds, order, joined=not self.strict)
        windows = Windows(self.chunk_length, self.before, self.after)
        if padded <= self.chunk_length:  # one chunk holds everything
            windows = Windows(padded, 0, 0)
        return Layout(rings, windows, self.rule, **others)

    def routed_layout(self, q, routing, real_tokens, packed=False):
        """The layout of tokens that stand in the order of `routing`; in packed rows each may be a bucket."""
        once = self.hashes and not self.config.allow_duplicate_attention
        where = {"real_tokens": real_tokens}
        if self.strict:
            buckets = math.prod(self.config.bucket_factors(self.layer_type)) if self.hashes else 1
            buckets = q.shape[1] if packed else buckets + 1
            where = {"bounds": bucket_bounds(routing.sorted_buckets), "buckets": buckets}
        return self.make_layout(q, len(routing.order), routing.order, correct_duplicates=once, **where)

    def sort(self, buckets, num_buckets, real_tokens, documents):
        """Tokens in the order of (document, bucket, position), padding last."""
        if documents is not None:  # the highest digit of the bucket
            missing = buckets.shape[3] - documents.shape[1]
            documents = nn.functional.pad(documents, (0, missing))[:, None, None]
            buckets = buckets + documents.to(torch.int64) * num_buckets
            num_buckets = num_buckets * buckets.shape[3]
        return _sort(buckets, real_tokens, num_buckets)

    def window_dropout(self, chunk, slots, like):
        """One dropout mask (M, W) for all windows, or None."""
        if self.dropout == 0:
            return None
        ones = torch.ones(chunk, slots, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        return nn.functional.dropout(ones, self.dropout)

    def padded_length(self, length):
        """What chunking needs: strict layers pad to their own chunks; published ones as transformers does, below."""
        if self.strict:
            return length if length <= self.chunk_length else math.ceil(length / self.chunk_length) * self.chunk_length
        return published_length(self.config, length)


class LocalSelfAttention(ReformerSelfAttention):
    """`"local"`: chunks of the sequence and their neighbours, round its end when bidirectional, as in Trax."""

    def layout(self, q, length, rotations, real_tokens, routing, documents=None):
        return self.make_layout(q, real_tokens=_real(real_tokens, q, length)), None


class StrictLocalSelfAttention(ReformerSelfAttention):
    """`"strict_local"`: the `local_num_chunks_before * local_attn_chunk_length` latest tokens (and, bidirectional, as many
    later ones as `local_num_chunks_after` says) and itself. Padding is not counted, wherever it stands."""

    strict = True

    def layout(self, q, length, rotations, real_tokens, routing, documents=None):
        if real_tokens is None and documents is None:
            return self.make_layout(q, bounds=(0, length - 1)), None
        if routing is None:
            one_bucket = torch.zeros((q.shape[0], q.shape[2], 1, q.shape[1]), dtype=torch.int32, device=q.device)
            routing = self.sort(one_bucket, 1, _real(real_tokens, q, length), documents)
        return self.routed_layout(q, routing, None, documents is not None), routing


class LSHSelfAttention(ReformerSelfAttention):
    """`"lsh"`: windows of chunks in the order of (round, bucket, position), as Trax and transformers compute them; up to
    one chunk of tokens attends without hashing."""

    projections = ("query_key", "value")
    prefix = "lsh"
    hashes = True

    def sample_rotations(self, num_hashes, device, dtype):
        return hash_rotations(self.config, self.layer_type, self.layer_idx, num_hashes, self.training, device, dtype)

    def layout(self, q, length, rotations, real_tokens, routing, documents=None):
        real_tokens = _real(real_tokens, q, length)
        if not self.strict and q.shape[1] <= self.chunk_length:
            return self.make_layout(q, real_tokens=real_tokens), routing
        if routing is None:
            factors = self.config.bucket_factors(self.layer_type)
            routing = self.sort(compute_buckets(q, rotations, factors), math.prod(factors), real_tokens, documents)
        return self.routed_layout(q, routing, real_tokens, documents is not None), routing


class StrictLSHSelfAttention(LSHSelfAttention):
    """`"strict_lsh"`: in each round the `lsh_num_chunks_before * lsh_attn_chunk_length` tokens of the query's own bucket
    that stand before it (and, bidirectional, as many after it as `lsh_num_chunks_after` says)."""

    strict = True


class FullSelfAttention(ReformerSelfAttention):
    """`"full"`: ordinary attention, softmax(q k / sqrt(D)) v over all tokens, the baseline."""

    chunked = False

    def over_all(
        self, vectors, rotations=None, real_tokens=None, routing=None, output_attentions=False, documents=None
    ):
        attended, probabilities = full_attention(
            *vectors, self.rule, real_tokens=real_tokens, documents=documents, dropout=self.dropout,
            output_attentions=output_attentions,
        )  # fmt: skip
        return SelfAttentionOutput(attended.flatten(2), None, probabilities)

    def traced(self, vectors, rotations=None, real_tokens=None):
        return self.over_all(vectors, rotations, real_tokens)


class FullSharedQKSelfAttention(FullSelfAttention):
    """`"full_shared_qk"`: an LSH layer's parameters, attending to every token but itself; to itself only where nothing
    else is visible. What LSH approximates (paper, table 2, column "Full")."""

    projections = ("query_key", "value")
    prefix = "lsh"


ATTENTION_CLASSES = {
    "local": LocalSelfAttention,
    "strict_local": StrictLocalSelfAttention,
    "lsh": LSHSelfAttention,
    "strict_lsh": StrictLSHSelfAttention,
    "full": FullSelfAttention,
    "full_shared_qk": FullSharedQKSelfAttention,
}


def add_layer_type(name, attention_class):
    """A further entry for `config.attn_layers`: a `ReformerSelfAttention`, most simply one of the above with another `rule`,
    which then has forward, backward, cache and export."""
    ATTENTION_CLASSES[name] = attention_class
    if name not in ATTN_LAYERS:
        ATTN_LAYERS.append(name)


def pad(x_BLHD, length):
    """Zeros behind the last token, up to `length`."""
    if x_BLHD is None or x_BLHD.shape[1] == length:
        return x_BLHD
    return nn.functional.pad(x_BLHD, (0, 0, 0, 0, 0, length - x_BLHD.shape[1]))


def _real(real_tokens, q_BLHD, length):
    """The mask (B, padded length) with what was padded marked as such, or None where every token is real."""
    batch, padded = q_BLHD.shape[:2]
    if padded == length:
        return real_tokens
    if real_tokens is None:
        real_tokens = torch.ones(batch, length, dtype=torch.bool, device=q_BLHD.device)
    return nn.functional.pad(real_tokens, (0, padded - length), value=False)


def _sort(buckets, real_tokens, num_buckets):
    order, sorted_buckets = sort_by_bucket(buckets, real_tokens, num_buckets)
    return Routing(*(x.permute(2, 0, 1, 3).flatten(1, 2).contiguous() for x in (order, sorted_buckets)))


def published_length(config, length):
    """Length that transformers pads an input to in evaluation: a multiple of all chunk lengths of the model's `"local"`
    and `"lsh"` layers, once it is longer than the smallest of them."""
    kinds = [ATTENTION_CLASSES[kind] for kind in config.attn_layers]
    chunks = {getattr(config, f"{k.prefix}_attn_chunk_length") for k in kinds if k.chunked and not k.strict}
    if length <= min(chunks):
        return length
    multiple = math.lcm(*chunks)
    return math.ceil(length / multiple) * multiple
