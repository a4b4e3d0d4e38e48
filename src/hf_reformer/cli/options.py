"""Options that several commands share, and what they mean for a recipe."""

import argparse
import os


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Those of commands that build a `Trainer`: changes of the recipe, device, batch size, quiet."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes",
        help="change a value of the recipe, as model.num_hashes=4 or training.lr_scheduler_kwargs.min_lr=1e-5; as often as needed",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="examples at a time on each device (default: the recipe's)"
    )
    parser.add_argument("--quiet", action="store_true", help="no bars, and nothing but the result")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: auto, a GPU where there is one)")


def add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: its newest)")


def changes_of(arguments: argparse.Namespace) -> list:
    """The changes of `--data`, in place of all other sources, and those of `--set`. Names of files are no YAML."""
    sources = []
    if arguments.data is not None:
        files = [p if p == "standard-library" else os.path.abspath(p) for p in arguments.data]
        others = ("evaluation_files", "dataset", "generated")
        sources = [("data", "files", files), *(("data", key, None) for key in others)]
    return [*sources, *arguments.changes]


def given(arguments: argparse.Namespace, *names: str) -> dict:
    """The options of these names that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value not in (None, False)}
