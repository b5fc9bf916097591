"""The reference kernels against exact integers and fractions."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import BoundError
from labkit.kernels import reference

INTEGER_RULES = {
    RoundingRule.SINGLE: oracle.single,
    RoundingRule.GEMMLOWP: oracle.gemmlowp,
    RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
    RoundingRule.DYADIC: oracle.dyadic,
}
FLOAT_RULES = {RoundingRule.FLOAT32_EVEN: oracle.float32_even, RoundingRule.FLOAT64_AWAY: oracle.float64_away}

# kernel, stride, padding, dilation, groups, input channels, output channels
CONVOLUTIONS = [
    ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, 3, 5),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, 2, 3),
    ((3, 2), (2, 1), ((0, 1), (2, 0)), (1, 1), 1, 3, 2),
    ((2, 3), (1, 2), ((1, 2), (0, 3)), (2, 2), 2, 4, 6),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5, 5, 5),
]


def accumulators(rng, limit=2**31):
    """Random sums, the ends of int32, and small ones, whose products with a power of two end in a half."""
    ends = np.array([-limit, -limit + 1, limit - 2, limit - 1])
    small = np.arange(-min(40, limit), min(41, limit))
    return np.concatenate([ends[(ends >= -limit) & (ends < limit)], small, rng.integers(-limit, limit, 300)])


@pytest.mark.parametrize("rule", INTEGER_RULES)
@pytest.mark.parametrize("exponent", [-31, -30, -8, -3, -1, 0, 1, 4, 30])
def test_integer_rules(rule, exponent):
    rng = np.random.default_rng(exponent + 40)
    limit = 2**31 >> max(exponent, 0) if rule in (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP) else 2**31
    x = accumulators(rng, limit)
    for mantissa in (2**30, 2**31 - 1, 3 * 2**29, int(rng.integers(2**30, 2**31))):
        multiplier = FixedPointMultiplier(np.int32(mantissa), np.int32(exponent))
        got = Requantizer(rule, multiplier, 3, (-128, 127)).apply(x)
        expected = [oracle.clamp(INTEGER_RULES[rule](value, mantissa, exponent) + 3, -128, 127) for value in x.tolist()]
        assert got.tolist() == expected


@pytest.mark.parametrize("rule", FLOAT_RULES)
@pytest.mark.parametrize("inside", [False, True])
def test_float_rules(rule, inside):
    rng = np.random.default_rng(5)
    dtype = np.float32 if rule is RoundingRule.FLOAT32_EVEN else np.float64
    x = accumulators(rng)
    for real in (0.5, 0.25, 2.0**-9, 0.0123, float(rng.uniform(1e-6, 1e-3))):
        multiplier = np.asarray(real, dtype)
        got = Requantizer(rule, multiplier, -7, (-128, 127), inside).apply(x)
        added = -7 if inside else 0
        expected = [
            oracle.clamp(FLOAT_RULES[rule](value, float(multiplier), added) - 7 - added, -128, 127)
            for value in x.tolist()
        ]
        assert got.tolist() == expected


def test_left_shift_out_of_int32_is_refused():
    multiplier = FixedPointMultiplier(np.int32(2**30), np.int32(4))
    for rule in (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP):
        with pytest.raises(BoundError, match="SINGLE"):
            Requantizer(rule, multiplier, 0, (-128, 127)).apply(np.array([2**27]))


def test_quantize_matches_one_float32_division():
    rng = np.random.default_rng(2)
    for spec, zero_point in [(QuantSpec(8), 0), (QuantSpec(4, signed=False, symmetric=False), 6)]:
        for scale in (np.float32(0.25), np.float32(0.0123)):
            real = np.concatenate([np.arange(-300, 300) * 0.5 * scale, rng.uniform(-4, 4, 200)]).astype(np.float32)
            got = reference.quantize(real, QParams(scale, np.int32(zero_point)), spec)
            expected = [
                oracle.quantize(value, float(scale), zero_point, spec.qmin, spec.qmax) for value in real.tolist()
            ]
            assert got.tolist() == expected


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case):
    kernel, stride, padding, dilation, groups, channels, outputs = case
    rng = np.random.default_rng(channels)
    x = rng.integers(-128, 128, (2, channels, 6, 7))
    weight = rng.integers(-127, 128, (outputs, channels // groups, *kernel))
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32)
    weight_zero_point = rng.integers(-9, 9, outputs).astype(np.int32)
    mantissa, exponent = rng.integers(2**30, 2**31, outputs), rng.integers(-9, -5, outputs)
    multiplier = FixedPointMultiplier(mantissa.astype(np.int32), exponent.astype(np.int32))
    shape = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    got = reference.conv2d(
        x,
        weight,
        bias,
        input_zero_point=-5,
        weight_zero_point=weight_zero_point,
        requantizer=Requantizer(RoundingRule.SINGLE, multiplier, 2, (-100, 90)),
        **shape,
    )
    sums = oracle.conv2d(
        x.tolist(),
        weight.tolist(),
        bias.tolist(),
        input_zero_point=-5,
        weight_zero_point=weight_zero_point.tolist(),
        **shape,
    )
    expected = [
        [
            [[oracle.clamp(oracle.single(value, int(m), int(e)) + 2, -100, 90) for value in row] for row in channel]
            for channel, m, e in zip(image, mantissa, exponent, strict=True)
        ]
        for image in sums
    ]
    assert got.tolist() == expected


def test_linear():
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (3, 17)), rng.integers(-127, 128, (4, 17))
    bias = rng.integers(-5000, 5000, 4).astype(np.int32)
    multiplier = FixedPointMultiplier.from_real(0.003)
    got = reference.linear(
        x,
        weight,
        bias,
        input_zero_point=100,
        weight_zero_point=np.int32(0),
        requantizer=Requantizer(RoundingRule.DYADIC, multiplier, 0, (-128, 127)),
    )
    sums = oracle.linear(x.tolist(), weight.tolist(), bias.tolist(), input_zero_point=100, weight_zero_point=[0] * 4)
    m, e = int(multiplier.mantissa), int(multiplier.exponent)
    assert got.tolist() == [[oracle.clamp(oracle.dyadic(v, m, e), -128, 127) for v in row] for row in sums]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), ((3, 2), (1, 2), ((1, 1), (1, 0)), (1, 2))],
)
def test_max_pool2d(kernel, stride, padding, dilation):
    x = np.random.default_rng(1).integers(-128, 128, (2, 3, 6, 7))
    shape = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    expected = oracle.max_pool2d(x.tolist(), **shape)
    size = (len(expected[0][0]), len(expected[0][0][0]))
    assert reference.max_pool2d(x, output_size=size, **shape).tolist() == expected


def test_average_pool2d_counts_padding_as_real_zero():
    x = np.random.default_rng(1).integers(0, 256, (2, 3, 5, 6))
    shape = {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 1), (0, 1))}
    multiplier = FixedPointMultiplier.from_real(1 / 6)
    requantizer = Requantizer(RoundingRule.SINGLE, multiplier, 9, (0, 255))
    got = reference.average_pool2d(x, input_zero_point=30, requantizer=requantizer, **shape)
    m, e = int(multiplier.mantissa), int(multiplier.exponent)
    sums = oracle.average_pool2d(x.tolist(), input_zero_point=30, **shape)
    expected = [
        [[[oracle.clamp(oracle.single(v, m, e) + 9, 0, 255) for v in row] for row in channel] for channel in image]
        for image in sums
    ]
    assert got.tolist() == expected


def test_add():
    rng = np.random.default_rng(4)
    a, b = rng.integers(-128, 128, (2, 3, 4)), rng.integers(0, 256, (2, 3, 4))
    for multipliers, shift in [([2**20, 2**19], 21), ([2**31 - 1, 12345], 31), ([1, 1], 1)]:
        got = reference.add(
            a,
            b,
            zero_points=(3, 120),
            multipliers=np.array(multipliers, np.int32),
            shift=shift,
            output_zero_point=-4,
            clamp=(-128, 127),
        )
        expected = [
            oracle.add(
                x,
                y,
                zero_points=(3, 120),
                multipliers=multipliers,
                shift=shift,
                output_zero_point=-4,
                low=-128,
                high=127,
            )
            for x, y in zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
        ]
        assert got.reshape(-1).tolist() == expected
