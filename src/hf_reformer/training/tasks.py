"""The task of a recipe: examples for training and evaluation, the model's class, metrics."""

from functools import partial

from ..model import heads, modeling_reformer
from . import examples as ex
from .corpus import Corpus
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
from .task import Plan, Task, prompts_of
from .text_tasks import streamed_task, text_task
from .vocabulary import build_tokenizer

MODELS = {
    "causal-lm": modeling_reformer.ReformerModelWithLMHead,
    "masked-lm": modeling_reformer.ReformerForMaskedLM,
    "classification": heads.ReformerForSequenceClassification,
    "question-answering": heads.ReformerForQuestionAnswering,
    "token-classification": heads.ReformerForTokenClassification,
}
EVALUATION_SYMBOLS = 1024  # duplication examples to evaluate on, where the recipe does not say


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
