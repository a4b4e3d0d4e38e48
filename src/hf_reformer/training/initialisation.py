"""How a recipe's new model starts, beside transformers' own way: as Trax's models did, or with sinusoids as positions."""

import math

import torch
from torch import nn

from ..model.embeddings import AxialPositionEmbeddings


@torch.no_grad()
def initialise_as_trax(model: nn.Module) -> None:
    """Matrices Glorot uniform, biases near 0, word vectors and axial positions of size 1, as Trax up to 1.3.0.

    transformers starts word vectors at 0.02, so small beside positions of size 1 that for long nothing is learned of them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=1e-6)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, AxialPositionEmbeddings):
            for weight in module.weights:
                nn.init.normal_(weight)


@torch.no_grad()
def initialise_sinusoidal(model: nn.Module) -> None:
    """Word vectors of size 1 and sinusoids as axial positions: learning starts several times faster than from the defaults.

    The inner axis holds whole numbers of periods, so the distance between two positions looks the same everywhere,
    across the ends of the axis too; the outer axis runs through half a period at most, so that it tells far from near.
    """
    config = model.config
    if not config.has_axial_positions or len(config.axial_pos_shape) != 2:
        raise ValueError(
            f"model.initialisation is 'sinusoidal', but must be trax or null for positions {config.axial_pos_shape}, not two axes"
        )
    nn.init.normal_(model.reformer.embeddings.word_embeddings.weight)
    outer, inner = model.reformer.embeddings.position_embeddings.weights
    outer.copy_(sinusoids(outer.shape[-3], outer.shape[-1], longest=4.0 * outer.shape[-3], whole=False).view_as(outer))
    inner.copy_(sinusoids(inner.shape[-2], inner.shape[-1], longest=inner.shape[-2], whole=True).view_as(inner))


def sinusoids(count: int, dim: int, *, longest: float, whole: bool) -> torch.Tensor:
    """(count, dim): sines, then cosines, with periods from 2 to `longest` positions; `whole`: that divide `longest`."""
    frequencies = torch.logspace(0, math.log2(max(2.0, longest) / 2), (dim + 1) // 2, base=2)
    if whole:
        frequencies = frequencies.round()
    angles = 2 * math.pi * torch.arange(count)[:, None] * frequencies / longest
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


INITIALISATIONS = {"trax": initialise_as_trax, "sinusoidal": initialise_sinusoidal}
