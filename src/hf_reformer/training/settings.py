"""What the sections of a recipe may hold, the section `data` by its format, with the limits of each value.

Imports nothing that takes time, so that the command line can list the keys in its help. The limits are annotations that
pydantic checks in `fields`; what concerns several values is checked where an object is made.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

RECIPE_FOLDER = Path(__file__).parent / "recipes"
Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Gt(0), Lt(1)]


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


@dataclass(frozen=True)
class Source:
    """Where data comes from, exactly one of: files here, a dataset of the Hub, a generator.

    `files` and `evaluation_files` name files and folders; `dataset` is a name on the Hub, or a folder in the layout that
    `datasets.load_dataset` takes. `generated` makes so many examples (bytes of text) of the same format without any data, for
    trials. `obtain` says where to get the data. `revision`: branch, tag or commit of the dataset.
    """

    files: list[str] | str | None = None
    evaluation_files: list[str] | str | None = None
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    training_split: str = "train"
    evaluation_split: str = "test"
    generated: Positive | None = None
    obtain: str | None = None


@dataclass(frozen=True)
class Tokenised(Source):
    """Text in tokens: bytes, or a vocabulary of `vocab_size` trained on the training text, or a saved tokenizer.

    `tokenizer`: `byte` (`ReformerByteTokenizer`), `bpe` (pieces of characters, as SentencePiece makes them), `byte-bpe` (pieces
    of bytes: no text is unknown), or the folder or name of a saved one, at a `tokenizer_revision`. `context`: tokens of the
    longest input.
    """

    tokenizer: str = "byte"
    tokenizer_revision: str | None = None
    vocab_size: Annotated[int, Ge(4)] | None = None
    context: Annotated[int, Ge(2)] = 4096


@dataclass(frozen=True)
class TextData(Tokenised):
    """Plain text, one long stream.

    `windows`: `packed` cuts it into windows of `context` tokens, each token predicted exactly once in an epoch; `random` draws
    windows anywhere; `whole` is all of it in one window, with padding split at random between left and right.
    `window_plan`: pairs (until, length): up to that share of the steps, random windows have that length, and lie anywhere among
    the model's positions. `training_range`, `evaluation_range`: bytes from, to of the files; without them, whole files (of a
    single file its end) are held out by a hash of their content, about `held_out` of the text.
    `near_duplicates`: training documents that share more than this of their runs of eight words with a held-out document (or of
    its runs with them) are left out, so that held-out text is new (null: only exact copies are told apart).
    `separate_documents`: an end token after each file or row.
    `streaming`: read the dataset as training goes on, in order or shuffled within `shuffle_buffer` examples.
    """

    text_column: str = "text"
    windows: Literal["packed", "random", "whole"] = "packed"
    window_plan: list[list[float]] | None = None
    training_range: list[int] | None = None
    evaluation_range: list[int] | None = None
    held_out: Share = 0.05
    near_duplicates: Share | None = None
    separate_documents: bool = False
    mask_share: Share = 0.15
    streaming: bool = False
    shuffle_buffer: Annotated[int, Ge(0)] = 0

    def __post_init__(self):
        for name in ("training_range", "evaluation_range"):
            value = getattr(self, name)
            if value is not None and (len(value) != 2 or not 0 <= value[0] < value[1]):
                raise ValueError(f"data.{name} is {value}, but must be two byte offsets [from, to] with from below to")
        if self.window_plan is not None and not (self.windows == "random" and self._plan_fits(self.window_plan)):
            raise ValueError(
                f"data.window_plan is {self.window_plan}, but must be (with windows: random) pairs [share of the steps, length], "
                f"the shares rising to 1, the lengths whole numbers from 2 to the context {self.context}"
            )

    def _plan_fits(self, plan):
        shares = [stage[0] for stage in plan if len(stage) == 2]
        if not len(shares) == len(plan) > 0 or shares != sorted(shares) or shares[-1] != 1:
            return False
        return all(float(length).is_integer() and 2 <= length <= self.context for _, length in plan)


@dataclass(frozen=True)
class ImageData(Source):
    """Images of `size` x `size` pixels as 3 * size * size byte values, row by row, the three colours of a pixel together.

    `files`: folders of images, or .npy and .npz arrays of shape (images, 3 * size * size) in the order of the official
    64 x 64 ImageNet files (all red, then all green, then all blue values).
    `resize`: images of folders and datasets are scaled until the shorter side fits, and the middle is cut out; without it,
    another size is an error. Without `evaluation_files`, images are held out by a hash of their content, about `held_out` of
    them. `alike`: a regular expression; files whose names are the same once it is taken out of them, such as variants of one
    drawing, are all trained on or all held out.
    """

    size: Positive = 64
    resize: bool = False
    held_out: Share = 0.05
    alike: str | None = None
    image_column: str = "image"

    def __post_init__(self):
        try:
            re.compile(self.alike or "")
        except re.error as error:
            raise ValueError(f"data.alike is {self.alike!r}, but must be a regular expression: {error}") from None


@dataclass(frozen=True)
class DuplicationData:
    """The sequences 0w0w: w has `length` / 2 - 1 symbols drawn from 1 to `symbols`."""

    length: Annotated[int, Ge(4)] = 1024
    symbols: Annotated[int, Ge(2)] = 127

    def __post_init__(self):
        if self.length % 2:
            raise ValueError(f"data.length is {self.length}, but must be even: the sequence is twice 0w")


@dataclass(frozen=True)
class RecallData:
    """Associative recall: `pairs` keys, each with its value, then fillers, and among them, at places drawn by chance, each key
    once; the loss is over the values that belong there (Zoology's MQAR). `length` tokens; keys are the lower half of `symbols`.

    `training_lengths`: in training the length changes from step to step. `repeated`: for this share of the steps rows have the
    first of these lengths, and keys in place of fillers; a question that is asked often is learned sooner.
    """

    length: Annotated[int, Ge(8)] = 1024
    pairs: Positive = 8
    symbols: Annotated[int, Ge(4)] = 64
    fillers: Positive = 64
    training_lengths: list[int] | None = None
    repeated: Annotated[float, Ge(0), Lt(1)] = 0.0

    def __post_init__(self):
        if self.symbols % 2 or self.symbols < 2 * self.pairs:
            raise ValueError(
                f"data.symbols is {self.symbols}, but must be even and at least {2 * self.pairs}, twice data.pairs"
            )
        for name in ("length", "training_lengths"):
            for length in [self.length] if name == "length" else self.training_lengths or []:
                if length < 3 * self.pairs or (name != "length" and length > self.length):
                    raise ValueError(
                        f"data.{name} has {length}, but must be at least {3 * self.pairs}, for data.pairs and as many questions"
                        + f", and at most data.length {self.length}" * (name != "length")
                    )

    @property
    def vocab_size(self) -> int:
        """0 is no token of the task; then symbols, then fillers."""
        return 1 + self.symbols + self.fillers


@dataclass(frozen=True)
class RowData(Tokenised):
    """Rows of a batch are padded to the longest, or to the next multiple of `pad_to_multiple_of`.

    `group_by_length`: rows of a step are of like lengths, so that little is padded (50 steps at a time are sorted).
    """

    pad_to_multiple_of: int | None = None
    group_by_length: bool = False


@dataclass(frozen=True)
class ClassificationData(RowData):
    """Rows of a text and its label: a class, or several (a list of them), or a number with a fraction (regression)."""

    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True)
class QuestionData(RowData):
    """Rows of a question, a context, and answers {text: [...], answer_start: [...]} as in SQuAD."""

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"


@dataclass(frozen=True)
class TagData(RowData):
    """Rows of words and a tag for each."""

    words_column: str = "tokens"
    tags_column: str = "ner_tags"


@dataclass(frozen=True)
class PairData(RowData):
    """Rows of a source and a target, such as a text and its translation or summary.

    A column within a column is named with a dot (`translation.en`). `target_context`: tokens of the longest target, with its
    end (null: `context`).
    """

    source_column: str = "source"
    target_column: str = "target"
    target_context: Annotated[int, Ge(2)] | None = None


@dataclass(frozen=True)
class ReversalData:
    """`length` symbols drawn from 1 to `symbols`, and the same from the last to the first."""

    length: Annotated[int, Ge(2)] = 512
    symbols: Annotated[int, Ge(2)] = 127


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is evaluated and what is shown of it.

    `examples`: at most so many, spread evenly over the held-out data. `num_hashes`: rounds of hashing in evaluation (null:
    the model's). `samples`: texts generated at each evaluation, from prompts of `prompt_tokens` held-out tokens.
    """

    examples: Positive | None = None
    num_hashes: Positive | None = None
    samples: Annotated[int, Ge(0)] = 0
    prompt_tokens: Positive = 64
    sample_tokens: Positive = 128
    temperature: Annotated[float, Ge(0)] = 0.8
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0

    def __post_init__(self):
        if 0 < self.temperature < 1e-4:  # logits that are divided by less may overflow
            raise ValueError(
                f"evaluation.temperature is {self.temperature}, but must be 0 or a number of at least 0.0001"
            )


FORMATS = {
    "text": TextData,
    "images": ImageData,
    "duplication": DuplicationData,
    "classification": ClassificationData,
    "questions": QuestionData,
    "tags": TagData,
    "pairs": PairData,
    "reversal": ReversalData,
    "recall": RecallData,
}
TASK_FORMATS = {
    "causal-lm": ("text", "images", "duplication", "recall"),
    "masked-lm": ("text",),
    "classification": ("classification",),
    "question-answering": ("questions",),
    "token-classification": ("tags",),
    "seq2seq": ("pairs", "reversal"),
}


@dataclass(frozen=True)
class ExtraTraining:
    """Keys of `training` beside those of `TrainingArguments`.

    `schedule_steps`: the length of the learning-rate schedule where it is not the run's. `muon_share`: with `optim: muon`, the
    learning rate of what is no matrix of a layer, relative to the matrices' (null: 0.15). `early_stopping_patience`: the run ends
    after so many evaluations without a better `metric_for_best_model` (the loss), and the best model is kept. `half_precision`:
    `auto` is `bf16: true` where the device has instructions for it.
    """

    schedule_steps: Positive | None = None
    muon_share: Annotated[float, Ge(0)] | None = None
    early_stopping_patience: Positive | None = None
    half_precision: Literal["auto"] | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe with everything filled in and checked."""

    name: str
    task: str
    source: str
    model: dict
    data: object
    training: dict
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    extra: ExtraTraining = field(default_factory=ExtraTraining)
    peft: dict = field(default_factory=dict)  # of peft.LoraConfig
    plain: dict = field(default_factory=dict)  # the same as plain values, as it is written to recipe.yaml
