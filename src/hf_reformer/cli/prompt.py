"""The prompt of a text that is continued: its bytes, and its tokens, where it is not longer than the model takes."""

import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

import torch

from ..model.tokenization_reformer import ReformerByteTokenizer

PIECE = 1 << 16  # bytes


def read_prompt(prompt: str | None, file: str | None, tail: int | None, most: int) -> bytes:
    """The prompt as bytes, at least one of them.

    Args:
        prompt: text, or None for that in `file`, which is - for standard input.
        tail: take no more than so many bytes from the end.
        most: the bytes that the longest possible prompt has.
    """
    source = "--prompt" if file is None else f"--prompt-file {file}"
    if file is None:
        data = os.fsencode(prompt)
        data = data if tail is None else data[-tail:]
    else:
        try:
            with sys.stdin.buffer if file == "-" else open(file, "rb") as opened:
                data = last_bytes(opened, tail) if tail is not None else opened.read(most + 1)
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    if not data:
        raise ValueError(f"{source} is empty, but must hold something to continue")
    if len(data) > most:
        raise ValueError(
            f"{source} has more than the {most:,} bytes that this model can take; --tail-bytes N takes its end"
        )
    return data


def last_bytes(file: BinaryIO, count: int) -> bytes:
    """The end of a file or pipe, without holding more than it and a piece."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - count))
    data = b""
    for piece in pieces(file):
        data = (data + piece)[-count:]
    return data


def pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def longest_prompt(tokenizer, positions: int) -> int:
    """Bytes that no prompt for so many positions can have more of, one of which is for a new token."""
    longest = 1
    if not isinstance(tokenizer, ReformerByteTokenizer):
        longest = max(len(token.encode()) for token in tokenizer.get_vocab())
    return longest * (positions - 1)


def encode(tokenizer, prompt: bytes, positions: int) -> torch.Tensor:
    """Token ids (1, L) of the prompt."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        return torch.tensor([tokenizer.encode_bytes(prompt)])
    try:
        text = prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8 ({error.reason} at byte {error.start}): this model's tokenizer takes text only"
        ) from error
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    if ids.shape[1] >= positions:
        raise ValueError(
            f"the prompt has {ids.shape[1]:,} tokens, but this model has {positions:,} positions, one of them for a new token; "
            "--tail-bytes N takes the prompt's end"
        )
    return ids
