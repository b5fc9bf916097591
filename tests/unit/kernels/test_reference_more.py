"""The reference kernels that multiply, move and end, against exact integers and fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import oracle
import pytest

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.softmax import exponential_table
from labkit.arithmetic.windows import adaptive_windows, common_area
from labkit.kernels import reference

RULES = {
    RoundingRule.SINGLE: oracle.single,
    RoundingRule.GEMMLOWP: oracle.gemmlowp,
    RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
    RoundingRule.DYADIC: oracle.dyadic,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("mantissa", "exponent"), [(2**30, -6), (1_234_567_890, -7), (2**31 - 1, 0), (3 * 2**29, -9)])
@pytest.mark.parametrize("gate", [False, True])
def test_multiply(rule, mantissa, exponent, gate):
    rng = np.random.default_rng(exponent + 20)
    a, b = rng.integers(-128, 128, (2, 3, 4, 5)), rng.integers(0, 256, (2, 3, 1, 1) if gate else (2, 3, 4, 5))
    multiplier = FixedPointMultiplier(np.int32(mantissa), np.int32(exponent))
    got = reference.multiply(a, b, zero_points=(-3, 100), requantizer=Requantizer(rule, multiplier, 7, (-100, 120)))
    pairs = zip(a.reshape(-1).tolist(), np.broadcast_to(b, a.shape).reshape(-1).tolist(), strict=True)
    expected = [
        oracle.clamp(RULES[rule](oracle.multiply(x, y, zero_points=(-3, 100)), mantissa, exponent) + 7, -100, 120)
        for x, y in pairs
    ]
    assert got.reshape(-1).tolist() == expected
    assert got.dtype == np.int32


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (3, 0)), ((0, 1), (0, 0)), ((4, 0), (0, 4))])
@pytest.mark.parametrize("zero_point", [-128, 0, 17])
def test_pad_puts_real_zero_around(padding, zero_point):
    x = np.random.default_rng(1).integers(-128, 128, (2, 3, 4, 5)).astype(np.int8)
    got = reference.pad(x, padding=padding, zero_point=zero_point)
    assert got.tolist() == oracle.pad(x.tolist(), padding=padding, zero_point=zero_point)


@pytest.mark.parametrize("shape", [(60,), (3, 20), (5, 2, 6), (2, 2, 3, 5)])
def test_reshape_keeps_the_order_of_the_elements(shape):
    x = np.arange(2 * 60).reshape(2, 3, 4, 5)
    got = reference.reshape(x, shape=shape)
    assert got.shape == (2, *shape)
    assert got.reshape(-1).tolist() == list(range(120))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_transpose_moves_each_element(axes):
    x = np.arange(2 * 60).reshape(2, 3, 4, 5)
    got = reference.transpose(x, axes=axes)
    for index in np.ndindex(got.shape):
        source = [0, 0, 0]
        for i, axis in enumerate(axes):
            source[axis] = index[1 + i]
        assert got[index] == x[(index[0], *source)]


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (1, 3), (5, 2)])
def test_upsample_repeats_each_pixel(factor):
    x = np.arange(2 * 60).reshape(2, 3, 4, 5)
    got = reference.upsample_nearest2d(x, factor=factor)
    assert got.shape == (2, 3, 4 * factor[0], 5 * factor[1])
    for n, c, i, j in np.ndindex(got.shape):
        assert got[n, c, i, j] == x[n, c, i // factor[0], j // factor[1]]


SCALES = [2.0**-10, 0.0123, 0.25, 0.5, 3.0, 40.0, 1e-30, 1e30]


@pytest.mark.parametrize("scale", SCALES)
def test_exponential_table(scale):
    """Against a power series in fractions, for every difference."""
    real = Fraction(float(np.float32(scale)))
    expected = [oracle.half_up(2**30 * oracle.exponential(-real * d)) if real * d < 64 else 0 for d in range(256)]
    table = exponential_table(float(np.float32(scale)))
    assert table.tolist() == expected
    assert (table.dtype, table.flags.writeable) == (np.int32, False)


@pytest.mark.parametrize("scale", [0.001, 0.0123, 0.25, 3.0])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax(scale, bits, axis):
    rng = np.random.default_rng(bits)
    x = rng.integers(-128, 128, (2, 4, 3, 5)).astype(np.int8)
    table = exponential_table(scale)
    got = reference.softmax(x, axis=axis, table=table, bits=bits, output_zero_point=-9, clamp=(-9, 110))
    for group, found in zip(_groups(x, axis), _groups(got, axis), strict=True):
        shape = {"table": table.tolist(), "bits": bits, "zero_point": -9, "low": -9, "high": 110}
        assert found == oracle.softmax(group, **shape)


def test_softmax_rounds_ties_up():
    """Shares of 1/2**(bits + 1), 3/2**(bits + 1), ...: powers of two make them exact."""
    table = np.zeros(256, np.int32)
    table[:4] = [3, 2, 1, 2]
    x = np.array([[3, 2, 1, 0]], np.uint8)  # powers 3, 2, 1, 2 of 8
    for bits, expected in [(1, [1, 1, 0, 1]), (2, [2, 1, 1, 1]), (3, [3, 2, 1, 2])]:
        got = reference.softmax(x, axis=0, table=table, bits=bits, output_zero_point=0, clamp=(0, 255))
        assert got.tolist() == [expected]


def test_softmax_at_its_bounds():
    """The largest table under many elements, and a share of 1, which no grid of eight bits holds."""
    table = np.full(256, 2**30, np.int32)
    got = reference.softmax(
        np.zeros((1, 2**16), np.uint8), axis=0, table=table, bits=8, output_zero_point=0, clamp=(0, 255)
    )
    assert np.all(got == 0)
    one = reference.softmax(
        np.array([[200, 0]], np.uint8),
        axis=0,
        table=exponential_table(1.0),
        bits=8,
        output_zero_point=0,
        clamp=(0, 255),
    )
    assert one.tolist() == [[255, 0]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("keepdims", [False, True])
def test_argmax_takes_the_lowest_index_of_ties(axis, keepdims):
    x = np.random.default_rng(axis).integers(-3, 3, (4, 5, 3, 6))
    got = reference.argmax(x, axis=axis, keepdims=keepdims)
    assert got.dtype == np.int32
    assert got.ndim == x.ndim - (not keepdims)
    expected = [oracle.argmax(group) for group in _groups(x, axis)]
    assert got.reshape(-1).tolist() == expected
    assert any(group.count(max(group)) > 1 for group in _groups(x, axis))


@pytest.mark.parametrize("size", range(1, 15))
def test_windows_of_adaptive_pooling(size):
    for positions in range(1, size + 1):
        windows = adaptive_windows(size, positions)
        expected = [oracle.adaptive_window(size, positions, i) for i in range(positions)]
        assert [list(range(*window)) for window in windows] == expected
        lengths = {stop - start for start, stop in windows}
        assert lengths <= {-(-size // positions), -(-size // positions) + 1}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (4, 4), (5, 3), (5, 6)])
def test_adaptive_average_pool2d(size):
    x = np.random.default_rng(2).integers(0, 256, (2, 3, 5, 6))
    area = common_area(5, 6, size)
    multiplier = FixedPointMultiplier.from_real(0.7 / area)
    requantizer = Requantizer(RoundingRule.SINGLE, multiplier, 9, (0, 255))
    got = reference.adaptive_average_pool2d(x, input_zero_point=30, output_size=size, requantizer=requantizer)
    m, e = int(multiplier.mantissa), int(multiplier.exponent)
    for n, c, i, j in np.ndindex(got.shape):
        rows, columns = oracle.adaptive_window(5, size[0], i), oracle.adaptive_window(6, size[1], j)
        mean = Fraction(sum(int(x[n, c, u, v]) - 30 for u in rows for v in columns), len(rows) * len(columns))
        assert (mean * area).denominator == 1
        assert got[n, c, i, j] == oracle.clamp(oracle.single(int(mean * area), m, e) + 9, 0, 255)


def _groups(x, axis):
    """The elements along ``axis`` (the batch axis not counted), as lists, in C order of the other axes."""
    return np.moveaxis(x, 1 + axis, -1).reshape(-1, x.shape[1 + axis]).tolist()
