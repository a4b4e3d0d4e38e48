"""How a recipe's new model starts, beside transformers' own way: as Trax's models did, or as the quickstart's."""

import torch
from torch import nn

from ..model.embeddings import AxialPositionEmbeddings
from .quickstart_training import initialise_embeddings


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


def initialise_sinusoidal(model: nn.Module) -> None:
    """The quickstart's: word vectors of size 1, sinusoids as positions on two axes."""
    config = model.config
    if not config.axial_pos_embds or len(config.axial_pos_shape) != 2:
        raise ValueError(
            f"model.initialisation is 'sinusoidal', but must be trax or null for positions {config.axial_pos_shape}, not two axes"
        )
    initialise_embeddings(model)


INITIALISATIONS = {"trax": initialise_as_trax, "sinusoidal": initialise_sinusoidal}
