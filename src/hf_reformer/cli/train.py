"""`hf-reformer train`: train a recipe (a packaged one, or a YAML file), or continue a run that was interrupted."""

import argparse
import shlex
from pathlib import Path


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser("train", help="train a recipe", description=__doc__)
    parser.add_argument("recipe", help="name of a packaged recipe, or path of a YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes",
        help="change a value of the recipe, as model.num_hashes=4; may be given several times",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on generated data, without network")
    parser.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint in --output")
    parser.add_argument("--output", help="folder to write to (default: RECIPE-output, with --smoke RECIPE-smoke)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command. Exit code 0, or 128 + the number of the signal that stopped the run, which is then saved."""
    from ..training.run import train_recipe

    output = arguments.output or f"{Path(arguments.recipe).stem}-{'smoke' if arguments.smoke else 'output'}"
    command = shlex.join(["hf-reformer", "train", arguments.recipe, *command_options(arguments)])
    return train_recipe(arguments.recipe, Path(output), arguments.changes, arguments.smoke, arguments.resume, command)


def command_options(arguments) -> list[str]:
    """The options that decide what the model becomes."""
    options = [part for change in arguments.changes for part in ("--set", change)]
    return options + (["--smoke"] if arguments.smoke else [])
