"""Metrics from one row of numbers per example, so that batches of any size and any number of processes give the same figures.

A `statistics` function turns the logits and labels of a batch into rows, (B, K) float64, whose columns are the fields of one of
the tuples below; `Trainer` gathers these rows instead of logits, in the order of the examples. A `summary` function turns all
rows (N, K) into named metrics, a `predictions` function into one dictionary per example.
"""

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ..model.losses import IGNORED, next_token_labels


class TokenSums(NamedTuple):
    """Of the labels of an example: the sum of their losses in nats, their number, and how many are guessed right."""

    loss: torch.Tensor  # (B,)
    count: torch.Tensor
    right: torch.Tensor


class ClassGuess(NamedTuple):
    """One label per example; for a regression `loss` is the squared error and `guess` a number."""

    loss: torch.Tensor  # (B,)
    guess: torch.Tensor
    label: torch.Tensor


class ManyGuesses(NamedTuple):
    """C numbers per example: whether each class holds, or (`IGNORED`: none) the class of each tag."""

    loss: torch.Tensor  # (B,)
    guesses: torch.Tensor  # (B, C)
    labels: torch.Tensor  # (B, C)


class Span(NamedTuple):
    """The sum of the losses of `terms` ends, and the spans guessed and given."""

    loss: torch.Tensor  # (B,)
    terms: torch.Tensor
    begin: torch.Tensor
    finish: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor


def as_rows(numbers: NamedTuple) -> torch.Tensor:
    """(B, K) float64."""
    return torch.cat([column.double().reshape(len(column), -1) for column in numbers], 1)


def many_of(rows: np.ndarray) -> ManyGuesses:
    """The inverse of `as_rows`; guesses and labels as integers."""
    half = (rows.shape[1] - 1) // 2
    return ManyGuesses(rows[:, 0], rows[:, 1 : 1 + half].astype(int), rows[:, 1 + half :].astype(int))


def token_statistics(logits, labels, causal=False) -> torch.Tensor:
    """`TokenSums` of logits (B, L, V) and labels (B, L)."""
    labels = next_token_labels(labels) if causal else labels
    counted = labels != IGNORED
    loss = torch.stack([F.cross_entropy(row.float(), label, ignore_index=IGNORED, reduction="sum")
                        for row, label in zip(logits, labels, strict=True)])  # fmt: skip
    return as_rows(TokenSums(loss, counted.sum(1), ((logits.argmax(-1) == labels) & counted).sum(1)))


def class_statistics(logits, labels) -> torch.Tensor:
    """`ClassGuess` of logits (B, C) and labels (B)."""
    labels = labels.view(-1)
    return as_rows(ClassGuess(F.cross_entropy(logits.float(), labels, reduction="none"), logits.argmax(-1), labels))


def number_statistics(logits, labels) -> torch.Tensor:
    """`ClassGuess` of a regression: logits (B, 1), labels (B)."""
    guess, labels = logits.double().view(-1), labels.double().view(-1)
    return as_rows(ClassGuess((guess - labels) ** 2, guess, labels))


