"""`hf-reformer quickstart`: train a byte-level Reformer on text, measure it, save it, load it afresh and generate."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from .options import add_run_options, given
from .terminal import as_typed

RECIPE = "quickstart"
DEFAULT_OUTPUT = "quickstart-output"
DIVISORS = ((0.9, 32), (0.97, 8), (0.99, 4), (1.0, 1))  # of the context: windows up to that share of the steps
AXIS = 128  # positions on the inner axis
PROMPT_BYTES = 240


def register(subparsers) -> None:
    """Add the command to the parser of `hf-reformer`."""
    parser = subparsers.add_parser(
        "quickstart", help="train, save, reload and generate on real text", description=__doc__
    )
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="files and folders (default: Python's standard library)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: 3200)")
    parser.add_argument("--context", type=int, help="bytes of context (default: 16384)")
    parser.add_argument("--seed", type=int, help="seed of everything that is drawn (default: 0)")
    parser.add_argument("--learning-rate", type=float, help="highest learning rate (default: 0.02)")
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="folder to write to (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--minutes", type=float, metavar="N", help="train for about so long, instead of --steps")
    parser.add_argument(
        "--with-code", action="store_true", help="put the model's source beside it, for trust_remote_code"
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command: the recipe `quickstart`, and then a fresh process that continues held-out text."""
    from ..training.run import running

    changes = changes_of(arguments)
    options = [part for change in changes for part in ("--set", change)]
    name = None if arguments.resume else RECIPE
    with running(
        name, Path(arguments.output), changes, resume=arguments.resume, replace_finished=True,
        command=shlex.join(["hf-reformer", "train", RECIPE, *options]),
        **given(arguments, "device", "quiet", "batch_size", "minutes", "with_code"),
    ) as started:  # fmt: skip
        code = started.carry_out()
        if code == 0:
            started.say("\nLoaded by a fresh process, the checkpoint continues held-out text:\n")
            started.say(continuation(Path(arguments.output, "model"), prompt_of(started.task)))
            if not arguments.quiet:
                started.say(what_it_is_for(started.trainer))
                started.say(f"next: {as_typed('generate', arguments.output, '--prompt', 'def ')}")
                started.say(f"      {as_typed('evaluate', arguments.output)}")
                started.say(f"      {as_typed('train', 'text', '--minutes', '30')}")
    return code


def what_it_is_for(trainer) -> str:
    """Time and memory over length, beside full attention."""
    from ..training.lengths import table

    model = trainer.accelerator.unwrap_model(trainer.model)
    return table(model.config, model.device, trainer.args.bf16)


def changes_of(arguments) -> list[str]:
    """The options as changes of the recipe."""
    fields = {
        "training.max_steps": arguments.steps, "training.seed": arguments.seed,
        "training.learning_rate": arguments.learning_rate, "data.files": arguments.data,
    }  # fmt: skip
    if arguments.context is not None:
        fields |= fields_of_context(arguments.context)
    own = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None]
    return [*own, *arguments.changes]


def fields_of_context(context: int) -> dict:
    """What follows from another length of the context: windows, positions."""
    inner = max(1, min(AXIS, context))
    outer = -(-context // inner)
    return {
        "data.context": context,
        "data.window_plan": [[until, max(2, context // divisor)] for until, divisor in DIVISORS],
        "model.axial_pos_shape": [outer, inner],
        "model.max_position_embeddings": outer * inner,
    }


def prompt_of(task) -> str:
    """The beginning of the held-out text, without what an argument of a process cannot carry, half a window at most."""
    window = task.evaluation[0]["input_ids"]
    text = task.tokenizer.decode_bytes(window[: min(PROMPT_BYTES, len(window) // 2)].tolist())
    return text.decode("utf-8", "ignore").replace("\0", "") or "\n"


def continuation(folder: Path, prompt: str) -> str:
    """What the checkpoint in `folder` makes of `prompt`, in a fresh Python process, by the code that its card shows.

    Raises:
        RuntimeError: with the process's own words, when it fails.
    """
    from ..training.cards import GENERATE

    command = [sys.executable, "-c", GENERATE, str(folder), prompt]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"generating from {folder} failed:\n{done.stderr}")
    return done.stdout
