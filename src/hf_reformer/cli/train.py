"""`hf-reformer train`: train a recipe (a packaged one, or a YAML file), or continue a run that was interrupted."""

import argparse
import dataclasses
import os
import shlex
import textwrap
from pathlib import Path

from .options import add_run_options, changes_of, given
from .terminal import as_typed


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser(
        "train", help="train a recipe", description=__doc__, epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "recipe", nargs="?", help="name of a packaged recipe, or path of a YAML file (--resume alone: the run's)"
    )
    add_run_options(parser)
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="files and folders to train on, instead of the recipe's data"
    )
    parser.add_argument("--smoke", action="store_true", help="a run of seconds on generated data, without network")
    parser.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint in --output")
    parser.add_argument("--output", help="folder to write to (default: RECIPE-output, with --smoke RECIPE-smoke)")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="train for about so long, instead of the recipe's steps"
    )
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="push the finished model with its card to the Hub")
    parser.add_argument(
        "--with-code", action="store_true", help="put the model's source beside it, for trust_remote_code"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command. Exit code 0, or 128 + the number of the signal that stopped the run, which is then saved."""
    from ..training.run import train_recipe

    if arguments.recipe is None and not (arguments.resume and arguments.output):
        raise ValueError("RECIPE is missing: give its name or path, or --resume --output FOLDER for the run in there")
    if arguments.minutes is not None and not 0 < arguments.minutes < float("inf"):
        raise ValueError(f"--minutes is {arguments.minutes}, but must be a number above 0")
    output = arguments.output or f"{Path(arguments.recipe).stem}-{'smoke' if arguments.smoke else 'output'}"
    command = shlex.join(["hf-reformer", "train", arguments.recipe or output, *command_options(arguments)])
    more = given(arguments, "device", "batch_size", "quiet", "minutes", "push_to_hub", "with_code")
    code = train_recipe(
        arguments.recipe, Path(output), changes_of(arguments), arguments.smoke, arguments.resume, command, **more
    )
    if os.environ.get("RANK", "0") == "0" and not arguments.quiet:
        print(f"next: {next_command(output, code)}", flush=True)
    return code


def next_command(output: str, code: int) -> str:
    """What to type after a run that ended with this exit code."""
    if code:
        return as_typed("train", "--resume", "--output", output)
    config = Path(output, "model", "config.json")
    if Path(output, "model", "preprocessor_config.json").is_file():
        return as_typed("generate", output, "--output", "images.png")
    causal = config.is_file() and "LMHead" in config.read_text(encoding="utf-8")
    return as_typed("generate", output, "--prompt", "Once") if causal else as_typed("evaluate", output)


def command_options(arguments) -> list[str]:
    """The options that decide what the model becomes."""
    options = [] if arguments.data is None else ["--data", *arguments.data]
    options += [part for change in arguments.changes for part in ("--set", change)]
    options += [] if arguments.minutes is None else ["--minutes", f"{arguments.minutes:g}"]
    options += [] if arguments.batch_size is None else ["--batch-size", str(arguments.batch_size)]
    return options + (["--smoke"] if arguments.smoke else [])


def epilog() -> str:
    """The packaged recipes, and the keys of the section `data` of each format."""
    from ..training.settings import FORMATS, TASK_FORMATS, recipe_names

    lines = ["recipes: " + ", ".join(recipe_names()), "keys of data, as --set data.KEY=VALUE, by data.format:"]
    for name, settings in FORMATS.items():
        tasks = ", ".join(task for task, formats in TASK_FORMATS.items() if name in formats)
        keys = ", ".join(field.name for field in dataclasses.fields(settings))
        lines.append(f"  {name} (of {tasks}): {keys}")
    lines.append(
        "The other sections: model (fields of ReformerConfig), training (fields of TrainingArguments), evaluation."
    )
    return "\n".join(textwrap.fill(line, 118, subsequent_indent="    ") for line in lines)
