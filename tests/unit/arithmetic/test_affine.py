"""Quantized numbers against the exact oracle: equations 1 to 6."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle_arithmetic as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from labkit.arithmetic.affine import (
    PerAxis,
    PerTensor,
    QParams,
    QTensor,
    QuantSpec,
    dequantize,
    exact_mean,
    params_from_range,
    params_from_values,
    quantize,
    quantize_tensor,
)
from labkit.errors import QuantizationError

AFFINE8 = QuantSpec(8, signed=False, symmetric=False)
BINARY = QuantSpec(1, narrow=True)


def grids(binary: bool = True) -> st.SearchStrategy[QuantSpec]:
    everything = [
        QuantSpec(bits, signed, symmetric, narrow)
        for bits in range(1, 9)
        for signed in (True, False)
        for symmetric in (True, False)
        for narrow in (True, False)
        if not (signed and bits == 1) or (symmetric and narrow and binary)
    ]
    return st.sampled_from(everything)


finite = st.floats(-1e4, 1e4, width=32)
scales = st.one_of(
    st.floats(2**-12, 2**6, width=32).map(np.float32),
    st.integers(-8, 4).map(lambda e: np.float32(2.0**e)),  # quotients that are exact, so that ties occur
)


def params(scale: float, zero_point: int = 0) -> QParams:
    return QParams(np.float32(scale), np.int32(zero_point))


# The grid


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_grid_is_that_of_equation_3(bits: int, signed: bool, narrow: bool) -> None:
    if signed and bits == 1:
        narrow = True
    spec = QuantSpec(bits, signed=signed, narrow=narrow)
    assert (spec.qmin, spec.qmax) == oracle.grid(bits, signed, narrow)
    assert np.iinfo(spec.dtype).min <= spec.qmin < spec.qmax <= np.iinfo(spec.dtype).max


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_bits_may_be_a_numpy_integer(kind: type[np.integer]) -> None:
    spec = QuantSpec(kind(8), signed=False)  # type: ignore[arg-type]
    assert (spec.qmin, spec.qmax) == (0, 255)
    assert spec == QuantSpec(8, signed=False)


@pytest.mark.parametrize("bits", [0, 9, 15, 17, 32, -1, 2.5, 8.0, True, "8", None])
def test_bits_other_than_1_to_8_and_16_are_refused(bits: object) -> None:
    with pytest.raises(QuantizationError, match=r"bits must be an integer in 1\.\.8, or 16 for wide activations, got"):
        QuantSpec(bits)  # type: ignore[arg-type]


def test_sixteen_bits_are_signed_and_symmetric() -> None:
    spec = QuantSpec(16, narrow=True)
    assert (spec.qmin, spec.qmax, spec.dtype, spec.is_wide) == (-32767, 32767, np.dtype(np.int16), True)
    for wrong in ({"signed": False}, {"symmetric": False}):
        with pytest.raises(QuantizationError, match="16 bits are signed and symmetric"):
            QuantSpec(16, **wrong)


@pytest.mark.parametrize(("symmetric", "narrow"), [(True, False), (False, True), (False, False)])
def test_one_signed_bit_is_binary_or_nothing(symmetric: bool, narrow: bool) -> None:
    with pytest.raises(QuantizationError, match="binary grid"):
        QuantSpec(1, symmetric=symmetric, narrow=narrow)


# Equation 2


@given(spec=grids(), scale=scales, data=st.data())
def test_quantize_is_equation_2(spec: QuantSpec, scale: np.float32, data: st.DataObject) -> None:
    zero_point = 0 if spec.symmetric else data.draw(st.integers(spec.qmin, spec.qmax))
    ties = st.integers(-300, 300).map(lambda k: float(np.float32((k + 0.5) * np.float64(scale))))
    reals = data.draw(st.lists(st.one_of(finite, ties), min_size=1, max_size=20))
    got = quantize(reals, params(scale, zero_point), spec)
    assert got.dtype == spec.dtype
    if spec.is_binary:
        assert got.tolist() == [1 if r >= 0 else -1 for r in reals]
    else:
        assert got.tolist() == [oracle.quantize(r, scale, zero_point, spec.qmin, spec.qmax) for r in reals]


def test_ties_go_to_the_even_integer() -> None:
    halves = np.arange(-5, 6) + np.float32(0.5)
    assert quantize(halves, params(1.0), QuantSpec(8)).tolist() == [-4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6]
    assert quantize([0.5, 1.5, 2.5], params(1.0, 3), AFFINE8).tolist() == [3, 5, 5]  # the zero point comes after


def test_the_quotient_is_one_float32_division() -> None:
    """Numbers whose exact quotient and float32 quotient lie on two sides of a tie, found by search."""
    rng = np.random.default_rng(0)
    scale = np.float32(0.1)
    near = ((rng.integers(0, 200, 20_000) + 0.5) * np.float64(scale)).astype(np.float32)
    told = [r for r in near if oracle.half_even(Fraction(float(r)) / Fraction(float(scale))) != int(np.rint(r / scale))]
    assert len(told) > 100
    assert quantize(told, params(scale), AFFINE8).tolist() == [oracle.quantize(r, scale, 0, 0, 255) for r in told]


def test_infinities_and_huge_quotients_are_clipped() -> None:
    reals = np.array([np.inf, -np.inf, 3e38, -3e38], np.float32)
    assert quantize(reals, params(2.0**-100, 7), AFFINE8).tolist() == [255, 0, 255, 0]
    assert quantize(reals, params(1.0), QuantSpec(8, narrow=True)).tolist() == [127, -127, 127, -127]
    assert quantize(reals, params(1.0), BINARY).tolist() == [1, -1, 1, -1]


def test_nan_is_refused_with_its_place() -> None:
    reals = np.zeros((2, 3), np.float32)
    reals[1, 2] = np.nan
    for spec in (AFFINE8, BINARY):
        with pytest.raises(QuantizationError, match=r"1 of 6 values, the first at index \(1, 2\)"):
            quantize(reals, params(1.0), spec)


def test_per_axis_every_index_has_its_own_scale() -> None:
    rng = np.random.default_rng(1)
    reals = rng.normal(size=(3, 4, 5)).astype(np.float32)
    spec = QuantSpec(8, signed=False, symmetric=False, granularity=PerAxis(1))
    chosen = params_from_values(reals, spec)
    assert chosen.scale.shape == chosen.zero_point.shape == (4,)
    got = quantize(reals, chosen, spec)
    for c in range(4):
        alone = QuantSpec(8, signed=False, symmetric=False)
        own = params_from_range(reals[:, c].min(), reals[:, c].max(), alone)
        assert (chosen.scale[c], chosen.zero_point[c]) == (own.scale, own.zero_point)
        assert np.array_equal(got[:, c], quantize(reals[:, c], own, alone))
        assert np.array_equal(dequantize(got, chosen, spec)[:, c], dequantize(got[:, c], own, alone))


@pytest.mark.parametrize(
    ("granularity", "count"), [(PerTensor(), 2), (PerAxis(0), 3), (PerAxis(2), 2), (PerAxis(-1), 2)]
)
def test_scales_that_do_not_fit_the_shape_are_refused(granularity: PerTensor | PerAxis, count: int) -> None:
    spec = QuantSpec(8, granularity=granularity)
    with pytest.raises(QuantizationError, match=r"one scale"):
        quantize(np.zeros((2, 2)), QParams(np.ones(count, np.float32), np.zeros(count, np.int32)), spec)


# Equation 1


@given(spec=grids(), scale=scales, data=st.data())
def test_dequantize_is_equation_1(spec: QuantSpec, scale: np.float32, data: st.DataObject) -> None:
    zero_point = 0 if spec.symmetric else data.draw(st.integers(spec.qmin, spec.qmax))
    integers = np.arange(spec.qmin, spec.qmax + 1).astype(spec.dtype)
    got = dequantize(integers, params(scale, zero_point), spec)
    assert got.dtype == np.float32
    assert [Fraction(float(r)) for r in got] == [oracle.dequantize(int(q), scale, zero_point) for q in integers]
    if not spec.is_binary:
        assert np.array_equal(quantize(got, params(scale, zero_point), spec), integers)


@given(spec=grids(binary=False), scale=scales, data=st.data())
def test_error_inside_the_range_is_half_a_step(spec: QuantSpec, scale: np.float32, data: st.DataObject) -> None:
    """The bound stated below equation 2."""
    zero_point = 0 if spec.symmetric else data.draw(st.integers(spec.qmin, spec.qmax))
    step = Fraction(float(scale))
    low, high = ((q - zero_point) * step for q in (spec.qmin, spec.qmax))
    real = float(np.float32(data.draw(st.floats(float(low), float(high)))))
    if not low <= Fraction(real) <= high:  # rounding to float32 may have left it
        return
    q = int(quantize(real, params(scale, zero_point), spec))
    assert abs(Fraction(real) - step * (q - zero_point)) <= (Fraction(1, 2) + Fraction(1, 2**16)) * step


# Equations 4 and 5


@given(spec=grids(binary=False), low=finite, high=finite)
def test_params_from_range_are_equations_4_and_5(spec: QuantSpec, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    if max(-low, high) < 1e-30:  # an empty range, or one too small for float32: has its own test
        return
    got = params_from_range(low, high, spec)
    assert got.scale.dtype == np.float32
    assert got.zero_point.dtype == np.int32
    assert got.scale.shape == got.zero_point.shape == ()
    if spec.symmetric:
        wanted: tuple[Fraction | float, int] = (oracle.symmetric_scale(low, high, spec.qmax), 0)
    else:
        wanted = oracle.affine_parameters(low, high, spec.qmin, spec.qmax)
    assert (Fraction(float(got.scale)), int(got.zero_point)) == wanted


@given(spec=grids(binary=False), low=finite, high=finite)
def test_real_0_is_exact_and_the_range_is_met(spec: QuantSpec, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    if max(-low, high) < 1e-30:
        return
    chosen = params_from_range(low, high, spec)
    zero = quantize(0.0, chosen, spec)
    assert int(zero) == int(chosen.zero_point)
    assert spec.qmin <= int(zero) <= spec.qmax
    assert dequantize(zero, chosen, spec) == 0
    if spec.symmetric:
        return
    step = Fraction(float(chosen.scale))
    ends = [(q - int(chosen.zero_point)) * step for q in (spec.qmin, spec.qmax)]
    allowed = step * (Fraction(1, 2) + Fraction(1, 2**14))  # nudging; the scale's own rounding times at most 255 steps
    assert abs(ends[0] - min(Fraction(low), 0)) <= allowed
    assert abs(ends[1] - max(Fraction(high), 0)) <= allowed


def test_the_documents_examples() -> None:
    wide = params_from_range(-1, 2, AFFINE8)
    assert (wide.scale, wide.zero_point) == (np.float32(3 / 255), 85)
    assert quantize([-1, 0, 2], wide, AFFINE8).tolist() == [0, 85, 255]
    positive = params_from_range(0.5, 2, AFFINE8)
    assert (positive.scale, positive.zero_point) == (np.float32(2 / 255), 0)
    negative = params_from_range(-2, -0.5, AFFINE8)
    assert (negative.scale, negative.zero_point) == (np.float32(2 / 255), 255)
    assert params_from_range(-3, 1, QuantSpec(8)).scale == np.float32(3 / 127)  # 127, though the grid has -128


@pytest.mark.parametrize("zero_point", [0, 1, 2, 84, 127, 253])
def test_a_zero_point_half_way_is_nudged_to_the_even_integer(zero_point: int) -> None:
    half = zero_point + 0.5
    for scale in (1.0, 2.0**-7):
        chosen = params_from_range(-half * scale, (255 - half) * scale, AFFINE8)
        assert (float(chosen.scale), int(chosen.zero_point)) == (scale, 2 * round(half / 2))


def test_the_zero_point_is_that_of_the_rounded_scale() -> None:
    """Ranges whose zero point is all but half-way, so that the scale's rounding to float32 decides."""
    rng = np.random.default_rng(4)
    told = 0
    for width, step in zip(rng.uniform(0.1, 10, 300), rng.integers(1, 254, 300), strict=True):
        low = -(step + 0.5) * width / 255
        high = low + width
        chosen = params_from_range(low, high, AFFINE8)
        wanted = oracle.affine_parameters(float(low), float(high), 0, 255)
        assert (Fraction(float(chosen.scale)), int(chosen.zero_point)) == wanted
        told += int(np.rint(-low / ((high - low) / 255))) != wanted[1]
    assert told > 50


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 0, "every value is 0"),
        (1, -1, r"from low to high, got \[1, -1\]"),
        (np.nan, 1, "NaN or infinite"),
        (0, np.inf, "NaN or infinite"),
        ([0.0, 0], [1.0, 0], "channel 1 holds only zeros"),
        ([0.0], 1.0, "one shape"),
    ],
)
@pytest.mark.parametrize("spec", [AFFINE8, QuantSpec(4)])
def test_ranges_that_make_no_sense_are_refused(low: object, high: object, words: str, spec: QuantSpec) -> None:
    with pytest.raises(QuantizationError, match=words):
        params_from_range(low, high, spec)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("spec", [AFFINE8, QuantSpec(8)])
