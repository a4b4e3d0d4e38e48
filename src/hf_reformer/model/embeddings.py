"""Position embeddings: learned, one vector per position, or axial (paper appendix; Trax `AxialPositionalEncoding`); or none.

How words and positions of a new model start (`config.embedding_init`) stands at the end.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .dropout import Dropout


class ReformerEmbeddings(nn.Module):
    """Word and position embeddings, added, each with its own dropout: (B, L) -> (B, L, hidden). Or words alone."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        positions = AxialPositionEmbeddings if config.axial_pos_embds else PositionEmbeddings
        self.position_embeddings = positions(config) if config.use_absolute_position_embeddings else None
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, position_ids, inputs_embeds=None):
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if self.position_embeddings is None:
            return self.dropout(inputs_embeds)
        if self.training:  # positions drop other features in every example
            position_ids = position_ids.expand(len(inputs_embeds), -1)
        return self.dropout(inputs_embeds) + self.position_embeddings(position_ids)


class PositionTable(nn.Embedding):
    """A type of its own, so that initialisation tells positions from words."""


class PositionEmbeddings(nn.Module):
    """A learned vector per position: (B, L) int64 -> (B, L, hidden)."""

    def __init__(self, config):
        super().__init__()
        self.embedding = PositionTable(config.max_position_embeddings, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, position_ids):
        return self.dropout(self.embedding(position_ids))


class AxisWeights(nn.ParameterList):
    """The vectors of each axis. A module that is called, so that hooks on it (offloading to the CPU) see its parameters
    being used: (B, L) coordinates per axis -> (B, L, hidden)."""

    __call__ = nn.Module.__call__

    def forward(self, coordinates):
        looked_up = (F.embedding(at, weight.flatten(0, -2)) for at, weight in zip(coordinates, self, strict=True))
        return torch.cat(list(looked_up), dim=-1)


class AxialPositionEmbeddings(nn.Module):
    """Positions as points of a grid of any number of axes: the vectors of a point's coordinates, side by side.

    The grid is filled in row-major order, so position p has the coordinate p // (product of the later axes) % axis size.
    (B, L) int64 -> (B, L, hidden); any length up to the product of `axial_pos_shape`, in training too. Weights are
    (1, ..., axis size, ..., 1, axis dim), as in transformers.

    Dropout differs from transformers: whole features, the same for all positions of an example, as in Trax.
    """

    def __init__(self, config):
        super().__init__()
        self.shape = tuple(config.axial_pos_shape)
        self.dropout = config.hidden_dropout_prob
        axes = len(self.shape)
        self.weights = AxisWeights(
            nn.Parameter(torch.empty(*(size if i == axis else 1 for i in range(axes)), dim))
            for axis, (size, dim) in enumerate(zip(self.shape, config.axial_pos_embds_dim, strict=True))
        )

    def forward(self, position_ids):
        inner = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        coordinates = [
            torch.div(position_ids, steps, rounding_mode="floor") % size
            for steps, size in zip(inner, self.shape, strict=True)
        ]
        embeddings = self.weights(coordinates)
        if self.training and self.dropout > 0:
            embeddings = embeddings * F.dropout(
                embeddings.new_ones(len(embeddings), 1, embeddings.shape[-1]), self.dropout
            )
        return embeddings


def initialise_words(weight, config):
    """(V, hidden): of size 1, as in Trax, or `initializer_range`, as published; beside positions of size 1 that is noise."""
    init.normal_(weight, std=config.initializer_range if config.embedding_init == "published" else 1.0)


def initialise_positions(weights, config):
    """One table per axis, (..., axis size, ..., axis dim) each; learned positions are one axis, (L, hidden)."""
    std = 1.0
    if config.embedding_init == "published":
        std = config.axial_norm_std if config.axial_pos_embds else config.initializer_range
    for axis, weight in enumerate(weights):
        if config.embedding_init != "sinusoidal":
            init.normal_(weight, std=std)
            continue
        size, dim = weight[..., 0].numel(), weight.shape[-1]
        inner = len(weights) > 1 and axis == len(weights) - 1
        table = sinusoids(size, dim, longest=size if inner else 4.0 * size, whole=inner)
        init.copy_(weight, table.view_as(weight).to(weight))


def sinusoids(count, dim, *, longest, whole):
    """(count, dim): sines, then cosines, with periods from 2 to `longest` positions; `whole`: periods that divide it.

    The last of several axes holds whole numbers of periods, so that the distance between two positions looks the same
    everywhere, across the ends of the axis too; the others run through half a period at most and tell far from near.
    """
    frequencies = torch.logspace(0, math.log2(max(2.0, longest) / 2), (dim + 1) // 2, base=2)
    frequencies = frequencies.round() if whole else frequencies
    angles = 2 * math.pi * torch.arange(count)[:, None] * frequencies / longest
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]