def multi_label_statistics(logits, labels) -> torch.Tensor:
    """`ManyGuesses` of logits (B, C) and labels (B, C) of 0 and 1; the loss is the mean over the classes."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(1)
    return as_rows(ManyGuesses(loss, logits > 0, labels))


def tag_statistics(logits, labels, words: int) -> torch.Tensor:
    """`ManyGuesses` of logits (B, L, V) and labels (B, L), of which at most `words` in a row count; theirs come first."""
    counted = labels != IGNORED
    loss = token_statistics(logits, labels)[:, 0]
    places = torch.argsort(counted.int(), dim=1, descending=True, stable=True)[:, :words]
    places = F.pad(places, (0, words - places.shape[1]))  # so that the rows of all batches have one length
    guesses, labels = logits.argmax(-1).gather(1, places), labels.gather(1, places)
    labels[torch.arange(words, device=labels.device) >= counted.sum(1)[:, None]] = IGNORED
    return as_rows(ManyGuesses(loss, guesses, labels))


def span_statistics(logits, labels) -> torch.Tensor:
    """`Span` of logits (start, end), (B, L) each, and labels (first, last, attention mask), (B), (B), (B, L).

    Padding is out of the question, for the loss and for the guess, which is the likeliest of all spans.
    """
    first, last, mask = labels
    start, end = (scores.float().masked_fill(mask != 1, -math.inf) for scores in logits)
    length = start.shape[1]
    ends = [target.view(-1).clamp(0, length) for target in (first, last)]
    loss = sum(F.cross_entropy(scores, target, ignore_index=length, reduction="none").double()
               for scores, target in zip((start, end), ends, strict=True))  # fmt: skip
    best, begins = start.cummax(1)  # for each end the best start up to it
    finish = (best + end).argmax(1)
    begin = begins.gather(1, finish[:, None])[:, 0]
    return as_rows(Span(loss, sum((target < length).double() for target in ends), begin, finish, *ends))


def language_summary(rows: np.ndarray, unit: str, row_bytes: np.ndarray | None) -> dict:
    """Loss, bits per unit and accuracy; where `row_bytes` says what bytes each row's labels stand for, bits per byte too.

    Args:
        unit: what one token is: `byte`, `dimension`, `masked_token` or `token`.
    """
    if row_bytes is not None and len(row_bytes) != len(rows):
        raise ValueError(f"{len(rows)} rows are measured, but bits per byte are known of all {len(row_bytes)} only")
    found, bits = copy_summary(rows), {}
    if unit != "byte":
        bits[f"bits_per_{unit}"] = found["loss"] / math.log(2)
    if row_bytes is not None:
        bits["bits_per_byte"] = ratio(TokenSums(*rows.T).loss.sum() / math.log(2), row_bytes.sum())
    return {"loss": found["loss"], **bits, "accuracy": found["accuracy"]}


def language_windows(rows: np.ndarray, row_bytes: np.ndarray | None) -> list[dict]:
    """The sums of each window."""
    found = [{"loss": loss, "tokens": int(count), "right": int(right)} for loss, count, right in rows]
    return (
        [{**row, "bytes": int(size)} for row, size in zip(found, row_bytes, strict=True)]
        if row_bytes is not None
        else found
    )


def copy_summary(rows: np.ndarray) -> dict:
    """Loss and accuracy."""
    sums = TokenSums(*rows.T)
    return {"loss": ratio(sums.loss.sum(), sums.count.sum()), "accuracy": ratio(sums.right.sum(), sums.count.sum())}


def sequence_summary(rows: np.ndarray) -> dict:
    """Loss and accuracy of tokens, and the share of whole targets that greedy generation writes: those all of whose tokens are
    the likeliest after the ones before."""
    sums = TokenSums(*rows.T)
    return {**copy_summary(rows), "exact_match": ratio((sums.right == sums.count).sum(), len(rows))}


def class_summary(rows: np.ndarray) -> dict:
    """Loss, accuracy, and the mean over the labels that occur of their F1."""
    found = ClassGuess(*rows.T)
    return {"loss": ratio(found.loss.sum(), len(rows)), **label_figures(found.guess, found.label)}


def label_figures(guesses: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy and macro F1 of two equally long lists of classes."""
    guesses, labels = guesses.astype(int), labels.astype(int)
    f1 = []
    for label in np.union1d(guesses, labels):
        right = ((guesses == label) & (labels == label)).sum()
        f1.append(2 * right / ((guesses == label).sum() + (labels == label).sum()))
    return {"accuracy": ratio((guesses == labels).sum(), len(labels)), "macro_f1": ratio(sum(f1), len(f1))}


def number_summary(rows: np.ndarray) -> dict:
    """Loss (mean squared error), mean absolute error, and Pearson's correlation where both sides vary."""
    found = ClassGuess(*rows.T)
    metrics = {
        "loss": ratio(found.loss.sum(), len(rows)),
        "mean_absolute_error": np.abs(found.guess - found.label).mean(),
    }
    if np.ptp(found.guess) and np.ptp(found.label):
        metrics["pearson"] = np.corrcoef(found.guess, found.label)[0, 1]
    return metrics


