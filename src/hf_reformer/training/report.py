"""What a finished run leaves: `results.json`, `loss.png`, and the model's folder with its card. Each appears whole."""

import json
import platform
import shutil
from pathlib import Path

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import replacing_file, replacing_folder
from .quickstart_report import describe_machine, peak_memory_gib, running_mean

RECIPE_FILE = "recipe.yaml"
PIPELINES = {
    "causal-lm": ("text-generation", "AutoModelForCausalLM"),
    "masked-lm": ("fill-mask", "AutoModelForMaskedLM"),
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "question-answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "token-classification": ("token-classification", "AutoModelForTokenClassification"),
}
CARD = """\
---
{front_matter}
---

# {title}

A Reformer of {layers} layers ({kinds}), {parameters:,} parameters, trained by

```bash
{command}
```

with `hf_reformer` {hf_reformer}, torch {torch}, transformers {transformers} on {machine}: {steps:,} steps in {minutes:.1f} minutes,
peak memory {peak_memory_gib:.1f} GiB, seed {seed}, {processes} process(es).

## Data

{data}

## Measured

{held_out}

| | {before_title}after training |
| --- | {before_line}--- |
{metrics}

![Loss](loss.png)

## Hyper-parameters

{source}

```yaml
{settings}```

## Use

```python
import hf_reformer  # registers the classes; without it, transformers refuses the strict layers
from transformers import {auto_class}

model = {auto_class}.from_pretrained("PATH_OR_REPOSITORY")
```
"""


def results_of(recipe, trainer, task, command: str) -> dict:
    """All figures of a finished run."""
    from .. import __version__

    history, model = trainer.state.log_history, trainer.accelerator.unwrap_model(trainer.model)
    evaluations = [entry for entry in history if "eval_loss" in entry]
    return {
        "recipe": recipe.name,
        "task": recipe.task,
        "command": command,
        "before": metrics_in(evaluations[0]) if evaluations[0]["step"] == 0 else None,
        "after": metrics_in(evaluations[-1]),
        "evaluations": [{"step": entry["step"], **metrics_in(entry)} for entry in evaluations],
        "steps": trainer.state.global_step,
        "training_seconds": history[-1]["seconds"],
        "seed": trainer.args.seed,
        "processes": trainer.args.world_size,
        "data": task.description,
        "data_fingerprint": task.fingerprint,
        "evaluated_examples": len(task.evaluation),
        "layers": list(model.config.attn_layers),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "hf_reformer": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": describe_machine(trainer.args.device),
    }


def metrics_in(entry: dict) -> dict:
    """The metrics of an evaluation, without its timings."""
    timings = ("runtime", "per_second", "preparation_time")
    return {
        name.removeprefix("eval_"): value
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(timings)
    }


def write_results(path: Path, results: dict) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def write_recipe(path: Path, recipe) -> None:
    """The recipe with everything filled in; `hf-reformer train` takes it as it is."""
    with replacing_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe.plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def plot_losses(path: Path, history: list[dict]) -> bool:
    """Training and held-out loss over the steps; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, linewidth=0.5, alpha=0.4, color="tab:blue")
        axes.plot(steps, running_mean(list(losses)), color="tab:blue", label="training, mean of the last 25 entries")
    axes.plot(*zip(*held_out, strict=True), "o-", color="tab:red", label="held-out")
    axes.set(xlabel="step", ylabel="loss in nats", ylim=(0, None))
    axes.legend()
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    return True


def write_model(folder: Path, trainer, recipe, results: dict | None, figure: Path | None) -> None:
    """Model, tokenizer, recipe and, for a finished run, the card; the folder is replaced whole."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(temporary)
        write_recipe(temporary / RECIPE_FILE, recipe)
        if results is not None:
            (temporary / "README.md").write_text(model_card(recipe, results, figure is not None), encoding="utf-8")
            if figure is not None:
                shutil.copyfile(figure, temporary / figure.name)


def model_card(recipe, results: dict, has_figure: bool) -> str:
    """Text of README.md; its front matter is checked."""
    pipeline, auto_class = PIPELINES[recipe.task]
    before, after, kinds = results["before"], results["after"], results["layers"]
    rows = [f"| {n.replace('_', ' ')} | {f'{before[n]:.4f} | ' if before else ''}{v:.4f} |" for n, v in after.items()]
    card = CARD.format(
        **{**results, "layers": len(kinds)},
        front_matter=front_matter(recipe, results, pipeline),
        title=f"Reformer trained with the recipe {recipe.name}",
        kinds=", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        minutes=results["training_seconds"] / 60,
        held_out=f"On {results['evaluated_examples']:,} evaluation examples; the first token of a window is not predicted."
        if recipe.task == "causal-lm"
        else f"On {results['evaluated_examples']:,} evaluation examples.",
        before_title="before training | " if before else "",
        before_line="--- | " if before else "",
        metrics="\n".join(rows),
        source=recipe.source,
        settings=yaml.safe_dump(
            {k: v for k, v in recipe.plain.items() if k not in ("name", "source")}, sort_keys=False, allow_unicode=True
        ),
        auto_class=auto_class,
    )
    card = card if has_figure else card.replace("![Loss](loss.png)\n\n", "")
    ModelCard(card)  # raises on front matter that does not parse
    return card


def front_matter(recipe, results: dict, pipeline: str) -> str:
    """YAML that the Hub reads; the licence of a model of a user's own data only the user can say."""
    data = ModelCardData(
        model_name=f"hf-reformer-{recipe.name}",
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["reformer", "hf_reformer"],
        eval_results=[
            EvalResult(
                task_type=pipeline, dataset_type=recipe.name, dataset_name=results["data"], metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in results["after"].items()
        ],
    )  # fmt: skip
    return data.to_yaml()
