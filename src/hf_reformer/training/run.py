"""A run of a recipe: from an empty folder, or from its newest whole checkpoint, to the finished model."""

import errno
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import yaml
from transformers.utils import logging

from ..files import replacing_file, replacing_folder
from .build import build_model, build_trainer, config_for, plan_of, training_arguments
from .checkpoints import latest_whole_checkpoint
from .recipes import load_recipe
from .report import RECIPE_FILE, plot_losses, results_of, write_model, write_recipe, write_results
from .samples import Samples
from .settings import Recipe
from .tasks import build_task
from .vocabulary import load_tokenizer

TOKENIZER_FOLDER = "tokenizer"
RUN_FILE = "run.json"
FREE_TO_CHANGE = ("logging_", "save_", "eval_", "report_to", "run_name", "disable_tqdm", "dataloader_")


def train_recipe(name: str, output: Path, changes=(), smoke=False, resume=False, command: str = "") -> int:
    """Train a recipe into the folder `output`. Returns 0, or 128 + the signal that stopped the run.

    Raises:
        ValueError: for a recipe, data or an output folder that cannot be used.
    """
    recipe = load_recipe(name, changes, smoke)
    arguments = training_arguments(recipe, output)
    first = arguments.process_index == 0
    say = (lambda text: print(printable(text), flush=True)) if first else (lambda text: None)
    with arguments.main_process_first(desc="output folder"):
        if first:
            check_output(output, recipe, resume)
    checkpoint = latest_whole_checkpoint(output) if resume else None
    arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
    logging.disable_progress_bar()  # of single files; the bar of the training stays
    trainer, task = start(recipe, arguments, output, resume)
    say_what_starts(recipe, trainer, task, checkpoint, say)
    with full_disk_in_one_line():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.stopped_by:
        done = f"{trainer.state.global_step} of {trainer.state.max_steps}"
        say(f"stopped after step {done}, saved; the same command with --resume continues")
        return 128 + trainer.stopped_by
    finish(recipe, trainer, task, output, command, say)
    return 0


def start(recipe: Recipe, arguments, output: Path, resume: bool):
    """Trainer and task of a run; once all of it is known to fit, the folder says what it is."""
    tokenizer = saved_tokenizer(output, recipe) if resume else None
    task = build_task(recipe, plan_of(recipe, arguments), tokenizer)
    model = build_model(recipe, config_for(recipe, task), arguments.seed)
    callbacks = [Samples(task.prompts, recipe.evaluation, output, task.tokenizer)] if task.prompts else []
    trainer = build_trainer(recipe, arguments, task, model, callbacks)
    if resume:
        check_same_data(output / RUN_FILE, task.fingerprint)
    elif arguments.process_index == 0:
        store_run(output, recipe, task)
    return trainer, task


def store_run(output: Path, recipe: Recipe, task) -> None:
    """What a resumed run needs to be the same; the recipe comes last, so that a folder with one is complete."""
    if task.tokenizer is not None:
        with replacing_folder(output / TOKENIZER_FOLDER) as temporary:
            task.tokenizer.save_pretrained(temporary)
    with replacing_file(output / RUN_FILE) as temporary:
        temporary.write_text(json.dumps({"data": task.fingerprint}) + "\n", encoding="utf-8")
    write_recipe(output / RECIPE_FILE, recipe)


def saved_tokenizer(output: Path, recipe: Recipe):
    """The tokenizer that the run began with, so that a resumed one trains none anew."""
    folder = output / TOKENIZER_FOLDER
    return load_tokenizer(str(folder), recipe.data.context) if folder.is_dir() else None


def finish(recipe: Recipe, trainer, task, output: Path, command: str, say) -> None:
    """A last evaluation where none was due, then everything that is kept."""
    history = trainer.state.log_history
    if not any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in history):
        trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    results = results_of(recipe, trainer, task, command)
    figure = output / "loss.png"
    drawn = plot_losses(figure, trainer.state.log_history)
    if not drawn:
        say("matplotlib is not installed: no loss.png (pip install 'hf-reformer[demo]')")
    write_model(output / "model", trainer, recipe, results, figure if drawn else None)
    write_results(output / "results.json", results)
    for name, value in results["after"].items():
        before = f"  (before training {results['before'][name]:.4f})" if results["before"] else ""
        say(f"{name.replace('_', ' '):>20} {value:.4f}{before}")
    say(f"model in {output / 'model'}, figures in {output / 'results.json'}")


def say_what_starts(recipe: Recipe, trainer, task, checkpoint: Path | None, say) -> None:
    """Data, size and trackers, a line each."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    where = "from the beginning" if checkpoint is None else f"from {checkpoint.name}"
    say(f"{recipe.name}: {task.description}")
    say(f"{parameters:,} parameters, {trainer.args.max_steps:,} steps {where}, on {trainer.args.device}")
    if recipe.training.get("report_to") is None and not trainer.args.report_to:
        say("TensorBoard is not installed: no curves for it (pip install 'hf-reformer[tensorboard]')")


def check_output(output: Path, recipe: Recipe, resume: bool) -> None:
    """A new run needs a free folder, a resumed one the folder of the same recipe."""
    stored = output / RECIPE_FILE
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {str(output)!r} is a file; allowed is a folder, or a name that is free")
    if resume:
        if not stored.is_file():
            raise ValueError(f"--output {str(output)!r} holds no run to resume ({RECIPE_FILE} is missing)")
        compare_recipes(yaml.safe_load(stored.read_text(encoding="utf-8")), recipe.plain)
        return
    if output.is_dir() and any(output.iterdir()):
        kind = "a run: continue it with --resume" if stored.is_file() else "other files: use a folder of its own"
        raise ValueError(f"--output {str(output)!r} holds {kind}, or choose another --output")


def compare_recipes(stored: dict, given: dict) -> None:
    """Raises `ValueError` where a resumed run would not be the one that was begun."""
    for section in ("model", "data", "training"):
        before, now = stored.get(section, {}), given[section]
        for key in sorted({*before, *now}):
            free = section == "training" and key.startswith(FREE_TO_CHANGE)
            if before.get(key) != now.get(key) and not free:
                raise ValueError(
                    f"{section}.{key} is {now.get(key)!r}, but the run to resume has {before.get(key)!r}: give the command "
                    "that began it, with --resume"
                )


def check_same_data(path: Path, fingerprint: str) -> None:
    """The data of a resumed run must be what it was."""
    if json.loads(path.read_text(encoding="utf-8"))["data"] != fingerprint:
        raise ValueError("data has changed since the run began; allowed is the same data, or another --output")


@contextmanager
def full_disk_in_one_line():
    """`CheckpointedTrainer` says what happened; the command prints it, as it prints what is wrong with an input."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(error.strerror) from error


def printable(text: str) -> str:
    """With a question mark for what the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
