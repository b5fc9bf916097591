"""Random networks of one operator for onnxruntime, a third of them with power-of-two scales so that ties occur.

int8 weights are at most 64 in magnitude unless the processor multiplies without saturating at 16 bits (VNNI), see
`LARGEST_WEIGHT`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def has_vnni() -> bool:
    """Whether the processor sums products of 8-bit integers in 32 bits in one instruction."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx_vnni" in flags or "avx512_vnni" in flags


# Without VNNI, onnxruntime adds pairs of products of uint8 and int8 in 16 bits, where they saturate if weights are large.
LARGEST_WEIGHT = 127 if has_vnni() else 64


@dataclass
class Model:
    """An ONNX model as it is built: nodes, constants, borders."""

    opset: int = 17
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    data: dict[str, Array] = field(default_factory=dict)

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"the {output}", domain=domain, **attributes))
        return output

    def entry(self, name: str, data: Array) -> str:
        kind = helper.np_dtype_to_tensor_dtype(data.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["N", *data.shape[1:]]))
        self.data[name] = data
        return name

    def save(self, path: Path, outputs: dict[str, Any]) -> None:
        values = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), None)
            for n, t in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "case", self.inputs, values, self.constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 8 if self.opset < 19 else 10
        onnx.save(model, path)


@dataclass(frozen=True)
class Grid:
    """Scale, zero point and type of an activation."""

    scale: np.float32
    zero_point: int
    dtype: Any

    def terms(self, model: Model, name: str) -> list[str]:
        return [
            model.constant(f"{name}_scale", self.scale, np.float32),
            model.constant(f"{name}_zero", self.zero_point, self.dtype),
        ]


