"""The self-attention of each layer type: projections around the pure functions of the other modules.

Parameter names are those of transformers: `query_key` and `value` where queries and keys are shared (LSH), else `query`,
`key` and `value`; no biases. Shapes: B batch, L length, H heads, D head size, R hash rounds.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from .attention_chunked import attention_probabilities, chunked_attention
from .attention_full import full_attention
from .attention_layout import Layout
from .attention_traced import traced_attention
from .configuration_reformer import PUBLISHED_LAYERS, STRICT_LAYERS
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
    """What all layer types share. Subclasses name the configuration's prefix for their windows and their dropout."""

    tokenwise = True  # the projections; what mixes tokens is called with all of them
    projections = ("query", "key", "value")
    prefix = "local"

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.attn_layers[layer_idx]
        self.strict = self.layer_type.startswith("strict")
        self.heads, self.head_size = config.num_attention_heads, config.attention_head_size
        self.dropout = getattr(config, f"{self.prefix}_attention_probs_dropout_prob")
        self.chunk_length = getattr(config, f"{self.prefix}_attn_chunk_length")
        self.before = getattr(config, f"{self.prefix}_num_chunks_before")
        self.after = getattr(config, f"{self.prefix}_num_chunks_after")
        for name in self.projections:
            setattr(self, name, nn.Linear(config.hidden_size, self.heads * self.head_size, bias=False))

    def project(self, hidden_states):
        """(B, L, hidden) -> queries, keys (None where shared), values, each (B, L, H, D)."""
        vectors = {n: getattr(self, n)(hidden_states).unflatten(-1, (self.heads, -1)) for n in self.projections}
        return vectors.get("query", vectors.get("query_key")), vectors.get("key"), vectors["value"]

    def forward(self, vectors, cache=None, rotations=None, output_attentions=False, keep_last=0, **arguments):
        """Queries, keys and values as `project` gives them -> `SelfAttentionOutput`. A `cache` (a layer of
        `ReformerCache`) is added to; what it holds already stands before the L tokens. With `keep_last` the empty cache
        takes in all tokens, and only so many of them, the last, attend."""
        if keep_last:
            first, last = zip(*((None, None) if x is None else _split(x, keep_last) for x in vectors), strict=True)
            cache.fill(self, *first, rotations, None)
            return self.forward(last, cache, rotations)
        if cache is not None and cache.get_seq_length() > 0:
            attended, probabilities = cache.attend(self, *vectors, rotations)
            return SelfAttentionOutput(attended.flatten(2), None, probabilities if output_attentions else None)
        if tracing() and cache is None and not output_attentions and self.traceable:
            attended = traced_attention(self, *vectors, arguments.get("real_tokens"), rotations)
            return SelfAttentionOutput(attended.flatten(2), None, None)
        attended = self.attend_all(*vectors, rotations=rotations, output_attentions=output_attentions, **arguments)
        if cache is not None:
            cache.fill(self, *vectors, rotations, attended.routing)
        return attended

    def attend_all(self, q, k, v, real_tokens=None, rotations=None, routing=None, output_attentions=False):
        """Attention over the whole sequence, (B, L, H, D) each -> `SelfAttentionOutput`."""
        raise NotImplementedError

    def sample_rotations(self, num_hashes, device, dtype):
        """Rotations for one forward pass, drawn before anything else is; None for layers that do not hash."""
        return None

    def window_dropout(self, layout, dtype):
        """One dropout mask (M, W) for all windows, or None."""
        if not self.training or self.dropout == 0:
            return None
        ones = torch.ones(layout.chunk_length, layout.chunk_length * layout.window_chunks, device=layout.device)
        return nn.functional.dropout(ones.to(torch.promote_types(dtype, torch.float32)), self.dropout)

    def attend(self, q, k, v, layout, length, output_attentions):
        """Chunked attention over padded vectors (B, layout.length, H, D), cut back to `length` tokens."""
        implementation = self.config._attn_implementation
        attended = chunked_attention(q, k, v, layout, self.window_dropout(layout, v.dtype), implementation)
        probabilities = None
        if output_attentions:
            probabilities = attention_probabilities(q, k, v, layout)
            if layout.length == layout.chunk_length and layout.rounds == 1:
                probabilities = probabilities.squeeze(2)
        return attended[:, :length].flatten(2), probabilities

    def make_layout(self, shape, device, num_hashes=1, **kwargs):
        """Rings and windows for (B, padded L) tokens."""
        batch, length = shape
        chunk, before, after = self.chunk_length, self.before, self.after
        if length <= chunk:  # one chunk holds everything
            chunk, before, after = length, 0, 0
        return Layout(
            batch=batch, length=length, heads=self.heads, rounds=num_hashes, chunk_length=chunk, before=before,
            after=after, causal=self.config.is_decoder, device=device, **kwargs,
        )  # fmt: skip

    def padded_length(self, length):
        """What chunking needs: strict layers pad to their own chunks; published ones as transformers does, below."""
        if self.strict:
            return length if length <= self.chunk_length else math.ceil(length / self.chunk_length) * self.chunk_length
        return published_length(self.config, length)

    def strict_layout(self, routing, exclude_self):
        """The layout of a strict layer whose tokens stand in the order of `routing`."""
        rounds, heads_in_batch, padded = routing.order.shape
        return self.make_layout(
            (heads_in_batch // self.heads, padded), routing.order.device, rounds, exclude_self=exclude_self,
            order=routing.order, bounds=bucket_bounds(routing.sorted_buckets), **self.reach,
            correct_duplicates=exclude_self and not self.config.allow_duplicate_attention,
        )  # fmt: skip

    @property
    def traceable(self):
        """Whether `traced_attention` knows this layer; full attention needs nothing of the kind."""
        return self.layer_type in PUBLISHED_LAYERS + STRICT_LAYERS and self.config.allow_duplicate_attention

    @property
    def reach(self):
        return {"reach_before": self.before * self.chunk_length, "reach_after": self.after * self.chunk_length}


class LocalSelfAttention(ReformerSelfAttention):
    """`"local"`: chunks of the sequence and their neighbours, round its end when bidirectional, as in Trax.

    `"strict_local"`: the `local_num_chunks_before * local_attn_chunk_length` latest tokens (and, bidirectional, as many
    later ones as `local_num_chunks_after` says) and itself. Padding is not counted, wherever it stands.
    """

    def attend_all(self, q, k, v, real_tokens=None, rotations=None, routing=None, output_attentions=False):
        batch, length = v.shape[:2]
        padded = self.padded_length(length)
        q, k, v = (_pad(x, padded) for x in (q, k, v))
        if self.strict and real_tokens is not None:
            if routing is None:
                one_bucket = torch.zeros(batch, 1, 1, padded, dtype=torch.int32, device=v.device)
                routing = _sort(one_bucket.expand(-1, self.heads, -1, -1), _real(real_tokens, v, padded, length), 1)
            layout = self.strict_layout(routing, exclude_self=False)
        elif self.strict:
            bounds = tuple(torch.tensor([[[bound]]], device=v.device) for bound in (0, length - 1))
            layout = self.make_layout((batch, padded), v.device, exclude_self=False, bounds=bounds, **self.reach)
        else:
            real_tokens = _real(real_tokens, v, padded, length)
            layout = self.make_layout((batch, padded), v.device, exclude_self=False, real_tokens=real_tokens)
        attended, probabilities = self.attend(q, k, v, layout, length, output_attentions)
        return SelfAttentionOutput(attended, routing, probabilities)


class LSHSelfAttention(ReformerSelfAttention):
    """`"lsh"`: windows of chunks in the order of (round, bucket, position), as Trax and transformers compute them; up to
    one chunk of tokens attends without hashing.

    `"strict_lsh"`: in each round the `lsh_num_chunks_before * lsh_attn_chunk_length` tokens of the query's own bucket
    that stand before it (and, bidirectional, as many after it as `lsh_num_chunks_after` says).
    """

    projections = ("query_key", "value")
    prefix = "lsh"

    def sample_rotations(self, num_hashes, device, dtype):
        return hash_rotations(self.config, self.layer_type, self.layer_idx, num_hashes, self.training, device, dtype)

    def attend_all(self, q, k, v, real_tokens=None, rotations=None, routing=None, output_attentions=False):
        batch, length = v.shape[:2]
        padded = self.padded_length(length)
        q, v = _pad(q, padded), _pad(v, padded)
        real_tokens = _real(real_tokens, v, padded, length)
        if not self.strict and padded <= self.chunk_length:
            layout = self.make_layout((batch, padded), v.device, exclude_self=True, real_tokens=real_tokens)
        else:
            if routing is None:
                factors = self.config.bucket_factors(self.layer_type)
                routing = _sort(compute_buckets(q, rotations, factors), real_tokens, math.prod(factors))
            layout = self.lsh_layout(routing, real_tokens)
        attended, probabilities = self.attend(q, None, v, layout, length, output_attentions)
        return SelfAttentionOutput(attended, routing, probabilities)

    def lsh_layout(self, routing, real_tokens):
        if self.strict:
            return self.strict_layout(routing, exclude_self=True)
        rounds, heads_in_batch, padded = routing.order.shape
        return self.make_layout(
            (heads_in_batch // self.heads, padded), routing.order.device, rounds, exclude_self=True,
            order=routing.order, real_tokens=real_tokens, correct_duplicates=not self.config.allow_duplicate_attention,
        )  # fmt: skip


class FullSelfAttention(ReformerSelfAttention):
    """`"full"`: ordinary attention, softmax(q k / sqrt(D)) v over all tokens, the baseline."""

    def attend_all(self, q, k, v, real_tokens=None, rotations=None, routing=None, output_attentions=False):
        attended, probabilities = full_attention(
            q, k, v, causal=self.config.is_decoder, real_tokens=real_tokens,
            dropout=self.dropout if self.training else 0.0, output_attentions=output_attentions,
        )  # fmt: skip
        return SelfAttentionOutput(attended.flatten(2), None, probabilities)


class FullSharedQKSelfAttention(FullSelfAttention):
    """`"full_shared_qk"`: an LSH layer's parameters, attending to every token but itself; to itself only where nothing
    else is visible. What LSH approximates (paper, table 2, column "Full")."""

    projections = ("query_key", "value")
    prefix = "lsh"


ATTENTION_CLASSES = {
    "local": LocalSelfAttention,
    "strict_local": LocalSelfAttention,
    "lsh": LSHSelfAttention,
    "strict_lsh": LSHSelfAttention,
    "full": FullSelfAttention,
    "full_shared_qk": FullSharedQKSelfAttention,
}


def _split(x_BLHD, count):
    """All tokens but the last `count`, and those."""
    return x_BLHD.split([x_BLHD.shape[1] - count, count], dim=1)


def _pad(x_BLHD, length):
    """Zeros behind the last token, up to `length`."""
    if x_BLHD is None or x_BLHD.shape[1] == length:
        return x_BLHD
    return nn.functional.pad(x_BLHD, (0, 0, 0, 0, 0, length - x_BLHD.shape[1]))


def _real(real_tokens, like, padded, length):
    """The mask (B, padded) with what was padded marked as such, or None where every token is real."""
    if padded == length:
        return real_tokens
    if real_tokens is None:
        real_tokens = torch.ones(like.shape[0], length, dtype=torch.bool, device=like.device)
    return nn.functional.pad(real_tokens, (0, padded - length), value=False)


def _sort(buckets, real_tokens, num_buckets):
    order, sorted_buckets = sort_by_bucket(buckets, real_tokens, num_buckets)
    return Routing(*(x.permute(2, 0, 1, 3).flatten(1, 2).contiguous() for x in (order, sorted_buckets)))


def published_length(config, length):
    """Length that transformers pads an input to in evaluation: a multiple of all chunk lengths of the model's `"local"`
    and `"lsh"` layers, once it is longer than the smallest of them."""
    chunks = {"local": config.local_attn_chunk_length, "lsh": config.lsh_attn_chunk_length}
    chunks = [chunks[kind] for kind in set(config.attn_layers) if kind in chunks]
    if length <= min(chunks):
        return length
    multiple = math.lcm(*chunks)
    return math.ceil(length / multiple) * multiple
