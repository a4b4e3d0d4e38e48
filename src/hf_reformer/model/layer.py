"""A layer of the Reformer, in the names of transformers' checkpoints: attention F and feed-forward G between two streams.

y1 = x1 + F(x2), y2 = x2 + G(y1) (paper eq. 9). Shapes: B batch, L length, H heads, D head size.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from .attention import ATTENTION_CLASSES, SelfAttentionOutput
from .attention_cross import CrossAttention
from .configuration_reformer import LOCAL_LAYERS
from .dropout import Dropout
from .reversible import add_half, mixes, on_grid, widened
from .tokenwise import MANY_TOKENS, fitting_tokens, tokenwise
from .tracing import tracing


@dataclass(frozen=True)
class Context:
    """What all layers of a forward pass are given beside the streams.

    Attributes:
        real_tokens: (B, L) bool, False for padding, or None.
        num_hashes: rounds of hashing.
        output_attentions: hand out the probabilities.
        cache: of the layer, which holds the tokens before these and is added to, or None.
        rotations: the layer's, or None where it does not hash.
        documents: (B, L) int32, the document of each token of packed rows, or None.
        memory: (B, S, hidden), an encoder's output that cross-attention reads, or None.
        real_memory: (B, S) bool, False where that is padding, or None.
        shards: `sequence.Shards` where the streams are those of a shard of the L tokens, or None.
    """

    real_tokens: torch.Tensor | None = None
    num_hashes: int = 1
    output_attentions: bool = False
    cache: Any = None
    rotations: torch.Tensor | None = None
    documents: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    real_memory: torch.Tensor | None = None
    shards: Any = None

    def of(self, self_attention, x):
        """The same with the layer's rotations: those of its cache, which everything there was hashed with, or new ones."""
        rotations = None if self.cache is None else self.cache.rotations
        if rotations is None:
            with nullcontext() if self.shards is None else self.shards.sequence.drawing_alike():
                rotations = self_attention.sample_rotations(self.num_hashes, x.device, x.dtype)
        if self.cache is not None:
            self.cache.rotations = rotations
        return replace(self, rotations=rotations)


class StreamLayerNorm(nn.LayerNorm):
    """Layer norm of (..., hidden) in the type of its weights: the streams may be float32 and the halves of another type."""

    tokenwise = True

    def forward(self, hidden_states):
        return super().forward(hidden_states.to(self.weight.dtype))


class Residual(nn.Module):
    """The end of a half, dense and dropout: what is added to a stream, on the grid with `exact_reversible`.

    The streams then are multiples of one power of two throughout, as they are in half precision.
    """

    tokenwise = True

    def __init__(self, config, inputs, bias):
        super().__init__()
        self.exact = config.exact_reversible
        self.dense = nn.Linear(inputs, config.hidden_size, bias=bias)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states):
        output = self.dropout(self.dense(hidden_states))
        return on_grid(output) if self.exact else output


class ReformerSelfOutput(Residual):
    """Heads (B, L, H * D) -> (B, L, hidden), without bias."""

    def __init__(self, config):
        super().__init__(config, config.num_attention_heads * config.attention_head_size, bias=False)


