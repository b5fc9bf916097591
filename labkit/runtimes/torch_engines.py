"""The rules of PyTorch's engines for quantized operators: FBGEMM, QNNPACK and oneDNN (docs/arithmetic.md, section 10).

They hold for PyTorch 2.13 on x86-64 with AVX2 or AVX-512, on one thread, with activations in the channels-last memory format
in which its quantized convolutions put them out. PyTorch counts activations from 0 to 255: a network with int8 activations is
computed as the same network raised by 128. FBGEMM and oneDNN saturate sums of products on processors without VNNI where
weights beyond 64 meet large activations; these rules never saturate. The rules of FBGEMM and QNNPACK are exact. Those of
oneDNN's convolutions and linear layers are not known to the last bit: they give all ties as it does, but about one element
in a million, which lies so near to a tie that a rounding of the real sum decides, comes out differently.

The bias of a layer is a real number to PyTorch: here the real number for which the int32 bias at scale S_w S_x stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.windows import common_area
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntNode, Tensor
from labkit.kernels.reference_torch import fused_multiply_add
from labkit.runtimes.labkit_rules import clamp_of
from labkit.runtimes.pools import with_pools_that_keep_scale
from labkit.runtimes.rules import Remake, RuleSet

__all__ = ["CHANNELS", "RULE_SETS", "VECTOR"]

VECTOR = 64  # elements that PyTorch's own kernels work on at a time
CHANNELS = 16  # channels that its average pool works on at a time with AVX-512; 8 with AVX2

_ONE = np.float32(1)
_Layer = int_ops.Conv2d | int_ops.Linear
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _scale(tensor: Tensor) -> np.float32:
    return np.float32(tensor.quantized[1].scale)


def _check_grids(node: IntNode, *tensors: Tensor) -> None:
    """PyTorch has tensors of quint8 and qint8, and none of fewer bits."""
    for tensor in (*tensors, node.output):
        spec, _ = tensor.quantized
        if spec.bits != 8 or spec.narrow:
            raise UnsupportedOperation(
                f"{node.name}: PyTorch's quantized activations have 8 bits and a whole grid, got {spec}. Choose another runtime."
            )


def _real_bias(op: _Layer, inputs: tuple[Tensor, ...]) -> Pair:
    """The scales of the sums, float32 () or (O,), and the real bias, float32 (O,)."""
    exact = op.weight.params.scale.astype(np.float64) * np.float64(_scale(inputs[0]))
    return exact.astype(np.float32), (op.bias * exact).astype(np.float32)


def _layer(
    make: Callable[[_Layer, NDArray[np.float32], NDArray[np.float32], np.float32], dict[str, Any]],
) -> Remake:
    """The remake of a layer; ``make`` gives what is peculiar to an engine: rule, multiplier and biases."""

    def remake(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
        op = node.op
        assert isinstance(op, _Layer)
        _check_grids(node, *inputs)
        sums, bias = _real_bias(op, inputs)
        try:
            made = make(op, sums, bias, _scale(node.output))
        except UnsupportedOperation as error:
            raise UnsupportedOperation(f"{node.name}: {error}") from error
        whole = made.pop("whole", np.zeros_like(op.bias))
        clamp = clamp_of(op.requantizer.clamp, node.output)
        zero_point = int(node.output.quantized[1].zero_point)
        return replace(op, bias=whole, requantizer=Requantizer(zero_point=zero_point, clamp=clamp, **made))

    return remake


def _of_channels(multiplier: NDArray[np.float32], bias: NDArray[np.float32]) -> dict[str, Any]:
    """Multiplier and float bias as a `Requantizer` takes them: none where it is 0, else both of one shape."""
    if not bias.any():
        return {"multiplier": multiplier}
    return {"multiplier": np.broadcast_to(multiplier, bias.shape), "bias": bias}


def _fbgemm_layer(
    op: _Layer, sums: NDArray[np.float32], bias: NDArray[np.float32], output: np.float32
) -> dict[str, Any]:
    shifted = bias / sums if sums.ndim else bias * (_ONE / sums)
    return {"rule": RoundingRule.FLOAT32_EVEN, **_of_channels(np.asarray(sums / output), shifted)}


def _qnnpack_layer(
    op: _Layer, sums: NDArray[np.float32], bias: NDArray[np.float32], output: np.float32
) -> dict[str, Any]:
    whole = np.clip(np.rint((bias * (_ONE / sums)).astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)
    multiplier = sums * (_ONE / output)  # FBGEMM divides here
    return {"rule": RoundingRule.FLOAT32_EVEN, "multiplier": np.asarray(multiplier), "whole": whole}


def _onednn_layer(
    op: _Layer, sums: NDArray[np.float32], bias: NDArray[np.float32], output: np.float32
) -> dict[str, Any]:
    if op.weight.params.zero_point.any():
        raise UnsupportedOperation(
            "PyTorch's oneDNN engine takes weights without a zero point only. Choose fbgemm or qnnpack."
        )
    if isinstance(op, int_ops.Conv2d) and op.groups > 1:
        kernel = op.weight.values.shape[2:]
        if any(max(edges) >= size for edges, size in zip(op.padding, kernel, strict=True)):
            raise UnsupportedOperation(
                f"oneDNN 3.12 gives wrong sums for some convolutions in groups with windows that lie wholly in the padding "
                f"(kernel {tuple(kernel)}, padding {op.padding}). Pad less, or choose fbgemm or qnnpack."
            )
    return {
        "rule": RoundingRule.FLOAT32_TWICE,
        "second": np.asarray(_ONE / output),
        "zero_point_inside": True,
        **_of_channels(sums, bias),
    }


def _check_sum(node: IntNode, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """The clamp of a sum that PyTorch can compute."""
    op = node.op
    _check_grids(node, *inputs)
    subtracts = op.subtracts if isinstance(op, int_ops.AddFixedPoint) else False
    if isinstance(op, int_ops.Add):
        subtracts = bool(op.multipliers[1] < 0)
    if subtracts:
        raise UnsupportedOperation(f"{node.name}: PyTorch has no quantized subtraction. Choose another runtime.")
    assert isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32)
    return clamp_of(op.clamp, node.output)


def _add(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    clamp = _check_sum(node, inputs)
    elements = math.prod(node.output.shape)
    return int_ops.AddDequantized(
        np.array([_scale(tensor) for tensor in inputs]),
        np.asarray(_ONE / _scale(node.output)),
        int(node.output.quantized[1].zero_point),
        clamp,
        elements // VECTOR * VECTOR,
    )


def _qnnpack_add(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    clamp = _check_sum(node, inputs)
    ratios = np.array([_scale(tensor) / _scale(node.output) for tensor in inputs])
    _, exponent = np.frexp(ratios.max())
    shift = 22 - int(exponent)
    if ratios.min() < 2.0**-14 or ratios.max() >= 2.0**8 or shift > 31:
        raise UnsupportedOperation(
            f"{node.name}: QNNPACK adds where each input's scale is 2**-14 to 2**8 times the output's, and the larger one at "
            f"least 2**-10 times, got {ratios[0]:.3g} and {ratios[1]:.3g}. Choose another runtime."
        )
    multipliers = np.rint(np.ldexp(ratios.astype(np.float64), shift)).astype(np.int32)
    zero_point = int(node.output.quantized[1].zero_point)
    return int_ops.AddAwayFromZero(multipliers, shift, zero_point, clamp)


def _multiply(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Multiply)
    _check_grids(node, *inputs)
    multiplier = (_scale(inputs[0]) * _scale(inputs[1])) * (_ONE / _scale(node.output))
    return int_ops.Multiply(_even(node, multiplier, op.requantizer.clamp))


def _even(node: IntNode, multiplier: np.float32, clamp: tuple[int, int], inside: bool = False) -> Requantizer:
    zero_point = int(node.output.quantized[1].zero_point)
    ends = clamp_of(clamp, node.output)
    return Requantizer(RoundingRule.FLOAT32_EVEN, np.asarray(multiplier), zero_point, ends, inside)


def _windows(node: IntNode, inputs: tuple[Tensor, ...]) -> tuple[int_ops.AveragePool2d, int]:
    """An average pool in labkit's form with its old requantizer's clamp, and its window's area."""
    op = node.op
    _check_grids(node, *inputs)
    if isinstance(op, int_ops.AveragePoolOfValid) and any(map(any, op.padding)):
        raise UnsupportedOperation(
            f"{node.name}: a mean of those elements alone that lie in the image has windows of several sizes at the edges, and "
            f"what PyTorch's engines do there is not known here. Choose another runtime."
        )
    if isinstance(op, int_ops.AveragePoolFloat32) and any(map(any, op.padding)) and not op.counts_padding:
        raise UnsupportedOperation(f"{node.name}: a mean that does not count padding is not known here for PyTorch.")
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32)
    clamp = op.requantizer.clamp if isinstance(op, int_ops.AveragePool2d) else op.clamp
    made = int_ops.AveragePool2d(op.kernel, op.stride, op.padding, _even(node, _ONE, clamp))
    return made, op.kernel[0] * op.kernel[1]


