"""Graphs made by hand: an integer net with every operation, and float graphs of a few nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec, params_from_values, quantize_tensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.softmax import exponential_table
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatNode, IntGraph, IntNode, Tensor
from labkit.graph.shapes import symmetric_padding

NO_PADDING = symmetric_padding(0, 0)
AFFINE8 = QuantSpec(8, signed=False, symmetric=False)


def tensor(shape: tuple[int, ...], scale: float = 0.02, zero_point: int = 10, spec: QuantSpec = AFFINE8) -> Tensor:
    return Tensor(shape, spec, QParams(np.float32(scale), np.int32(zero_point)))


def weights(shape: tuple[int, ...], bits: int = 8, per_channel: bool = True, seed: int = 0) -> QTensor:
    spec = QuantSpec(bits, narrow=True, **({"granularity": PerAxis(0)} if per_channel else {}))  # type: ignore[arg-type]
    real = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return quantize_tensor(real, params_from_values(real, spec), spec)


def biased(multiplier: Any, bias: Any, output: Tensor, rule: RoundingRule) -> Requantizer:
    """A requantizer of ``rule`` (FLOAT32_EVEN or FLOAT32_TWICE) with a float ``bias``."""
    return replace(requantizer(multiplier, output, rule), bias=np.asarray(bias, np.float32))


def requantizer(multiplier: Any, output: Tensor, rule: RoundingRule = RoundingRule.SINGLE) -> Requantizer:
    spec, params = output.quantized
    kinds = {RoundingRule.FLOAT32_EVEN: np.float32, RoundingRule.FLOAT64_AWAY: np.float64}
    if rule is RoundingRule.FLOAT32_TWICE:
        first, second = np.asarray(multiplier / 0.37, np.float32), np.asarray(0.37, np.float32)
        return Requantizer(rule, first, int(params.zero_point), (spec.qmin, spec.qmax), True, second=second)
    form = np.asarray(multiplier, kinds[rule]) if rule in kinds else FixedPointMultiplier.from_real(multiplier)
    return Requantizer(rule, form, int(params.zero_point), (spec.qmin, spec.qmax))


def every_operation(rule: RoundingRule = RoundingRule.SINGLE) -> IntGraph:
    """An integer net with a node of each kind: 8, 4 and 1 bit weights, per channel and per tensor."""
    rng = np.random.default_rng(1)

    def bias(count: int) -> NDArray[np.int32]:
        return rng.integers(-500, 500, count).astype(np.int32)

    x = tensor((2, 6, 6), zero_point=128)
    conv, pool = tensor((4, 6, 6), 0.03), tensor((4, 3, 3), 0.03)
    point, add, cat = tensor((4, 3, 3), 0.05, 99), tensor((4, 3, 3), 0.06, 7), tensor((8, 3, 3), 0.06, 8)
    act, mean, flat = tensor((8, 3, 3), 0.04, 0), tensor((8, 1, 1), 0.01, 3), tensor((8,), 0.01, 3)
    fc = tensor((3,), 0.5, 0, QuantSpec(8, narrow=True))
    scaled, uneven, shares = tensor((8, 3, 3), 0.02, 5), tensor((8, 3, 2), 0.01, 9), tensor((3,), 2.0**-8, 0)
    grouped, whole, binary = weights((4, 1, 3, 3)), weights((4, 4, 1, 1), 4), weights((3, 8), 1, False)
    square = (1, 1)
    nodes = (
        IntNode("x", int_ops.Quantize((2, 6, 6)), (), x),
        IntNode(
            "conv",
            int_ops.Conv2d(
                grouped,
                bias(4),
                requantizer(rng.uniform(0.001, 0.01, 4), conv, rule),
                square,
                symmetric_padding(1, 1),
                square,
                2,
            ),
            ("x",),
            conv,
            ("bn", "relu"),
        ),
        IntNode("pool", int_ops.MaxPool2d((2, 2), (2, 2), NO_PADDING, square, False), ("conv",), pool),
        IntNode(
            "point",
            int_ops.Conv2d(whole, bias(4), requantizer(0.02, point, rule), square, NO_PADDING, square, 1),
            ("pool",),
            point,
        ),
        IntNode(
            "add",
            int_ops.Add(np.array([2**29, 894_784_853], np.int32), 30, 7, (7, 255)),
            ("pool", "point"),
            add,
        ),
        IntNode(
            "cat",
            int_ops.Concat((requantizer(1.0, cat, rule), requantizer(0.5, cat, rule))),
            ("add", "pool"),
            cat,
        ),
        IntNode("act", int_ops.Requantize(requantizer(1.5, act, rule)), ("cat",), act),
        IntNode(
            "mean",
            int_ops.AveragePool2d((3, 3), (3, 3), NO_PADDING, requantizer(0.04 / 0.09, mean, rule)),
            ("act",),
            mean,
        ),
        IntNode("flat", int_ops.Flatten(), ("mean",), flat),
        IntNode("fc", int_ops.Linear(binary, bias(3), requantizer(0.01, fc, rule)), ("flat",), fc),
        IntNode("scaled", int_ops.Multiply(requantizer(0.03, scaled, rule)), ("act", "mean"), scaled),
        IntNode("padded", int_ops.Pad(((1, 0), (0, 1))), ("scaled",), tensor((8, 4, 4), 0.02, 5)),
        IntNode("larger", int_ops.UpsampleNearest2d((2, 3)), ("padded",), tensor((8, 8, 12), 0.02, 5)),
        IntNode("moved", int_ops.Transpose((1, 2, 0)), ("padded",), tensor((4, 4, 8), 0.02, 5)),
        IntNode("sequence", int_ops.Reshape((8, 16)), ("moved",), tensor((8, 16), 0.02, 5)),
        IntNode(
            "uneven",
            int_ops.AdaptiveAveragePool2d((3, 2), requantizer(0.02 / 0.01 / 4, uneven, rule)),
            ("padded",),
            uneven,
        ),
        IntNode("shares", int_ops.Softmax(0, exponential_table(0.5), 8, 0, (0, 255)), ("fc",), shares),
        IntNode("class", int_ops.ArgMax(0, True), ("shares",), Tensor((1,), None, None, is_index=True)),
        IntNode("output", int_ops.Dequantize(), ("fc",), Tensor((3,), None, None)),
    )
    return IntGraph(nodes, ("output",), {"made": "by hand", "bits": [8, 4, 1]})


def operations_of_runtimes() -> IntGraph:
    """An integer net of what version 4 of a file knows: each operation of another runtime, in NHWC, integers in and out."""
    signed = QuantSpec(8, signed=True, symmetric=False)

    def image(channels: int, size: int, scale: float, zero_point: int) -> Tensor:
        return replace(tensor((channels, size, size), scale, zero_point, signed), channels_last=True)

    x, conv, pool, real = image(2, 6, 0.02, -3), image(2, 6, 0.03, 4), image(2, 3, 0.03, 4), image(2, 3, 0.02, 4)
    other, total, shares = image(2, 3, 0.05, -9), image(2, 3, 0.06, 7), image(2, 3, 2.0**-8, -128)
    table = np.random.default_rng(2).integers(-128, 128, 256).astype(np.int32)
    halves = FixedPointMultiplier.from_real(np.array([0.3, 0.5]))
    window = ((3, 3), (2, 2), ((1, 0), (0, 1)))
    bias, both = np.array([0.4, -7.25]), (RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE)
    point, none = weights((2, 2, 1, 1)), np.zeros(2, np.int32)

    def pointwise(rule: RoundingRule) -> int_ops.Conv2d:
        made = biased(np.array([0.01, 0.02]), bias, conv, rule)
        return int_ops.Conv2d(point, none, made, (1, 1), NO_PADDING, (1, 1), 1)

    nodes = (
        IntNode("x", int_ops.Input((2, 6, 6)), (), x),
        IntNode("even", pointwise(both[0]), ("x",), conv),
        IntNode("twice", pointwise(both[1]), ("x",), conv),
        IntNode("valid", int_ops.AveragePoolOfValid(*window, (-100, 127)), ("even",), pool),
        IntNode("real", int_ops.AveragePoolFloat32(*window, False, (-128, 127)), ("twice",), real),
        IntNode("looked", int_ops.Lookup("tanh", table), ("real",), other),
        IntNode(
            "fixed",
            int_ops.AddFixedPoint(
                RoundingRule.GEMMLOWP, 20, halves, FixedPointMultiplier.from_real(2.0**-19), 7, (-128, 127), True
            ),
            ("valid", "looked"),
            total,
        ),
        IntNode(
            "float",
            int_ops.AddFloat32(np.array([0.5, 0.83], np.float32), np.array(6.25, np.float32), (-128, 127)),
            ("valid", "looked"),
            total,
        ),
        IntNode(
            "shares",
            int_ops.SoftmaxFixedPoint(0, FixedPointMultiplier.from_real(0.06 * 2**26), -124, -128, (-128, 127)),
            ("fixed",),
            shares,
        ),
        IntNode("r", int_ops.QuantizeByReciprocal((2, 3, 3)), (), total),
        IntNode(
            "torch",
            int_ops.AddDequantized(np.array([0.06, 0.03], np.float32), np.array(1 / 0.06, np.float32), 7, (7, 127), 16),
            ("r", "valid"),
            total,
        ),
        IntNode(
            "away",
            int_ops.AddAwayFromZero(np.array([2**21, 2**20], np.int32), 21, 7, (-128, 127)),
            ("r", "valid"),
            total,
        ),
    )
    return IntGraph(
        (*nodes, *_operations_of_litert(total, shares)),
        ("float", "shares", "torch", "away"),
        {"like": "by hand"},
    )


def _operations_of_litert(total: Tensor, shares: Tensor) -> tuple[IntNode, ...]:
    powers = np.exp(-0.06 * np.arange(256)).astype(np.float32)
    values = np.random.default_rng(3).integers(-128, 128, total.shape).astype(np.int8)
    return (
        IntNode("border", int_ops.QuantizeAwayFromZero((2, 3, 3)), (), total),
        IntNode("constant", int_ops.Constant(values), (), total),
        IntNode(
            "mean",
            int_ops.MeanFloat32((1, 2), np.float32(0.11), np.float32(-2.5), (-128, 127)),
            ("border",),
            replace(total, shape=(2, 1, 1)),
        ),
        IntNode(
            "exponentials",
            int_ops.SoftmaxFloat32(2, powers, np.array(256, np.float32), -128, (-128, 127)),
            ("border",),
            shares,
        ),
        IntNode("quotients", int_ops.SoftmaxByReciprocal(0, powers, -128, (-128, 127)), ("constant",), shares),
    )


def changed(graph: IntGraph, name: str, **fields: Any) -> tuple[IntNode, ...]:
    """The nodes of ``graph``, those called ``name`` with other fields; a field of the operation is named ``op_...``."""
    own = {key: value for key, value in fields.items() if not key.startswith("op_")}
    inner = {key.removeprefix("op_"): value for key, value in fields.items() if key.startswith("op_")}

    def change(node: IntNode) -> IntNode:
        if node.name != name:
            return node
        return replace(node, op=replace(node.op, **inner), **own)

    return tuple(change(node) for node in graph.nodes)


def float_conv(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None, groups: int = 1
) -> float_ops.Conv2d:
    return float_ops.Conv2d(weight, bias, (1, 1), NO_PADDING, (1, 1), groups)


def float_input(*shape: int) -> FloatNode:
    return FloatNode("x", float_ops.Input(shape))


def random_norm(channels: int, seed: int = 0) -> float_ops.BatchNorm2d:
    rng = np.random.default_rng(seed)
    gamma, beta, mean = rng.normal(size=(3, channels)).astype(np.float32)
    variance = rng.uniform(0.1, 4, channels).astype(np.float32)
    return float_ops.BatchNorm2d(gamma, beta, mean, variance, 1e-5)
