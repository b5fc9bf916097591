"""The operations of transformers, one node at a time through a `KernelSet`: I-BERT's kernels with what goes around them.

A KernelSet's ``i_softmax``, ``i_gelu`` and ``i_layer_norm`` work on rows, as I-BERT prints them; here tensors are brought into
that order and results to the scale of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import ExpConstants, GeluConstants
from labkit.arithmetic.requantize import Requantizer
from labkit.graph import int_ops
from labkit.graph.check_sequences import OperationOnSequences
from labkit.kernels.kernel_set import KernelSet

__all__ = ["compute_on_sequences", "layer_norm_output"]

Array = NDArray[Any]


def compute_on_sequences(
    op: OperationOnSequences, arrays: Sequence[Array], zero_points: Sequence[int], kernels: KernelSet
) -> Array:
    """What ``op`` makes of ``arrays``, [N, ...] for each input, by ``kernels``; ``zero_points`` of the quantized inputs.

    Integers [N, ...] within the clamp of ``op``.
    """
    x = arrays[0]
    if isinstance(op, int_ops.Embedding):
        rows = kernels["embedding"](x, table=op.weight.values)
        flat = np.asarray(rows).reshape(-1, rows.shape[-1])
        scaled = _of_rows(op.requantizer, x.reshape(-1)).apply(flat, axis=0)
        return scaled.reshape(rows.shape).transpose(0, 2, 1)
    if isinstance(op, int_ops.MatMul):
        a = x.transpose(0, 1, 3, 2) if op.transpose_a else x
        b = arrays[1].transpose(0, 1, 3, 2) if op.transpose_b else arrays[1]
        product = kernels["batch_matmul"](a, b, zero_points=(zero_points[0], zero_points[1]))
        return op.requantizer.apply(product)
    if isinstance(op, int_ops.SoftmaxPolynomial):
        mask = arrays[1] != zero_points[1] if len(arrays) == 2 else None
        if mask is not None:  # one for each image, the same for all rows
            mask = mask.reshape(len(mask), *(1,) * (x.ndim - 2), mask.shape[-1])
        constants = ExpConstants(op.ln2, op.b, op.c, 0.0)  # integers only: the real scale is in the multiplier
        shares: Array = kernels["i_softmax"](
            x, mask=mask, constants=constants, multiplier=op.multiplier, bits=op.bits, rounds=True
        )
        return shares
    if isinstance(op, int_ops.GeluPolynomial):
        return op.requantizer.apply(-np.asarray(kernels["i_gelu"](x, GeluConstants(op.b, op.c, op.one, 0.0))))
    more = {"epsilon": op.epsilon} if op.epsilon else {}  # I-BERT's own function has none
    normalised = kernels["i_layer_norm"](x.swapaxes(1, -1), bias=np.zeros((), np.int64), shift=0, **more)
    return layer_norm_output(np.asarray(normalised), op).swapaxes(1, -1)


def layer_norm_output(normalised: Array, op: int_ops.LayerNorm) -> NDArray[np.int64]:
    """Gamma and beta of ``op`` for I-BERT's ``normalised`` integers, [..., D] (eq. 50): int64 of the same shape."""
    products = normalised.astype(np.int64) * op.multipliers + op.addends
    rounded = (products + (np.int64(1) << (op.shift - 1))) >> op.shift
    return np.asarray(np.clip(rounded, *op.clamp), np.int64)


def _of_rows(requantizer: Requantizer, indices: Array) -> Requantizer:
    """``requantizer`` with a multiplier for each of the rows ``indices``, [n], of a table."""
    multiplier = requantizer.multiplier
    if requantizer.channels is None or not isinstance(multiplier, FixedPointMultiplier):
        return requantizer
    chosen = FixedPointMultiplier(multiplier.mantissa[indices], multiplier.exponent[indices])
    return replace(requantizer, multiplier=chosen)