@pytest.mark.parametrize("size", [1e-37, 1e-60, 1e300])
def test_a_scale_that_float32_cannot_hold_is_refused(spec: QuantSpec, size: float) -> None:
    with pytest.raises(QuantizationError, match=r"A scale must be finite and at least 1\.18e-38"):
        params_from_range(-size, size, spec)


def test_a_binary_grid_has_no_range() -> None:
    with pytest.raises(QuantizationError, match="mean magnitude"):
        params_from_range(-1, 1, BINARY)


# From the values themselves; equation 6


@given(reals=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_binary_scale_is_the_mean_magnitude(reals: list[float]) -> None:
    if max(map(abs, reals)) < 1e-30:
        return
    chosen = params_from_values(reals, BINARY)
    assert Fraction(float(chosen.scale)) == oracle.binary_scale(reals)
    assert chosen.zero_point == 0


def test_binary_scale_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(2)
    reals = rng.normal(size=500)
    best = float(params_from_values(reals, BINARY).scale)
    signs = quantize(reals, params(best), BINARY)

    def error(scale: float, q: NDArray[np.integer]) -> float:
        return float(np.square(reals - scale * q).sum())

    least = error(best, signs)
    assert all(error(best * factor, signs) > least for factor in (0.5, 0.99, 1.01, 2.0))
    for i in range(0, 500, 50):  # no other sign helps
        other = signs.copy()
        other[i] *= -1
        assert error(best, other) > least


def test_the_mean_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=10_001) * 10.0 ** rng.integers(-8, 8, 10_001)
    wanted = oracle.float64(oracle.float64(sum(map(Fraction, values.tolist()), Fraction(0))) / values.size)
    orders = np.stack([values, values[::-1], np.sort(values), rng.permutation(values)])
    assert exact_mean(orders).tolist() == [float(wanted)] * 4
    assert len({row.sum() for row in orders}) > 1  # where an ordinary sum does


