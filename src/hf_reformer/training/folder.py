"""The folder of a run: who may write into it, what lies there for a resumed run, and whether that would be the same run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from ..files import replacing_file, replacing_folder
from .checkpoints import SCRATCH
from .recipes import load_recipe
from .settings import Recipe

RECIPE_FILE, RUN_FILE, RESULTS_FILE, LOCK_FILE = "recipe.yaml", "run.json", "results.json", ".lock"
MODEL_FOLDER, ADAPTER_FOLDER, TOKENIZER_FOLDER, FIGURE = "model", "adapter", "tokenizer", "loss.png"
OURS = (
    RESULTS_FILE, FIGURE, MODEL_FOLDER, ADAPTER_FOLDER, TOKENIZER_FOLDER, "samples", "runs", SCRATCH, RECIPE_FILE, RUN_FILE,
)  # fmt: skip
FREE_TO_CHANGE = (
    "logging_",
    "save_",
    "eval_",
    "report_to",
    "run_name",
    "disable_tqdm",
    "dataloader_",
    "push_to_hub",
    "hub_",
)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Within it the folder is this process's alone; where no run begins, all is as it was, but that an empty folder goes.

    Raises:
        ValueError: where another process has it, or `output` can be no folder.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"--output {str(output)!r} is in use: another run is writing there") from None
    except FileExistsError:
        raise ValueError(f"--output {str(output)!r} is a file; allowed is a folder, or a name that is free") from None
    except OSError as error:
        raise ValueError(f"--output {str(output)!r} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
        if not (output / RUN_FILE).exists():  # no run has begun here
            (output / LOCK_FILE).unlink(missing_ok=True)
            if not any(output.iterdir()):
                output.rmdir()


def make_room(output: Path, replace_finished: bool) -> None:
    """A new run needs an empty folder; one of a run that never saved anything is emptied.

    Args:
        replace_finished: empty that of a finished run too.
    """
    held = {path.name for path in output.iterdir()} - {LOCK_FILE}
    checkpoints = [output / name for name in held if name.startswith("checkpoint-")]
    begun, saved = RUN_FILE in held, checkpoints or MODEL_FOLDER in held
    if begun and (not saved or (replace_finished and RESULTS_FILE in held)):
        for path in [*checkpoints, *(output / name for name in OURS)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        held = {path.name for path in output.iterdir()} - {LOCK_FILE}
    if held:
        kind = "a run: continue it with --resume" if begun else "other files: use a folder of its own"
        raise ValueError(f"--output {str(output)!r} holds {kind}, or choose another --output")


def stored_recipe(output: Path) -> Recipe:
    """The recipe of the run in the folder."""
    path = output / RECIPE_FILE
    if not path.is_file():
        raise ValueError(f"--output {str(output)!r} holds no run to resume ({RECIPE_FILE} is missing)")
    try:
        return load_recipe(str(path))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged, the run cannot be resumed: {error}") from None


def stored_facts(folder: Path) -> dict:
    """What `store_run` noted: fingerprints of the data, and how the run was extended."""
    path = folder / RUN_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"data": facts["data"], "held_out": facts["held_out"], "extended": list(facts["extended"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is missing or damaged ({type(error).__name__}: {error})") from None


def store_run(output: Path, recipe: Recipe, facts: dict, tokenizer) -> None:
    """What a resumed run needs to be the same; the recipe comes last, so that a folder with one is complete."""
    if tokenizer is not None and not (output / TOKENIZER_FOLDER).is_dir():
        with replacing_folder(output / TOKENIZER_FOLDER) as temporary:
            tokenizer.save_pretrained(temporary)
    write_json(output / RUN_FILE, facts)
    write_recipe(output / RECIPE_FILE, recipe)


def write_json(path: Path, content: dict) -> None:
    """Raises `ValueError` for a number that JSON has not, as NaN."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_recipe(path: Path, recipe: Recipe) -> None:
    """The recipe with everything filled in; `hf-reformer train` takes it as it is."""
    with replacing_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe.plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def extended_by(stored: Recipe, given: Recipe) -> int:
    """Steps that a resumed run is longer than the one that was begun; all else that decides the model must be the same.

    Raises:
        ValueError: naming the first difference.
    """
    if stored.task != given.task:
        raise ValueError(f"task is {given.task}, but the run to resume has {stored.task}")
    more = given.training["max_steps"] - stored.training["max_steps"]
    for section in ("model", "data", "training", "peft"):
        before, now = stored.plain.get(section) or {}, given.plain.get(section) or {}
        for key in sorted({*before, *now}):
            free = section == "training" and (key.startswith(FREE_TO_CHANGE) or (key == "max_steps" and more > 0))
            if before.get(key) != now.get(key) and not free:
                raise ValueError(
                    f"{section}.{key} is {now.get(key)!r}, but the run to resume has {before.get(key)!r}: leave it out (only "
                    "training.max_steps may be larger, which extends the run)"
                )
    return more
