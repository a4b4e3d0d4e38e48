"""What is made of rows of labelled text, by format: examples, figures, predictions. One class for each, all with one interface.

`encode(row)` gives an example, `statistics`, `summary` and `predictions` are those of `metrics`, `counts` says what was cut.
"""

from functools import partial

import numpy as np
from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding

from ..model.losses import IGNORED, shifted_right
from ..model.question_answering import separator_of
from . import metrics
from .rows import RowSet, answers_of
from .settings import ClassificationData, PairData, QuestionData, TagData

BEYOND = 1 << 30  # a position past every text: the loss leaves it out


class RowFormat:
    """Rows in tokens.

    Args:
        kept: rows to evaluate on; their order is that of the rows that `summary` and `predictions` are given.

    Raises:
        ValueError: where nothing is left to train or to evaluate on, or the tokenizer cannot pad.
    """

    label_names = None  # of a batch, for `Trainer`; None: `labels`
    collator = DataCollatorWithPadding

    def __init__(self, data, rows: RowSet, kept: list[dict], tokenizer):
        self.data, self.tokenizer, self.labels, self.kept = data, tokenizer, rows.labels, kept
        self.counts = dict(rows.counts)
        if tokenizer.pad_token is None:
            raise ValueError("data.tokenizer has no padding token, but must have one for rows of different lengths")
        if data.pad_to_multiple_of is not None and data.pad_to_multiple_of < 1:
            raise ValueError(f"data.pad_to_multiple_of is {data.pad_to_multiple_of}, but must be at least 1")
        self.usable = self.look_through(rows.training, "train")
        self.look_through(kept, "evaluate")

    def collate(self, examples: list[dict]) -> dict:
        return self.collator(self.tokenizer, pad_to_multiple_of=self.data.pad_to_multiple_of)(examples)

    def ids_of(self, text: str, **more):
        """Tokens of a text, in which special tokens are its characters."""
        more = {"add_special_tokens": False, **more}
        return self.tokenizer(text, split_special_tokens=True, verbose=False, **more)

    def fits(self, text: str, room: int, **more) -> bool:
        """Whether the text has at most `room` tokens (never more than bytes; else it is tokenized)."""
        special = self.tokenizer.num_special_tokens_to_add()
        return (
            len(text.encode("utf-8", "replace")) + special <= room or len(self.ids_of(text, **more).input_ids) <= room
        )

    def sizes(self, rows) -> np.ndarray:
        """Bytes of the texts of each usable row."""
        return np.array([sum(map(len, self.texts_of([rows[i]], self.data))) for i in self.usable])

    def count(self, what: str, number: int) -> None:
        if number:
            self.counts[what] = number

    @property
    def model_fields(self) -> dict:
        """Fields of the model's configuration that follow from the labels."""
        if self.labels is None:
            return {}
        names = self.labels.names
        return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


class ClassificationRows(RowFormat):
    """A text and its label, labels, or number; texts are cut to the context."""

    KINDS = {
        "class": ("single_label_classification", metrics.class_statistics, metrics.class_summary),
        "several": ("multi_label_classification", metrics.multi_label_statistics, metrics.multi_label_summary),
        "number": ("regression", metrics.number_statistics, metrics.number_summary),
    }

    def __init__(self, data, rows, kept, tokenizer):
        super().__init__(data, rows, kept, tokenizer)
        self.problem_type, self.statistics, self.summary = self.KINDS[self.labels.kind]

    def look_through(self, rows, which: str) -> range:
        texts = (row[self.data.text_column] for row in rows)
        cut = sum(not self.fits(text, self.data.context, add_special_tokens=True) for text in texts)
        self.count(f"texts_to_{which}_on_that_were_cut_to_the_context", cut)
        return range(len(rows))

    def encode(self, row: dict) -> dict:
        text, context = row[self.data.text_column], self.data.context
        ids = self.ids_of(text, add_special_tokens=True, truncation=True, max_length=context).input_ids
        return {
            "input_ids": ids or [self.tokenizer.pad_token_id],
            "labels": self.labels.encoded(row[self.data.label_column]),
        }

    @property
    def model_fields(self) -> dict:
        return {**super().model_fields, "problem_type": self.problem_type}

    def predictions(self, rows) -> list[dict]:
        names = self.labels.names
        if self.labels.kind == "several":
            found = metrics.many_of(rows)
            pairs = zip(found.guesses, found.labels, strict=True)
            return [{key: [names[i] for i in held.nonzero()[0]] for key, held in zip(("prediction", "label"), pair, strict=True)}
                    for pair in pairs]  # fmt: skip
        found = metrics.ClassGuess(*rows.T)
        if self.labels.kind == "number":
            return [
                {"prediction": guess, "label": label} for guess, label in zip(found.guess, found.label, strict=True)
            ]
        return [{"prediction": names[int(guess)], "label": names[int(label)]}
                for guess, label in zip(found.guess, found.label, strict=True)]  # fmt: skip

    @staticmethod
    def texts_of(rows, data) -> list[bytes]:
        return [row[data.text_column].encode("utf-8", "replace") for row in rows]


