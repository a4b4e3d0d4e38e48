"""Dropout whose masks are cheap to draw on a CPU."""

import torch
from torch import nn

from .tracing import tracing

STEPS = 2**16  # a probability is rounded to a multiple of 1 / STEPS


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, of any shape; on a CPU with 16 random bits for each number.

    PyTorch's own masks for CPUs are drawn one number at a time, 32 bits or more for each; what is left of the cost is the
    benchmark's case `dropout`. With k = round(p * 65,536), a number is dropped with probability
    k / 65,536 and else multiplied by 65,536 / (65,536 - k), so the expectation is kept exactly. Other devices, and traced
    models, get PyTorch's.
    """

    tokenwise = True

    def forward(self, x):
        dropped = round(self.p * STEPS)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < STEPS or tracing():
            return super().forward(x)
        return x * keep_mask(x, dropped)


def keep_mask(like, dropped):
    """A mask in shape and type of `like`: 0 with probability dropped / STEPS, else STEPS / (STEPS - dropped)."""
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    bits = bits.view(torch.int16)[: like.numel()].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return torch.ge(bits, dropped - STEPS // 2, out=mask).mul_(STEPS / (STEPS - dropped))
