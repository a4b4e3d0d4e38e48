"""Metrics as sums over rows, so that batches of any size and any number of processes give the same figures.

A `statistics` function turns the logits and labels of a batch into one row of sums per example, (B, K) float64; `Trainer`
gathers these rows instead of logits. A `summary` function turns the sum over all rows into named metrics.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from ..model.losses import IGNORED, next_token_labels


def token_statistics(logits, labels, token_bytes=None, causal=False, confusion=0) -> torch.Tensor:
    """(B, 4 + confusion²): loss in nats, labels, correct ones, bytes that they stand for, and (label, guess) counts."""
    labels = next_token_labels(labels) if causal else labels
    counted = labels != IGNORED
    loss = torch.stack([F.cross_entropy(row.float(), label, ignore_index=IGNORED, reduction="sum")
                        for row, label in zip(logits, labels, strict=True)])  # fmt: skip
    guess = logits.argmax(-1)
    sizes = torch.ones_like(labels) if token_bytes is None else token_bytes.to(labels.device)[labels.clamp(min=0)]
    columns = [loss, counted.sum(1), ((guess == labels) & counted).sum(1), (sizes * counted).sum(1)]
    rows = torch.stack([column.double() for column in columns], 1)
    if confusion:
        pairs = labels.clamp(min=0) * confusion + guess
        table = torch.zeros(len(labels), confusion**2, dtype=torch.float64, device=labels.device)
        rows = torch.cat([rows, table.scatter_add_(1, pairs, counted.double())], 1)
    return rows


def class_statistics(logits, labels, classes: int) -> torch.Tensor:
    """The same of one label per row."""
    return token_statistics(logits[:, None], labels.view(-1, 1), confusion=classes)


def span_statistics(logits, labels) -> torch.Tensor:
    """(B, 5): loss, rows with an answer, exact spans, overlap F1, loss terms. `logits`, `labels`: pairs (start, end)."""
    (start, end), (first, last) = logits, labels
    length = start.shape[1]
    loss, terms = torch.zeros(len(start), dtype=torch.float64, device=start.device), 0
    for scores, target in ((start, first), (end, last)):
        target = target.view(-1).clamp(0, length)
        loss = loss + F.cross_entropy(scores.float(), target, ignore_index=length, reduction="none").double()
        terms = terms + (target < length).double()
    begin = start.argmax(1)
    after = torch.arange(length, device=end.device)[None] >= begin[:, None]
    finish = end.masked_fill(~after, -math.inf).argmax(1)
    known = terms == 2
    shared = (torch.minimum(finish, last) - torch.maximum(begin, first) + 1).clamp(min=0).double()
    overlap = 2 * shared / (finish - begin + 1 + last - first + 1).clamp(min=1).double()
    exact = ((begin == first) & (finish == last)).double()
    return torch.stack([loss, known.double(), exact * known, overlap * known, terms], 1)


def language_summary(unit: str) -> Callable[[np.ndarray], dict]:
    """Loss, bits and accuracy.

    Args:
        unit: what one token is, `byte`, `dimension`, `masked_token`, or `token`, which gives bits per byte too.
    """

    def summary(sums: np.ndarray) -> dict:
        loss, count, correct, size = sums
        metrics = {"loss": loss / count, f"bits_per_{unit}": loss / count / math.log(2), "accuracy": correct / count}
        if unit == "token":
            metrics["bits_per_byte"] = loss / math.log(2) / max(size, 1)
        return metrics

    return summary


def copy_summary(sums: np.ndarray) -> dict:
    """Loss and accuracy."""
    loss, count, correct, _ = sums
    return {"loss": loss / count, "accuracy": correct / count}


def label_summary(sums: np.ndarray) -> dict:
    """Loss, accuracy, and the mean over the labels that occur of their F1."""
    size = math.isqrt(len(sums) - 4)
    table = sums[4:].reshape(size, size)
    total = table.sum(0) + table.sum(1)
    occur = total > 0
    f1 = 2 * np.diag(table)[occur] / total[occur]
    return {**copy_summary(sums[:4]), "macro_f1": float(f1.mean())}


def span_summary(sums: np.ndarray) -> dict:
    """Loss, share of exact spans, mean overlap F1; of rows whose answer lies within the context."""
    loss, rows, exact, overlap, terms = sums
    return {"loss": loss / max(terms, 1), "exact_match": exact / max(rows, 1), "span_f1": overlap / max(rows, 1)}


def metrics_of(summary: Callable[[np.ndarray], dict]) -> Callable:
    """A `compute_metrics` for `Trainer`: the summary of the gathered rows of sums."""
    return lambda prediction: {
        name: float(value)
        for name, value in summary(np.asarray(prediction.predictions).sum(0, dtype=np.float64)).items()
    }
