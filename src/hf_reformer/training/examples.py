"""Examples as pure functions of (seed, index): whatever order or process asks for them, and after any interruption.

`Trainer` reads them in order, one pass over as many as the run needs, so its skipping of batches on resuming is exact. An
example is a dict of tensors: `input_ids` (L,), `labels` (L,) or (), and what else the model takes.
"""

from collections.abc import Callable

import numpy as np
import torch

from ..model.losses import IGNORED

TRAINING, EVALUATION, MASKING = 0, 1, 2  # separate the random numbers; the last are of windows that chance has drawn
PADDING = {"labels": IGNORED}  # what fills up the other keys is the padding token or 0


class Examples(torch.utils.data.Dataset):
    """`count` examples, each made by `make(index)` when it is asked for; `make` is a method of something that pickles, since
    processes that load data may be spawned."""

    def __init__(self, count: int, make: Callable[[int], dict]):
        self.count, self.make = count, make

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(int(index))


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers that depend on these numbers alone."""
    return np.random.default_rng([seed, *purpose])


class Shuffled:
    """Which of `count` rows is the `index`-th to be read: every pass over them is another permutation."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch, self.order = count, seed, None, None

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self.count)
        if self.epoch != epoch:
            self.epoch, self.order = epoch, generator(self.seed, TRAINING, epoch).permutation(self.count)
        return int(self.order[place])


class Grouped:
    """The order `order` with examples of like sizes in one step: `STEPS` steps at a time are sorted by size and dealt out anew.

    Args:
        order: index -> row.
        sizes: of each row.
        per_step: examples of a step.
    """

    STEPS = 50  # as the library's `group_by_length`

    def __init__(self, order, sizes: np.ndarray, per_step: int, seed: int):
        self.order, self.sizes, self.per_step, self.seed = order, sizes, per_step, seed
        self.group, self.rows = None, None

    def __getitem__(self, index: int) -> int:
        group, place = divmod(index, self.STEPS * self.per_step)
        if self.group != group:
            self.group, self.rows = group, self.rows_of(group)
        return int(self.rows[place])

    def rows_of(self, group: int) -> np.ndarray:
        """Rows of a group of steps, each step's together, the longest of them first."""
        first, count = group * self.STEPS * self.per_step, self.STEPS * self.per_step
        rows = np.array([self.order[first + i] for i in range(count)])
        rows = rows[np.argsort(-self.sizes[rows], kind="stable")].reshape(self.STEPS, self.per_step)
        return rows[generator(self.seed, TRAINING, group, count).permutation(self.STEPS)].reshape(-1)


def spread(count: int, wanted: int | None) -> list[int]:
    """At most `wanted` of the indices 0 to `count` - 1, evenly spread."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def number_of_windows(tokens: int, length: int, overlap: int) -> int:
    """Windows of `length` tokens that share `overlap` tokens with the next one and cover all `tokens`."""
    return max(1, -(-(tokens - overlap) // (length - overlap)))


def language_example(ids: np.ndarray, **more) -> dict:
    """A window of a causal language model."""
    ids = torch.from_numpy(ids)
    return {"input_ids": ids, "labels": ids.clone(), **more}


def padded_whole(stream: np.ndarray, context: int, pad: int, left: int) -> dict:
    """The whole stream with `left` of its padding before it, the rest after; positions count from the first padding token."""
    ids = torch.full((context,), pad, dtype=torch.int64)
    labels = torch.full((context,), IGNORED, dtype=torch.int64)
    real = slice(left, left + len(stream))
    ids[real] = labels[real] = torch.from_numpy(stream)
    mask = torch.zeros(context, dtype=torch.int64)
    mask[real] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": torch.arange(context)}


def masked_example(ids: np.ndarray, random: np.random.Generator, share: float, mask: int, others: np.ndarray) -> dict:
    """BERT's task: of a `share` of the tokens (at least one) 80 % are masked, 10 % replaced by one of `others`, 10 % left."""
    chosen = random.random(len(ids)) < share
    chosen[random.integers(len(ids))] = True  # a window without any would have no loss
    labels = np.where(chosen, ids, IGNORED)
    what = random.random(len(ids))
    replaced = chosen & (what >= 0.8) & (what < 0.9)
    ids = np.where(chosen & (what < 0.8), mask, ids)
    ids[replaced] = random.choice(others, int(replaced.sum()))
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def duplication_example(length: int, symbols: int, random: np.random.Generator) -> dict:
    """0w0w (paper, section 5.2); the loss is over the second w."""
    half = length // 2
    word = torch.from_numpy(random.integers(1, symbols + 1, half - 1))
    zero = torch.zeros(1, dtype=torch.int64)
    ids = torch.cat([zero, word, zero, word])
    labels = ids.clone()
    labels[: half + 1] = IGNORED
    return {"input_ids": ids, "labels": labels}


def reversal_example(length: int, symbols: int, random: np.random.Generator) -> dict:
    """Symbols, and the same from the last to the first."""
    ids = torch.from_numpy(random.integers(1, symbols + 1, length))
    return {"input_ids": ids, "labels": ids.flip(0)}


def recall_example(length: int, data, dense: bool, random: np.random.Generator) -> dict:
    """Pairs of a key and its value, then fillers or, where it is `dense`, keys; the label of a key that asks is its value."""
    half, rest = data.symbols // 2, length - 2 * data.pairs
    keys = 1 + random.permutation(half)[: data.pairs]
    values = 1 + half + random.permutation(half)[: data.pairs]
    ids = np.empty(length, dtype=np.int64)
    ids[: 2 * data.pairs] = np.stack([keys, values], 1).ravel()
    asked = random.integers(data.pairs, size=rest) if dense else random.permutation(data.pairs)
    places = np.arange(rest) if dense else random.permutation(rest)[: data.pairs]
    ids[2 * data.pairs :] = 1 + data.symbols + random.integers(data.fillers, size=rest)
    ids[2 * data.pairs + places] = keys[asked]
    labels = np.full(length, IGNORED, dtype=np.int64)
    labels[2 * data.pairs + places] = values[asked]
    labels[1:] = labels[:-1].copy()  # a causal model's labels are shifted: the value is what would come after its key
    labels[0] = IGNORED
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def collate(rows: list[dict], pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows of one batch as tensors (B, L), padded on the right where their lengths differ, with a mask then."""
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    if min(lengths) < longest:
        rows = [{"attention_mask": torch.ones(len(row["input_ids"]), dtype=torch.int64), **row} for row in rows]
    batch = {}
    for key in rows[0]:
        values = [torch.as_tensor(row[key]) for row in rows]
        if values[0].ndim == 1:
            fill = pad if key == "input_ids" else PADDING.get(key, 0)
            values = [torch.nn.functional.pad(value, (0, longest - len(value)), value=fill) for value in values]
        batch[key] = torch.stack(values)
    return batch
