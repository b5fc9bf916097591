"""Element types of ONNX as NumPy types. Those of 2 and 4 bits are the types of the package ml_dtypes, which comes with onnx."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.errors import UnsupportedOperation

__all__ = ["ELEMENT_TYPES", "dtype_of", "is_integer", "wrapped"]

# TensorProto.DataType of the ONNX specification; small floats are left out on purpose.
ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    21: "uint4",
    22: "int4",
    25: "uint2",
    26: "int2",
}
_SMALL = ("uint4", "int4", "uint2", "int2")


def dtype_of(number: int, name: str) -> np.dtype[Any]:
    """The NumPy type of the ONNX element type ``number``, for the node or tensor called ``name``.

    Raises
    ------
    UnsupportedOperation
        Strings, complex numbers, bfloat16 and the floats of 8, 6 and 4 bits.
    """
    if number not in ELEMENT_TYPES:
        raise UnsupportedOperation(
            f"{name}: element type {number} of ONNX is not supported; supported are {', '.join(ELEMENT_TYPES.values())}. "
            f"Convert the tensor to one of them."
        )
    kind = ELEMENT_TYPES[number]
    if kind not in _SMALL:
        return np.dtype(kind)
    try:
        import ml_dtypes
    except ImportError as error:
        raise UnsupportedOperation(
            f'{name}: {kind} needs the package ml_dtypes, which comes with onnx: pip install "labkit[parity]".'
        ) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, kind))
    return dtype


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` holds integers, those of 2 and 4 bits included."""
    return dtype.kind in "iu" or dtype.name in _SMALL


def wrapped(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """``values``, integers of any shape in int64, as integers of ``dtype`` [...]: high bits are dropped."""
    if dtype.kind in "iu":
        return values.astype(dtype)
    bits = int(dtype.name[-1])
    low = values & ((1 << bits) - 1)
    if dtype.name.startswith("int"):
        low = low - ((low >> (bits - 1)) << bits)
    return low.astype(np.int8).astype(dtype)
