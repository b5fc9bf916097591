"""Weights as an ONNX file holds them: of the activation's own sign, so that no processor saturates their products.

uint8 activations times int8 weights saturate sums of two products at 16 bits on x86-64 processors with AVX2 and without VNNI,
in onnxruntime as in other libraries. uint8 times uint8, and int8 times int8, never do; the shift by 128 is in the zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.errors import UnsupportedOperation

__all__ = ["HeldWeights", "held_weights"]


@dataclass(frozen=True, eq=False)
class HeldWeights:
    """What the file holds of a layer's weights.

    values : uint8 or int8, the shape of the weights.
    zero_point : the same for each channel; of the dtype of ``values``.
    scale : float32, shape () or (O,).
    nibbles : all fit 4 bits, and so are they held.
    """

    values: NDArray[Any]
    zero_point: int
    scale: NDArray[np.float32]
    nibbles: bool


def held_weights(name: str, weight: QTensor, signed: bool) -> HeldWeights:
    """``weight`` of the layer ``name`` for activations that are int8 (``signed``) or uint8.

    Raises
    ------
    UnsupportedOperation
        The channels' zero points differ: onnxruntime computes with one zero point a layer only.
    """
    zero_points = np.unique(weight.params.zero_point)
    if len(zero_points) != 1:
        raise UnsupportedOperation(
            f"{name}: onnxruntime's integer layers take one zero point for all channels of the weights, got "
            f"{zero_points.min()}..{zero_points.max()}. Quantize the weights symmetrically."
        )
    dtype = np.dtype(np.int8 if signed else np.uint8)
    lowest = np.iinfo(dtype).min
    values = weight.values.astype(np.int32)
    nibbles = weight.spec.bits <= 4
    if nibbles:
        wanted = -8 if signed else 0
        shift = wanted - (-8 if weight.spec.signed else 0)
    else:
        shift = lowest - int(np.iinfo(weight.values.dtype).min)
    return HeldWeights((values + shift).astype(dtype), int(zero_points[0]) + shift, weight.params.scale, nibbles)