class ReformerAttention(nn.Module):
    """Layer norm, self-attention, output projection: F of the layer. All but the last is its core, which mixes tokens."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = ATTENTION_CLASSES[config.attn_layers[layer_idx]](config, layer_idx)
        self.output = ReformerSelfOutput(config)

    def forward(self, hidden_states, context):
        """(B, L, hidden) -> `SelfAttentionOutput`, its `hidden_states` (B, L, hidden)."""
        core = self.core(hidden_states, context)
        return SelfAttentionOutput(self.output(core.hidden_states), *core[1:])

    def core(self, hidden_states, context, routing=None, last=0):
        """(B, L, hidden) -> `SelfAttentionOutput`, its `hidden_states` (B, L, H * D). `routing`: of an earlier call with the
        same tokens, which then are not hashed again. `last`: only so many tokens attend, the last (0: all)."""
        modules, hidden = (self.layer_norm, self.self_attention), hidden_states.shape[2]
        if (step := self._segment(hidden_states, context)) > 0:
            halo = self.self_attention.before * self.self_attention.chunk_length
            return SelfAttentionOutput(
                tokenwise(_attend_alone, modules, hidden_states, step=step, halo=halo), None, None
            )
        vectors, shards = tokenwise(_project, modules, hidden_states, numbers=hidden), context.shards
        if shards is not None:
            vectors, context = shards.to_rows(vectors), shards.of_rows(context)
        attended = self.self_attention(
            vectors, cache=context.cache, rotations=context.rotations, output_attentions=context.output_attentions,
            real_tokens=context.real_tokens, documents=context.documents, routing=routing, keep_last=last,
        )  # fmt: skip
        return attended if shards is None else attended._replace(hidden_states=shards.to_tokens(attended.hidden_states))

    def _segment(self, hidden_states, context):
        """Tokens at a time in which causal local attention is worked on: a long input needs no more than its window, so that
        queries, keys and values never exist all at once. 0: all at once, which is faster below `MANY_TOKENS`.

        Whole chunks, more than one window (else the ring of a segment would be shorter than the window), and four times
        what is read before them, so that this costs a fourth at most.
        """
        attention = self.self_attention
        batch, length, hidden = hidden_states.shape
        asked = (
            context.real_tokens is not None
            or context.documents is not None
            or context.output_attentions
            or context.cache is not None
            or context.shards is not None
        )
        if asked or tracing() or batch * length <= MANY_TOKENS:
            return 0
        if not (attention.layer_type in LOCAL_LAYERS and attention.config.is_decoder and attention.after == 0):
            return 0
        fitting = fitting_tokens(hidden_states, hidden, batch) // attention.chunk_length
        return max(1, fitting - attention.before, 4 * attention.before) * attention.chunk_length


def _project(layer_norm, self_attention, hidden_states):
    return self_attention.project(layer_norm(hidden_states))


def _attend_alone(layer_norm, self_attention, hidden_states):
    return self_attention(_project(layer_norm, self_attention, hidden_states)).hidden_states


class ReformerCrossAttention(nn.Module):
    """Layer norm, attention to an encoder's output, output projection: the half between self-attention and feed-forward."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = CrossAttention(config)
        self.output = ReformerSelfOutput(config)

    def forward(self, hidden_states, context):
        """(B, L, hidden) -> `SelfAttentionOutput`, its `hidden_states` (B, L, hidden)."""
        core = self.core(hidden_states, context)
        return SelfAttentionOutput(self.output(core.hidden_states), *core[1:])

    def core(self, hidden_states, context, routing=None, last=0):
        """(B, L, hidden) -> `SelfAttentionOutput`, its `hidden_states` (B, L, H * D)."""
        attended, probabilities = self.cross_attention(
            self.layer_norm(hidden_states),
            context.memory,
            context.real_memory,
            context.cache,
            context.output_attentions,
        )
        return SelfAttentionOutput(attended, None, probabilities)


class ReformerFeedForwardDense(nn.Module):
    """hidden -> inner: dense, dropout, activation (in this order, as Trax does)."""

    tokenwise = True

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.feed_forward_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        return self.activation(self.dropout(self.dense(hidden_states)))


class ReformerFeedForwardOutput(Residual):
    """inner -> hidden."""

    def __init__(self, config):
        super().__init__(config, config.feed_forward_size, bias=True)


class ReformerFeedForward(nn.Module):
    """Layer norm, dense, activation, dense: G of the layer, (B, L, hidden) -> (B, L, hidden), whatever the chunk size."""

    tokenwise = True

    def __init__(self, config):
        super().__init__()
        self.chunk_size = config.chunk_size_feed_forward
        self.inner_size = config.feed_forward_size
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = ReformerFeedForwardDense(config)
        self.output = ReformerFeedForwardOutput(config)

    def chunk_length(self, hidden_states):
        """Tokens of each sequence (B, L, hidden) that are worked on at a time."""
        return self.chunk_size or fitting_tokens(hidden_states, self.inner_size, hidden_states.shape[0])

    def forward(self, hidden_states):
        modules = (self.layer_norm, self.dense, self.output)
        step = self.chunk_length(hidden_states)
        if self.chunk_size == 0 and torch.is_grad_enabled():
            step = hidden_states.shape[1]
        return tokenwise(_feed_forward, modules, hidden_states, step=step)


def _feed_forward(layer_norm, dense, output, hidden_states):
    return output(dense(layer_norm(hidden_states)))


