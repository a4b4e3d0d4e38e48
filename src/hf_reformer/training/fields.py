"""Values of a recipe against the fields they are meant for: unknown names and wrong types are one clear error."""

import dataclasses
import difflib
import enum
import types
import typing

import torch

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def checked_section(where: str, given: dict, hints: dict[str, object], kind: str) -> dict:
    """The values of `given`, each converted to its field's type.

    Args:
        where: how messages name the section, such as `data`.
        hints: type of each field that is allowed.
        kind: what the fields are of, for the message.

    Raises:
        ValueError: for a key that is no field, or a value of another type.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}, but must be a mapping of {kind}")
    return {
        key: checked_value(f"{where}.{key}", value, hint_of(where, key, hints, kind)) for key, value in given.items()
    }


def hint_of(where: str, key: str, hints: dict[str, object], kind: str) -> object:
    """The type of the field `key`."""
    if key in hints:
        return hints[key]
    near = difflib.get_close_matches(str(key), hints, n=3)
    allowed = f"; near are {', '.join(near)}" if near else "" if len(hints) > 40 else f": {', '.join(hints)}"
    raise ValueError(f"{where}.{key} is not a key that is known; allowed are {kind}{allowed}")


def checked_value(name: str, value: object, hint: object) -> object:
    """`value` as the type `hint`; whole numbers serve as numbers, and `1e-3`, which YAML reads as text, does too."""
    try:
        return converted(value, hint)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, but must be {described(hint)}") from None


def converted(value: object, hint: object) -> object:
    """Raises `TypeError` or `ValueError` where `value` is not of the type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, typing.get_args(hint))
    if origin is typing.Literal:
        return _require(value, value in typing.get_args(hint))
    if origin in (list, tuple):
        _require(value, isinstance(value, list | tuple))
        inner = typing.get_args(hint)[0]
        return [converted(item, inner) for item in value]
    if hint is type(None):
        return _require(value, value is None)
    if isinstance(hint, enum.EnumMeta):
        return _require(value, value in [member.value for member in hint])
    if hint is float:
        _require(value, not isinstance(value, bool) and isinstance(value, int | float | str))
        return float(value)
    if hint is int:
        return _require(value, isinstance(value, int) and not isinstance(value, bool))
    if hint in (bool, str, dict):
        return _require(value, isinstance(value, hint))
    return _require(value, isinstance(value, dict)) if origin is dict else value


def _first_that_fits(value, hints):
    if value is False and str in hints and bool not in hints:
        value = "no"  # what YAML makes of the word, as in eval_strategy: no
    # a value that is of a type as it stands is not converted to another one: 0 stays whole, "1e-3" stays text last
    for hint in sorted(hints, key=lambda hint: (hint is str, hint is float)):
        try:
            return converted(value, hint)
        except (TypeError, ValueError):
            continue
    raise TypeError


def _require(value, fits):
    if not fits:
        raise TypeError
    return value


def described(hint: object) -> str:
    """The type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(described(part) for part in inner))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (list, tuple):
        return f"a list, each entry {described(inner[0])}"
    if hint is type(None):
        return "null"
    if isinstance(hint, enum.EnumMeta):
        return "one of " + ", ".join(str(member.value) for member in hint)
    return NAMES.get(origin or hint, getattr(hint, "__name__", str(hint)))


def hints_of(cls: type) -> dict[str, object]:
    """Name and type of each field of a dataclass that its constructor takes."""
    hints = typing.get_type_hints(cls, localns={"torch": torch})  # transformers names it where it has not imported it
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
