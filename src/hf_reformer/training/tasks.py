"""The task of a recipe: examples for training and evaluation, the model's class, metrics."""

from functools import partial

import numpy as np

from ..model import encoder_decoder, heads, modeling_reformer
from . import examples as ex
from .images import Images, processor_of, read_images
from .metrics import copy_summary, language_summary, language_windows, sequence_summary, token_statistics
from .row_formats import FORMATS, RowFormat
from .rows import read_rows
from .settings import DuplicationData, ImageData, RecallData, Recipe, ReversalData
from .sources import fingerprint_of
from .task import Plan, Task, prompts_of
from .text_tasks import streamed_task, text_task
from .vocabulary import build_tokenizer

MODELS = {
    "causal-lm": modeling_reformer.ReformerModelWithLMHead,
    "masked-lm": modeling_reformer.ReformerForMaskedLM,
    "classification": heads.ReformerForSequenceClassification,
    "question-answering": heads.ReformerForQuestionAnswering,
    "token-classification": heads.ReformerForTokenClassification,
    "seq2seq": encoder_decoder.ReformerForConditionalGeneration,
}
EVALUATION_DRAWN = 1024  # drawn examples to evaluate on, where the recipe does not say


def build_task(recipe: Recipe, plan: Plan, tokenizer=None) -> Task:
    """The task of a recipe; `tokenizer` takes the place of the one that it names (a resumed run, a saved model).

    Raises:
        ValueError: where data is missing or does not fit.
    """
    data = recipe.data
    if isinstance(data, DuplicationData):
        return duplication_task(recipe, plan)
    if isinstance(data, ReversalData):
        return reversal_task(recipe, plan)
    if isinstance(data, RecallData):
        return recall_task(recipe, plan)
    if isinstance(data, ImageData):
        return image_task(recipe, plan)
    if recipe.task in ("causal-lm", "masked-lm"):
        return (streamed_task if data.streaming else text_task)(recipe, plan, tokenizer)
    return rows_task(recipe, plan, tokenizer)


class Drawn:
    """Examples of one length, drawn by their index."""

    def __init__(self, data, seed: int, make):
        self.data, self.seed, self.make = data, seed, make

    def __call__(self, purpose: int, index: int) -> dict:
        return self.make(self.data.length, self.data.symbols, ex.generator(self.seed, purpose, index))


def drawn_task(recipe: Recipe, plan: Plan, name: str, make, **measured) -> Task:
    """A task whose examples `make` draws anew for every step; `measured`: `statistics` and `summary`."""
    data, drawn = recipe.data, Drawn(recipe.data, plan.seed, make)
    name = f"{name}-{data.length}-{data.symbols}"
    return Task(
        training=ex.Examples(plan.examples, partial(drawn, ex.TRAINING)),
        evaluation=ex.Examples(recipe.evaluation.examples or EVALUATION_DRAWN, partial(drawn, ex.EVALUATION)),
        predictions=partial(language_windows, row_bytes=None),
        fingerprint=name,
        held_out_fingerprint=f"{name}-{plan.seed}",
        vocab_size=data.symbols + 1,
        **measured,
    )


def duplication_task(recipe: Recipe, plan: Plan) -> Task:
    return drawn_task(
        recipe, plan, "0w0w", ex.duplication_example, statistics=partial(token_statistics, causal=True), summary=copy_summary,
        description=f"0w0w sequences of {recipe.data.length} symbols, drawn anew for every step",
    )  # fmt: skip


def reversal_task(recipe: Recipe, plan: Plan) -> Task:
    return drawn_task(
        recipe, plan, "reversal", ex.reversal_example, statistics=token_statistics, summary=sequence_summary,
        description=f"{recipe.data.length} symbols to be written from the last to the first, drawn anew for every step",
    )  # fmt: skip


class RecallRows:
    """Rows of associative recall; in training those of one step have one length."""

    def __init__(self, data, plan: Plan):
        self.data, self.plan = data, plan

    def training(self, index: int) -> dict:
        step, lengths = index // self.plan.per_step, self.data.training_lengths or [self.data.length]
        dense = step < self.data.repeated * self.plan.steps
        length = lengths[0] if dense else lengths[step % len(lengths)]
        return ex.recall_example(length, self.data, dense, ex.generator(self.plan.seed, ex.TRAINING, index))

    def evaluation(self, index: int) -> dict:
        return ex.recall_example(self.data.length, self.data, False, ex.generator(self.plan.seed, ex.EVALUATION, index))


