"""The tokenizer of a converted checkpoint: bytes, a SentencePiece model, or the files beside the source.

The files are read as everything else in a source is, bounded and parsed; what is written is what was read.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

import hf_reformer

from .bounded import inside, parse_json, read_text

BYTE_VOCABULARY = 258
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MAX_BYTES = 2**26  # of one file; vocabularies of 250,000 pieces take 2^25


def find_tokenizer(choice, source, config):
    """A tokenizer, {name of a file: its text}, or None.

    Args:
        choice: "byte", "none", a SentencePiece model, or None for what is there.

    Raises:
        ValueError: it cannot be read, or has more tokens than the model.
    """
    folder = source if source.is_dir() else source.parent
    if choice is None:
        if (folder / "spiece.model").exists():
            choice = inside(folder, "spiece.model")
        elif (folder / "tokenizer.json").exists():
            return read_files(folder)
        else:
            choice = "byte" if config.vocab_size == BYTE_VOCABULARY else "none"
    if choice == "none":
        return None
    if choice == "byte":
        if config.vocab_size < BYTE_VOCABULARY:
            raise ValueError(f"`tokenizer` is 'byte', but the vocabulary has {config.vocab_size} tokens, not 258.")
        return hf_reformer.ReformerByteTokenizer(model_max_length=config.maximum_length)
    return _checked(_sentencepiece(Path(choice), config.maximum_length), choice, config)


def read_files(folder):
    """{name: text} of the tokenizer's files in a folder, without references to code (`auto_map`), which is not copied."""
    texts = {}
    for name in FILES:
        if (folder / name).exists():
            text = read_text(inside(folder, name), MAX_BYTES)
            fields = parse_json(text, folder / name)
            if fields.pop("auto_map", None) is not None:
                text = json.dumps(fields, indent=2) + "\n"
            texts[name] = text
    return texts


def write_tokenizer(folder, tokenizer, config):
    """What `find_tokenizer` gave; returns the tokenizer, or None.

    Raises:
        ValueError: the files do not make a tokenizer, or one with more tokens than the model.
    """
    if isinstance(tokenizer, dict):
        for name, text in tokenizer.items():
            (folder / name).write_text(text, encoding="utf-8")
        return _checked(_load(PreTrainedTokenizerFast, folder, "tokenizer.json"), "tokenizer.json", config)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def _sentencepiece(path, length):
    if not path.is_file():
        raise ValueError(f"the tokenizer {path} is not a file; give 'byte', 'none' or a SentencePiece model.")
    return _load(hf_reformer.ReformerTokenizer, path.parent, path, vocab_file=str(path), model_max_length=length)


def _load(kind, folder, path, **options):
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, **options)
        tokenizer("a")  # an empty vocabulary is noticed only here
        return tokenizer
    except Exception as error:  # sentencepiece, protobuf and tokenizers raise of all kinds
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error


def _checked(tokenizer, where, config):
    """The tokenizer; `ValueError` where it gives ids that the model has no embedding for."""
    count = max(tokenizer.get_vocab().values(), default=-1) + 1
    if count > config.vocab_size:
        raise ValueError(f"{where} has {count} tokens, but the vocabulary has {config.vocab_size}.")
    return tokenizer
