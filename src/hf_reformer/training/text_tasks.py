"""Language models over text: windows of one stream in memory (or on disk), or of a dataset that is read as training goes on."""

from collections import Counter
from functools import partial

import numpy as np
import torch

from . import examples as ex
from .corpus import Stream, check_text_column, joined, read_corpus
from .metrics import language_summary, language_windows, token_statistics
from .settings import Recipe
from .sources import fingerprint_of, load_rows, source_of
from .task import Plan, Task, prompts_of
from .vocabulary import TRAINED, build_tokenizer, encoded


class PackedWindows:
    """Windows of `context` tokens that share one with the next: an epoch predicts every token but the first exactly once.

    Args:
        training, held_out: streams of tokens.
        wanted: at most so many windows to evaluate on, spread over the held-out stream; None: all.
    """

    overlap = 1

    def __init__(self, training: Stream, held_out: Stream, context: int, seed: int, wanted: int | None):
        self.stream, self.held_out, self.context, self.seed = training, held_out, context, seed
        self.order = ex.Shuffled(self.count(training), seed)
        self.kept = ex.spread(self.count(held_out), wanted)

    def count(self, stream) -> int:
        return ex.number_of_windows(len(stream), self.context, self.overlap)

    def window(self, stream, index: int):
        """Window `index`; the last one may be shorter."""
        start = index * (self.context - self.overlap)
        return stream[start : start + self.context]

    def training(self, index: int) -> dict:
        return self.example(self.window(self.stream, self.order[index]), ex.TRAINING, index)

    def evaluation(self, index: int) -> dict:
        return self.example(self.prompt(index), ex.EVALUATION, index)

    def example(self, window, purpose: int, index: int, **more) -> dict:
        """A window as an example; `purpose` and `index` are what its random numbers depend on, where it has any."""
        return ex.language_example(window, **more)

    def evaluated_bytes(self, sizes: np.ndarray) -> np.ndarray:
        """(kept windows,) bytes that the predicted tokens stand for: all but the first of each window."""
        return np.array([self.window(sizes, index)[1:].sum(dtype=np.int64) for index in self.kept])

    def prompt(self, index: int) -> np.ndarray:
        return self.window(self.held_out, self.kept[index])


