"""The four ways in which Trax has stored a checkpoint; all hold the same arrays in the same order (depth first).

| files | written by | weights |
|---|---|---|
| `model.pkl` | Trainer until 2020-05 | `weights`, a nested tree |
| `model.pkl.gz` | Trainer and Loop 1.3.0-1.3.7, `Layer.save_to_file` | `flat_weights`, a list |
| `model.pkl.gz`, `model.pkl.gz.shard0`, ... | Loop 1.3.7, memory efficient | `flat_weights` is the number of shards |
| `model.pkl.gz`, `model.weights.npy.gz` | Loop 1.3.8 and later | `flat_weights` is a compression level |

Any base name instead of `model` will do (`model_1000`, `highest_accuracy`, ...).
"""

from pathlib import Path
from typing import NamedTuple

import torch

from .bounded import BoundedFile
from .limits import check_bytes
from .npy_stream import read_npy_stream
from .pickle_reader import read_pickle
from .pickled_names import Array

MAX_NODES = 1_000_000  # of a nested tree, counted as often as they are met
MAX_DEPTH = 100
MAX_SHARDS = 1000
ENDINGS = (".weights.npy.gz", ".pkl.gz", ".pkl")


class TraxFile(NamedTuple):
    """Arrays in checkpoint order, the training step or None, and which of the four ways they were stored in."""

    arrays: list[torch.Tensor]
    step: int | None
    generation: str


def is_trax(path):
    """Whether the name of a file is one that Trax gives."""
    return Path(path).name.endswith(ENDINGS)


def find_trax(source):
    """The base path of the one Trax checkpoint in a folder, without ending, or the source itself; else None.

    Raises:
        ValueError: there are several and none is called `model`.
    """
    if not source.is_dir():
        return source if is_trax(source) else None
    names = {_base(path).name for path in source.iterdir() if is_trax(path)}
    if len(names) > 1 and "model" not in names:
        raise ValueError(f"{source} holds several checkpoints, {sorted(names)}: name the file of one of them.")
    return source / ("model" if "model" in names else names.pop()) if names else None


def read_trax(path):
    """A checkpoint from one of its files, or from its base path.

    Raises:
        ValueError: nothing is there, or what is there is not a sound Trax checkpoint.
    """
    path = Path(path)
    base = _base(path)
    if path.name.endswith(".weights.npy.gz"):
        return TraxFile(_floats(read_npy_stream(path), path), None, "weights.npy.gz")
    for ending in (".pkl.gz", ".pkl"):
        pickled = base.with_name(base.name + ending)
        if path == pickled or (path == base and pickled.exists()):
            return _read_pickled(pickled, base)
    weights = base.with_name(base.name + ".weights.npy.gz")
    if path == base and weights.exists():
        return read_trax(weights)
    raise ValueError(f"{path} is not a Trax checkpoint: its name must end in {', '.join(ENDINGS)}.")


def _base(path):
    for ending in ENDINGS:
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending))
    return path


def _read_pickled(path, base):
    checkpoint, size = _unpickle(path)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, but must hold a dictionary.")
    step = checkpoint.get("step")
    step = step if type(step) is int else None
    if "flat_weights" in checkpoint:
        flat = checkpoint["flat_weights"]
        if type(flat) is not int:
            return TraxFile(_tensors(flat, size, path), step, "flat weights in the pickle")
        weights = base.with_name(base.name + ".weights.npy.gz")
        if weights.exists():
            return TraxFile(_floats(read_npy_stream(weights), weights), step, "weights.npy.gz")
        return TraxFile(_read_shards(path, flat), step, "shards")
    if "weights" in checkpoint:
        return TraxFile(_tensors(checkpoint["weights"], size, path), step, "nested weights in the pickle")
    keys = str(sorted(map(str, checkpoint)))[:300]
    raise ValueError(f"{path} has the keys {keys}, but no `flat_weights` and no `weights`.")


def _unpickle(path):
    """The object and how many bytes it was read from."""
    with BoundedFile(path) as file:
        data = file.read_all()
    try:
        return read_pickle(data), len(data)
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}.") from error


def _read_shards(path, count):
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"{path} has {count} shards, but must have 1 to {MAX_SHARDS}, or weights in a .npy.gz file.")
    shards = [path.with_name(f"{path.name}.shard{i}") for i in range(count)]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise ValueError(f"{path} has its weights in other files; missing are {', '.join(missing)}.")
    return [array for shard in shards for array in _tensors(*_unpickle(shard), shard)]


def _tensors(tree, size, path):
    """The arrays of a tree that was read from `size` bytes, as tensors."""
    arrays = _leaves(tree, path)
    check_bytes(arrays, size, path)
    return _floats([array.to_tensor() for array in arrays], path)


def _leaves(tree, path):
    """The arrays of a tree of lists and tuples, depth first, still described.

    Empty parts and markers of shared weights are left out.
    """
    arrays, pending, nodes = [], [(tree, 0)], 0
    while pending:
        node, depth = pending.pop()
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"{path}: the tree of weights has more than {MAX_NODES:,} nodes or {MAX_DEPTH} levels.")
        if isinstance(node, Array):
            arrays.append(node)
        elif isinstance(node, tuple) and len(node) == 2 and node[1] == "bfloat16" and isinstance(node[0], Array):
            arrays.append(node[0])
        elif isinstance(node, list | tuple):
            pending.extend((child, depth + 1) for child in reversed(node))
        elif not isinstance(node, dict) and node is not None:
            raise ValueError(f"{path}: among the weights stands a {type(node).__name__}.")
    return arrays


def _floats(arrays, path):
    wrong = [f"array {i} of {a.dtype}" for i, a in enumerate(arrays) if not a.is_floating_point()]
    if wrong:
        raise ValueError(f"{path}: weights must be floating-point numbers; {', '.join(wrong)}.")
    return arrays
