"""Streaming of byte-level text: a character is written when its last byte is there."""

import codecs

from transformers.generation.streamers import BaseStreamer


class ByteStreamer(BaseStreamer):
    """Writes what `generate(streamer=...)` makes, without the prompt, as UTF-8 text: each character when it is complete.

    Bytes that are no UTF-8 appear as U+FFFD, just as `tokenizer.decode` shows them. One row at a time.

    Args:
        tokenizer: a `ReformerByteTokenizer`.
        file: where to write text.
        tail: bytes at the end of the prompt that start a character which the first new bytes finish.
    """

    def __init__(self, tokenizer, file, tail: bytes = b""):
        self.tokenizer, self.file = tokenizer, file
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.decoder.decode(tail)
        self.is_prompt = True

    def put(self, value):
        """Token ids: the prompt first, then the new tokens."""
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"`value` has {len(value)} rows, but a ByteStreamer writes one row only.")
        if self.is_prompt:
            self.is_prompt = False
            return
        self._write(self.decoder.decode(self.tokenizer.decode_bytes(value.flatten().tolist())))

    def end(self):
        """What is left of an unfinished character, and a new line."""
        self._write(self.decoder.decode(b"", final=True) + "\n")
        self.decoder.reset()
        self.is_prompt = True

    def _write(self, text):
        if text:
            self.file.write(text)
            self.file.flush()
