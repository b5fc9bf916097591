"""The four KL searches, each against a slow one written from the source's description, and onnxruntime against itself."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from unit.quantization.clipping.samples import GRIDS, SHAPES, histogram_of, sample

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.divergence import KLCurve
from labkit.quantization.clipping.kl import VARIANTS, kl_curve, kl_range
from labkit.quantization.clipping.kl_onnxruntime import onnxruntime_curve
from labkit.quantization.clipping.kl_ppq import ppq_curve
from labkit.quantization.clipping.kl_tensorrt import tensorrt_curve
from labkit.quantization.clipping.kl_toolkit import toolkit_curve
from labkit.quantization.histogram import Histogram

KINDS = ["bell", "laplace", "relu", "heavy", "skew"]


def magnitudes(shape: str, bins: int, count: int = 5000) -> tuple[NDArray[np.int64], float]:
    values = np.abs(sample(shape, count))
    counts, edges = np.histogram(values, bins, range=(0, values.max()))
    return counts, float(edges[1])


def check(curve: KLCurve, wanted: dict[float, float], abs_tolerance: float = 1e-10) -> None:
    """``wanted`` is divergence by threshold."""
    assert curve.high.tolist() == pytest.approx(list(wanted), rel=1e-12)
    assert curve.low.tolist() == pytest.approx([-t for t in wanted], rel=1e-12)
    assert curve.divergence.tolist() == pytest.approx(list(wanted.values()), rel=1e-7, abs=abs_tolerance)


def distance(p: NDArray[np.floating], q: NDArray[np.floating]) -> float:
    return float(stats.entropy(p, q)) if q.any() else math.inf


@pytest.mark.parametrize(("levels", "start"), [(128, 128), (256, 128), (8, 128), (8, 20), (2, 2)])
@pytest.mark.parametrize("shape", KINDS)
def test_tensorrt_is_the_slides_loop(shape: str, levels: int, start: int) -> None:
    counts, width = magnitudes(shape, 300)
    wanted = {}
    for i in range(max(levels, start), 300):  # for i in range(128, 2048)
        p = counts[:i].astype(float)
        p[i - 1] += counts[i:].sum()
        size, q = i // levels, np.zeros(i)
        for level in range(levels):
            begin, end = level * size, i if level == levels - 1 else (level + 1) * size
            for j in range(begin, end):
                if counts[j]:
                    q[j] = counts[begin:end].sum() / np.count_nonzero(counts[begin:end])
        wanted[(i + 0.5) * width] = distance(p, q)
    curve = tensorrt_curve(counts, width, levels, start)
    if np.isinf(list(wanted.values())).all():  # the slides choose nothing, labkit the whole range
        wanted[300 * width] = math.inf
        assert curve.best == len(wanted) - 1
    else:
        assert curve.best == int(np.argmin(list(wanted.values())))
    check(curve, wanted)


@pytest.mark.parametrize(("levels", "start"), [(128, 128), (256, 128), (8, 128), (8, 1)])
@pytest.mark.parametrize("shape", KINDS)
def test_toolkit_is_the_toolkits_loop(shape: str, levels: int, start: int) -> None:
    counts, width = magnitudes(shape, 300)
    before = counts.copy()
    bins = counts.copy()
    bins[0] = bins[1]
    wanted = {}
    for i in range(start, 301):
        level = np.digitize(range(i), np.linspace(0, i, levels + 1)) - 1
        level[bins[:i] == 0] = -1
        q = np.zeros(i)
        for k in set(level.tolist()) - {-1}:
            q[level == k] = bins[:i][level == k].sum() / np.count_nonzero(level == k)
        p = bins[:i].astype(float)
        p[-1] += bins[i:].sum()
        wanted[i * width] = distance(p, q)
    curve = toolkit_curve(counts, width, levels, start)
    check(curve, wanted)
    divergences = list(wanted.values())
    assert curve.best == len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    assert counts.tolist() == before.tolist(), "the caller's histogram is left alone"


def test_toolkit_takes_the_largest_of_equals() -> None:
    even = np.full(40, 7)
    assert toolkit_curve(even, 1.0, 4, 4).chosen == (-40, 40)
    assert toolkit_curve(np.zeros(40, np.int64), 1.0, 4, 4).chosen == (-40, 40)


@pytest.mark.parametrize("levels", [128, 64, 32])
@pytest.mark.parametrize("bins", [4096, 2048, 3000])
@pytest.mark.parametrize("shape", KINDS)
def test_ppq_is_ppqs_loop(shape: str, bins: int, levels: int) -> None:
    counts, width = magnitudes(shape, bins)
    cleared = counts.astype(np.float64)
    cleared[: int(bins * 0.002)] = 0
    cleared[int(bins * 0.002)] = 1
    wanted = {}
    for i in range(levels, bins + 1, levels):
        p = cleared[:i].copy()
        p[-1] += cleared[i:].sum()
        groups = cleared[:i].reshape(levels, -1)
        filled = groups > 0
        q = (groups.sum(1, keepdims=True) / np.maximum(1, filled.sum(1, keepdims=True)) * filled).reshape(-1)
        p, q = p / cleared.sum(), q / q.sum()
        wanted[i * width] = float(p @ (np.log10(p + 1e-30) - np.log10(q + 1e-30)))
    curve = ppq_curve(counts, width, levels)
    check(curve, wanted)
    assert curve.best == int(np.argmin(list(wanted.values())))


def test_ppq_refuses_a_candidate_inside_the_emptied_bins() -> None:
    counts, width = magnitudes("laplace", 4096)
    curve = ppq_curve(counts, width, 8)  # 4 bits: the first candidate has 8 bins, and 8 are emptied
    assert math.isinf(curve.divergence[0]) and curve.best > 0


def _collected(shape: str, bins: int, parts: int) -> tuple[object, tuple[NDArray[np.int64], ...]]:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    collector = calibrate.HistogramCollector("entropy", False, bins, 128, 99.99, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        for part in np.array_split(sample(shape, 4000), parts):
            collector.collect({"x": part})
    return collector, collector.get_histogram_dict()["x"]


@pytest.mark.parametrize(
    ("bins", "parts", "levels"), [(128, 1, 128), (300, 1, 8), (300, 1, 255), (256, 3, 128), (257, 1, 64), (600, 1, 128)]
)
@pytest.mark.parametrize("shape", KINDS)
def test_onnxruntime_is_onnxruntime(shape: str, bins: int, parts: int, levels: int) -> None:
    collector, histogram = _collected(shape, bins, parts)
    low, high = collector.get_entropy_threshold(histogram, levels)  # type: ignore[attr-defined]
    curve = onnxruntime_curve(histogram[0], histogram[1], levels)
    got = max(curve.chosen[0], float(histogram[2])), min(curve.chosen[1], float(histogram[3]))
    assert got == (float(low), float(high))


def test_onnxruntimes_own_default_has_one_candidate() -> None:
    _, histogram = _collected("heavy", 128, 1)
    curve = onnxruntime_curve(histogram[0], histogram[1])
    largest = float(np.abs(sample("heavy", 4000)).max())
    assert len(curve.high) == 1 and curve.chosen == pytest.approx((-largest, largest), rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_variant_gives_a_range_of_what_was_seen(shape: str, grid: str, variant: str) -> None:
    values = sample(shape, 3000)
    seen = histogram_of(values)
    low, high = kl_range(seen, GRIDS[grid], variant)
    assert values.min() <= low <= high <= values.max() and (low, high) != (0, 0)
    curve = kl_curve(seen, GRIDS[grid], variant)
    assert curve.variant == variant and len(curve.low) == len(curve.high) == len(curve.divergence)
    assert np.all(np.diff(curve.high - curve.low) > 0)
    reach = np.maximum(np.abs(curve.low), np.abs(curve.high))
    size = np.abs(values[values != 0])
    kept = np.array([np.mean(size <= one) for one in reach])
    if kept[curve.best] >= 0.5:
        assert (low, high) == (max(float(values.min()), curve.chosen[0]), min(float(values.max()), curve.chosen[1]))
    else:  # what the variant chooses cuts off most of what there is
        best = np.argmin(np.where(kept >= 0.5, curve.divergence, np.inf)) if np.any(kept >= 0.5) else -1
        wanted = (max(float(values.min()), curve.low[best]), min(float(values.max()), curve.high[best]))
        assert (low, high) == wanted
        assert high - low > 0
    with pytest.raises(ValueError, match="read-only"):
        curve.divergence[0] = 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_outlier_is_cut_off(variant: str) -> None:
    values = np.append(sample("bell", 50_000), 40.0).astype(np.float32)
    low, high = kl_range(histogram_of(values), GRIDS["s8"], variant)
    assert values.min() <= low < -3.5 and 3.5 < high < 10


def test_values_of_one_sign_have_twice_the_levels_on_an_unsigned_grid() -> None:
    relu, bell = histogram_of(sample("relu")), histogram_of(sample("bell"))
    width = relu.coarsened(2048)
    wanted = tensorrt_curve(width.magnitudes(), width.width, 256)

    def divergence(seen: Histogram, grid: str) -> list[float]:
        return kl_curve(seen, GRIDS[grid], "tensorrt").divergence.tolist()

    assert divergence(relu, "u8") == wanted.divergence.tolist() != divergence(relu, "s8")
    assert divergence(bell, "u8") == divergence(bell, "s8")


def test_the_slides_mistake_the_zeros_of_a_relu_and_the_toolkit_does_not() -> None:
    seen = histogram_of(sample("relu", 100_000))
    assert kl_range(seen, GRIDS["s8"], "tensorrt")[1] < 0.5 * seen.statistics.maximum
    assert kl_range(seen, GRIDS["s8"]) == kl_range(seen, GRIDS["s8"], "toolkit")
    assert kl_range(seen, GRIDS["s8"])[1] > 0.8 * seen.statistics.maximum


def test_too_few_bins_leave_the_whole_range() -> None:
    curve = tensorrt_curve(np.array([5, 3, 1]), 0.5)
    assert curve.chosen == (-1.5, 1.5)
    sparse = np.zeros(400, np.int64)
    sparse[[0, 399]] = 5
    assert tensorrt_curve(sparse, 1.0).chosen == (-400, 400), "every candidate puts outliers where nothing was"


def test_errors() -> None:
    seen = histogram_of(sample("bell"))
    with pytest.raises(
        QuantizationError, match="variant must be one of tensorrt, toolkit, onnxruntime, ppq, got 'mxnet'"
    ):
        kl_range(seen, GRIDS["s8"], "mxnet")
    with pytest.raises(QuantizationError, match="One signed bit"):
        kl_range(seen, QuantSpec(1, narrow=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_far_from_zero_are_not_all_cut_off(variant: str) -> None:
    """Of values around 1, a range that ends before them leaves nothing to compare."""
    values = np.random.default_rng(0).normal(1.0, 0.05, 20000).astype(np.float32)
    low, high = kl_range(histogram_of(values), QuantSpec(8, signed=False, symmetric=False), variant)
    assert low <= 1.0 <= high
