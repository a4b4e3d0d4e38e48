"""Tokenizers: bytes for new models and `google/reformer-enwik8`, SentencePiece for its sister checkpoint.

`ReformerByteTokenizer` is byte b -> id b + 2 over UTF-8, with `<pad>` = 0 and `</s>` = 1: 258 ids. That is the
vocabulary of the published enwik8 model (whose own repository carries no tokenizer files) and it never meets an
unknown token. `ReformerTokenizer` is transformers' own class, for checkpoints that bring a `spiece.model`, such as
`google/reformer-crime-and-punishment`.
"""

import operator
import reprlib
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers.models.reformer.tokenization_reformer import ReformerTokenizer
from transformers.tokenization_utils_base import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend

__all__ = ["ReformerByteTokenizer", "ReformerTokenizer"]

NUM_SPECIAL_TOKENS = 2  # <pad> and </s> come before the bytes
NUM_BYTES = 256
WHITE_SPACE = frozenset(b" \t\n\v\f\r")


def printable_byte_alphabet() -> list[str]:
    """One visible character for each byte, in byte order, as the ByteLevel parts of `tokenizers` name them.

    Visible Latin-1 characters stand for themselves, the other bytes take the code points from 256 up, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(NUM_BYTES)]


def build_byte_backend(pad_token: str, eos_token: str) -> Tokenizer:
    """A `tokenizers` BPE without merges: every byte of the UTF-8 text is one token, whatever its neighbours."""
    vocab = {pad_token: 0, eos_token: 1}
    vocab |= {char: NUM_SPECIAL_TOKENS + byte for byte, char in enumerate(printable_byte_alphabet())}
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    # words, each with the space in front of it: they change no id, but `word_ids` and whole-word masking go by them
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


class ReformerByteTokenizer(TokenizersBackend):
    """Text as UTF-8 bytes: id = byte + 2, `<pad>` = 0, `</s>` = 1, nothing added before or after.

    Special and added tokens are found in text (a chat template's, `text + tokenizer.eos_token`, `<mask>`), as other
    tokenizers find them; with `split_special_tokens=True`, here or in a call, text that spells a special one is its bytes,
    as all other text. Others than those two come after the bytes, from id 258. Saved as `tokenizer.json`, so `AutoTokenizer` reads
    it back with and without this package. `str` cannot carry every byte string: `encode_bytes` and `decode_bytes` can.

    Words given one by one (`is_split_into_words=True`) are set apart by a space, which belongs to the word behind it. In
    `offset_mapping` white space, and a character's bytes after its first, are empty, at the end of what they belong to:
    whole-word masking then finds the words, and a span's first character its first byte.

    Args:
        split_special_tokens: count special tokens in text as the bytes that spell them.
        model_max_length: longest input in tokens; pipelines truncate by it. Set it to `config.maximum_length`.

    Raises:
        ValueError: on text with a lone surrogate, which has no UTF-8 form.
    """

    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    def __init__(self, pad_token: str = "<pad>", eos_token: str = "</s>", **kwargs):
        self._tokenizer = build_byte_backend(str(pad_token), str(eos_token))
        # On loading, transformers hands over the vocabulary of tokenizer.json; it can only be this one.
        vocab = kwargs.pop("vocab", None)
        if vocab is not None and vocab != self._tokenizer.get_vocab():
            raise ValueError(
                f"vocab has {len(vocab)} entries that are not the byte vocabulary (pad 0, eos 1, byte b at b + 2); "
                "a file with another vocabulary loads with ReformerTokenizer or PreTrainedTokenizerFast"
            )
        kwargs.pop("merges", None)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(pad_token=pad_token, eos_token=eos_token, **kwargs)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any byte string, UTF-8 or not."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"data must be bytes, got {type(data).__name__}; for text, call the tokenizer itself")
        return [byte + NUM_SPECIAL_TOKENS for byte in bytes(data)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The byte string of `ids` (list, or one-dimensional tensor or array); special tokens stand for no byte, other added
        ones for those of their text."""
        ids = _integers(ids)
        parts = []
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"ids holds {i}; allowed are 0 to {len(self) - 1}")
            if i in self.added_tokens_decoder:
                added = self.added_tokens_decoder[i]
                parts.append(b"" if added.special else added.content.encode())
            else:
                parts.append(bytes([i - NUM_SPECIAL_TOKENS]))
        return b"".join(parts)

    def train_new_from_iterator(self, text_iterator, vocab_size, **kwargs):
        """A tokenizer of byte pairs, trained on the texts: no longer one of bytes, but a `PreTrainedTokenizerFast`."""
        least = NUM_SPECIAL_TOKENS + NUM_BYTES
        if vocab_size < least:
            raise ValueError(f"`vocab_size` is {vocab_size}, but must be at least {least}: the bytes, <pad> and </s>.")
        settings = {name: getattr(self, name) for name in ("model_max_length", "padding_side", "truncation_side")}
        plain = TokenizersBackend(tokenizer_object=self._tokenizer, **self.special_tokens_map, **settings)
        return plain.train_new_from_iterator(text_iterator, vocab_size, **kwargs)

    def _encode_plus(self, text, text_pair=None, is_split_into_words=False, return_tensors=None, **kwargs):
        _check_text(text, text_pair, is_split_into_words)
        longest = kwargs.get("max_length")
        if longest is not None and not (type(longest) is int and 0 <= longest < 2**63):
            raise ValueError(f"max_length is {longest!r}, but must be a whole number of at least 0, or None")
        if is_split_into_words:
            text, text_pair = _spaced(text), _spaced(text_pair)
        try:
            encoded = super()._encode_plus(
                text,
                text_pair=text_pair,
                is_split_into_words=is_split_into_words,
                return_tensors=return_tensors,
                **kwargs,
            )
        except TypeError as error:  # what the Rust side answers to a string that has no UTF-8 form
            for string in _strings_in((text, text_pair)):
                try:
                    string.encode("utf-8")
                except UnicodeEncodeError as cause:
                    raise ValueError(
                        f"text holds the lone surrogate {string[cause.start]!r} at position {cause.start}, which has "
                        "no UTF-8 form; allowed is text that encodes to UTF-8 (for raw bytes: encode_bytes)"
                    ) from error
            raise
        if len(encoded.get("offset_mapping", ())) > 0:
            rows = [_offsets(encoding, is_split_into_words) for encoding in encoded.encodings]
            single = isinstance(encoded["offset_mapping"][0], tuple)
            rows = BatchEncoding({"rows": rows[0] if single else rows}, tensor_type=return_tensors)
            encoded["offset_mapping"] = rows["rows"]
        return encoded


