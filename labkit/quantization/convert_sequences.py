"""The integer operations of transformers from their real ones (docs/arithmetic.md, section 11). Runs once, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import NORMALISED_BITS, exp_constants, gelu_constants
from labkit.errors import BoundError
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import Tensor
from labkit.runtimes.labkit_rules import requantizer, scale_of

__all__ = ["embedding", "gelu", "layer_norm", "masked_softmax", "matmul"]

_SHARE_ONE = 32767  # the exponential of 0 on 16 bits
_LONGEST_SHIFT = 45  # so that 16 bits of the result, shifted back, fit 61
_LONGEST_SUM = 2**61


def embedding(weight: QTensor, output: Tensor) -> int_ops.Embedding:
    """Eq. 44: the table ``weight`` [V, D] for an ``output`` (D, T).

    Raises
    ------
    QuantizationError
        The scales are too far apart.
    """
    scales = weight.params.scale.astype(np.float64)
    return int_ops.Embedding(weight, requantizer(scales / scale_of(output), output))


def matmul(op: float_ops.MatMul, inputs: Sequence[Tensor], output: Tensor) -> int_ops.MatMul:
    """Eq. 45 for ``op`` with two ``inputs`` and an ``output``.

    Raises
    ------
    QuantizationError
        The scales are too far apart.
    """
    multiplier = op.factor * scale_of(inputs[0]) * scale_of(inputs[1]) / scale_of(output)
    return int_ops.MatMul(requantizer(multiplier, output), op.transpose_a, op.transpose_b)


def masked_softmax(source: Tensor, output: Tensor) -> int_ops.SoftmaxPolynomial:
    """Eq. 47 for scores ``source`` and shares ``output``.

    Raises
    ------
    QuantizationError, BoundError
        The scale of the scores is too large or too small for the polynomial.
    """
    found = exp_constants(float(scale_of(source)))
    multiplier = FixedPointMultiplier.from_real(found.scale * _SHARE_ONE)
    bits = -round(math.log2(float(scale_of(output))))
    return int_ops.SoftmaxPolynomial(found.ln2, found.b, found.c, multiplier, bits)


def gelu(source: Tensor, output: Tensor) -> int_ops.GeluPolynomial:
    """Eq. 48 for ``source`` of 16 bits and ``output``.

    Raises
    ------
    QuantizationError, BoundError
        The scale of the source is too large or too small for the polynomial.
    """
    found = gelu_constants(float(scale_of(source)))
    return int_ops.GeluPolynomial(found.b, found.c, found.one, requantizer(-found.scale / scale_of(output), output))


def layer_norm(op: float_ops.LayerNorm, source: Tensor, output: Tensor) -> int_ops.LayerNorm:
    """Eqs. 49 and 50: epsilon of ``op`` for the scale of ``source``, gamma and beta for that of ``output``.

    Raises
    ------
    BoundError
        gamma or beta is too large for that scale.
    """
    target, spec = float(scale_of(output)), output.quantized[0]
    gains = op.gamma.astype(np.float64) * math.sqrt(len(op.gamma)) / 2**NORMALISED_BITS / target
    offsets = op.beta.astype(np.float64) / target
    for shift in range(_LONGEST_SHIFT, 0, -1):
        multipliers, addends = np.rint(np.ldexp(gains, shift)), np.rint(np.ldexp(offsets, shift))
        sums = np.abs(multipliers) * 2.0**NORMALISED_BITS + np.abs(addends)
        if np.all(np.abs(multipliers) < 2**31) and np.all(sums < _LONGEST_SUM):
            clamp = (spec.qmin, spec.qmax)
            squared = float(scale_of(source)) * float(scale_of(source))
            # less than what rounding the input adds to a variance, as BERT's 1e-12, makes no difference
            epsilon = round(len(op.gamma) * op.epsilon / squared) if 12 * op.epsilon > squared else 0
            return int_ops.LayerNorm(multipliers.astype(np.int32), addends.astype(np.int64), shift, clamp, epsilon)
    raise BoundError(
        f"gamma or beta of a LayerNorm is too large for an output scale of {target:.3g}. Calibrate the output again."
    )
