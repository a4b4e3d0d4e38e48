"""Embeddings, layers and their stack, in the names of transformers' checkpoints. Shapes: B batch, L length."""

from typing import NamedTuple

import torch
from torch import nn

from .attention import ATTENTION_CLASSES, SelfAttentionOutput
from .configuration_reformer import LOCAL_LAYERS, PUBLISHED_LAYERS
from .dropout import Dropout
from .embeddings import AxialPositionEmbeddings, PositionEmbeddings
from .feed_forward import ReformerFeedForward
from .layer_norm import StreamLayerNorm
from .recompute import fitting_tokens, in_token_chunks
from .reversible import MANY_TOKENS, Tape, add_half, anchor, as_streams, reversible_layer
from .tracing import tracing

WORTH_REUSING = (
    2**18
)  # numbers of a stream (1 MiB): memory of this size is slow to get anew, and written over if nobody looks


class ReformerEmbeddings(nn.Module):
    """Word and position embeddings, added, each with its own dropout: (B, L) -> (B, L, hidden)."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        positions = AxialPositionEmbeddings if config.axial_pos_embds else PositionEmbeddings
        self.position_embeddings = positions(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, position_ids, inputs_embeds=None):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if self.training:  # positions drop other features in every example
            position_ids = position_ids.expand(len(inputs_embeds), -1)
        return self.dropout(inputs_embeds) + self.position_embeddings(position_ids)


class ReformerSelfOutput(nn.Module):
    """Heads (B, L, H * D) -> (B, L, hidden), without bias."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.num_attention_heads * config.attention_head_size, config.hidden_size, bias=False)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states):
        return self.dropout(self.dense(hidden_states))


class ReformerAttention(nn.Module):
    """Layer norm, self-attention, output projection: F of the reversible layer."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attention = ATTENTION_CLASSES[config.attn_layers[layer_idx]](config, layer_idx)
        self.output = ReformerSelfOutput(config)

    def forward(self, hidden_states, project_output=True, **arguments):
        """(B, L, hidden) -> `SelfAttentionOutput`, its `hidden_states` (B, L, hidden), or (B, L, H * D) without the output
        projection."""
        batch, length, hidden = hidden_states.shape
        step = fitting_tokens(hidden_states, hidden, batch)
        keep = length <= MANY_TOKENS // batch
        if not keep and self._works_by_segments(**arguments):
            chunk = self.self_attention.chunk_length
            step, halo = max(1, step // chunk - self.self_attention.before) * chunk, self.self_attention.before * chunk
            segment = _LocalSegment(self.layer_norm, self.self_attention)
            attended = in_token_chunks(segment, step, hidden_states, halo=halo, keep=keep)
            attended = SelfAttentionOutput(attended, None, None)
        else:
            projection = _NormedProjection(self.layer_norm, self.self_attention)
            attended = self.self_attention(in_token_chunks(projection, step, hidden_states, keep=keep), **arguments)
        if not project_output:
            return attended
        return SelfAttentionOutput(self.output(attended.hidden_states), *attended[1:])

    def _works_by_segments(self, real_tokens=None, output_attentions=False, cache=None, **unused):
        """Causal local attention over a long input needs only its window, so that segments that fit into the processor's
        cache can be worked on alone. (Below `MANY_TOKENS` the whole at once is faster.)"""
        attention = self.self_attention
        local = attention.layer_type in LOCAL_LAYERS and attention.config.is_decoder and attention.after == 0
        return local and real_tokens is None and not output_attentions and cache is None


class _NormedProjection(nn.Module):
    def __init__(self, layer_norm, self_attention):
        super().__init__()
        self.layer_norm, self.self_attention = layer_norm, self_attention

    def forward(self, hidden_states):
        return self.self_attention.project(self.layer_norm(hidden_states))


class _LocalSegment(_NormedProjection):
    def forward(self, hidden_states):
        return self.self_attention(super().forward(hidden_states)).hidden_states


class ReformerLayer(nn.Module):
    """y1 = x1 + attention(x2), y2 = x2 + feed_forward(y1) (paper eq. 9)."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.reversible = config.reversible
        self.num_hashes = config.num_hashes
        self.bottom = layer_idx == 0
        self.attention = ReformerAttention(config, layer_idx)
        self.feed_forward = ReformerFeedForward(config)

    def forward(
        self,
        x1,
        x2,
        real_tokens=None,
        num_hashes=None,
        output_attentions=False,
        tape=None,
        cache=None,
        overwrite=False,
        keep_last=0,
    ):
        """(B, L, hidden) twice -> the same twice, and the attention probabilities or None.

        With a `tape` nothing is kept for backward (`config.reversible`). A `cache` (a layer of `ReformerCache`) holds the
        tokens before these, and the rotations they were hashed with. Without gradients, with `overwrite` what is returned
        may stand in the memory of x1 and x2, and with `keep_last` it is (B, keep_last, hidden), the last tokens alone.
        """
        num_hashes = self.num_hashes if num_hashes is None else num_hashes
        rotations = None if cache is None else cache.rotations
        if rotations is None:
            rotations = self.attention.self_attention.sample_rotations(num_hashes, x2.device, x2.dtype)
        arguments = {"real_tokens": real_tokens, "rotations": rotations, "output_attentions": output_attentions}
        if tape is not None:
            overwrite = not tape.exposed and not self.bottom
            return reversible_layer(
                tape, self.attention, self.feed_forward, x1, x2, bottom=self.bottom, overwrite=overwrite, **arguments
            )
        if cache is not None:
            cache.rotations = rotations
        if torch.is_grad_enabled() or tracing():
            attended = self.attention(x2, cache=cache, **arguments)
            y1 = x1 + attended.hidden_states
            return y1, x2 + self.feed_forward(y1), attended.attentions
        return self._without_gradient(x1, x2, overwrite, keep_last, cache=cache, **arguments)

    def _without_gradient(self, x1, x2, overwrite, keep_last, **arguments):
        """The same with pieces that stay in cache, in the streams' own memory where that may be written over."""
        step = self.feed_forward.chunk_length(len(x2))
        attended = self.attention(x2, project_output=False, keep_last=keep_last, **arguments)
        x1, x2 = (x[:, -keep_last:] for x in (x1, x2))
        y1 = add_half(self.attention.output, attended.hidden_states, x1, step, x1 if overwrite else None)
        return y1, add_half(self.feed_forward, y1, x2, step, x2 if overwrite else None), attended.attentions


