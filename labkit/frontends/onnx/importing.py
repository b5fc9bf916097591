"""`read_onnx`: from an ONNX file to an integer network, under labkit's own rules.

Two formats hold integer networks. In one (QOperator) operators take integers, with scales and zero points as inputs. In the
other (QDQ) operators are those of a float network, between DequantizeLinear and QuantizeLinear nodes. Nodes are taken in
running order, and each says what its result is (`labkit.frontends.onnx.values`); an operation on real numbers that stand for
integers waits until a QuantizeLinear says on which grid its result lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.errors import LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.onnx.building import Building
from labkit.frontends.onnx.folding import folded
from labkit.frontends.onnx.integer_operators import INTEGER_OPERATORS
from labkit.frontends.onnx.moving import MOVING
from labkit.frontends.onnx.reading import MICROSOFT, Declared, OnnxFile, OnnxNode, read_file
from labkit.frontends.onnx.real_operators import REAL_OPERATORS
from labkit.frontends.onnx.values import Dequantized, Index, Integers, Real, Value, activation_grid, refuse
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, Tensor

__all__ = ["IN_FLOAT", "integer_graph", "read_onnx"]

IN_FLOAT = "float_in_onnxruntime"
"""The note that names nodes which onnxruntime does not compute in integers, so that its rounding may differ from its rules.

Operations between DequantizeLinear and QuantizeLinear that it does not fuse, and sums whose first operand is a constant that is
repeated for the second.
"""

_MOST_SOFTMAXES, _MOST_INPUTS = 200, 200
_OWN_DOMAIN = ("QLinearConv", "QLinearMatMul")  # of the integer operators, those of ONNX itself
_BOTH_DOMAINS = ("QuantizeLinear", "DequantizeLinear")
_QUANTIZED = (
    *_BOTH_DOMAINS,
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
)  # a float network has none of them


def read_onnx(path: str | Path) -> IntGraph:
    """The integer network in the ``.onnx`` file at ``path``, in the formats QOperator or QDQ.

    Its nodes have the names of the file's tensors (`OnnxFile.names`), and carry those that were fused.

    Raises
    ------
    ModelError
        There is no such file, it is damaged, or it holds no sound network.
    UnsupportedOperation
        A part of it computes in real numbers, or has no integer form here; the message names the node.
    """
    return integer_graph(read_file(path))


def integer_graph(file: OnnxFile) -> IntGraph:
    """The integer network in ``file``.

    Raises
    ------
    ModelError, UnsupportedOperation
        As `read_onnx`.
    """
    try:
        return _imported(file)
    except UnsupportedOperation as error:
        raise UnsupportedOperation(str(error) if file.path in str(error) else f"{file.path}: {error}") from error
    except LabkitError as error:
        raise ModelError(str(error) if file.path in str(error) else f"{file.path}: {error}") from error
    except Exception as error:  # whatever a hostile file provokes, the file is at fault
        raise ModelError(
            f"{file.path} does not hold a sound network ({type(error).__name__}: {str(error)[:300]}). Export it again."
        ) from error


def _imported(file: OnnxFile) -> IntGraph:
    if (count := sum(node.kind in ("Softmax", "QLinearSoftmax") for node in file.nodes)) > _MOST_SOFTMAXES:
        raise ModelError(
            f"It has {count} softmax nodes; {_MOST_SOFTMAXES} are allowed, because each takes a table of its own."
        )
    if len(file.inputs) > _MOST_INPUTS:
        raise ModelError(f"It has {len(file.inputs):,} inputs; {_MOST_INPUTS} are allowed.")
    real = any(declared.dtype == np.float32 for declared in file.inputs)
    if real and not any(node.kind in _QUANTIZED or node.kind in INTEGER_OPERATORS for node in file.nodes):
        raise UnsupportedOperation(
            "It is a float network: nothing in it is quantized. Make an integer one of it with `labkit quantize`, or have it "
            "evaluated node by node with `labkit run`."
        )
    if dynamic := next((node for node in file.nodes if node.kind == "DynamicQuantizeLinear"), None):
        raise refuse(
            dynamic,
            "it takes a scale of its own from each input (dynamic quantization), and labkit's networks have fixed ones: quantize "
            "the network statically.",
        )
    state, users = Building(file), _users(file)
    for declared in file.inputs:
        _enter(state, declared, users)
    for node in file.nodes:
        if folded(state, node):
            continue
        try:
            result = _translator(node)(state, node)
        except LabkitError as error:
            raise error if str(error).startswith(node.name) else type(error)(f"{node}: {error}") from error
        state.values[node.outputs[0]] = result
    outputs = tuple(_leave(state, declared) for declared in file.outputs)
    notes = {"source": {"file": Path(file.path).name, "format": "onnx", "opset": file.opsets.get("", 0)}}
    return IntGraph(state.nodes, outputs, {**notes, IN_FLOAT: state.in_float} if state.in_float else notes)


def _translator(node: OnnxNode) -> Callable[[Building, OnnxNode], Value]:
    kind, microsoft = node.kind, node.domain == MICROSOFT
    if kind in INTEGER_OPERATORS and microsoft != (kind in _OWN_DOMAIN):
        return INTEGER_OPERATORS[kind]
    if kind in REAL_OPERATORS and (not microsoft or kind in _BOTH_DOMAINS):
        return REAL_OPERATORS[kind]
    if kind in MOVING and not microsoft:
        return MOVING[kind]
    raise refuse(node, "its operator has no integer form here.")


def _users(file: OnnxFile) -> dict[str, list[OnnxNode]]:
    """By tensor's name, the nodes of ``file`` that take it."""
    users: dict[str, list[OnnxNode]] = {}
    for node in file.nodes:
        for name in dict.fromkeys(node.inputs):
            users.setdefault(name, []).append(node)
    return users


