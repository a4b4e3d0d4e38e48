"""Standard output of a command: it may be closed early, and it names commands as they can be typed here."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Unbroken:
    """A text stream that nobody needs to read: once the reader is gone, what is written goes nowhere."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self._or_nowhere(self.stream.write, text)

    def flush(self):
        return self._or_nowhere(self.stream.flush)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def _or_nowhere(self, call, *arguments):
        try:
            return call(*arguments)
        except BrokenPipeError:
            drop_output()


@contextmanager
def unbroken_output(wanted: bool = True) -> Iterator[None]:
    """Within it, printing does not fail when the reader of standard output has gone."""
    before = sys.stdout
    if wanted:
        sys.stdout = Unbroken(before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = before


def drop_output() -> None:
    """From now on standard output goes nowhere, at the end of the process too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_typed(*words: str) -> str:
    """A command of ours that works where this one was typed: `make` users have `.venv/bin/hf-reformer`."""
    own = sys.argv[0]
    if not own.endswith("hf-reformer"):
        start = [os.path.basename(sys.executable), "-m", "hf_reformer.cli"]
    else:
        on_path = shutil.which("hf-reformer")
        start = ["hf-reformer" if on_path and os.path.samefile(on_path, own) else own]
    return shlex.join([*start, *words])
