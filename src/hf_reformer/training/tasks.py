"""What each task trains on: examples for training and evaluation, the model's class, metrics; made from a recipe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from .. import heads, modeling_reformer
from . import examples as ex
from .corpus import Corpus, load_rows, read_corpus
from .images import read_images
from .metrics import (
    class_statistics,
    copy_summary,
    label_summary,
    language_summary,
    span_statistics,
    span_summary,
    token_statistics,
)  # fmt: skip
from .rows import answerable, classified, questioned, read_rows, rows_fingerprint, tagged, texts_of
from .settings import ClassificationData, DuplicationData, ImageData, QuestionData, Recipe
from .vocabulary import build_tokenizer, bytes_of_tokens, encoded

MODELS = {
    "causal-lm": modeling_reformer.ReformerModelWithLMHead,
    "masked-lm": modeling_reformer.ReformerForMaskedLM,
    "classification": heads.ReformerForSequenceClassification,
    "question-answering": heads.ReformerForQuestionAnswering,
    "token-classification": heads.ReformerForTokenClassification,
}
EVALUATION_SYMBOLS = 1024  # duplication examples to evaluate on, where the recipe does not say


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


def build_task(recipe: Recipe, plan: Plan, tokenizer=None) -> Task:
    """The task of a recipe; `tokenizer` takes the place of the one that it names (a resumed run, a saved model).

    Raises:
        ValueError: where data is missing or does not fit.
    """
    data = recipe.data
    if isinstance(data, DuplicationData):
        return duplication_task(recipe, plan)
    if isinstance(data, ImageData):
        return image_task(recipe, plan)
    if recipe.task in ("causal-lm", "masked-lm"):
        if data.streaming:
            return streamed_task(recipe, plan, tokenizer)
        return text_task(recipe, plan, tokenizer)
    return rows_task(recipe, plan, tokenizer)


def duplication_task(recipe: Recipe, plan: Plan) -> Task:
    data = recipe.data

    def make(purpose, index):
        return ex.duplication_example(data.length, data.symbols, ex.generator(plan.seed, purpose, index))

    count = recipe.evaluation.examples or EVALUATION_SYMBOLS
    return Task(
        training=ex.Examples(plan.examples, partial(make, ex.TRAINING)),
        evaluation=ex.Examples(count, partial(make, ex.EVALUATION)),
        statistics=partial(token_statistics, causal=True),
        summary=copy_summary,
        fingerprint=f"0w0w-{data.length}-{data.symbols}",
        description=f"0w0w sequences of {data.length} symbols, drawn anew for every step",
        vocab_size=data.symbols + 1,
    )


def image_task(recipe: Recipe, plan: Plan) -> Task:
    training, evaluation, description = read_images(recipe.data, plan.seed)
    kept = evaluation[ex.spread(len(evaluation), recipe.evaluation.examples)]
    order = {}

    def make(index):
        return ex.language_example(training[ex.shuffled_index(index, len(training), plan.seed, order)])

    return Task(
        training=ex.Examples(plan.examples, make),
        evaluation=ex.Examples(len(kept), lambda index: ex.language_example(kept[index])),
        statistics=partial(token_statistics, causal=True),
        summary=language_summary("dimension"),
        fingerprint=Corpus(training, kept, None, "").fingerprint(),
        description=f"{len(training):,} images to train on: {description}",
        vocab_size=256,
        unit="dimension",
        prompts=prompts_of(kept, recipe),
    )


def prompts_of(rows, recipe: Recipe) -> list[torch.Tensor]:
    """The first tokens of some evaluation rows, at most half of each."""
    wanted, length = recipe.evaluation.samples, recipe.evaluation.prompt_tokens
    chosen = [rows[i] for i in ex.spread(len(rows), wanted)] if wanted else []
    return [torch.from_numpy(np.asarray(row[: min(length, len(row) // 2)]).astype(np.int64)) for row in chosen]


def text_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """Causal or masked language model over one stream of text."""
    data, masked = recipe.data, recipe.task == "masked-lm"
    corpus = read_corpus(data, plan.seed, masked, tokenizer)
    pad = corpus.tokenizer.pad_token_id or 0
    check_stream(corpus, data, masked)
    windows = held_out_windows(corpus.held_out, data.context, masked, recipe.evaluation.examples)
    if data.windows == "whole":
        make = partial(whole, corpus.training, data.context, pad, plan.seed)
        held_out = [ex.padded_whole(corpus.held_out, data.context, pad, 0)]
        evaluation = ex.Examples(1, held_out.__getitem__)
    elif masked:
        make = masked_maker(corpus.training, data, plan, corpus.tokenizer)
        evaluation = ex.Examples(len(windows), masked_evaluation(windows, data, plan.seed, corpus.tokenizer))
    else:
        make = causal_maker(corpus.training, data, plan)
        evaluation = ex.Examples(len(windows), lambda index: ex.language_example(windows[index]))
    return language_task(
        recipe, corpus.tokenizer, corpus.fingerprint(),
        f"{len(corpus.training):,} tokens to train on, {len(corpus.held_out):,} held out: {corpus.description}",
        ex.Examples(plan.examples, make), evaluation, windows,
    )  # fmt: skip


def language_task(recipe, tokenizer, fingerprint, description, training, evaluation, windows) -> Task:
    """A `Task` of a language model over text."""
    causal = recipe.task == "causal-lm"
    sizes = torch.from_numpy(bytes_of_tokens(tokenizer, len(tokenizer)))
    unit = "byte" if recipe.data.tokenizer == "byte" else "token"
    return Task(
        training=training,
        evaluation=evaluation,
        statistics=partial(token_statistics, token_bytes=sizes, causal=causal),
        summary=language_summary(unit if causal else "masked_token"),
        fingerprint=fingerprint,
        description=description,
        vocab_size=len(tokenizer),
        pad=tokenizer.pad_token_id or 0,
        tokenizer=tokenizer,
        unit=unit if causal else "masked_token",
        prompts=prompts_of(windows, recipe) if causal else [],
    )


def check_stream(corpus: Corpus, data, masked: bool) -> None:
    """Raises `ValueError` for a text that the windows cannot be made of."""
    if data.windows == "whole":
        if masked:
            raise ValueError("data.windows is 'whole', but must be packed for task masked-lm")
        if len(corpus.training) > data.context:
            raise ValueError(
                f"data.context is {data.context}, but must be at least {len(corpus.training)}, the tokens of the text, for "
                "windows: whole"
            )
    if data.windows == "random" and masked:
        raise ValueError("data.windows is 'random', but must be packed for task masked-lm")


def held_out_windows(stream: np.ndarray, context: int, masked: bool, wanted: int | None) -> list[np.ndarray]:
    """Windows of the held-out stream, spread over it."""
    overlap = 0 if masked else 1
    count = ex.number_of_windows(len(stream), context, overlap)
    return [ex.packed_window(stream, i, context, overlap) for i in ex.spread(count, wanted)]


def whole(stream, context, pad, seed, index) -> dict:
    """The text with its padding split at random (by seed and index)."""
    left = int(ex.generator(seed, ex.TRAINING, index).integers(context - len(stream) + 1))
    return ex.padded_whole(stream, context, pad, left)


def causal_maker(stream, data, plan: Plan) -> Callable[[int], dict]:
    """`make(index)` for packed or random windows."""
    if data.windows == "random":
        stages = data.window_plan or [[1.0, data.context]]

        def make(index):
            done = (index // plan.per_step) / plan.steps
            length = int(next(length for until, length in stages if done < until))
            return ex.random_window(stream, length, data.context, ex.generator(plan.seed, ex.TRAINING, index))

        return make
    count, order = ex.number_of_windows(len(stream), data.context, 1), {}
    return lambda index: ex.language_example(
        ex.packed_window(stream, ex.shuffled_index(index, count, plan.seed, order), data.context, 1)
    )


def masked_maker(stream, data, plan: Plan, tokenizer) -> Callable[[int], dict]:
    """`make(index)`: packed windows, masked anew each time they are read."""
    count, order = ex.number_of_windows(len(stream), data.context, 0), {}

    def make(index):
        window = ex.packed_window(stream, ex.shuffled_index(index, count, plan.seed, order), data.context, 0)
        return masked(window, data, tokenizer, ex.generator(plan.seed, ex.TRAINING, index))

    return make


def masked_evaluation(windows, data, seed, tokenizer) -> Callable[[int], dict]:
    """`make(index)`: held-out windows, always masked the same."""
    return lambda index: masked(windows[index], data, tokenizer, ex.generator(seed, ex.EVALUATION, index))


def masked(window, data, tokenizer, random) -> dict:
    special = len([i for i in tokenizer.all_special_ids if i != tokenizer.mask_token_id])
    return ex.masked_example(
        window, random, data.mask_share, tokenizer.mask_token_id, special, min(len(tokenizer), tokenizer.mask_token_id)
    )


def streamed_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """A language model over a dataset that is read as training goes on, packed, over and over again."""
    data = recipe.data
    if recipe.task != "causal-lm" or data.windows != "packed" or data.dataset is None:
        raise ValueError(
            "data.streaming is true, but must be false but for causal-lm with windows: packed and a data.dataset"
        )
    if tokenizer is None and data.tokenizer in ("bpe", "byte-bpe"):
        raise ValueError(f"data.tokenizer is {data.tokenizer}, but must be byte or a saved one with streaming")
    tokenizer = tokenizer or build_tokenizer(data, [])
    rows = load_rows(data, data.training_split, streaming=True)
    if data.shuffle_buffer:
        rows = rows.shuffle(seed=plan.seed, buffer_size=data.shuffle_buffer)
    evaluation = load_rows(data, data.evaluation_split, streaming=True)
    wanted = recipe.evaluation.examples or 16
    windows = [w for w, _ in zip(packed_stream(evaluation, data, tokenizer), range(wanted), strict=False)]
    held_out = ex.Examples(len(windows), lambda index: ex.language_example(windows[index]))
    return language_task(
        recipe, tokenizer, f"stream-{data.dataset}-{data.training_split}",
        f"{data.dataset}, read as training goes on", ex.StreamedExamples(partial(endless, rows, data, tokenizer)),
        held_out, windows,
    )  # fmt: skip


def endless(rows, data, tokenizer):
    """Packed windows of pass after pass over the rows; a shuffled dataset has another order in every pass."""
    epoch = 0
    while True:
        rows.set_epoch(epoch)
        found = 0
        for window in packed_stream(rows, data, tokenizer):
            found += 1
            yield ex.language_example(window)
        if not found:
            raise ValueError(f"data.dataset {data.dataset!r} has no text in column {data.text_column!r}")
        epoch += 1


def packed_stream(rows, data, tokenizer):
    """Windows of `context` tokens that overlap by one; the last one of the pass may be shorter."""
    rest = np.zeros(0, np.int64)
    for row in rows:
        ids = encoded(tokenizer, (row[data.text_column] or "").encode("utf-8", "replace")).astype(np.int64)
        end = [tokenizer.eos_token_id] if data.separate_documents else []
        rest = np.concatenate([rest, ids, np.array(end, np.int64)])
        while len(rest) >= data.context:
            yield rest[: data.context]
            rest = rest[data.context - 1 :]
    if len(rest) > 1:
        yield rest


def rows_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """Classification, question answering or tagging of rows."""
    data = recipe.data
    training, evaluation, names, description = read_rows(data, plan.seed)
    if tokenizer is None:
        tokenizer = build_tokenizer(data, texts_of(training, data))
    encode = classified if isinstance(data, ClassificationData) else questioned if names is None else tagged
    kept = [evaluation[i] for i in ex.spread(len(evaluation), recipe.evaluation.examples)]
    usable = answerable(training, data) if isinstance(data, QuestionData) else range(len(training))
    order = {}

    def make(index):
        row = training[usable[ex.shuffled_index(index, len(usable), plan.seed, order)]]
        return encode(row, data, tokenizer, names)

    statistics, summary = statistics_of(data, names)
    return Task(
        training=ex.Examples(plan.examples, make),
        evaluation=ex.Examples(len(kept), lambda index: encode(kept[index], data, tokenizer, names)),
        statistics=statistics,
        summary=summary,
        fingerprint=rows_fingerprint(training, kept),
        description=f"{len(usable):,} rows to train on, {len(kept):,} to evaluate on: {description}",
        vocab_size=len(tokenizer),
        pad=tokenizer.pad_token_id or 0,
        tokenizer=tokenizer,
        model_fields={}
        if names is None
        else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}},
    )


def statistics_of(data, names):
    """How rows of a format are measured."""
    if isinstance(data, QuestionData):
        return span_statistics, span_summary
    if isinstance(data, ClassificationData):
        return partial(class_statistics, classes=len(names)), label_summary
    return partial(token_statistics, confusion=len(names)), label_summary
