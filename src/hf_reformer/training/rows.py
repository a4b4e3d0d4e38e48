"""Rows of labelled text: read from files, the Hub or a generator, checked, and their labels told apart."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .generated import TAGS, generated_pairs, generated_questions, generated_reviews, generated_tags
from .settings import ClassificationData, PairData, QuestionData, TagData
from .sources import as_list, fingerprint_of, load_rows, source_of

GENERATORS = {
    ClassificationData: (generated_reviews, ["blamed", "praised"]),
    QuestionData: (generated_questions, None),
    TagData: (generated_tags, TAGS),
    PairData: (generated_pairs, None),
}
BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Labels:
    """The classes of rows.

    Args:
        kind: `class` (one per row, or per word), `several` (a list of those that hold), `number` (regression).
        indexed: rows hold indices of the names, as a `ClassLabel` column does; else the values that the names are.
    """

    names: list[str]
    kind: str = "class"
    indexed: bool = False

    def index(self, value) -> int:
        """Index of a label; `ValueError` for one that is not among those of the training rows."""
        if self.indexed and type(value) is int and 0 <= value < len(self.names):
            return value
        if not self.indexed and str(value) in self.names:
            return self.names.index(str(value))
        allowed = (
            f"indices from 0 to {len(self.names) - 1}"
            if self.indexed
            else f"those to train on, {', '.join(self.names)}"
        )
        raise ValueError(f"data holds the label {value!r}, but allowed are {allowed}")

    def encoded(self, value):
        """The label of a row as a classifier's loss takes it."""
        if self.kind == "number":
            return float(value)
        if self.kind == "class":
            return self.index(value)
        held = [self.index(label) for label in value]
        if len(set(held)) < len(held):
            raise ValueError(f"data holds the labels {value!r}, but a list must name each label that holds once")
        return [float(i in held) for i in range(len(self.names))]


@dataclass(frozen=True)
class RowSet:
    """Rows (sequences of dictionaries with the columns used), their labels, and what they are."""

    training: object
    evaluation: object
    labels: Labels | None
    description: str
    fingerprint: str  # changes with the content of any column that is used
    held_out_fingerprint: str
    counts: dict


