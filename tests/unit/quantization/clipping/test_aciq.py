"""ACIQ's closed forms against its errors as integrals, and against the search on values of that very shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats
from unit.quantization.clipping.samples import GRIDS, SHAPES, histogram_of, sample

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize
from labkit.errors import QuantizationError
from labkit.quantization.clipping.aciq import aciq_range, gauss_ratio, laplace_ratio
from labkit.quantization.clipping.lp import mse_range

# submission2019/cnn-quantization, int_quantizer.py: the tables "Alpha coeficients", bits 2..8.
PUBLISHED = {
    "gauss": [1.71063519, 2.15159277, 2.55913646, 2.93620062, 3.28691474, 3.6151146, 3.92403714],
    "laplace": [2.83068299, 3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982],
    "relu": [3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982, 11.16268502],
}


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_ratios_are_the_published_ones(bits: int) -> None:
    assert gauss_ratio(bits) == pytest.approx(PUBLISHED["gauss"][bits - 2], rel=1e-6)
    assert laplace_ratio(bits) == pytest.approx(PUBLISHED["laplace"][bits - 2], rel=1e-6)
    assert laplace_ratio(bits + 1) == pytest.approx(PUBLISHED["relu"][bits - 2], rel=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("bell", "ratio"), [(stats.norm, gauss_ratio), (stats.laplace, laplace_ratio)])
def test_the_ratios_make_the_integral_least(bell: stats.rv_continuous, ratio: object, bits: int) -> None:
    def squared(alpha: float) -> float:
        beyond, _ = integrate.quad(lambda x: (x - alpha) ** 2 * bell.pdf(x), alpha, 60, epsabs=0, epsrel=1e-11)
        return 2 * beyond + alpha**2 / (3 * 4**bits)

    least = optimize.minimize_scalar(squared, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9})
    assert ratio(bits) == pytest.approx(least.x, rel=1e-4)  # type: ignore[operator]


def error(values: np.ndarray, spec: QuantSpec, low: float, high: float) -> float:
    params = params_from_range(low, high, spec)
    return float(np.square(values.astype(float) - dequantize(quantize(values, params, spec), params, spec)).mean())


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("kind", ["both signs", "relu", "symmetric relu"])
def test_on_values_of_its_shape_it_finds_nearly_the_least_error(distribution: str, bits: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.laplace(0, 2, 200_000) if distribution == "laplace" else rng.normal(0, 2, 200_000)).astype(np.float32)
    spec = QuantSpec(bits) if kind == "symmetric relu" else QuantSpec(bits, signed=False, symmetric=False)
    if "relu" in kind:
        values = np.maximum(values, 0)
    low, high = aciq_range(histogram_of(values), spec, distribution)
    b = 2.0  # of the bell before the ReLU
    ratio = laplace_ratio if distribution == "laplace" else gauss_ratio
    assert high == pytest.approx(min(ratio(bits + (kind == "relu")) * b, values.max()), rel=0.02)
    assert low == (0 if "relu" in kind else pytest.approx(-high, rel=0.02))
    least = mse_range(histogram_of(values), spec)
    # the closed form counts 2**bits steps, the grid has one less, and 0 is on it
    assert error(values, spec, low, high) <= 1.2 * error(values, spec, *least)


def test_values_of_both_signs_lie_around_their_mean() -> None:
    values = np.random.default_rng(0).laplace(0.7, 0.5, 100_000).astype(np.float32)
    low, high = aciq_range(histogram_of(values), GRIDS["u4"])
    spread = float(np.abs(values - values.mean()).mean())
    assert (low, high) == pytest.approx(
        (values.mean() - laplace_ratio(4) * spread, values.mean() + laplace_ratio(4) * spread), rel=1e-3
    )
    low, high = aciq_range(histogram_of(values), GRIDS["s4"], "gauss")
    assert high == pytest.approx(gauss_ratio(4) * math.sqrt(float((values.astype(float) ** 2).mean())), rel=1e-3)


def test_zeros_count_for_both_signs_and_not_after_a_relu() -> None:
    rng = np.random.default_rng(0)
    bell = rng.laplace(0, 1, 50_000)
    diluted = histogram_of(np.concatenate([bell, np.zeros(50_000)]))
    assert aciq_range(diluted, GRIDS["s4"])[1] == pytest.approx(
        aciq_range(histogram_of(bell), GRIDS["s4"])[1] / 2, rel=1e-3
    )
    relu = np.maximum(bell, 0)
    more = histogram_of(np.concatenate([relu, np.zeros(50_000)]))
    assert aciq_range(more, GRIDS["u4"]) == aciq_range(histogram_of(relu), GRIDS["u4"])


@pytest.mark.parametrize("distribution", ["laplace", "gauss"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_lies_within_what_was_seen(shape: str, grid: str, distribution: str) -> None:
    values = sample(shape, 3000)
    low, high = aciq_range(histogram_of(values), GRIDS[grid], distribution)
    assert values.min() <= low <= high <= values.max() and (low, high) != (0, 0)


def test_errors() -> None:
    with pytest.raises(QuantizationError, match="distribution must be one of laplace, gauss, got 'cauchy'"):
        aciq_range(histogram_of(sample("bell")), GRIDS["u4"], "cauchy")
    with pytest.raises(QuantizationError, match="One signed bit"):
        aciq_range(histogram_of(sample("bell")), QuantSpec(1, narrow=True))
    assert aciq_range(histogram_of(np.zeros(3)), GRIDS["u4"]) == (0, 0)
