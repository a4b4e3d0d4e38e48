"""Recipes: YAML files that say what is trained, on what, how; packaged ones by name, a user's own by path.

A recipe may name others that it `extends`; its smoke section and changes come on top, mappings within mappings.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import yaml
from annotated_types import Ge, Lt
from transformers import TrainingArguments

from ..model.configuration_reformer import ReformerConfig
from .fields import checked_section, checked_value, hints_of
from .settings import (
    FORMATS,
    RECIPE_FOLDER,
    TASK_FORMATS,
    EvaluationSettings,
    ExtraTraining,
    Positive,
    Recipe,
    recipe_names,
)

SECTIONS = ("model", "data", "training", "evaluation", "peft")
KEYS = ("name", "task", "source", "extends", *SECTIONS, "smoke")
OWN_MODEL_KEYS = {
    "num_hidden_layers": int | None,
    "dtype": str | None,
    "pretrained": str | None,
    "revision": str | None,
    "initialisation": str | None,
}
# set by the command, or without effect in a run that is counted in steps whose examples are drawn by `seed`
RESERVED = (
    "output_dir", "resume_from_checkpoint", "train_sampling_strategy", "dataloader_drop_last", "num_train_epochs", "data_seed",
    "auto_find_batch_size", "do_train", "do_eval", "do_predict",
)  # fmt: skip
TRAINING_LIMITS = {
    "max_steps": Positive,
    "learning_rate": Annotated[float, Ge(0)],
    "seed": Annotated[int, Ge(0), Lt(2**32)],
    "per_device_train_batch_size": Positive,
    "per_device_eval_batch_size": Positive,
    "gradient_accumulation_steps": Positive,
}
MUON = "muon"
WORDS = ("standard-library", "byte", "bpe", "byte-bpe")  # values of keys that otherwise name files
DRAWN = ("duplication", "reversal", "recall")  # formats whose inputs have one length
PATHS = {"data": ("files", "evaluation_files", "dataset", "tokenizer"), "model": ("pretrained",)}
Change = str | tuple[str, str, object]


class Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in YAML 1.2; for PyYAML it is text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("+-0123456789")
)


def load_recipe(name: str, changes: Sequence[Change] = (), smoke: bool = False) -> Recipe:
    """The recipe `name` (packaged, or the path of a YAML file), with its smoke section and then `changes` applied.

    Args:
        changes: `section.key=value` with the value in YAML (`section.key.inner=value` within a mapping), or the triple
            (section, key, value) of plain values, which no YAML is read from.

    Raises:
        ValueError: for an unknown recipe, key or task, a value of the wrong type, a change that is no `section.key=value`.
    """
    content = read_recipe(name)
    if smoke:
        content = layered(content, checked_layer(f"{name}: smoke", content.get("smoke") or {}, SECTIONS))
    changed = {}
    for section, key, value in map(parsed_change, changes):
        changed = over(changed, {section: {key: value}})
    return checked_recipe(content.get("name") or Path(name).stem, layered(content, changed))


def read_recipe(name: str, below: tuple[str, ...] = ()) -> dict:
    """The mapping in a packaged recipe or a user's file, over those of the recipes that it extends."""
    path = Path(name) if _is_path(name) else RECIPE_FOLDER / f"{name}.yaml"
    if name in below:
        raise ValueError(f"recipe {name!r} extends itself: {' -> '.join([*below, name])}")
    if not path.is_file():
        what = "is a file that does not exist" if _is_path(name) else "is unknown"
        raise ValueError(
            f"recipe {name!r} {what}; packaged are {', '.join(recipe_names())}, or the path of a YAML file"
        )
    try:
        layer = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {name!r} is no YAML: {error}") from None
    layer, content = checked_layer(name, layer, KEYS), {}
    extended = checked_value(f"recipe {name}: extends", layer.pop("extends", []), list[str] | str)
    for base in [extended] if isinstance(extended, str) else extended:
        base = str(path.parent / base) if _is_path(base) else base
        content = over(content, read_recipe(base, (*below, name)) | {"name": None})
    return layered(content, layer) if content else layer


def checked_layer(name: str, layer: object, keys: Sequence[str]) -> dict:
    """A part of a recipe without empty sections; raises `ValueError` for one that is no mapping, and for unknown keys."""
    for section, value in [("the file", layer), *(layer.items() if isinstance(layer, dict) else ())]:
        if section in ("the file", "smoke", *SECTIONS) and not isinstance(value or {}, dict):
            raise ValueError(f"recipe {name}: {section} is {value!r}, but must be a mapping")
    for key in layer or {}:
        if key not in keys:
            raise ValueError(f"recipe {name} has the unknown key {key!r}; allowed are {', '.join(keys)}")
    return {key: value for key, value in (layer or {}).items() if value is not None}


def over(base: dict, layer: dict) -> dict:
    """`layer` over `base`, mappings within mappings."""
    both = (key for key in layer if isinstance(layer[key], dict) and isinstance(base.get(key), dict))
    return base | layer | {key: over(base[key], layer[key]) for key in both}


