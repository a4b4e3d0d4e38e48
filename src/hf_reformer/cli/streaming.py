"""Streaming of text: a character is written when its last byte is there."""

from tokenizers.decoders import DecodeStream
from transformers.generation.streamers import BaseStreamer

from ..model.tokenization_reformer import ReformerByteTokenizer

CONTEXT = 8  # tokens of the prompt that decide how the first new one is written, with or without a space


class TokenStreamer(BaseStreamer):
    """Writes what `generate(streamer=...)` makes, without the prompt, each character when it is complete. One row at a time.

    A character that the prompt begins and the first new tokens end is written whole. Bytes that are no UTF-8 appear as U+FFFD,
    just as `tokenizer.decode` shows them, once it is known that they are none. Ids that stand for no token write nothing.

    Args:
        tokenizer: a fast tokenizer.
        file: where to write text.
    """

    def __init__(self, tokenizer, file):
        self.tokenizer, self.backend = tokenizer, tokenizer.backend_tokenizer
        self.file, self.stream = file, None

    def put(self, value):
        """Token ids: the prompt first, then the new tokens."""
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"`value` has {len(value)} rows, but a TokenStreamer writes one row only.")
        ids = value.flatten().tolist()
        if self.stream is None:
            self.pending = self._begun(ids[-3:])
            self.stream = DecodeStream(ids=self.pending or ids[-CONTEXT:], skip_special_tokens=True)
            return
        for token in ids:
            self.pending.append(token)
            text = self.stream.step(self.backend, token)
            if text is not None:
                self.pending = []
                self._write(text)

    def end(self):
        """What is left of an unfinished character, and a new line."""
        self._write(self.backend.decode(self.pending, skip_special_tokens=True) + "\n")
        self.stream = None

    def _begun(self, ids):
        """Ids of the character that is begun at the end; other tokenizers than that of bytes get whole ones only."""
        if not isinstance(self.tokenizer, ReformerByteTokenizer):
            return []
        return self.tokenizer.encode_bytes(unfinished_character(self.tokenizer.decode_bytes(ids)))

    def _write(self, text):
        if text:
            self.file.write(text)
            self.file.flush()


def unfinished_character(data: bytes) -> bytes:
    """The bytes at the end that start a UTF-8 character and do not end it."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[-length:] if length < needed else b""
        if byte < 0x80:
            break
    return b""
