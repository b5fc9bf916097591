r"""``.lab`` files: a magic word, a version, a JSON header that describes the graph, and a safetensors body with its arrays.

    offset 0   8 bytes  b"labkit\0\n"
           8   4 bytes  version, little-endian
          12   8 bytes  length of the header in bytes
          20  32 bytes  SHA-256 of header and body
          52            header, UTF-8 JSON: the graph's nodes
                        body, safetensors

Version 2 knows the operations of `SINCE_2` too, version 3 those of `SINCE_3`, version 4 those of `SINCE_4` and the fields that
say so, version 5 those of `SINCE_5` and numbers of 16 bits. A graph is written as the lowest version that knows all of it, so
that older labkits read what they can.

Nothing in a file is executed: the header names classes from a fixed list, and arrays are plain numbers. Weights of four
bits or fewer are packed two to a byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.packing import pack_int4, unpack_int4
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import LabkitError, ModelError
from labkit.files import write_atomically
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor

__all__ = ["VERSION", "dumps", "load", "loads", "save"]

MAGIC = b"labkit\0\n"
VERSION = 5  # the newest that is read
_HEAD = struct.Struct("<8sIQ32s")
_LARGEST_HEADER = 64 * 2**20

SINCE_2 = (
    "AdaptiveAveragePool2d",
    "ArgMax",
    "Multiply",
    "Pad",
    "Reshape",
    "Softmax",
    "Transpose",
)  # operations that a file of version 1 does not have
SINCE_3 = ("UpsampleNearest2d",)
SINCE_4 = (
    "AddAwayFromZero",
    "AddDequantized",
    "AddFixedPoint",
    "AddFloat32",
    "AveragePoolFloat32",
    "AveragePoolOfValid",
    "Constant",
    "Input",
    "Lookup",
    "MeanFloat32",
    "QuantizeAwayFromZero",
    "QuantizeByReciprocal",
    "SoftmaxByReciprocal",
    "SoftmaxFixedPoint",
    "SoftmaxFloat32",
)
SINCE_5 = ("Embedding", "GeluPolynomial", "LayerNorm", "MatMul", "SoftmaxPolynomial")

_CLASSES = {
    cls.__name__: cls
    for cls in (
        *(IntNode, Tensor, QuantSpec, QParams, PerTensor, PerAxis, FixedPointMultiplier, Requantizer),
        *(getattr(int_ops, name) for name in int_ops.__all__ if name != "IntOp"),
    )
}


def save(graph: IntGraph, path: str | Path) -> None:
    """Write ``graph`` to ``path``, whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_atomically(path, dumps(graph))


