"""Random integer networks of one operator, a third of them with scales that are powers of two, so that ties occur."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes.labkit_rules import add, requantizer, scale_of

UINT8, INT8 = QuantSpec(8, signed=False), QuantSpec(8, signed=True)
OPERATORS = (
    *("conv", "depthwise", "linear", "add", "multiply", "average_pool", "adaptive_pool"),
    *("max_pool", "requantize", "concat", "quantize"),
)


class Draw:
    """Random scales, zero points and tensors of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ties = seed % 3 == 0
        self.grid = INT8 if seed % 4 == 3 else UINT8

    def whole(self, low: int, high: int) -> int:
        """An integer of ``low`` to ``high``."""
        return int(self.rng.integers(low, high + 1))

    def scale(self, about: float = 0.02) -> np.float32:
        """A scale within a factor of four of ``about``: a power of two where ties are wanted."""
        exponent = np.log2(about) + self.rng.uniform(-2, 2)
        return np.float32(2.0 ** (round(exponent) if self.ties else exponent))

    def tensor(self, shape: tuple[int, ...], about: float = 0.02, like: Tensor | None = None) -> Tensor:
        """A quantized tensor of ``shape``; on the grid of ``like`` where that is given."""
        if like is not None:
            return Tensor(shape, like.spec, like.params)
        zero_point = self.whole(self.grid.qmin, self.grid.qmax)
        return Tensor(shape, self.grid, QParams(np.asarray(self.scale(about)), np.asarray(zero_point, np.int32)))

    def integers(self, tensor: Tensor, count: int) -> NDArray[Any]:
        """``count`` images for ``tensor``."""
        spec, _ = tensor.quantized
        return self.rng.integers(spec.qmin, spec.qmax + 1, (count, *tensor.shape)).astype(spec.dtype)

    def weights(self, shape: tuple[int, ...], zero_points: bool) -> QTensor:
        """Weights of -64..64, which saturate on no processor, with one scale, or one a channel; few of them for ties."""
        values = self.rng.integers(-64, 65, shape).astype(np.int8)
        if self.ties:  # so that many sums lie half-way between two outputs
            values = (values // 32 * 32).astype(np.int8)
            zero_points = False
        per_channel = bool(self.rng.integers(2))
        count = (shape[0],) if per_channel else ()
        scales = np.array([self.scale(0.01) for _ in range(shape[0])], np.float32) if per_channel else self.scale(0.01)
        zeros = self.rng.integers(-3, 4, count) if zero_points else np.zeros(count)
        spec = QuantSpec(8, signed=True, granularity=PerAxis(0) if per_channel else PerTensor())
        return QTensor(values, QParams(np.asarray(scales), np.asarray(zeros, np.int32)), spec)


def one_operator(
    kind: str, seed: int, zero_points: bool = True, channels: int | None = None
) -> tuple[IntGraph, dict[str, NDArray[Any]]]:
    """A network of one operator of ``kind``, one of `OPERATORS`, and inputs for it by name.

    ``zero_points``: weights have some; ``channels``: of images, else 1 to 40.
    """
    draw = Draw(seed)
    images = draw.whole(20, 40) if kind == "linear" else draw.whole(1, 3)
    channels = channels or draw.whole(1, 40)
    size = (channels, draw.whole(4, 9), draw.whole(4, 9))
    if kind == "quantize":
        output = draw.tensor(size)
        node = IntNode("y", int_ops.Quantize(size), (), output)
        step = np.float32(output.quantized[1].scale)
        real = draw.rng.integers(-600, 600, (images, *size)).astype(np.float32) * (step / np.float32(2))
        return IntGraph((node,), ("y",)), {"y": real}
    sources, op, output = _SINGLE[kind](draw, size, zero_points)
    names = [f"x{i}" for i in range(len(sources))]
    entries = [IntNode(n, int_ops.Input(t.shape), (), t) for n, t in zip(names, sources, strict=True)]
    graph = IntGraph((*entries, IntNode("y", op, tuple(names), output)), ("y",))
    return graph, {n: draw.integers(t, images) for n, t in zip(names, sources, strict=True)}


def _clamp(draw: Draw, output: Tensor) -> Any:
    return [(None, None), (0.0, None), (0.0, 6.0)][draw.whole(0, 2)]


def _products(draw: Draw, source: Tensor, weight: QTensor, shape: tuple[int, ...]) -> tuple[Any, Any, Tensor]:
    """Bias, requantizer and output of a layer whose sums spread over the output's grid."""
    depth = int(np.prod(weight.values.shape[1:]))
    products = weight.params.scale.astype(np.float64) * scale_of(source)
    spread = 73 * 37 * np.sqrt(depth)
    bias = draw.rng.integers(-int(2 * spread), int(2 * spread) + 1, weight.values.shape[0]).astype(np.int32)
    if draw.ties:
        bias = bias // 32 * 32
    if draw.rng.random() < 0.15:
        bias[:] = 0
    output = draw.tensor(shape, float(products.mean() * spread / 50))
    return bias, requantizer(products / scale_of(output), output, _clamp(draw, output)), output


def _conv(draw: Draw, size: tuple[int, ...], zero_points: bool, depthwise: bool = False) -> Any:
    source = draw.tensor(size)
    kernel = (draw.whole(1, 3), draw.whole(1, 3))
    outputs = size[0] if depthwise else draw.whole(1, 40)
    weight = draw.weights((outputs, 1 if depthwise else size[0], *kernel), zero_points)
    stride, pad = (draw.whole(1, 2), draw.whole(1, 2)), (draw.whole(0, 1), draw.whole(0, 1))
    height, width = ((size[1 + a] + 2 * pad[a] - kernel[a]) // stride[a] + 1 for a in range(2))
    bias, to_output, output = _products(draw, source, weight, (outputs, height, width))
    padding = ((pad[0], pad[0]), (pad[1], pad[1]))
    op = int_ops.Conv2d(weight, bias, to_output, stride, padding, (1, 1), size[0] if depthwise else 1)
    return (source,), op, output


def _depthwise(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    return _conv(draw, size, zero_points, depthwise=True)


def _linear(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    source = draw.tensor((draw.whole(1, 90),))
    weight = draw.weights((draw.whole(1, 40), source.shape[0]), zero_points)
    bias, to_output, output = _products(draw, source, weight, (weight.values.shape[0],))
    return (source,), int_ops.Linear(weight, bias, to_output), output


def _add(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    a, b, output = draw.tensor(size), draw.tensor(size), draw.tensor(size, 0.03)
    return (a, b), add((a, b), output, _clamp(draw, output)), output


def _multiply(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    a = draw.tensor(size)
    b = draw.tensor(size if draw.rng.integers(2) else (size[0], 1, 1))
    output = draw.tensor(size, float(scale_of(a) * scale_of(b)) * 80)
    multiplier = scale_of(a) * scale_of(b) / scale_of(output)
    return (a, b), int_ops.Multiply(requantizer(multiplier, output, _clamp(draw, output))), output


def _average_pool(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    source = draw.tensor(size)
    kernel = (draw.whole(2, 4), draw.whole(1, 4))
    stride = (draw.whole(1, 3), draw.whole(1, 3))
    pad = (draw.whole(0, kernel[0] // 2), draw.whole(0, kernel[1] // 2))
    height, width = ((size[1 + a] + 2 * pad[a] - kernel[a]) // stride[a] + 1 for a in range(2))
    output = draw.tensor((size[0], height, width), like=source)
    to_output = requantizer(1 / (kernel[0] * kernel[1]), output)
    return (source,), int_ops.AveragePool2d(kernel, stride, ((pad[0],) * 2, (pad[1],) * 2), to_output), output


def _adaptive_pool(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    windows = ((4, 4), (2, 2), (8, 2), (2, 1))[draw.whole(0, 3)]
    target = (draw.whole(1, 2), draw.whole(1, 2))
    source = draw.tensor((size[0], target[0] * windows[0], target[1] * windows[1]))
    output = draw.tensor((size[0], *target), like=source)
    to_output = requantizer(1 / (windows[0] * windows[1]), output)
    return (source,), int_ops.AdaptiveAveragePool2d(target, to_output), output


def _max_pool(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    source = draw.tensor(size)
    kernel, stride = (draw.whole(2, 3), draw.whole(2, 3)), (draw.whole(1, 2), draw.whole(1, 2))
    pad = (draw.whole(0, 1), draw.whole(0, 1))
    height, width = ((size[1 + a] + 2 * pad[a] - kernel[a]) // stride[a] + 1 for a in range(2))
    output = draw.tensor((size[0], height, width), like=source)
    return (source,), int_ops.MaxPool2d(kernel, stride, ((pad[0],) * 2, (pad[1],) * 2), (1, 1), False), output


def _requantize(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    source, output = draw.tensor(size), draw.tensor(size)
    multiplier = scale_of(source) / scale_of(output)
    return (source,), int_ops.Requantize(requantizer(multiplier, output, _clamp(draw, output))), output


def _concat(draw: Draw, size: tuple[int, ...], zero_points: bool) -> Any:
    a = draw.tensor(size)
    b = draw.tensor((draw.whole(1, 40), *size[1:]), like=a)
    output = draw.tensor((a.shape[0] + b.shape[0], *size[1:]), like=a)
    return (a, b), int_ops.Concat((requantizer(1.0, output), requantizer(1.0, output))), output


_SINGLE: dict[str, Any] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "add": _add,
    "multiply": _multiply,
    "average_pool": _average_pool,
    "adaptive_pool": _adaptive_pool,
    "max_pool": _max_pool,
    "requantize": _requantize,
    "concat": _concat,
}
