"""labkit's own rules: one rounding in int64, ties up, for everything (docs/arithmetic.md, sections 3 to 9).

These functions also build the operations of a network that comes from a file: a front end names scales, weights and the
real bounds of a fused activation, and gets the operation as labkit computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.softmax import exponential_table
from labkit.arithmetic.windows import common_area
from labkit.errors import BoundError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntNode, Tensor
from labkit.runtimes.bounds import RealBounds, clamp_even, real_bounds
from labkit.runtimes.rules import RuleSet

__all__ = ["NO_BOUNDS", "RULE_SETS", "add", "clamp_of", "factor_of", "matmul", "requantizer", "scale_of", "softmax"]

_ADD_BITS = 30
_FACTOR_ERROR = 2.0**-20  # relative; multipliers of all rules are nearer than this to the real ones
NO_BOUNDS: RealBounds = (None, None)


def scale_of(tensor: Tensor) -> np.float64:
    """The scale of a quantized ``tensor``, exact in float64."""
    return np.float64(tensor.quantized[1].scale)


def requantizer(multiplier: ArrayLike, output: Tensor, bounds: RealBounds = NO_BOUNDS) -> Requantizer:
    """From sums to ``output`` under SINGLE: ``multiplier`` float64, shape () or (C,), clamped to ``bounds``.

    Raises
    ------
    QuantizationError
        The multiplier is not positive and finite, or 2**30 or more.
    """
    fixed = FixedPointMultiplier.from_real(multiplier)
    return Requantizer(RoundingRule.SINGLE, fixed, int(output.quantized[1].zero_point), clamp_even(bounds, output))


def add(
    inputs: tuple[Tensor, Tensor], output: Tensor, bounds: RealBounds = NO_BOUNDS, subtracts: bool = False
) -> int_ops.Add:
    """The sum, or the difference if ``subtracts``, of two tensors ``inputs`` (eq. 19), clamped to ``bounds``.

    Raises
    ------
    BoundError
        The scales of ``inputs`` and ``output`` are too far apart.
    """
    ratios = np.array([scale_of(tensor) / scale_of(output) for tensor in inputs])
    _, exponent = np.frexp(ratios.max())
    shift = _ADD_BITS - int(exponent)
    if not 1 <= shift <= 62:
        raise BoundError(
            f"The scales of a sum's inputs and its output are too far apart ({ratios.max():.3g} times). "
            f"Calibrate on data that resembles the real input."
        )
    multipliers = np.floor(np.ldexp(ratios, shift) + 0.5) * [1, -1 if subtracts else 1]
    return int_ops.Add(
        multipliers.astype(np.int32), shift, int(output.quantized[1].zero_point), clamp_even(bounds, output)
    )


def softmax(axis: int, source: Tensor, output: Tensor) -> int_ops.Softmax:
    """The softmax of ``source`` along ``axis`` (eq. 26) for an ``output`` whose scale is a power of two, 1/2 to 1/256."""
    spec, params = output.quantized
    bits = round(-np.log2(float(params.scale)))
    return int_ops.Softmax(
        axis, exponential_table(float(source.quantized[1].scale)), bits, int(params.zero_point), (spec.qmin, spec.qmax)
    )


def matmul(
    inputs: tuple[Tensor, Tensor], output: Tensor, transpose_a: bool = False, transpose_b: bool = False
) -> int_ops.MatMul:
    """The matrix products of two tensors ``inputs`` (eq. 45) for ``output``, without a constant factor.

    Parameters
    ----------
    inputs, output : (B, m, k) and (B, k, n) to (B, m, n)
    transpose_a, transpose_b : as in `int_ops.MatMul`

    Raises
    ------
    QuantizationError
        The scales are too far apart.
    """
    multiplier = scale_of(inputs[0]) * scale_of(inputs[1]) / scale_of(output)
    return int_ops.MatMul(requantizer(multiplier, output), transpose_a, transpose_b)


def factor_of(op: int_ops.MatMul, inputs: tuple[Tensor, ...], output: Tensor) -> float:
    """The constant factor that ``op`` has in its multiplier besides the scales of ``inputs`` and ``output``; 1.0 for none."""
    factor = _real_multiplier(op.requantizer) * float(scale_of(output) / (scale_of(inputs[0]) * scale_of(inputs[1])))
    return 1.0 if factor == 0 or abs(factor - 1) < _FACTOR_ERROR else factor  # 0: the product of the scales vanishes


def _real_multiplier(old: Requantizer) -> float:
    multiplier = old.multiplier
    return float(multiplier.to_real() if isinstance(multiplier, FixedPointMultiplier) else multiplier)


def _layer(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    multiplier = op.weight.params.scale.astype(np.float64) * scale_of(inputs[0]) / scale_of(node.output)
    return replace(op, requantizer=_single(op.requantizer, multiplier, node.output))


def _pool(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d)
    if isinstance(op, int_ops.AveragePool2d):
        area = op.kernel[0] * op.kernel[1]
    else:
        height, width = (*(1, 1), *inputs[0].shape[1:])[-2:]
        area = common_area(height, width, op.output_size)
    multiplier = scale_of(inputs[0]) / (scale_of(node.output) * area)
    return replace(op, requantizer=_single(op.requantizer, multiplier, node.output))


def _pool_float32(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.AveragePoolFloat32)
    if not op.counts_padding and np.any(op.padding):
        raise UnsupportedOperation("labkit has no rule of its own for a mean that leaves the padding out.")
    multiplier = scale_of(inputs[0]) / (scale_of(node.output) * (op.kernel[0] * op.kernel[1]))
    made = replace(requantizer(multiplier, node.output), clamp=clamp_of(op.clamp, node.output))
    return int_ops.AveragePool2d(op.kernel, op.stride, op.padding, made)


def _softmax_float32(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.SoftmaxFloat32)
    scale = scale_of(node.output)
    if -np.log2(scale) not in range(1, 9):
        raise UnsupportedOperation(f"labkit's softmax has an output scale of 1/2, 1/4, ... or 1/256, not {scale:g}.")
    return replace(softmax(op.axis, inputs[0], node.output), clamp=op.clamp)


def _add(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32)
    subtracts = op.subtracts if isinstance(op, int_ops.AddFixedPoint) else False
    if isinstance(op, int_ops.Add):
        subtracts = bool(op.multipliers[1] < 0)
    made = add((inputs[0], inputs[1]), node.output, subtracts=subtracts)
    return replace(made, clamp=clamp_of(op.clamp, node.output))


def _multiply(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Multiply)
    multiplier = scale_of(inputs[0]) * scale_of(inputs[1]) / scale_of(node.output)
    return replace(op, requantizer=_single(op.requantizer, multiplier, node.output))


def _concat(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Concat)
    return int_ops.Concat(
        tuple(
            _single(old, scale_of(tensor) / scale_of(node.output), node.output)
            for old, tensor in zip(op.requantizers, inputs, strict=True)
        )
    )


def _rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Requantize)
    return int_ops.Requantize(_single(op.requantizer, scale_of(inputs[0]) / scale_of(node.output), node.output))


def _matmul(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """A factor is known from its multiplier alone, which stays as it is where it is labkit's own."""
    op = node.op
    assert isinstance(op, int_ops.MatMul)
    factor = factor_of(op, inputs, node.output)
    if factor != 1 and op.requantizer.rule is RoundingRule.SINGLE:
        return replace(op, requantizer=replace(op.requantizer, clamp=clamp_of(op.requantizer.clamp, node.output)))
    multiplier = factor * scale_of(inputs[0]) * scale_of(inputs[1]) / scale_of(node.output)
    return replace(op, requantizer=_single(op.requantizer, multiplier, node.output))


