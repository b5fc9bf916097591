"""The reference kernels of operations as other runtimes compute them, against exact integers and fractions (section 10)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle_arithmetic as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.affine import QParams
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels import reference

RULES = {RoundingRule.GEMMLOWP: oracle.gemmlowp, RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up}
bytes_ = st.integers(-128, 255)
reals = st.one_of(st.floats(2.0**-12, 4, width=32), st.integers(-10, 2).map(lambda e: 2.0**e))


def _fixed(pairs):
    return FixedPointMultiplier(*(np.array(values, np.int32) for values in zip(*pairs, strict=True)))


def _windows(size, kernel, stride, padding):
    """For each result along one axis the elements of its window that lie in the image."""
    starts = range(-padding[0], size + padding[1] - kernel + 1, stride)
    return [[at for at in range(start, start + kernel) if 0 <= at < size] for start in starts]


# Sums


@pytest.mark.parametrize("rule", RULES)
@given(
    pairs=st.lists(st.tuples(bytes_, bytes_), min_size=1, max_size=20),
    zero_points=st.tuples(bytes_, bytes_),
    ratios=st.tuples(st.sampled_from([1.0, 0.5, 0.25, 0.375]) | st.floats(2.0**-10, 1), st.floats(2.0**-10, 1)),
    output=st.sampled_from([1.0, 0.5, 0.75, 0.3, 2.0**-3]),
    left_shift=st.sampled_from([0, 8, 20, 22]),
    subtracts=st.booleans(),
)
def test_add_fixed_point(rule, pairs, zero_points, ratios, output, left_shift, subtracts):
    a, b = (np.array(column, np.int16) for column in zip(*pairs, strict=True))
    a, b = (np.clip(x, z - 255, z + 255) for x, z in zip((a, b), zero_points, strict=True))
    inputs = [oracle.quantize_multiplier(ratio) for ratio in ratios]
    out = oracle.quantize_multiplier(output * 2.0**-left_shift)
    got = reference.add_fixed_point(
        a,
        b,
        zero_points=zero_points,
        rule=rule,
        left_shift=left_shift,
        inputs=_fixed(inputs),
        output=FixedPointMultiplier(*(np.array(part, np.int32) for part in out)),
        subtracts=subtracts,
        output_zero_point=3,
        clamp=(-128, 127),
    )
    one = [
        oracle.add_fixed_point(
            int(x) - zero_points[0], int(y) - zero_points[1], RULES[rule], left_shift, *inputs, out, subtracts
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert got.tolist() == [min(max(value + 3, -128), 127) for value in one]
    assert got.dtype == np.int32


def test_add_fixed_point_rounds_three_times():
    """Half a step of each input: LiteRT's reference rounds a tie of the result away from zero, its optimised kernel up."""
    half, out = oracle.quantize_multiplier(0.5), oracle.quantize_multiplier(2.0**-20)
    a, b = np.array([1, 2, -1, -2, 3, -3]), np.array([0, 1, 0, -1, -4, 4])
    found = {}
    for rule in RULES:
        options = {"inputs": _fixed([half, half]), "output": FixedPointMultiplier(np.int32(out[0]), np.int32(out[1]))}
        rest = {"zero_points": (0, 0), "output_zero_point": 0, "clamp": (-128, 127), "left_shift": 20}
        found[rule] = reference.add_fixed_point(a, b, rule=rule, subtracts=False, **options, **rest).tolist()
    assert found[RoundingRule.GEMMLOWP] == [1, 2, -1, -2, -1, 1]
    assert found[RoundingRule.GEMMLOWP_UP] == [1, 2, 0, -1, 0, 1]


