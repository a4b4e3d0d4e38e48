"""The command line: `hf-reformer COMMAND`. A command is a module with `register(subparsers)`; add it to `COMMANDS`."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import convert, evaluate, generate, quickstart, serve, train

COMMANDS = (quickstart, train, evaluate, generate, convert, serve)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments that returns an exit code."""
    parser = argparse.ArgumentParser(prog="hf-reformer", description="The Reformer as a Hugging Face model package.")
    parser.add_argument("--version", action="version", version=f"hf-reformer {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 2: an input was wrong, said in one line on stderr; 130: stopped by Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ValueError as error:
        print(f"hf-reformer {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hf-reformer {arguments.command}: interrupted", file=sys.stderr)
        return 130