def multi_label_summary(rows: np.ndarray) -> dict:
    """Loss, share of rows with every class right, F1 over all (row, class) pairs, mean of the classes' F1."""
    found = many_of(rows)
    right, total = (found.guesses * found.labels).sum(0), found.guesses.sum(0) + found.labels.sum(0)
    f1 = 2 * right[total > 0] / total[total > 0]
    return {
        "loss": ratio(found.loss.sum(), len(rows)),
        "accuracy": (found.guesses == found.labels).all(1).mean(),
        "micro_f1": 2 * right.sum() / max(total.sum(), 1),
        "macro_f1": f1.mean() if len(f1) else 0.0,
    }


def tag_summary(rows: np.ndarray, names: list[str]) -> dict:
    """Loss, accuracy and macro F1 over tags; of tags like B-PER also precision, recall and F1 of whole entities (seqeval)."""
    found = many_of(rows)
    counted = found.labels != IGNORED
    figures = label_figures(found.guesses[counted], found.labels[counted])
    metrics = {"loss": ratio(found.loss.sum(), counted.sum()), **figures}
    if all(re.fullmatch(r"O|[BIESLU]-.+", name) for name in names):
        from seqeval.metrics import f1_score, precision_score, recall_score

        guessed, given = (tags_of(rows, names, kind) for kind in ("guesses", "labels"))
        for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of no entity at all
                metrics[f"entity_{name}"] = score(given, guessed, zero_division=0)
    return metrics


def tags_of(rows: np.ndarray, names: list[str], kind: str) -> list[list[str]]:
    """The names of the tags guessed or given in each row."""
    found = many_of(rows)
    chosen = zip(getattr(found, kind), found.labels != IGNORED, strict=True)
    return [[names[tag] for tag in row[counted]] for row, counted in chosen]


def span_summary(rows: np.ndarray) -> dict:
    """Loss, share of exact spans, mean overlap F1 of tokens; of rows whose (first) answer lies within the context."""
    found = Span(*rows.T)
    known = found.terms == 2
    shared = np.minimum(found.finish, found.last) - np.maximum(found.begin, found.first) + 1
    lengths = found.finish - found.begin + 1 + found.last - found.first + 1
    exact = (found.begin == found.first) & (found.finish == found.last)
    return {
        "loss": ratio(found.loss.sum(), found.terms.sum()),
        "exact_match": ratio((exact & known).sum(), known.sum()),
        "span_f1": ratio((2 * shared.clip(0) / lengths)[known].sum(), known.sum()),
    }


def answer_figures(guesses: list[str], answers: list[list[str]]) -> dict:
    """SQuAD's exact match and F1: of each row the best over its answers, texts normalised."""
    best = [
        (
            max(normalised(guess) == normalised(answer) for answer in accepted),
            max(word_f1(normalised(guess).split(), normalised(answer).split()) for answer in accepted),
        )
        for guess, accepted in zip(guesses, answers, strict=True)
    ]
    return {
        name: ratio(sum(row[i] for row in best), len(best)) for i, name in enumerate(("squad_exact_match", "squad_f1"))
    }


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and spaces that tell nothing apart (as SQuAD's evaluation)."""
    kept = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def word_f1(guess: list[str], answer: list[str]) -> float:
    """F1 of two bags of words; 1 where both are empty."""
    shared = sum((Counter(guess) & Counter(answer)).values())
    return 2 * shared / (len(guess) + len(answer)) if guess or answer else 1.0


def ratio(total, count) -> float:
    """`ValueError` instead of 0/0."""
    if not count:
        raise ValueError("data to evaluate on has nothing to measure: no label, no answer or no text")
    return total / count


def metrics_of(summary: Callable[[np.ndarray], dict]) -> Callable:
    """A `compute_metrics` for `Trainer`: the summary of the gathered rows."""
    return lambda prediction: {
        name: float(value) for name, value in summary(np.asarray(prediction.predictions, dtype=np.float64)).items()
    }