class ReformerLayer(nn.Module):
    """y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1) (paper eq. 9)."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = ReformerAttention(config, layer_idx)
        self.feed_forward = ReformerFeedForward(config)

    @property
    def halves(self):
        """The modules of which each reads one stream and adds to the other, in turn; the first adds to x1."""
        return self.attention, self.feed_forward

    def forward(self, x1, x2, context, way=None):
        """(B, L, hidden) twice -> the same twice, and the attention probabilities or None.

        `way`: computes the same otherwise (`reversible.Place`, `Inference`, `Checkpointed`); None: ordinary autograd.
        """
        x1, x2 = widened(x1), widened(x2)
        context = context.of(self.attention.self_attention, x2)
        return self.compute(x1, x2, context) if way is None else way.run(self, x1, x2, context)

    def bytes_kept(self, dtype, memory=0.0):
        """What ordinary autograd keeps of a token, about: the streams; in the type of the halves both norms, what attention
        takes and gives, and the feed-forward's inner activations before and after the nonlinearity. `memory`: how many
        tokens of an encoder there are for each."""
        attention = self.attention.self_attention
        hidden, vectors = attention.config.hidden_size, attention.heads * attention.head_size
        inner = self.feed_forward.inner_size
        halves = 2 * hidden + (len(attention.projections) + 1) * vectors + 2 * inner
        streams = torch.promote_types(dtype, torch.float32)
        return 2 * hidden * streams.itemsize + halves * dtype.itemsize

    def compute(self, x1, x2, context):
        attended = self.attention(x2, context)
        y1 = x1 + attended.hidden_states
        return y1, x2 + self.feed_forward(y1), attended.attentions


class ReformerDecoderLayer(ReformerLayer):
    """a = x1 + attention(x2), y1 = x2 + cross_attention(a, an encoder's output), y2 = a + feed_forward(y1), as in Trax's
    `Reformer` (and the paper's translation model, section 5)."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.cross_attention = ReformerCrossAttention(config)

    @property
    def halves(self):
        return self.attention, self.cross_attention, self.feed_forward

    def bytes_kept(self, dtype, memory=0.0):
        """The same, and what cross-attention keeps: its norm, queries and outputs, and keys and values of the encoder."""
        cross = self.cross_attention.cross_attention
        kept = cross.config.hidden_size + (2 + 2 * memory) * cross.heads * cross.head_size
        streams = torch.promote_types(dtype, torch.float32).itemsize * cross.config.hidden_size
        return super().bytes_kept(dtype) + kept * dtype.itemsize + streams

    def compute(self, x1, x2, context):
        attended = self.attention(x2, context)
        a = x1 + attended.hidden_states
        read = self.cross_attention(a, context)
        y1 = x2 + read.hidden_states
        return y1, a + self.feed_forward(y1), attended.attentions, read.attentions


_KINDS = {
    "attention": ReformerAttention, "cross_attention": ReformerCrossAttention, "feed_forward": ReformerFeedForward,
}  # fmt: skip


def is_as_built(layer):
    """Whether a layer and its halves compute as they do here, so that their parts may be called in other ways: neither the
    layer nor a half is replaced, wrapped or overridden. (FSDP2 makes a subclass, accelerate wraps `forward`.)"""
    if not isinstance(layer, ReformerLayer):
        return False
    kind = ReformerDecoderLayer if isinstance(layer, ReformerDecoderLayer) else ReformerLayer
    kinds = [(layer, kind), *((getattr(layer, name), _KINDS[name]) for name in _KINDS if hasattr(layer, name))]
    names = ("forward", "compute", "core")
    return all(
        isinstance(part, kind)
        and all(getattr(type(part), name, None) is getattr(kind, name, None) for name in names)
        and ("forward" not in part.__dict__ or hasattr(part, "_hf_hook"))
        for part, kind in kinds
    )


@dataclass(frozen=True)
class Inference:
    """A layer without gradients: halves in pieces that stay in cache, added in the streams' own memory.

    Attributes:
        overwrite: the streams' memory may be written over.
        last: only so many tokens, the last, are wanted of the layer (0: all).
    """

    overwrite: bool = False
    last: int = 0

    def run(self, layer, x1, x2, context):
        halves, streams, attentions = layer.halves, [x1, x2], []
        step = layer.feed_forward.chunk_length(x2)
        for at, half in enumerate(halves):
            to, source = at % 2, streams[1 - at % 2]
            if mixes(half):
                core = half.core(source, context, last=0 if at else self.last)
                attentions.append(core.attentions)
                source, half = core.hidden_states, half.output
            if at == 0:
                streams = [x[:, -self.last :] for x in streams]
            over = streams[to] if self.overwrite or at > 1 else None
            streams[to] = add_half(half, source, streams[to], step, over)
        return *(streams if len(halves) % 2 == 0 else reversed(streams)), *attentions
