"""Language models over text: one stream in memory, or a dataset that is read as training goes on."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from . import examples as ex
from .corpus import Corpus, load_rows, read_corpus
from .metrics import language_summary, token_statistics
from .settings import Recipe
from .task import Plan, Task, prompts_of
from .vocabulary import TRAINED, build_tokenizer, bytes_of_tokens, encoded


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
    if tokenizer is None and data.tokenizer in TRAINED:
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