def _enter(state: Building, declared: Declared, users: Mapping[str, list[OnnxNode]]) -> None:
    """An input of the file: real numbers, or integers of a scale that a node says which takes them."""
    name = declared.name
    if declared.shape is None or declared.dtype is None:
        raise ModelError(f"The input {name!r} has no type or shape: declare them.")
    if not declared.shape or any(size is None or size < 1 for size in declared.shape[1:]):
        raise ModelError(
            f"The input {name!r} has shape {declared.shape}: all sizes but the first, that of the batch, must be known. Fix them "
            f"with python -m onnxruntime.tools.make_dynamic_shape_fixed."
        )
    if declared.shape[0] is not None:
        state.batch.add(declared.shape[0])
    shape = tuple(size for size in declared.shape[1:] if size is not None)
    if declared.dtype == np.float32:
        state.values[name] = Real(name, shape)
        return
    if declared.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise UnsupportedOperation(
            f"The input {name!r} holds {declared.dtype}; labkit's networks take float32, int8 or uint8. `labkit run` evaluates "
            f"others node by node."
        )
    spec, params = _grid_of_input(state.file, declared, users)
    state.values[name] = state.add(name, int_ops.Input(shape), (), Tensor(shape, spec, params))


def _grid_of_input(
    file: OnnxFile, declared: Declared, users: Mapping[str, list[OnnxNode]]
) -> tuple[QuantSpec, QParams]:
    """Scale and zero point of an input, from the first node that names them, or 1 and 0."""
    assert declared.dtype is not None
    waiting, seen = [declared.name], {declared.name}
    while waiting:
        name = waiting.pop(0)
        for node in users.get(name, ()):
            if node.kind in INTEGER_OPERATORS or node.kind == "DequantizeLinear":
                at = node.inputs.index(name)
                scale, zero = (file.constants.get((*node.inputs, "", "")[at + offset]) for offset in (1, 2))
                if scale is not None:
                    return activation_grid(node, scale, np.zeros((), declared.dtype) if zero is None else zero)
            elif (node.kind in MOVING or node.kind in ("Clip", "Relu", "Concat")) and node.outputs[0] not in seen:
                waiting.append(node.outputs[0])
                seen.add(node.outputs[0])
    spec = QuantSpec(8, signed=declared.dtype == np.int8, symmetric=False)
    return spec, QParams(np.ones((), np.float32), np.zeros((), np.int32))


def _leave(state: Building, declared: Declared) -> str:
    """The name of the node whose result is the file's output ``declared``."""
    name = declared.name
    value = state.values.get(name)
    if value is None:
        raise UnsupportedOperation(f"The output {name!r} is a constant: it needs no network.")
    if isinstance(value, Dequantized):
        return state.add(name, int_ops.Dequantize(), (value.of,), Tensor((), None, None)).node
    wanted = state.file.names[name]
    if isinstance(value, Index) and value.node == wanted:
        return wanted
    if isinstance(value, Integers):
        if value.node == wanted:
            return wanted
        return state.add(name, int_ops.Reshape(value.tensor.shape), (value,), value.tensor).node
    raise UnsupportedOperation(
        f"The output {name!r} holds real numbers that do not stand for integers: no QuantizeLinear and DequantizeLinear "
        f"precede it. `labkit run` evaluates such a file node by node."
    )
