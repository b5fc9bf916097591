"""Constant weights and biases of an ONNX file as labkit holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QuantSpec, quantize
from labkit.errors import ModelError
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.tensors import widened
from labkit.frontends.onnx.values import Weights, refuse

__all__ = [
    "bias_from_integers",
    "bias_from_real",
    "bias_from_weights",
    "has_bias_scale",
    "make_weights",
    "quantized_constant",
    "scaled",
    "transposed",
]

_BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "int32": 32}
_INT32 = np.iinfo(np.int32)


def make_weights(
    node: OnnxNode, values: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int
) -> Weights:
    """The constant ``values`` (any shape) with their ``scale`` and ``zero_point`` (one, or one for each index along ``axis``).

    ``node`` dequantizes them, or computes with them.

    Raises
    ------
    UnsupportedOperation
        They are no integers of 2, 4, 8 or 32 bits, or quantized in blocks.
    ModelError
        Scales, zero points and values do not fit together.
    """
    bits = _BITS.get(values.dtype.name)
    if bits is None or scale.dtype != np.float32:
        raise refuse(node, f"its constant holds {values.dtype} with scales of {scale.dtype}.")
    if int(node.attributes.get("block_size", 0)):
        raise refuse(node, "its constant is quantized in blocks; labkit has one scale a tensor or a channel.")
    if zero_point.dtype != values.dtype and zero_point.any():
        raise ModelError(f"{node}: its zero point is {zero_point.dtype}, its constant {values.dtype}.")
    if scale.size == 1:
        scale = scale.reshape(())
    zeros = widened(zero_point).astype(np.int32)
    zeros = zeros.reshape(()) if zeros.size == 1 else zeros
    if zeros.shape == () and scale.ndim == 1:
        zeros = np.full(scale.shape, zeros, np.int32)
    if scale.ndim == 0 and zeros.ndim == 1 and np.all(zeros == zeros[:1]):
        zeros = zeros[0]
    axis = axis + values.ndim if axis < 0 else axis
    sound = scale.ndim <= 1 and scale.shape == zeros.shape
    if not sound or (scale.ndim == 1 and (axis >= values.ndim or values.shape[axis] != scale.size)):
        raise ModelError(
            f"{node}: its constant has shape {values.shape}, scales {scale.shape} along axis {axis}, zero points {zeros.shape}."
        )
    return Weights(widened(values), bits, scale, zeros, axis)


def quantized_constant(
    node: OnnxNode, real: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int
) -> NDArray[Any]:
    """The integers that the QuantizeLinear ``node`` makes of the constant ``real`` (eq. 2): its shape, ``zero_point``'s dtype.

    ``scale`` and ``zero_point`` are one, or one for each index along ``axis``.

    Raises
    ------
    UnsupportedOperation
        They are no integers of 2, 4 or 8 bits.
    """
    bits = _BITS.get(zero_point.dtype.name, 32)
    if bits > 8 or real.dtype != np.float32 or scale.dtype != np.float32:
        raise refuse(node, f"it quantizes {real.dtype} to {zero_point.dtype}.")
    zeros = widened(zero_point)
    per_axis = scale.size > 1
    axis = axis + real.ndim if axis < 0 else axis
    spec = QuantSpec(
        bits, signed=zeros.dtype == np.int8, symmetric=False, granularity=PerAxis(axis) if per_axis else PerTensor()
    )
    shape = (-1,) if per_axis else ()
    params = QParams(scale.reshape(shape), np.broadcast_to(zeros.astype(np.int32), scale.shape).reshape(shape))
    return quantize(real, params, spec).astype(zero_point.dtype)


def bias_from_integers(node: OnnxNode, values: NDArray[Any], outputs: int) -> NDArray[np.int32]:
    """The bias ``values`` of ``node`` as int32 of shape (``outputs``,); one number serves all channels.

    Raises
    ------
    UnsupportedOperation
        They are no int32, or differ from image to image.
    """
    if values.dtype != np.int32 or values.size not in (1, outputs) or values.size != (values.shape or (1,))[-1]:
        raise refuse(node, f"its bias is {values.dtype} {values.shape}, not int32 ({outputs},).")
    return np.array(np.broadcast_to(values.reshape(-1), (outputs,)), np.int32)


def bias_from_real(
    node: OnnxNode, values: NDArray[Any], input_scale: NDArray[np.float32], weights: Weights, outputs: int
) -> NDArray[np.int32]:
    """A float32 bias as integers at scale S_x S_w, computed in float32 as onnxruntime does: the quotient, rounded to even.

    ``values``, the bias of ``node``, has ``outputs`` numbers, or one for all; ``input_scale`` and the scales of ``weights`` make
    its own. Returns int32 of shape (``outputs``,).

    Raises
    ------
    UnsupportedOperation
        It is no float32 bias.
    ModelError
        It does not fit int32.
    """
    if values.dtype != np.float32 or values.size not in (1, outputs) or values.size != (values.shape or (1,))[-1]:
        raise refuse(node, f"its bias is {values.dtype} {values.shape}, not float32 ({outputs},).")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        quotients = np.rint(values.reshape(-1) / (input_scale * weights.scale))
    if not np.all(np.abs(quotients) < _INT32.max):
        raise ModelError(f"{node}: its bias does not fit int32 at the scale of its input times that of its weights.")
    return np.array(np.broadcast_to(quotients, (outputs,)), np.int32)


def bias_from_weights(
    node: OnnxNode, bias: Weights, input_scale: NDArray[np.float32], weights: Weights, outputs: int
) -> NDArray[np.int32]:
    """The int32 ``bias`` of ``node``, a layer of ``outputs`` channels: shape (``outputs``,).

    Raises
    ------
    UnsupportedOperation
        It is no int32, has a zero point, or another scale than ``input_scale`` times the weights'.
    """
    expected = input_scale.astype(np.float64) * weights.scale
    if bias.bits != 32 or np.any(bias.zero_point):
        raise refuse(node, f"its bias is {bias.values.dtype} with a zero point or of few bits, not int32.")
    # zeros are zeros at any scale: exporters let all biases of zeros share one constant
    if np.any(bias.values) and not has_bias_scale(bias, input_scale, weights):
        raise refuse(
            node,
            f"its bias has the scale {bias.scale.reshape(-1)[0]}, not {expected.reshape(-1)[0]:.9g}, which is that of its input "
            f"times that of its weights.",
        )
    return bias_from_integers(node, bias.values, outputs)


def has_bias_scale(bias: Weights, input_scale: NDArray[np.float32], weights: Weights) -> bool:
    """Whether the scale of ``bias`` is ``input_scale``, float32 (), times that of ``weights``: else onnxruntime fuses nothing."""
    expected = input_scale.astype(np.float64) * weights.scale
    return bias.scale.shape in ((), expected.shape) and bool(np.allclose(bias.scale, expected, rtol=1e-5, atol=0))


def transposed(node: OnnxNode, weights: Weights) -> Weights:
    """``weights`` (shape [I, O]) of ``node`` as [O, I].

    Raises
    ------
    UnsupportedOperation
        They are no matrix.
    """
    if weights.values.ndim != 2:
        raise refuse(node, f"its weights have shape {weights.values.shape}; a matrix is needed.")
    return weights.moved(weights.values.T, 1 - weights.axis)


def scaled(node: OnnxNode, weights: Weights) -> Weights:
    """``weights`` times the attribute alpha of ``node``, which becomes part of their scale.

    Raises
    ------
    UnsupportedOperation
        alpha is no power of two, so that the product would be rounded.
    """
    alpha = float(node.attributes.get("alpha", 1.0))
    if alpha <= 0 or np.frexp(alpha)[0] != 0.5 or not 2.0**-64 <= alpha <= 2.0**64:
        raise refuse(node, f"its alpha is {alpha}; powers of two can be part of the weights' scale without rounding.")
    return replace(weights, scale=weights.scale * np.float32(alpha))
