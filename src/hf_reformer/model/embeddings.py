"""Position embeddings: learned, one vector per position, or axial (paper appendix; Trax `AxialPositionalEncoding`)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .dropout import Dropout


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


class PositionEmbeddings(nn.Module):
    """A learned vector per position: (B, L) int64 -> (B, L, hidden)."""

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
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
