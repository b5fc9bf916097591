"""The rules of LiteRT's reference kernels (docs/arithmetic.md, section 10), and what its other kernels share with them.

LiteRT has int8 activations only. A network whose activations count from 0 is computed as the same network lowered by 128, and
its integers are those of LiteRT raised by 128. Only means that sum the integers as they are depend on it: they have an offset.

Where LiteRT has no operation of labkit's kind, these rules mean the operators that stand for it in a TFLite file:

* an average pool over the whole image is MEAN; another one is AVERAGE_POOL_2D, and QUANTIZE after it if the scale changes;
* a change of scale is QUANTIZE, and one with the clamp of a ReLU is RELU, RELU6 or RELU_N1_TO_1;
* a concatenation of tensors with unequal scales has a QUANTIZE before it for each of them;
* weights of 2 to 4 bits are int4, those of 5 to 8 bits int8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule, round_half_away
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.bounds import clamp_away, real_bounds
from labkit.runtimes.labkit_rules import NO_BOUNDS, factor_of, scale_of
from labkit.runtimes.lookups import RELU_BOUNDS, inputs_of, lookup_of, requantized
from labkit.runtimes.pools import with_pools_that_keep_scale
from labkit.runtimes.rules import Remake, RuleSet

__all__ = [
    "BUILT_IN",
    "RULE_SETS",
    "Layer",
    "Sum",
    "average_pool",
    "away_clamp",
    "batch_matmul",
    "check_products",
    "check_shares",
    "concat",
    "elements",
    "fixed_point",
    "float32_scale",
    "function",
    "layer_multiplier",
    "mean",
    "multiply",
    "offset_of",
    "prepared",
    "product_scale",
    "rescale",
    "softmax_by_reciprocal",
    "subtracts",
    "sum_or_difference",
]

_SHIFT = 20  # bits by which ADD and SUB raise their inputs
_EXPONENT_BITS = 26  # fractional bits of a softmax's exponent
_GEMMLOWP = RoundingRule.GEMMLOWP
Layer = int_ops.Conv2d | int_ops.Linear
Sum = int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32


def float32_scale(tensor: Tensor) -> np.float32:
    """The scale of a quantized ``tensor``."""
    return np.float32(tensor.quantized[1].scale)


def offset_of(tensor: Tensor) -> int:
    """What the integers of ``tensor`` are above those of LiteRT: 128 where they count from 0, else 0."""
    return 0 if tensor.quantized[0].signed else 128


def away_clamp(clamp: tuple[int, int], output: Tensor) -> tuple[int, int]:
    """``clamp`` on the grid of ``output`` with the ends of a known activation as LiteRT's built-in kernels round them."""
    bounds = real_bounds(clamp, output)
    return clamp if bounds == NO_BOUNDS else clamp_away(bounds, output)


def fixed_point(multiplier: Any, output: Tensor, clamp: tuple[int, int], rule: RoundingRule = _GEMMLOWP) -> Requantizer:
    """The requantizer of a built-in kernel for ``output``: ``multiplier`` float64, () or (C,), ``clamp`` and ``rule``.

    Raises
    ------
    QuantizationError
        The multiplier is not positive and finite, or 2**30 or more.
    """
    zero_point = int(output.quantized[1].zero_point)
    return Requantizer(rule, FixedPointMultiplier.from_real(multiplier), zero_point, away_clamp(clamp, output))


def layer_multiplier(op: Layer, source: Tensor, output: Tensor) -> NDArray[np.float64]:
    """``S_x S_w / S_y`` of ``op`` from ``source`` to ``output`` in float64, shape () or (O,)."""
    return np.asarray(scale_of(source) * op.weight.params.scale.astype(np.float64) / scale_of(output))


