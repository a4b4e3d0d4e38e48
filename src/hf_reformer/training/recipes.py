"""Recipes: YAML files that say what is trained, on what, how; packaged ones by name, a user's own by path."""

import importlib.resources
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import yaml
from transformers import TrainingArguments

from ..model.configuration_reformer import ReformerConfig
from .fields import checked_section, checked_value, hints_of
from .settings import FORMATS, TASK_FORMATS, EvaluationSettings, ExtraTraining, Recipe

SECTIONS = ("model", "data", "training", "evaluation", "peft")
KEYS = ("name", "task", "source", *SECTIONS, "smoke")
OWN_MODEL_KEYS = {
    "num_hidden_layers": int | None,
    "dtype": str | None,
    "pretrained": str | None,
    "revision": str | None,
    "initialisation": str | None,
}
RESERVED = ("output_dir", "resume_from_checkpoint", "train_sampling_strategy", "dataloader_drop_last")
MUON = "muon"


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str, changes: Sequence[str] = (), smoke: bool = False) -> Recipe:
    """The recipe `name` (packaged, or the path of a YAML file), with its smoke section and then `changes` applied.

    Args:
        changes: `section.key=value`, the value in YAML.

    Raises:
        ValueError: for an unknown recipe, key or task, a value of the wrong type, a change that is no `section.key=value`.
    """
    content = read_yaml(name)
    parts = {section: dict(_mapping(name, section, content.get(section) or {})) for section in SECTIONS}
    if smoke:
        _merge(parts, _mapping(name, "smoke", content.get("smoke") or {}), f"recipe {name}: smoke")
    for change in changes:
        section, key, value = parsed_change(change)
        parts[section][key] = value
    return checked_recipe(content.get("name") or (Path(name).stem if _is_path(name) else name), content, parts)


def checked_recipe(name: str, content: dict, parts: dict[str, dict]) -> Recipe:
    """A `Recipe` of plain values; raises `ValueError` for what does not fit."""
    task = checked_value("task", content.get("task"), str)
    if task not in TASK_FORMATS:
        raise ValueError(f"recipe {name}: task is {task!r}, but must be one of {', '.join(TASK_FORMATS)}")
    model = checked_section("model", parts["model"], model_hints(), "the fields of ReformerConfig")
    training, extra = checked_training(parts["training"])
    evaluation = EvaluationSettings(
        **checked_section("evaluation", parts["evaluation"], hints_of(EvaluationSettings), "these")
    )
    check_evaluation(evaluation)
    return Recipe(
        name=name,
        task=task,
        source=checked_value("source", content.get("source") or "", str).strip(),
        model=model,
        data=checked_data(task, parts["data"]),
        training=training,
        evaluation=evaluation,
        extra=extra,
        peft=parts["peft"],
        plain={"name": name, "task": task, "source": content.get("source") or "", **parts},
    )


def checked_data(task: str, given: dict):
    """The settings class of `data.format` filled with the rest of the section."""
    given = dict(given)
    allowed = TASK_FORMATS[task]
    kind = given.pop("format", allowed[0])
    if kind not in allowed:
        raise ValueError(f"data.format is {kind!r}, but must be one of {', '.join(allowed)} for task {task}")
    settings = FORMATS[kind]
    data = settings(**checked_section("data", given, hints_of(settings), f"(for format {kind}) these"))
    check_data(data)
    return data


def check_data(data) -> None:
    """Values that are of the right type and still cannot be."""
    values = asdict(data)
    for name, least in (
        ("context", 2),
        ("size", 1),
        ("length", 4),
        ("symbols", 2),
        ("generated", 1),
        ("vocab_size", 4),
    ):
        if values.get(name) is not None and values[name] < least:
            raise ValueError(f"data.{name} is {values[name]}, but must be at least {least}")
    if values.get("length") and values["length"] % 2:
        raise ValueError(f"data.length is {values['length']}, but must be even: the sequence is twice 0w")
    for name in ("training_range", "evaluation_range"):
        value = values.get(name)
        if value is not None and (len(value) != 2 or not 0 <= value[0] < value[1]):
            raise ValueError(f"data.{name} is {value}, but must be two byte offsets [from, to] with from below to")
    for name in ("held_out", "mask_share"):
        if name in values and not 0 < values[name] < 1:
            raise ValueError(f"data.{name} is {values[name]}, but must be above 0 and below 1")
    if values.get("window_plan") is not None:
        _check_plan(values)


