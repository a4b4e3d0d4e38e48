"""Measuring a saved model: on its own recipe's data or others', with the attention it was trained with or another."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from ..files import replacing_file
from .build import build_model, build_trainer, config_for, pretrained_config, training_arguments
from .fields import checked_section
from .folder import RECIPE_FILE, RUN_FILE, stored_facts
from .recipes import load_recipe, model_hints, parsed_change
from .report import compressed, metrics_in
from .run import facts_of
from .settings import ImageData, Recipe
from .task import Plan
from .tasks import MODELS, build_task
from .vocabulary import load_tokenizer

TEXT_RECIPE = "text"


def evaluate_model(
    model: str, recipe: str | None = None, files=None, changes=(), smoke=False, *, revision: str | None = None,
    device: str = "auto", quiet: bool = False, batch_size: int | None = None, predictions: str | Path | None = None,
) -> dict:  # fmt: skip
    """Metrics of the model at `model`.

    Args:
        recipe: whose evaluation data is used; None: the one saved beside the model.
        files: text to measure a language model on, instead of a recipe's; images, of a model whose own recipe has images.
        changes: `model.key=value` changes the model's configuration, other sections change the recipe.
        revision: of a model on the Hub.
        batch_size: examples at a time on each device.
        predictions: a file for one line of JSON per example: its figures, and for a head what it says and should say.

    Raises:
        ValueError: where model, recipe or data cannot be used, the model lacks weights, or the recipe's evaluation data is no
            longer what the model was measured on.
    """
    config = pretrained_config(str(model), {}, revision)
    if batch_size is not None:
        changes = [*changes, f"training.per_device_eval_batch_size={batch_size}"]
    own = None
    if files:
        chosen = recipe_of_images(model, files, changes) or recipe_of_files(config, files, changes)
    else:
        own = folder_of_run(model) if recipe is None else None
        chosen = load_recipe(recipe if own is None else str(own / RECIPE_FILE), others(changes), smoke)
    extra = dataclasses.replace(chosen.extra, early_stopping_patience=None)
    model_section = {**model_changes(changes), "pretrained": str(model), "revision": revision}
    training = {**chosen.training, "push_to_hub": False, "report_to": "none"}
    chosen = dataclasses.replace(chosen, model=model_section, training=training, peft={}, extra=extra)
    task, trainer = evaluation_of(chosen, config, device, quiet)
    same = None if own is None else check_held_out(own, task, changes)
    metrics = measured(trainer, task, predictions)
    actual = trainer.accelerator.unwrap_model(trainer.model).config
    return {
        "model": str(model),
        "recipe": chosen.name,
        "data": task.description,
        "examples": len(task.evaluation),
        "counts": task.counts,
        "same_data_as_the_card": same,
        "attn_layers": list(actual.attn_layers),
        "num_hashes": chosen.evaluation.num_hashes or actual.num_hashes,
        **metrics,
        **compressed(task, metrics),
    }


def evaluation_of(chosen: Recipe, config, device: str, quiet: bool):
    """Task and trainer that evaluate the model that the recipe names as its start."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(chosen, Path(folder), device, quiet)
        name, revision = chosen.model["pretrained"], chosen.model["revision"]
        tokenizer = None
        if hasattr(chosen.data, "tokenizer"):
            tokenizer = load_tokenizer(name, config.maximum_length, revision, config.vocab_size)
        task = build_task(chosen, Plan(steps=0, per_step=1, seed=arguments.seed), tokenizer)
        check_labels(config, task.model_fields)
        model = build_model(chosen, config_for(chosen, task), arguments.seed, new_head=False)
        return task, build_trainer(chosen, arguments, task, model)


def check_labels(config, fields: dict) -> None:
    """Raises `ValueError` where the labels of the data are not the model's, or in another order."""
    names = list(fields.get("id2label", config.id2label).values())
    if names != list(config.id2label.values()):
        raise ValueError(
            f"data has the labels {', '.join(names)}, but the model has {', '.join(config.id2label.values())}"
        )


def check_held_out(folder: Path, task, changes) -> bool | None:
    """Whether the evaluation data is what the model's own figures are of; None where that was not noted.

    Raises:
        ValueError: where it is not, though nobody asked for other data: some of it may be what the model was trained on.
    """
    if not (folder / RUN_FILE).is_file():
        return None
    before, now = stored_facts(folder)["held_out"], facts_of(task)["held_out"]
    asked = any(section in ("data", "evaluation") for section, _, _ in map(parsed_change, changes))
    if before != now and not asked:
        raise ValueError(
            f"the recipe's evaluation data has changed since the model was measured (fingerprint {before}, now {now}): some of it "
            "may have been trained on. Name other data with --data or --set data.files=..., or bring the old one back"
        )
    return before == now


def measured(trainer, task, predictions) -> dict:
    """Metrics over all examples; what each got goes to the file `predictions`."""
    if predictions is None:
        return metrics_in(trainer.evaluate())
    found = trainer.predict(task.evaluation, metric_key_prefix="eval")
    lines = task.predictions(np.asarray(found.predictions, dtype=np.float64))
    with replacing_file(predictions) as temporary:
        numbered = (json.dumps({"index": i, **line}) for i, line in enumerate(lines))
        temporary.write_text("".join(f"{line}\n" for line in numbered), encoding="utf-8")
    return metrics_in(found.metrics)


def recipe_of_files(config, files, changes) -> Recipe:
    """A recipe that measures a language model on files, in windows of its whole length."""
    recipe = load_recipe(TEXT_RECIPE, others(changes))
    names = [str(path) for path in files]
    data = dataclasses.replace(
        recipe.data,
        windows="packed",
        window_plan=None,
        context=config.maximum_length,
        files=None,
        evaluation_files=names,
    )
    kinds = {MODELS[task].__name__: task for task in ("causal-lm", "masked-lm")}
    kind = (config.architectures or ["ReformerModelWithLMHead"])[0]
    if kind not in kinds:
        raise ValueError(f"--data is given, but the model is a {kind}; allowed are {', '.join(kinds)}, or --recipe")
    return dataclasses.replace(recipe, task=kinds[kind], data=data)


def recipe_of_images(model, files, changes) -> Recipe | None:
    """The model's own recipe with these images to measure it on; None where it is not one of images."""
    try:
        path = str(folder_of_run(model) / RECIPE_FILE)
        if not isinstance(load_recipe(path).data, ImageData):
            return None
    except ValueError:  # it lies beside no recipe that can be read
        return None
    own = load_recipe(path, others(changes))
    names = [str(path) for path in files]
    data = dataclasses.replace(own.data, files=None, dataset=None, generated=None, evaluation_files=names)
    return dataclasses.replace(own, data=data)


def folder_of_run(model) -> Path:
    """Where the recipe lies that was saved with a model, or of whose run it is a checkpoint."""
    for folder in (Path(model), Path(model).parent):
        if (folder / RECIPE_FILE).is_file():
            return folder
    raise ValueError(
        f"--recipe is missing: no {RECIPE_FILE} lies beside {str(model)!r}; give --recipe NAME or --data PATH"
    )


def model_changes(changes) -> dict:
    """The changes that concern the model's configuration."""
    given = {key: value for section, key, value in map(parsed_change, changes) if section == "model"}
    return checked_section("model", given, model_hints(), "the fields of ReformerConfig")


def others(changes) -> list[str]:
    return [change for change in changes if parsed_change(change)[0] != "model"]