def _integers(ids):
    """A list of whole numbers; `ValueError` for anything else."""
    try:
        found = [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError as error:
        raise ValueError(f"ids is {reprlib.repr(ids)}, but must be a sequence of whole numbers") from error
    if isinstance(ids, str | bytes | dict):
        raise ValueError(f"ids is {reprlib.repr(ids)}, but must be a sequence of whole numbers")
    return found


def _check_text(text, text_pair, is_split_into_words):
    """One text, or a list of texts or of pairs of them; with `is_split_into_words` lists of words, or a list of such."""
    depth = 2 if is_split_into_words else 1
    for name, given in (("text", text), ("text_pair", text_pair)):
        fits = given is None if name == "text_pair" else False
        fits = fits or (isinstance(given, str) and not is_split_into_words)
        if not fits and not (isinstance(given, list | tuple) and _holds_strings(given, depth)):
            allowed = (
                "a list of words, or a list of such lists" if is_split_into_words else "a text, or a list of texts"
            )
            raise ValueError(f"{name} is {reprlib.repr(given)}, but must be {allowed}")


def _holds_strings(nested, depth):
    """Whether it holds nothing but strings, at most `depth` levels (and one for pairs) down."""
    return len(nested) > 0 and all(
        isinstance(item, str) or (isinstance(item, list | tuple) and depth > 0 and _holds_strings(item, depth - 1))
        for item in nested
    )


def _spaced(words):
    """Nested lists of words, each but the first of its list with a space in front."""
    if isinstance(words, list | tuple) and all(isinstance(word, str) for word in words):
        return [word if i == 0 or word[:1].isspace() else " " + word for i, word in enumerate(words)]
    return words if words is None or isinstance(words, str) else type(words)(_spaced(inner) for inner in words)


def _offsets(encoding, is_split_into_words):
    """(start, end) in characters of the text, or of the word as it was given."""
    offsets = []
    for index, (start, end), word in zip(encoding.ids, encoding.offsets, encoding.word_ids, strict=True):
        byte = index - NUM_SPECIAL_TOKENS
        start = end if byte in WHITE_SPACE or 0x80 <= byte < 0xC0 else start
        set_apart = is_split_into_words and word  # words but the first have got a space
        offsets.append((max(start - 1, 0), max(end - 1, 0)) if set_apart else (start, end))
    return offsets


def _strings_in(nested):
    """Every string in nested lists and tuples."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, list | tuple):
        for item in nested:
            yield from _strings_in(item)