def read_rows(data, seed: int) -> RowSet:
    """The rows of the one source that the settings name.

    Raises:
        ValueError: where rows cannot be read, a column or a value is missing, or labels do not fit.
    """
    source, names = source_of(data), None
    if source == "generated":
        make, names = GENERATORS[type(data)]
        parts = [make(data.generated, seed), make(max(4, data.generated // 4), seed + 1)]
        description = "generated rows"
    elif source == "dataset":
        parts = [load_rows(data, split) for split in (data.training_split, data.evaluation_split)]
        description = data.dataset
    elif data.evaluation_files is None:
        raise ValueError("data.evaluation_files is missing: rows to evaluate on are files of their own")
    else:
        parts = [local_rows(getattr(data, key), key) for key in ("files", "evaluation_files")]
        description = "files of the user's own"
    if source != "generated":
        parts = [with_columns(rows, data, which) for rows, which in zip(parts, ("train", "evaluate"), strict=True)]
    if isinstance(data, (QuestionData, PairData)):
        labels = None
    else:
        labels = Labels(names, indexed=True) if names else labels_of(data, *parts)
    prints = [[row_digest(row, data, labels, i) for i, row in enumerate(rows)] for rows in parts]
    known = set(prints[0])
    copies = sum(digest in known for digest in prints[1])
    return RowSet(
        *parts, labels, description, fingerprint_of(prints[0] + prints[1]), fingerprint_of(prints[1]),
        {"rows_to_evaluate_on_that_are_rows_to_train_on_too": copies} if copies else {},
    )  # fmt: skip


def columns_of(data) -> list[str]:
    """Columns that the settings need."""
    return [getattr(data, name) for name in type(data).__dataclass_fields__ if name.endswith("_column")]


def with_columns(rows, data, which: str):
    """The rows with the columns used alone: whatever else they hold (dates, pictures) is never decoded."""
    if not len(rows):
        raise ValueError(f"data has no rows to {which} on")
    rows = rows.flatten() if any("." in column for column in columns_of(data)) else rows
    for column in columns_of(data):
        if column not in rows.column_names:
            raise ValueError(
                f"data: column {column!r} is missing; the rows to {which} on have {', '.join(rows.column_names)}"
            )
    return rows.select_columns(columns_of(data))


def local_rows(paths: list[str] | str, key: str):
    """Rows of JSON lines, CSV or Parquet files."""
    import datasets

    paths = as_list(paths)
    kinds = {Path(path).suffix for path in paths}
    if len(kinds) != 1 or not kinds <= BUILDERS.keys():
        raise ValueError(f"data.{key} is {paths}, but must be files of one of the kinds {', '.join(BUILDERS)}")
    for path in paths:
        if not Path(path).is_file():
            why = "is no file" if Path(path).exists() else "does not exist"  # a pipe could not be read twice
            raise ValueError(f"data.{key}: {path!r} {why}; allowed are files with rows")
    for path in paths if kinds <= {".json", ".jsonl"} else ():
        check_json(path, key)
    try:
        return datasets.load_dataset(BUILDERS[kinds.pop()], data_files=paths, split="train")
    except Exception as error:  # of an empty file StopIteration, of others what datasets, pyarrow and the system raise
        reason = error.__cause__ or error
        raise ValueError(f"data.{key}: {paths} cannot be read: {type(reason).__name__} {reason}".strip()) from None


def check_json(path: str, key: str) -> None:
    """Raises `ValueError` unless a file is lines of JSON objects, or one JSON object or list of them.

    Python reads it first: damaged files end the whole process in pyarrow's reader (26.0, `null[t`).
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise ValueError(f"line {number} is no object")
    except (ValueError, RecursionError) as error:
        try:
            whole = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            whole = None
        if not isinstance(whole, dict) and not (
            isinstance(whole, list) and all(isinstance(row, dict) for row in whole)
        ):
            raise ValueError(
                f"data.{key}: {path!r} cannot be read: it is no JSON, or not of objects ({error})"
            ) from None


def labels_of(data, training, evaluation) -> Labels:
    """The labels of a column: the names of a `ClassLabel`, or the values that occur to train on, in order."""
    column = data.label_column if isinstance(data, ClassificationData) else data.tags_column
    outer = training.features[column]
    feature = getattr(outer, "feature", outer)
    kind = "several" if isinstance(data, ClassificationData) and feature is not outer else "class"
    other = evaluation.features[column]
    names = [getattr(f, "names", None) for f in (feature, getattr(other, "feature", other))]
    if names[0] != names[1]:
        raise ValueError(
            f"data: column {column!r} has the classes {names[0]} to train on, but {names[1]} to evaluate on"
        )
    if names[0] is not None:
        return Labels(list(names[0]), kind, indexed=True)
    if str(getattr(feature, "dtype", "")).startswith("float"):
        if feature is outer and isinstance(data, ClassificationData):
            return Labels(["LABEL_0"], "number")
        raise ValueError(f"data: column {column!r} holds lists of fractions, but must hold lists of labels")
    values = set()
    for i, value in enumerate(training[column]):
        check_value(value, column, i)
        values.update([value] if feature is outer else value)
    if None in values:
        raise ValueError(f"data: column {column!r} holds a list with an empty label")
    names = [str(value) for value in sorted(values, key=lambda value: (isinstance(value, str), value))]
    if not names:
        raise ValueError(f"data: column {column!r} holds no label")
    return Labels(names, kind)


def check_value(value, column: str, i: int) -> None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"data: row {i} has nothing in column {column!r}; allowed are rows with a value in each")


def row_digest(row: dict, data, labels: Labels | None, i: int) -> bytes:
    """A hash of the values of the columns used, which are checked: none may be missing, or of the wrong kind."""
    values = [row[column] for column in columns_of(data)]
    for column, value in zip(columns_of(data), values, strict=True):
        check_value(value, column, i)
    try:
        if isinstance(data, ClassificationData):
            labels.encoded(row[data.label_column])
        elif isinstance(data, TagData):
            check_tags(row, data, labels)
        elif isinstance(data, QuestionData):
            answers_of(row, data)
        elif wrong := [value for value in values if not isinstance(value, str)]:
            raise ValueError(f"data holds {wrong[0]!r}, but source and target must be texts")
    except ValueError as error:
        raise ValueError(f"{error} (row {i})") from None
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).digest()


def check_tags(row: dict, data: TagData, labels: Labels) -> None:
    words, tags = row[data.words_column], row[data.tags_column]
    if len(words) != len(tags):
        raise ValueError(f"data holds {len(words)} words with {len(tags)} tags, but each word must have one tag")
    for tag in tags:
        labels.index(tag)


def answers_of(row: dict, data: QuestionData) -> list[tuple[str, int]]:
    """Texts and places of the answers; none where the question has none."""
    answers = row[data.answers_column]
    try:
        return [(text, int(start)) for text, start in zip(answers["text"], answers["answer_start"], strict=True)]
    except (TypeError, KeyError, ValueError, IndexError):
        raise ValueError(
            f"data holds the answers {answers!r}, but must hold {{text: [...], answer_start: [...]}} of equal lengths"
        ) from None