@given(
    pairs=st.lists(st.tuples(bytes_, bytes_), min_size=1, max_size=20),
    multipliers=st.tuples(reals, reals),
    addend=st.one_of(st.floats(-400, 400, width=32), st.integers(-300, 300).map(lambda k: k / 2)),
)
def test_add_float32(pairs, multipliers, addend):
    a, b = (np.array(column, np.int16) for column in zip(*pairs, strict=True))
    got = reference.add_float32(
        a, b, multipliers=np.array(multipliers, np.float32), addend=np.array(addend, np.float32), clamp=(-100, 200)
    )
    wanted = [oracle.add_float32(int(x), int(y), multipliers, addend) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == [min(max(value, -100), 200) for value in wanted]


FUSED = (
    27,
    0.333333343267440796,
    -8.5,
)  # a, its multiplier, the addend: fl(9.0000002...) is 9, so that the sum is a tie


def test_add_float32_rounds_product_and_sum_once():
    """With a rounding for the product, too, the result would be the tie."""
    a, multiplier, addend = FUSED
    exact = Fraction(float(np.float32(multiplier))) * a
    assert oracle.float32(exact) == 9 != exact
    got = reference.add_float32(
        np.array([a], np.int8),
        np.array([0], np.int8),
        multipliers=np.array([multiplier, 1], np.float32),
        addend=np.array(addend, np.float32),
        clamp=(-128, 127),
    )
    assert got.tolist() == [1]
    assert oracle.half_even(oracle.float32(exact) + Fraction(addend)) == 0


# Means of windows

WINDOWS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 3), (1, 2), ((1, 1), (0, 1))),
    ((3, 2), (2, 1), ((2, 0), (1, 0))),
    ((5, 4), (1, 1), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("offset", [0, 128])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_average_pool_of_valid(kernel, stride, padding, offset, dtype):
    info = np.iinfo(dtype)
    x = np.random.default_rng(offset).integers(info.min, info.max + 1, (2, 3, 5, 4)).astype(dtype)
    got = reference.average_pool_of_valid(
        x, kernel=kernel, stride=stride, padding=padding, clamp=(info.min + 5, info.max - 9), offset=offset
    )
    rows, columns = (_windows(x.shape[2 + i], kernel[i], stride[i], padding[i]) for i in range(2))
    assert got.shape == (2, 3, len(rows), len(columns))
    for (n, c, i, j), value in np.ndenumerate(got):
        inside = [int(x[n, c, u, v]) - offset for u in rows[i] for v in columns[j]]
        assert value == min(max(oracle.mean_of_valid(inside) + offset, info.min + 5), info.max - 9)


@pytest.mark.parametrize(("values", "mean"), [((1, 2), 2), ((-1, -2), -2), ((0, -1), -1), ((1, 1, 2, 2), 2), ((3,), 3)])
def test_a_mean_of_integers_rounds_away_from_zero(values, mean):
    x = np.array(values, np.int8).reshape(1, 1, 1, -1)
    options = {"kernel": (1, len(values)), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "clamp": (-128, 127)}
    assert reference.average_pool_of_valid(x, **options).tolist() == [[[[mean]]]]


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize(("scale", "output_scale"), [(0.03, 0.021), (0.5, 0.25), (0.007, 0.011)])
def test_average_pool_float32(kernel, stride, padding, counts_padding, scale, output_scale):
    x = np.random.default_rng(7).integers(-128, 128, (2, 3, 5, 4)).astype(np.int8)
    come, go = (QParams(np.float32(s), np.int32(z)) for s, z in ((scale, -7), (output_scale, 11)))
    got = reference.average_pool_float32(
        x,
        input_params=come,
        output_params=go,
        kernel=kernel,
        stride=stride,
        padding=padding,
        counts_padding=counts_padding,
        clamp=(-128, 100),
    )
    rows, columns = (_windows(x.shape[2 + i], kernel[i], stride[i], padding[i]) for i in range(2))
    for (n, c, i, j), value in np.ndenumerate(got):
        inside = [int(x[n, c, u, v]) for u in rows[i] for v in columns[j]]
        count = kernel[0] * kernel[1] if counts_padding else len(inside)
        mean = oracle.mean_float32(inside, count, float(come.scale), -7, float(go.scale), 11)
        assert value == min(max(mean, -128), 100)


def test_the_order_of_a_float32_sum_is_row_by_row():
    """Column by column the sum would be another float32 number, and its quotient would not be a tie."""
    x = np.random.default_rng(0).integers(-128, 128, (1, 400, 3, 3)).astype(np.int8)
    params = QParams(np.float32(0.1), np.int32(0)), QParams(np.float32(2.0**-20), np.int32(0))
    options = {"kernel": (3, 3), "stride": (1, 1), "padding": ((0, 0), (0, 0)), "counts_padding": False}
    wide = (-(2**30), 2**30)  # a grid as fine as this shows the last bit
    got = reference.average_pool_float32(x, input_params=params[0], output_params=params[1], clamp=wide, **options)
    turned = reference.average_pool_float32(
        x.transpose(0, 1, 3, 2), input_params=params[0], output_params=params[1], clamp=wide, **options
    )
    assert np.count_nonzero(got != turned) > 20
    wanted = [oracle.mean_float32(v, 9, float(params[0].scale), 0, 2.0**-20, 0) for v in x[0].reshape(-1, 9).tolist()]
    assert got.reshape(-1).tolist() == wanted


# A mean through the multiplier


@given(
    multiplier=st.tuples(st.integers(2**30, 2**31 - 1), st.integers(-12, 3)),
    count=st.one_of(st.integers(1, 400), st.sampled_from([49, 64, 196, 2**12, 10**6])),
)
def test_a_multiplier_over_a_number_keeps_30_bits(multiplier, count):
    """Eq. 30: what LiteRT's MEAN makes of a multiplier is one that `FixedPointMultiplier` takes."""
    mantissa, exponent = oracle.mean_multiplier(*multiplier, count)
    assert 2**29 <= mantissa < 2**31
    exact, cut = oracle.multiplier_value(*multiplier) / count, oracle.multiplier_value(mantissa, exponent)
    assert 0 <= exact - cut < exact / 2**29
    made = FixedPointMultiplier(np.array(mantissa, np.int32), np.array(exponent, np.int32))
    assert Fraction(float(made.to_real())) == cut


# Tables


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_lookup(dtype):
    table = np.random.default_rng(0).permutation(256).astype(np.int32)
    info = np.iinfo(dtype)
    x = np.arange(info.min, info.max + 1).astype(dtype).reshape(2, 8, 4, 4)
    got = reference.lookup(x, table=table)
    assert got.dtype == np.int32
    assert got.reshape(-1).tolist() == table.tolist()
    assert reference.lookup(np.full((1, 1), info.min, dtype), table=table).tolist() == [[table[0]]]
