"""Tokenizers: bytes for new models and `google/reformer-enwik8`, SentencePiece for its sister checkpoint.

`ReformerByteTokenizer` is byte b -> id b + 2 over UTF-8, with `<pad>` = 0 and `</s>` = 1: 258 ids. That is the
vocabulary of the published enwik8 model (whose own repository carries no tokenizer files) and it never meets an
unknown token. `ReformerTokenizer` is transformers' own class, for checkpoints that bring a `spiece.model`, such as
`google/reformer-crime-and-punishment`.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers.models.reformer.tokenization_reformer import ReformerTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

__all__ = ["ReformerByteTokenizer", "ReformerTokenizer"]

NUM_SPECIAL_TOKENS = 2  # <pad> and </s> come before the bytes
NUM_BYTES = 256


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
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


class ReformerByteTokenizer(TokenizersBackend):
    """Text as UTF-8 bytes: id = byte + 2, `<pad>` = 0, `</s>` = 1, nothing added before or after.

    Text that spells a special token ("<pad>") is its bytes, as all other text, unless `split_special_tokens=False`.
    Saved as `tokenizer.json`, so `AutoTokenizer` reads it back with and without this package. `str` cannot carry every
    byte string: `encode_bytes` and `decode_bytes` can.

    Args:
        model_max_length: longest input in tokens; pipelines truncate by it. Set it to `config.maximum_length`.

    Raises:
        ValueError: on text with a lone surrogate, which has no UTF-8 form.
    """

    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    def __init__(self, pad_token: str = "<pad>", eos_token: str = "</s>", split_special_tokens: bool = True, **kwargs):
        self._tokenizer = build_byte_backend(str(pad_token), str(eos_token))
        # On loading, transformers hands over the vocabulary of tokenizer.json; it can only be this one.
        vocab = kwargs.pop("vocab", None)
        if vocab is not None and vocab != self._tokenizer.get_vocab():
            raise ValueError(
                f"vocab has {len(vocab)} entries that are not the byte vocabulary (pad 0, eos 1, byte b at b + 2); "
                "a file with another vocabulary loads with ReformerTokenizer or PreTrainedTokenizerFast"
            )
        for absent in ("merges", "unk_token", "bos_token"):
            kwargs.pop(absent, None)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(pad_token=pad_token, eos_token=eos_token, split_special_tokens=split_special_tokens, **kwargs)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any byte string, UTF-8 or not."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"data must be bytes, got {type(data).__name__}; for text, call the tokenizer itself")
        return [byte + NUM_SPECIAL_TOKENS for byte in bytes(data)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The byte string of `ids` (list, or one-dimensional tensor or array); `<pad>` and `</s>` stand for no byte."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < NUM_SPECIAL_TOKENS + NUM_BYTES:
                raise ValueError(f"ids holds {i}; allowed are 0 to {NUM_SPECIAL_TOKENS + NUM_BYTES - 1}")
        return bytes(i - NUM_SPECIAL_TOKENS for i in ids if i >= NUM_SPECIAL_TOKENS)

    def _encode_plus(self, text, text_pair=None, **kwargs):
        try:
            return super()._encode_plus(text, text_pair=text_pair, **kwargs)
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


def _strings_in(nested):
    """Every string in nested lists and tuples."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, list | tuple):
        for item in nested:
            yield from _strings_in(item)