class Draw:
    """Random parts of a case. ``ties``: scales are powers of two, so that sums meet the middle between two integers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ties = seed % 3 == 0
        self.dtype = np.uint8 if seed % 2 else np.int8

    def scale(self, low: float = 0.005, high: float = 0.1) -> np.float32:
        if self.ties:
            return np.float32(2.0 ** self.rng.integers(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1))
        return np.float32(self.rng.uniform(low, high))

    def grid(self, low: float = 0.005, high: float = 0.1) -> Grid:
        limits = np.iinfo(self.dtype)
        return Grid(self.scale(low, high), int(self.rng.integers(limits.min, limits.max + 1)), self.dtype)

    def grid_of_sums(self, product: Any) -> Grid:
        """For the output of a layer whose sums have the scales ``product``; in a case with ties, a few bits above them."""
        grid = self.grid(0.05, 0.5)
        if not self.ties:
            return grid
        return Grid(np.float32(np.ravel(product)[0] * 2.0 ** self.whole(2, 7)), grid.zero_point, grid.dtype)

    def integers(self, shape: tuple[int, ...]) -> Array:
        limits = np.iinfo(self.dtype)
        return self.rng.integers(limits.min, limits.max + 1, shape).astype(self.dtype)

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.whole(0, len(choices) - 1)]


def weights(
    draw: Draw, model: Model, shape: tuple[int, ...], axis: int, kind: Any = np.int8, per: bool | None = None
) -> tuple[list[str], Array]:
    """Terms of constant weights (values, scale, zero point), per tensor or along ``axis``, and the scales."""
    per_channel = draw.one_of(True, False) if per is None else per
    if kind is np.int8:
        largest = draw.one_of(3, 20, LARGEST_WEIGHT) if draw.ties else LARGEST_WEIGHT  # small sums do not saturate
        values = draw.rng.integers(-largest, largest + 1, shape).astype(np.int8)
    else:
        values = draw.rng.integers(0, 256, shape).astype(np.uint8)
    count = shape[axis] if per_channel else 1
    scales = np.array([draw.scale(0.003, 0.05) for _ in range(count)], np.float32)
    zeros = np.zeros(count, kind) if kind is np.int8 else np.full(count, draw.whole(100, 156), kind)
    if not per_channel:
        scales, zeros = scales[0], zeros[0]
    terms = [model.constant("w", values), model.constant("w_scale", scales), model.constant("w_zero", zeros)]
    return terms, np.asarray(scales)


def window(draw: Draw, axes: int, size: list[int], dilations: bool = True) -> dict[str, Any]:
    """Attributes of a window that fits an image of ``size``."""
    kernel = [draw.whole(1, min(3, size[i])) for i in range(axes)]
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": [draw.whole(1, 2) for _ in range(axes)]}
    if dilations and draw.one_of(True, False):
        found["dilations"] = [draw.whole(1, 2) if size[i] >= 2 * kernel[i] else 1 for i in range(axes)]
    match draw.whole(0, 3):
        case 0:
            found["auto_pad"] = draw.one_of("SAME_UPPER", "SAME_LOWER", "VALID")
            if "dilations" in found and max(found["dilations"]) > 1:
                del found["auto_pad"]
        case 1 | 2:
            found["pads"] = [draw.whole(0, kernel[i % axes] - 1) for i in range(2 * axes)]
    return found


def qlinear_conv(draw: Draw, model: Model) -> dict[str, Any]:
    groups = draw.one_of(1, 1, 2, 3)
    depth, filters = draw.whole(1, 9), draw.whole(1, 5) * groups
    axes = draw.one_of(1, 2, 2, 2)
    if draw.one_of(True, False, False):  # depthwise
        groups, depth, filters = filters, 1, filters
    size = [draw.whole(3, 9) for _ in range(axes)]
    x, grid = draw.integers((2, depth * groups, *size)), draw.grid()
    attributes = window(draw, axes, size)
    kind = np.uint8 if draw.dtype is np.uint8 and draw.one_of(True, False, False, False) else np.int8
    shape, per = (filters, depth, *attributes["kernel_shape"]), None if kind is np.int8 else False
    terms, scales = weights(draw, model, shape, 0, kind, per)
    out = draw.grid_of_sums(grid.scale * scales)
    inputs = [model.entry("x", x), *grid.terms(model, "x"), *terms, *out.terms(model, "y")]
    if draw.one_of(True, False):
        inputs.append(model.constant("bias", draw.rng.integers(-20000, 20000, filters), np.int32))
    model.node("QLinearConv", inputs, "y", group=groups, **attributes)
    return {"y": draw.dtype}


def qlinear_matmul(draw: Draw, model: Model) -> dict[str, Any]:
    depth, columns = draw.whole(1, 70), draw.whole(1, 40)
    grid = draw.grid()
    terms, scales = weights(draw, model, (depth, columns), 1)
    out = draw.grid_of_sums(grid.scale * scales)
    x = model.entry("x", draw.integers((draw.whole(1, 9), depth)))
    model.node("QLinearMatMul", [x, *grid.terms(model, "x"), *terms, *out.terms(model, "y")], "y")
    return {"y": draw.dtype}


def qlinear_matmul_of_two(draw: Draw, model: Model) -> dict[str, Any]:
    """Two activations of one type, whose products saturate nowhere: matrices, or heads of them."""
    batch, rows, depth, columns = (draw.whole(1, largest) for largest in (3, 12, 70, 12))
    heads = () if draw.whole(0, 2) == 0 else (draw.whole(1, 4),)
    a, b = draw.grid(), draw.grid()
    out = draw.grid_of_sums(a.scale * b.scale * np.float32(1 if draw.ties else 64))
    terms = [model.entry("a", draw.integers((batch, *heads, rows, depth))), *a.terms(model, "a")]
    terms += [model.entry("b", draw.integers((batch, *heads, depth, columns))), *b.terms(model, "b")]
    model.node("QLinearMatMul", [*terms, *out.terms(model, "y")], "y")
    return {"y": draw.dtype}


def qgemm(draw: Draw, model: Model) -> dict[str, Any]:
    depth, rows = draw.whole(1, 70), draw.whole(1, 20)
    transposed = draw.one_of(True, False)
    grid = draw.grid()
    shape = (rows, depth) if transposed else (depth, rows)
    terms, scales = weights(draw, model, shape, 0 if transposed else 1)
    out = draw.grid_of_sums(grid.scale * scales)
    bias = ""
    if draw.one_of(True, False):
        shape = draw.one_of((rows,), (1, rows), (1,))
        bias = model.constant("bias", draw.rng.integers(-20000, 20000, shape), np.int32)
    x = model.entry("x", draw.integers((draw.whole(1, 9), depth)))
    alpha = draw.one_of(1.0, 1.0, 0.5, 4.0)
    inputs = [x, *grid.terms(model, "x"), *terms, bias, *out.terms(model, "y")]
    model.node("QGemm", inputs, "y", "com.microsoft", transB=int(transposed), alpha=alpha)
    return {"y": draw.dtype}


def image(draw: Draw) -> Array:
    """A batch of two images, or sequences, of several channels; where ties are wanted, often with sides that are even."""
    axes = draw.one_of(1, 2, 2, 2)
    sides = [draw.one_of(2, 4, 6, 8) if draw.ties and draw.whole(0, 2) else draw.whole(2, 9) for _ in range(axes)]
    return draw.integers((2, draw.whole(1, 12), *sides))


def qlinear_global_average_pool(draw: Draw, model: Model) -> dict[str, Any]:
    x, grid, out = image(draw), draw.grid(), draw.grid()
    inputs = [model.entry("x", x), *grid.terms(model, "x"), *out.terms(model, "y")]
    model.node("QLinearGlobalAveragePool", inputs, "y", "com.microsoft")
    return {"y": draw.dtype}


def qlinear_average_pool(draw: Draw, model: Model) -> dict[str, Any]:
    x, grid, out = image(draw), draw.grid(), draw.grid()
    attributes = window(draw, x.ndim - 2, list(x.shape[2:]), dilations=False)
    if draw.whole(0, 4) == 0:  # the whole image at once
        attributes = {"kernel_shape": list(x.shape[2:])}
    inputs = [model.entry("x", x), *grid.terms(model, "x"), *out.terms(model, "y")]
    counts = draw.whole(0, 1)
    model.node("QLinearAveragePool", inputs, "y", "com.microsoft", count_include_pad=counts, **attributes)
    return {"y": draw.dtype}


def two_images(draw: Draw, model: Model, kind: str, gate: bool = False) -> dict[str, Any]:
    a = image(draw)
    b = draw.integers(a.shape[:2] + (1,) * (a.ndim - 2) if gate and draw.one_of(True, False) else a.shape)
    first, second, out = draw.grid(), draw.grid(), draw.grid(0.01, 0.2)
    if draw.whole(0, 4):
        other = model.entry("b", b)
    else:  # a constant, as it is or for each channel or all of them
        other = model.constant("b", draw.one_of(b[:1], b[:1, :, *[slice(1)] * (b.ndim - 2)], b[0, 0].reshape(-1)[:1]))
    inputs = [model.entry("a", a), *first.terms(model, "a"), other, *second.terms(model, "b")]
    model.node(kind, [*inputs, *out.terms(model, "y")], "y", "com.microsoft")
    return {"y": draw.dtype}


def qlinear_add(draw: Draw, model: Model) -> dict[str, Any]:
    return two_images(draw, model, "QLinearAdd")


def qlinear_mul(draw: Draw, model: Model) -> dict[str, Any]:
    return two_images(draw, model, "QLinearMul", gate=True)


def qlinear_concat(draw: Draw, model: Model) -> dict[str, Any]:
    first, out = image(draw), draw.grid()
    inputs = out.terms(model, "y")
    for i in range(draw.whole(1, 3)):
        x = first if not i else draw.integers((2, draw.whole(1, 4), *first.shape[2:]))
        grid = out if draw.whole(0, 3) == 0 else draw.grid()
        inputs += [model.entry(f"x{i}", x), *grid.terms(model, f"x{i}")]
    model.node("QLinearConcat", inputs, "y", "com.microsoft", axis=draw.one_of(1, 1 - first.ndim))
    return {"y": draw.dtype}


def qlinear_softmax(draw: Draw, model: Model) -> dict[str, Any]:
    x, grid = draw.integers((draw.whole(1, 4), draw.whole(2, 40))), draw.grid(0.01, 0.3)
    lowest = int(np.iinfo(draw.dtype).min)
    scale = draw.one_of(1 / 256, 1 / 256, 1 / 255, 0.01)
    out = Grid(np.float32(scale), draw.one_of(lowest, draw.whole(lowest, lowest + 30)), draw.dtype)
    inputs = [model.entry("x", x), *grid.terms(model, "x"), *out.terms(model, "y")]
    model.node("QLinearSoftmax", inputs, "y", "com.microsoft", axis=-1, opset=13)
    return {"y": draw.dtype}


def reals(draw: Draw, grid: Grid, shape: tuple[int, ...]) -> Array:
    """Real numbers around the range of ``grid``; in a case with ties, many of them in the middle between two integers."""
    limits = np.iinfo(grid.dtype)
    if draw.ties:
        steps = (
            draw.rng.integers(2 * (limits.min - grid.zero_point) - 20, 2 * (limits.max - grid.zero_point) + 20, shape)
            / 2
        )
    else:
        steps = draw.rng.uniform(limits.min - grid.zero_point - 10, limits.max - grid.zero_point + 10, shape)
    return (steps * grid.scale).astype(np.float32)


def quantize_linear(draw: Draw, model: Model) -> dict[str, Any]:
    grid = draw.grid()
    x = model.entry("x", reals(draw, grid, (2, draw.whole(1, 50), draw.whole(1, 9))))
    model.node("QuantizeLinear", [x, *grid.terms(model, "y")], "y")
    return {"y": draw.dtype}


def dequantize_linear(draw: Draw, model: Model) -> dict[str, Any]:
    x = model.entry("x", draw.integers((2, draw.whole(1, 50), draw.whole(1, 9))))
    model.node("DequantizeLinear", [x, *draw.grid().terms(model, "x")], "y")
    return {"y": np.float32}


def max_pool(draw: Draw, model: Model) -> dict[str, Any]:
    x = image(draw)
    attributes = window(draw, x.ndim - 2, list(x.shape[2:]))
    model.node("MaxPool", [model.entry("x", x)], "y", ceil_mode=draw.whole(0, 1), **attributes)
    return {"y": draw.dtype}


OPERATORS: dict[str, Callable[[Draw, Model], dict[str, Any]]] = {
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QLinearMatMul of two": qlinear_matmul_of_two,
    "QGemm": qgemm,
    "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "QLinearAveragePool": qlinear_average_pool,
    "QLinearAdd": qlinear_add,
    "QLinearMul": qlinear_mul,
    "QLinearConcat": qlinear_concat,
    "QLinearSoftmax": qlinear_softmax,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "MaxPool": max_pool,
}
