"""Tensors as files hold them: their dtypes, bfloat16 without loss, and tensors that are read when they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bertkit.core.errors import CheckpointError

STORED_AS = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
"""How numpy holds each dtype of safetensors; in the order in which a file, from its end, stores them."""

BITS_ONLY = ("BF16", "F8_E5M2", "F8_E4M3")
"""Dtypes that numpy lacks and holds as bare bits."""

FLOAT_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The dtypes that a checkpoint can be converted to, by their usual names."""

CONVERTIBLE = ("F64", "F32", "F16", "BF16")
BLOCK = 2**18
NAME_OF = {dtype: name for name, dtype in STORED_AS.items() if name not in BITS_ONLY}


@dataclass(frozen=True, eq=False)
class RawTensor:
    """The bits of a tensor whose dtype numpy lacks.

    Args:
        bits: unsigned integers of the width of the dtype, in the shape of the tensor.
        dtype: the dtype in the spelling of safetensors, such as "BF16".

    Example:
        >>> float(widen(RawTensor(np.array([0x3F80], np.uint16), "BF16"))[0])
        1.0
    """

    bits: np.ndarray
    dtype: str


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor whose shape and dtype are known and whose values are read when it is called.

    Args:
        shape: the shape.
        dtype: the dtype in the spelling of safetensors, such as "F32".
        read: gives the values, anew each time.
        position: where its bytes begin in its source, so that a compressed source can be read in order.

    Example:
        >>> LazyTensor((2, 3), "F32", lambda: np.zeros((2, 3), np.float32))().sum()
        np.float32(0.0)
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray | RawTensor]
    position: int = 0

    def __call__(self) -> np.ndarray | RawTensor:
        return self.read()

    def __setstate__(self, state: object) -> None:
        # A pickle that is being read may try to exchange the attributes of what it made.
        raise TypeError("a lazy tensor cannot be changed")

    @property
    def size(self) -> int:
        """Bytes of the values in a file."""
        return math.prod(self.shape) * STORED_AS[self.dtype].itemsize


def lazy(value: np.ndarray | RawTensor | LazyTensor) -> LazyTensor:
    """Any kind of tensor as a lazy one.

    Raises:
        CheckpointError: when no checkpoint can hold the array's dtype.
    """
    if isinstance(value, LazyTensor):
        return value
    bits, dtype = stored(value)
    return LazyTensor(bits.shape, dtype, lambda: value)


def stored(value: np.ndarray | RawTensor) -> tuple[np.ndarray, str]:
    """The bits of a tensor as numpy holds them, and the name of its dtype."""
    if isinstance(value, RawTensor):
        return value.bits, value.dtype
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # TensorFlow's arrays have it, from a package that is not needed here
        return array.view(np.uint16), "BF16"
    dtype = array.dtype.newbyteorder("<")
    if dtype not in NAME_OF:
        raise CheckpointError(
            f"a checkpoint cannot hold arrays of dtype {array.dtype}", remedy=f"It can hold {', '.join(STORED_AS)}."
        )
    return array.astype(dtype, copy=False), NAME_OF[dtype]


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray | RawTensor:
    """A tensor from the array that holds it and the name of its dtype: the inverse of `stored`."""
    return RawTensor(bits, dtype) if dtype in BITS_ONLY else bits


def zeros(shape: tuple[int, ...], dtype: str = "F32") -> LazyTensor:
    """A tensor of zeros.

    Example:
        >>> zeros((2,), "F16")()
        array([0., 0.], dtype=float16)
    """
    return LazyTensor(shape, dtype, lambda: from_bits(np.zeros(shape, STORED_AS[dtype]), dtype))


def widen(value: np.ndarray | RawTensor) -> np.ndarray:
    """The values as an ordinary array: bfloat16 becomes float32, exactly; all else is passed on.

    Raises:
        CheckpointError: for the 8-bit floats, which numpy lacks.
    """
    if not isinstance(value, RawTensor):
        return value
    if value.dtype != "BF16":
        raise CheckpointError(
            f"numpy has no {value.dtype} numbers", remedy="Read the bits with `read_raw`, or convert the file first."
        )
    # astype and << would each turn a single number into a scalar, which has no view.
    wide = np.empty(value.bits.shape, np.uint32)
    np.left_shift(value.bits, 16, out=wide, dtype=np.uint32)
    return wide.view(np.float32)


def converted(name: str, tensor: LazyTensor, dtype: str) -> LazyTensor:
    """The tensor with its values in another float dtype; integers and booleans stay what they are.

    Args:
        name: the tensor's name, for the error message.
        tensor: the tensor.
        dtype: "F32", "F16" or "BF16".
    """
    if tensor.dtype not in CONVERTIBLE or tensor.dtype == dtype:
        return tensor
    return LazyTensor(tensor.shape, dtype, lambda: _convert(name, tensor(), dtype), tensor.position)


def _convert(name: str, value: np.ndarray | RawTensor, dtype: str) -> np.ndarray | RawTensor:
    bits, old = stored(value)
    flat = np.ascontiguousarray(bits).reshape(-1)
    result = np.empty(flat.shape, STORED_AS[dtype])
    lost, largest = 0, 0.0
    # Block by block: the steps in between would each take as much memory as the tensor, or twice as much.
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        numbers = widen(from_bits(part, old))
        made, rounded = _rounded(numbers, dtype)
        result[start : start + BLOCK] = made
        gone = np.isinf(rounded) & np.isfinite(numbers)
        if gone.any():
            lost, largest = lost + int(gone.sum()), max(largest, float(np.abs(numbers[gone]).max()))
    if lost:
        raise CheckpointError(
            f"{name} does not fit into {dtype}: {lost} numbers up to {largest:.4g} would overflow",
            remedy="Choose a dtype with a larger range (bfloat16 or float32).",
        )
    return from_bits(result.reshape(bits.shape), dtype)


def _rounded(numbers: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as they are stored in another dtype, and as numbers again."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = numbers.astype(np.float16 if dtype == "F16" else np.float32, copy=False)
    if dtype != "BF16":
        return narrow, narrow
    bits = _round_to_bfloat16(narrow)
    return bits, widen(RawTensor(bits, "BF16"))


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    nearest_even = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN into an infinity: those keep their upper half and get the quiet bit.
    return np.asarray(np.where(np.isnan(values), (bits >> 16) | 0x40, nearest_even), np.uint16)