def _embedding(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    op = node.op
    assert isinstance(op, int_ops.Embedding)
    multiplier = op.weight.params.scale.astype(np.float64) / scale_of(node.output)
    return replace(op, requantizer=_single(op.requantizer, multiplier, node.output))


def _same(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    return node.op


def _single(old: Requantizer, multiplier: ArrayLike, output: Tensor) -> Requantizer:
    """A SINGLE requantizer with the bounds that ``old`` has."""
    return replace(requantizer(multiplier, output), clamp=clamp_of(old.clamp, output))


def clamp_of(clamp: tuple[int, int], output: Tensor) -> tuple[int, int]:
    """``clamp`` on the grid of ``output`` with the ends of a known activation as labkit rounds them; any other as it is."""
    bounds = real_bounds(clamp, output)
    return clamp if bounds == NO_BOUNDS else clamp_even(bounds, output)


RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "labkit": RuleSet(
            "labkit",
            {
                int_ops.Quantize: _same,
                int_ops.Conv2d: _layer,
                int_ops.Linear: _layer,
                int_ops.AveragePool2d: _pool,
                int_ops.AdaptiveAveragePool2d: _pool,
                int_ops.AveragePoolOfValid: _same,  # in integers already
                int_ops.AveragePoolFloat32: _pool_float32,
                int_ops.Add: _add,
                int_ops.AddFixedPoint: _add,
                int_ops.AddFloat32: _add,
                int_ops.Multiply: _multiply,
                int_ops.Concat: _concat,
                int_ops.Requantize: _rescale,
                int_ops.Lookup: _same,
                int_ops.Softmax: _same,
                int_ops.SoftmaxFixedPoint: _same,
                int_ops.SoftmaxFloat32: _softmax_float32,
                int_ops.Constant: _same,
                int_ops.Embedding: _embedding,
                int_ops.MatMul: _matmul,
                int_ops.SoftmaxPolynomial: _same,  # constants of I-BERT's polynomials, in integers already
                int_ops.GeluPolynomial: _same,
                int_ops.LayerNorm: _same,
            },
        )
    }
)