def test_binary_per_axis() -> None:
    reals = np.array([[1.0, -3.0], [0.5, 0.0]])
    spec = QuantSpec(1, narrow=True, granularity=PerAxis(1))
    chosen = params_from_values(reals, spec)
    assert chosen.scale.tolist() == [0.75, 1.5]
    assert quantize_tensor(reals, chosen, spec).dequantized().tolist() == [[0.75, -1.5], [0.75, 1.5]]


@pytest.mark.parametrize("spec", [AFFINE8, QuantSpec(8), BINARY])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(spec: QuantSpec, value: float) -> None:
    reals = np.ones((2, 3))
    reals[0, 1] = value
    with pytest.raises(QuantizationError, match=rf"index \(0, 1\) is {value}"):
        params_from_values(reals, spec)


@pytest.mark.parametrize(
    "spec", [QuantSpec(8, granularity=PerAxis(0)), QuantSpec(1, narrow=True, granularity=PerAxis(0))]
)
def test_an_all_zero_channel_is_named(spec: QuantSpec) -> None:
    reals = np.ones((4, 3))
    reals[2] = 0
    with pytest.raises(QuantizationError, match="channel 2 holds only zeros"):
        params_from_values(reals, spec)


# The classes themselves


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-39])
def test_a_scale_is_a_normal_positive_number(scale: float) -> None:
    with pytest.raises(QuantizationError, match="A scale must be finite"):
        params(scale)


def test_scale_and_zero_point_have_one_shape() -> None:
    with pytest.raises(QuantizationError, match="one shape"):
        QParams(np.ones(2, np.float32), np.zeros(3, np.int32))


@pytest.mark.parametrize(
    ("values", "spec", "words"),
    [
        (np.zeros(2, np.uint8), QuantSpec(8), "holds int8, got uint8"),
        (np.array([-128, 0], np.int8), QuantSpec(8, narrow=True), r"holds -127\.\.127, got -128\.\.0"),
        (np.array([16], np.uint8), QuantSpec(4, signed=False), r"holds 0\.\.15, got 16\.\.16"),
        (np.array([1, 0, -1], np.int8), BINARY, "-1 and \\+1 only, got 0"),
        (np.zeros((2, 2), np.int8), QuantSpec(8, granularity=PerAxis(0)), "one scale for each index"),
    ],
)
def test_a_tensor_off_its_grid_is_refused(values: NDArray[np.int8], spec: QuantSpec, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        QTensor(values, params(1.0), spec)


def test_specifications_print_short() -> None:
    assert str(QuantSpec(4, granularity=PerAxis(0))) == "s4 per axis 0"
    assert str(AFFINE8) == "u8"