def _convolution(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    multiplier = layer_multiplier(op, inputs[0], node.output)
    return replace(op, requantizer=fixed_point(multiplier, node.output, op.requantizer.clamp))


def _fully_connected(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    op = node.op
    assert isinstance(op, int_ops.Linear)
    zero_point = int(node.output.quantized[1].zero_point)
    multiplier = layer_multiplier(op, inputs[0], node.output)
    clamp = away_clamp(op.requantizer.clamp, node.output)
    return replace(op, requantizer=Requantizer(RoundingRule.FLOAT64_AWAY, multiplier, zero_point, clamp))


def sum_or_difference(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """ADD, and SUB where the second input is subtracted (eq. 31), for ``node`` on ``inputs``."""
    op = node.op
    assert isinstance(op, Sum)
    twice = 2 * max(scale_of(tensor) for tensor in inputs)
    return int_ops.AddFixedPoint(
        _GEMMLOWP,
        _SHIFT,
        FixedPointMultiplier.from_real(np.array([scale_of(tensor) / twice for tensor in inputs])),
        FixedPointMultiplier.from_real(twice / (2.0**_SHIFT * scale_of(node.output))),
        int(node.output.quantized[1].zero_point),
        away_clamp(op.clamp, node.output),
        subtracts(op),
    )


def subtracts(op: Sum) -> bool:
    """Whether ``op`` subtracts its second input."""
    if isinstance(op, int_ops.Add):
        return bool(op.multipliers[1] < 0)
    return isinstance(op, int_ops.AddFixedPoint) and op.subtracts


def product_scale(node: IntNode, inputs: tuple[Tensor, ...]) -> np.float32:
    """``S_a S_b / S_y`` of a product as LiteRT computes it, in float32, for ``node`` on ``inputs``."""
    return np.float32(float32_scale(inputs[0]) * float32_scale(inputs[1]) / float32_scale(node.output))


def multiply(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """MUL, for ``node`` on ``inputs``."""
    op = node.op
    assert isinstance(op, int_ops.Multiply)
    scale = np.float64(product_scale(node, inputs))
    return int_ops.Multiply(fixed_point(scale, node.output, op.requantizer.clamp))


def batch_matmul(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """BATCH_MATMUL of the reference and the optimised kernels, for ``node`` on ``inputs``: the product of the scales is float32.

    Raises
    ------
    UnsupportedOperation
        It has a constant factor or a clamp, which no file can hold.
    """
    op = node.op
    assert isinstance(op, int_ops.MatMul)
    check_products(node, inputs)
    multiplier = np.float64(float32_scale(inputs[0]) * float32_scale(inputs[1])) / scale_of(node.output)
    return replace(op, requantizer=fixed_point(multiplier, node.output, op.requantizer.clamp))


def check_products(node: IntNode, inputs: tuple[Tensor, ...]) -> None:
    """BATCH_MATMUL multiplies and rescales, and does nothing else: check this of ``node``, which takes ``inputs``.

    Raises
    ------
    UnsupportedOperation
        The products have a constant factor, or a clamp.
    """
    op = node.op
    assert isinstance(op, int_ops.MatMul)
    factor = factor_of(op, inputs, node.output)
    if factor != 1:
        raise UnsupportedOperation(
            f"{node.name}: no other runtime multiplies a matrix product by a constant, got {factor:.6g}. Put the factor into the "
            f"weights before it, or run it like labkit."
        )
    if op.requantizer.clamp != _whole(node.output):
        raise UnsupportedOperation(
            f"{node.name}: a product of two tensors has no fused activation elsewhere, got the clamp {op.requantizer.clamp}. "
            f"Run it like labkit."
        )


def average_pool(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """AVERAGE_POOL_2D (eq. 33), or MEAN for windows of whole images, rows or columns, for ``node`` on ``inputs``.

    Raises
    ------
    UnsupportedOperation
        Padding is counted, as no operator of LiteRT does.
    """
    op = node.op
    if isinstance(op, int_ops.AveragePoolOfValid):
        return replace(op, clamp=away_clamp(op.clamp, node.output), offset=offset_of(node.output))
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AveragePoolFloat32)
    if any(map(any, op.padding)) and not (isinstance(op, int_ops.AveragePoolFloat32) and not op.counts_padding):
        raise UnsupportedOperation(
            f"{node.name}: LiteRT's average pool leaves padding out of the mean, but this one counts it as 0. Choose another "
            f"runtime, or give the pool no padding."
        )
    if isinstance(op, int_ops.AveragePool2d) and _is_whole(op, inputs[0]):
        return mean(node, inputs)
    clamp = op.clamp if isinstance(op, int_ops.AveragePoolFloat32) else op.requantizer.clamp
    made = int_ops.AveragePoolOfValid(op.kernel, op.stride, op.padding, away_clamp(clamp, node.output))
    return replace(made, offset=offset_of(node.output))


def mean(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """MEAN of the reference kernels, with the mantissa divided by the number of elements (eq. 30), for ``node`` on ``inputs``.

    Raises
    ------
    UnsupportedOperation
        The mean is of parts of the image that differ in size.
    """
    op = node.op
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d)
    number = elements(node, inputs[0])
    fixed = FixedPointMultiplier.from_real(scale_of(inputs[0]) / scale_of(node.output))
    shift = min(number.bit_length() - 1, 32, 31 + int(fixed.exponent))
    divided = FixedPointMultiplier(
        np.array((int(fixed.mantissa) << shift) // number, np.int32), np.array(int(fixed.exponent) - shift, np.int32)
    )
    zero_point = int(node.output.quantized[1].zero_point)
    clamp = away_clamp(op.requantizer.clamp, node.output)
    return replace(op, requantizer=Requantizer(_GEMMLOWP, divided, zero_point, clamp))


def elements(node: IntNode, source: Tensor) -> int:
    """How many elements of ``source`` the mean of ``node`` has.

    Raises
    ------
    UnsupportedOperation
        It has several means, of parts of the image.
    """
    op = node.op
    if isinstance(op, int_ops.AdaptiveAveragePool2d) and op.output_size == (1, 1):
        return math.prod(source.shape[1:])
    if isinstance(op, int_ops.AveragePool2d):
        return op.kernel[0] * op.kernel[1]
    raise UnsupportedOperation(f"{node.name}: LiteRT has no adaptive average pool but that to one pixel.")


def rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """QUANTIZE; with the clamp of a ReLU the RELU kernel, whose scale is a float32 quotient, for ``node`` on ``inputs``."""
    op = node.op
    assert isinstance(op, int_ops.Requantize)
    bounds = real_bounds(op.requantizer.clamp, node.output)
    ratio = scale_of(inputs[0]) / scale_of(node.output)
    if bounds != NO_BOUNDS:
        ratio = np.float64(float32_scale(inputs[0]) / float32_scale(node.output))
    return int_ops.Requantize(fixed_point(ratio, node.output, op.requantizer.clamp))


def concat(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """CONCATENATION, each part of another scale quantized to that of the result before, for ``node`` on ``inputs``."""
    op = node.op
    assert isinstance(op, int_ops.Concat)
    return int_ops.Concat(
        tuple(
            fixed_point(scale_of(tensor) / scale_of(node.output), node.output, old.clamp)
            for old, tensor in zip(op.requantizers, inputs, strict=True)
        )
    )


def _exponential(x: float) -> float:
    """e**x rounded once to float32, as the C library's expf gives it up to its last bit."""
    return float(np.float32(math.exp(min(x, 88.0))))


def function(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """LOGISTIC, TANH, GELU: tables of float32 functions; RELU and its kin by the fixed-point kernel, for ``node`` on ``inputs``.

    LiteRT takes exponential, hyperbolic tangent and error function from the C library; here they are rounded correctly. Ones
    that are not (tanhf and erfcf of glibc 2.36) are off in their last bit at times, which shows in the eight bits where they are
    nearly a tie.
    """
    op = node.op
    assert isinstance(op, int_ops.Lookup)
    source, output = inputs[0], node.output
    if op.function in RELU_BOUNDS:
        by = fixed_point(np.float64(float32_scale(source) / float32_scale(output)), output, _whole(output))
        return requantized(op.function, source, output, replace(by, clamp=clamp_away(RELU_BOUNDS[op.function], output)))
    x = inputs_of(source).astype(np.float32) * float32_scale(source)
    if op.function in ("gelu", "gelu_tanh"):
        real = _gelu(x, op.function)
    elif op.function == "logistic":
        real = np.float32(1) / (np.float32(1) + np.array([_exponential(-value) for value in x.tolist()], np.float32))
    else:
        real = np.array([math.tanh(value) for value in x.tolist()], np.float32)
    steps = round_half_away(real * (np.float32(1) / float32_scale(output)))
    return lookup_of(op.function, steps + int(output.quantized[1].zero_point), output)


def _gelu(x: NDArray[np.float32], function: str) -> NDArray[np.float32]:
    """LiteRT's float32 GELU of ``x`` [256], each operation rounded by itself; ``function`` names the form."""
    half = np.float32(0.5) * x
    if function == "gelu":
        inner = x * np.float32(-math.sqrt(0.5))
        return half * np.array([math.erfc(value) for value in inner.tolist()], np.float32)
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return half * (np.float32(1) + np.array([math.tanh(value) for value in inner.tolist()], np.float32))


def _softmax(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    check_shares(node)
    assert isinstance(node.op, int_ops.Softmax)
    real = min(float(scale_of(inputs[0])) * 2.0**_EXPONENT_BITS, 2.0**31 - 1)
    multiplier = FixedPointMultiplier.from_real(real)
    lowest = -math.floor(31 * 2.0**_EXPONENT_BITS / 2.0 ** int(multiplier.exponent))
    return int_ops.SoftmaxFixedPoint(node.op.axis, multiplier, lowest, node.op.zero_point, node.op.clamp)


def softmax_by_reciprocal(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """SOFTMAX of the optimised kernels, by a table of float32 exponentials (eq. 43), for ``node`` on ``inputs``."""
    check_shares(node)
    assert isinstance(node.op, int_ops.Softmax)
    steps = -float32_scale(inputs[0]) * np.arange(256, dtype=np.float32)
    table = np.array([_exponential(step) for step in steps.tolist()], np.float32)
    return int_ops.SoftmaxByReciprocal(node.op.axis, table, node.op.zero_point, node.op.clamp)


def check_shares(node: IntNode) -> None:
    """LiteRT's softmax has one form of output.

    Raises
    ------
    UnsupportedOperation
        The output of ``node`` has another scale, zero point or number of bits.
    """
    spec, params = node.output.quantized
    if (spec.bits, float(params.scale), int(params.zero_point)) != (8, 2.0**-8, spec.qmin):
        raise UnsupportedOperation(
            f"{node.name}: LiteRT's softmax puts out 8 bits of scale 1/256 with the lowest integer for 0, got {node.output}. "
            f"Choose another runtime, or quantize the network with 8 bits there."
        )


def _border(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    assert isinstance(node.op, int_ops.Quantize)
    return int_ops.QuantizeAwayFromZero(node.op.shape)


def prepared(graph: IntGraph) -> IntGraph:
    """``graph`` with pools that change the scale split in two, but those over whole images, which MEAN rescales itself."""
    return with_pools_that_keep_scale(graph, keep=_rescales_itself)


def _rescales_itself(node: IntNode, source: Tensor) -> bool:
    op = node.op
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        return op.output_size == (1, 1)
    return isinstance(op, int_ops.AveragePool2d) and _is_whole(op, source)


def _is_whole(op: int_ops.AveragePool2d, source: Tensor) -> bool:
    """Whether each window is a whole axis of the image or one element of it, so that MEAN takes this mean."""
    height, width = (*(1, 1), *source.shape[1:])[-2:]
    axes = [(op.kernel[0], op.stride[0], height), (op.kernel[1], op.stride[1], width)]
    whole = all(kernel == size or (kernel, stride) == (1, 1) for kernel, stride, size in axes)
    return (
        whole
        and any(kernel == size for kernel, _, size in axes[-len(source.shape) + 1 :])
        and not any(map(any, op.padding))
    )


def _whole(output: Tensor) -> tuple[int, int]:
    spec, _ = output.quantized
    return spec.qmin, spec.qmax


BUILT_IN: Mapping[type[Any], Remake] = MappingProxyType(
    {
        int_ops.Constant: lambda node, inputs: node.op,
        int_ops.AveragePool2d: average_pool,
        int_ops.AveragePoolOfValid: average_pool,
        int_ops.AveragePoolFloat32: average_pool,
        int_ops.Lookup: function,
    }
)
"""What LiteRT's reference and optimised kernels, and what XNNPACK leaves to them, compute in the same way."""

RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "litert": RuleSet(
            "litert",
            {
                **BUILT_IN,
                int_ops.Quantize: _border,
                int_ops.Conv2d: _convolution,
                int_ops.Linear: _fully_connected,
                int_ops.Add: sum_or_difference,
                int_ops.AddFixedPoint: sum_or_difference,
                int_ops.AddFloat32: sum_or_difference,
                int_ops.Multiply: multiply,
                int_ops.MatMul: batch_matmul,
                int_ops.Concat: concat,
                int_ops.Requantize: rescale,
                int_ops.AdaptiveAveragePool2d: mean,
                int_ops.Softmax: _softmax,
            },
            prepared=prepared,
        )
    }
)