def load(path: str | Path) -> IntGraph:
    """Read and validate the graph in the ``.lab`` file at ``path``.

    Raises
    ------
    ModelError
        There is no such file, or it is not a whole ``.lab`` file of a version that this labkit reads.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise ModelError(f"Cannot read {path}: it is no file. Give the path of a .lab file.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"Cannot read {path}: {reason}. Give the path of a .lab file.") from error
    return loads(data, str(path))


def dumps(graph: IntGraph) -> bytes:
    """``graph`` as the bytes of a ``.lab`` file; equal graphs give equal bytes."""
    from safetensors.numpy import save as save_tensors

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    nodes = [_encode(node, node.name, arrays) for node in graph.nodes]
    body = save_tensors(arrays)
    header = {
        "outputs": list(graph.outputs),
        "notes": dict(graph.notes),
        "nodes": nodes,
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return _HEAD.pack(MAGIC, _version_of(graph), len(text), hashlib.sha256(text + body).digest()) + text + body


def loads(data: bytes, name: str = "the data") -> IntGraph:
    """The graph in ``data``, the bytes of a ``.lab`` file called ``name`` in errors.

    Raises
    ------
    ModelError
        The bytes are truncated, damaged, of another kind or of a newer version.
    """
    from safetensors.numpy import load as load_tensors

    if data[:8] != MAGIC:
        raise ModelError(
            f"{name} is not a .lab file: it does not start with labkit's mark. Make one with `labkit quantize`."
        )
    if len(data) < _HEAD.size:
        raise ModelError(f"{name} is cut off inside its header. Copy it again, or quantize the network again.")
    _, version, length, digest = _HEAD.unpack_from(data)
    if not 1 <= version <= VERSION:
        raise ModelError(
            f"{name} has version {version}, this labkit reads versions 1 to {VERSION}. Quantize the network again."
        )
    if length > min(len(data) - _HEAD.size, _LARGEST_HEADER):
        raise ModelError(f"{name} is cut off inside its header. Copy it again, or quantize the network again.")
    if hashlib.sha256(memoryview(data)[_HEAD.size :]).digest() != digest:
        raise ModelError(f"{name} is damaged or cut off: it does not match its checksum. Copy it again.")
    try:
        header = json.loads(data[_HEAD.size : _HEAD.size + length])
        arrays = load_tensors(data[_HEAD.size + length :])
        nodes = tuple(_decode(node, arrays) for node in header["nodes"])
        if not all(isinstance(node.name, str) for node in nodes):
            raise ModelError("A node's name must be text.")
        graph = IntGraph(nodes, tuple(header["outputs"]), header["notes"])
        if version != _version_of(graph):  # which the checksum does not cover
            raise ModelError(
                f"It says version {version} and holds what version {_version_of(graph)} writes: it is damaged."
            )
        return graph
    except LabkitError as error:
        raise ModelError(error if name in str(error) else f"{name} does not hold a sound network. {error}") from error
    except Exception as error:  # whatever a hostile header provokes, the file is at fault
        raise ModelError(
            f"{name} does not hold a sound network ({type(error).__name__}: {error}). Quantize the network again."
        ) from error


def _version_of(graph: IntGraph) -> int:
    """The lowest version that knows every operation of ``graph``."""
    used = {type(node.op).__name__ for node in graph}
    since = {5: SINCE_5, 4: SINCE_4, 3: SINCE_3, 2: SINCE_2}
    by_operation = max((version for version, names in since.items() if used & set(names)), default=1)
    by_width = 5 if any(node.output.spec is not None and node.output.spec.is_wide for node in graph) else 1
    return max(by_operation, by_width, *(_newest_field(node) for node in graph))


def _newest_field(value: Any) -> int:
    """The version that knows every field of ``value`` and of what it holds."""
    if isinstance(value, tuple):
        return max((_newest_field(item) for item in value), default=1)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return 1
    versions = [1]
    for f in dataclasses.fields(value):
        if not _is_left_out(value, f):
            versions += [f.metadata.get("since", 1), _newest_field(getattr(value, f.name))]
    return max(versions)


def _is_left_out(value: Any, f: dataclasses.Field[Any]) -> bool:
    """Whether a field that version 1 does not know has its default, so that it need not be written."""
    held = getattr(value, f.name)
    return f.metadata.get("since", 1) > 1 and not isinstance(held, np.ndarray) and bool(held == f.default)


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, QTensor):
        encoded = {"class": "QTensor", "spec": _encode(value.spec, path, arrays), "shape": list(value.values.shape)}
        packed = value.spec.bits <= 4
        arrays[f"{path}.values"] = pack_int4(value.values) if packed else np.ascontiguousarray(value.values)
        return encoded | {"values": f"{path}.values", "params": _encode(value.params, path, arrays)}
    if isinstance(value, np.ndarray):
        arrays[path] = np.array(value, order="C")  # ascontiguousarray would give a scalar an axis
        return {"array": path}
    if isinstance(value, Enum):
        return {"enum": value.value}
    if dataclasses.is_dataclass(value):
        fields = {
            f.name: _encode(getattr(value, f.name), f"{path}.{f.name}", arrays)
            for f in dataclasses.fields(value)
            if not _is_left_out(value, f)
        }
        return {"class": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_encode(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


_PLAIN = {"int": int, "bool": bool, "str": str}  # of which JSON may hold another, and True is an int to Python


def _decode(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, arrays) for item in value)
    if isinstance(value, float):
        raise ModelError(f"A graph holds whole numbers outside its arrays, got {value}.")
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "enum" in value:
        return RoundingRule(value["enum"])
    if value["class"] == "QTensor":
        spec: QuantSpec = _decode(value["spec"], arrays)
        values, shape = arrays[value["values"]], tuple(value["shape"])
        if spec.bits <= 4:
            values = unpack_int4(values, shape, spec.signed)
        if values.shape != shape:
            raise ModelError(f"{value['values']} has shape {values.shape}, {shape} is declared.")
        return QTensor(values, _decode(value["params"], arrays), spec)
    fields = {key: _decode(item, arrays) for key, item in value.items() if key != "class"}
    made = _CLASSES[value["class"]]
    for f in dataclasses.fields(made):
        if f.name in fields and not _is_of(str(f.type), fields[f.name]):
            raise ModelError(f"{f.name} of {made.__name__} is of the type {f.type}, got {fields[f.name]!r}.")
    return made(**fields)


def _is_of(declared: str, value: Any) -> bool:
    """Whether ``value`` is of the type that a field is ``declared`` to have, as far as JSON may hold another."""
    if declared == "tuple[int, int]":
        return isinstance(value, tuple) and len(value) == 2 and all(type(part) is int for part in value)
    return type(value) is _PLAIN.get(declared, type(value))
