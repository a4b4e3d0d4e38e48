"""Gzipped streams of consecutive `.npy` arrays, as Trax 1.3.8 and later store weights. No pickle is involved.

bfloat16 is stored as its bits, in unsigned 16-bit integers; no Trax weight is an integer, so all such arrays are bfloat16.
"""

import gzip
import io
import math
import re

import numpy as np
import torch

from .bounded import BoundedFile
from .pickled_names import ITEM_SIZES, MAX_DIMENSIONS, tensor_of

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096  # bytes
MAX_ARRAYS = 100_000
HEADER = re.compile(
    r"\{'descr': '([<>|=]?)([a-z]\d)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}, ?)*\d{0,18},?)\),? ?\}\s*"
)
GZIP_LEVEL = 2  # Trax's


def read_npy_stream(path):
    """The arrays of a `.npy.gz` file as tensors, in their order.

    Raises:
        ValueError: the stream is damaged, cut short, or a header claims what the file does not hold.
    """
    arrays = []
    with BoundedFile(path) as file:
        while magic := file.read(len(MAGIC)):
            if magic != MAGIC or len(arrays) >= MAX_ARRAYS:
                raise ValueError(f"{path}: what follows array {len(arrays) - 1} is not an .npy array.")
            arrays.append(_read_array(file, f"array {len(arrays)}"))
    return arrays


def _read_array(file, what):
    version = file.read_exactly(2, f"the header of {what}")
    if version[0] not in (1, 2, 3):
        raise ValueError(f"{file.path}: {what} has the .npy version {version[0]}, but must have 1, 2 or 3.")
    size = int.from_bytes(file.read_exactly(2 if version[0] == 1 else 4, f"the header of {what}"), "little")
    if size > MAX_HEADER:
        raise ValueError(f"{file.path}: {what} has a header of {size:,} bytes, but at most {MAX_HEADER:,} are read.")
    header = file.read_exactly(size, f"the header of {what}").decode("latin-1")
    match = HEADER.fullmatch(header)
    if match is None or match[2] not in ITEM_SIZES:
        raise ValueError(f"{file.path}: {what} has the header {header.strip()[:100]!r}, not one of plain numbers.")
    order, code, column_major, shape = match.groups()
    shape = tuple(int(size) for size in shape.split(",") if size.strip())
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{file.path}: {what} has {len(shape)} dimensions, but at most {MAX_DIMENSIONS} are read.")
    data = file.read_exactly(math.prod(shape) * ITEM_SIZES[code], f"{what} of shape {shape}")
    numpy_code = {"u2": "i2", "b1": "?"}.get(code, code)
    array = np.frombuffer(data, (order if order in "<>" else "<") + numpy_code if numpy_code != "?" else "?")
    return tensor_of(array.reshape(shape, order="F" if column_major == "True" else "C"), code == "u2")


def write_npy_stream(path, tensors):
    """The reverse; the same tensors always give the same bytes."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as stream:
        for tensor in tensors:
            tensor = tensor.detach().cpu().contiguous()
            bits = tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else None
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, tensor.numpy() if bits is None else bits, allow_pickle=False)
            stream.write(buffer.getvalue())
