"""What every format is read into."""

from dataclasses import dataclass, field

import torch

import hf_reformer


@dataclass
class Checkpoint:
    """A checkpoint in our names. `notes`: sentences on what was decided, for the card."""

    model_class: type
    config: hf_reformer.ReformerConfig
    tensors: dict[str, torch.Tensor]
    origin: str
    notes: list[str] = field(default_factory=list)


def one_dtype(arrays):
    """(arrays, type): as stored; where they are of several types, all in the widest of them, which loses nothing."""
    dtype = None
    for array in arrays.values():
        dtype = array.dtype if dtype is None else torch.promote_types(dtype, array.dtype)
    return {name: array.to(dtype) for name, array in arrays.items()}, dtype
