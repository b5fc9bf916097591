"""torch as a peer: its int8 operators under the engine "x86", and the float module as it is.

The int8 peer calls torch's quantized operators on labkit's own scales and weights, one after the other. That is what a
converted module does (torch.ao.quantization), less the modules around the calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.benchmark.peers import Peer
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor

if TYPE_CHECKING:
    from labkit.benchmark.nets import Subject

__all__ = ["MAKERS", "float32", "int8"]

Values = dict[str, torch.Tensor]
Call = Callable[[Values], torch.Tensor]


def int8(subject: Subject, graph: IntGraph, threads: int) -> Peer:
    """``graph`` in torch's quantized operators. ``threads`` is torch's own setting; ``subject`` is not looked at.

    Raises
    ------
    UnsupportedOperation
        An operation, or a clamp, for which torch has no quantized operator, or torch lacks the engine.
    """
    del subject, threads
    if "x86" not in torch.backends.quantized.supported_engines:
        raise UnsupportedOperation("This torch has no engine x86 for int8.")
    torch.backends.quantized.engine = "x86"
    (taken,), (given,) = graph.inputs, graph.outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces, once, that these operators will go
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
        calls = [(node.name, _call(graph, node)) for node in graph]

    def values(x: NDArray[np.float32]) -> Values:
        found: Values = {f"{taken}:real": torch.from_numpy(x)}
        with torch.inference_mode():
            for name, call in calls:
                found[name] = call(found)
        return found

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = values(x)[given].numpy()
        return result

    def trace(x: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        found = values(x)
        return {node.name: found[node.name].int_repr().numpy() for node in graph if node.output.spec is not None}

    return Peer("torch int8", "engine x86, u8s8, from labkit's integers", run, trace)


def float32(subject: Subject, graph: IntGraph, threads: int) -> Peer:
    """The module of ``subject`` called as it is (eager). ``threads`` is torch's own setting; ``graph`` is not used."""
    del graph, threads
    module = subject.module

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = module(torch.from_numpy(x)).numpy()
        return result

    return Peer("torch fp32", "eager", run)


MAKERS: tuple[Callable[..., Peer], ...] = (int8, float32)


def _call(graph: IntGraph, node: IntNode) -> Call:
    op, sources = node.op, [graph[name].output for name in node.inputs]
    if isinstance(op, int_ops.Quantize):
        scale, zero_point = _grid(node.name, node.output)
        return lambda v: torch.quantize_per_tensor(v[f"{node.name}:real"], scale, zero_point, torch.quint8)
    a = node.inputs[0]
    if isinstance(op, int_ops.Dequantize):
        return lambda v: v[a].dequantize()
    if isinstance(op, int_ops.Flatten):
        return lambda v: v[a].flatten(1)
    if isinstance(op, int_ops.MaxPool2d):
        (top, _), (left, _) = _symmetric(node.name, op.padding)
        ends = (top, left)
        return lambda v: F.max_pool2d(v[a], op.kernel, op.stride, ends, op.dilation, op.ceil_mode)
    scale, zero_point = _grid(node.name, node.output)
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        weight, bias = _weights(node, op, sources[0])
        if isinstance(op, int_ops.Linear):
            packed = torch.ops.quantized.linear_prepack(weight, bias)
            plain, with_relu = torch.ops.quantized.linear, torch.ops.quantized.linear_relu
        else:
            (top, _), (left, _) = _symmetric(node.name, op.padding)
            window = (list(op.stride), [top, left], list(op.dilation), op.groups)
            packed = torch.ops.quantized.conv2d_prepack(weight, bias, *window)
            plain, with_relu = torch.ops.quantized.conv2d, torch.ops.quantized.conv2d_relu
        layer = _with_clamp(node, op.requantizer.clamp, plain, with_relu)
        return lambda v: layer(v[a], packed, scale, zero_point)
    if isinstance(op, int_ops.Add):
        b = node.inputs[1]
        add = _with_clamp(node, op.clamp, torch.ops.quantized.add, torch.ops.quantized.add_relu)
        return lambda v: add(v[a], v[b], scale, zero_point)
    if isinstance(op, int_ops.AveragePool2d) and not np.any(op.padding):
        # torch's integer pool rounds to the scale of its input, which is not what our net computes; a pool in float32
        # takes some microseconds more and rounds once
        def pool(v: Values) -> torch.Tensor:
            mean = F.avg_pool2d(v[a].dequantize(), op.kernel, op.stride)
            return torch.quantize_per_tensor(mean, scale, zero_point, torch.quint8)

        return pool
    raise UnsupportedOperation(f"{node.name}: {type(op).__name__} is not written for torch's quantized operators.")


def _with_clamp(node: IntNode, clamp: tuple[int, int], plain: Any, with_relu: Any) -> Any:
    spec, params = node.output.quantized
    if clamp == (spec.qmin, spec.qmax):
        return plain
    if clamp == (int(params.zero_point), spec.qmax):
        return with_relu
    raise UnsupportedOperation(f"{node.name}: torch has no fused clamp to {clamp[0]}..{clamp[1]}.")


def _grid(name: str, tensor: Tensor) -> tuple[float, int]:
    spec, params = tensor.quantized
    if spec.bits != 8 or spec.signed:
        raise UnsupportedOperation(f"{name}: torch's operators take unsigned activations of 8 bits, got {spec}.")
    return float(params.scale), int(params.zero_point)


def _symmetric(name: str, padding: Any) -> Any:
    if any(before != after for before, after in padding):
        raise UnsupportedOperation(f"{name}: torch's operators pad both sides alike, got {padding}.")
    return padding


def _weights(node: IntNode, op: int_ops.Conv2d | int_ops.Linear, source: Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The int8 weights with a scale for each channel, and the bias as the real number that its integer stands for."""
    outputs = op.weight.values.shape[0]
    scales = np.broadcast_to(op.weight.params.scale.astype(np.float64), (outputs,)).copy()
    if np.any(op.weight.params.zero_point) or op.weight.values.dtype != np.int8:
        raise UnsupportedOperation(f"{node.name}: written for int8 weights without zero points.")
    weight = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(op.weight.values.copy()), torch.from_numpy(scales), torch.zeros(outputs, dtype=torch.int64), 0
    )
    bias = op.bias.astype(np.float64) * scales * float(source.quantized[1].scale)
    return weight, torch.from_numpy(bias.astype(np.float32))
