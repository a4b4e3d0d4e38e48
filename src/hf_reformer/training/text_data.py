"""Text as bytes: finding files, splitting them into training and held-out text, drawing windows, compressing.

Everything here is deterministic: the same files and the same seed give the same split and the same windows.
"""

import gzip
import lzma
import os
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"})
BINARY_PROBE = 8192  # a file with a NUL among its first bytes is taken for binary, as git does


@dataclass(frozen=True)
class TextSplit:
    """Training and held-out text, each the concatenation of its files. No file is in both."""

    training: bytes
    held_out: bytes
    training_files: int
    held_out_files: int


def standard_library_files() -> list[Path]:
    """The .py sources of the running Python's standard library, without its tests and installed packages, sorted."""
    return _walk(Path(sysconfig.get_paths()["stdlib"]), SKIPPED_FOLDERS, suffix=".py")


def find_files(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The text files named by `paths`: a file is taken as it is; a folder gives all its files but hidden and binary ones.

    Raises:
        ValueError: when a path does not exist, or none of them holds a text file.
    """
    found = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            found += [file for file in _walk(path, frozenset({"__pycache__"})) if not _is_binary(file)]
        else:
            raise ValueError(f"data path {str(path)!r} does not exist; allowed are files and folders")
    if not found:
        raise ValueError(f"data {[str(p) for p in paths]} holds no text file; allowed are files and folders with some")
    return list(dict.fromkeys(file.resolve() for file in found))


def split_by_file(files: Sequence[Path], *, seed: int, held_out_bytes: int, held_out_share: float = 0.05) -> TextSplit:
    """Shuffle the files by `seed` and hold out the first of them until they have the bytes asked for.

    Held out are at least `held_out_bytes` or `held_out_share` of all bytes, whichever is more, but never more than a
    quarter of the text. A single file is cut instead: its end is held out.

    Raises:
        ValueError: when the files are empty.
    """
    texts = [file.read_bytes() for file in files]
    texts = [text for text in texts if text]
    total = sum(map(len, texts))
    wanted = min(max(held_out_bytes, int(held_out_share * total)), total // 4)
    if wanted == 0:
        raise ValueError(f"data has {total} bytes in {len(files)} files; allowed are at least 4 bytes")
    if len(texts) == 1:
        return TextSplit(texts[0][:-wanted], texts[0][-wanted:], 1, 1)
    random.Random(seed).shuffle(texts)
    held_out = [texts.pop()]
    while sum(map(len, held_out)) < wanted and len(texts) > 1:
        held_out.append(texts.pop())
    return TextSplit(b"".join(texts), b"".join(held_out), len(texts), len(held_out))


def as_bytes_tensor(text: bytes) -> torch.Tensor:
    """(length,) uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def draw_windows(text: torch.Tensor, *, length: int, count: int, seed: int, step: int) -> torch.Tensor:
    """(count, length) int64 windows of the uint8 `text`: a pure function of `seed` and `step`, so there is no position to save."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    starts = torch.randint(len(text) - length + 1, (count,), generator=generator)
    return torch.stack([text[start : start + length] for start in starts.tolist()]).long()


def gzip_bits_per_byte(text: bytes) -> float:
    """What `gzip -9` needs for `text`, in bits per byte."""
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def xz_bits_per_byte(text: bytes) -> float:
    """What `xz -9` needs for `text`, in bits per byte."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def _walk(root: Path, skipped: frozenset[str], suffix: str = "") -> list[Path]:
    """Files below `root` in a fixed order, without hidden files and folders and without the folders named in `skipped`."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in skipped and not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]
    return [file for file in found if file.is_file()]


def _is_binary(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"\0" in stream.read(BINARY_PROBE)
