"""Text as bytes: finding files, splitting them into training and held-out text, drawing windows, compressing.

Everything here is deterministic: the same contents and the same seed give the same split and the same windows.
"""

import gzip
import hashlib
import lzma
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"})
BINARY_PROBE = 8192  # a file with a NUL among its first bytes is taken for binary, as git does
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MAPPED = 1 << 24  # bytes; larger files stay on disk (each takes a file descriptor)
SHINGLE = 8  # words
LEAST = 8  # bytes: two tokens to predict in a quarter of the text


@dataclass(frozen=True)
class TextSplit:
    """Training and held-out documents, uint8 arrays. No document, nor a copy of one, is in both."""

    training_documents: list[np.ndarray]
    held_out_documents: list[np.ndarray]

    @cached_property
    def training(self) -> bytes:
        return b"".join(map(bytes, glued(self.training_documents)))

    @cached_property
    def held_out(self) -> bytes:
        return b"".join(map(bytes, glued(self.held_out_documents)))

    @property
    def training_files(self) -> int:
        return len(self.training_documents)

    @property
    def held_out_files(self) -> int:
        return len(self.held_out_documents)


def standard_library_files() -> list[Path]:
    """The .py sources of the running Python's standard library, without its tests and installed packages, sorted."""
    return _walk(Path(sysconfig.get_paths()["stdlib"]), SKIPPED_FOLDERS, Counter(), suffix=".py")


def find_files(paths: Sequence[str | os.PathLike], counts: Counter | None = None) -> list[Path]:
    """The text files named by `paths`: a file is taken as it is; a folder gives all its files but hidden and binary ones.

    Args:
        counts: what is passed over is counted here.

    Raises:
        ValueError: when a path does not exist, or none of them holds a text file.
    """
    found, counts = [], Counter() if counts is None else counts
    for path in map(Path, paths):
        if path.is_dir():
            found += [
                file.resolve() for file in _walk(path, frozenset({"__pycache__"}), counts) if _is_text(file, counts)
            ]
        elif path.exists():  # a pipe has no other name than the one given
            found.append(path.resolve() if path.is_file() else path)
        else:
            raise ValueError(f"data path {str(path)!r} does not exist; allowed are files, pipes and folders")
    if not found:
        passed = "".join(f"; {count} {what.replace('_', ' ')}" for what, count in counts.items())
        raise ValueError(
            f"data {[str(p) for p in paths]} holds no text file{passed}; allowed are files and folders with some"
        )
    return list(dict.fromkeys(found))


def contents(file: Path) -> np.ndarray:
    """(bytes,) uint8; of a large file they stay on disk until they are read. A pipe can be read once only.

    Raises:
        ValueError: when the file cannot be read.
    """
    try:
        if file.is_file() and file.stat().st_size >= MAPPED:
            return np.memmap(file, np.uint8, "r")
        return np.frombuffer(file.read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"data file {str(file)!r} cannot be read: {error.strerror}") from None