def recall_task(recipe: Recipe, plan: Plan) -> Task:
    data, rows = recipe.data, RecallRows(recipe.data, plan)
    name = f"recall-{data.length}-{data.pairs}-{data.symbols}-{data.fillers}"
    lengths = data.training_lengths or [data.length]
    return Task(
        training=ex.Examples(plan.examples, rows.training),
        evaluation=ex.Examples(recipe.evaluation.examples or EVALUATION_DRAWN, rows.evaluation),
        statistics=partial(token_statistics, causal=True),
        summary=copy_summary,
        predictions=partial(language_windows, row_bytes=None),
        fingerprint=f"{name}-{lengths}-{data.repeated}",
        held_out_fingerprint=f"{name}-{plan.seed}",
        vocab_size=data.vocab_size,
        description=f"{data.pairs} keys with values and a question for each among {data.length:,} tokens, drawn anew for every "
        f"step; in training rows of {', '.join(f'{length:,}' for length in lengths)} tokens",
    )


class ImageRows:
    """Images as examples of a causal language model."""

    def __init__(self, training: Images, held_out: Images, seed: int, kept: list[int]):
        self.images, self.held_out, self.kept = training, held_out, kept
        self.order = ex.Shuffled(len(training), seed)

    def training(self, index: int) -> dict:
        return ex.language_example(self.images[self.order[index]].astype(np.int64))

    def prompt(self, index: int) -> np.ndarray:
        return self.held_out[self.kept[index]].astype(np.int64)

    def evaluation(self, index: int) -> dict:
        return ex.language_example(self.prompt(index))


def image_task(recipe: Recipe, plan: Plan) -> Task:
    training, held_out, description = read_images(recipe.data, plan.seed, trained=plan.steps > 0)
    rows = ImageRows(training, held_out, plan.seed, ex.spread(len(held_out), recipe.evaluation.examples))
    prints = training.fingerprint(), held_out.fingerprint()
    trained = "" if training is held_out else f"{len(training):,} images to train on, "
    return Task(
        training=ex.Examples(plan.examples, rows.training),
        evaluation=ex.Examples(len(rows.kept), rows.evaluation),
        statistics=partial(token_statistics, causal=True),
        summary=partial(language_summary, unit="dimension", row_bytes=None),
        predictions=partial(language_windows, row_bytes=None),
        fingerprint=fingerprint_of(part.encode() for part in prints),
        held_out_fingerprint=prints[1],
        description=f"{trained}{len(held_out):,} held out: {description}",
        image_processor=processor_of(recipe.data, first_values=training.first_values()),
        vocab_size=256,
        unit="dimension",
        prompts=prompts_of(ex.Examples(len(rows.kept), rows.prompt), recipe),
    )


class RowExamples:
    """Rows of a format as examples."""

    def __init__(self, rows, form: RowFormat, plan: Plan):
        self.rows, self.form = rows, form
        self.order = ex.Shuffled(len(form.usable), plan.seed)
        if form.data.group_by_length and plan.steps:
            self.order = ex.Grouped(self.order, form.sizes(rows), plan.per_step, plan.seed)

    def training(self, index: int) -> dict:
        return self.form.encode(self.rows[self.form.usable[self.order[index]]])

    def evaluation(self, index: int) -> dict:
        return self.form.encode(self.form.kept[index])


def rows_task(recipe: Recipe, plan: Plan, tokenizer) -> Task:
    """Classification, question answering or tagging of rows."""
    data = recipe.data
    rows = read_rows(data, plan.seed)
    kind = FORMATS[type(data)]
    if tokenizer is None:
        tokenizer = build_tokenizer(data, kind.texts_of(rows.training, data))
    kept = [rows.evaluation[i] for i in ex.spread(len(rows.evaluation), recipe.evaluation.examples)]
    form = kind(data, rows, kept, tokenizer)
    examples = RowExamples(rows.training, form, plan)
    return Task(
        training=ex.Examples(plan.examples, examples.training),
        evaluation=ex.Examples(len(kept), examples.evaluation),
        statistics=form.statistics,
        summary=form.summary,
        predictions=form.predictions,
        fingerprint=rows.fingerprint,
        held_out_fingerprint=rows.held_out_fingerprint,
        description=f"{len(form.usable):,} rows to train on, {len(kept):,} to evaluate on: {rows.description}",
        vocab_size=len(tokenizer),
        collate=form.collate,
        label_names=form.label_names,
        pad=tokenizer.pad_token_id,
        tokenizer=tokenizer,
        model_fields=form.model_fields,
        counts=form.counts,
    )
