"""Plain text for language models: read from files, the Hub or a generator, held out in part, encoded into one stream."""

import platform
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ..model.tokenization_reformer import NUM_SPECIAL_TOKENS
from .generated import generated_text
from .settings import TextData
from .sources import as_list, fingerprint_of, load_rows, source_of
from .text_data import (
    contents,
    digest_of,
    find_files,
    glued,
    split_documents,
    standard_library_files,
    without_near_duplicates,
)
from .vocabulary import build_tokenizer, encoded

STANDARD_LIBRARY = "standard-library"
ON_ITSELF = "measured on the text that it was trained on"


class Stream:
    """Token ids of several documents as one sequence; a slice of it is int64.

    Args:
        parts: integer arrays. Those of uint8 are bytes, perhaps still on disk, and become ids when they are read.
    """

    def __init__(self, parts: list[np.ndarray]):
        self.parts = [part for part in parts if len(part)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(len(self))
        found = [np.zeros(0, np.int64)]
        place = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            part, end = self.parts[place], int(self.ends[place])
            first = start - (end - len(part))
            ids = part[first : first + stop - start].astype(np.int64)
            found.append(ids + NUM_SPECIAL_TOKENS if part.dtype == np.uint8 else ids)
            start, place = end, place + 1
        return np.concatenate(found)


@dataclass(frozen=True)
class Documents:
    """Training and held-out documents, uint8 arrays, what they are, and what was passed over."""

    training: list[np.ndarray]
    held_out: list[np.ndarray]
    description: str
    counts: Counter


@dataclass(frozen=True)
class Corpus:
    """Encoded training and held-out text, each one stream of token ids."""

    training: Stream
    held_out: Stream
    held_out_sizes: np.ndarray  # (tokens,) bytes of text that each held-out token stands for
    tokenizer: object
    description: str  # one line for cards
    held_out_fingerprint: str  # changes with any byte of the held-out text
    fingerprint: str  # changes with any token of either stream
    counts: dict


def read_corpus(data: TextData, seed: int, needs_mask=False, tokenizer=None, trained=True) -> Corpus:
    """The corpus of the settings; `tokenizer` takes the place of the one they name.

    Args:
        trained: False where only the held-out text is needed.

    Raises:
        ValueError: where no data is named, or it cannot be read, or is too little.
    """
    documents = read_documents(data, seed, trained)
    if tokenizer is None:
        tokenizer = build_tokenizer(data, documents.training, needs_mask)
    separator = tokenizer.eos_token_id if data.separate_documents else None
    if data.separate_documents and separator is None:
        raise ValueError("data.separate_documents is true, but data.tokenizer has no end token to separate with")
    counts = Counter(documents.counts)
    training, _ = joined(tokenizer, documents.training, separator, counts, "training")
    held_out, sizes = joined(tokenizer, documents.held_out, separator, counts, "held_out")
    for name, stream in (("train on", training), ("evaluate on", held_out)):
        if len(stream) < 2 and (trained or name == "evaluate on"):
            raise ValueError(f"data has {len(stream)} token(s) to {name}, but must have at least 2")
    return Corpus(
        training, held_out, np.concatenate(sizes), tokenizer, documents.description, fingerprint_of(documents.held_out),
        fingerprint_of([np.ascontiguousarray(part) for part in training.parts + held_out.parts]), dict(counts),
    )  # fmt: skip


def joined(
    tokenizer, documents, separator: int | None, counts: Counter, which: str, enough=None
) -> tuple[Stream, list]:
    """The documents as one stream, each followed by the separator, or else with a line end between two; and bytes by token.

    No further document is read once there are `enough` tokens.
    """
    parts, sizes, found_tokens = [], [np.zeros(0, np.int32)], 0
    for document in documents if separator is not None else glued(documents):
        found = encoded(tokenizer, document, with_sizes=which == "held_out")
        parts.append(found.ids)
        sizes.append(found.sizes)
        if separator is not None:
            parts.append(np.array([separator], np.int32))
            sizes.append(np.zeros(1, np.int32))
        counts[f"bytes_of_{which}_text_that_are_no_UTF-8"] += found.undecodable
        counts[f"unknown_tokens_in_{which}_text"] += found.unknown
        counts[f"special_tokens_spelled_in_{which}_text"] += found.special
        found_tokens += len(found.ids)
        if enough is not None and found_tokens >= enough:
            break
    counts += Counter()  # without those that are 0
    return Stream(parts), sizes


def read_documents(data: TextData, seed: int, trained: bool = True) -> Documents:
    """Documents of the one source that the settings name."""
    source = source_of(data, trained)
    check_ranges(data, source)
    if source == "generated":
        sizes = data.generated, max(data.generated // 4, 2 * data.context)
        texts = [np.frombuffer(generated_text(size, seed + i), np.uint8) for i, size in enumerate(sizes)]
        return Documents(texts[:1], texts[1:], f"{data.generated:,} generated bytes of made-up sentences", Counter())
    documents = hub_documents(data) if source == "dataset" else local_documents(data, seed)
    if documents.held_out is documents.training:
        return documents
    if data.near_duplicates is not None and documents.held_out:
        kept = without_near_duplicates(documents.training, documents.held_out, data.near_duplicates)
        documents.counts["training_documents_left_out_as_near_duplicates_of_held-out_ones"] = len(
            documents.training
        ) - len(kept)
        documents = replace(documents, training=kept)
    known = {digest_of(document) for document in documents.training}
    copies = sum(digest_of(document) in known for document in documents.held_out if len(document))
    if copies:
        documents.counts["held-out_documents_that_are_training_documents_too"] = copies
    return documents


def check_ranges(data: TextData, source: str) -> None:
    """Raises `ValueError` for ranges of bytes that overlap or lack their like, and for those that would have no effect."""
    ranges = {name: getattr(data, name) for name in ("training_range", "evaluation_range")}
    for name, value in ranges.items():
        if value is not None and (source != "files" or data.evaluation_files is not None):
            raise ValueError(f"data.{name} is {value}, but must be null where the data is not data.files alone")
    training, held_out = ranges.values()
    if (training is None) != (held_out is None):
        missing = "training_range" if training is None else "evaluation_range"
        raise ValueError(f"data.{missing} is missing: give both ranges of bytes, to train on and to evaluate on")
    if training is not None and max(training[0], held_out[0]) < min(training[1], held_out[1]):
        raise ValueError(
            f"data.evaluation_range is {held_out}, but must not overlap data.training_range, {training}: the model would be "
            "measured on the text that it was trained on"
        )


def local_documents(data: TextData, seed: int) -> Documents:
    """Documents of files and folders, byte for byte."""
    counts, read = Counter(), cache(contents)  # a pipe can be read once only
    named = [named_files(paths, counts) for paths in (data.files, data.evaluation_files)]
    documents, other = ([read(file) for file in files] for files in named)
    library = f"the sources of Python {platform.python_version()}'s standard library"
    given = as_list(data.files or [])
    name = library if given == [STANDARD_LIBRARY] else "files of the user's own"
    if STANDARD_LIBRARY in given and name != library:
        name = f"{library} and {name}"
    if data.training_range is not None:
        ranges = [in_range(documents, getattr(data, key), key) for key in ("training_range", "evaluation_range")]
        return Documents(*ranges, f"bytes {data.training_range[0]:,} to {data.training_range[1]:,} of {name}", counts)
    if data.evaluation_files is not None:
        same = set(named[0]) == set(named[1])
        return Documents(documents, documents if same else other, f"{name}, {ON_ITSELF}" if same else name, counts)
    if data.windows == "whole":
        return Documents(documents, documents, f"{name}, {ON_ITSELF}", counts)
    split = split_documents(documents, seed=seed, share=data.held_out)
    parts = split.training_documents, split.held_out_documents
    return Documents(*parts, f"{name} ({len(parts[0])} files; {len(parts[1])} held out)", counts)


def named_files(paths: list[str] | str | None, counts: Counter) -> list:
    """The files that `data.files` or `data.evaluation_files` names."""
    if paths is None:
        return []
    paths = as_list(paths)
    library = standard_library_files() if STANDARD_LIBRARY in paths else []
    others = [path for path in paths if path != STANDARD_LIBRARY]
    return library + (find_files(others, counts) if others else [])


def in_range(documents: list[np.ndarray], ends: list[int], name: str) -> list[np.ndarray]:
    """What lies between two offsets into the documents one after another."""
    total = sum(map(len, documents))
    if ends[1] > total:
        raise ValueError(f"data.{name} is {ends}, but must end within the {total:,} bytes of data.files")
    found, before = [], 0
    for document in documents:
        found.append(document[max(0, ends[0] - before) : max(0, ends[1] - before)])
        before += len(document)
    return [document for document in found if len(document)]


def hub_documents(data: TextData) -> Documents:
    """Documents of a dataset on the Hub."""
    parts = []
    for split in dict.fromkeys((data.training_split, data.evaluation_split)):
        rows = load_rows(data, split)
        check_text_column(data, rows.column_names)
        texts = (text for text in rows[data.text_column] if text)
        parts.append([np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts])
    if len(parts) == 1:
        return Documents(parts[0], parts[0], f"{data.dataset}, {ON_ITSELF}", Counter())
    return Documents(*parts, data.dataset, Counter())


def check_text_column(data: TextData, columns) -> None:
    if data.text_column not in columns:
        raise ValueError(
            f"data.text_column is {data.text_column!r}, but must be one of {', '.join(columns)}, the columns of {data.dataset}"
        )