def layered(base: dict, layer: dict) -> dict:
    """`layer` over `base`, and what follows from the context of the layer in between."""
    return over(over(base, coupled(base, layer)), layer)


def coupled(base: dict, layer: dict) -> dict:
    """What a layer that sets the context alone changes beside it: the positions of a new model, and the plan of windows."""
    data, model = ({**base.get(section, {}), **layer.get(section, {})} for section in ("data", "model"))
    context = {**layer.get("data", {})}.get("length" if data.get("format") in DRAWN else "context")
    if type(context) is not int or context < 2:
        return {}
    more = {}
    own = {"max_position_embeddings", "axial_pos_shape"} & {*layer.get("model", {})}
    if not own and not model.get("pretrained"):
        rows = 2 ** ((context.bit_length() - 1) // 2)
        more["model"] = {"max_position_embeddings": context, "axial_pos_shape": [rows, -(-context // rows)]}
    plan = base.get("data", {}).get("window_plan")
    if plan and "window_plan" not in layer["data"]:
        stages = [[until, min(length, context)] for until, length in plan[:-1]]
        more["data"] = {"window_plan": [*stages, [plan[-1][0], context]]}
    return more


def checked_recipe(name: str, content: dict) -> Recipe:
    """A `Recipe` of plain values; raises `ValueError` for what does not fit."""
    task, source = content.get("task"), checked_value("source", content.get("source") or "", str).strip()
    if task not in TASK_FORMATS:
        raise ValueError(f"recipe {name}: task is {task!r}, but must be one of {', '.join(TASK_FORMATS)}")
    parts = {section: absolute(section, content.get(section) or {}) for section in SECTIONS}
    training, extra = checked_training(parts["training"])
    evaluation = checked_section("evaluation", parts["evaluation"], hints_of(EvaluationSettings), "these")
    return Recipe(
        name=name,
        task=task,
        source=source,
        model=checked_section("model", parts["model"], model_hints(), "the fields of ReformerConfig"),
        data=checked_data(task, parts["data"]),
        training=training,
        evaluation=EvaluationSettings(**evaluation),
        extra=extra,
        peft=parts["peft"],
        plain={"name": name, "task": task, "source": source, **parts},
    )


def absolute(section: str, values: dict) -> dict:
    """The section with whole paths where it names files, so that it means the same in another folder."""

    def whole(key, name):
        # other keys name a thing of the Hub where there is no such folder
        is_path = isinstance(name, str) and name not in WORDS and (key.endswith("files") or os.path.exists(name))
        return os.path.abspath(name) if is_path else name

    named = {key: values[key] for key in PATHS.get(section, ()) if values.get(key)}
    return values | {
        key: [whole(key, name) for name in value] if isinstance(value, list) else whole(key, value)
        for key, value in named.items()
    }


def checked_data(task: str, given: dict):
    """The settings class of `data.format` filled with the rest of the section."""
    allowed = TASK_FORMATS[task]
    kind = given.get("format", allowed[0])
    if kind not in allowed:
        raise ValueError(f"data.format is {kind!r}, but must be one of {', '.join(allowed)} for task {task}")
    values = {key: value for key, value in given.items() if key != "format"}
    return FORMATS[kind](**checked_section("data", values, hints_of(FORMATS[kind]), f"(for format {kind}) these"))


def checked_training(given: dict) -> tuple[dict, ExtraTraining]:
    """Arguments for `TrainingArguments`, and our own keys."""
    arguments = {name: hint for name, hint in hints_of(TrainingArguments).items() if name not in RESERVED}
    extra = hints_of(ExtraTraining)
    kind = "the fields of TrainingArguments that a run leaves free"
    values = checked_section("training", given, {**arguments, **TRAINING_LIMITS, **extra}, kind)
    if "max_steps" not in values:
        raise ValueError(
            "training.max_steps is missing; it must be a whole number of at least 1: runs are counted in steps"
        )
    own = ExtraTraining(**{key: values.pop(key) for key in extra if key in values})
    return values, own


def model_hints() -> dict[str, object]:
    """Types of the keys of `model`: the configuration's own fields, and ours."""
    hints = hints_of(ReformerConfig)
    return {field.name: hints[field.name] for field in fields(ReformerConfig)} | OWN_MODEL_KEYS


def parsed_change(change: Change) -> tuple[str, str, object]:
    """`section.key=value` as its three parts; `section.key.inner=value` has the value {inner: value}."""
    if not isinstance(change, str):
        return change
    left, equals, right = change.partition("=")
    section, *keys = left.strip().split(".")
    if not equals or section not in SECTIONS or not keys or not all(keys):
        raise ValueError(
            f"--set {change!r} must be SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}, as model.num_hashes=4"
        )
    try:
        value = yaml.load(right, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {change!r}: the value {right!r} is no YAML ({str(error).splitlines()[0]})") from None
    for key in reversed(keys[1:]):
        value = {key: value}
    return section, keys[0], value


def _is_path(name):
    return name.endswith((".yaml", ".yml")) or "/" in name