class RandomWindows(PackedWindows):
    """Training windows anywhere in the stream, anywhere among the `context` positions; `window_plan` gives their lengths."""

    def __init__(self, training, held_out, context, seed, wanted, window_plan, plan: Plan):
        super().__init__(training, held_out, context, seed, wanted)
        self.stages, self.plan = window_plan or [[1.0, context]], plan

    def training(self, index: int) -> dict:
        done = (index // self.plan.per_step) / self.plan.steps
        length = int(next(length for until, length in self.stages if done < until))
        random, length = ex.generator(self.seed, ex.TRAINING, index), min(length, len(self.stream))
        start = int(random.integers(len(self.stream) - length + 1))
        first = int(random.integers(self.context - length + 1))
        positions = torch.arange(first, first + length)
        return self.example(self.stream[start : start + length], ex.MASKING, index, position_ids=positions)


class WholeText(PackedWindows):
    """All of the text in one window, in training with its padding split at random between left and right."""

    def __init__(self, training, held_out, context, seed, pad: int):
        super().__init__(training, held_out, context, seed, 1)
        self.pad = pad

    def training(self, index: int) -> dict:
        left = int(ex.generator(self.seed, ex.TRAINING, index).integers(self.context - len(self.stream) + 1))
        return ex.padded_whole(self.stream[:], self.context, self.pad, left)

    def evaluation(self, index: int) -> dict:
        return ex.padded_whole(self.held_out[:], self.context, self.pad, 0)


class Masking:
    """Makes windows share nothing, and masks them: anew each time they are trained on, always the same in evaluation."""

    overlap = 0

    def set_masking(self, share: float, tokenizer) -> None:
        self.share, self.mask = share, tokenizer.mask_token_id
        self.others = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def example(self, window, purpose: int, index: int, **more) -> dict:
        random = ex.generator(self.seed, purpose, index)
        return {**ex.masked_example(window, random, self.share, self.mask, self.others), **more}


class MaskedWindows(Masking, PackedWindows):
    """Windows one after another, masked."""

    def __init__(self, training, held_out, context, seed, wanted, share: float, tokenizer):
        super().__init__(training, held_out, context, seed, wanted)
        self.set_masking(share, tokenizer)


class RandomMaskedWindows(Masking, RandomWindows):
    """Training windows anywhere, masked."""

    def __init__(self, training, held_out, context, seed, wanted, window_plan, plan: Plan, share: float, tokenizer):
        super().__init__(training, held_out, context, seed, wanted, window_plan, plan)
        self.set_masking(share, tokenizer)


def text_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """Causal or masked language model over one stream of text."""
    data = recipe.data
    corpus = read_corpus(data, plan.seed, recipe.task == "masked-lm", tokenizer, trained=plan.steps > 0)
    windows = windows_of(recipe, plan, corpus)
    counts = dict(corpus.counts)
    if plan.steps and len(corpus.training) < data.context and data.windows != "whole":
        counts["training_tokens,_fewer_than_a_window_has"] = len(corpus.training)
    return language_task(
        recipe, windows, corpus.tokenizer, corpus.held_out_sizes, counts,
        training=ex.Examples(plan.examples, windows.training),
        description=f"{len(corpus.training):,} tokens to train on, {len(corpus.held_out):,} held out: {corpus.description}",
        fingerprint=corpus.fingerprint,
        held_out_fingerprint=corpus.held_out_fingerprint,
    )  # fmt: skip


def windows_of(recipe: Recipe, plan: Plan, corpus) -> PackedWindows:
    """The windows that the settings ask for; `ValueError` for a text that they cannot be made of."""
    data, masked = recipe.data, recipe.task == "masked-lm"
    given = corpus.training, corpus.held_out, data.context, plan.seed
    wanted, longest = recipe.evaluation.examples, max(len(corpus.training), len(corpus.held_out))
    if masked and data.windows == "whole":
        raise ValueError("data.windows is 'whole', but must be packed or random for task masked-lm")
    if data.windows == "whole":
        if longest > data.context:
            raise ValueError(
                f"data.context is {data.context}, but must be at least {longest}, the tokens of the text, for windows: whole"
            )
        return WholeText(*given, corpus.tokenizer.pad_token_id or 0)
    plan_of_windows = (data.window_plan, plan) if data.windows == "random" else ()
    masking = (data.mask_share, corpus.tokenizer) if masked else ()
    kinds = (PackedWindows, MaskedWindows), (RandomWindows, RandomMaskedWindows)
    return kinds[data.windows == "random"][masked](*given, wanted, *plan_of_windows, *masking)


def language_task(recipe, windows: PackedWindows, tokenizer, sizes: np.ndarray, counts: dict, **parts) -> Task:
    """A `Task` of a language model over text, evaluated on the kept windows."""
    causal = recipe.task == "causal-lm"
    unit = ("byte" if recipe.data.tokenizer == "byte" else "token") if causal else "masked_token"
    row_bytes = windows.evaluated_bytes(sizes) if causal else None
    return Task(
        evaluation=ex.Examples(len(windows.kept), windows.evaluation),
        statistics=partial(token_statistics, causal=causal),
        summary=partial(language_summary, unit=unit, row_bytes=row_bytes),
        predictions=partial(language_windows, row_bytes=row_bytes),
        vocab_size=len(tokenizer),
        collate=partial(ex.collate, pad=tokenizer.pad_token_id or 0),
        pad=tokenizer.pad_token_id or 0,
        tokenizer=tokenizer,
        unit=unit,
        prompts=prompts_of(ex.Examples(len(windows.kept), windows.prompt), recipe) if causal else [],
        counts=counts,
        **parts,
    )


class StreamedWindows(torch.utils.data.IterableDataset):
    """Packed windows of pass after pass over an iterable dataset, the same each time; a shuffled one has another order in every
    pass.

    `state_dict()` is where the window given last ends. Iterating after `load_state_dict(state)` goes on there, without reading
    what came before (of a shuffled dataset: but for the rows that were in its buffer, as `datasets` says).
    """

    def __init__(self, rows, data, tokenizer):
        self.rows, self.data, self.tokenizer = rows, data, tokenizer
        self.epoch, self.rest, self.resumed = 0, np.zeros(0, np.int64), False

    def __iter__(self):
        return map(ex.language_example, self.windows())

    def windows(self):
        """Windows of `context` tokens that overlap by one; the last one of a pass may be shorter."""
        if not self.resumed:
            self.epoch, self.rest = 0, np.zeros(0, np.int64)
        self.resumed = False
        while True:
            self.rows.set_epoch(self.epoch)
            yield from self.one_pass()
            self.epoch, self.rest = self.epoch + 1, np.zeros(0, np.int64)

    def one_pass(self):
        context = self.data.context
        for row in self.rows:
            while len(self.rest) >= context:  # left by a state that was saved within a row
                yield self.cut(context)
            self.rest = np.concatenate([self.rest, self.ids_of(row)])
            while len(self.rest) >= context:
                yield self.cut(context)
        if len(self.rest) > 1:
            yield self.cut(context)

    def cut(self, context: int) -> np.ndarray:
        window, self.rest = self.rest[:context], self.rest[context - 1 :]
        return window

    def ids_of(self, row) -> np.ndarray:
        """Tokens of a row's text; a line end or the end token after it keeps it apart from the next one."""
        text = (row[self.data.text_column] or "").encode("utf-8", "replace")
        if not text:
            return np.zeros(0, np.int64)
        separate = self.data.separate_documents
        text += b"" if separate or text.endswith(b"\n") else b"\n"
        ids = Stream([encoded(self.tokenizer, np.frombuffer(text, np.uint8), with_sizes=False).ids])[:]
        return np.append(ids, self.tokenizer.eos_token_id) if separate else ids

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "rest": self.rest.tolist(), "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.rest, self.resumed = state["epoch"], np.array(state["rest"], np.int64), True
        self.rows.load_state_dict(state["rows"])


def streamed_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """A language model over a dataset that is read as training goes on, packed, over and over again."""
    data = recipe.data
    check_streaming(recipe, tokenizer)
    tokenizer = tokenizer or build_tokenizer(data, [])
    rows = streamed_rows(data, data.training_split)
    first = list(rows.take(16))
    if data.shuffle_buffer:
        rows = rows.shuffle(seed=plan.seed, buffer_size=data.shuffle_buffer)
    wanted, counts = recipe.evaluation.examples, Counter()
    enough = None if wanted is None else wanted * (data.context - 1) + 1
    texts = (row[data.text_column] or "" for row in streamed_rows(data, data.evaluation_split))
    documents = (np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts if text)
    separator = tokenizer.eos_token_id if data.separate_documents else None
    held_out, sizes = joined(tokenizer, documents, separator, counts, "held_out", enough)
    if len(held_out) < 2:
        raise ValueError(f"data.dataset {data.dataset!r} has no text in column {data.text_column!r} to evaluate on")
    windows = PackedWindows(held_out, held_out, data.context, plan.seed, wanted)
    held_out_fingerprint = fingerprint_of([held_out[:]])
    named = [data.dataset, data.subset, data.revision, data.training_split, [row[data.text_column] for row in first]]
    where = f"the first {wanted} windows" if wanted else "all"
    return language_task(
        recipe, windows, tokenizer, np.concatenate(sizes), dict(counts),
        training=StreamedWindows(rows, data, tokenizer),
        description=f"{data.dataset}, read as training goes on; measured on {where} of split {data.evaluation_split}",
        fingerprint=fingerprint_of([repr(named).encode(), held_out_fingerprint.encode()]),
        held_out_fingerprint=held_out_fingerprint,
    )  # fmt: skip


def check_streaming(recipe: Recipe, tokenizer) -> None:
    """Raises `ValueError` for what streaming cannot do."""
    data = recipe.data
    if recipe.task != "causal-lm" or data.windows != "packed" or source_of(data) != "dataset":
        raise ValueError(
            "data.streaming is true, but must be false but for causal-lm with windows: packed and a data.dataset"
        )
    if tokenizer is None and data.tokenizer in TRAINED:
        raise ValueError(f"data.tokenizer is {data.tokenizer}, but must be byte or a saved one with streaming")
    workers = recipe.training.get("dataloader_num_workers") or 0
    if workers > 1:
        raise ValueError(
            f"training.dataloader_num_workers is {workers}, but must be 0 or 1 with data.streaming: several processes would "
            "change the order of the examples"
        )


def streamed_rows(data, split: str):
    """A split that is read as it goes on; `ValueError` where it is empty or has no such column."""
    rows = load_rows(data, split, streaming=True)
    first = next(iter(rows.take(1)), None)
    if first is None:
        raise ValueError(f"data.dataset {data.dataset!r} has no rows in split {split!r}")
    check_text_column(data, first)
    return rows
