"""What must hold for the operations of `graph.int_ops_sequences`: grids, constants and bounds of every intermediate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from labkit.arithmetic.bounds import INT32_LIMIT
from labkit.arithmetic.ibert import EXPONENT_SHIFT, NORMALISED_BITS
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
_SHARE_BITS = 15  # of an exponential in i-softmax


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
    grids = [tensor.quantized for tensor in inputs]
    largest = [
        max(abs(spec.qmin - int(params.zero_point)), abs(spec.qmax - int(params.zero_point))) for spec, params in grids
    ]
    if isinstance(op, int_ops.MatMul):
        inner = inputs[0].shape[1] if op.transpose_a else inputs[0].shape[2]
        if inner * largest[0] * largest[1] > INT32_LIMIT:
            raise BoundError(f"{node.name}: a sum of {inner} products can leave int32. Use fewer bits for one factor.")
    elif isinstance(op, int_ops.SoftmaxPolynomial):
        _check_softmax(node, op, inputs)
    elif isinstance(op, int_ops.GeluPolynomial):
        _check_zero_point(node, inputs[0])
        if not (op.b < 0 and op.c < 0 and op.one < 0) or op.b * op.b - op.c >= 2**_LONGEST:
            raise ModelError(f"{node.name}: b, c and one of an i-GELU are negative and b * b - c fits {_LONGEST} bits.")
        if 2 * abs(op.one) * largest[0] > INT32_LIMIT:
            raise BoundError(
                f"{node.name}: the product of i-GELU can reach {2 * abs(op.one) * largest[0]:,}, more than int32 holds. Give its "
                f"input a scale of at least 2.5e-4, that is a range of -8..8 on 16 bits."
            )
    else:
        _check_layer_norm(node, op, inputs[0])


def _check_embedding(node: IntNode, op: int_ops.Embedding, source: Tensor) -> None:
    if not source.is_index:
        raise ModelError(f"{node.name}: an Embedding takes indices, got {source}.")
    if op.weight.values.ndim != 2 or np.any(op.weight.params.zero_point):
        raise ModelError(
            f"{node.name}: the table of an Embedding has two axes and the zero point 0, got shape {op.weight.values.shape}."
        )


def _check_softmax(node: IntNode, op: int_ops.SoftmaxPolynomial, inputs: tuple[Tensor, ...]) -> None:
    spec, params = node.output.quantized
    if not 1 <= op.bits <= 8 or float(params.scale) != 2.0**-op.bits or int(params.zero_point) != 0:
        raise ModelError(
            f"{node.name}: with {op.bits} bits, 1..8, its scale is 2**-{op.bits} and its zero point 0, but {node.output} "
            f"is declared."
        )
    if spec.qmax < 2**op.bits - 1:
        raise ModelError(f"{node.name}: {op.bits} bits do not fit the grid {spec.qmin}..{spec.qmax}.")
    if not (op.ln2 < 0 and op.b > 0 and op.c > 0) or op.b * -op.ln2 + op.c >= 2 ** (_LONGEST - EXPONENT_SHIFT):
        raise BoundError(f"{node.name}: the polynomial of i-exp needs more than {_LONGEST - EXPONENT_SHIFT} bits.")
    largest = (op.c * int(op.multiplier.mantissa)) >> (31 - int(op.multiplier.exponent))
    if op.multiplier.mantissa.shape or not 31 - int(op.multiplier.exponent) >= 1 or largest > 2**_SHARE_BITS:
        raise ModelError(
            f"{node.name}: the multiplier of i-softmax must take the polynomial, {op.c} at most, to {_SHARE_BITS} bits."
        )
    if len(inputs) == 2 and inputs[1].shape != inputs[0].shape[-1:]:
        raise ModelError(
            f"{node.name}: a mask for {inputs[0].shape} has the shape {inputs[0].shape[-1:]}, got {inputs[1].shape}."
        )


def _check_layer_norm(node: IntNode, op: int_ops.LayerNorm, source: Tensor) -> None:
    _check_zero_point(node, source)
    spec, _ = source.quantized
    features, out = source.shape[0], node.output.quantized[0]
    if len(source.shape) != 2 or features * (2 * (spec.qmax - spec.qmin)) ** 2 >= 2**_LONGEST:
        raise ModelError(f"{node.name}: a LayerNorm takes (features, length), got {source.shape}.")
    for label, array, dtype in (("multipliers", op.multipliers, np.int32), ("addends", op.addends, np.int64)):
        if array.dtype != dtype or array.shape != (features,):
            raise ModelError(
                f"{node.name}: the {label} must be {np.dtype(dtype)} [{features}], got {array.dtype} {list(array.shape)}."
            )
    if not 1 <= op.shift <= _LONGEST - 1 or int(node.output.quantized[1].zero_point) != 0:
        raise ModelError(f"{node.name}: a LayerNorm takes a shift of 1..{_LONGEST - 1} and puts out the zero point 0.")
    if not out.qmin <= op.clamp[0] <= op.clamp[1] <= out.qmax:
        raise ModelError(f"{node.name}: the clamp {op.clamp} does not fit the grid {out.qmin}..{out.qmax}.")
    products = np.abs(op.multipliers.astype(np.int64)) << NORMALISED_BITS
    if np.any(products + np.abs(op.addends) + (1 << (op.shift - 1)) >= 2**_LONGEST):
        raise BoundError(
            f"{node.name}: gamma and beta at this output scale need more than {_LONGEST} bits. Calibrate the output again."
        )


def _check_zero_point(node: IntNode, source: Tensor) -> None:
    if int(source.quantized[1].zero_point) != 0:
        raise ModelError(f"{node.name}: {type(node.op).__name__} takes an input with the zero point 0, got {source}.")
