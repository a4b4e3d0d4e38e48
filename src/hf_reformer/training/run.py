"""A run of a recipe: from an empty folder, or from its newest whole checkpoint, to the finished model."""

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from transformers.utils import logging

from .build import build_model, build_trainer, config_for, plan_of, training_arguments
from .cards import model_card
from .checkpoints import latest_whole_checkpoint
from .folder import (
    MODEL_FOLDER,
    RESULTS_FILE,
    TOKENIZER_FOLDER,
    extended_by,
    locked,
    make_room,
    store_run,
    stored_facts,
    stored_recipe,
    write_json,
)
from .minutes import steps_in, with_steps
from .recipes import load_recipe
from .report import add_figure, results_of, write_model
from .resuming import keep_examples_per_step
from .samples import Samples
from .settings import Recipe
from .task import Task
from .tasks import build_task
from .trainer import RecipeTrainer
from .vocabulary import load_tokenizer


@dataclass(frozen=True)
class Options:
    """What a run does that is no part of its recipe.

    `device`: auto, cpu, cuda or mps. `batch_size`: examples of a training step on each device. `push_to_hub`: the name of a
    repository that gets the finished model. `quiet`: nothing is printed. `minutes`: the run takes about so long, its steps
    follow. `with_code`: the model's source lies beside it. `replace_finished`: a finished run in the folder makes room.
    `callbacks`, `compute_metrics`, `model_init`: as `Trainer` takes them; the metrics are added to the recipe's, and True is a
    `model_init` that makes the recipe's model anew, for `run.trainer.hyperparameter_search`.
    """

    device: str = "auto"
    batch_size: int | None = None
    push_to_hub: str | None = None
    quiet: bool = False
    minutes: float | None = None
    with_code: bool = False
    replace_finished: bool = False
    callbacks: Sequence = ()
    compute_metrics: Callable | None = None
    model_init: Callable | bool | None = None

    @property
    def changes(self) -> list[str]:
        """Those that are other words for a change of the recipe."""
        size, repository = self.batch_size, self.push_to_hub
        found = [] if size is None else [f"training.per_device_train_batch_size={size}"]
        return found + (
            [] if repository is None else ["training.push_to_hub=true", f"training.hub_model_id={repository}"]
        )


def train_recipe(
    name: str | None, output, changes=(), smoke: bool = False, resume: bool = False, command: str = "", **options
) -> int:
    """Train a recipe into the folder `output`. Returns 0, or 128 + the signal that stopped the run.

    Args:
        name: a packaged recipe, or the path of a YAML file; None with `resume`: the one that lies in `output`.
        changes: `section.key=value`. A resumed run may have a larger `training.max_steps`, which extends it.
        command: what the card says that the model was made by.
        options: see `Options`.

    Raises:
        ValueError: for a recipe, data or an output folder that cannot be used, and a training that diverged.
    """
    with running(name, output, changes, smoke, resume, command, **options) as run:
        return run.carry_out()


@contextmanager
def running(
    name: str | None, output, changes=(), smoke: bool = False, resume: bool = False, command: str = "", **options
) -> Iterator["Run"]:
    """A `Run` that is ready to be carried out, in a folder that is its own as long as this lasts.

    `run.trainer` is a `Trainer`, so `hyperparameter_search` and all else that one can do is there.
    """
    output, options = Path(output), Options(**options)
    recipe = chosen_recipe(name, output, [*changes, *options.changes], smoke, resume)
    if resume and options.minutes is not None:
        raise ValueError("minutes is given, but a resumed run has its length; training.max_steps may be larger")
    arguments = training_arguments(recipe, output, options.device, options.quiet)
    logging.disable_progress_bar()  # of single files; the bar of the training stays
    with arguments.main_process_first(desc="output folder"):
        own = locked(output) if arguments.process_index == 0 else nullcontext()
        own.__enter__()
    try:
        yield prepare(recipe, output, resume, command, options, arguments)
    finally:
        own.__exit__(None, None, None)


def chosen_recipe(name: str | None, output: Path, changes, smoke: bool, resume: bool) -> Recipe:
    """The recipe that is named, or that of the run in the folder."""
    if name is None:
        if not resume:
            raise ValueError("recipe is missing; only --resume does without, and takes the one in --output")
        stored_recipe(output)  # says it where there is none
        name = str(output / "recipe.yaml")
    return load_recipe(name, changes, smoke)


def prepare(recipe: Recipe, output: Path, resume: bool, command: str, options: Options, arguments) -> "Run":
    """Everything of a run; once all of it is known to fit, the folder says what it is."""
    first, say = arguments.process_index == 0, speaker(arguments, options.quiet)
    stored = stored_recipe(output) if resume else None
    more = extended_by(stored, recipe) if resume else 0
    if first and not resume:
        make_room(output, options.replace_finished)
    checkpoint = latest_whole_checkpoint(output) if resume else None
    arguments.eval_on_start = arguments.eval_on_start and checkpoint is None
    if checkpoint:
        keep_examples_per_step(arguments, checkpoint)  # the trainer says it
    saved = output / TOKENIZER_FOLDER if resume and (output / TOKENIZER_FOLDER).is_dir() else None
    tokenizer = None if saved is None else load_tokenizer(str(saved), recipe.data.context)
    if options.minutes is not None:
        recipe = with_steps(recipe, measured_steps(recipe, options, say))
        arguments = training_arguments(recipe, output, options.device, options.quiet)
    task = build_task(recipe, plan_of(recipe, arguments), tokenizer)
    config = config_for(recipe, task)
    model_init = (
        (lambda: build_model(recipe, config, arguments.seed)) if options.model_init is True else options.model_init
    )
    model = None if model_init else build_model(recipe, config, arguments.seed)
    samples = [Samples(task.prompts, recipe.evaluation, output, task.tokenizer)] if task.prompts else []
    trainer = build_trainer(
        recipe, arguments, task, model, [*samples, *options.callbacks], options.compute_metrics, model_init
    )
    for sample in samples:
        sample.callbacks = trainer.callback_handler.callbacks
    facts = facts_of(task)
    if resume:
        facts["extended"] = resumed_facts(output, facts)
        if more:
            step = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
            facts["extended"].append([step, stored.training["max_steps"], recipe.training["max_steps"]])
    if first:
        store_run(output, recipe, facts, task.tokenizer)
    run = Run(recipe, output, task, trainer, checkpoint, command, options, facts, say)
    run.say_what_starts()
    return run


