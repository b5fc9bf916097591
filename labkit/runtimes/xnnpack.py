"""The rules of LiteRT with its default delegate: XNNPACK where it takes an operator, the built-in kernels elsewhere.

XNNPACK leaves AVERAGE_POOL_2D, SOFTMAX, RELU and convolutions with int4 weights to the optimised built-in kernels
(docs/arithmetic.md, section 10). An operator whose scales are too far apart for XNNPACK is refused: it goes to kernels of
which no rule is known, or fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntNode, Tensor
from labkit.runtimes import litert, litert_opt
from labkit.runtimes.bounds import clamp_away, clamp_inside, real_bounds
from labkit.runtimes.labkit_rules import NO_BOUNDS
from labkit.runtimes.litert import Layer, Sum, elements, float32_scale, offset_of, product_scale, subtracts
from labkit.runtimes.lookups import RELU_BOUNDS, inputs_of, lookup_of
from labkit.runtimes.rules import RuleSet

__all__ = ["RULE_SETS"]

_ONE = np.float32(1)


def _even(node: IntNode, multiplier: NDArray[np.float32] | np.float32, clamp: tuple[int, int]) -> Requantizer:
    """One float32 product and one rounding (eq. 17)."""
    _check(node, float(np.max(multiplier)), 0.0, 2.0**8)
    zero_point = int(node.output.quantized[1].zero_point)
    ends = _ends(clamp, node.output)
    return Requantizer(RoundingRule.FLOAT32_EVEN, np.asarray(multiplier, np.float32), zero_point, ends)


def _ends(clamp: tuple[int, int], output: Tensor) -> tuple[int, int]:
    """``clamp`` with the ends of a known activation as XNNPACK rounds them."""
    bounds = real_bounds(clamp, output)
    return clamp if bounds == NO_BOUNDS else clamp_inside(bounds, output)


def _check(node: IntNode, ratio: float, low: float, high: float) -> None:
    if not low <= ratio < high:
        raise UnsupportedOperation(
            f"{node.name}: XNNPACK takes scales whose quotient is in {low:g}..{high:g}, got {ratio:g}. Choose litert."
        )


def _layer(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, Layer)
    if op.weight.spec.bits <= 4:
        if isinstance(op, int_ops.Conv2d):
            return litert_opt.convolution(node, inputs)
        if op.weight.values.shape[1] % 2:
            return litert_opt.fully_connected(node, inputs)
    multiplier = float32_scale(inputs[0]) * op.weight.params.scale / float32_scale(node.output)
    return replace(op, requantizer=_even(node, multiplier, op.requantizer.clamp))


def _sum(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, Sum)
    ratios = np.array([float32_scale(tensor) / float32_scale(node.output) for tensor in inputs])
    for ratio in ratios:
        _check(node, float(ratio), 2.0**-10, 2.0**8)
    shift = 20 - (math.frexp(float(ratios.max()))[1] - 1)
    multipliers = np.rint(np.ldexp(ratios.astype(np.float64), shift)) * [1, -1 if subtracts(op) else 1]
    zero_point = int(node.output.quantized[1].zero_point)
    return int_ops.Add(multipliers.astype(np.int32), shift, zero_point, _ends(op.clamp, node.output))


def _multiply(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, int_ops.Multiply)
    scale = product_scale(node, inputs)
    _check(node, float(scale), 2.0**-16, 2.0**8)
    return int_ops.Multiply(_even(node, scale, op.requantizer.clamp))


def _matmul(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """BATCH_MATMUL; XNNPACK takes a right side whose int8 zero point is 0, and leaves others to the optimised kernel."""
    op = node.op
    assert isinstance(op, int_ops.MatMul)
    if int(inputs[1].quantized[1].zero_point) != offset_of(inputs[1]):
        return litert.batch_matmul(node, inputs)
    litert.check_products(node, inputs)
    return replace(op, requantizer=_even(node, product_scale(node, inputs), op.requantizer.clamp))


def _eighth_bits(node: IntNode, source: Tensor, clamp: tuple[int, int]) -> Requantizer:
    """QUANTIZE: a multiplier of whole 256ths, one rounding with ties up."""
    ratio = float32_scale(source) / float32_scale(node.output)
    _check(node, float(ratio), 2.0**-8, 2.0**7 * (1 + 2**-20))
    fixed = FixedPointMultiplier.from_real(np.rint(np.float64(np.float32(256) * ratio)) / 256)
    return Requantizer(RoundingRule.SINGLE, fixed, int(node.output.quantized[1].zero_point), clamp)


def _rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, int_ops.Requantize)
    (spec, params), (other, others) = inputs[0].quantized, node.output.quantized
    bounds = real_bounds(op.requantizer.clamp, node.output)
    if bounds == NO_BOUNDS:
        if spec.signed != other.signed and params.scale != others.scale:  # XNNPACK does not take int8 to uint8
            return litert_opt.rescale(node, inputs)
        return int_ops.Requantize(_eighth_bits(node, inputs[0], op.requantizer.clamp))
    same = params.scale == others.scale and int(params.zero_point) == int(others.zero_point)
    if same and clamp_inside(bounds, node.output) != clamp_away(bounds, node.output):
        raise UnsupportedOperation(
            f"{node.name}: an end of its clamp lies halfway between two integers, and RELU rounds it in another way than a pool "
            f"into which it is fused. Choose litert."
        )
    return litert.rescale(node, inputs)


def _concat(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, int_ops.Concat)
    pairs = zip(op.requantizers, inputs, strict=True)
    return int_ops.Concat(tuple(_eighth_bits(node, tensor, old.clamp) for old, tensor in pairs))


def _function(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """LOGISTIC and TANH: tables of a float64 function, quantized in float32 with the zero point inside; GELU as LiteRT has it."""
    op = node.op
    assert isinstance(op, int_ops.Lookup)
    source, output = inputs[0], node.output
    if op.function in RELU_BOUNDS or op.function in ("gelu", "gelu_tanh"):  # left to the optimised kernels
        return litert.function(node, inputs)
    x = inputs_of(source).astype(np.float32) * float32_scale(source)
    real = np.array([_FUNCTIONS[op.function](value) for value in x.tolist()], np.float32)
    offset = offset_of(output)
    zero_point = np.float32(int(output.quantized[1].zero_point) - offset)
    return lookup_of(op.function, np.rint(real * (_ONE / float32_scale(output)) + zero_point) + offset, output)


def _logistic(x: float) -> float:
    if abs(x) > 100:
        return float(x > 0)
    return math.exp(x) / (1 + math.exp(x))


_FUNCTIONS = {"logistic": _logistic, "tanh": math.tanh}


def _pool(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    made = litert.average_pool(node, inputs)
    return made if isinstance(made, int_ops.AveragePoolOfValid) else _mean(node, inputs)


def _mean(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """MEAN in float32 from the sum of the integers as they are (eq. 42)."""
    op = node.op
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d)
    number, offset = elements(node, inputs[0]), offset_of(inputs[0])
    if offset != offset_of(node.output) or _ends(op.requantizer.clamp, node.output) != _whole(node.output):
        raise UnsupportedOperation(f"{node.name}: XNNPACK's MEAN keeps the type of its input and has no clamp.")
    multiplier = (float32_scale(inputs[0]) / float32_scale(node.output)) * (_ONE / np.float32(number))
    zero_points = [int(tensor.quantized[1].zero_point) - offset for tensor in (inputs[0], node.output)]
    addend = np.float32(zero_points[1]) - np.float32(number * zero_points[0]) * multiplier
    sizes = inputs[0].shape[1:]
    kernel = op.kernel[-len(sizes) :] if isinstance(op, int_ops.AveragePool2d) else sizes
    axes = tuple(1 + i for i in range(len(sizes)) if kernel[i] == sizes[i])
    return int_ops.MeanFloat32(axes, np.asarray(multiplier), np.asarray(addend), _whole(node.output), offset)


def _whole(output: Tensor) -> tuple[int, int]:
    spec, _ = output.quantized
    return spec.qmin, spec.qmax


def _border(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    assert isinstance(node.op, int_ops.Quantize)
    return int_ops.QuantizeByReciprocal(node.op.shape, zero_point_inside=False)


RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "xnnpack": RuleSet(
            "xnnpack",
            {
                **litert.BUILT_IN,
                int_ops.Quantize: _border,
                int_ops.Conv2d: _layer,
                int_ops.Linear: _layer,
                int_ops.AveragePool2d: _pool,
                int_ops.AveragePoolFloat32: _pool,
                int_ops.AdaptiveAveragePool2d: _mean,
                int_ops.Add: _sum,
                int_ops.AddFixedPoint: _sum,
                int_ops.AddFloat32: _sum,
                int_ops.Multiply: _multiply,
                int_ops.MatMul: _matmul,
                int_ops.Concat: _concat,
                int_ops.Requantize: _rescale,
                int_ops.Lookup: _function,
                int_ops.Softmax: litert.softmax_by_reciprocal,
            },
            prepared=litert.prepared,
        )
    }
)
