"""`module_of`: a `FloatGraph` as a torch module, for whatever looks at modules: certificates, sensitivities, fine-tuning.

Layers become modules of torch.nn under the names of the graph's nodes, the rest becomes calls, so that
`labkit.frontends.torch_fx.from_torch` gives the same graph again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.onnx.float_graph import read_float_onnx
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.shapes import Padding

__all__ = ["graph_digest", "module_of", "read_module", "with_torch_names"]

_OF_TRANSFORMERS = (
    *(float_ops.Constant, float_ops.Embedding, float_ops.LayerNorm, float_ops.MatMul, float_ops.MaskedSoftmax),
    float_ops.Rescale,
)


def read_module(path: str | Path) -> nn.Module:
    """The float network in the ``.onnx`` file at ``path`` as a torch module in inference mode.

    Raises
    ------
    ModelError, UnsupportedOperation
        As `read_float_onnx` and `module_of`.
    """
    return module_of(read_float_onnx(path))


def graph_digest(graph: FloatGraph) -> str:
    """SHA-256 that tells the parameters of ``graph`` from others: that of its torch module, where it has one.

    The length of sequences does not count, so that a network made shorter keeps its digest: of shapes the last axis is left out,
    and of constants all but the first place. No rounding method decides constants: who verifies a net compares them in full.
    """
    try:
        return parameters_digest(module_of(graph))
    except UnsupportedOperation:
        digest = hashlib.sha256()
        for node in graph:
            for label, value in sorted(vars(node.op).items()):
                if label == "shape":
                    value = tuple(value)[:-1]
                elif isinstance(node.op, float_ops.Constant):
                    value = np.atleast_1d(value)[..., :1]
                data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
                digest.update(f"{node.name}.{label}".encode() + b"\0" + data)
        return digest.hexdigest()


def with_torch_names(graph: FloatGraph) -> FloatGraph:
    """``graph`` with its nodes called as `from_torch` calls those of its module: layers as they are, a sum "add".

    It comes back as it is where it has no torch module, or several inputs.
    """
    (first, *others) = (graph[name].op for name in graph.inputs)
    assert isinstance(first, float_ops.Input)
    try:
        traced = None if others else from_torch(module_of(graph), first.shape)
    except UnsupportedOperation:
        traced = None
    if traced is None or [type(node.op) for node in traced] != [type(node.op) for node in graph]:
        return graph
    names = {node.name: twin.name for node, twin in zip(graph, traced, strict=True)}
    renamed = [replace(node, name=names[node.name], inputs=tuple(names[n] for n in node.inputs)) for node in graph]
    return FloatGraph(tuple(renamed), tuple(names[name] for name in graph.outputs))


def module_of(graph: FloatGraph) -> nn.Module:
    """A torch module, in inference mode, that computes what ``graph`` says and is traced into the same graph.

    ``graph`` must not be simplified: activations are nodes of their own.

    Raises
    ------
    UnsupportedOperation
        torch.nn has no layer for an operation (max-pooling with padding that differs from side to side, anything on sequences),
        or a node's name is none for a part of a module.
    """
    modules: dict[str, nn.Module] = {}
    traced = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in graph:
        if node.activation is not Activation.NONE:
            raise UnsupportedOperation(f"{node.name}: this graph is simplified already; hand in the one that was read.")
        if isinstance(node.op, _OF_TRANSFORMERS):
            raise UnsupportedOperation(f"{node.name}: {type(node.op).__name__} has no torch module here.")
        inputs = tuple(made[name] for name in node.inputs)
        if isinstance(node.op, float_ops.Input):
            made[node.name] = traced.placeholder(node.name)
            if len(node.op.shape) == 2:
                raise UnsupportedOperation(f"{node.name}: networks over sequences have no torch module here.")
        elif (layer := _layer(node, is_flat=_is_linear(graph, node))) is not None:
            modules[node.name] = layer
            made[node.name] = traced.create_node("call_module", node.name, inputs, name=node.name)
        else:
            function, arguments = _function(node)
            given = (list(inputs), *arguments) if isinstance(node.op, float_ops.Concat) else (*inputs, *arguments)
            if isinstance(node.op, float_ops.Reshape):
                given = (*inputs, (traced.call_method("size", (*inputs, 0)), *node.op.shape))
            made[node.name] = traced.create_node("call_function", function, given, name=node.name)
    outputs = tuple(made[name] for name in graph.outputs)
    traced.output(outputs if len(outputs) > 1 else outputs[0])
    return fx.GraphModule(_tree(modules), traced, "OnnxModule").eval()


def _tree(modules: dict[str, nn.Module]) -> nn.Module:
    """One module that holds ``modules`` by their dotted paths."""
    root = nn.Module()
    for path, module in sorted(modules.items(), key=lambda item: item[0].count(".")):  # owners before what they own
        *owners, name = path.split(".")
        place = root
        for owner in owners:
            if not hasattr(place, owner):
                place.add_module(owner, nn.Module())
            place = getattr(place, owner)
        if not isinstance(place, nn.Module) or hasattr(place, name):
            raise UnsupportedOperation(
                f"{path}: no part of a torch module can have this name. Rename the node in the file."
            )
        place.add_module(name, module)
    return root


def _is_linear(graph: FloatGraph, node: FloatNode) -> bool:
    """Whether ``node`` takes the result of a linear layer, which is flat."""
    source = graph[node.inputs[0]]
    while isinstance(source.op, float_ops.Identity):
        source = graph[source.inputs[0]]
    return isinstance(source.op, float_ops.Linear)


def _layer(node: FloatNode, is_flat: bool) -> nn.Module | None:
    """The module of torch.nn for ``node``, after a linear layer where ``is_flat``; None where it is a function."""
    op = node.op
    match op:
        case float_ops.Conv2d():
            outputs, each, *kernel = op.weight.shape
            conv = nn.Conv2d(
                *(each * op.groups, outputs, (kernel[0], kernel[1]), op.stride),
                padding="same" if _is_uneven(op.padding) else (op.padding[0][0], op.padding[1][0]),
                dilation=op.dilation,
                groups=op.groups,
                bias=op.bias is not None,
            )
            return _filled(conv, op.weight, op.bias)
        case float_ops.Linear():
            linear = nn.Linear(op.weight.shape[1], op.weight.shape[0], op.bias is not None)
            return _filled(linear, op.weight, op.bias)
        case float_ops.BatchNorm2d():
            norm = (nn.BatchNorm1d if is_flat else nn.BatchNorm2d)(len(op.gamma), op.epsilon)
            _filled(norm, op.gamma, op.beta)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(_tensor(op.mean))
            norm.running_var.copy_(_tensor(op.variance))
            return norm
        case float_ops.Relu():
            return nn.ReLU() if op.kind is Activation.RELU else nn.ReLU6()
        case float_ops.Gelu():
            return nn.GELU()
        case float_ops.MaxPool2d():
            if _is_uneven(op.padding):
                raise UnsupportedOperation(
                    f"{node.name}: max-pooling with padding {op.padding} has no layer in torch.nn, so this network has no torch "
                    f"module. It can be quantized; leave out what needs the module (--verify, budgets, --model)."
                )
            padding = (op.padding[0][0], op.padding[1][0])
            return nn.MaxPool2d(op.kernel, op.stride, padding, op.dilation, ceil_mode=op.ceil_mode)
        case float_ops.AveragePool2d():
            return nn.AvgPool2d(op.kernel, op.stride, (op.padding[0][0], op.padding[1][0]))
        case float_ops.AdaptiveAveragePool2d():
            return nn.AdaptiveAvgPool2d(op.output_size)
        case float_ops.Flatten():
            return nn.Flatten()
        case float_ops.Identity():
            return nn.Identity()
        case float_ops.Pad():
            return _pad_module(op.padding)
        case float_ops.UpsampleNearest2d():
            return nn.Upsample(scale_factor=tuple(float(f) for f in op.factor), mode="nearest")
        case float_ops.Softmax():
            return nn.Softmax(1 + op.axis)
    return None


def _function(node: FloatNode) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function for ``node``, and what it takes after its tensors."""
    op = node.op
    match op:
        case float_ops.Add():
            return torch.add, ()
        case float_ops.Multiply():
            return torch.mul, ()
        case float_ops.Concat():
            return torch.cat, (1,)
        case float_ops.Reshape():
            return torch.reshape, ()
        case float_ops.Transpose():
            return torch.permute, ((0, *(1 + axis for axis in op.axes)),)
        case float_ops.ArgMax():
            return torch.argmax, (1 + op.axis, op.keepdims)
    raise UnsupportedOperation(f"{node.name}: {type(op).__name__} has no torch module here.")


def _is_uneven(padding: Padding) -> bool:
    return any(before != after for before, after in padding)


def _pad_module(padding: Padding) -> nn.Module:
    (top, bottom), (left, right) = padding
    return nn.ZeroPad2d((left, right, top, bottom))


def _filled(module: nn.Module, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> nn.Module:
    module.weight = nn.Parameter(_tensor(weight))
    if bias is not None:
        module.bias = nn.Parameter(_tensor(bias))
    return module


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array.copy())