class QuestionRows(RowFormat):
    """Question, end token, context, cut to the model's context; an answer that was cut off counts for no loss."""

    label_names = ["start_positions", "end_positions", "attention_mask"]
    statistics = staticmethod(metrics.span_statistics)

    def look_through(self, rows, which: str) -> list[int]:
        """Rows with an answer that lies within the context."""
        kept, cut, without, misplaced = [], 0, 0, 0
        for i, row in enumerate(rows):
            answers = answers_of(row, self.data)
            text = row[self.data.context_column]
            misplaced += any(text[start : start + len(answer)] != answer for answer, start in answers)
            if not answers:
                without += 1
            elif not self.surely_within(row, *answers[0]) and self.encode(row)["end_positions"] == BEYOND:
                cut += 1
            else:
                kept.append(i)
        self.count(f"questions_to_{which}_on_whose_answer_is_cut_off", cut)
        self.count(f"questions_to_{which}_on_without_an_answer", without)
        self.count(f"questions_to_{which}_on_whose_answer_is_not_where_answer_start_says", misplaced)
        if not kept:
            raise ValueError(
                f"data has {len(rows)} rows to {which} on, but none whose answer lies within data.context, "
                f"{self.data.context} tokens"
            )
        return kept

    def surely_within(self, row: dict, answer: str, start: int) -> bool:
        """By bytes, of which a text has no fewer than tokens; so most rows need not be tokenized."""
        until = row[self.data.context_column][:start] + answer
        question = min(len(row[self.data.question_column].encode("utf-8", "replace")), self.data.context // 2)
        return bool(answer) and question + 1 + len(until.encode("utf-8", "replace")) <= self.data.context

    def encode(self, row: dict) -> dict:
        ids, before, offsets = self.parts(row)
        start, end = answer_tokens(answers_of(row, self.data), offsets)
        return {
            "input_ids": ids,
            "start_positions": min(before + start, BEYOND),
            "end_positions": min(before + end, BEYOND),
        }

    def parts(self, row: dict) -> tuple[list[int], int, list[tuple[int, int]]]:
        """All tokens, how many come before the context's, and where in the text the context's lie."""
        question = self.ids_of(row[self.data.question_column]).input_ids
        question = question[: self.data.context // 2] + [separator_of(self.tokenizer)]
        context = self.ids_of(row[self.data.context_column], return_offsets_mapping=True)
        room = self.data.context - len(question)
        return question + context.input_ids[:room], len(question), context.offset_mapping[:room]

    def summary(self, rows) -> dict:
        """The figures of spans of tokens, and SQuAD's over the texts of all questions that have an answer, cut off or not."""
        pairs = [(row["prediction"], row["answers"]) for row in self.predictions(rows) if row["answers"]]
        return {**metrics.span_summary(rows), **metrics.answer_figures(*map(list, zip(*pairs, strict=True)))}

    def predictions(self, rows) -> list[dict]:
        found, texts = metrics.Span(*rows.T), []
        for row, begin, finish in zip(self.kept, found.begin.astype(int), found.finish.astype(int), strict=True):
            _, before, offsets = self.parts(row)
            inside = offsets[max(begin - before, 0) : max(finish - before + 1, 0)]
            text = row[self.data.context_column][inside[0][0] : inside[-1][1]] if inside else ""
            texts.append({"prediction": text, "answers": [answer for answer, _ in answers_of(row, self.data)]})
        return texts

    @staticmethod
    def texts_of(rows, data) -> list[bytes]:
        columns = (data.question_column, data.context_column)
        return [row[column].encode("utf-8", "replace") for row in rows for column in columns]


class TagRows(RowFormat):
    """Words with a space between them; the first token of each word has its tag, the others none."""

    collator = DataCollatorForTokenClassification

    def __init__(self, data, rows, kept, tokenizer):
        super().__init__(data, rows, kept, tokenizer)
        most = max(sum(label != IGNORED for label in self.encode(row)["labels"]) for row in kept)
        if not most:
            raise ValueError("data has no tag to evaluate on within data.context")
        self.statistics = partial(metrics.tag_statistics, words=most)
        self.summary = partial(metrics.tag_summary, names=self.labels.names)

    def look_through(self, rows, which: str) -> range:
        texts = (row[self.data.words_column] for row in rows)
        lost = sum(
            len(words) - self.words_within(words)
            for words in texts
            if not self.fits(" ".join(words), self.data.context)
        )
        self.count(f"tags_to_{which}_on_that_lie_beyond_the_context", lost)
        return range(len(rows))

    def words_within(self, words: list[str]) -> int:
        """How many words begin within the context."""
        size = 0
        for i, word in enumerate(words):
            if size >= self.data.context:
                return i
            size += len(self.word_ids(word, i))
        return len(words)

    def word_ids(self, word: str, i: int) -> list[int]:
        return self.ids_of(word if i == 0 else " " + word).input_ids

    def encode(self, row: dict) -> dict:
        ids, labels = [], []
        for i, (word, tag) in enumerate(zip(row[self.data.words_column], row[self.data.tags_column], strict=True)):
            part = self.word_ids(word, i)
            ids += part
            labels += ([self.labels.index(tag)] + [IGNORED] * (len(part) - 1)) if part else []
        context = self.data.context
        ids, labels = ids or [self.tokenizer.pad_token_id], labels or [IGNORED]
        return {"input_ids": ids[:context], "labels": labels[:context]}

    def predictions(self, rows) -> list[dict]:
        pairs = (metrics.tags_of(rows, self.labels.names, kind) for kind in ("guesses", "labels"))
        return [{"prediction": guess, "label": label} for guess, label in zip(*pairs, strict=True)]

    @staticmethod
    def texts_of(rows, data) -> list[bytes]:
        return [" ".join(row[data.words_column]).encode("utf-8", "replace") for row in rows]


class PairRows(RowFormat):
    """A source and a target, each cut to its context; the target ends with the end token, unless it was cut."""

    collator = DataCollatorForSeq2Seq
    statistics = staticmethod(metrics.token_statistics)
    summary = staticmethod(metrics.sequence_summary)
    predictions = staticmethod(partial(metrics.language_windows, row_bytes=None))

    def collate(self, examples: list[dict]) -> dict:
        """With what the decoder reads, which label smoothing needs."""
        multiple = self.data.pad_to_multiple_of
        return self.collator(self.tokenizer, model=self, pad_to_multiple_of=multiple)(examples)

    def prepare_decoder_input_ids_from_labels(self, labels):
        """As the model does; the collator asks."""
        return shifted_right(labels, self.tokenizer.pad_token_id, self.tokenizer.pad_token_id)

    @property
    def room(self) -> int:
        """Tokens of a target, its end among them."""
        return self.data.target_context or self.data.context

    def look_through(self, rows, which: str) -> range:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("data.tokenizer has no end token, but must have one, with which targets end")
        sides = ((self.data.source_column, self.data.context), (self.data.target_column, self.room - 1))
        for column, room in sides:
            cut = sum(not self.fits(row[column], room) for row in rows)
            self.count(f"{column}_texts_to_{which}_on_that_were_cut", cut)
        return range(len(rows))

    def encode(self, row: dict) -> dict:
        source = self.ids_of(row[self.data.source_column]).input_ids[: self.data.context]
        target = self.ids_of(row[self.data.target_column]).input_ids + [self.tokenizer.eos_token_id]
        return {"input_ids": source or [self.tokenizer.eos_token_id], "labels": target[: self.room]}

    @staticmethod
    def texts_of(rows, data) -> list[bytes]:
        columns = (data.source_column, data.target_column)
        return [row[column].encode("utf-8", "replace") for row in rows for column in columns]


FORMATS = {
    ClassificationData: ClassificationRows,
    QuestionData: QuestionRows,
    TagData: TagRows,
    PairData: PairRows,
}


def answer_tokens(answers: list[tuple[str, int]], offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of the first answer, `BEYOND` where it is not there."""
    if not answers:
        return BEYOND, BEYOND
    text, begin = answers[0]
    finish = begin + len(text)
    inside = [i for i, (left, right) in enumerate(offsets) if left < finish and right > begin]
    whole = bool(inside) and offsets[-1][1] >= finish
    return (inside[0], inside[-1]) if whole else (BEYOND, BEYOND)
