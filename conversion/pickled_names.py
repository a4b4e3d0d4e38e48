"""The names that pickles of Trax checkpoints contain, and what stands for each: nothing of what they name is imported.

Arrays stay descriptions until shape, type and number of bytes agree.
"""

import math

import numpy as np
import torch

MAX_DIMENSIONS = 16
MAX_SIZE = 2**62  # of one dimension
BFLOAT16 = "bfloat16"
ITEM_SIZES = {
    "f2": 2,
    "f4": 4,
    "f8": 8,
    "i1": 1,
    "i2": 2,
    "i4": 4,
    "i8": 8,
    "u1": 1,
    "u2": 2,
    "u4": 4,
    "u8": 8,
    "b1": 1,
}
ITEM_SIZES[BFLOAT16] = 2


class Dtype:
    """`numpy.dtype(code, align, copy)`, then its state, of which only the byte order counts."""

    def __init__(self, code="", *unused):
        code = BFLOAT16 if code is BFLOAT16_NAME else code
        if not isinstance(code, str):
            raise ValueError("an array of a type that is not given as text")
        order, code = (code[0], code[1:]) if code[:1] in tuple("<>|=") else ("<", code)
        if code not in ITEM_SIZES:
            raise ValueError(f"an array of type {code[:80]!r}; only numbers of {', '.join(ITEM_SIZES)} are read")
        self.code, self.order = code, "<" if order in "|=" else order

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("the state of an array type is malformed")
        self.order = "<" if state[1] in "|=" else state[1]


class Array:
    """An array, described: filled by `set_state`, checked there."""

    shape, data = None, b""

    @property
    def nbytes(self):
        return len(self.data)

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("the state of an array is malformed")
        _, self.shape, self.dtype, self.column_major, self.data = state
        self._check()
        return self

    def _check(self):
        shape, dtype, data = self.shape, self.dtype, self.data
        whole = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS
        if not whole or not all(type(size) is int and 0 <= size < MAX_SIZE for size in shape):
            raise ValueError(f"an array has a shape that is not a tuple of up to {MAX_DIMENSIONS} sizes")
        if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
            raise ValueError("an array is not made of plain numbers")
        expected = math.prod(shape) * ITEM_SIZES[dtype.code]
        if len(data) != expected:
            raise ValueError(f"an array of shape {shape} and type {dtype.code} has {len(data)} bytes, not {expected}")

    def to_tensor(self):
        """A tensor; 16-bit unsigned integers are bfloat16 bits, as Trax stores them."""
        if self.shape is None:
            raise ValueError("an array without contents")
        order = "F" if self.column_major is True else "C"
        bits = self.dtype.code in (BFLOAT16, "u2")
        code = "i2" if bits else "?" if self.dtype.code == "b1" else self.dtype.code
        array = np.frombuffer(self.data, self.dtype.order + code).reshape(self.shape, order=order)
        return tensor_of(array, bits)


def tensor_of(array, bfloat16_bits):
    """A tensor with its own memory, in the machine's byte order."""
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if bfloat16_bits else tensor


class Inert:
    """An object of a class that is not looked into."""

    def __init__(self, *unused):
        pass

    def set_state(self, state):
        pass


class OrderedDict(dict):
    """A dictionary with attributes, which are not looked into."""

    def __init__(self, *unused):
        super().__init__()

    def set_state(self, state):
        pass


class Name:
    """A name that may be passed on, but is nothing to call."""


NDARRAY, LIST, BFLOAT16_NAME = Name(), Name(), Name()


def _reconstruct(kind, *unused):
    if kind is not NDARRAY:
        raise ValueError("an array of another class than numpy.ndarray")
    return Array()


def _scalar(dtype, data):
    return Array().set_state((1, (), dtype, False, data))


def _from_buffer(data, dtype, shape, order, *unused):
    return Array().set_state((1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray) else data))


def _jax_array(function, arguments, array_state, *unused):
    if function is not _reconstruct or not isinstance(arguments, tuple):
        raise ValueError("a JAX array that is not made from a NumPy array")
    return _reconstruct(*arguments).set_state(array_state)


def _empty_dict(*unused):
    return {}


def _encode(text, encoding):
    """Bytes as pickles of protocol 2 and below hold them: as text of the characters 0 to 255."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes that are not written as Latin-1 text")
    return text.encode("latin-1")


def _empty_bytes(*unused):
    return b""


NAMES = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): Dtype,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("trax.shapes", "ShapeDtype"): Inert,
    ("trax.history", "History"): Inert,
    ("trax.supervised.history", "History"): Inert,
    ("collections", "defaultdict"): _empty_dict,
    ("builtins", "list"): LIST,
    ("__builtin__", "list"): LIST,  # the name in pickles of protocol 2 and below
    ("__builtin__", "bytes"): _empty_bytes,
    ("_codecs", "encode"): _encode,
    ("ml_dtypes", "bfloat16"): BFLOAT16_NAME,
}
for _numpy in ("numpy.core", "numpy._core"):  # the name before and after NumPy 2
    NAMES[f"{_numpy}.multiarray", "_reconstruct"] = _reconstruct
    NAMES[f"{_numpy}.multiarray", "scalar"] = _scalar
    NAMES[f"{_numpy}.numeric", "_frombuffer"] = _from_buffer

CALLABLE = [
    Dtype, Inert, OrderedDict, _reconstruct, _scalar, _from_buffer, _jax_array, _empty_dict, _encode, _empty_bytes,
]  # fmt: skip
