"""Operations of an integer network from grids, weights and bounds, whatever operator a file has them in.

All follow labkit's own rules; `labkit.runtimes` remakes them under those of a runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.values import Integers, Weights, refuse
from labkit.frontends.onnx.windows import Window, has_partial_window, window_of
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import Tensor
from labkit.runtimes import labkit_rules
from labkit.runtimes.bounds import RealBounds, clamp_even
from labkit.runtimes.labkit_rules import scale_of

__all__ = [
    "Make",
    "addition",
    "average",
    "concatenation",
    "convolution",
    "global_average",
    "linear",
    "matrix_product",
    "product",
    "rescaling",
]

Make = Callable[[Tensor, RealBounds], IntOp]
"""From the tensor that an operation puts out, and the bounds of an activation, to the operation."""


def convolution(node: OnnxNode, source: Tensor, weights: Weights, bias: NDArray[np.int32] | None) -> Make:
    """A convolution of ``source`` with the attributes of ``node``; ``weights`` [O, C / groups, [kH,] kW], ``bias`` int32 [O].

    Raises
    ------
    UnsupportedOperation
        It is one over more or fewer axes than one or two.
    ModelError
        Its attributes do not fit.
    """
    if weights.values.ndim not in (3, 4) or len(source.shape) != weights.values.ndim - 1:
        raise refuse(node, f"its weights have shape {weights.values.shape}, its input {source.shape}.")
    window = window_of(node, source.shape, tuple(weights.values.shape[2:]))
    if weights.values.ndim == 3:
        weights = weights.moved(weights.values[:, :, None, :], weights.axis)
    weight = weights.quantized(node)
    offsets = np.zeros(len(weight.values), np.int32) if bias is None else bias
    groups = int(node.attributes.get("group", 1))

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        multiplier = weight.params.scale.astype(np.float64) * scale_of(source) / scale_of(output)
        requantizer = labkit_rules.requantizer(multiplier, output, bounds)
        return int_ops.Conv2d(weight, offsets, requantizer, window.stride, window.padding, window.dilation, groups)

    return make


def linear(node: OnnxNode, source: Tensor, weights: Weights, bias: NDArray[np.int32] | None) -> Make:
    """A fully connected layer of ``source`` (I,) with ``weights`` [O, I] and ``bias`` int32 [O].

    Raises
    ------
    UnsupportedOperation
        The input of ``node`` is not flat, or the weights are no matrix.
    """
    if len(source.shape) != 1 or weights.values.ndim != 2:
        raise refuse(
            node, f"its input has shape (N, {source.shape}), its weights {weights.values.shape}: flatten it first."
        )
    weight = weights.quantized(node)
    offsets = np.zeros(len(weight.values), np.int32) if bias is None else bias

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        multiplier = weight.params.scale.astype(np.float64) * scale_of(source) / scale_of(output)
        return int_ops.Linear(weight, offsets, labkit_rules.requantizer(multiplier, output, bounds))

    return make


def matrix_product(node: OnnxNode, sources: tuple[Integers, Integers]) -> Make:
    """The matrix products of the two activations ``sources`` of ``node``, (B, m, k) and (B, k, n).

    Raises
    ------
    UnsupportedOperation
        They are not of that form: a batch would be multiplied, or one of them broadcast.
    """
    a, b = (source.tensor for source in sources)
    if len(a.shape) != 3 or len(b.shape) != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise refuse(
            node, f"it multiplies (N, {a.shape}) and (N, {b.shape}); labkit multiplies (N, B, m, k) and (N, B, k, n)."
        )
    return lambda output, bounds: _clamped_product(a, b, output, bounds)


def _clamped_product(a: Tensor, b: Tensor, output: Tensor, bounds: RealBounds) -> IntOp:
    made = labkit_rules.matmul((a, b), output)
    return replace(made, requantizer=replace(made.requantizer, clamp=clamp_even(bounds, output)))


def addition(node: OnnxNode, sources: tuple[Integers, Integers], subtracts: bool = False) -> Make:
    """The sum, or difference if ``subtracts``, of the two activations ``sources`` of ``node``, of one shape.

    Raises
    ------
    UnsupportedOperation
        They have two shapes.
    """
    a, b = (source.tensor for source in sources)
    if a.shape != b.shape:
        raise refuse(node, f"it combines the shapes {a.shape} and {b.shape}; labkit adds tensors of one shape.")
    return lambda output, bounds: labkit_rules.add((a, b), output, bounds, subtracts)


def product(sources: tuple[Integers, Integers]) -> Make:
    """The product of two activations."""
    a, b = (source.tensor for source in sources)

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        multiplier = scale_of(a) * scale_of(b) / scale_of(output)
        return int_ops.Multiply(labkit_rules.requantizer(multiplier, output, bounds))

    return make


def average(node: OnnxNode, source: Tensor) -> Make:
    """The mean of each window of ``source``, by the attributes of ``node``.

    Raises
    ------
    UnsupportedOperation
        The window has gaps, or a last partial one.
    ModelError
        The attributes do not fit.
    """
    window = window_of(node, source.shape)
    if window.dilation != (1, 1) or (window.ceil_mode and has_partial_window(window, source.shape)):
        raise refuse(node, "its window has gaps (dilations), or the last one is partial (ceil_mode).")
    counts = bool(node.attributes.get("count_include_pad", 0))
    return _average(source, window, counts or not np.any(window.padding))


def global_average(node: OnnxNode, source: Tensor) -> Make:
    """The mean over height and width of ``source``, which goes into ``node``.

    Raises
    ------
    UnsupportedOperation
        It is no image and no sequence.
    """
    if len(source.shape) not in (2, 3):
        raise refuse(node, f"its input has shape {source.shape}; images and sequences of channels are averaged.")
    height, width = (*(1,) * (3 - len(source.shape)), *source.shape[1:])
    return _average(source, Window((height, width), (1, 1), ((0, 0), (0, 0)), (1, 1), False), True)


def _average(source: Tensor, window: Window, counts_padding: bool) -> Make:
    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        if not counts_padding:  # labkit has no rule of its own for a mean of a part of a window
            clamp = clamp_even(bounds, output)
            return int_ops.AveragePoolFloat32(window.kernel, window.stride, window.padding, False, clamp)
        multiplier = scale_of(source) / (scale_of(output) * (window.kernel[0] * window.kernel[1]))
        requantizer = labkit_rules.requantizer(multiplier, output, bounds)
        return int_ops.AveragePool2d(window.kernel, window.stride, window.padding, requantizer)

    return make


def concatenation(node: OnnxNode, sources: tuple[Integers, ...]) -> Make:
    """``sources`` joined along the channels.

    Raises
    ------
    UnsupportedOperation
        ``node`` joins along another axis.
    """
    rank = len(sources[0].tensor.shape) + 1
    axis = int(node.attributes.get("axis", 1))
    if axis + (rank if axis < 0 else 0) != 1 or rank < 3:
        raise refuse(
            node, f"it joins {rank} axes along axis {axis}; labkit joins images or sequences along the channels."
        )

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        return int_ops.Concat(
            tuple(
                labkit_rules.requantizer(scale_of(source.tensor) / scale_of(output), output, bounds)
                for source in sources
            )
        )

    return make


def rescaling(source: Tensor) -> Make:
    """The same numbers at another scale, or clamped."""

    def make(output: Tensor, bounds: RealBounds) -> IntOp:
        return int_ops.Requantize(labkit_rules.requantizer(scale_of(source) / scale_of(output), output, bounds))

    return make
