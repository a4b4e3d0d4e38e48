"""Tensors by name from safetensors files and from PyTorch's pickles, whole or in shards.

A PyTorch file is first looked through by `pickle_reader`, which executes nothing, then read by
`torch.load(weights_only=True)`: the first makes sure that nothing in it can run away with time or memory.
"""

import mmap
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open

from .bounded import read_json, regular_file_size
from .limits import check_bytes
from .pickle_reader import PERSISTENT, read_pickle
from .pickled_names import NAMES, Inert, OrderedDict

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
STORAGE_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
PROTO = b"\x80"  # the opcode that every pickle of torch.save begins with
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 4  # protocol, system, object, keys; they follow the magic number and come before raw storages


class StorageType:
    """A class of storages, which only has an element size."""

    def __init__(self, size):
        self.size = size


def find_tensors(source):
    """The file to read in a folder, or the source itself where its name is one of such a file; else None."""
    if not source.is_dir():
        return source if is_torch(source) else None
    return next((source / name for name in FILES if (source / name).exists()), None)


def is_torch(path):
    return Path(path).name.endswith((".safetensors", ".bin", ".pt", ".pth", ".index.json"))


def read_tensors(path):
    """{name: tensor} of a file, or of all files of an index.

    Raises:
        ValueError: damaged, or anything but tensors in a dictionary.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)


def _read_shards(path):
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{path} must have `weight_map`, an object from names of tensors to names of files.")
    files = sorted(set(weight_map.values()))
    outside = [name for name in files if Path(name).name != name or not is_torch(name) or name.endswith(".json")]
    missing = [name for name in files if name not in outside and not (path.parent / name).exists()]
    if outside or missing:
        raise ValueError(f"{path} names files that are not weights beside it {outside} or do not exist {missing}.")
    tensors = {}
    for name in files:
        tensors.update(read_tensors(path.parent / name))
    differing = sorted(tensors.keys() ^ weight_map.keys())
    if differing:
        raise ValueError(f"{path} and its files disagree on the tensors {differing}.")
    return tensors


def _read_safetensors(path):
    regular_file_size(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever the Rust side answers to a damaged file
        raise ValueError(f"{path} is not a sound safetensors file: {error}.") from error


def _read_pickled(path):
    size = regular_file_size(path)
    try:
        _look_through(path, size)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise ValueError(f"{path} is refused: it asks for more memory than there is.") from None
    except Exception as error:  # torch.load raises of all kinds; each means that the file is not to be read
        raise ValueError(f"{path} is refused: {str(error).splitlines()[0][:300] if str(error) else error!r}") from error
    if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors.")
    check_bytes(tensors.values(), size, path)
    return {str(name): tensor for name, tensor in tensors.items()}


def _look_through(path, size):
    """Both forms of PyTorch's files: a zip archive with uncompressed members, and a row of pickles before raw data.

    Which of them it is, `torch.load` decides by the first four bytes, so they decide here too: what stands at the end of a
    file, where other programs look for an archive, says nothing.
    """
    names = _names(size)
    with open(path, "rb") as file:
        head = file.read(len(ZIP_MAGIC))
        file.seek(0)
        if head == ZIP_MAGIC:
            _look_through_zip(file, size, names)
        elif head[:1] == PROTO:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                _look_through_pickles(stream, names)
        else:
            raise ValueError("it begins neither as a zip archive nor as a pickle")


def _look_through_zip(file, size, names):
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("its members are compressed or larger than the file")
        # torch finds members whatever the case of their names, and the first where there are several
        lower = [member.filename.lower() for member in members]
        if len(set(lower)) < len(lower) or min((member.header_offset for member in members), default=0) > 0:
            raise ValueError("two of its members have the same name, or something stands before them")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                read_pickle(archive.read(member), names)


def _look_through_pickles(stream, names):
    if read_pickle(stream, names) != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save writes")
    for _ in range(LEGACY_PICKLES):
        read_pickle(stream, names)


def _names(size):
    """The names in a state dictionary; all of them stand for nothing."""

    def storage(persistent_id):
        kind, count = persistent_id[1], persistent_id[4]
        if persistent_id[0] != "storage" or not isinstance(kind, StorageType) or type(count) is not int:
            raise ValueError("a storage is malformed")
        if not 0 <= count * kind.size <= size:
            raise ValueError(f"a storage is said to have {count:,} elements, more than the file can hold")
        return Inert()

    names = {("torch", name): StorageType(item) for name, item in STORAGE_SIZES.items()}
    names |= {("torch._utils", f"_rebuild_{what}"): Inert for what in ("tensor_v2", "tensor", "parameter")}
    names |= {("collections", "OrderedDict"): OrderedDict, PERSISTENT: storage}
    names |= {("numpy.core.multiarray", "scalar"): NAMES["numpy.core.multiarray", "scalar"]}
    return names
