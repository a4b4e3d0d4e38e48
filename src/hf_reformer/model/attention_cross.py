"""Attention of a decoder to an encoder's output: softmax(q k^T / sqrt(D)) v over all tokens of the source that are no padding.

Shapes: B batch, L length of the target, S of the source, H heads, D head size.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .tokenwise import parts

SCORES = 2**20  # (1 head's) scores at a time, where PyTorch's fused kernels, which keep none, do not apply


class CrossAttention(nn.Module):
    """Queries from the target, keys and values from the source, without bias, as in Trax's `EncDecAttention` before 1.3.5.

    Differs from Trax: in a row whose source is nothing but padding all of that is read, evenly masked, as if it were real
    (Trax up to 1.3.4 does the same; from 1.3.5 on its mask makes of every masked source the sum of its values).
    """

    tokenwise = True  # the projections

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.heads, self.head_size = config.num_attention_heads, config.attention_head_size
        for name in ("query", "key", "value"):
            setattr(self, name, nn.Linear(config.hidden_size, self.heads * self.head_size, bias=False))

    @property
    def dropout(self):
        return self.config.cross_attention_probs_dropout_prob if self.training else 0.0

    def forward(self, hidden_states, memory, real_memory=None, cache=None, output_attentions=False):
        """(B, L, hidden), (B, S, hidden), (B, S) bool or None -> (B, L, H * D), and the probabilities (B, H, L, S) or None.

        Args:
            cache: a layer of a `ReformerCache`, which holds keys and values of the source from the first call on.
        """
        q = self._heads(self.query(hidden_states))
        k, v = self._keys_and_values(memory, cache)
        seen = None if real_memory is None else _seen(real_memory)
        out = _attend_in_pieces(q, k, v, seen, self.dropout)
        probabilities = None
        if output_attentions:
            scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).detach()
            probabilities = (scores if seen is None else scores.masked_fill(~seen, float("-inf"))).softmax(-1)
        return out.transpose(1, 2).flatten(2), probabilities

    def _heads(self, x):
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)

    def _keys_and_values(self, memory, cache):
        if cache is None:
            return self._heads(self.key(memory)), self._heads(self.value(memory))
        if cache.source is None:
            cache.source = self._heads(self.key(memory)), self._heads(self.value(memory))
        return cache.source


def _seen(real_memory):
    """(B, 1, 1, S) bool."""
    return (real_memory | ~real_memory.any(1, keepdim=True))[:, None, None, :]


def _attend_in_pieces(q, k, v, seen, dropout):
    """Fused kernels keep no scores; with dropout there is none on CPUs, and a piece's scores are computed again in backward."""
    length, step = q.shape[2], max(16, SCORES // k.shape[2])
    if dropout == 0 or length <= step:
        return _attend(q, k, v, seen, dropout)
    pieces = []
    for part in parts(length, step):
        arguments = q[:, :, part], k, v, seen, dropout
        again = torch.is_grad_enabled()
        pieces.append(checkpoint(_attend, *arguments, use_reentrant=False) if again else _attend(*arguments))
    return torch.cat(pieces, 2)


def _attend(q, k, v, seen, dropout):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
