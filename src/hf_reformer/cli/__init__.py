"""The command line: `hf-reformer COMMAND`. A command is a module with `register(subparsers)`; add it to `COMMANDS`.

These modules import at their top nothing that takes time: what a command needs it imports as it runs (`hf_reformer_cli`).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from . import convert, demo, evaluate, generate, predict, push, quickstart, serve, threads, train
from .failures import exit_code, one_line
from .terminal import drop_output, unbroken_output

COMMANDS = (quickstart, train, evaluate, predict, generate, demo, convert, push, serve)
LONG = ("quickstart", "train")  # go on when nobody reads what they say


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser, *_):
        import importlib.metadata

        print("hf-reformer", importlib.metadata.version("hf-reformer"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments that returns an exit code."""
    parser = Parser(prog="hf-reformer", description="The Reformer as a Hugging Face model package.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error came from")
        command.add_argument(
            "--threads", type=threads.count, metavar="N", help="that compute (default: the free cores)"
        )
    return parser


def main(argv: Sequence[str] | None = None, prepare: Callable = lambda arguments: None) -> int:
    """Exit code 0: done; 1: the machine failed; 2: an input was wrong, both said in one line on stderr; 130: stopped by Ctrl-C.

    Args:
        prepare: called with the parsed arguments before the command runs.
    """
    arguments = build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without such a character shows a question mark
    try:
        prepare(arguments)
        if arguments.threads:
            threads.use(arguments.threads)
        with unbroken_output(arguments.command in LONG):
            code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read has had enough
        drop_output()
        return 0
    except KeyboardInterrupt:
        print(f"hf-reformer {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        code = exit_code(error)
        if code is None or arguments.debug:
            raise
        print(f"hf-reformer {arguments.command}: {one_line(error)}", file=sys.stderr)
        return code


def prepare(arguments: argparse.Namespace, finish_import: Callable) -> None:
    """Of a process that does nothing else: the imports, how many threads compute, and whose bars are seen."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # one bar at a time, that of the command
    with threads.spare_cores() as spare:
        finish_import()
    if arguments.threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads.use(spare.threads)
    if arguments.command in LONG and spare.busy:
        print(f"hf-reformer {arguments.command}: {spare.note}", file=sys.stderr)
