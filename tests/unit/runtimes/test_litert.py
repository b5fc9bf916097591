"""The rules of LiteRT and XNNPACK: what they make of an operation, of one another, and of what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.runtimes.bounds import clamp_away, clamp_even, clamp_inside, is_certain, real_bounds
from labkit.runtimes.labkit_rules import add, requantizer, softmax
from labkit.runtimes.lookups import labkit_lookup
from labkit.runtimes.rules import as_run_by

INT8, UINT8 = QuantSpec(8, signed=True, symmetric=False), QuantSpec(8, signed=False, symmetric=False)
NONE = ((0, 0), (0, 0))
FAMILY = ("litert", "litert-opt", "xnnpack")


def tensor(shape: tuple[int, ...], scale: float, zero_point: int, spec: QuantSpec = INT8) -> Tensor:
    return Tensor(shape, spec, QParams(np.array(scale, np.float32), np.array(zero_point, np.int32)))


def weights(shape: tuple[int, ...], bits: int = 8) -> QTensor:
    spec = QuantSpec(bits, granularity=PerAxis(0))
    values = np.random.default_rng(3).integers(spec.qmin, spec.qmax + 1, shape).astype(np.int8)
    scale = np.linspace(0.01, 0.02, shape[0]).astype(np.float32)
    return QTensor(values, QParams(scale, np.zeros(shape[0], np.int32)), spec)


def network(spec: QuantSpec, bits: int = 8) -> IntGraph:
    """Convolution, sum, product, pools, a table, a layer and a softmax, as labkit has them, on the grid of ``spec``."""
    up = 0 if spec.signed else 128
    x, conv = tensor((2, 6, 6), 0.05, up - 5, spec), tensor((4, 6, 6), 0.07, up - 20, spec)
    total, product = tensor((4, 6, 6), 0.11, up + 3, spec), tensor((4, 6, 6), 0.3, up, spec)
    pooled, looked = tensor((4, 3, 3), 0.3, up, spec), tensor((4, 3, 3), 2.0**-8, up - 128, spec)
    mean, flat, row = (
        tensor((4, 1, 1), 0.003, up - 90, spec),
        tensor((4,), 0.003, up - 90, spec),
        tensor((3,), 0.02, up, spec),
    )
    weight, dense = weights((4, 2, 3, 3), bits), weights((3, 4), bits)
    bias, multiplier = np.arange(-200, 200, 100, dtype=np.int32), weight.params.scale * np.float64(0.05) / 0.07
    layer = int_ops.Linear(dense, bias[:3], requantizer(dense.params.scale * np.float64(0.003) / 0.02, row))
    pad = ((1, 1), (1, 1))
    nodes = (
        IntNode("x", int_ops.Input(x.shape), (), x),
        IntNode(
            "conv",
            int_ops.Conv2d(weight, bias, requantizer(multiplier, conv, (0.0, None)), (1, 1), pad, (1, 1), 1),
            ("x",),
            conv,
        ),
        IntNode("sum", add((conv, conv), total), ("conv", "conv"), total),
        IntNode("product", int_ops.Multiply(requantizer(0.07 * 0.11 / 0.3, product)), ("conv", "sum"), product),
        IntNode("pool", int_ops.AveragePoolOfValid((2, 2), (2, 2), NONE, (spec.qmin, spec.qmax)), ("product",), pooled),
        IntNode("looked", labkit_lookup("logistic", pooled, looked), ("pool",), looked),
        IntNode(
            "mean", int_ops.AdaptiveAveragePool2d((1, 1), requantizer(2.0**-8 / 0.003 / 9, mean)), ("looked",), mean
        ),
        IntNode("flat", int_ops.Flatten(), ("mean",), flat),
        IntNode("row", layer, ("flat",), row),
        IntNode(
            "shares",
            softmax(0, row, tensor((3,), 2.0**-8, spec.qmin, spec)),
            ("row",),
            tensor((3,), 2.0**-8, spec.qmin, spec),
        ),
    )
    return IntGraph(nodes, ("shares",))


def test_each_runtime_has_operations_of_its_own() -> None:
    kinds = {
        runtime: [type(node.op) for node in as_run_by(network(INT8), runtime)] for runtime in ("litert", "xnnpack")
    }
    assert kinds["litert"][2] is int_ops.AddFixedPoint
    assert kinds["xnnpack"][2] is int_ops.Add
    assert (kinds["litert"][6], kinds["xnnpack"][6]) == (int_ops.AdaptiveAveragePool2d, int_ops.MeanFloat32)
    assert (kinds["litert"][9], kinds["xnnpack"][9]) == (int_ops.SoftmaxFixedPoint, int_ops.SoftmaxByReciprocal)
    rules = {runtime: as_run_by(network(INT8), runtime)["row"].op.requantizer.rule for runtime in kinds}
    assert rules == {"litert": RoundingRule.FLOAT64_AWAY, "xnnpack": RoundingRule.FLOAT32_EVEN}


@pytest.mark.parametrize("last", ["labkit", "litert", "xnnpack"])
@pytest.mark.parametrize("first", ["labkit", "litert", "xnnpack"])
def test_rules_are_made_from_scales_and_not_from_other_rules(first: str, last: str) -> None:
    graph, x = network(INT8), np.random.default_rng(1).integers(-128, 128, (20, 2, 6, 6)).astype(np.int8)
    direct = IntegerNet(as_run_by(graph, last)).trace(x, kernels="reference")
    around = IntegerNet(as_run_by(as_run_by(graph, first), last)).trace(x, kernels="reference")
    for name, array in direct.items():
        np.testing.assert_array_equal(array, around[name], err_msg=name)


@pytest.mark.parametrize("runtime", ["litert", "xnnpack"])
def test_a_network_that_counts_from_0_is_that_of_int8_raised_by_128(runtime: str) -> None:
    x = np.random.default_rng(2).integers(-128, 128, (50, 2, 6, 6))
    low = IntegerNet(as_run_by(network(INT8), runtime)).trace(x.astype(np.int8), kernels="reference")
    high = IntegerNet(as_run_by(network(UINT8), runtime)).trace((x + 128).astype(np.uint8), kernels="reference")
    for name, array in low.items():
        np.testing.assert_array_equal(array.astype(int) + 128, high[name].astype(int), err_msg=name)


def test_the_clamp_of_an_activation_is_rounded_in_three_ways() -> None:
    output = tensor((4,), 4.0, 1)  # 6 / 4 lies halfway between two integers
    assert clamp_even((0.0, 6.0), output) == (1, 3)
    assert clamp_away((0.0, 6.0), output) == (1, 3)
    assert clamp_inside((0.0, 6.0), output) == (1, 2)
    assert real_bounds((1, 2), output) == (0.0, 6.0)
    raised = tensor((4,), 4.0, 129, UINT8)
    assert clamp_inside((0.0, 6.0), raised) == (129, 130)
    down = tensor((4,), 2.0, 0)
    assert (clamp_even((-1.0, 1.0), down), clamp_away((-1.0, 1.0), down)) == ((0, 0), (-1, 1))
    assert not is_certain((-1.0, 1.0), tensor((4,), 2.0, 127))
    assert is_certain((0.0, 6.0), tensor((4,), 0.05, -128))


def alone(op: Any, output: Tensor, *inputs: Tensor) -> IntGraph:
    nodes = [IntNode(f"i{n}", int_ops.Input(t.shape), (), t) for n, t in enumerate(inputs)]
    return IntGraph((*nodes, IntNode("y", op, tuple(node.name for node in nodes), output)), ("y",))


def pooled(op: Any, scale: float) -> IntGraph:
    return alone(op, tensor((2, 2, 2), scale, 0), tensor((2, 4, 4), 0.1, 0))


WIDE = tensor((4,), 500.0, 0)
POOL = int_ops.AveragePool2d((2, 2), (2, 2), NONE, requantizer(0.25, tensor((2, 2, 2), 0.1, 0)))
PADDED = int_ops.AveragePool2d((2, 2), (4, 4), ((1, 1), (1, 1)), requantizer(0.25, tensor((2, 2, 2), 0.1, 0)))
ROW = tensor((4,), 0.1, 0)


@pytest.mark.parametrize(
    ("runtimes", "words", "graph"),
    [
        (FAMILY, "leaves padding out of the mean", pooled(PADDED, 0.1)),
        (
            FAMILY,
            "no adaptive average pool but that to one pixel|two kernels for MEAN",
            pooled(int_ops.AdaptiveAveragePool2d((2, 2), POOL.requantizer), 0.1),
        ),
        (
            FAMILY,
            "softmax puts out 8 bits of scale 1/256",
            alone(softmax(0, ROW, tensor((4,), 2.0**-7, 0)), tensor((4,), 2.0**-7, 0), ROW),
        ),
        (
            ("xnnpack",),
            r"XNNPACK takes scales whose quotient is in 0.000976562..256, got 5000",
            alone(add((WIDE, ROW), ROW), ROW, WIDE, ROW),
        ),
        (
            ("litert-opt",),
            "optimised QUANTIZE",
            alone(int_ops.Requantize(requantizer(0.5, tensor((4,), 0.2, 0))), tensor((4,), 0.2, 0), ROW),
        ),
        (
            ("litert-opt",),
            "optimised DEQUANTIZE",
            IntGraph(
                (
                    IntNode("x", int_ops.Input((4,)), (), ROW),
                    IntNode("y", int_ops.Dequantize(), ("x",), Tensor((4,), None, None)),
                ),
                ("y",),
            ),
        ),
        (("litert-opt",), "optimised QUANTIZE", IntGraph((IntNode("x", int_ops.Quantize((4,)), (), ROW),), ("x",))),
        (
            ("litert-opt",),
            "optimised depthwise convolution",
            alone(
                int_ops.Conv2d(
                    weights((2, 1, 1, 1)),
                    np.zeros(2, np.int32),
                    requantizer(0.01, tensor((2, 4, 4), 0.1, 0)),
                    (1, 1),
                    NONE,
                    (1, 1),
                    2,
                ),
                tensor((2, 4, 4), 0.1, 0),
                tensor((2, 4, 4), 0.1, 0),
            ),
        ),
    ],
)
def test_what_has_no_rule_is_refused_with_the_reason(runtimes: tuple[str, ...], words: str, graph: IntGraph) -> None:
    for runtime in runtimes:
        with pytest.raises(UnsupportedOperation, match=words):
            as_run_by(graph, runtime)


def test_a_pool_that_changes_the_scale_is_a_pool_and_a_quantize() -> None:
    graph = as_run_by(
        pooled(replace(POOL, requantizer=requantizer(0.25 * 0.1 / 0.2, tensor((2, 2, 2), 0.2, 0))), 0.2), "litert"
    )
    assert [type(node.op) for node in graph] == [int_ops.Input, int_ops.AveragePoolOfValid, int_ops.Requantize]
    x = np.random.default_rng(0).integers(-128, 128, (3, 2, 4, 4)).astype(np.int8)
    sums = x.astype(int).reshape(3, 2, 2, 2, 2, 2).sum((3, 5))
    means = np.sign(sums) * ((abs(sums) + 2) // 4)  # ties away from zero
    wanted = (means + 1) // 2  # a multiplier of 1/2 needs the first rounding of eq. 14 alone: ties up
    np.testing.assert_array_equal(IntegerNet(graph).run(x, kernels="reference"), wanted)


def test_weights_of_four_bits_go_to_the_built_in_convolution() -> None:
    assert as_run_by(network(INT8, bits=4), "xnnpack")["conv"].op.requantizer.rule is RoundingRule.GEMMLOWP_UP
    assert as_run_by(network(INT8, bits=5), "xnnpack")["conv"].op.requantizer.rule is RoundingRule.FLOAT32_EVEN
    assert as_run_by(network(INT8, bits=4), "xnnpack")["row"].op.requantizer.rule is RoundingRule.FLOAT32_EVEN
