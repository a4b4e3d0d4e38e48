"""Trax's position encodings as tables (length, d): the ones without a counterpart here are written out.

Axial and learned positions are the same here and there.
"""

import numpy as np
import torch


def sin_cos_table(length, size):
    """`SinCosPositionalEncoding` outside training: row p is [sin(p w), cos(p w)], w_i = 10000^(-2i / size).

    In float32 from the start, as the original computes it.
    """
    frequency = np.exp(np.arange(0, size, 2) * -(np.log(10000.0) / size)).astype(np.float32)
    angle = np.arange(length, dtype=np.float32)[:, None] * frequency
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :size])


def fixed_base_table(length, base_weights, start, bases):
    """`FixedBasePositionalEncoding` outside training.

    Row p is the sum over bases b of [digit_0 w_b0, digit_1 w_b1, ...], the digits of p in base b, least significant
    first; row 0 gets the vector `start` (or None) too.

    Args:
        base_weights: for each base a list of (1, size / digits), one per digit.
    """
    total = 0
    for base, weights in zip(bases, base_weights, strict=True):
        position, parts = torch.arange(length), []
        for weight in weights:
            parts.append((position % base)[:, None].to(torch.float32) * weight)
            position = position // base
        total = total + torch.cat(parts, dim=1)
    if start is not None:
        total[0] += start.reshape(-1)
    return total
