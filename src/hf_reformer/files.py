"""Files and folders that appear whole or not at all: written under a temporary name beside their place, flushed to the disk,
then renamed. What a process that was killed left behind goes when the same place is written again.

For systems that can rename over an open file and flush folders (Linux, macOS).
"""

import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to; at the end it replaces `path` in one step. After an error `path` is as before."""
    path, temporary = _prepared(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """The same for a folder: what was at `path` goes only once its successor is complete."""
    path, temporary = _prepared(path)
    os.mkdir(temporary)
    try:
        yield temporary
        flush_tree(temporary)
        _take_the_place(path, temporary)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: str | os.PathLike) -> None:
    """Before hours of work: raises `ValueError` unless something can be written at `path`."""
    path = Path(path)
    try:
        place = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryDirectory(dir=place, prefix=_temporary_name(path)):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error


def flush(path: Path) -> None:
    """Has the disk hold what was written to a file, or the names in a folder, before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """`flush` for a folder and all that is in it."""
    for place, _, names in os.walk(folder):
        for name in names:
            if Path(place, name).is_file():
                flush(Path(place, name))
        flush(Path(place))


def _take_the_place(path, temporary):
    """Renames a folder to `path`; what is there already is kept until that has succeeded, else put back."""
    old = temporary.with_suffix(".old")
    try:
        if os.path.lexists(path):
            os.rename(path, old)
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        raise
    _remove(old)


def _prepared(path):
    """(path, temporary path beside it); what dead processes left of the same path is put back or removed.

    Temporary files and folders get their permissions from the system when they are made, like all others: the umask is
    never asked for, because asking means setting it, for all threads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = _temporary_name(path)
    for left in path.parent.iterdir():
        match = _LEFT.fullmatch(left.name.removeprefix(ours)) if left.name.startswith(ours) else None
        if match and not _is_alive(int(match["process"])):
            if match["kind"] == "old" and not os.path.lexists(path):
                os.rename(left, path)  # killed between two renames: the predecessor is all there is
            else:
                _remove(left)
    return path, path.with_name(f"{ours}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _temporary_name(path):
    """What the names of all temporary files of this machine begin with; of another one nobody here knows who is alive."""
    return f".{path.name}.{platform.node()}-"


# `.NAME.MACHINE-PROCESS-RANDOM.tmp` is being written, `....old` is on its way out
_LEFT = re.compile(r"(?P<process>\d+)-[0-9a-f]+\.(?P<kind>tmp|old)")


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's
    return True


def _remove(path):
    """A file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
