"""`pipeline("extractive-question-answering", model=...)`: answers that stand in a text of any length. (transformers 5 has none.)"""

import math

import torch
from transformers import AutoModelForQuestionAnswering
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import ChunkPipeline

TASK = "extractive-question-answering"  # the name question-answering is refused by `transformers.pipeline`


BYTES_OF_A_CHARACTER = 4  # at most; where tokens are bytes, as many may end one character


class ReformerQuestionAnsweringPipeline(ChunkPipeline):
    """The parts of a text that answer a question, likeliest first.

    `pipeline("extractive-question-answering", model=FOLDER)(question="Who?", context=text)` gives {"answer", "score", "start",
    "end"}: the characters `start` to `end` of the text. A text longer than the model is read in windows that overlap.

    Args of a call:
        question, context: a question and a text, or lists of them; or one mapping of both, a list, generator or dataset of such.
        doc_stride: tokens that two windows share (default: an eighth of what there is room for beside the question).
        max_seq_len: tokens of question and window together (default: `config.maximum_length`).
        max_answer_len: tokens of an answer (default: any number).
        top_k: so many answers, as a list, where it is more than 1 (the default).
        batch_size: windows at a time.

    Scores are the product of the probabilities of start and end over all windows together, so that windows compare (as the
    shared normalisation of Clark and Gardner, 2018; transformers 4 took each window by itself).

    Raises:
        ValueError: for a question or a text that is none, a number out of range, a question that leaves no room.
    """

    _load_processor = _load_feature_extractor = _load_image_processor = _load_video_processor = False
    _load_tokenizer = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        kind = self.model.config.model_type
        if kind != "reformer":
            raise ValueError(
                f"`model` is a {kind}, but must be a Reformer: others want question and text put together otherwise."
            )

    def __call__(self, inputs=None, *, question=None, context=None, **kwargs):
        """See the class."""
        return super().__call__(rows_of(inputs, question, context), **kwargs)

    def _sanitize_parameters(self, doc_stride=None, max_seq_len=None, max_answer_len=None, top_k=None):
        given = {"doc_stride": doc_stride, "max_seq_len": max_seq_len, "max_answer_len": max_answer_len, "top_k": top_k}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            least = 0 if name == "doc_stride" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` is {value!r}, but must be a whole number of at least {least}.")
        before = {name: given.pop(name) for name in ("doc_stride", "max_seq_len") if name in given}
        return before, {}, given

    def preprocess(self, row, doc_stride=None, max_seq_len=None):
        """Each window: the question, a token between, a part of the text."""
        check_row(row)
        question, context = (
            self.tokenizer(row[name], add_special_tokens=False, split_special_tokens=True, verbose=False, **more)
            for name, more in (("question", {}), ("context", {"return_offsets_mapping": True}))
        )
        before, ids = [*question.input_ids, separator_of(self.tokenizer)], context.input_ids
        if not ids:
            raise ValueError(f"`context` is {row['context']!r}, which has no tokens, but must have at least one.")
        longest = self.model.config.maximum_length
        if max_seq_len is not None and max_seq_len > longest:
            raise ValueError(f"`max_seq_len` is {max_seq_len}, but must be at most {longest}, the model's positions.")
        room = (max_seq_len or longest) - len(before)
        stride = max(room, 0) // 8 if doc_stride is None else doc_stride
        if room <= stride:
            raise ValueError(
                f"`question` has {len(before) - 1} tokens, which leaves room for {max(room, 0)} of the text: they must be more "
                f"than `doc_stride`, {stride}."
            )
        begins = [min(begin, max(len(ids) - room, 0)) for begin in range(0, max(len(ids) - stride, 1), room - stride)]
        for begin in begins:
            window = torch.tensor([before + ids[begin : begin + room]])
            yield {
                "input_ids": window,
                "attention_mask": torch.ones_like(window),
                "window": (begin, len(before)),
                "text": (row["context"], context.offset_mapping),
                "is_last": begin == begins[-1],
            }

    def _forward(self, inputs):
        kept = {name: inputs[name] for name in ("window", "text", "is_last", "attention_mask")}
        output = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return {**kept, "start_logits": output.start_logits, "end_logits": output.end_logits}

    def postprocess(self, outputs, top_k=1, max_answer_len=None):
        windows, (text, offsets) = [_of_the_text(output) for output in outputs], outputs[0]["text"]
        total = float(sum(torch.cat([window[i] for window in windows]).logsumexp(0) for i in (1, 2)))
        found = {}  # characters (start, end): log probability
        for begin, starts, ends in windows:
            scores, firsts = best_starts(starts, max_answer_len)
            scores, lasts = (scores + ends).topk(min(BYTES_OF_A_CHARACTER * top_k, len(ends)))
            for score, first, last in zip(scores.tolist(), firsts[lasts].tolist(), lasts.tolist(), strict=True):
                span = characters(offsets[begin + first : begin + last + 1])
                found[span] = max(score - total, found.get(span, -math.inf))
        best = sorted(found, key=found.get, reverse=True)[:top_k]
        answers = [{"answer": text[a:b], "score": math.exp(found[a, b]), "start": a, "end": b} for a, b in best]
        return answers if top_k > 1 else answers[0]


def _of_the_text(output):
    """First token of a window's part of the text, and the logits (n) of these tokens, without question and padding."""
    (begin, before), real = output["window"], output["attention_mask"][0].bool()
    return begin, *(output[name][0][real][before:].double() for name in ("start_logits", "end_logits"))


def best_starts(starts, longest=None):
    """Of the answers of at most `longest` tokens that end at each token: the best logit of a start, and its place, (n) each."""
    if longest is None:
        return starts.cummax(0)
    padded = torch.nn.functional.pad(starts, (longest - 1, 0), value=-float("inf"))
    values, places = padded.unfold(0, longest, 1).max(1)
    return values, places + torch.arange(len(starts), device=starts.device) - (longest - 1)


def characters(offsets):
    """Where tokens at these places of a text start and end. The later bytes of a character have an empty place behind it."""
    start, end = offsets[0]
    return start - (start == end), max(offset[1] for offset in offsets)


def rows_of(inputs, question, context):
    """Mappings of a question and a text, whichever way they were given: one, a list, or what transformers' pipelines read."""
    if (inputs is None) == (question is None and context is None):
        raise ValueError("`question` and `context` must be given, or a mapping of both, and not both ways.")
    if inputs is not None:
        return list(inputs) if isinstance(inputs, tuple) else inputs
    several = [isinstance(value, (list, tuple)) for value in (question, context)]
    if not any(several):
        return {"question": question, "context": context}
    if not (all(several) and len(question) == len(context)):
        raise ValueError("`question` and `context` must be a text each, or lists of as many.")
    return [{"question": asked, "context": text} for asked, text in zip(question, context, strict=True)]


def check_row(row):
    for name in ("question", "context"):
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, str) or not value:
            raise ValueError(f"`{name}` is {value!r}, but must be a text.")


def separator_of(tokenizer) -> int:
    """The token between question and text."""
    known = [i for i in (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    if not known:
        raise ValueError("`tokenizer` must have a separator, an end or a padding token, to stand behind the question.")
    return known[0]


def register():
    """Makes the task known to `transformers.pipeline`; again it changes nothing."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=ReformerQuestionAnsweringPipeline, pt_model=AutoModelForQuestionAnswering, type="text"
        )
