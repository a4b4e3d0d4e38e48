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
    statistics: Callable  # (logits, labels) -> (B, K) sums
    summary: Callable  # (K,) sums -> metrics
    fingerprint: str
    description: str
    vocab_size: int
    pad: int = 0
    tokenizer: object = None
    unit: str | None = None  # of what one token of a language model is
    model_fields: dict = field(default_factory=dict)  # of the configuration that follow from the data
    prompts: list[torch.Tensor] = field(default_factory=list)  # to continue in samples


@dataclass(frozen=True)
class Plan:
    """How many examples a run reads, and in how many steps."""

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