def _check_channels(node: IntNode) -> None:
    channels = node.output.shape[0]
    if channels % CHANNELS:
        raise UnsupportedOperation(
            f"{node.name}: PyTorch averages {CHANNELS} channels at a time (8 without AVX-512) and rounds what is left over in "
            f"another way, which depends on the processor: {channels} channels cannot be vouched for. "
            f"Choose qnnpack, or a multiple of {CHANNELS} channels."
        )


def _pool(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    made, area = _windows(node, inputs)
    _check_channels(node)
    return replace(made, requantizer=_even(node, _ONE / np.float32(area), made.requantizer.clamp))


def _qnnpack_pool(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    made, area = _windows(node, inputs)
    if area == 1:
        raise UnsupportedOperation(
            f"{node.name}: QNNPACK has no average pool of 1 x 1. Leave it out, it changes nothing."
        )
    scale = _scale(node.output)
    return replace(made, requantizer=_even(node, scale / (scale * np.float32(area)), made.requantizer.clamp))


def _adaptive(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.AdaptiveAveragePool2d)
    _check_grids(node, *inputs)
    _check_channels(node)
    height, width = (*(1, 1), *inputs[0].shape[1:])[-2:]
    area = common_area(height, width, op.output_size)
    whole = not (height % op.output_size[0] or width % op.output_size[1])
    if not whole or area & (area - 1):
        raise UnsupportedOperation(
            f"{node.name}: PyTorch's adaptive pool multiplies and adds with one rounding, which is known here only for windows "
            f"of one size with a power of two of elements, got {height} x {width} to {op.output_size}. Choose another runtime."
        )
    return replace(op, requantizer=_even(node, _ONE / np.float32(area), op.requantizer.clamp, inside=True))


def _qnnpack_adaptive(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.AdaptiveAveragePool2d)
    _check_grids(node, *inputs)
    height, width = (*(1, 1), *inputs[0].shape[1:])[-2:]
    if height % op.output_size[0] or width % op.output_size[1] or (height, width) == op.output_size:
        raise UnsupportedOperation(
            f"{node.name}: QNNPACK averages to a size that divides the input's, and not to itself, got {height} x {width} to "
            f"{op.output_size}. Choose another runtime."
        )
    scale = _scale(node.output)
    area = np.float32(common_area(height, width, op.output_size))
    return replace(op, requantizer=_even(node, scale / (scale * area), op.requantizer.clamp))


def _concat(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Concat)
    _check_grids(node, *inputs)
    output = node.output.quantized
    for tensor in inputs:
        spec, params = tensor.quantized
        if (spec, params.scale, params.zero_point) != (output[0], output[1].scale, output[1].zero_point):
            raise UnsupportedOperation(
                f"{node.name}: PyTorch joins tensors of unequal scales by kernels that are not known here. "
                f"Give all inputs and the result one scale, or choose another runtime."
            )
    return int_ops.Concat(tuple(_even(node, _ONE, old.clamp) for old in op.requantizers))


def _rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """Dequantized and quantized again (eqs. 1 and 39): a function of one integer, and so a table."""
    op = node.op
    assert isinstance(op, int_ops.Requantize | int_ops.Lookup)
    if isinstance(op, int_ops.Lookup) and op.function != "rescale":
        raise UnsupportedOperation(
            f"{node.name}: PyTorch computes {op.function} by vectors of approximate exponentials, which is not known here. "
            f"Choose another runtime."
        )
    _check_grids(node, *inputs)
    (source, before), (spec, after) = inputs[0].quantized, node.output.quantized
    lowest = np.iinfo(source.dtype).min
    real = (np.arange(256) + (int(lowest) - int(before.zero_point))).astype(np.float32) * before.scale
    base = int(np.iinfo(spec.dtype).min)
    q = np.rint(fused_multiply_add(real, _ONE / after.scale, np.float32(int(after.zero_point) - base))) + base
    clamp = op.requantizer.clamp if isinstance(op, int_ops.Requantize) else (int(op.table.min()), int(op.table.max()))
    return int_ops.Lookup("rescale", np.clip(q, *clamp_of(clamp, node.output)).astype(np.int32))


def _border(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Quantize)
    _check_grids(node)
    return int_ops.QuantizeByReciprocal(op.shape)


_REFUSALS: Mapping[type[Any], str] = MappingProxyType(
    dict.fromkeys(
        (int_ops.Softmax, int_ops.SoftmaxFixedPoint),
        "PyTorch computes a softmax in real numbers, by vectors of approximate exponentials.",
    )
)


def _rules(name: str, layer: Any, add: Remake, pool: Remake, adaptive: Remake) -> RuleSet:
    remake = _layer(layer)
    return RuleSet(
        name,
        {
            int_ops.Quantize: _border,
            int_ops.Conv2d: remake,
            int_ops.Linear: remake,
            int_ops.AveragePool2d: pool,
            int_ops.AveragePoolOfValid: pool,
            int_ops.AveragePoolFloat32: pool,
            int_ops.AdaptiveAveragePool2d: adaptive,
            int_ops.Add: add,
            int_ops.AddFixedPoint: add,
            int_ops.AddFloat32: add,
            int_ops.Multiply: _multiply,
            int_ops.Concat: _concat,
            int_ops.Requantize: _rescale,
            int_ops.Lookup: _rescale,
        },
        _REFUSALS,
        prepared=with_pools_that_keep_scale,
    )


RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "fbgemm": _rules("fbgemm", _fbgemm_layer, _add, _pool, _adaptive),
        "qnnpack": _rules("qnnpack", _qnnpack_layer, _qnnpack_add, _qnnpack_pool, _qnnpack_adaptive),
        "onednn": _rules("onednn", _onednn_layer, _add, _pool, _adaptive),
    }
)
