"""What must hold for the nodes that compute as another runtime does (docs/arithmetic.md, section 10)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.arithmetic.bounds import INT32_LIMIT
from labkit.arithmetic.fixedpoint import LARGEST_EXPONENT
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import BoundError, ModelError
from labkit.graph import int_ops

if TYPE_CHECKING:
    from labkit.graph.ir import IntNode, Tensor

__all__ = ["OPERATIONS_OF_RUNTIMES", "check_constant", "check_operation_of_runtime"]

OPERATIONS_OF_RUNTIMES = (
    int_ops.AddFixedPoint,
    int_ops.AddFloat32,
    int_ops.AddDequantized,
    int_ops.AddAwayFromZero,
    int_ops.AveragePoolOfValid,
    int_ops.AveragePoolFloat32,
    int_ops.MeanFloat32,
    int_ops.Lookup,
    int_ops.SoftmaxByReciprocal,
    int_ops.SoftmaxFixedPoint,
    int_ops.SoftmaxFloat32,
)
LARGEST_SCALE = 60  # as a power of two: sums of dequantized numbers are then finite
LARGEST_SUM = 40  # bits; a product of 255 and a multiplier has fewer
_FUNCTIONS = ("gelu", "gelu_tanh", "logistic", "relu", "relu6", "relu_n1_to_1", "rescale", "tanh")


def check_operation_of_runtime(node: IntNode, op: Any, inputs: tuple[Tensor, ...]) -> None:
    """Check ``node``, whose ``op`` is one of `OPERATIONS_OF_RUNTIMES`, with the tensors ``inputs`` that go in.

    Raises
    ------
    ModelError
        A parameter does not fit.
    BoundError
        A sum could leave 32 bits.
    """
    spec, params = node.output.quantized
    for tensor in inputs:
        tensor.quantized  # noqa: B018  (raises where the input is real)
    if isinstance(op, int_ops.Lookup):
        _check_lookup(node, op)
        return
    low, high = op.clamp
    if not spec.qmin <= low <= high <= spec.qmax:
        raise ModelError(f"{node.name}: the clamp {low}..{high} does not fit the grid {spec.qmin}..{spec.qmax}.")
    if getattr(op, "zero_point", int(params.zero_point)) != int(params.zero_point):
        raise ModelError(f"{node.name}: its zero point is {op.zero_point}, but {int(params.zero_point)} is declared.")
    if isinstance(op, int_ops.AddFixedPoint | int_ops.AddFloat32):
        _check_sum(node, op, inputs)
    elif isinstance(op, int_ops.AddDequantized | int_ops.AddAwayFromZero):
        _check_sum_of_torch(node, op, inputs)
    elif isinstance(op, int_ops.SoftmaxFloat32):
        _check_softmax_float32(node, op)
    elif isinstance(op, int_ops.SoftmaxFixedPoint):
        if op.multiplier.mantissa.shape != () or int(op.multiplier.exponent) < 0:
            raise ModelError(f"{node.name}: a softmax takes one multiplier of at least 1/2, got {op.multiplier}.")
        if not -(2**31) < op.lowest_difference <= 0:
            raise ModelError(
                f"{node.name}: the lowest difference to the maximum is at most 0, got {op.lowest_difference}."
            )
        if inputs[0].shape[op.axis] > 4095:  # each exponential is at most 2**19
            raise BoundError(f"{node.name}: a fixed-point softmax sums at most 4095 elements, got {inputs[0].shape}.")
        _check_shares(node)
    elif isinstance(op, int_ops.SoftmaxByReciprocal):
        if op.table.shape != (256,) or op.table.dtype != np.float32 or not np.all((op.table >= 0) & (op.table <= 1)):
            raise ModelError(
                f"{node.name}: a softmax takes 256 exponentials of 0..1 in float32, got {op.table.dtype} {op.table.shape}."
            )
        if op.table[0] != 1:
            raise ModelError(f"{node.name}: the exponential of the largest element is 1, got {op.table[0]}.")
        _check_shares(node)
    elif isinstance(op, int_ops.MeanFloat32):
        _check_mean(node, op, inputs[0])
    elif isinstance(op, int_ops.AveragePoolFloat32):
        if not inputs[0].quantized[1].scale < 2.0**LARGEST_SCALE:
            raise ModelError(
                f"{node.name}: the scale of its input must be below 2**{LARGEST_SCALE}, so that sums are finite."
            )
    elif isinstance(op, int_ops.AveragePoolOfValid):
        _check_same_scale(node, inputs[0])
        if op.offset not in (0, 128):
            raise ModelError(f"{node.name}: integers are summed as they are or less 128, got an offset of {op.offset}.")
        if op.kernel[0] * op.kernel[1] > 2**22:  # times 256 stays below 2**31
            raise BoundError(f"{node.name}: a window of {op.kernel} sums to more than int32 holds.")


def check_constant(node: IntNode, op: int_ops.Constant) -> None:
    """Check the integers of ``op``, that of ``node``.

    Raises
    ------
    ModelError
        They do not lie on the grid of the node's output.
    """
    spec, _ = node.output.quantized
    if op.values.dtype != spec.dtype or op.values.size == 0:
        raise ModelError(f"{node.name}: a constant on the grid {spec} holds {spec.dtype}, got {op.values.dtype}.")
    if op.values.min() < spec.qmin or op.values.max() > spec.qmax:
        raise ModelError(f"{node.name}: its integers leave the grid {spec.qmin}..{spec.qmax}.")


def _check_shares(node: IntNode) -> None:
    spec, params = node.output.quantized
    if (float(params.scale), int(params.zero_point), spec.bits, spec.narrow) != (2.0**-8, spec.qmin, 8, False):
        raise ModelError(
            f"{node.name}: a softmax puts out 8 bits with scale 1/256 and the lowest integer as zero point, not {node.output}."
        )


def _check_mean(node: IntNode, op: int_ops.MeanFloat32, source: Tensor) -> None:
    if (op.multiplier.shape, op.addend.shape) != ((), ()) or {op.multiplier.dtype, op.addend.dtype} != {
        np.dtype(np.float32)
    }:
        raise ModelError(f"{node.name}: a mean in float32 takes one multiplier and one addend, both float32.")
    if op.offset not in (0, 128):
        raise ModelError(f"{node.name}: integers are summed as they are or less 128, got an offset of {op.offset}.")
    if not 0 < op.multiplier < 2.0**LARGEST_EXPONENT or not abs(op.addend) < 2.0**LARGEST_SUM:
        raise ModelError(
            f"{node.name}: the multiplier of a mean must be in 0..2**{LARGEST_EXPONENT} and its addend below "
            f"2**{LARGEST_SUM}, got {op.multiplier} and {op.addend}. Check the scales."
        )
    if math.prod(source.shape[axis] for axis in op.axes) > 2**22:  # times 256 stays below 2**31
        raise BoundError(f"{node.name}: a mean along {op.axes} of {source.shape} sums to more than int32 holds.")


def _check_sum(node: IntNode, op: int_ops.AddFixedPoint | int_ops.AddFloat32, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].shape != inputs[1].shape:
        raise ModelError(f"{node.name}: both inputs must have one shape, got {inputs[0].shape}, {inputs[1].shape}.")
    if isinstance(op, int_ops.AddFloat32):
        shapes = (op.multipliers.shape, op.addend.shape)
        if shapes != ((2,), ()) or {op.multipliers.dtype, op.addend.dtype} != {np.dtype(np.float32)}:
            raise ModelError(f"{node.name}: a float32 sum takes two multipliers and one addend, got shapes {shapes}.")
        sound = (op.multipliers > 0) & (op.multipliers < 2.0**LARGEST_EXPONENT)
        if not np.all(sound) or not abs(op.addend) < 2.0**LARGEST_SUM:
            raise ModelError(
                f"{node.name}: the multipliers of a sum must be positive and finite, below 2**{LARGEST_EXPONENT}, and its "
                f"addend below 2**{LARGEST_SUM}, got {op.multipliers} and {op.addend}. Check the scales."
            )
        return
    if op.rule not in (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP) or not 0 <= op.left_shift <= 22:
        raise ModelError(
            f"{node.name}: a fixed-point sum shifts by 0..22 bits under GEMMLOWP or GEMMLOWP_UP, got {op.left_shift} bits "
            f"under {op.rule.name}."
        )
    if op.inputs.mantissa.shape != (2,) or op.output.mantissa.shape != () or np.any(op.inputs.exponent > 0):
        raise ModelError(f"{node.name}: a fixed-point sum takes two multipliers up to 1 and one for the result.")
    largest = _largest_sum(op, inputs)
    if largest << max(int(op.output.exponent), 0) > INT32_LIMIT:
        raise BoundError(
            f"{node.name}: {op.rule.name} shifts its sum, up to {largest:,}, left by {int(op.output.exponent)} bits and out of "
            f"int32. The output's scale is far too small for those of the inputs."
        )


def _largest_sum(op: int_ops.AddFixedPoint, inputs: tuple[Tensor, ...]) -> int:
    """What the sum of eq. 31 cannot exceed in magnitude; both roundings together add less than 1 to each part."""
    total = 0
    for tensor, mantissa, exponent in zip(inputs, op.inputs.mantissa, op.inputs.exponent, strict=True):
        spec, params = tensor.quantized
        farthest = max(abs(end - int(params.zero_point)) for end in (spec.qmin, spec.qmax)) << op.left_shift
        total += (farthest * int(mantissa) >> 31 - int(exponent)) + 1
    return total


def _check_sum_of_torch(
    node: IntNode, op: int_ops.AddDequantized | int_ops.AddAwayFromZero, inputs: tuple[Tensor, ...]
) -> None:
    if inputs[0].shape != inputs[1].shape:
        raise ModelError(f"{node.name}: both inputs must have one shape, got {inputs[0].shape}, {inputs[1].shape}.")
    if isinstance(op, int_ops.AddAwayFromZero):
        fits = op.multipliers.shape == (2,) and op.multipliers.dtype == np.int32 and 1 <= op.shift <= 31
        if not fits or np.any((op.multipliers < 0) | (op.multipliers > 2**22)):
            raise ModelError(
                f"{node.name}: a sum that rounds away from zero takes two int32 multipliers of 0..2**22 and a shift of 1..31, "
                f"got {op.multipliers} and {op.shift}."
            )
        return
    reals = np.array([*op.scales.ravel(), op.reciprocal.ravel()[0]]) if op.reciprocal.size == 1 else np.zeros(1)
    if (op.scales.shape, op.reciprocal.shape) != ((2,), ()) or {op.scales.dtype, op.reciprocal.dtype} != {
        np.dtype(np.float32)
    }:
        raise ModelError(f"{node.name}: a sum of dequantized tensors takes float32 scales [2] and a reciprocal [].")
    if not np.all((reals > 0) & (reals < 2.0**LARGEST_SCALE)) or not 0 <= op.fused <= math.prod(inputs[0].shape):
        raise ModelError(
            f"{node.name}: scales and reciprocal must be positive and below 2**{LARGEST_SCALE}, and at most every element of "
            f"an image fused; got {reals} and {op.fused}."
        )


def _check_softmax_float32(node: IntNode, op: int_ops.SoftmaxFloat32) -> None:
    """The sum must be positive and finite: the largest element's exponential is not 0, and 2**28 of them fit float32."""
    table, shapes = op.table, (op.table.shape, op.factor.shape)
    if shapes != ((256,), ()) or {table.dtype, op.factor.dtype} != {np.dtype(np.float32)}:
        raise ModelError(f"{node.name}: a float32 softmax takes float32 [256] exponentials and a factor, got {shapes}.")
    if not np.all((table >= 0) & (table <= table[0])) or not 2.0**-64 <= table[0] <= 2.0**126:
        raise ModelError(f"{node.name}: exponentials must fall from a first one of 2**-64..2**126, got {table[0]}.")
    if not 1 <= op.factor <= 2**16:
        raise ModelError(f"{node.name}: the factor of a float32 softmax must be in 1..65536, got {op.factor}.")


def _check_lookup(node: IntNode, op: int_ops.Lookup) -> None:
    spec, _ = node.output.quantized
    if op.function not in _FUNCTIONS or op.table.shape != (256,) or op.table.dtype != np.int32:
        raise ModelError(
            f"{node.name}: a Lookup of {_FUNCTIONS} takes int32 [256], got {op.function!r}, {op.table.dtype} {op.table.shape}."
        )
    if op.table.min() < spec.qmin or op.table.max() > spec.qmax:
        raise ModelError(f"{node.name}: its table leaves the grid {spec.qmin}..{spec.qmax}.")


def _check_same_scale(node: IntNode, source: Tensor) -> None:
    (_, before), (_, after) = source.quantized, node.output.quantized
    if source.spec != node.output.spec or (before.scale, before.zero_point) != (after.scale, after.zero_point):
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} keeps the scale of its input, but another is declared."
        )
