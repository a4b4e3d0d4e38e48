"""Tokenizers of recipes: bytes, a vocabulary trained on the training text, or a saved one."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..model.tokenization_reformer import NUM_BYTES, NUM_SPECIAL_TOKENS, ReformerByteTokenizer

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
MASK = "<mask>"
TRAINED = ("bpe", "byte-bpe")
PIECE = 1 << 16  # characters that a trainer is given at a time
BAD_BYTE = re.compile("[\udc80-\udcff]")  # as `surrogateescape` reads it


def build_tokenizer(data, text: Iterable, needs_mask: bool = False):
    """The tokenizer that `data.tokenizer` names; those with a vocabulary of their own are trained on `text`.

    Raises:
        ValueError: for a name that is none, a saved tokenizer that cannot be loaded, a vocabulary that cannot have its size.
    """
    known = data.tokenizer in ("byte", *TRAINED)
    if data.tokenizer in TRAINED and data.vocab_size is None:
        raise ValueError(f"data.vocab_size is missing: tokenizer {data.tokenizer} is trained to a number of tokens")
    if known and data.tokenizer_revision is not None:
        raise ValueError(
            f"data.tokenizer_revision is {data.tokenizer_revision!r}, but must be null for tokenizer {data.tokenizer}"
        )
    if data.tokenizer == "byte":
        tokenizer = ReformerByteTokenizer(model_max_length=data.context)
    elif known:
        tokenizer = train_tokenizer(data, text)
    else:
        tokenizer = load_tokenizer(data.tokenizer, data.context, data.tokenizer_revision)
    if needs_mask and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def load_tokenizer(name: str, context: int, revision: str | None = None, vocab_size: int | None = None):
    """A saved tokenizer, padding on the right.

    Args:
        vocab_size: of the model that it belongs to; one that brings no tokenizer and has a vocabulary of bytes (as
            `google/reformer-enwik8`) then takes those.

    Raises:
        ValueError: where there is none that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, model_max_length=context, padding_side="right"
        )  # fmt: skip
        found = tokenizer("a").input_ids  # an empty vocabulary is noticed only here
        if not tokenizer.is_fast:
            reason = "it does not say where its tokens lie in the text"
        elif vocab_size is None or (len(tokenizer) <= vocab_size and found):
            return tokenizer
        else:
            reason = f"it has {len(tokenizer)} tokens, the model {vocab_size}"
    except Exception as error:  # what a missing tokenizer raises differs from version to version
        reason = error
    if vocab_size == NUM_SPECIAL_TOKENS + NUM_BYTES:
        return ReformerByteTokenizer(model_max_length=context)
    raise ValueError(
        f"data.tokenizer is {name!r}, which cannot be loaded ({reason}); allowed are byte, {', '.join(TRAINED)}, and the "
        "folder or name of a saved tokenizer"
    )


def train_tokenizer(data, text: Iterable[bytes]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding over characters (spaces visible, as in SentencePiece, words never merged) or over bytes."""
    backend = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    alphabet = []
    if data.tokenizer == "bpe":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = decoders.Metaspace(prepend_scheme="never")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=data.vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(pieces_of(text), trainer)
    if backend.get_vocab_size() > data.vocab_size:
        raise ValueError(
            f"data.vocab_size is {data.vocab_size}, but must be at least {backend.get_vocab_size()}: so many different characters "
            "are in the text"
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=data.context, **SPECIAL_TOKENS)


def pieces_of(text: Iterable) -> Iterable[str]:
    """The texts in pieces that a tokenizer handles well, cut at line ends; a byte that is no UTF-8 is one U+FFFD."""
    return (BAD_BYTE.sub("\N{REPLACEMENT CHARACTER}", piece) for document in text for piece in _raw_pieces(document))


def _raw_pieces(document) -> Iterable[str]:
    """The same, in which a surrogate stands for each byte that is no UTF-8."""
    piece, size = [], 0
    for line in bytes(document).decode("utf-8", "surrogateescape").splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


class Encoded(NamedTuple):
    """A document in tokens."""

    ids: np.ndarray  # (tokens,); of a byte tokenizer the document itself, uint8, of which `Stream` makes ids
    sizes: (
        np.ndarray
    )  # (tokens,) bytes that each token stands for; their sum is the document's length. Empty where not asked for
    undecodable: int  # bytes that are no UTF-8
    unknown: int  # tokens
    special: int  # tokens that the vocabulary itself finds in the text


def encoded(tokenizer, document, with_sizes: bool = True) -> Encoded:
    """Special tokens that the text spells are its characters, as all others; none is added."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        return Encoded(np.asarray(document), np.broadcast_to(np.uint8(1), len(document)), 0, 0, 0)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    ids, sizes, undecodable = [np.zeros(0, dtype)], [np.zeros(0, np.int32)], 0
    how = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    for piece in _raw_pieces(document):
        clean, bad = BAD_BYTE.subn("\N{REPLACEMENT CHARACTER}", piece)
        found = tokenizer(clean, return_offsets_mapping=with_sizes, **how)
        ids.append(np.array(found.input_ids, dtype=dtype))
        sizes += [bytes_between(piece, found.offset_mapping)] if with_sizes else []
        undecodable += bad
    ids = np.concatenate(ids)
    unknown = int((ids == tokenizer.unk_token_id).sum())
    special = int(np.isin(ids, tokenizer.all_special_ids).sum()) - unknown
    return Encoded(ids, np.concatenate(sizes), undecodable, unknown, special)


def bytes_between(piece: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """(tokens,) bytes from the end of the token before to the end of each token; what follows the last one is its own.

    So no byte is counted twice or left out, whatever the tokenizer drops (spaces) or splits (characters of several bytes).
    """
    if not offsets:
        return np.zeros(0, np.int32)
    points = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1  # a byte that is no UTF-8
    before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array(offsets)[:, 1])
    ends[-1] = len(piece)
    return np.diff(before[ends], prepend=0).astype(np.int32)
