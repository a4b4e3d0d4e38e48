"""Measuring a saved model: on its own recipe's data or others', with the attention it was trained with or another."""

import dataclasses
import tempfile
from pathlib import Path

from ..cli.generate import load_tokenizer
from .build import build_model, build_trainer, config_for, pretrained_config, training_arguments
from .fields import checked_section
from .recipes import load_recipe, model_hints, parsed_change
from .report import RECIPE_FILE, metrics_in
from .settings import Recipe
from .task import Plan
from .tasks import MODELS, build_task

TEXT_RECIPE = "text"


def evaluate_model(model: str, recipe: str | None = None, files=None, changes=(), smoke=False) -> dict:
    """Metrics of the model at `model`.

    Args:
        recipe: whose evaluation data is used; None: the one saved beside the model.
        files: text to measure a language model on, instead of a recipe's.
        changes: `model.key=value` changes the model's configuration, other sections change the recipe.

    Raises:
        ValueError: where model, recipe or data cannot be used.
    """
    config = pretrained_config(str(model), {})
    if files:
        chosen = recipe_of_files(config, files, changes)
    else:
        chosen = load_recipe(recipe_beside(model) if recipe is None else recipe, others(changes), smoke)
    chosen = dataclasses.replace(chosen, model={**model_changes(changes), "pretrained": str(model)})
    task, trainer = evaluation_of(chosen, config)
    metrics = metrics_in(trainer.evaluate())
    measured = trainer.accelerator.unwrap_model(trainer.model).config
    return {
        "model": str(model),
        "recipe": chosen.name,
        "data": task.description,
        "examples": len(task.evaluation),
        "attn_layers": list(measured.attn_layers),
        "num_hashes": chosen.evaluation.num_hashes or measured.num_hashes,
        **metrics,
    }


def evaluation_of(chosen: Recipe, config):
    """Task and trainer that evaluate the model that the recipe names as its start."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(chosen, Path(folder))
        tokenizer = load_tokenizer(chosen.model["pretrained"], config) if hasattr(chosen.data, "tokenizer") else None
        task = build_task(chosen, Plan(steps=0, per_step=1, seed=arguments.seed), tokenizer)
        check_labels(config, task.model_fields)
        model = build_model(chosen, config_for(chosen, task), arguments.seed)
        return task, build_trainer(chosen, arguments, task, model)


def check_labels(config, fields: dict) -> None:
    """Raises `ValueError` where the labels of the data are not the model's, or in another order."""
    names = list(fields.get("id2label", config.id2label).values())
    if names != list(config.id2label.values()):
        raise ValueError(
            f"data has the labels {', '.join(names)}, but the model has {', '.join(config.id2label.values())}"
        )


def recipe_of_files(config, files, changes) -> Recipe:
    """A recipe that measures a language model on files, in windows of its whole length."""
    names = [str(path) for path in files]
    fixed = ["data.windows=packed", "data.window_plan=null", f"data.context={config.maximum_length}"]
    fixed += ["data.files=null", f"data.evaluation_files={names!r}"]
    recipe = load_recipe(TEXT_RECIPE, [*fixed, *others(changes)])
    kinds = {MODELS[task].__name__: task for task in ("causal-lm", "masked-lm")}
    kind = (config.architectures or ["ReformerModelWithLMHead"])[0]
    if kind not in kinds:
        raise ValueError(f"--data is given, but the model is a {kind}; allowed are {', '.join(kinds)}, or --recipe")
    return dataclasses.replace(recipe, task=kinds[kind])


def recipe_beside(model) -> str:
    """The recipe that was saved with a model, or of whose run it is a checkpoint."""
    for folder in (Path(model), Path(model).parent):
        if (folder / RECIPE_FILE).is_file():
            return str(folder / RECIPE_FILE)
    raise ValueError(
        f"--recipe is missing: no {RECIPE_FILE} lies beside {str(model)!r}; give --recipe NAME or --data PATH"
    )


def model_changes(changes) -> dict:
    """The changes that concern the model's configuration."""
    given = {key: value for section, key, value in map(parsed_change, changes) if section == "model"}
    return checked_section("model", given, model_hints(), "the fields of ReformerConfig")


def others(changes) -> list[str]:
    return [change for change in changes if parsed_change(change)[0] != "model"]
