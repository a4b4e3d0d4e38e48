"""Tokenizers of recipes: bytes, a vocabulary trained on the training text, or a saved one."""

from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..model.tokenization_reformer import NUM_BYTES, NUM_SPECIAL_TOKENS, ReformerByteTokenizer

SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
MASK = "<mask>"
TRAINED = ("bpe", "byte-bpe")
PIECE = 1 << 16  # characters that a trainer is given at a time


def build_tokenizer(data, text: Iterable[bytes], needs_mask: bool = False):
    """The tokenizer that `data.tokenizer` names; those with a vocabulary of their own are trained on `text`.

    Raises:
        ValueError: for a name that is none, a saved tokenizer that cannot be loaded, a vocabulary that cannot have its size.
    """
    if data.tokenizer in TRAINED and data.vocab_size is None:
        raise ValueError(f"data.vocab_size is missing: tokenizer {data.tokenizer} is trained to a number of tokens")
    if data.tokenizer == "byte":
        tokenizer = ReformerByteTokenizer(model_max_length=data.context)
    elif data.tokenizer in TRAINED:
        tokenizer = train_tokenizer(data, text)
    else:
        tokenizer = load_tokenizer(data.tokenizer, data.context)
    if needs_mask and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def load_tokenizer(name: str, context: int, revision: str | None = None, vocab_size: int | None = None):
    """A saved tokenizer.

    Args:
        vocab_size: of the model that it belongs to; one that brings no tokenizer and has a vocabulary of bytes (as
            `google/reformer-enwik8`) then takes those.

    Raises:
        ValueError: where there is none that can be used.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=context, revision=revision)
        if vocab_size is None or (len(tokenizer) <= vocab_size and tokenizer("a").input_ids):
            return tokenizer
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


def pieces_of(text: Iterable[bytes]) -> Iterable[str]:
    """The texts in pieces that a tokenizer handles well, cut at line ends."""
    for document in text:
        piece = []
        size = 0
        for line in document.decode("utf-8", "replace").splitlines(keepends=True):
            piece.append(line)
            size += len(line)
            if size >= PIECE:
                yield "".join(piece)
                piece, size = [], 0
        if piece:
            yield "".join(piece)


def encoded(tokenizer, document: bytes) -> np.ndarray:
    """Token ids of a text, nothing added: uint16 where they fit, else int32."""
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    if isinstance(tokenizer, ReformerByteTokenizer):
        return np.frombuffer(document, dtype=np.uint8).astype(dtype) + dtype(NUM_SPECIAL_TOKENS)
    parts = [tokenizer(piece, add_special_tokens=False, verbose=False).input_ids for piece in pieces_of([document])]
    return np.concatenate([np.array(part, dtype=dtype) for part in parts]) if parts else np.zeros(0, dtype)


def bytes_of_tokens(tokenizer, vocab_size: int) -> np.ndarray:
    """(vocab_size,) how many bytes of text each token stands for; special tokens none, but an unknown one at least 1."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        sizes = np.zeros(vocab_size, dtype=np.int64)
        sizes[NUM_SPECIAL_TOKENS : NUM_SPECIAL_TOKENS + NUM_BYTES] = 1
        return sizes
    sizes = np.zeros(vocab_size, dtype=np.int64)
    byte_level = isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    for token, index in tokenizer.get_vocab().items():
        if index < vocab_size and token not in tokenizer.all_special_tokens:
            sizes[index] = len(token) if byte_level else len(token.replace("▁", " ").encode())
    if tokenizer.unk_token_id is not None:
        sizes[tokenizer.unk_token_id] = 1
    return sizes
