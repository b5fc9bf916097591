"""What follows the sums, for any sum: Linear layers whose weights are 0, so that the bias is the accumulator."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from labkit.arithmetic.affine import QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.engine.prepare import Dot, prepare
from labkit.engine.run import run
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.fast.conv import conv2d_kernel, linear_one_kernel
from labkit.kernels.fast.tile import widest_registers

REGISTERS = widest_registers()
S8 = QuantSpec(8, symmetric=False)
PARAMS = QParams(np.float32(1), np.int32(0))
# What multiplies, and with it how results are stored: as int16 less their zero point, or as bytes from 0 on
DOTS = [Dot.PAIRS, Dot.QUADS]
INTEGER_RULES = {
    RoundingRule.SINGLE: oracle.single,
    RoundingRule.GEMMLOWP: oracle.gemmlowp,
    RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
    RoundingRule.DYADIC: oracle.dyadic,
}


def finished(sums, requantizer, images=1, dot=Dot.PAIRS):
    """Run ``sums`` through a network that does nothing but finish them; also the steps that it chose."""
    outputs = len(sums)
    weight = QTensor(np.zeros((outputs, 1), np.int8), PARAMS, QuantSpec(8))
    op = int_ops.Linear(weight, np.asarray(sums, np.int32), requantizer)
    params = QParams(np.float32(1), np.int32(requantizer.zero_point))
    graph = IntGraph(
        (
            IntNode("x", int_ops.Quantize((1,)), (), Tensor((1,), S8, PARAMS)),
            IntNode("y", op, ("x",), Tensor((outputs,), S8, params)),
        ),
        ("y",),
    )
    prepared = prepare(graph, dots=(dot, Dot.PAIRS))
    stored = prepared.buffers[prepared.exits["y"].place.buffer].dtype
    assert stored is (np.int16 if dot is Dot.PAIRS else np.uint8)
    result = run(prepared, {"x": np.full((images, 1), 77, np.float32)})["y"]
    assert np.all(result == result[0])
    return result[0].tolist(), prepared.steps


def product_kernel(sums, dot, rule):
    return conv2d_kernel(REGISTERS, dot, -(-len(sums) // 16), rule)


def sums_within(limit, rng):
    """The ends of the range, the neighbourhood of 0 (where powers of two make ties), and a spread over magnitudes."""
    ends = [-limit + 1, -limit + 2, limit - 2, limit - 1]
    near = [value for value in range(-33, 34) if abs(value) < limit]
    spread = (rng.choice([-1, 1], 60) * 2.0 ** rng.uniform(0, np.log2(limit - 1), 60)).astype(np.int64)
    return [*ends, *near, *spread.tolist()]


@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("exponent", range(-31, 1))
@pytest.mark.parametrize("dot", DOTS)
def test_the_tile_finishes_any_sum(exponent, images, dot):
    """Fused: every mantissa with every shift that it meets, results up to 2**30 before the clamp."""
    rng = np.random.default_rng(exponent + 31)
    sums = sums_within(2**30 if exponent == 0 else 2**31, rng)
    mantissa = rng.choice([2**30, 2**31 - 1, 3 * 2**29, 0, int(rng.integers(2**30, 2**31))], len(sums))
    multiplier = FixedPointMultiplier(mantissa.astype(np.int32), np.full(len(sums), exponent, np.int32))
    got, (step,) = finished(sums, Requantizer(RoundingRule.SINGLE, multiplier, 5, (-120, 127)), images, dot)
    assert step.kernel is product_kernel(sums, dot, RoundingRule.SINGLE)
    assert step.kernel_for_one is linear_one_kernel(REGISTERS, dot, RoundingRule.SINGLE)
    expected = [oracle.single(value, int(m), exponent) + 5 for value, m in zip(sums, mantissa, strict=True)]
    assert got == [oracle.clamp(value, -120, 127) for value in expected]


@pytest.mark.parametrize("exponent", [1, 2, 15, 30])
@pytest.mark.parametrize("dot", DOTS)
def test_results_beyond_int32_take_the_long_way(exponent, dot):
    sums = sums_within(2**31, np.random.default_rng(exponent))
    multiplier = FixedPointMultiplier(np.int32(2**31 - 1), np.int32(exponent))
    got, steps = finished(sums, Requantizer(RoundingRule.SINGLE, multiplier, 5, (-128, 127)), dot=dot)
    assert steps[0].kernel is product_kernel(sums, dot, None)
    assert got == [oracle.clamp(oracle.single(value, 2**31 - 1, exponent) + 5, -128, 127) for value in sums]


@pytest.mark.parametrize("rule", [rule for rule in INTEGER_RULES if rule is not RoundingRule.SINGLE])
@pytest.mark.parametrize("exponent", [-31, -30, -9, -2, -1, 0, 1, 5])
@pytest.mark.parametrize("dot", DOTS)
def test_integer_rules(rule, exponent, dot):
    rng = np.random.default_rng(exponent + 31)
    sums = sums_within(2**31 >> max(exponent, 0), rng)
    for mantissa in (2**30, 2**31 - 1, 3 * 2**29, int(rng.integers(2**30, 2**31))):
        multiplier = FixedPointMultiplier(np.int32(mantissa), np.int32(exponent))
        got, _ = finished(sums, Requantizer(rule, multiplier, -3, (-128, 127)), dot=dot)
        assert got == [oracle.clamp(INTEGER_RULES[rule](v, mantissa, exponent) - 3, -128, 127) for v in sums]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("real", [0.5, 0.25, 2.0**-9, 0.0123, 3.3e-7])
@pytest.mark.parametrize("dot", DOTS)
def test_float_rules(inside, real, dot):
    sums = sums_within(2**31, np.random.default_rng(1))
    added = -3 if inside else 0
    for rule, dtype, exact in (
        (RoundingRule.FLOAT32_EVEN, np.float32, oracle.float32_even),
        (RoundingRule.FLOAT64_AWAY, np.float64, oracle.float64_away),
    ):
        multiplier = np.asarray(real, dtype)
        got, _ = finished(sums, Requantizer(rule, multiplier, -3, (-128, 127), inside), dot=dot)
        expected = [exact(value, float(multiplier), added) - 3 - added for value in sums]
        assert got == [oracle.clamp(value, -128, 127) for value in expected]


def test_half_away_is_not_fooled_just_below_a_half():
    """0.49999999999999994 + 0.5 is 1.0 in float64, and yet the nearest integer is 0."""
    multiplier = np.asarray(np.nextafter(0.5, 0))
    assert finished([1, -1], Requantizer(RoundingRule.FLOAT64_AWAY, multiplier, 0, (-128, 127)))[0] == [0, 0]
