"""The stack of layers over two streams that start equal, then a layer norm over both side by side (paper section 3), or, in
an encoder-decoder, over their mean (as in Trax's `Reformer`).

Shapes: B batch, L length.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from .configuration_reformer import PUBLISHED_LAYERS
from .dropout import Dropout
from .layer import Inference, ReformerLayer, StreamLayerNorm, is_as_built
from .recompute import has_own_hooks, is_watched
from .reversible import WORTH_REUSING, as_streams, places, working_type
from .tokenwise import tokenwise
from .tracing import tracing


class EncoderOutput(NamedTuple):
    last_hidden_state: torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # (B, L, width), or the two streams
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class Checkpointed:
    """A layer under gradient checkpointing, `checkpoint(function, *inputs)`."""

    checkpoint: object

    def run(self, layer, x1, x2, context):
        compute = lambda x1, x2, memory: layer.compute(x1, x2, replace(context, memory=memory))
        return self.checkpoint(compute, x1, x2, context.memory)  # whose gradient would be lost in the context


def final_norm(layer_norm, dropout, y1, y2, averaged=False):
    """Both streams (B, L, hidden) -> the layer norm of both side by side, (B, L, 2 * hidden), or of their mean, (B, L, hidden)."""
    return dropout(layer_norm((y1 + y2) / 2 if averaged else torch.cat([y1, y2], dim=-1)))


class ReformerEncoder(nn.Module):
    """The layers and the final norm.

    Args:
        layer_class: of the layers.
        averaged: the final norm is over the mean of the streams, `width` is the hidden size; else it is twice that.
    """

    def __init__(self, config, layer_class=ReformerLayer, averaged=False):
        super().__init__()
        self.reversible, self.budget, self.exact = config.reversible, config.activation_budget, config.exact_reversible
        self.gradient_checkpointing = False  # set by transformers; without effect on reversible layers, which need none
        self.layers = nn.ModuleList(layer_class(config, i) for i in range(config.num_hidden_layers))
        self.averaged = averaged
        self.width = config.hidden_size if averaged else 2 * config.hidden_size
        self.layer_norm = StreamLayerNorm(self.width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    @property
    def final_norm(self):
        """The modules that `encoder.final_norm` takes."""
        return self.layer_norm, self.dropout

    def forward(self, hidden_states, context, output_hidden_states=False):
        """(B, L, hidden) -> `EncoderOutput`."""
        output = self.streams(hidden_states, context, output_hidden_states)
        return output._replace(last_hidden_state=self.normed(*output.last_hidden_state))

    def normed(self, y1, y2):
        """Both streams (B, L, hidden) after the final norm, (B, L, width)."""
        norm = partial(final_norm, averaged=self.averaged)
        return tokenwise(norm, self.final_norm, y1, y2, numbers=self.width)

    def streams(self, hidden_states, context, output_hidden_states=False, last=0):
        """The same before the final norm: `last_hidden_state` is the two streams, (B, L or `last`, hidden) each.

        context: with a `ReformerCache`, which has begun this piece, as its cache; gradients must be off then.
        """
        if tracing():
            ways = [None] * len(self.layers)
        elif torch.is_grad_enabled():
            return self._train(hidden_states, context, output_hidden_states, last)
        else:
            ways = self._infer(hidden_states, context, output_hidden_states, last)
        return self._run(hidden_states, context, ways, output_hidden_states, last)

    @torch.compiler.disable  # a graph of the layers would hold what they are there not to keep
    def _train(self, hidden_states, context, output_hidden_states, last):
        """Reversible layers, or ordinary ones, perhaps under gradient checkpointing."""
        ways = [None] * len(self.layers)
        if self._rebuilds(hidden_states, context):
            hidden_states = as_streams(hidden_states, reversible=True)
            as_built = [is_as_built(layer) for layer in self.layers]
            handed_out = output_hidden_states or type(self.layer_norm) is not StreamLayerNorm
            ways = places(self.layers, as_built, hidden_states, output_hidden_states, handed_out)
        elif self.gradient_checkpointing and self.training:
            ways = [Checkpointed(self._gradient_checkpointing_func)] * len(self.layers)
        return self._run(hidden_states, context, ways, output_hidden_states, last)

    def _rebuilds(self, hidden_states, context):
        """Whether the layers are to be reversible. `"auto"`: where ordinary autograd would keep more than the budget."""
        if self.reversible != "auto":
            return self.reversible
        # of a layer of somebody else's nothing is known
        dtype = working_type(hidden_states)
        batch, length = hidden_states.shape[:2] if context.shards is None else context.shards.longest
        sources = 0 if context.memory is None else context.memory.shape[1] / length
        per_token = sum(layer.bytes_kept(dtype, sources) for layer in self.layers if is_as_built(layer))
        return batch * length * per_token > self.budget * 2**20

    def _infer(self, hidden_states, context, output_hidden_states, last):
        """Without gradients, in the streams' own memory where nobody looks; into a cache, the last layer works on the last
        tokens alone."""
        large = hidden_states.numel() >= WORTH_REUSING
        as_built = all(is_as_built(layer) and not has_own_hooks(layer.attention) for layer in self.layers)
        if not as_built or (large and is_watched(self)):
            return [None] * len(self.layers)  # as it stands in the layer, so that every module is called
        overwrite = large and not output_hidden_states
        ways = [Inference()] + [Inference(overwrite)] * (len(self.layers) - 1)
        if large and not output_hidden_states and self._ends_early(hidden_states.shape[1], context, last):
            ways[-1] = replace(ways[-1], last=last)
        return ways

    def _ends_early(self, length, context, last):
        """Whether the last layer may take a first piece into its cache and go on with the last tokens alone: nobody asks for
        the others, and these attend as the full forward lets them (with padding, those of a published layer may not)."""
        kind = self.layers[-1].attention.self_attention.layer_type
        first = context.cache is not None and context.cache.layers[-1].get_seq_length() == 0
        free = context.real_tokens is None or kind not in PUBLISHED_LAYERS
        return first and free and 0 < last < length and not context.output_attentions and not is_watched(self)

    def _run(self, hidden_states, context, ways, output_hidden_states, last):
        y1 = y2 = as_streams(hidden_states, reversible=False, exact=self.exact)
        all_hidden_states, attentions, cross_attentions = [y2], [], []
        caches = [None] * len(self.layers) if context.cache is None else context.cache.layers
        for layer, way, cache in zip(self.layers, ways, caches, strict=True):
            y1, y2, probabilities, *across = layer(y1, y2, replace(context, cache=cache), way)
            if output_hidden_states:
                all_hidden_states.append(y2)
            attentions.append(probabilities)
            cross_attentions.extend(across)
        asked = context.output_attentions
        return EncoderOutput(
            (y1[:, -last:], y2[:, -last:]),
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(attentions) if asked else None,
            tuple(cross_attentions) if asked and cross_attentions else None,
        )
