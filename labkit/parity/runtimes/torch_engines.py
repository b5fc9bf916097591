"""A network of PyTorch's own quantized operators, made from an integer graph and run by one of its engines.

PyTorch counts activations from 0 to 255 here (quint8): integers of -128..127 are raised by 128 on the way in and lowered on
the way out. Images lie in the channels-last memory format, as its quantized convolutions put them out. What only moves or
compares integers is done on the integers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.errors import InputError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.canonical import without_torch
from labkit.runtimes.pools import with_pools_that_keep_scale
from labkit.runtimes.torch_engines import VECTOR

__all__ = ["ENGINES", "run_torch", "versions"]

ENGINES = ("fbgemm", "qnnpack", "onednn")


def versions() -> dict[str, str]:
    """PyTorch's version and the vector extensions that it uses, by name."""
    return {"torch": torch.__version__, "torch vectors": torch.backends.cpu.get_cpu_capability()}


def run_torch(graph: IntGraph, inputs: Mapping[str, NDArray[Any]], engine: str) -> dict[str, NDArray[np.generic]]:
    """Every node's result by name, as PyTorch's ``engine`` computes it on one thread.

    Parameters
    ----------
    graph : its scales, weights, biases and clamps are used, its rules are not
    inputs : [N, C, H, W] or [N, ...] by the name of each input node: float32 or integers, as it takes
    engine : one of `ENGINES`

    Returns
    -------
    integer arrays in each tensor's own dtype in the layout (N, C, H, W), float32 after a Dequantize node. An average pool that
    changes the scale is two operations, as in `with_pools_that_keep_scale`.

    Raises
    ------
    UnsupportedOperation
        PyTorch has no such quantized operator.
    InputError
        There is no such engine, or this PyTorch was built without it.
    """
    if engine not in torch.backends.quantized.supported_engines:
        known = ", ".join(torch.backends.quantized.supported_engines)
        raise InputError(f"This PyTorch has the engines {known}; got {engine!r}.")
    graph = with_pools_that_keep_scale(without_torch(graph))
    images = len(next(iter(inputs.values())))
    step = 1 if any(_depends_on_batch(node) for node in graph) else max(images, 1)
    with _engine(engine):
        parts = [
            _results(graph, {name: x[start : start + step] for name, x in inputs.items()})
            for start in range(0, max(images, 1), step)
        ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _results(graph: IntGraph, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.generic]]:
    values: dict[str, torch.Tensor] = {}
    results: dict[str, NDArray[np.generic]] = {}
    for node in graph:
        if isinstance(node.op, int_ops.Constant):
            images = len(next(iter(inputs.values())))
            integers = torch.from_numpy(np.repeat(node.op.values[None].astype(np.int16), images, axis=0))
            scale, zero_point, raised = _grid(node.output)
            values[node.name] = _from_integers(integers + raised, scale, zero_point)
        elif not node.inputs:
            values[node.name] = _entered(node, inputs[node.name])
        else:
            values[node.name] = _computed(graph, node, [values[name] for name in node.inputs])
        results[node.name] = _lowered(node.output, values[node.name])
    return results


def _depends_on_batch(node: IntNode) -> bool:
    """Whether PyTorch's vectors may end inside an image, so that where depends on the images before it."""
    sums = int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32
    return isinstance(node.op, sums) and math.prod(node.output.shape) % VECTOR != 0


@contextmanager
def _engine(name: str) -> Iterator[None]:
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = name
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that quantized tensors will go in a later version
            yield
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def _grid(tensor: Tensor) -> tuple[float, int, int]:
    """Scale and zero point of ``tensor`` in PyTorch's quint8, and by how much that is raised."""
    spec, params = tensor.quantized
    if spec.bits != 8 or spec.narrow:
        raise UnsupportedOperation(f"PyTorch's quantized activations have 8 bits and a whole grid, got {spec}.")
    raised = -int(np.iinfo(spec.dtype).min)
    return float(params.scale), int(params.zero_point) + raised, raised


