"""What a run trains on and how it is measured: the parts that every task fills in."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from . import examples as ex
from .settings import Recipe


@dataclass(frozen=True)
class Task:
    """Everything that a run needs beside the model's own settings."""

    training: torch.utils.data.Dataset
    evaluation: torch.utils.data.Dataset
    statistics: Callable  # (logits, labels) -> (B, K) numbers of each example
    summary: Callable  # (N, K) of all examples of `evaluation`, in order -> metrics
    predictions: Callable  # (N, K) -> one dictionary per example
    fingerprint: str  # of all data
    held_out_fingerprint: str  # of what is evaluated on, before a part of it is chosen; whatever the tokenizer
    description: str
    vocab_size: int
    collate: Callable = ex.collate
    label_names: list[str] | None = None  # of a batch, that `statistics` takes as labels; None: `labels`
    pad: int = 0
    tokenizer: object = None
    image_processor: object = None  # that makes the tokens of images
    unit: str | None = None  # of what one token of a language model is
    model_fields: dict = field(default_factory=dict)  # of the configuration that follow from the data
    prompts: list[torch.Tensor] = field(default_factory=list)  # to continue in samples
    counts: dict[str, int] = field(default_factory=dict)  # what was cut, passed over or is not as it should be

    @property
    def notes(self) -> list[str]:
        """`counts` in words."""
        return [f"{number:,} {what.replace('_', ' ')}" for what, number in self.counts.items()]


@dataclass(frozen=True)
class Plan:
    """How many examples a run reads, and in how many steps; 0 steps: a model is only measured."""

    steps: int
    per_step: int  # examples of all processes and accumulated batches
    seed: int

    @property
    def examples(self) -> int:
        return self.steps * self.per_step


def prompts_of(rows, recipe: Recipe) -> list[torch.Tensor]:
    """The first tokens of some evaluation rows, at most half of each."""
    wanted, length = recipe.evaluation.samples, recipe.evaluation.prompt_tokens
    chosen = [rows[i] for i in ex.spread(len(rows), wanted)] if wanted else []
    return [torch.from_numpy(np.asarray(row[: min(length, len(row) // 2)]).astype(np.int64)) for row in chosen]
