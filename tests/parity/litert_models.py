"""Random TFLite files of one operator each, with inputs: what labkit and LiteRT must compute alike.

Every third case has powers of two as scales, so that quotients fall halfway between two integers again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.exporters.tflite_file import FileOperator, FileTensor, tflite_bytes

__all__ = ["MAKERS", "Case", "attention", "make"]

ACTIVATIONS = ("NONE", "NONE", "RELU", "RELU6", "RELU_N1_TO_1")


@dataclass
class Case:
    """A file, and arrays [N, ...] for its inputs."""

    data: bytes
    inputs: list[NDArray[Any]]


@dataclass
class Draw:
    """What a case is made of: random numbers, the tensors drawn so far, and the arrays for those that are inputs."""

    rng: np.random.Generator
    ties: bool
    batch: int
    tensors: list[FileTensor] = field(default_factory=list)
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)

    def whole(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, *choices: Any) -> Any:
        return choices[self.whole(0, len(choices) - 1)]

    def scale(self, about: float = 0.05) -> np.float32:
        drawn = about * 2.0 ** self.rng.uniform(-1.5, 1.5)
        return np.float32(2.0 ** round(math.log2(drawn)) if self.ties else drawn)

    def zero_point(self, kind: str = "int8") -> int:
        low, high = (0, 255) if kind == "uint8" else (-128, 127)
        return self.pick(low, high, self.whole(low, high), self.whole(low, high), (low + high + 1) // 2)

    def add(
        self, name: str, shape: tuple[int, ...], scale: Any, kind: str = "int8", zero_point: int | None = None
    ) -> str:
        """A tensor that is computed or an input; ``shape`` has no batch axis."""
        self.tensors.append(
            FileTensor(
                name,
                (1, *shape),
                kind,
                scale,
                self.zero_point(kind) if zero_point is None else zero_point,
                any_batch=True,
            )
        )
        return name

    def input(self, name: str, shape: tuple[int, ...], scale: Any, kind: str = "int8") -> str:
        info = np.iinfo(kind)
        self.inputs[name] = self.rng.integers(info.min, info.max + 1, (self.batch, *shape)).astype(kind)
        return self.add(name, shape, scale, kind)

    def constant(
        self, name: str, data: NDArray[Any], scales: Any = None, kind: str = "", axis: int = 0, zero_point: int = 0
    ) -> str:
        kind = kind or str(data.dtype)
        self.tensors.append(FileTensor(name, data.shape, kind, scales, zero_point, axis, data))
        return name

    def weights(self, shape: tuple[int, ...], axis: int, kind: str) -> tuple[str, NDArray[np.float32]]:
        low, high = (-8, 7) if kind == "int4" else (-128 if self.whole(0, 3) == 0 else -127, 127)
        data = self.rng.integers(low, high + 1, shape).astype(np.int8)
        count = shape[axis] if self.whole(0, 3) else 1
        scales = np.array([self.scale(0.01 * 127 / high) for _ in range(count)], np.float32)
        return self.constant("w", data, scales, kind, axis), scales

    def bias(self, channels: int, scales: NDArray[np.float32], source: np.float32, terms: int) -> str:
        reach = 40 * 127 * math.isqrt(terms)
        data = self.rng.integers(-reach, reach + 1, channels).astype(np.int32)
        return self.constant("b", data, scales.astype(np.float64) * source)

    def finished(self, code: str, inputs: tuple[str, ...], output: str, **options: Any) -> Case:
        data = tflite_bytes(
            self.tensors, [FileOperator(code, inputs, (output,), options)], tuple(self.inputs), (output,)
        )
        return Case(data, list(self.inputs.values()))


def _same(size: int, stride: int) -> int:
    return -(-size // stride)


def _windows(draw: Draw, size: int, kernel: int, stride: int, padding: str) -> int:
    return _same(size, stride) if padding == "SAME" else (size - kernel) // stride + 1


def _convolution(draw: Draw, kind: str, depthwise: bool) -> Case:
    channels, outputs = draw.whole(1, 9), draw.whole(1, 9)
    groups = 1
    if not depthwise and kind == "int8" and draw.whole(0, 5) == 0:
        groups, channels, outputs = 2, 2 * draw.whole(1, 4), 2 * draw.whole(1, 4)
    multiplier = draw.pick(1, 1, 2, 3)
    if depthwise:
        channels, outputs = draw.whole(1, 20), 0
        outputs = channels * multiplier
    kernel, dilation = (draw.whole(1, 4), draw.whole(1, 4)), draw.pick((1, 1), (1, 1), (2, 1), (2, 2))
    stride, padding = draw.pick((1, 1), (2, 2), (2, 1), (3, 2)), draw.pick("SAME", "VALID")
    if dilation != (1, 1):
        stride = (1, 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [draw.whole(low, low + 6) for low in reach]
    out = [_windows(draw, s, r, t, padding) for s, r, t in zip(size, reach, stride, strict=True)]
    source = draw.scale()
    draw.input("x", (*size, channels), source)
    shape = (1, *kernel, outputs) if depthwise else (outputs, *kernel, channels // groups)
    name, scales = draw.weights(shape, 3 if depthwise else 0, kind)
    terms = math.prod(kernel) * (1 if depthwise else channels // groups)
    draw.bias(outputs, scales, source, terms)
    largest = 7 if kind == "int4" else 127
    draw.add("y", (*out, outputs), draw.scale(float(source) * float(scales.mean()) * math.sqrt(terms) * largest / 2))
    options = {
        "Padding": padding,
        "StrideH": stride[0],
        "StrideW": stride[1],
        "DilationHFactor": dilation[0],
        "DilationWFactor": dilation[1],
        "FusedActivationFunction": draw.pick(*ACTIVATIONS),
    }
    if depthwise:
        options["DepthMultiplier"] = multiplier
    return draw.finished("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", ("x", name, "b"), "y", **options)


def _fully_connected(draw: Draw, kind: str) -> Case:
    inputs, outputs, source = draw.whole(1, 40), draw.whole(1, 20), draw.scale()
    image = (draw.whole(1, 3), draw.whole(1, 3), draw.whole(1, 5)) if draw.whole(0, 3) == 0 else None
    inputs = math.prod(image) if image else inputs
    draw.input("x", image or (inputs,), source)
    name, scales = draw.weights((outputs, inputs), 0, kind)
    names = ("x", name, draw.bias(outputs, scales, source, inputs)) if draw.whole(0, 5) else ("x", name)
    largest = 7 if kind == "int4" else 127
    draw.add("y", (outputs,), draw.scale(float(source) * float(scales.mean()) * math.sqrt(inputs) * largest / 2))
    return draw.finished("FULLY_CONNECTED", names, "y", FusedActivationFunction=draw.pick(*ACTIVATIONS))


def _shape(draw: Draw) -> tuple[int, ...]:
    return tuple(draw.whole(1, 7) for _ in range(draw.pick(1, 2, 3, 3)))


def _pair(draw: Draw, code: str, constant: bool) -> Case:
    shape, a, b = _shape(draw), draw.scale(), draw.scale()
    draw.input("a", shape, a)
    if constant:
        broadcast = draw.pick((1,), (1, *shape), shape[-1:], (*(1 for _ in shape), shape[-1]))
        data = draw.rng.integers(-128, 128, broadcast).astype(np.int8)
        draw.constant("b", data, b, zero_point=draw.zero_point())
    elif code == "MUL" and len(shape) == 3 and draw.whole(0, 3) == 0:
        draw.input("b", (1, 1, shape[-1]), b)
    else:
        draw.input("b", shape, b)
    about = float(a) * float(b) * 60 if code == "MUL" else max(float(a), float(b))
    draw.add("y", shape, draw.scale(about))
    names = ("b", "a") if draw.whole(0, 1) else ("a", "b")
    return draw.finished(code, names, "y", FusedActivationFunction=draw.pick(*ACTIVATIONS))


def _quantize(draw: Draw, source: str, target: str) -> Case:
    shape, scale = _shape(draw), draw.scale()
    draw.input("x", shape, scale, source)
    if source == target:
        draw.add("y", shape, draw.scale(float(scale)), target)
    else:  # a change of sign alone: the same real numbers
        zero_point = int(draw.tensors[0].zero_points) + (128 if target == "uint8" else -128)
        draw.add("y", shape, scale, target, zero_point)
    return draw.finished("QUANTIZE", ("x",), "y")


def _quantize_real(draw: Draw) -> Case:
    shape, scale = _shape(draw), draw.scale()
    steps = draw.rng.normal(0, 80, (draw.batch, *shape))
    steps = np.rint(2 * steps) / 2 if draw.ties else steps
    draw.inputs["x"] = (steps * scale).astype(np.float32)
    draw.tensors.append(FileTensor("x", (1, *shape), "float32", any_batch=True))
    draw.add("y", shape, scale, draw.pick("int8", "int8", "uint8"))
    return draw.finished("QUANTIZE", ("x",), "y")


def _dequantize(draw: Draw) -> Case:
    shape = _shape(draw)
    draw.input("x", shape, draw.scale(), draw.pick("int8", "int8", "uint8"))
    draw.tensors.append(FileTensor("y", (1, *shape), "float32", any_batch=True))
    return draw.finished("DEQUANTIZE", ("x",), "y")


def _pool(draw: Draw, code: str) -> Case:
    kernel, stride = (draw.whole(1, 4), draw.whole(1, 4)), (draw.whole(1, 3), draw.whole(1, 3))
    padding, channels = draw.pick("SAME", "VALID"), draw.whole(1, 20)
    size = [draw.whole(k, k + 6) for k in kernel]
    if draw.whole(0, 4) == 0:
        kernel, padding = (size[0], size[1]), "VALID"
    out = [_windows(draw, s, k, t, padding) for s, k, t in zip(size, kernel, stride, strict=True)]
    draw.input("x", (*size, channels), draw.pick(draw.scale(), draw.scale(2)))
    source = draw.tensors[0]
    draw.add("y", (*out, channels), source.scales, zero_point=int(source.zero_points))
    return draw.finished(
        code,
        ("x",),
        "y",
        Padding=padding,
        StrideH=stride[0],
        StrideW=stride[1],
        FilterHeight=kernel[0],
        FilterWidth=kernel[1],
        FusedActivationFunction=draw.pick(*(ACTIVATIONS if code == "AVERAGE_POOL_2D" else ACTIVATIONS[:3])),
    )


def _mean(draw: Draw) -> Case:
    size, scale = (draw.whole(1, 9), draw.whole(1, 9), draw.whole(1, 20)), draw.scale()
    axes, keep = draw.pick((1, 2), (2, 1), (1, 2), (-3, -2), (1,), (2,)), bool(draw.whole(0, 1))
    draw.input("x", size, scale)
    draw.constant("axes", np.array(axes, np.int32))
    gone = {axis % 4 for axis in axes}
    shape = tuple(1 if 1 + i in gone else s for i, s in enumerate(size) if keep or 1 + i not in gone)
    draw.add("y", shape, draw.scale(float(scale) / 2))
    return draw.finished("MEAN", ("x", "axes"), "y", KeepDims=keep)


def _mean_of_sequence(draw: Draw) -> Case:
    size, scale = (draw.whole(1, 20), draw.whole(1, 40)), draw.scale()
    axes, keep = draw.pick((1,), (1,), (-2,), (2,), (1, 2)), bool(draw.whole(0, 1))
    if draw.whole(0, 4) == 0:
        size, axes, keep = size[1:], (1,), True
    draw.input("x", size, scale)
    draw.constant("axes", np.array(axes, np.int32))
    gone = {axis % 3 if axis < 0 else axis for axis in axes}
    keep = keep or len(gone) == len(size)
    shape = tuple(1 if 1 + i in gone else s for i, s in enumerate(size) if keep or 1 + i not in gone)
    draw.add("y", shape, draw.scale(float(scale) / 2))
    return draw.finished("MEAN", ("x", "axes"), "y", KeepDims=keep)


def _batch_matmul(draw: Draw, constant: bool) -> Case:
    """Heads (H, m, k) or none, either side transposed; the constant on the right, at times on the left, or broadcast."""
    rank = draw.pick(3, 4, 4) if not constant or draw.whole(0, 5) else 2
    rows, inner, columns = draw.whole(1, 12), draw.whole(1, 70), draw.whole(1, 12)
    across, down = bool(draw.whole(0, 1)) and rank > 2, bool(draw.whole(0, 1))
    heads: tuple[int, ...] = (draw.whole(1, 4),) if rank == 4 else ()
    shapes = [(inner, rows) if across else (rows, inner), (columns, inner) if down else (inner, columns)]
    scales = draw.scale(), draw.scale()
    fixed = -1 if not constant else 0 if rank > 2 and draw.whole(0, 4) == 0 else 1
    for place, (name, shape) in enumerate(zip("ab", shapes, strict=True)):
        zero_point = draw.pick(0, draw.zero_point()) if place else draw.zero_point()
        lead = draw.pick((1, *heads), heads, (), (1,) * (rank - 2)) if place == fixed else (draw.batch, *heads)
        lead = () if place == fixed and rank == 2 else lead
        full = (*lead, *shape) if rank > 2 or place == fixed else (draw.batch, inner)
        data = draw.rng.integers(-128, 128, full).astype(np.int8)
        if draw.ties:
            data = (data // 16 * 16).astype(np.int8)
        if place == fixed:
            draw.constant(name, data, scales[place], zero_point=zero_point)
        else:
            draw.inputs[name] = data
            draw.add(name, full[1:], scales[place], zero_point=zero_point)
    spread = float(scales[0]) * float(scales[1]) * 90 * 90 * math.sqrt(inner)
    shape = (*heads, rows, columns) if rank > 2 else (columns,)
    draw.add("y", shape, draw.scale(spread / 60))
    return draw.finished("BATCH_MATMUL", ("a", "b"), "y", AdjX=across, AdjY=down)


def _attention_shares(draw: Draw) -> Case:
    """Scores of H heads and T tokens, (H, T, T): shares along the last axis."""
    tokens = draw.whole(1, 40)
    shape = (draw.whole(1, 6), tokens, tokens) if draw.whole(0, 3) else (tokens, tokens)
    draw.input("x", shape, draw.scale(draw.pick(0.02, 0.05, 0.1, 0.4)))
    draw.add("y", shape, np.float32(2.0**-8), zero_point=-128)
    return draw.finished("SOFTMAX", ("x",), "y", Beta=1.0)


def _gelu(draw: Draw) -> Case:
    """All 256 integers at once, and as an image."""
    shape, scale = draw.pick((256,), (16, 16), (8, 8, 4)), draw.scale(draw.pick(0.02, 0.05, 0.1))
    draw.input("x", shape, scale)
    every = np.tile(np.arange(-128, 128).astype(np.int8), (draw.batch, 1))
    draw.inputs["x"] = draw.rng.permuted(every, axis=1).reshape(draw.batch, *shape)
    draw.add("y", shape, draw.scale(float(scale)))
    return draw.finished("GELU", ("x",), "y", Approximate=bool(draw.whole(0, 1)))


def _softmax(draw: Draw) -> Case:
    if draw.ties:  # two elements whose shares lie halfway between two integers, as nearly as a float32 scale allows
        difference, high = draw.whole(1, 60), draw.whole(129, 254) + 0.5
        draw.input("x", (2,), np.float32(math.log(high / (256 - high)) / difference))
        top = draw.whole(difference - 128, 127)
        draw.inputs["x"] = draw.rng.permuted([[top, top - difference]] * draw.batch, axis=1).astype(np.int8)
        shape: tuple[int, ...] = (2,)
    else:  # LiteRT aborts where exponentials sum to 512
        shape = draw.pick((draw.whole(1, 511),), (draw.whole(1, 5), draw.whole(1, 12)), (2, 3, draw.whole(1, 12)))
        draw.input("x", shape, draw.scale(draw.pick(0.01, 0.05, 0.2, 1.0)))
    draw.add("y", shape, np.float32(2.0**-8), zero_point=-128)
    return draw.finished("SOFTMAX", ("x",), "y", Beta=1.0)


def _function(draw: Draw, *codes: str) -> Case:
    code, shape, scale = draw.pick(*codes), _shape(draw), draw.scale(draw.pick(0.02, 0.05, 0.5))
    if draw.ties and code == "LOGISTIC":  # some integer's function is nearly halfway between two results
        half, difference = draw.whole(1, 126) + 0.5, draw.whole(1, 100)
        scale = np.float32(math.log((128 + half) / (128 - half)) / difference)
    draw.input("x", shape, scale)
    if code == "LOGISTIC":
        draw.add("y", shape, np.float32(2.0**-8), zero_point=draw.pick(-128, -128, draw.zero_point()))
    elif code == "TANH":
        draw.add("y", shape, np.float32(2.0**-7), zero_point=draw.pick(0, 0, draw.zero_point()))
    else:
        draw.add("y", shape, draw.scale(float(scale)))
    return draw.finished(code, ("x",), "y")


def _pad(draw: Draw) -> Case:
    size = (draw.whole(1, 5), draw.whole(1, 5), draw.whole(1, 5))
    edges = draw.rng.integers(0, 4, (4, 2)).astype(np.int32)
    edges[[0, 3]] = 0
    draw.input("x", size, draw.scale())
    draw.constant("edges", edges)
    shape = tuple(int(s + e.sum()) for s, e in zip(size, edges[1:], strict=True))
    source = draw.tensors[0]
    draw.add("y", shape, source.scales, zero_point=int(source.zero_points))
    return draw.finished("PAD", ("x", "edges"), "y")


def _concatenation(draw: Draw) -> Case:
    shape = list(_shape(draw))
    place, scale, zero_point = draw.whole(0, len(shape) - 1), draw.scale(), draw.zero_point()
    sizes = [draw.whole(1, 5) for _ in range(draw.whole(1, 4))]
    for i, size in enumerate(sizes):
        part = (*shape[:place], size, *shape[place + 1 :])
        if i == 1 and draw.batch == 1 and draw.whole(0, 1):
            draw.constant("p1", draw.rng.integers(-128, 128, (1, *part)).astype(np.int8), scale, zero_point=zero_point)
            continue
        draw.inputs[f"p{i}"] = draw.rng.integers(-128, 128, (draw.batch, *part)).astype(np.int8)
        draw.add(f"p{i}", part, scale, zero_point=zero_point)
    shape[place] = sum(sizes)
    draw.add("y", tuple(shape), scale, zero_point=zero_point)
    axis = draw.pick(1 + place, place - len(shape))
    return draw.finished("CONCATENATION", tuple(f"p{i}" for i in range(len(sizes))), "y", Axis=axis)


def _reshape(draw: Draw) -> Case:
    shape = tuple(draw.whole(1, 4) for _ in range(draw.whole(1, 3)))
    count = math.prod(shape)
    ways = [(a, b, count // a // b) for a in range(1, count + 1) for b in range(1, count + 1) if count % (a * b) == 0]
    target = draw.pick(*ways)[: draw.whole(1, 3)]
    target = (*target[:-1], count // math.prod(target[:-1]))
    draw.input("x", shape, draw.scale())
    source = draw.tensors[0]
    draw.constant("shape", np.array((-1, *target), np.int32))
    draw.add("y", target, source.scales, zero_point=int(source.zero_points))
    return draw.finished("RESHAPE", ("x", "shape"), "y")


def _transpose(draw: Draw) -> Case:
    shape = tuple(draw.whole(1, 5) for _ in range(draw.whole(2, 3)))
    order = 1 + draw.rng.permutation(len(shape))
    draw.input("x", shape, draw.scale())
    source = draw.tensors[0]
    draw.constant("order", np.array([0, *order], np.int32))
    draw.add("y", tuple(shape[i - 1] for i in order), source.scales, zero_point=int(source.zero_points))
    return draw.finished("TRANSPOSE", ("x", "order"), "y")


MAKERS: dict[str, Callable[[Draw], Case]] = {
    "CONV_2D": lambda draw: _convolution(draw, "int8", False),
    "CONV_2D int4": lambda draw: _convolution(draw, "int4", False),
    "DEPTHWISE_CONV_2D": lambda draw: _convolution(draw, "int8", True),
    "DEPTHWISE_CONV_2D int4": lambda draw: _convolution(draw, "int4", True),
    "FULLY_CONNECTED": lambda draw: _fully_connected(draw, "int8"),
    "FULLY_CONNECTED int4": lambda draw: _fully_connected(draw, "int4"),
    "ADD": lambda draw: _pair(draw, "ADD", False),
    "ADD constant": lambda draw: _pair(draw, "ADD", True),
    "SUB": lambda draw: _pair(draw, "SUB", False),
    "MUL": lambda draw: _pair(draw, "MUL", False),
    "MUL constant": lambda draw: _pair(draw, "MUL", True),
    "QUANTIZE": lambda draw: _quantize(draw, "int8", "int8"),
    "QUANTIZE uint8": lambda draw: _quantize(draw, *draw.pick(("int8", "uint8"), ("uint8", "int8"))),
    "QUANTIZE float32": _quantize_real,
    "DEQUANTIZE": _dequantize,
    "AVERAGE_POOL_2D": lambda draw: _pool(draw, "AVERAGE_POOL_2D"),
    "MAX_POOL_2D": lambda draw: _pool(draw, "MAX_POOL_2D"),
    "MEAN": _mean,
    "MEAN of a sequence": _mean_of_sequence,
    "BATCH_MATMUL": lambda draw: _batch_matmul(draw, False),
    "BATCH_MATMUL constant": lambda draw: _batch_matmul(draw, True),
    "SOFTMAX": _softmax,
    "SOFTMAX attention": _attention_shares,
    "GELU": _gelu,
    "LOGISTIC": lambda draw: _function(draw, "LOGISTIC"),
    "TANH": lambda draw: _function(draw, "TANH"),
    "RELU": lambda draw: _function(draw, "RELU", "RELU6", "RELU_N1_TO_1"),
    "PAD": _pad,
    "CONCATENATION": _concatenation,
    "RESHAPE": _reshape,
    "TRANSPOSE": _transpose,
}
"""By name, what draws a case of an operator."""


def make(name: str, seed: int) -> Case:
    """Case number ``seed`` of the operator ``name``, one of `MAKERS`."""
    rng = np.random.default_rng([seed, *name.encode()])
    return MAKERS[name](Draw(rng, seed % 3 == 0, int(rng.integers(1, 4))))


def attention(seed: int) -> Case:
    """Attention of several heads: shares of the scores, which weight the values, and the mean of all tokens."""
    rng = np.random.default_rng([seed, 7])
    draw = Draw(rng, seed % 3 == 0, int(rng.integers(1, 4)))
    heads, tokens, depth = draw.whole(1, 4), draw.whole(2, 24), draw.whole(1, 16)
    shape, scores = (heads, tokens, depth), (heads, tokens, tokens)
    grids = [(draw.scale(), draw.pick(0, draw.zero_point())) for _ in range(3)]
    for name, (scale, zero_point) in zip("qkv", grids, strict=True):
        draw.inputs[name] = rng.integers(-128, 128, (draw.batch, *shape)).astype(np.int8)
        draw.add(name, shape, scale, zero_point=zero_point)
    products = float(grids[0][0]) * float(grids[1][0]) * 5500 * math.sqrt(depth)
    draw.add("scores", scores, draw.scale(products / 60))
    draw.add("shares", scores, np.float32(2.0**-8), zero_point=-128)
    draw.add("context", shape, draw.scale(float(grids[2][0])))
    context = draw.tensors[-1]
    zero_point = int(np.asarray(context.zero_points))
    draw.add("joined", (heads * tokens, depth), context.scales, zero_point=zero_point)
    draw.constant("shape", np.array([-1, heads * tokens, depth], np.int32))
    draw.add("y", (depth,), draw.scale(float(grids[2][0])))
    draw.constant("axis", np.array([1], np.int32))
    operators = [
        FileOperator("BATCH_MATMUL", ("q", "k"), ("scores",), {"AdjY": True}),
        FileOperator("SOFTMAX", ("scores",), ("shares",), {"Beta": 1.0}),
        FileOperator("BATCH_MATMUL", ("shares", "v"), ("context",), {}),
        FileOperator("RESHAPE", ("context", "shape"), ("joined",), {}),
        FileOperator("MEAN", ("joined", "axis"), ("y",), {"KeepDims": False}),
    ]
    return Case(tflite_bytes(draw.tensors, operators, ("q", "k", "v"), ("y",)), list(draw.inputs.values()))
