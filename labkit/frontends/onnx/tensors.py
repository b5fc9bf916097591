"""Tensors of an ONNX file as NumPy arrays, with bounds on what is read."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError, UnsupportedOperation

__all__ = ["LARGEST_TENSOR", "LARGEST_WEIGHTS", "TensorReader", "checked_shape", "read_regular_file", "widened"]

LARGEST_TENSOR = 2**27  # elements
LARGEST_WEIGHTS = 2**28  # bytes of all tensors of a file together, as arrays
_BITS = {21: 4, 22: 4, 25: 2, 26: 2}  # UINT4, INT4, UINT2, INT2: so many bits an element, the first in the lowest
_SIGNED = (22, 26)
_PLAIN = range(1, 17)  # types whose raw data are the elements one after the other, little-endian
_STRING, _BOOL = 8, 9
_SMALL_FLOATS = (17, 18, 19, 20, 24)  # one byte each


class TensorReader:
    """Reads the tensors of one file; what they take together is bounded.

    folder : where external data may lie, or None where there may be none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._bytes = 0

    def read(self, tensor: Any) -> NDArray[Any]:
        """The array of ``tensor``, a TensorProto; four- and two-bit integers as arrays of ml_dtypes' types, read-only.

        Raises
        ------
        ModelError
            Its shape and its data do not fit, it is too large, or its external data lies outside the model's folder.
        UnsupportedOperation
            It holds a type that is not read here.
        """
        from onnx import helper

        name = tensor.name or "a tensor"
        shape = checked_shape(name, tensor.dims)
        count, kind = math.prod(shape), tensor.data_type
        if kind not in _PLAIN and kind not in _BITS and kind not in _SMALL_FLOATS:
            raise UnsupportedOperation(f"Tensor {name!r} holds type {kind} of ONNX, which labkit does not read.")
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
        if kind == _STRING:
            return self._strings(tensor, shape)
        self._bytes += count * dtype.itemsize
        if self._bytes > LARGEST_WEIGHTS:
            raise ModelError(
                f"Its tensors take more than {LARGEST_WEIGHTS:,} bytes. labkit reads networks up to that size."
            )
        size = (count * _BITS.get(kind, 8 * dtype.itemsize) + 7) // 8
        if tensor.data_location == tensor.EXTERNAL:
            raw = self._external(tensor, name, size)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
        else:
            return self._listed(tensor, name, shape)
        if len(raw) != size:
            raise ModelError(
                f"Tensor {name!r} of shape {shape} and type {dtype} takes {size:,} bytes, the file holds {len(raw):,}."
            )
        if kind in _BITS:
            array = _unpacked(np.frombuffer(raw, np.uint8), count, _BITS[kind], kind in _SIGNED)
            return _frozen(array.astype(dtype).reshape(shape))
        if kind == _BOOL:
            return _frozen((np.frombuffer(raw, np.uint8) != 0).reshape(shape))
        array = np.frombuffer(raw, np.dtype(np.uint8) if kind in _SMALL_FLOATS else _little(dtype))
        return _frozen((array.view(dtype) if kind in _SMALL_FLOATS else array.astype(dtype, copy=False)).reshape(shape))

    def _listed(self, tensor: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """From numbers that are listed one by one."""
        from onnx import numpy_helper

        lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        held, count = sum(map(len, lists)), math.prod(shape)
        bits = _BITS.get(tensor.data_type, 8)
        wanted = (count * bits + 7) // 8 if bits < 8 else count * (2 if tensor.data_type in (14, 15) else 1)
        if held != wanted:
            raise ModelError(f"Tensor {name!r} of shape {shape} needs {wanted:,} numbers, the file lists {held:,}.")
        return _frozen(np.asarray(numpy_helper.to_array(tensor)).reshape(shape))

    def _strings(self, tensor: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        values = [bytes(value).decode("utf-8", "replace") for value in tensor.string_data]
        if len(values) != math.prod(shape):
            raise ModelError(f"Tensor {tensor.name!r} of shape {shape} holds {len(values)} strings.")
        array = np.empty(len(values), object)
        array[:] = values
        return _frozen(array.reshape(shape))

    def _external(self, tensor: Any, name: str, size: int) -> bytes:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        parts = PurePosixPath(location).parts
        if self._folder is None:
            raise ModelError(
                f"Tensor {name!r} is kept in the file {location!r}: save the model with its weights in it."
            )
        unsound = not parts or location.startswith("/") or "\\" in location or ":" in location or "\0" in location
        if unsound or ".." in parts:
            raise ModelError(
                f"Tensor {name!r} is kept in {location!r}; only a relative path inside the model's own folder is read."
            )
        folder = self._folder.resolve()
        path = (folder / location).resolve()
        if not path.is_relative_to(folder):
            raise ModelError(f"Tensor {name!r} is kept in {location!r}, a link that leaves the model's folder.")
        offset, length = (
            _whole(name, key, entries.get(key), default) for key, default in (("offset", 0), ("length", size))
        )
        if length != size:
            raise ModelError(f"Tensor {name!r} takes {size:,} bytes, its entry says {length:,} in {location!r}.")
        return read_regular_file(path, location, offset, length)


def read_regular_file(
    path: Path,
    name: str,
    offset: int = 0,
    length: int | None = None,
    limit: int | None = None,
    suffix: str = ".onnx",
) -> bytes:
    """``length`` bytes of the file at ``path`` from ``offset`` on, or all of them: at most ``limit``.

    ``name`` stands in errors, and the ``suffix`` of what should be given. Its size is known before a byte is read, and a pipe or
    a device is not opened.

    Raises
    ------
    ModelError
        There is no such ordinary file, it cannot be read, or it is too short or too long.
    """
    article = "an" if suffix == ".onnx" else "a"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError(f"{name} is not an ordinary file. Give the path of {article} {suffix} file.")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise ModelError(f"{name} has {size:,} bytes, {limit:,} are allowed.")
            if length is None:
                length = size - offset
            if offset + length > size:
                raise ModelError(f"{name} has {size:,} bytes, bytes {offset:,} to {offset + length:,} are asked for.")
            file.seek(offset)
            data = file.read(length)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"Cannot read {name}: {reason}. Give the path of {article} {suffix} file.") from error
    if len(data) != length:
        raise ModelError(f"{name} was cut off while it was read.")
    return data


def checked_shape(name: str, dims: Any) -> tuple[int, ...]:
    """``dims`` of the tensor ``name`` as a tuple.

    Raises
    ------
    ModelError
        A dimension is negative, there are more than 16, or the tensor has more than `LARGEST_TENSOR` elements.
    """
    shape = tuple(int(size) for size in dims[:17])
    if len(shape) > 16 or any(size < 0 for size in shape):
        raise ModelError(
            f"Tensor {name!r} has the shape {shape[:16]}: up to 16 axes of 0 elements or more are allowed."
        )
    if math.prod(size for size in shape if size) > LARGEST_TENSOR:  # a 0 must not hide the others
        raise ModelError(f"Tensor {name!r} of shape {shape} is too large; {LARGEST_TENSOR:,} elements are allowed.")
    return shape


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` (any shape) with integers of four or two bits as int8 or uint8; any other array as it is."""
    kinds = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}
    return array.astype(kinds[array.dtype.name]) if array.dtype.name in kinds else array


def _unpacked(packed: NDArray[np.uint8], count: int, bits: int, signed: bool) -> NDArray[np.int8] | NDArray[np.uint8]:
    """``count`` integers of ``bits`` bits each, the first in the lowest bits of the first byte."""
    each = 8 // bits
    values = np.empty((packed.size, each), np.uint8)
    for i in range(each):
        values[:, i] = (packed >> (bits * i)) & ((1 << bits) - 1)
    flat = values.reshape(-1)[:count]
    if not signed:
        return flat
    sign = np.int8(1 << (bits - 1))
    return (flat.astype(np.int8) ^ sign) - sign


def _whole(name: str, key: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ModelError(f"Tensor {name!r}: the {key} of its external data must be a whole number, got {text[:40]!r}.")
    return int(text)


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
