"""What must hold for the operations of `graph.int_ops_sequences`: grids, constants and bounds of every intermediate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from labkit.arithmetic.affine import PerAxis
from labkit.arithmetic.bounds import INT32_LIMIT
from labkit.arithmetic.ibert import EXPONENT_SHIFT, GELU_SHIFT, NORMALISED_BITS
from labkit.errors import BoundError, ModelError
from labkit.graph import int_ops

if TYPE_CHECKING:
    from labkit.graph.ir import IntNode, Tensor

__all__ = ["OPERATIONS_ON_SEQUENCES", "OperationOnSequences", "check_operation_on_sequences"]

OperationOnSequences = (
    int_ops.Embedding | int_ops.MatMul | int_ops.SoftmaxPolynomial | int_ops.GeluPolynomial | int_ops.LayerNorm
)
OPERATIONS_ON_SEQUENCES = (
    *(int_ops.Embedding, int_ops.MatMul, int_ops.SoftmaxPolynomial, int_ops.GeluPolynomial, int_ops.LayerNorm),
)
_LONGEST = 62  # bits of the longest sum in int64, with the sign and one bit to spare
_LARGEST = 2**63 - 1
_SHARE_ONE = 2**15 - 1  # the largest exponential in i-softmax
_POWER_BITS = 32  # of the parabola in i-exp
_MAKE_AGAIN = "Make it with labkit.quantize, which derives these numbers."


def check_operation_on_sequences(node: IntNode, op: OperationOnSequences, inputs: tuple[Tensor, ...]) -> None:
    """Check the ``op`` of ``node``, which takes ``inputs`` of fitting shapes.

    Raises
    ------
    ModelError
        A grid or a constant does not fit.
    BoundError
        A sum could leave the bits that the kernels give it.
    """
    if isinstance(op, int_ops.Embedding):
        _check_embedding(node, op, inputs[0])
        return
    largest = [_largest(tensor) for tensor in inputs]
    if isinstance(op, int_ops.MatMul):
        inner = inputs[0].shape[1] if op.transpose_a else inputs[0].shape[2]
        if inner * largest[0] * largest[1] > INT32_LIMIT:
            raise BoundError(f"{node.name}: a sum of {inner} products can leave int32. Use fewer bits for one factor.")
    elif isinstance(op, int_ops.SoftmaxPolynomial):
        _check_softmax(node, op, inputs)
    elif isinstance(op, int_ops.GeluPolynomial):
        _check_gelu(node, op, inputs[0], largest[0])
    else:
        _check_layer_norm(node, op, inputs[0])


def _largest(tensor: Tensor) -> int:
    """The largest magnitude that ``tensor`` has on its grid, its zero point subtracted."""
    spec, params = tensor.quantized
    return max(abs(spec.qmin - int(params.zero_point)), abs(spec.qmax - int(params.zero_point)))


def _check_embedding(node: IntNode, op: int_ops.Embedding, source: Tensor) -> None:
    if not source.is_index:
        raise ModelError(f"{node.name}: an Embedding takes indices, got {source}. Give it an Input of indices.")
    weight, granularity = op.weight, op.weight.spec.granularity
    if weight.values.ndim != 2 or not weight.values.size or np.any(weight.params.zero_point) or weight.spec.is_wide:
        raise ModelError(
            f"{node.name}: the table of an Embedding has two axes, at most 8 bits and the zero point 0, got "
            f"{weight.values.dtype} of shape {weight.values.shape}. {_MAKE_AGAIN}"
        )
    if isinstance(granularity, PerAxis) and granularity.axis != 0:
        raise ModelError(
            f"{node.name}: a table has one scale, or one for each row (axis 0), got axis {granularity.axis}. {_MAKE_AGAIN}"
        )
    if op.requantizer.channels is not None and not op.requantizer.rule.is_integer_only:
        raise ModelError(
            f"{node.name}: rows with multipliers of their own are requantized in integers, got the rule "
            f"{op.requantizer.rule.name}. Use RoundingRule.SINGLE, or one multiplier for the table."
        )


def _check_softmax(node: IntNode, op: int_ops.SoftmaxPolynomial, inputs: tuple[Tensor, ...]) -> None:
    spec, params = node.output.quantized
    if not 1 <= op.bits <= 8 or float(params.scale) != 2.0**-op.bits or int(params.zero_point) != 0:
        raise ModelError(
            f"{node.name}: with {op.bits} bits, of which 1..8 are possible, its scale is 2**-bits and its zero point 0, but "
            f"{node.output} is declared. {_MAKE_AGAIN}"
        )
    if spec.qmax < 2**op.bits - 1:
        raise ModelError(
            f"{node.name}: {op.bits} bits do not fit the grid {spec.qmin}..{spec.qmax}. Use an unsigned grid, or one bit less."
        )
    if not (op.ln2 < 0 and op.b > 0 and op.c > 0):
        raise ModelError(
            f"{node.name}: of an i-softmax ln2 is negative, b and c are positive, got {op.ln2}, {op.b} and {op.c}. {_MAKE_AGAIN}"
        )
    grid = inputs[0].quantized[0]
    reach = min(-op.ln2 - 1, grid.qmax - grid.qmin)  # of the rest that the parabola is taken of
    largest = max(op.c, op.c + reach * (reach - op.b))
    if max(largest, reach * max(reach, op.b)) >= 2**_POWER_BITS:
        raise BoundError(
            f"{node.name}: the polynomial of i-exp needs more than {_POWER_BITS} bits. Give the scores a scale of at least "
            f"3.4e-5, that is a range of -1.1..1.1 on 16 bits."
        )
    mantissa, shift = op.multiplier.mantissa, 31 - op.multiplier.exponent
    product = largest * int(mantissa.reshape(-1)[0]) if mantissa.size else 0
    if (
        mantissa.shape != ()
        or (product + (1 << (int(shift) - 1))) >> int(shift) > _SHARE_ONE
        or product + (1 << (min(int(shift) + EXPONENT_SHIFT, _LONGEST) - 1)) > _LARGEST
    ):
        raise BoundError(
            f"{node.name}: the multiplier of i-softmax must take the polynomial, {largest:,} at most, to 0..{_SHARE_ONE:,}, and "
            f"their product must fit int64. {_MAKE_AGAIN}"
        )
    if len(inputs) == 2 and (inputs[1].shape != inputs[0].shape[-1:] or inputs[1].quantized[0].is_wide):
        raise ModelError(
            f"{node.name}: a mask for {inputs[0].shape} has the shape {inputs[0].shape[-1:]} and at most 8 bits, got "
            f"{inputs[1]}. Give one number for each element of the last axis: 1 for what takes part."
        )


def _check_gelu(node: IntNode, op: int_ops.GeluPolynomial, source: Tensor, largest: int) -> None:
    _check_zero_point(node, source)
    if not (op.b < 0 and op.c < 0 and op.one < 0) or op.b * op.b - op.c >= 2**_LONGEST:
        raise ModelError(
            f"{node.name}: of an i-GELU b, c and one are negative and b * b - c fits {_LONGEST} bits, got {op.b}, {op.c} and "
            f"{op.one}. {_MAKE_AGAIN}"
        )
    ends = (max(-op.b - largest, 0) ** 2 + op.c, op.b * op.b + op.c)  # of the parabola, without its sign
    factor = max(abs((sign * end >> GELU_SHIFT) + op.one) for sign in (1, -1) for end in ends)
    if factor * largest > INT32_LIMIT:
        raise BoundError(
            f"{node.name}: the product of i-GELU can reach {factor * largest:,}, more than int32 holds. Give its input a "
            f"scale of at least 1.14e-4, that is a range of -3.75..3.75 on 16 bits."
        )


def _check_layer_norm(node: IntNode, op: int_ops.LayerNorm, source: Tensor) -> None:
    _check_zero_point(node, source)
    spec, _ = source.quantized
    features, out = source.shape[0], node.output.quantized[0]
    if not 0 <= op.epsilon < 2 ** (_LONGEST - 1):
        raise BoundError(f"{node.name}: epsilon must be 0..2**{_LONGEST - 1} - 1, got {op.epsilon}. {_MAKE_AGAIN}")
    if len(source.shape) != 2 or features * (2 * (spec.qmax - spec.qmin)) ** 2 >= 2 ** (_LONGEST - 1):
        raise ModelError(
            f"{node.name}: a LayerNorm takes (features, length), features first, and squares that sum to at most {_LONGEST - 1} "
            f"bits; got {source.shape}. Reshape or transpose its input."
        )
    for label, array, dtype in (("multipliers", op.multipliers, np.int32), ("addends", op.addends, np.int64)):
        if array.dtype != dtype or array.shape != (features,):
            raise ModelError(
                f"{node.name}: the {label} must be {np.dtype(dtype)} [{features}], got {array.dtype} {list(array.shape)}. "
                f"{_MAKE_AGAIN}"
            )
    if not 1 <= op.shift <= _LONGEST - 1 or int(node.output.quantized[1].zero_point) != 0:
        raise ModelError(
            f"{node.name}: a LayerNorm takes a shift of 1..{_LONGEST - 1} and puts out the zero point 0, got {op.shift} and "
            f"{node.output}. {_MAKE_AGAIN}"
        )
    if not out.qmin <= op.clamp[0] <= op.clamp[1] <= out.qmax:
        raise ModelError(
            f"{node.name}: the clamp {op.clamp} does not fit the grid {out.qmin}..{out.qmax}. Keep it inside."
        )
    limit = 2**_LONGEST - (1 << (op.shift - 1))  # 62 bits with the half that is added
    products = np.abs(op.multipliers.astype(np.int64)) << NORMALISED_BITS  # at most 2**61
    room = limit - 1 - products
    if np.any(room < 0) or np.any(op.addends > room) or np.any(op.addends < -room):  # not abs: -2**63 has none
        raise BoundError(
            f"{node.name}: gamma and beta at this output scale need more than {_LONGEST} bits. Calibrate the output again."
        )


def _check_zero_point(node: IntNode, source: Tensor) -> None:
    if int(source.quantized[1].zero_point) != 0:
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} takes an input with the zero point 0, got {source}. "
            f"Quantize it symmetrically."
        )
