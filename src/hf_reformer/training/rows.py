"""Rows of labelled text: classes of documents, answers in contexts, tags of words. Read, encoded one by one."""

import hashlib
import json
from pathlib import Path

import torch

from ..model.losses import IGNORED
from .corpus import load_rows, missing_data
from .generated import TAGS, generated_questions, generated_reviews, generated_tags
from .settings import ClassificationData, QuestionData, TagData

GENERATORS = {
    ClassificationData: (generated_reviews, ["blamed", "praised"]),
    QuestionData: (generated_questions, None),
    TagData: (generated_tags, TAGS),
}
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
BEYOND = 1 << 30  # a position past every text: the loss leaves it out


def read_rows(data, seed: int):
    """(training rows, evaluation rows, names of the labels or None, a line that says what they are)."""
    if data.generated is not None:
        make, names = GENERATORS[type(data)]
        return make(data.generated, seed), make(max(4, data.generated // 4), seed + 1), names, "generated rows"
    if data.dataset is not None:
        training, evaluation = (load_rows(data, split) for split in (data.training_split, data.evaluation_split))
        name = data.dataset
    elif data.files is not None and data.evaluation_files is not None:
        training, evaluation = local_rows(data.files, "files"), local_rows(data.evaluation_files, "evaluation_files")
        name = "files of the user's own"
    else:
        if data.files is not None:
            raise ValueError("data.evaluation_files is missing: rows to evaluate on are files of their own")
        raise missing_data(data)
    for column in columns_of(data):
        if column not in training.column_names:
            raise ValueError(f"data: column {column!r} is missing; the rows have {', '.join(training.column_names)}")
    return training, evaluation, label_names(data, training), name


def columns_of(data) -> list[str]:
    """Columns that the settings need."""
    return [getattr(data, name) for name in type(data).__dataclass_fields__ if name.endswith("_column")]


def local_rows(paths: list[str] | str, key: str):
    """Rows of JSON lines, CSV or Parquet files."""
    import datasets

    paths = [paths] if isinstance(paths, str) else paths
    kinds = {Path(path).suffix for path in paths}
    if len(kinds) != 1 or not kinds <= BUILDERS.keys():
        raise ValueError(f"data.{key} is {paths}, but must be files of one of the kinds {', '.join(BUILDERS)}")
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"data.{key}: {path!r} does not exist")
    try:
        return datasets.load_dataset(BUILDERS[kinds.pop()], data_files=list(paths), split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"data.{key}: {paths} cannot be read: {error.__cause__ or error}") from None


def label_names(data, rows) -> list[str] | None:
    """Names of classes or tags: the dataset's own, or the values that occur, in order."""
    if isinstance(data, QuestionData):
        return None
    column = data.label_column if isinstance(data, ClassificationData) else data.tags_column
    feature = rows.features[column]
    feature = getattr(feature, "feature", feature)
    if hasattr(feature, "names"):
        return list(feature.names)
    values = rows[column] if isinstance(data, ClassificationData) else [tag for tags in rows[column] for tag in tags]
    values = sorted(set(values))
    return [str(value) for value in values]


def label_of(value, names: list[str]) -> int:
    """Index of a label, which may be its name or its number."""
    if str(value) in names:
        return names.index(str(value))
    if isinstance(value, int) and 0 <= value < len(names):
        return value
    raise ValueError(f"data holds the label {value!r}, but allowed are {', '.join(names)}")


def answerable(rows, data: QuestionData) -> list[int]:
    """Rows to train on: those with an answer that surely lies within the context (no text has more tokens than bytes)."""
    kept = []
    for i, row in enumerate(rows):
        answers = row[data.answers_column]
        if not answers["text"]:
            continue
        until = row[data.context_column][: answers["answer_start"][0]] + answers["text"][0]
        question = min(len(row[data.question_column].encode()), data.context // 2)
        if question + 1 + len(until.encode()) <= data.context:
            kept.append(i)
    if not kept:
        raise ValueError(
            f"data has {len(rows)} rows, but none whose answer lies within data.context, {data.context} tokens"
        )
    return kept


def classified(row, data: ClassificationData, tokenizer, names) -> dict:
    """Tokens of the text and its label; texts are cut to the context."""
    ids = tokenizer(row[data.text_column], truncation=True, max_length=data.context).input_ids
    ids = ids or [tokenizer.pad_token_id or 0]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(label_of(row[data.label_column], names))}


def questioned(row, data: QuestionData, tokenizer, names=None) -> dict:
    """Question, end token, context, cut to the model's context; an answer that was cut off counts for no loss."""
    question = tokenizer(row[data.question_column], add_special_tokens=False).input_ids
    question = question[: data.context // 2] + [separator_of(tokenizer)]
    context = tokenizer(row[data.context_column], add_special_tokens=False, return_offsets_mapping=True)
    room = data.context - len(question)
    start, end = answer_tokens(row[data.answers_column], context["offset_mapping"][:room])
    return {
        "input_ids": torch.tensor(question + context.input_ids[:room]),
        "start_positions": torch.tensor(min(len(question) + start, BEYOND)),
        "end_positions": torch.tensor(min(len(question) + end, BEYOND)),
    }


def separator_of(tokenizer) -> int:
    """The token between question and context."""
    known = [i for i in (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    if not known:
        raise ValueError("data.tokenizer has no separator, end or padding token, but must have one for questions")
    return known[0]


def answer_tokens(answers: dict, offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of the first answer, `BEYOND` where it is not there."""
    if not answers["text"]:
        return BEYOND, BEYOND
    begin = answers["answer_start"][0]
    finish = begin + len(answers["text"][0])
    inside = [i for i, (left, right) in enumerate(offsets) if left < finish and right > begin]
    whole = bool(inside) and offsets[-1][1] >= finish
    return (inside[0], inside[-1]) if whole else (BEYOND, BEYOND)


def tagged(row, data: TagData, tokenizer, names) -> dict:
    """Words with a space between them; the first token of each word has its tag, the others none."""
    ids, labels = [], []
    for i, (word, tag) in enumerate(zip(row[data.words_column], row[data.tags_column], strict=True)):
        part = tokenizer(word if i == 0 else " " + word, add_special_tokens=False).input_ids
        ids += part
        labels += ([label_of(tag, names)] + [IGNORED] * (len(part) - 1)) if part else []
    return {"input_ids": torch.tensor(ids[: data.context]), "labels": torch.tensor(labels[: data.context])}


def texts_of(rows, data) -> list[bytes]:
    """All text of the rows, to train a tokenizer on."""
    if isinstance(data, TagData):
        return [" ".join(row[data.words_column]).encode("utf-8", "replace") for row in rows]
    columns = (
        [data.text_column] if isinstance(data, ClassificationData) else [data.question_column, data.context_column]
    )
    return [row[column].encode("utf-8", "replace") for row in rows for column in columns]


def rows_fingerprint(training, evaluation) -> str:
    """Changes with any row; of datasets it is the fingerprint that `datasets` keeps."""
    parts = [getattr(rows, "_fingerprint", None) or json.dumps(rows) for rows in (training, evaluation)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
