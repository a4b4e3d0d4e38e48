"""Values of a recipe against the fields they are meant for, by pydantic: unknown names and wrong types are one clear error."""

import dataclasses
import difflib
import enum
import typing

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

# strict: nothing is turned into another type but a whole number into a number; neither nan nor inf is a number to use
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
# what others call a key of ours, above all transformers' example scripts
ALIASES = {
    "dataset_name": "data.dataset", "dataset_config_name": "data.subset", "train_file": "data.files", "path": "data.files",
    "train_files": "data.files", "validation_file": "data.evaluation_files", "block_size": "data.context",
    "max_seq_length": "data.context", "max_length": "data.context", "seq_len": "data.context", "length": "data.context",
    "validation_split_percentage": "data.held_out", "validation_split_name": "data.evaluation_split",
    "mlm_probability": "data.mask_share", "tokenizer_name": "data.tokenizer", "model_name_or_path": "model.pretrained",
    "torch_dtype": "model.dtype", "num_layers": "model.num_hidden_layers", "max_eval_samples": "evaluation.examples",
    "steps": "training.max_steps", "lr": "training.learning_rate", "epochs": "training.max_steps",
    "num_train_epochs": "training.max_steps", "batch_size": "training.per_device_train_batch_size", "data_seed": "training.seed",
}  # fmt: skip


def checked_section(where: str, given: dict, hints: dict[str, object], kind: str) -> dict:
    """The values of `given`, each as its field's type.

    Args:
        where: how messages name the section, such as `data`.
        hints: type of each field that is allowed.
        kind: what the fields are of, for the message.

    Raises:
        ValueError: for a key that is no field, or a value of another type or beyond the field's limits.
    """
    for key in given:
        if key not in hints:
            near = [ALIASES[key]] if key in ALIASES else difflib.get_close_matches(str(key), hints, n=3)
            allowed = f"; near are {', '.join(near)}" if near else "" if len(hints) > 40 else f": {', '.join(hints)}"
            raise ValueError(f"{where}.{key} is not a key that is known; allowed are {kind}{allowed}")
    return {key: checked_value(f"{where}.{key}", value, hints[key]) for key, value in given.items()}


def checked_value(name: str, value: object, hint: object) -> object:
    """`value` as the type `hint`, which may be annotated with limits."""
    parts = typing.get_args(hint)
    if value is False and str in parts and bool not in parts:
        value = "no"  # what YAML makes of the word, as in eval_strategy: no
    strict = not any(isinstance(part, enum.EnumMeta) for part in parts)  # which would want a member of the enumeration
    try:
        return TypeAdapter(hint, config=STRICT | {"strict": strict}).validate_python(value)
    except ValidationError as error:
        reasons = dict.fromkeys(detail["msg"].removeprefix("Input should be ") for detail in error.errors())
        raise ValueError(f"{name} is {value!r}, but must be {' or '.join(reasons)}") from None


def hints_of(cls: type) -> dict[str, object]:
    """Name and type, with its limits, of each field of a dataclass that its constructor takes."""
    # transformers names torch where it has not imported it
    hints = typing.get_type_hints(cls, localns={"torch": torch}, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
