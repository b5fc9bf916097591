"""Integer-only softmax, GELU, layer norm and root against I-BERT's formulas in float64, and against exact ones.

The authors compute whole numbers in floating point. In float64 that is exact as long as no product or sum passes 2**53, so each
comparison asks for no mismatch at all among at least 200,000 random inputs, and says by which scales and sizes it stays below.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import exp_constants, gelu_constants
from labkit.errors import BoundError, QuantizationError
from labkit.kernels.reference_transformer import (
    batch_matmul,
    embedding,
    i_exp,
    i_gelu,
    i_layer_norm,
    i_softmax,
    integer_sqrt,
)

RNG = np.random.default_rng(0)
EXACT = 2.0**53  # float64 holds every whole number up to here


def all_exact(*numbers: np.ndarray) -> bool:
    """Whether all of these whole numbers in float64 are what they would be without rounding."""
    return all(float(np.abs(array).max()) <= EXACT for array in numbers)


# --- I-BERT's formulas as the paper and its code have them, on float64 -------------------------------------------------


def float_exp(q: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    ln2 = np.floor(-0.6931 / scale)
    q = np.maximum(q, 30 * ln2)
    halvings = np.floor(q / ln2)
    rest = q - ln2 * halvings
    a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
    z = rest * (rest + np.floor(b / scale)) + np.floor(c / scale**2)
    assert all_exact(z)  # what follows only moves the binary point
    return np.maximum(np.floor(z * 2.0 ** (30 - halvings)), 0), a * scale**2 / 2**30


def float_gelu(q: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    step = scale / 1.4142
    b, c = np.floor(-1.769 / step), np.floor((1 / -0.2888) / step**2)
    y = np.sign(q) * ((np.minimum(np.abs(q), -b) + b) ** 2 + c)
    assert all_exact(b * b, y)
    erf_scale = step**2 * -0.2888 * 2**14
    y = np.floor(y / 2**14)
    product = q * (y + np.floor(1 / erf_scale))
    assert all_exact(product)
    return product, scale * erf_scale / 2


def float_layer_norm(q: np.ndarray, bias: np.ndarray, shift: int) -> np.ndarray:
    y = q - np.round(q.mean(axis=-1, keepdims=True))
    squares = (np.floor(y / 2**shift) ** 2).sum(axis=-1, keepdims=True)
    assert all_exact(2 * squares)  # below 2**52 no root of float64 is rounded up to a whole number
    deviation = np.floor(np.sqrt(squares)) * 2**shift
    return np.floor(y * np.floor(2**31 / deviation) / 2) + bias


def float_root(n: np.ndarray) -> np.ndarray:
    """Algorithm 4: Newton's method from the power of two above the root, until it stops falling."""
    assert all_exact(2 * n)  # below 2**52 no quotient is rounded up to a whole number
    root = 2.0 ** np.ceil(np.frexp(n)[1] / 2)
    while True:
        lower = np.floor((root + np.floor(n / root)) / 2)
        if np.all(lower >= root):
            return root
        root = np.minimum(root, lower)


@pytest.mark.parametrize("scale", [2e-4, 7e-4, 1 / 512, 0.01])
def test_exp_is_that_of_the_paper(scale: float) -> None:
    q = -RNG.integers(0, int(25 / scale), 200_000)
    integer, halvings = i_exp(q, exp_constants(scale))
    wanted, wanted_scale = float_exp(q.astype(np.float64), scale)
    got = [(int(p) << 30) >> int(h) for p, h in zip(integer, halvings, strict=True)]
    assert got == [int(w) for w in wanted]
    real = integer * exp_constants(scale).scale / 2.0**halvings
    assert np.abs(real - np.exp(q * scale)).max() < 0.002 + scale  # the polynomial's own error, and a step of the input
    assert wanted_scale * 2**30 == pytest.approx(exp_constants(scale).scale)


@pytest.mark.parametrize("scale", [6.1e-5, 1e-4, 3e-4, 1e-3])
def test_gelu_is_that_of_the_paper(scale: float) -> None:
    q = RNG.integers(-int(8 / scale), int(8 / scale), 200_000)
    got, constants = i_gelu(q, gelu_constants(scale)), gelu_constants(scale)
    wanted, wanted_scale = float_gelu(q.astype(np.float64), scale)
    assert np.array_equal(got, wanted.astype(np.int64))
    assert constants.scale == wanted_scale
    real = q * scale
    exact = real * 0.5 * (1 + erf(real / math.sqrt(2)))
    assert np.abs(got * constants.scale - exact).max() < 0.02 + 120 * scale


def test_gelu_refuses_a_coarse_scale() -> None:
    with pytest.raises(QuantizationError, match="Requantize its input to 16 bits first"):
        gelu_constants(2e-3)


