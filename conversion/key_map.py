"""A key map: for each foreign array its name, its shape, our key, and how the one becomes the other.

A format is a list of `Entry`; nothing else in the package knows a foreign name. Both directions check every shape before
anything is copied, and report all that is wrong at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

SHOWN = 1000  # problems in one message


class Entry(NamedTuple):
    """One array of the foreign format.

    theirs, shape: its name (for messages and, in formats with names, its key) and its shape there.
    ours: our parameter, or None where it has no parameter of its own.
    to_ours, to_theirs: each takes a tensor and gives one.
    """

    theirs: str
    shape: tuple[int, ...]
    ours: str | None
    to_ours: Callable[[torch.Tensor], torch.Tensor]
    to_theirs: Callable[[torch.Tensor], torch.Tensor]


def same(theirs, shape, ours):
    """An array that is the same in both."""
    return Entry(theirs, tuple(shape), ours, _identity, _identity)


def transposed(theirs, shape, ours):
    """A matrix (in, out) there, (out, in) here."""
    return Entry(theirs, tuple(shape), ours, torch.t, torch.t)


def _identity(tensor):
    return tensor


def check(problems, where):
    """Raises `ValueError` with every problem, if there is any."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{where} does not fit, {len(problems)} problems: " + "; ".join(problems[:SHOWN]) + more + ".")


def match_in_order(entries, arrays, where):
    """{name: array} for formats that have an order instead of names; every shape is checked, nothing may be left over."""
    problems = [
        f"array {i} has the shape {tuple(array.shape)}, but {entry.theirs} has {entry.shape}"
        for i, (entry, array) in enumerate(zip(entries, arrays, strict=False))
        if tuple(array.shape) != entry.shape
    ]
    problems += [f"missing: {entry.theirs} of shape {entry.shape}" for entry in entries[len(arrays) :]]
    problems += [
        f"unused: array {i} of shape {tuple(arrays[i].shape)}" for i in range(len(entries), len(arrays))
    ]  # fmt: skip
    check(problems, where)
    return {entry.theirs: array for entry, array in zip(entries, arrays, strict=True)}


def match_by_name(entries, tensors, where):
    """The same for formats with names."""
    expected = {entry.theirs: entry.shape for entry in entries}
    problems = [f"missing: {name} of shape {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unused: {name} of shape {tuple(t.shape)}" for name, t in tensors.items() if name not in expected]
    problems += [
        f"{name} has the shape {tuple(tensors[name].shape)}, but must have {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    check(problems, where)


def to_ours(entries, arrays, where):
    """Our tensors from foreign arrays {name: array} that were matched before."""
    match_by_name(entries, arrays, where)
    return {entry.ours: entry.to_ours(arrays[entry.theirs]).contiguous() for entry in entries if entry.ours is not None}


def to_theirs(entries, tensors, where):
    """[(name, array)] in the order of the map, from our tensors; each entry must have a key of ours."""
    missing = [f"missing: {entry.ours}" for entry in entries if entry.ours not in tensors]
    used = {entry.ours for entry in entries}
    check(missing + [f"unused: {key}" for key in tensors if key not in used], where)
    arrays = [(entry, entry.to_theirs(tensors[entry.ours]).contiguous()) for entry in entries]
    wrong = [
        f"{entry.ours} gives {entry.theirs} the shape {tuple(array.shape)}, but it must have {entry.shape}"
        for entry, array in arrays
        if tuple(array.shape) != entry.shape
    ]
    check(wrong, where)
    return [(entry.theirs, array) for entry, array in arrays]