class FinalNorm(nn.Module):
    """Both streams (B, L, hidden) -> their layer norm side by side, (B, L, 2 * hidden)."""

    def __init__(self, layer_norm, dropout):
        super().__init__()
        self.layer_norm, self.dropout = layer_norm, dropout

    def forward(self, y1, y2):
        return self.dropout(self.layer_norm(torch.cat([y1, y2], dim=-1)))


def is_watched(modules):
    """Whether hooks may keep what these modules are given or give, or gradients of it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, kind) for module in modules for kind in kinds)
    return hooked or nn.modules.module._has_any_global_hook()


class EncoderOutput(NamedTuple):
    last_hidden_state: torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # (B, L, 2 * hidden), or both streams
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


class ReformerEncoder(nn.Module):
    """The stack of layers over two streams that start equal, then a layer norm over both side by side."""

    def __init__(self, config):
        super().__init__()
        self.reversible = config.reversible
        self.gradient_checkpointing = False  # set by transformers; without effect on reversible layers, which need none
        self.layers = nn.ModuleList(ReformerLayer(config, i) for i in range(config.num_hidden_layers))
        self.layer_norm = StreamLayerNorm(2 * config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    @property
    def final_norm(self):
        return FinalNorm(self.layer_norm, self.dropout)

    def forward(
        self,
        hidden_states,
        output_hidden_states=False,
        output_attentions=False,
        cache=None,
        keep_last=0,
        normed=True,
        **arguments,
    ):
        """`cache`: a `ReformerCache`, which has begun this piece; gradients must be off then. `keep_last`: only so many
        tokens, the last, of `last_hidden_state` (0: all). Not `normed`: the two streams, still without `final_norm`."""
        large = hidden_states.numel() >= WORTH_REUSING and not tracing()
        exposed = not large or output_hidden_states or is_watched(self.modules())
        tape = Tape(exposed) if self.reversible and torch.is_grad_enabled() and not tracing() else None
        y1 = y2 = as_streams(hidden_states, tape)
        sparing = not (torch.is_grad_enabled() or exposed)
        ends_early = sparing and not output_attentions and self._ends_early(y1, keep_last, cache, **arguments)
        all_hidden_states, attentions = [y2], []
        for index, layer in enumerate(self.layers):
            if cache is not None:
                arguments["cache"] = cache.layers[index]
            y1, y2, probabilities = self._run(
                layer,
                y1,
                y2,
                tape=tape,
                output_attentions=output_attentions,
                overwrite=sparing and index > 0,
                keep_last=keep_last if ends_early and layer is self.layers[-1] else 0,
                **arguments,
            )
            if tape is not None and (output_hidden_states or layer is self.layers[-1]):
                y1, y2 = anchor(tape, y1, y2)
            all_hidden_states += [y2] if output_hidden_states else []
            attentions.append(probabilities)
        y1, y2 = y1[:, -keep_last:], y2[:, -keep_last:]
        return EncoderOutput(
            self._normed(y1, y2) if normed else (y1, y2),
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )

    def _ends_early(self, stream, keep_last, cache, real_tokens=None, **unused):
        """Whether the last layer may take a first piece into its cache and go on with the last tokens alone: nobody asks for
        the others, and these attend as the full forward lets them (with padding, those of a published layer may not)."""
        kind = self.layers[-1].attention.self_attention.layer_type
        first = cache is not None and cache.layers[-1].get_seq_length() == 0
        return first and 0 < keep_last < stream.shape[1] and (real_tokens is None or kind not in PUBLISHED_LAYERS)

    def _normed(self, y1, y2):
        batch, length, hidden = y1.shape
        step = fitting_tokens(y1, 2 * hidden, batch)
        return in_token_chunks(self.final_norm, step, y1, y2, keep=length <= MANY_TOKENS // batch)

    def _run(self, layer, *streams, **arguments):
        if self.gradient_checkpointing and self.training and not self.reversible:
            return self._gradient_checkpointing_func(layer.__call__, *streams, **arguments)
        return layer(*streams, **arguments)
