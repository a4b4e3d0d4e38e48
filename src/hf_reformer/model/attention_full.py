"""Ordinary attention over the whole sequence, through PyTorch's `scaled_dot_product_attention`: the baseline.

Shapes: B batch, L length, H heads, D head size.
"""

import torch
from torch.nn import functional as F

from .attention_blocks import unit_keys
from .attention_rule import FAR


def full_attention(
    q_BLHD, k_BLHD, v_BLHD, rule, *, real_tokens=None, documents=None, dropout=0.0, output_attentions=False
):
    """Attention of every token to every other that `rule` lets it see.

    Args:
        k_BLHD: None for shared queries and keys: keys are then the normalised queries.
        real_tokens: (B, L) bool, False for padding, or None.
        documents: (B, L), of packed rows: tokens of two do not see each other; or None.

    Returns:
        (B, L, H, D), and the probabilities (B, H, L, L) (detached) or None.
    """
    shared = k_BLHD is None
    k_BLHD = unit_keys(q_BLHD).to(q_BLHD.dtype) if shared else k_BLHD
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLHD, v_BLHD))
    scale = 1.0 if shared else q.shape[-1] ** -0.5
    seen = None
    whole = rule.is_interval and rule.before == FAR and rule.after in (0, FAR)
    if not whole or real_tokens is not None or documents is not None or output_attentions:
        seen = _visible(q.shape[2], rule, real_tokens, documents, q.device)
    is_causal = rule.after == 0 and seen is None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, is_causal=is_causal, scale=scale)
    probabilities = None
    if output_attentions:
        scores = (q @ k.transpose(2, 3) * scale).detach()
        probabilities = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return out.transpose(1, 2), probabilities


def _visible(length, rule, real_tokens, documents, device):
    """(1 or B, 1, L, L) bool: which key (last axis) a query sees. Every query sees something."""
    places = torch.arange(length, device=device)
    itself = places == places[:, None]
    seen = rule.sees(places - places[:, None])[None, None]
    if real_tokens is not None:
        seen = seen & real_tokens[:, None, None, :]
    if documents is not None:
        seen = seen & (documents[:, None, None, :] == documents[:, None, :, None])
    return seen | (itself & ~seen.any(-1, keepdim=True))