def _entered(node: IntNode, x: NDArray[Any]) -> torch.Tensor:
    scale, zero_point, raised = _grid(node.output)
    if isinstance(node.op, int_ops.Input):
        return _from_integers(torch.from_numpy(x.astype(np.int16)) + raised, scale, zero_point)
    real = _in_format(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    return torch.quantize_per_tensor(real, scale, zero_point, torch.quint8)


def _lowered(tensor: Tensor, value: torch.Tensor) -> NDArray[np.generic]:
    if not value.is_quantized:
        return np.ascontiguousarray(value.numpy())
    integers = value.int_repr().numpy().astype(np.int16) - _grid(tensor)[2]
    return np.ascontiguousarray(integers, tensor.dtype)


def _from_integers(integers: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(_in_format(integers.to(torch.uint8)), scale, zero_point)


def _in_format(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)


def _computed(graph: IntGraph, node: IntNode, values: list[torch.Tensor]) -> torch.Tensor:
    op, x = node.op, values[0]
    if isinstance(op, int_ops.Dequantize):
        return x.dequantize()
    if isinstance(op, int_ops.ArgMax):
        return torch.from_numpy(np.argmax(x.int_repr().numpy(), op.axis + 1, keepdims=op.keepdims).astype(np.int32))
    is_sequence = x.ndim == 3 and not isinstance(op, _MOVES)
    if is_sequence:
        values = [_unsqueezed(value) for value in values]
    result = _moved(node, values[0]) if isinstance(op, _MOVES) else _calculated(graph, node, values)
    if is_sequence:
        result = _from_integers(result.int_repr()[:, :, 0], result.q_scale(), result.q_zero_point())
    return result


def _unsqueezed(x: torch.Tensor) -> torch.Tensor:
    return _from_integers(x.int_repr()[:, :, None], x.q_scale(), x.q_zero_point())


_MOVES = (int_ops.Flatten, int_ops.Reshape, int_ops.Transpose)


def _moved(node: IntNode, x: torch.Tensor) -> torch.Tensor:
    integers = x.int_repr()
    if isinstance(node.op, int_ops.Transpose):
        integers = integers.permute(0, *(axis + 1 for axis in node.op.axes))
    else:
        integers = integers.reshape(len(integers), *node.output.shape)
    return _from_integers(integers, x.q_scale(), x.q_zero_point())


def _calculated(graph: IntGraph, node: IntNode, values: list[torch.Tensor]) -> torch.Tensor:
    op, x = node.op, values[0]
    scale, zero_point, raised = _grid(node.output)
    quantized = torch.ops.quantized
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        result = _layer(op, graph.inputs_of(node)[0], x, scale, zero_point)
        return _clamped(result, op.requantizer.clamp, raised)
    if isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32):
        return _clamped(quantized.add(x, values[1], scale, zero_point), op.clamp, raised)
    if isinstance(op, int_ops.Multiply):
        return _clamped(quantized.mul(x, values[1], scale, zero_point), op.requantizer.clamp, raised)
    if isinstance(op, int_ops.MaxPool2d):
        padded, padding = _symmetric(x, op.padding, 0)  # the lowest integer, which wins against none
        pooled = F.max_pool2d(padded, op.kernel, op.stride, padding, op.dilation, op.ceil_mode)
        return _from_integers(pooled.int_repr(), scale, zero_point)
    if isinstance(op, int_ops.AveragePool2d | int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32):
        padded, padding = _symmetric(x, op.padding, x.q_zero_point())
        pooled = F.avg_pool2d(padded, op.kernel, op.stride, padding)
        clamp = op.requantizer.clamp if isinstance(op, int_ops.AveragePool2d) else op.clamp
        return _clamped(pooled, clamp, raised)
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        return _clamped(F.adaptive_avg_pool2d(x, op.output_size), op.requantizer.clamp, raised)
    if isinstance(op, int_ops.Concat):
        joined = quantized.cat(values, 1, scale, zero_point)
        if len({requantizer.clamp for requantizer in op.requantizers}) > 1:
            raise UnsupportedOperation(f"{node.name}: its parts have clamps of their own, which PyTorch has not.")
        return _clamped(joined, op.requantizers[0].clamp, raised)
    if isinstance(op, int_ops.Requantize):
        again = torch.quantize_per_tensor(x.dequantize(), scale, zero_point, torch.quint8)
        return _clamped(again, op.requantizer.clamp, raised)
    if isinstance(op, int_ops.Lookup) and op.function == "rescale":
        again = torch.quantize_per_tensor(x.dequantize(), scale, zero_point, torch.quint8)
        return _clamped(again, (int(op.table.min()), int(op.table.max())), raised)
    if isinstance(op, int_ops.Pad):
        (top, bottom), (left, right) = op.padding
        integers = F.pad(x.int_repr(), (left, right, top, bottom), value=x.q_zero_point())
        return _from_integers(integers, scale, zero_point)
    if isinstance(op, int_ops.UpsampleNearest2d):
        integers = x.int_repr().repeat_interleave(op.factor[0], 2).repeat_interleave(op.factor[1], 3)
        return _from_integers(integers, scale, zero_point)
    raise UnsupportedOperation(f"{node.name}: there is no quantized operator of PyTorch here for {type(op).__name__}.")


def _layer(
    op: int_ops.Conv2d | int_ops.Linear, source: Tensor, x: torch.Tensor, scale: float, zero_point: int
) -> torch.Tensor:
    weight, params = op.weight.values, op.weight.params
    lowered = 128 if weight.dtype == np.uint8 else 0
    integers = torch.from_numpy((weight.astype(np.int16) - lowered).astype(np.int8))
    real = np.float64(source.quantized[1].scale)
    bias = torch.from_numpy((op.bias * (params.scale.astype(np.float64) * real)).astype(np.float32))
    if params.scale.ndim:
        scales = torch.from_numpy(params.scale.astype(np.float64))
        zeros = torch.from_numpy(params.zero_point.astype(np.int64) - lowered)
        packed = torch._make_per_channel_quantized_tensor(integers, scales, zeros, 0)
    else:
        packed = torch._make_per_tensor_quantized_tensor(
            integers, float(params.scale), int(params.zero_point) - lowered
        )
    quantized = torch.ops.quantized
    if isinstance(op, int_ops.Linear):
        dense: torch.Tensor = quantized.linear(x, quantized.linear_prepack(packed, bias), scale, zero_point)
        return dense
    x, padding = _symmetric(x, op.padding, x.q_zero_point())
    prepacked = quantized.conv2d_prepack(packed, bias, op.stride, padding, op.dilation, op.groups)
    result: torch.Tensor = quantized.conv2d(x, prepacked, scale, zero_point)
    return result


def _symmetric(x: torch.Tensor, padding: Any, value: Any) -> tuple[torch.Tensor, tuple[int, int]]:
    """``x`` and the padding that both sides have; where the sides differ, ``x`` with all of it, filled with ``value``."""
    (top, bottom), (left, right) = padding
    if top == bottom and left == right:
        return x, (top, left)
    integers = F.pad(x.int_repr(), (left, right, top, bottom), value=int(value))
    return _from_integers(integers, x.q_scale(), x.q_zero_point()), (0, 0)


def _clamped(x: torch.Tensor, clamp: tuple[int, int], raised: int) -> torch.Tensor:
    """``x`` inside ``clamp``, which counts from -128 where ``raised`` is 128: the fused activation."""
    low, high = clamp[0] + raised, clamp[1] + raised
    if (low, high) == (0, 255):
        return x
    return _from_integers(x.int_repr().clamp(low, high), x.q_scale(), x.q_zero_point())