def glued(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The documents, with a line end between those that would run into each other."""
    last = None
    for document in documents:
        if last is not None and len(last) and last[-1] != ord("\n"):
            yield np.frombuffer(b"\n", np.uint8)
        yield document
        last = document


def digest_of(document, seed: object = "") -> bytes:
    """16 bytes that depend on the content (and the seed) alone."""
    return hashlib.blake2b(np.ascontiguousarray(document), digest_size=16, key=str(seed).encode()).digest()


def split_by_file(files: Sequence[Path], *, seed: int, held_out_bytes: int, held_out_share: float = 0.05) -> TextSplit:
    """`split_documents` of the files' contents."""
    return split_documents(
        [contents(file) for file in files], seed=seed, least=held_out_bytes, share=held_out_share
    )  # fmt: skip


def split_documents(documents: Sequence[np.ndarray], *, seed: int, least: int = 0, share: float = 0.05) -> TextSplit:
    """Hold out about `least` bytes or the `share` of all bytes, whichever is more, but never more than a quarter.

    Each document has a place between 0 and 1, a hash of its content and the seed, and is held out where that lies below the
    share. So equal documents fall on one side, names and folders do not matter, and documents that are added move none from
    training to held-out text. Where that gives nothing, or less than `least`, the documents next in place follow; where no
    document fits into a quarter of the text, the end of the largest one is held out. (There alone, documents added may move some.)

    Raises:
        ValueError: when there is too little text.
    """
    documents = [document for document in documents if len(document)]
    total = sum(map(len, documents))
    if total < LEAST:
        raise ValueError(f"data has {total} bytes in {len(documents)} file(s); allowed are at least {LEAST} bytes")
    groups = {}
    for document in documents:
        groups.setdefault(digest_of(document, seed), []).append(document)
    share = min(max(share, least / total), 0.25)
    training, held_out, size = [], [], 0
    for digest in sorted(groups):
        group = groups[digest]
        length = len(group) * len(group[0])
        chosen = int.from_bytes(digest, "big") < share * 256 ** len(digest) or size < max(least, 1)
        if chosen and size + length <= total // 4:
            held_out += group
            size += length
        else:
            training += group
    return TextSplit(training, held_out) if held_out else _cut_the_largest(training, max(2, int(share * total)))


def _cut_the_largest(documents: list[np.ndarray], wanted: int) -> TextSplit:
    largest = max(documents, key=len)
    border = len(largest) - min(wanted, len(largest) // 4)
    while border > 1 and largest[border] & 0xC0 == 0x80:  # within a character
        border -= 1
    copies = [document is largest or np.array_equal(document, largest) for document in documents]
    training = [d[:border] if copy else d for d, copy in zip(documents, copies, strict=True)]
    return TextSplit(training, [largest[border:]])


def without_near_duplicates(training: Sequence[np.ndarray], held_out: Sequence[np.ndarray], share: float) -> list:
    """The training documents but those that share more than `share` of their shingles, or of a held-out document's, with it.

    A shingle is `SHINGLE` words one after another; documents with fewer have one. Compared are all pairs (resemblance by
    shingles, Broder 1997).
    """
    sets = [_shingles(document) for document in held_out]
    if not sets:
        return list(training)
    owners = np.repeat(np.arange(len(sets)), [len(found) for found in sets])
    all_shingles = np.concatenate(sets)
    order = np.argsort(all_shingles, kind="stable")
    all_shingles, owners = all_shingles[order], owners[order]
    sizes = np.array([len(found) for found in sets])

    def resembles(document):
        own = _shingles(document)
        left, right = (np.searchsorted(all_shingles, own, side) for side in ("left", "right"))
        met = np.concatenate([owners[a:b] for a, b in zip(left, right, strict=True) if b > a] or [owners[:0]])
        common = np.bincount(met, minlength=len(sets))
        return bool((common > share * np.minimum(sizes, len(own))).any())

    return [document for document in training if not resembles(document)]


def _shingles(document: np.ndarray) -> np.ndarray:
    """Hashes of the different shingles of a document, uint64, sorted."""
    words = bytes(document).split()
    hashes = np.array([zlib.crc32(word) for word in words] or [0], np.uint64)
    size = min(SHINGLE, len(hashes))
    found = np.zeros(len(hashes) - size + 1, np.uint64)
    for i in range(size):
        found = found * np.uint64(0x9E3779B97F4A7C15) + hashes[i : len(hashes) - size + 1 + i]
    return np.unique(found)


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


def _walk(root: Path, skipped: frozenset[str], counts: Counter, suffix: str = "") -> list[Path]:
    """Files below `root` in a fixed order, without hidden files and folders and without the folders named in `skipped`."""

    def unreadable(error):
        counts["folders_passed_over_as_unreadable"] += 1

    found = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if name not in skipped and not name.startswith("."))
        counts["folders_passed_over_as_links"] += sum(os.path.islink(Path(folder, name)) for name in subfolders)
        found += [Path(folder, name) for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]
    counts += Counter()  # without those that are 0
    return [file for file in found if file.is_file()]


def _is_text(file: Path, counts: Counter) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(BINARY_PROBE)
    except OSError:
        counts["files_passed_over_as_unreadable"] += 1
        return False
    if b"\0" not in start:
        return True
    counts["files_passed_over_as_UTF-16" if start.startswith(UTF_16) else "files_passed_over_as_binary"] += 1
    return False
