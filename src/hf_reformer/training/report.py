"""What a finished run leaves: figures, the model's folder with its card, and the curve. Each appears whole."""

import math
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers

from ..files import replacing_file, replacing_folder
from ..model.configuration_reformer import ReformerConfig
from .cards import AUTO_CLASSES, model_card
from .folder import ADAPTER_FOLDER, FIGURE, MODEL_FOLDER, RECIPE_FILE, RUN_FILE, write_json, write_recipe
from .images import png_bits_per_dimension
from .machine import describe_machine, peak_memory_gib
from .text_data import gzip_bits_per_byte, xz_bits_per_byte

write_results = write_json  # the name that commands know
LARGEST_TO_COMPRESS = 32 * 2**20  # bytes; xz takes a second for each
LARGEST_NUMBER = 4096  # images; PNG takes about a millisecond for each


def results_of(recipe, trainer, task, command: str, facts: dict) -> dict:
    """All figures of a finished run; `after` are those of the model that is kept, which is the best one where that was asked."""
    from .. import __version__

    history, args = trainer.state.log_history, trainer.args
    evaluations = [{"step": entry["step"], **metrics_in(entry)} for entry in history if "eval_loss" in entry]
    kept = kept_step(trainer)
    after = next(entry for entry in reversed(evaluations) if entry["step"] == kept)
    memory = peak_memory_gib(args.device)
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "command": command,
        "before": without_step(evaluations[0]) if evaluations[0]["step"] == 0 else None,
        "after": without_step(after),
        "evaluations": evaluations,
        "steps": trainer.state.global_step,
        "best_step": kept if args.load_best_model_at_end else None,
        "extended": facts["extended"],
        "training_seconds": round(trainer.seconds(), 1),
        "seed": args.seed,
        "processes": args.world_size,
        "data": task.description,
        "data_fingerprint": facts["data"],
        "held_out_fingerprint": facts["held_out"],
        "evaluated_examples": len(task.evaluation),
        "counts": task.counts,
        **compressed(task, after),
        "layers": list(trainer.accelerator.unwrap_model(trainer.model).config.attn_layers),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "peak_memory_gib": None if memory is None else round(memory, 2),
        "hf_reformer": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": describe_machine(args.device),
    }


def kept_step(trainer) -> int:
    """The step whose weights the model has at the end."""
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best is not None:
        return int(Path(best).name.removeprefix("checkpoint-"))
    return trainer.state.global_step


def without_step(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if name != "step"}


def metrics_in(entry: dict) -> dict:
    """The metrics of an evaluation, without its timings."""
    timings = ("runtime", "per_second", "preparation_time")
    return {
        name.removeprefix("eval_"): value
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(timings)
    }


def compressed(task, metrics: dict) -> dict:
    """What `gzip -9` and `xz -9` need for the bytes that a language model's bits per byte are of, and PNG for its images."""
    if task.image_processor is not None:
        return png_of(task)
    if "bits_per_byte" not in metrics or task.tokenizer is None:
        return {}
    rows = [task.evaluation[i] for i in range(len(task.evaluation))]
    ids = [row["input_ids"][1:][row["labels"][1:] != -100].tolist() for row in rows]
    known = getattr(task.tokenizer, "decode_bytes", lambda row: task.tokenizer.decode(row).encode())
    text = b"".join(map(known, ids))
    if not 0 < len(text) <= LARGEST_TO_COMPRESS:
        return {}
    return {"evaluated_bytes": len(text), "gzip": gzip_bits_per_byte(text), "xz": xz_bits_per_byte(text)}


def png_of(task) -> dict:
    """Bits per dimension that PNG needs for the images that are evaluated."""
    if len(task.evaluation) > LARGEST_NUMBER:
        return {}
    images = [task.evaluation[i]["input_ids"].numpy().astype(np.uint8) for i in range(len(task.evaluation))]
    bits = png_bits_per_dimension(images, math.isqrt(len(images[0]) // 3))
    return {} if bits is None else {"png": bits}


def write_model(output: Path, trainer, recipe, facts: dict, card: str, state: dict | None, with_code: bool) -> None:
    """`model`, replaced whole: weights, tokenizer, recipe, card; adapters are merged, and lie in `adapter` besides.

    Args:
        state: the weights, where they had to be gathered from several processes.
        with_code: put the model's source beside it, for those without this package.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.peft:
        with replacing_folder(output / ADAPTER_FOLDER) as temporary:
            model.save_pretrained(temporary, state_dict=state)
        model, state = model.merge_and_unload(), None
    with replacing_folder(output / MODEL_FOLDER) as temporary:
        with code_beside(model, recipe.task, with_code):
            model.save_pretrained(temporary, state_dict=state)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(temporary)
        write_recipe(temporary / RECIPE_FILE, recipe)
        write_json(temporary / RUN_FILE, facts)
        (temporary / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def code_beside(model, task: str, wanted: bool) -> Iterator[None]:
    """Within it `save_pretrained` copies the source of model and configuration."""
    marked = {ReformerConfig: "AutoConfig", type(model): AUTO_CLASSES[task]} if wanted else {}
    for cls, auto in marked.items():
        cls.register_for_auto_class(auto)
    try:
        yield
    finally:
        for cls in marked:
            cls._auto_class = None


def add_figure(output: Path, recipe, results: dict, history: list[dict]) -> None:
    """The curve, beside the figures and in the model's folder, whose card then shows it.

    Raises:
        ImportError: without matplotlib.
    """
    plot_losses(output / FIGURE, history)
    shutil.copyfile(output / FIGURE, output / MODEL_FOLDER / FIGURE)
    with replacing_file(output / MODEL_FOLDER / "README.md") as temporary:
        temporary.write_text(model_card(recipe, results, FIGURE), encoding="utf-8")


def plot_losses(path: Path, history: list[dict]) -> None:
    """Training and held-out loss over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    training = np.array([(entry["step"], entry["loss"]) for entry in history if "loss" in entry])
    held_out = np.array([(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry])
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if len(training):
        sums = np.cumsum(np.insert(training[:, 1], 0, 0.0))
        first = np.maximum(np.arange(len(training)) - 24, 0)
        means = (sums[1:] - sums[first]) / (np.arange(len(training)) + 1 - first)
        axes.plot(*training.T, linewidth=0.5, alpha=0.4, color="tab:blue")
        axes.plot(training[:, 0], means, color="tab:blue", label="training, mean of the last 25 entries")
    axes.plot(*held_out.T, "o-", color="tab:red", label="held-out")
    axes.set(xlabel="step", ylabel="loss in nats", ylim=(0, None))
    axes.legend()
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
