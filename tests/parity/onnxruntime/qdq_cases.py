"""Random networks of one operator between DequantizeLinear and QuantizeLinear nodes (QDQ), as `cases` has them in integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from parity.onnxruntime.cases import Draw, Grid, Model, image, reals, weights, window


def dequantized(
    draw: Draw, model: Model, name: str, shape: tuple[int, ...], grid: Grid | None = None
) -> tuple[str, Grid]:
    """A float32 input of ``shape``, quantized and dequantized: the last tensor's name and its grid."""
    grid = grid or draw.grid()
    terms = grid.terms(model, name)
    model.node("QuantizeLinear", [model.entry(name, reals(draw, grid, shape)), *terms], f"{name}_q")
    return model.node("DequantizeLinear", [f"{name}_q", *terms], f"{name}_d"), grid


def closed(draw: Draw, model: Model, result: str, out: Grid) -> dict[str, Any]:
    """``result`` quantized to the grid ``out``, and dequantized at the border."""
    terms = out.terms(model, "y")
    model.node("QuantizeLinear", [result, *terms], "y_q")
    model.node("DequantizeLinear", ["y_q", *terms], "y")
    return {"y": np.float32}


def activated(draw: Draw, model: Model, result: str, out: Grid) -> tuple[str, Grid]:
    """``result``, or one time in three after a Relu, on a grid that starts at real 0."""
    if draw.whole(0, 2):
        return result, out
    model.node("Relu", [result], "r")
    return "r", Grid(out.scale, int(np.iinfo(out.dtype).min), out.dtype)


def constant_weights(draw: Draw, model: Model, shape: tuple[int, ...], axis: int) -> tuple[str, Any]:
    """Dequantized int8 weights, and their scales."""
    terms, scales = weights(draw, model, shape, axis)
    return model.node("DequantizeLinear", terms, "w_d", axis=axis), scales


def bias_of(draw: Draw, model: Model, count: int, grid: Grid, scales: Any) -> list[str]:
    """No bias, one of int32 at the scale of the products, or one of float32."""
    scale = (grid.scale * scales).astype(np.float32)
    values = draw.rng.integers(-20000, 20000, count)
    match draw.whole(0, 2):
        case 0:
            return []
        case 1:
            terms = [model.constant("bias", values, np.int32), model.constant("bias_scale", scale)]
            terms.append(model.constant("bias_zero", np.zeros(scale.shape), np.int32))
            return [model.node("DequantizeLinear", terms, "bias_d", axis=0)]
        case _:
            reals = (values + draw.rng.uniform(-0.4, 0.4, count)) * scale
            return [model.constant("bias", reals, np.float32)]


def conv(draw: Draw, model: Model) -> dict[str, Any]:
    groups, axes = draw.one_of(1, 1, 2), draw.one_of(1, 2, 2, 2)
    depth, filters = draw.whole(1, 9), draw.whole(1, 5) * groups
    size = [draw.whole(3, 9) for _ in range(axes)]
    x, grid = dequantized(draw, model, "x", (2, depth * groups, *size))
    attributes = window(draw, axes, size)
    w, scales = constant_weights(draw, model, (filters, depth, *attributes["kernel_shape"]), 0)
    model.node("Conv", [x, w, *bias_of(draw, model, filters, grid, scales)], "c", group=groups, **attributes)
    return closed(draw, model, *activated(draw, model, "c", draw.grid_of_sums(grid.scale * scales)))


def gemm(draw: Draw, model: Model) -> dict[str, Any]:
    depth, rows, transposed = draw.whole(1, 70), draw.whole(1, 20), draw.one_of(True, False)
    x, grid = dequantized(draw, model, "x", (draw.whole(1, 5), depth))
    shape, axis = ((rows, depth), 0) if transposed else ((depth, rows), 1)
    w, scales = constant_weights(draw, model, shape, axis)
    model.node("Gemm", [x, w, *bias_of(draw, model, rows, grid, scales)], "c", transB=int(transposed))
    return closed(draw, model, *activated(draw, model, "c", draw.grid_of_sums(grid.scale * scales)))


def matmul_of_two(draw: Draw, model: Model) -> dict[str, Any]:
    heads, rows, depth, columns = (draw.whole(1, largest) for largest in (4, 12, 70, 12))
    batch = draw.whole(1, 3)
    a, first = dequantized(draw, model, "a", (batch, heads, rows, depth))
    b, second = dequantized(draw, model, "b", (batch, heads, depth, columns))
    model.node("MatMul", [a, b], "m")
    return closed(draw, model, "m", draw.grid_of_sums(first.scale * second.scale * np.float32(1 if draw.ties else 64)))