@pytest.mark.parametrize("make", [gelu_constants, exp_constants])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_must_be_positive(make: object, scale: float) -> None:
    with pytest.raises(QuantizationError, match="positive"):
        make(scale)  # type: ignore[operator]


@pytest.mark.parametrize(("make", "scale"), [(gelu_constants, 1e-10), (exp_constants, 1e-6)])
def test_scales_beyond_int64_are_refused(make: object, scale: float) -> None:
    with pytest.raises(BoundError, match="bits"):
        make(scale)  # type: ignore[operator]


@pytest.mark.parametrize("shift", [0, 4, 8])
@pytest.mark.parametrize("features", [1, 3, 384, 768])
def test_layer_norm_is_that_of_the_paper(features: int, shift: int) -> None:
    """With the authors' bias, the whole number below (beta / gamma) over the scale, for gammas of either sign."""
    q = RNG.normal(0, 30_000, (200_000 // features + 1, features)).round().astype(np.int64)
    q[0] = 2**15 * np.sign(q[0])  # the widest spread of 16 bits
    gamma = RNG.uniform(0.05, 3, features) * RNG.choice([-1, 1], features)
    bias = np.floor(RNG.normal(0, 0.5, features) / gamma / (math.sqrt(features) / 2**30)).astype(np.int64)
    assert all_exact(bias)
    got = i_layer_norm(q, bias=bias, shift=shift)
    assert got.size >= 200_000
    if features == 1:  # nothing is left, and the authors divide by 0
        assert np.array_equal(got, np.broadcast_to(bias, got.shape))
        return
    spread = q.std(axis=1) > 2**shift
    assert spread.mean() > 0.999
    assert np.array_equal(got[spread], float_layer_norm(q[spread], bias, shift).astype(np.int64))


def test_layer_norm_normalises() -> None:
    q = RNG.normal(500, 30_000, (20, 384)).round().astype(np.int64)
    real = i_layer_norm(q, bias=np.int64(0), shift=0) * math.sqrt(384) / 2**30
    spread = q.std(axis=1, keepdims=True)
    exact = (q - q.mean(axis=1, keepdims=True)) / spread
    cut_off = math.sqrt(384) * spread / 2**31  # of 2**31 / deviation, of which the whole part is taken
    assert (
        np.abs(real - exact) <= 1.01 * cut_off * np.abs(exact) + 1 / spread
    ).all()  # the mean is a whole number, too


def test_layer_norm_of_equal_numbers_is_the_bias() -> None:
    bias = np.arange(5)
    assert np.array_equal(i_layer_norm(np.full((2, 5), 7), bias=bias, shift=0), [bias, bias])


def test_layer_norm_takes_means_half_to_even() -> None:
    (row,) = i_layer_norm(np.array([[0, 0, 0, 2]]), bias=np.int64(0), shift=0)  # the mean is 1/2, which becomes 0
    assert row[0] == 0
    (row,) = i_layer_norm(np.array([[1, 1, 1, 3]]), bias=np.int64(0), shift=0)  # 3/2 becomes 2
    assert row[0] < 0 < row[3]


def test_layer_norm_refuses_what_62_bits_do_not_hold() -> None:
    with pytest.raises(BoundError, match="62 bits"):
        i_layer_norm(np.array([[-(2**32), 2**32]]), bias=np.int64(0), shift=0)


def softmax_setting(scale: float) -> dict[str, object]:
    constants = exp_constants(scale)
    return {"constants": constants, "multiplier": FixedPointMultiplier.from_real(constants.scale * 32767), "bits": 8}


@pytest.mark.parametrize("bits", [8, 7, 4])
@pytest.mark.parametrize("scale", [1.1e-3, 2.7e-3, 0.013, 0.2])
def test_softmax_is_that_of_the_paper(scale: float, bits: int) -> None:
    """From a scale of 1.1e-3 on the parabola has 22 bits, and its product with a mantissa of 31 bits is exact."""
    setting: Any = softmax_setting(scale) | {"bits": bits}
    mantissa, exponent = (int(part) for part in (setting["multiplier"].mantissa, setting["multiplier"].exponent))
    q = RNG.integers(-int(8 / scale), int(8 / scale), (200_000 // 64 + 1, 64))
    got = i_softmax(q, mask=None, rounds=False, **setting)
    integer, _ = float_exp((q - q.max(axis=-1, keepdims=True)).astype(np.float64), scale)
    product = integer / 2.0**30 * mantissa
    assert all_exact(product)
    short = np.floor(product * 2.0 ** (exponent - 31) + 0.5)  # the 16 bits that follow the exponential
    factor = np.floor(2**32 / short.sum(axis=-1, keepdims=True))
    assert all_exact(short * factor)
    assert got.size >= 200_000
    assert np.array_equal(got, np.minimum(np.floor(short * factor / 2.0 ** (32 - bits)), 2**bits - 1))


@pytest.mark.parametrize("scale", [1.0e-4, 2.5e-4, 7e-4])
def test_softmax_of_a_finer_scale_is_that_of_the_paper(scale: float) -> None:
    """There float64 rounds the 16 bits' product; rows with one next to a tie say nothing and are left out. They are few."""
    q = RNG.integers(-20_000, 20_000, (4000, 64))
    got = i_softmax(q, mask=None, rounds=False, **softmax_setting(scale))  # type: ignore[arg-type]
    integer, exp_scale = float_exp((q - q.max(axis=-1, keepdims=True)).astype(np.float64), scale)
    real = integer * exp_scale * 32767  # off by a millionth at most, as the multiplier has 31 bits: 32767 / 2**32
    sure = (np.abs(real - np.floor(real) - 0.5) > 1e-5).all(axis=-1)
    short = np.floor(real + 0.5)
    factor = np.floor(2**32 / short.sum(axis=-1, keepdims=True))
    assert got[sure].size >= 200_000
    assert np.array_equal(got[sure], np.minimum(np.floor(short * factor / 2**24), 255)[sure])


def test_softmax_is_near_the_real_one() -> None:
    scale = 7e-4
    q = RNG.integers(-20_000, 20_000, (500, 64))
    got = i_softmax(q, mask=None, rounds=True, **softmax_setting(scale))  # type: ignore[arg-type]
    real = np.exp((q - q.max(axis=-1, keepdims=True)) * scale)
    assert np.abs(got / 256 - real / real.sum(axis=-1, keepdims=True)).max() < 1.5 / 256


def test_masked_elements_change_nothing() -> None:
    q = RNG.integers(-20_000, 20_000, (30, 20))
    wide = np.concatenate([q, RNG.integers(10**6, 10**9, (30, 5))], axis=1)
    mask = np.arange(25) < 20
    got = i_softmax(wide, mask=mask, rounds=True, **softmax_setting(7e-4))  # type: ignore[arg-type]
    assert np.array_equal(got[:, :20], i_softmax(q, mask=None, rounds=True, **softmax_setting(7e-4)))  # type: ignore[arg-type]
    assert not got[:, 20:].any()
    nothing = i_softmax(q, mask=np.zeros(20, bool), rounds=True, **softmax_setting(7e-4))  # type: ignore[arg-type]
    assert not nothing.any()


def test_the_root_is_that_of_the_paper() -> None:
    numbers = np.floor(2.0 ** RNG.uniform(0, 52, 300_000))
    assert np.array_equal(integer_sqrt(numbers.astype(np.int64)), float_root(numbers).astype(np.int64))


def test_the_root_of_what_float64_does_not_hold() -> None:
    numbers = [
        *RNG.integers(2**53, 2**62, 200_000).tolist(),
        *(int(r) ** 2 for r in RNG.integers(2**27, 2**31, 20_000)),
    ]
    assert integer_sqrt(np.array(numbers)).tolist() == [math.isqrt(n) for n in numbers]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_the_root_is_exact(numbers: list[int]) -> None:
    assert integer_sqrt(np.array(numbers)).tolist() == [math.isqrt(n) for n in numbers]


def test_the_root_of_squares_and_their_neighbours() -> None:
    roots = [*range(2000), *(2**k + d for k in range(11, 31) for d in (-1, 0, 1))]
    numbers = [n for r in roots for n in (r * r - 1, r * r, r * r + 1) if 0 <= n <= 2**62]
    assert integer_sqrt(np.array(numbers)).tolist() == [math.isqrt(n) for n in numbers]


@pytest.mark.parametrize("number", [-1, 2**62 + 1])
def test_the_root_refuses_what_it_cannot_take(number: int) -> None:
    with pytest.raises(BoundError, match="takes 0"):
        integer_sqrt(np.array([number]))


def test_matrices_are_multiplied_batch_by_batch() -> None:
    a = RNG.integers(-128, 128, (2, 3, 4, 5)).astype(np.int8)
    b = RNG.integers(0, 256, (2, 3, 5, 6)).astype(np.uint8)
    got = batch_matmul(a, b, zero_points=(-3, 128))
    for i in range(2):
        for j in range(3):
            for m in range(4):
                for n in range(6):
                    wanted = sum((int(a[i, j, m, k]) + 3) * (int(b[i, j, k, n]) - 128) for k in range(5))
                    assert got[i, j, m, n] == wanted
    with pytest.raises(BoundError, match="int32"):
        batch_matmul(np.full((1, 2**17), 255, np.uint8), np.full((2**17, 1), 255, np.uint8), zero_points=(0, 0))


def test_rows_are_looked_up() -> None:
    table = RNG.integers(-128, 128, (7, 3)).astype(np.int8)
    assert np.array_equal(embedding(np.array([[0, 6], [2, 2]]), table=table), table[[[0, 6], [2, 2]]])
    with pytest.raises(BoundError, match=r"0\.\.6"):
        embedding(np.array([7]), table=table)
