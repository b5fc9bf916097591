"""Run a `FloatGraph` in PyTorch float32, keeping every node's result: what calibration and error measures look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.shapes import Padding

__all__ = ["run_float", "run_node"]

_WINDOWED = (
    *(float_ops.Conv2d, float_ops.MaxPool2d, float_ops.AveragePool2d, float_ops.AdaptiveAveragePool2d),
    *(float_ops.Pad, float_ops.UpsampleNearest2d),
)


def run_float(
    graph: FloatGraph,
    inputs: Mapping[str, NDArray[Any]],
    after: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    only_outputs: bool = False,
) -> dict[str, NDArray[Any]]:
    """Every node's result by name.

    Parameters
    ----------
    graph : a FloatGraph
    inputs : arrays [N, ...] by input name: real numbers, indices (integers), or masks (1 or True for what takes part)
    after : called with each node's name and result; what it returns is passed on instead
    only_outputs : return what leaves the graph, and free everything else after its last use

    Returns
    -------
    float32 arrays [N, ...], activations applied; int64 for indices, which are inputs or the result of an ArgMax
    """
    results: dict[str, torch.Tensor] = {}
    last_use = {name: node.name for node in graph for name in node.inputs}
    with torch.inference_mode():
        for node in graph:
            if isinstance(node.op, float_ops.Input):
                results[node.name] = _entering(node.op.kind, inputs[node.name])
            elif isinstance(node.op, float_ops.Constant):
                images = len(next(iter(inputs.values())))
                results[node.name] = run_node(node, []).expand(images, *node.op.values.shape)
            else:
                results[node.name] = run_node(node, [results[name] for name in node.inputs])
            if after is not None:
                results[node.name] = after(node.name, results[node.name])
            if only_outputs:
                for name in {*node.inputs, node.name}:
                    if last_use.get(name, node.name) == node.name and name not in graph.outputs:
                        del results[name]
    return {name: tensor.numpy() for name, tensor in results.items()}


def run_node(node: FloatNode, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The result of ``node``, any but an Input, on ``inputs`` [N, ...] in its order; float32 [N, ...].

    A Constant, which has no inputs, gives one image [1, ...].
    """
    return _activate(node, _compute(node, inputs))


def _entering(kind: InputKind, array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64 if kind is InputKind.INDEX else np.float32))


def _activate(node: FloatNode, value: torch.Tensor) -> torch.Tensor:
    if node.activation is Activation.NONE:
        return value
    return F.relu(value) if node.activation is Activation.RELU else F.relu6(value)


def _compute(node: FloatNode, arrays: list[torch.Tensor]) -> torch.Tensor:
    op = node.op
    if isinstance(op, float_ops.Constant):
        return _tensor(op.values)[None]
    if arrays[0].ndim == 3 and isinstance(op, _WINDOWED):  # sequences are images of height 1
        return _compute(node, [array.unsqueeze(2) for array in arrays]).squeeze(2)
    x = arrays[0]
    if isinstance(op, float_ops.Conv2d):
        padded = _padded(x, op.padding, 0.0)
        return F.conv2d(padded, _tensor(op.weight), _maybe(op.bias), op.stride, 0, op.dilation, op.groups)
    if isinstance(op, float_ops.Linear):
        return F.linear(x, _tensor(op.weight), _maybe(op.bias))
    if isinstance(op, float_ops.BatchNorm2d):
        return F.batch_norm(
            x, _tensor(op.mean), _tensor(op.variance), _tensor(op.gamma), _tensor(op.beta), eps=op.epsilon
        )
    if isinstance(op, float_ops.Relu):
        return F.relu(x) if op.kind is Activation.RELU else F.relu6(x)
    if isinstance(op, float_ops.MaxPool2d):
        (top, bottom), (left, right) = op.padding
        if top == bottom and left == right:
            return F.max_pool2d(x, op.kernel, op.stride, (top, left), op.dilation, op.ceil_mode)
        return F.max_pool2d(_padded(x, op.padding, -torch.inf), op.kernel, op.stride, 0, op.dilation, op.ceil_mode)
    if isinstance(op, float_ops.AveragePool2d):
        return F.avg_pool2d(_padded(x, op.padding, 0.0), op.kernel, op.stride)
    if isinstance(op, float_ops.AdaptiveAveragePool2d):
        return F.adaptive_avg_pool2d(x, op.output_size)
    if isinstance(op, float_ops.Flatten):
        return x.flatten(1)
    if isinstance(op, float_ops.Add):
        return x + arrays[1]
    if isinstance(op, float_ops.Multiply):
        return x * arrays[1]
    if isinstance(op, float_ops.Pad):
        return _padded(x, op.padding, 0.0)
    if isinstance(op, float_ops.UpsampleNearest2d):
        return x.repeat_interleave(op.factor[0], 2).repeat_interleave(op.factor[1], 3)
    if isinstance(op, float_ops.Reshape):
        return x.reshape(len(x), *op.shape)
    if isinstance(op, float_ops.Transpose):
        return x.permute(0, *(1 + axis for axis in op.axes))
    if isinstance(op, float_ops.Softmax):
        return F.softmax(x, 1 + op.axis)
    if isinstance(op, float_ops.ArgMax):
        return x.argmax(1 + op.axis, op.keepdims)
    if isinstance(op, float_ops.Concat):
        return torch.cat(arrays, 1)
    if isinstance(op, float_ops.Embedding):
        return F.embedding(x, _tensor(op.weight)).transpose(1, 2)
    if isinstance(op, float_ops.LayerNorm):
        parameters = _tensor(op.gamma), _tensor(op.beta)
        return F.layer_norm(x.transpose(1, 2), op.gamma.shape, *parameters, op.epsilon).transpose(1, 2)
    if isinstance(op, float_ops.Gelu):
        return F.gelu(x)
    if isinstance(op, float_ops.MatMul):
        a, b = x.mT if op.transpose_a else x, arrays[1].mT if op.transpose_b else arrays[1]
        return (a @ b) * op.factor
    if isinstance(op, float_ops.MaskedSoftmax):
        mask = arrays[1].reshape(len(x), *(1,) * (x.ndim - 2), x.shape[-1])
        return F.softmax(x.masked_fill(mask == 0, torch.finfo(x.dtype).min), -1)
    if isinstance(op, float_ops.Rescale):
        return x
    assert isinstance(op, float_ops.Identity)
    return x


def _padded(x: torch.Tensor, padding: Padding, value: float) -> torch.Tensor:
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom), value=value) if any((top, bottom, left, right)) else x


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array)


def _maybe(array: NDArray[np.float32] | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)
