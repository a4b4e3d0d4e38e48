"""Converts every checkpoint of a corpus in one process and reports, per case: outcome, seconds, memory growth in MiB.

`python damage_worker.py CORPUS`: each folder in CORPUS is a source. One line of JSON per case; a case during which the
process dies, hangs or runs out of its memory is one whose line is missing.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging

from hf_reformer.conversion import convert

SECONDS = 20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(source, output):
    """The class and the text of the error, or "converted"."""
    try:
        convert(source, output)
    except Exception as error:
        return [type(error).__name__, str(error)[:300]]
    return ["converted", ""]


def main(corpus):
    faulthandler.enable()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    output = corpus.parent / "outputs"
    output.mkdir()
    for source in sorted(corpus.iterdir()):
        signal.alarm(SECONDS)  # ends the process
        before, start = peak(), time.monotonic()
        kind, text = outcome(source, output / source.name)
        seconds, growth = time.monotonic() - start, peak() - before
        files = sorted(os.listdir(output / source.name)) if (output / source.name).exists() else None
        left = [name for name in os.listdir(output) if name.startswith(".")]
        print(json.dumps([source.name, kind, text, seconds, growth, files, left]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
