"""Reading files that may lie: never more bytes in memory than the file can honestly hold.

A gzip stream may expand a thousandfold. Weights hardly shrink (float32 by about 7 %), so a stream that grows to more than
`EXPANSION` times its size (plus `SLACK` for small ones) is refused.
"""

import gzip
import json
import os
import stat
import zlib
from pathlib import Path

EXPANSION = 20
SLACK = 2**24  # bytes
PIECE = 2**20  # bytes read at a time
MAX_TEXT = 2**22  # bytes of a configuration
GZIP_MAGIC = b"\x1f\x8b"


class BoundedFile:
    """A plain or gzipped file, told apart by its first bytes. Use as a context manager.

    Raises:
        ValueError: it is not a regular file, is cut short, is damaged, or expands too far.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.taken = 0

    def __enter__(self):
        size = regular_file_size(self.path)
        self._raw = open(self.path, "rb")
        compressed = self._raw.read(2) == GZIP_MAGIC
        self._raw.seek(0)
        self._stream = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw
        self.limit = EXPANSION * size + SLACK if compressed else size
        return self

    def __exit__(self, *exception):
        self._stream.close()
        self._raw.close()

    def read(self, count):
        """Up to `count` bytes, fewer only at the end of the file."""
        parts = []
        while count > 0:
            try:
                part = self._stream.read(min(count, PIECE))
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{self.path} is damaged or cut short: {error}.") from error
            if not part:
                break
            self.taken += len(part)
            if self.taken > self.limit:
                raise ValueError(
                    f"{self.path} expands to more than {self.limit:,} bytes ({EXPANSION} times its size); no honest "
                    "checkpoint does, so it is not read further."
                )
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def read_exactly(self, count, what):
        """`count` bytes, which the file claims to have."""
        if self.taken + count > self.limit:
            raise ValueError(f"{self.path}: {what} is said to take {count:,} bytes, more than the file can hold.")
        data = self.read(count)
        if len(data) != count:
            raise ValueError(f"{self.path} is cut short: {what} needs {count:,} bytes, {len(data):,} are left.")
        return data

    def read_all(self):
        return self.read(self.limit + 1)


def regular_file_size(path):
    """Size in bytes; ValueError unless `path` is a regular file that can be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file.")
    return status.st_size


def inside(folder, name):
    """`folder / name`, which may be a link to a file in the folder or in the cache that the folder is a snapshot of.

    What is found in a folder, rather than named by the user, and comes into the output must not be somebody's other file.

    Raises:
        ValueError: it leads elsewhere.
    """
    home, target = folder.resolve(), (folder / name).resolve()
    # models--owner--name/snapshots/REVISION/... -> models--owner--name/blobs/...
    caches = [place.parent.parent / "blobs" for place in (home, *home.parents) if place.parent.name == "snapshots"]
    if home not in target.parents and target.parent not in caches:
        raise ValueError(f"{folder / name} is a link to {target}, outside its folder, and is not followed.")
    return folder / name


def read_text(path, limit=MAX_TEXT):
    """A UTF-8 text file of at most `limit` bytes, with or without a byte order mark."""
    if regular_file_size(path) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes, too large for what it is.")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error


def read_json(path):
    """The object in a small JSON file."""
    return parse_json(read_text(path), path)


def parse_json(text, path):
    """The object in the text of a JSON file."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, but must hold an object.")
    return value