def matmul(draw: Draw, model: Model) -> dict[str, Any]:
    depth, columns = draw.whole(1, 70), draw.whole(1, 20)
    x, grid = dequantized(draw, model, "x", (draw.whole(1, 5), depth))
    w, scales = constant_weights(draw, model, (depth, columns), 1)
    model.node("MatMul", [x, w], "c")
    return closed(draw, model, "c", draw.grid_of_sums(grid.scale * scales))


def add(draw: Draw, model: Model) -> dict[str, Any]:
    shape = image(draw).shape
    a, _ = dequantized(draw, model, "a", shape)
    if draw.whole(0, 4):
        b, _ = dequantized(draw, model, "b", shape)
    else:
        values = draw.integers((1, shape[1], *(1,) * (len(shape) - 2)))
        b = model.node("DequantizeLinear", [model.constant("b", values), *draw.grid().terms(model, "b")], "b_d")
    model.node("Add", [a, b], "c")
    return closed(draw, model, *activated(draw, model, "c", draw.grid(0.01, 0.2)))


def multiply(draw: Draw, model: Model) -> dict[str, Any]:
    shape = image(draw).shape
    gate = shape[:2] + (1,) * (len(shape) - 2)
    a, _ = dequantized(draw, model, "a", shape)
    b, _ = dequantized(draw, model, "b", draw.one_of(shape, gate))
    model.node("Mul", [a, b], "c")
    return closed(draw, model, "c", draw.grid(0.01, 0.2))


def average_pool(draw: Draw, model: Model) -> dict[str, Any]:
    shape = image(draw).shape
    x, _ = dequantized(draw, model, "x", shape)
    attributes = window(draw, len(shape) - 2, list(shape[2:]), dilations=False)
    model.node("AveragePool", [x], "c", count_include_pad=draw.whole(0, 1), **attributes)
    return closed(draw, model, "c", draw.grid())


def global_average_pool(draw: Draw, model: Model) -> dict[str, Any]:
    x, _ = dequantized(draw, model, "x", image(draw).shape)
    model.node("GlobalAveragePool", [x], "c")
    return closed(draw, model, "c", draw.grid())


def concat(draw: Draw, model: Model) -> dict[str, Any]:
    shape, out = image(draw).shape, draw.grid()
    parts = [
        dequantized(draw, model, f"x{i}", (shape[0], draw.whole(1, 4), *shape[2:]), draw.one_of(None, out))[0]
        for i in range(draw.whole(2, 3))
    ]
    model.node("Concat", parts, "c", axis=1)
    return closed(draw, model, "c", out)


def softmax(draw: Draw, model: Model) -> dict[str, Any]:
    x, _ = dequantized(draw, model, "x", (draw.whole(1, 4), draw.whole(2, 40)), draw.grid(0.01, 0.3))
    model.node("Softmax", [x], "c", axis=draw.one_of(1, -1))
    return closed(draw, model, "c", Grid(np.float32(1 / 256), int(np.iinfo(draw.dtype).min), draw.dtype))


def moving(draw: Draw, model: Model) -> dict[str, Any]:
    """What moves or compares numbers, to the same scale or another, and a change of scale alone."""
    shape = (2, draw.whole(1, 5), draw.whole(2, 6), draw.whole(2, 6))
    x, grid = dequantized(draw, model, "x", shape)
    match draw.whole(0, 7):
        case 0:
            model.node("MaxPool", [x], "c", **window(draw, 2, list(shape[2:])))
        case 1:
            model.node("Flatten", [x], "c")
        case 2:
            model.node("Reshape", [x, model.constant("shape", [0, shape[1], -1], np.int64)], "c")
        case 3:
            model.node("Transpose", [x], "c", perm=[0, *(1 + draw.rng.permutation(3)).tolist()])
        case 4:
            pads = [0, 0, *draw.rng.integers(0, 3, 2).tolist(), 0, 0, *draw.rng.integers(0, 3, 2).tolist()]
            model.node("Pad", [x, model.constant("pads", pads, np.int64)], "c")
        case 5:
            factors = model.constant("factors", [1, 1, draw.whole(1, 3), draw.whole(1, 3)], np.float32)
            modes = draw.one_of(("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
            names = ("coordinate_transformation_mode", "nearest_mode")
            model.node("Resize", [x, "", factors], "c", mode="nearest", **dict(zip(names, modes, strict=True)))
        case 6:
            model.node("Relu", [x], "c")
        case _:
            ends = [model.constant(name, end, np.float32) for name, end in (("low", 0), ("high", draw.one_of(6, 1)))]
            model.node("Clip", [x, *ends], "c")
    return closed(draw, model, "c", draw.one_of(grid, draw.grid()))


QDQ: dict[str, Callable[[Draw, Model], dict[str, Any]]] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMul of two": matmul_of_two,
    "Add": add,
    "Mul": multiply,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "Concat": concat,
    "Softmax": softmax,
    "moving": moving,
}