def check_evaluation(evaluation: EvaluationSettings) -> None:
    """Raises `ValueError` for a number out of range."""
    for name, least in (
        ("examples", 1), ("num_hashes", 1), ("samples", 0), ("prompt_tokens", 1), ("sample_tokens", 1), ("temperature", 0),
    ):  # fmt: skip
        value = getattr(evaluation, name)
        if value is not None and value < least:
            raise ValueError(f"evaluation.{name} is {value}, but must be at least {least}")
    if not 0 < evaluation.top_p <= 1:
        raise ValueError(f"evaluation.top_p is {evaluation.top_p}, but must be above 0 and at most 1")


def _check_plan(values):
    plan = values["window_plan"]
    shares = [stage[0] for stage in plan if len(stage) == 2]
    fits = len(shares) == len(plan) > 0 and shares == sorted(shares) and shares[-1] == 1
    fits = fits and all(float(length).is_integer() and 2 <= length <= values["context"] for _, length in plan)
    if values["windows"] != "random" or not fits:
        raise ValueError(
            f"data.window_plan is {plan}, but must be (with windows: random) pairs [share of the steps, length], the shares rising "
            f"to 1, the lengths whole numbers from 2 to the context {values['context']}"
        )


def checked_training(given: dict) -> tuple[dict, ExtraTraining]:
    """Arguments for `TrainingArguments`, and our own keys."""
    arguments = {name: hint for name, hint in hints_of(TrainingArguments).items() if name not in RESERVED}
    extra = hints_of(ExtraTraining)
    values = checked_section(
        "training", given, {**arguments, **extra}, "the fields of TrainingArguments (but what the command sets)"
    )
    own = ExtraTraining(**{key: values.pop(key) for key in extra if key in values})
    steps = values.get("max_steps")
    if steps is None or steps < 1:
        raise ValueError(
            f"training.max_steps is {steps}, but must be a whole number of at least 1: runs are counted in steps"
        )
    return values, own


def model_hints() -> dict[str, object]:
    hints = hints_of(ReformerConfig)
    hints = {field.name: hints[field.name] for field in fields(ReformerConfig)}
    return {**hints, **OWN_MODEL_KEYS}


def parsed_change(change: str) -> tuple[str, str, object]:
    """`section.key=value` as its three parts."""
    left, equals, right = change.partition("=")
    section, dot, key = left.strip().partition(".")
    if not equals or not dot or section not in SECTIONS or not key:
        raise ValueError(
            f"--set {change!r} must be SECTION.KEY=VALUE with a section of {', '.join(SECTIONS)}, as model.num_hashes=4"
        )
    try:
        return section, key, yaml.safe_load(right)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {change!r}: the value {right!r} is no YAML ({str(error).splitlines()[0]})") from None


def read_yaml(name: str) -> dict:
    """The mapping in a packaged recipe or a user's file."""
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"recipe {name!r} is a file that does not exist; packaged are {', '.join(recipe_names())}")
        text = path.read_text(encoding="utf-8")
    elif name in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"recipe {name!r} is unknown; packaged are {', '.join(recipe_names())}, or the path of a YAML file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {name!r} is no YAML: {error}") from None
    content = _mapping(name, "the file", content)
    for key in content:
        if key not in KEYS:
            raise ValueError(f"recipe {name!r} has the unknown key {key!r}; allowed are {', '.join(KEYS)}")
    return content


def _merge(parts, changes, where):
    for section, values in changes.items():
        if section not in SECTIONS:
            raise ValueError(f"{where}.{section} is not a section; allowed are {', '.join(SECTIONS)}")
        parts[section].update(_mapping(where, section, values))


def _mapping(name, section, value):
    if not isinstance(value, dict):
        raise ValueError(f"recipe {name}: {section} is {value!r}, but must be a mapping")
    return value


def _is_path(name):
    return name.endswith((".yaml", ".yml")) or "/" in name


def _folder():
    return importlib.resources.files(__package__) / "recipes"
