"""The feed-forward half of a layer, some tokens at a time (paper eq. 10). Shapes: B batch, L length."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .dropout import Dropout
from .layer_norm import StreamLayerNorm
from .recompute import fitting_tokens, in_token_chunks
from .tracing import tracing


class ReformerFeedForwardDense(nn.Module):
    """hidden -> inner: dense, dropout, activation (in this order, as Trax does)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.feed_forward_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        return self.activation(self.dropout(self.dense(hidden_states)))


class ReformerFeedForwardOutput(nn.Module):
    """inner -> hidden: dense, dropout."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.feed_forward_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states):
        return self.dropout(self.dense(hidden_states))


class ReformerFeedForward(nn.Module):
    """Layer norm, dense, activation, dense: (B, L, hidden) -> (B, L, hidden), the same whatever the chunk size."""

    def __init__(self, config):
        super().__init__()
        self.chunk_size = config.chunk_size_feed_forward
        self.inner_size = config.feed_forward_size
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = ReformerFeedForwardDense(config)
        self.output = ReformerFeedForwardOutput(config)

    def chunk_length(self, batch_size):
        """Tokens of each sequence that are worked on at a time."""
        return self.chunk_size or fitting_tokens(self.layer_norm.weight, self.inner_size, batch_size)

    def forward(self, hidden_states):
        step = self.chunk_length(hidden_states.shape[0])
        if tracing() or hidden_states.shape[1] <= step or (self.chunk_size == 0 and torch.is_grad_enabled()):
            return self.output(self.dense(self.layer_norm(hidden_states)))
        return in_token_chunks(self, step, hidden_states)
