"""`hf-reformer predict`: what a model with a head says of texts: a class, tags, an answer, the words behind masks, a translation.

Texts come from the command line or from files: each line of a text file is one, each line of a .jsonl file a row, whose column
`text` is meant (`question` and `context` for questions). The output has a line of JSON for each.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from .options import add_device, add_revision

# class of the model: the Auto class, and the pipeline
PIPELINES = {
    "ReformerForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ReformerForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ReformerForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ReformerForQuestionAnswering": ("AutoModelForQuestionAnswering", "extractive-question-answering"),
    "ReformerForConditionalGeneration": ("AutoModelForSeq2SeqLM", None),
}


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser(
        "predict", help="what a model with a head says of texts", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", help="folder of a run or checkpoint, or a model's name on the Hub")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts, beside those of --data")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE", default=[], help="text files or .jsonl files; - for standard input"
    )
    parser.add_argument("--question", help="of every text, where the model answers questions")
    parser.add_argument(
        "--stride", type=int, metavar="N",
        help="tokens that two windows share, where a text of a question is longer than the model (default: an eighth of a window)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="texts at a time (default %(default)s)")
    parser.add_argument(
        "--beams", type=int, default=1, metavar="N", help="of an encoder-decoder (default %(default)s: greedy)"
    )
    add_device(parser)
    add_revision(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command; one line of JSON for each text, in order."""
    from transformers.utils import logging

    from ..training.machine import pick_device
    from ..training.vocabulary import load_tokenizer
    from .loading import load_config, load_model, model_folder

    rows = list(rows_of(arguments))
    if not rows:
        raise ValueError("there is no text: give some, or --data FILE")
    for name in ("batch_size", "beams"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {getattr(arguments, name)}, but must be at least 1")
    logging.disable_progress_bar()
    device, revision = pick_device(arguments.device or "auto"), arguments.revision
    name = model_folder(arguments.model, revision)
    config = load_config(name, revision)
    kind = (config.architectures or ["model without a head"])[0]
    if kind not in PIPELINES:
        raise ValueError(f"model {name} is a {kind}; allowed are {', '.join(PIPELINES)} (generate continues text)")
    auto_class, task = PIPELINES[kind]
    check_rows(rows, ("question", "text") if task == "extractive-question-answering" else ("text",))
    if arguments.stride is not None and task != "extractive-question-answering":
        raise ValueError(f"--stride is {arguments.stride}, but must be left out: model {name} answers no questions")
    tokenizer = load_tokenizer(name, config.maximum_length, revision, config.vocab_size)
    model = load_model(auto_class, name, config, device, revision)
    if config.is_encoder_decoder:
        answers = texts_of(model, tokenizer, rows, arguments)
    else:
        answers = answers_of(model, tokenizer, task, rows, arguments)
    for answer in answers:
        print(json.dumps(answer, default=float), flush=True)
    return 0


def rows_of(arguments) -> Iterator[dict]:
    """{text, question} of the command line, then of each line of the files."""
    shared = {} if arguments.question is None else {"question": arguments.question}
    yield from ({**shared, "text": text} for text in arguments.texts)
    for name in arguments.data:
        try:
            text = Path("/dev/stdin" if name == "-" else name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--data {name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
            row = {"text": line}
            if name.endswith((".jsonl", ".json")):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"--data {name}: row {number} is no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise ValueError(f"--data {name}: row {number} is {line[:60]}, but must be a mapping")
            yield {**shared, **row, "text": row.get("text", row.get("context"))}


def check_rows(rows: list[dict], columns: tuple[str, ...]) -> None:
    """Raises `ValueError` for a row without text in one of the columns."""
    for number, row in enumerate(rows, 1):
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column]:
                hint = "; --question gives one to all" if column == "question" else ""
                raise ValueError(f"row {number} has the {column} {row.get(column)!r}, but must have a text there{hint}")


def answers_of(model, tokenizer, task: str, rows: list[dict], arguments) -> Iterator:
    """What the pipeline says of each text."""
    from transformers import pipeline

    batch = {} if tokenizer.pad_token_id is None else {"batch_size": arguments.batch_size}
    said = pipeline(task, model=model, tokenizer=tokenizer, device=model.device, **batch)
    if task == "extractive-question-answering":
        return iter(
            said([{"question": row["question"], "context": row["text"]} for row in rows], doc_stride=arguments.stride)
        )
    texts = [row["text"] for row in rows]
    if len(texts) == 1:  # for which some pipelines give a list, and others its entry
        return iter(said(texts * 2)[:1])
    return iter(said(texts))


def texts_of(model, tokenizer, rows: list[dict], arguments) -> Iterator[dict]:
    """What an encoder-decoder writes for each text."""
    import torch

    longest, size = model.config.maximum_length, arguments.batch_size
    ids = [tokenizer(row["text"], add_special_tokens=False).input_ids for row in rows]
    for row, tokens in zip(rows, ids, strict=True):
        if len(tokens) > longest:
            raise ValueError(
                f"a text has {len(tokens):,} tokens, but the model has {longest:,} positions: {row['text'][:40]!r}..."
            )
    for start in range(0, len(rows), size):
        batch = tokenizer.pad({"input_ids": ids[start : start + size]}, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(
                **batch.to(model.device), max_length=model.config.decoder_part().maximum_length + 1, num_beams=arguments.beams,
                do_sample=False,
            )  # fmt: skip
        yield from ({"text": text} for text in tokenizer.batch_decode(written, skip_special_tokens=True))