def measured_steps(recipe: Recipe, options: Options, say) -> int:
    """How many steps fit into the minutes, tried out on a model that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder), options.device, quiet=True)
        arguments.report_to, arguments.push_to_hub = [], False
        task = build_task(recipe, plan_of(recipe, arguments))
        trial = build_trainer(recipe, arguments, task, build_model(recipe, config_for(recipe, task), arguments.seed))
        steps = steps_in(options.minutes, trial)
    say(f"{steps:,} steps fit into {options.minutes:g} minutes (the recipe has {recipe.training['max_steps']:,})")
    return steps


def facts_of(task: Task) -> dict:
    """What a resumed run and a later measurement compare."""
    return {
        "data": task.fingerprint,
        "held_out": task.held_out_fingerprint,
        "extended": [],
    }


def resumed_facts(output: Path, facts: dict) -> list:
    """How the run was extended so far; its data must be what it was."""
    stored = stored_facts(output)
    if stored["data"] != facts["data"]:
        raise ValueError("data has changed since the run began; allowed is the same data, or another --output")
    return stored["extended"]


@dataclass
class Run:
    """A run that is ready: `carry_out`, or `train` and `finish` one after the other."""

    recipe: Recipe
    output: Path
    task: Task
    trainer: RecipeTrainer
    checkpoint: Path | None
    command: str
    options: Options
    facts: dict
    say: Callable[[str], None]

    def carry_out(self) -> int:
        """Exit code: 0, or 128 + the signal that stopped the run, which is then saved."""
        with full_disk_in_one_line():
            self.train()
            if self.trainer.stopped_by:
                done = f"{self.trainer.state.global_step} of {self.trainer.state.max_steps}"
                self.say(f"stopped after step {done}, saved; the same command with --resume continues")
                return 128 + self.trainer.stopped_by
            self.finish()
        return 0

    def train(self) -> None:
        self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))

    def finish(self) -> dict:
        """A last evaluation where none was due, then everything that is kept, the model before all. Returns the figures."""
        trainer, output = self.trainer, self.output
        history = trainer.state.log_history
        if not any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in history):
            trainer.evaluate()
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None  # all processes give theirs
        if not trainer.is_world_process_zero():
            return {}
        results = results_of(self.recipe, trainer, self.task, self.command, self.facts)
        card = model_card(self.recipe, results, figure=None)
        write_model(output, trainer, self.recipe, self.facts, card, weights, self.options.with_code)
        write_json(output / RESULTS_FILE, results)
        self.draw(results)
        for name, value in results["after"].items():
            before = f"  (before training {results['before'][name]:.4f})" if results["before"] else ""
            self.say(f"{name.replace('_', ' '):>20} {value:.4f}{before}")
        for name in ("gzip", "xz"):
            if name in results:
                self.say(f"{name + ' -9':>20} {results[name]:.4f}")
        if "png" in results:
            self.say(f"{'PNG':>20} {results['png']:.4f} bits per dimension, each image by itself (uniform: 8)")
        self.say(f"model in {output / MODEL_FOLDER}, figures in {output / RESULTS_FILE}")
        if trainer.args.push_to_hub:
            self.push()
        return results

    def draw(self, results: dict) -> None:
        """The curve; a run that has its model does not fail for want of a picture."""
        try:
            add_figure(self.output, self.recipe, results, self.trainer.state.log_history)
        except ImportError:
            self.say("matplotlib is not installed: no loss.png (pip install 'hf-reformer[demo]')")
        except Exception as error:
            self.say(f"loss.png could not be drawn ({type(error).__name__}: {error})")

    def push(self) -> None:
        """The model's folder, card and all, as `training.hub_model_id` (or the name of the output folder)."""
        args = self.trainer.args
        where = HfApi().upload_folder(
            repo_id=self.trainer.hub_model_id, folder_path=self.output / MODEL_FOLDER, revision=args.hub_revision,
            commit_message=f"{self.recipe.name}: {self.trainer.state.global_step} steps",
        )  # fmt: skip
        self.say(f"pushed to {where.repo_url}")

    def say_what_starts(self) -> None:
        """Data and size, a line each."""
        trainer, say = self.trainer, self.say
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        where = "from the beginning" if self.checkpoint is None else f"from {self.checkpoint.name}"
        say(f"{self.recipe.name}: {self.task.description}")
        if self.task.notes:
            say(f"note: {', '.join(self.task.notes)}")
        say(f"{parameters:,} parameters, {trainer.args.max_steps:,} steps {where}, on {trainer.args.device}")


@contextmanager
def full_disk_in_one_line():
    """`CheckpointedTrainer` says what happened; the command prints it, as it prints what is wrong with an input."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(error.strerror) from error


def speaker(arguments, quiet: bool) -> Callable[[str], None]:
    """Prints, on the first process; a reader who has gone does not end a run."""

    def say(text: str) -> None:
        try:
            print(printable(text), flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return (lambda text: None) if quiet or arguments.process_index else say


def printable(text: str) -> str:
    """With a question mark for what the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
