"""An ONNX file as plain data: its nodes in running order, its constants as arrays, its borders.

`read_file` reads from a path, `read_proto` from a model in memory. Files are not trusted: their sizes are bounded before
they are parsed, shapes and data must agree, and whatever else a file provokes becomes a `ModelError`. Nothing in a file
is executed.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.onnx.names import node_names
from labkit.frontends.onnx.tensors import TensorReader, checked_shape, read_regular_file
from labkit.frontends.onnx.wire import check_wire

__all__ = ["LARGEST_FILE", "MICROSOFT", "OPSETS", "Declared", "OnnxFile", "OnnxNode", "read_file", "read_proto"]

LARGEST_FILE = 192 * 2**20  # bytes; weights may lie in files beside it
OPSETS = (13, 28)  # of ONNX's own operators: the oldest and the newest that are read
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
_NEWEST_IR = 14
_MOST_NODES, _MOST_TENSORS = 5_000, 20_000
_DOMAINS = {"": "", "ai.onnx": "", MICROSOFT: MICROSOFT}


@dataclass(frozen=True)
class OnnxNode:
    """One node of a file.

    name : its own, or its first result's where it has none; for errors.
    domain : "" for ONNX's own operators, or "com.microsoft".
    inputs, outputs : names of tensors; "" for one that is left out.
    attributes : by name: an int, a float, text, an array, or a tuple of one of these.
    """

    name: str
    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name} ({f'{self.domain}.' if self.domain else ''}{self.kind})"


@dataclass(frozen=True)
class Declared:
    """An input or output of a file: ``shape`` has None for a size that is left open; None for no shape or no type."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """What a file holds.

    path : for errors.
    nodes : in an order in which they can run, without Constant nodes.
    inputs, outputs : in the file's order; an input that has an initializer is a constant.
    constants : initializers and the results of Constant nodes, read-only, by tensor name.
    declared : what the file says of other tensors, by tensor name.
    opsets : version of each domain that the file names, "" for ONNX's own.
    names : from the name of each tensor that is an input or a node's result to a name that a node of a graph may have.
    """

    path: str
    nodes: tuple[OnnxNode, ...]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    constants: Mapping[str, NDArray[Any]]
    declared: Mapping[str, Declared]
    opsets: Mapping[str, int]
    names: Mapping[str, str]


def read_file(path: str | Path) -> OnnxFile:
    """What the ``.onnx`` file at ``path`` holds; tensors that are kept outside it are read from its own folder only.

    Raises
    ------
    ModelError
        There is no such file, it is too large, damaged or no sound network, or the package ``onnx`` is not installed.
    UnsupportedOperation
        It holds operators of an unknown domain, graphs within nodes, or sparse tensors.
    """
    onnx = _onnx()
    name = str(path)
    data = read_regular_file(Path(path), name, limit=LARGEST_FILE)
    try:
        check_wire(data, onnx.ModelProto)
        model = onnx.ModelProto()
        model.ParseFromString(data)
        del data  # the parsed model is a copy
        return _read(model, name, Path(path).parent)
    except Exception as error:
        raise _wrapped(error, name) from error


def read_proto(model: Any, name: str = "the model", oldest: int = OPSETS[0]) -> OnnxFile:
    """What ``model``, an ``onnx.ModelProto`` called ``name`` in errors, holds; its tensors must all be inside it.

    ``oldest`` is the oldest opset of ONNX's own operators that the caller can tell from the newer ones.

    Raises
    ------
    ModelError, UnsupportedOperation
        As `read_file`.
    """
    _onnx()
    try:
        return _read(model, name, None, oldest)
    except Exception as error:
        raise _wrapped(error, name) from error


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ModelError('Reading .onnx files takes the package onnx: pip install "labkit[parity]".') from error
    return onnx


def _wrapped(error: Exception, name: str) -> LabkitError:
    """``error`` as a ModelError that names the file; an operation that is not supported stays one."""
    if isinstance(error, LabkitError):
        kind = UnsupportedOperation if isinstance(error, UnsupportedOperation) else ModelError
        return kind(str(error) if name in str(error) else f"{name}: {error}")
    return ModelError(
        f"{name} does not hold a sound network ({type(error).__name__}: {str(error)[:300]}). Export the network again."
    )


def _read(model: Any, path: str, folder: Path | None, oldest: int = OPSETS[0]) -> OnnxFile:
    graph = model.graph
    if not model.HasField("graph") or not graph.node:
        raise ModelError("It holds no network: it is empty, or no ONNX file. Export the network again.")
    if model.ir_version > _NEWEST_IR:
        raise ModelError(
            f"It is of IR version {model.ir_version}, labkit reads up to {_NEWEST_IR}. Export it for an older one."
        )
    if len(graph.node) > _MOST_NODES or len(graph.initializer) > _MOST_TENSORS:
        raise ModelError(
            f"It has {len(graph.node):,} nodes and {len(graph.initializer):,} tensors; {_MOST_NODES:,} and "
            f"{_MOST_TENSORS:,} are allowed."
        )
    if graph.sparse_initializer:
        raise UnsupportedOperation("It holds sparse tensors, which labkit does not read. Store them densely.")
    opsets = _opsets(model, oldest)
    reader = TensorReader(folder)
    constants: dict[str, NDArray[Any]] = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in constants:
            raise ModelError(f"Two initializers are called {tensor.name!r}, or one has no name.")
        constants[tensor.name] = reader.read(tensor)
    inputs = tuple(_declared(value) for value in graph.input if value.name not in constants)
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = []
    for proto in graph.node:
        node = _node(proto, reader, functions)
        if node.kind == "Constant" and not node.domain:
            if len(node.outputs) != 1 or node.outputs[0] in constants:
                raise ModelError(f"{node}: a Constant has one result, with a name of its own.")
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    nodes = _sorted(nodes, {value.name for value in inputs} | set(constants))
    outputs = tuple(_declared(value) for value in graph.output)
    results = [name for node in nodes for name in node.outputs if name]
    known = {*results, *constants, *(value.name for value in inputs)}
    if len({value.name for value in inputs}) < len(inputs) or not all(value.name for value in inputs):
        raise ModelError("Two of its inputs have one name, or one has none.")
    if not outputs or (missing := [value.name for value in outputs if value.name not in known]):
        raise ModelError(f"Its outputs must be results of nodes, got {missing[:3] if outputs else 'none'}.")
    if len({value.name for value in outputs}) < len(outputs):
        raise ModelError("Two of its outputs have one name.")
    return OnnxFile(
        path,
        tuple(nodes),
        inputs,
        outputs,
        MappingProxyType(constants),
        MappingProxyType({value.name: _declared(value) for value in graph.value_info}),
        MappingProxyType(opsets),
        MappingProxyType(node_names([*(value.name for value in inputs), *results])),
    )


def _opsets(model: Any, oldest: int) -> dict[str, int]:
    opsets = {_DOMAINS.get(entry.domain, entry.domain): int(entry.version) for entry in model.opset_import}
    version = opsets.get("")
    uses_own = any(_DOMAINS.get(node.domain) == "" for node in model.graph.node)
    if uses_own and (version is None or not oldest <= version <= OPSETS[1]):
        raise ModelError(
            f"It is of opset {version}, labkit reads opsets {oldest} to {OPSETS[1]}. Export the network for one of these, or "
            f"convert it with onnx.version_converter."
        )
    return opsets


def _node(proto: Any, reader: TensorReader, functions: set[tuple[str, str]]) -> OnnxNode:
    outputs = tuple(proto.output)
    name = proto.name or next((output for output in outputs if output), proto.op_type)
    if proto.domain not in _DOMAINS:
        raise UnsupportedOperation(
            f"{name}: {proto.op_type} is an operator of the domain {proto.domain!r}; labkit knows ONNX's own and {MICROSOFT}."
        )
    if (proto.domain, proto.op_type) in functions:
        raise UnsupportedOperation(f"{name}: {proto.op_type} is a function of the file itself: export it inlined.")
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.name in attributes:
            raise ModelError(f"{name}: the attribute {attribute.name!r} stands there twice.")
        attributes[attribute.name] = _attribute(name, attribute, reader)
    node = OnnxNode(
        name, proto.op_type, _DOMAINS[proto.domain], tuple(proto.input), outputs, MappingProxyType(attributes)
    )
    if not any(outputs):
        raise ModelError(f"{node}: it has no result.")
    return node


def _attribute(node: str, attribute: Any, reader: TensorReader) -> Any:
    kind = attribute.AttributeType.Name(attribute.type)
    if attribute.ref_attr_name:
        raise ModelError(f"{node}: the attribute {attribute.name!r} refers to a function's, but it stands in none.")
    match kind:
        case "FLOAT":
            return float(attribute.f)
        case "INT":
            return int(attribute.i)
        case "STRING":
            return attribute.s.decode("utf-8", "replace")
        case "TENSOR":
            return reader.read(attribute.t)
        case "FLOATS":
            return tuple(float(value) for value in attribute.floats)
        case "INTS":
            return tuple(int(value) for value in attribute.ints)
        case "STRINGS":
            return tuple(value.decode("utf-8", "replace") for value in attribute.strings)
        case _:
            raise UnsupportedOperation(
                f"{node}: the attribute {attribute.name!r} holds a {kind}, which labkit does not run: no graphs within "
                f"nodes (If, Loop, Scan), no sparse tensors."
            )


def _constant(node: OnnxNode) -> NDArray[Any]:
    kinds: dict[str, Any] = {
        "value": None,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_string": object,
        "value_strings": object,
    }
    given = [(key, value) for key, value in node.attributes.items() if key in kinds]
    if len(given) != 1:
        raise ModelError(f"{node}: a Constant has one value, got {sorted(node.attributes)}.")
    key, value = given[0]
    if key == "value" and not isinstance(value, np.ndarray):
        raise ModelError(f"{node}: the value of a Constant must be a tensor.")
    array = value if key == "value" else np.array(value, kinds[key])
    array.flags.writeable = False
    return np.asarray(array)


def _declared(value: Any) -> Declared:
    from onnx import helper

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Declared(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Declared(value.name, dtype, None)
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim[:17]]
    checked_shape(value.name, [1 if size is None else size for size in sizes])
    return Declared(value.name, dtype, tuple(None if size is None else int(size) for size in sizes))


def _sorted(nodes: list[OnnxNode], known: set[str]) -> list[OnnxNode]:
    """``nodes`` in an order in which they can run, in the file's order where that will do."""
    makers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.outputs:
            if name and (name in makers or name in known):
                raise ModelError(f"{node}: the tensor {name!r} is made twice.")
            makers[name] = index
    waiting = []
    users: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {name for name in node.inputs if name and name not in known}
        if missing := sorted(name for name in needed if name not in makers):
            raise ModelError(f"{node}: it takes {missing[0]!r}, which is no input, constant or result of the network.")
        sources = {makers[name] for name in needed}
        waiting.append(len(sources))
        for source in sources:
            users.setdefault(source, []).append(index)
    ready = [index for index, count in enumerate(waiting) if not count]  # a sorted list is a heap
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for user in users.get(index, ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        stuck = next(node for node, count in zip(nodes, waiting, strict=True) if count)
        raise ModelError(f"{stuck}: the network goes round in a circle here, so that nothing can come first.")
    return order
