"""m05, calibration: what is asked and how it is judged."""

from __future__ import annotations

import math

import numpy as np

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.quantization.clipping.divergence import clipped_divergences, kl_divergence, merge_and_expand
from labkit.quantization.clipping.kl_tensorrt import tensorrt_curve
from labkit.quantization.clipping.kl_toolkit import toolkit_curve
from labkit.quantization.clipping.lp import lp_range_of_values
from labkit.quantization.observers import Observer

_DIVERGENCE = "labkit.quantization.clipping.divergence"


def _gap(values):
    """How far the least of ``values`` lies below the second least, as a share of it; large where there is only one."""
    finite = np.sort(np.asarray(values)[np.isfinite(values)])
    return (finite[1] - finite[0]) / max(finite[1], 1e-9) if len(finite) > 1 else 1.0


# --- m05.q1 -----------------------------------------------------------------------------------------------------------

_MOMENTA = [0.9, 0.5, 0.75, 0.99, 0.25, 0.0]


def _batches(rng, number):
    shapes = [(2, 4), (7,), (2, 2, 2)]
    count = 2 + number % 4
    spreads = rng.uniform(0.5, 2.0, count)
    shape = shapes[number % 3]
    return {
        "batches": [(spread * rng.normal(0.3, 1.0, shape)).astype(np.float32) for spread in spreads],
        "momentum": _MOMENTA[number % 6],
    }


def _one_batch(rng, number):
    return {"batches": [rng.normal(0, 1 + number, (2, 3)).astype(np.float32)], "momentum": [0.9, 0.5][number % 2]}


def _positive(rng, number):
    count = 4 + number
    growth = 2.0 ** np.arange(count)
    return {
        "batches": [(size * rng.uniform(0.5, 1.0, 5)).astype(np.float32) for size in growth],
        "momentum": [0.9, 0.75, 0.5][number % 3],
    }


def _observed(batches, momentum):
    observer = Observer("values", momentum)
    for batch in batches:
        observer.update(batch)
    return observer.average()


def _ema(batches, momentum, start=None):
    average = start
    for batch in batches:
        ends = np.array([batch.min(), batch.max()], np.float64)
        average = ends if average is None else momentum * average + (1 - momentum) * ends
    return tuple(average)


EMA = Task(
    name="m05.q1",
    title="A moving average of ranges",
    function="ema_range",
    points=4,
    minutes=8,
    source="EE219 lab, section V.E (b); Jacob et al. 2018, section 3.1",
    kinds=(
        Kind("typical", "a few batches of both signs", _batches, count=6, public=2),
        Kind("one batch", "a single batch, so that only the start counts", _one_batch, count=2, public=1),
        Kind("growing", "batches of positive numbers, each about twice as large as the one before", _positive, count=4),
    ),
    oracle=_observed,
    judge=Items((Close(1e-5, 1e-6), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "starts at zero",
            "Your average starts at 0, so that the first batches seem smaller than they are. The first batch is the start.",
            lambda batches, momentum: _ema(batches, momentum, np.zeros(2)),
        ),
        Mistake(
            "weights swapped",
            "The momentum is the weight of what was seen before, and yours goes to the new batch. "
            "With 0.9 the average should move slowly.",
            lambda batches, momentum: _ema(batches, 1 - momentum),
        ),
        Mistake(
            "everything seen",
            "These are the smallest and the largest value of all batches. A moving average lets one odd batch be forgotten.",
            lambda batches, momentum: (min(b.min() for b in batches), max(b.max() for b in batches)),
        ),
        Mistake(
            "plain mean",
            "You gave every batch the same weight. Here the weights fall from the newest batch to the oldest.",
            lambda batches, momentum: (np.mean([b.min() for b in batches]), np.mean([b.max() for b in batches])),
        ),
    ),
    library="labkit.quantization.observers.Observer",
    equivalent=(
        Equivalent(
            "for batch in batches[1:]:",
            "for batch in batches[0:]:",
            "The first batch averaged with itself, in whatever shares, is the first batch.",
        ),
    ),
)

# --- m05.q2 -----------------------------------------------------------------------------------------------------------


def _clear_of_edges(x, bins):
    places = np.abs(x.astype(np.float64)) / np.abs(x).max() * bins
    inner = places[places < bins]
    return np.all(np.abs(inner - np.rint(inner))[inner > 0] > 1e-3)


def _magnitudes(rng, number):
    bins = [8, 5, 16, 12, 7, 3][number % 6]
    shape = [(20,), (4, 6), (2, 3, 4)][number % 3]
    while True:
        x = rng.normal(0, 1, shape).astype(np.float32)
        if number % 2:
            x = np.maximum(x, 0)  # as after a ReLU
        if _clear_of_edges(x, bins):
            return {"x": x, "bins": bins}


def _largest_is_negative(rng, number):
    while True:
        x = rng.normal(0, 1, 12 + number).astype(np.float32)
        x[number] = -2 * np.abs(x).max()
        if _clear_of_edges(x, 6):
            return {"x": x, "bins": 6}


def _on_edges(rng, number):
    steps = rng.integers(-16, 17, 24)
    steps[number % 24] = 16
    return {"x": (steps / 8).astype(np.float32), "bins": [8, 16, 4][number % 3]}


def _histogram(x, bins):
    values = np.abs(x).astype(np.float64).reshape(-1)
    largest = values.max()
    edges = largest * np.arange(bins) / bins
    places = np.searchsorted(edges, values, side="right") - 1
    return np.bincount(places, minlength=bins), largest / bins


def _by_place(x, bins, place):
    places = place(np.abs(x).reshape(-1).astype(np.float64) / (np.abs(x).max() / bins)).astype(int)
    return np.bincount(places[(places >= 0) & (places < bins)], minlength=bins), np.abs(x).max() / bins


def _positive_histogram(x, bins):
    largest = x.max()
    return np.histogram(x, bins, range=(0, largest))[0], largest / bins


HISTOGRAM = Task(
    name="m05.q2",
    title="A histogram of magnitudes",
    function="magnitude_histogram",
    points=4,
    minutes=8,
    source="EE219 lab, section V.E (a), figure 5",
    kinds=(
        Kind("typical", "arrays of several shapes, some of them as after a ReLU", _magnitudes, count=6, public=2),
        Kind("largest is negative", "arrays whose largest magnitude is negative", _largest_is_negative, count=3),
        Kind("on the edges", "values exactly on the edges of bins, the last one included", _on_edges, count=3),
    ),
    oracle=_histogram,
    judge=Items((Exact(), Close(1e-5))),
    mistakes=(
        Mistake(
            "no magnitudes",
            "Negative values are missing from your counts. The histogram is one of magnitudes: the sign goes before counting.",
            _positive_histogram,
        ),
        Mistake(
            "last one lost",
            "The largest value itself is not in your counts. It lies on the outer edge of the last bin and belongs to that bin.",
            lambda x, bins: _by_place(x, bins, np.floor),
        ),
        Mistake(
            "nearest edge",
            "You rounded to the nearest edge. A bin holds the values from its inner edge up to the next one.",
            lambda x, bins: _by_place(x, bins, lambda places: np.minimum(np.rint(places), bins - 1)),
        ),
        Mistake(
            "outer edge closed",
            "A value that lies exactly on an edge went to the bin below it. It belongs to the bin above.",
            lambda x, bins: _by_place(x, bins, lambda places: np.maximum(np.ceil(places) - 1, 0)),
        ),
    ),
)

# --- m05.q3 -----------------------------------------------------------------------------------------------------------


def _counts(rng, bins, zeros=0.2):
    """Counts that fall towards the end, about a fifth of the bins empty, the first and the last never."""
    counts = rng.poisson(60 * np.exp(-np.arange(bins) * 5 / bins) + 0.5)
    counts[rng.random(bins) < zeros] = 0
    counts[0] += 1
    counts[-1] += 1
    return counts.astype(np.int64)


def _shares(rng, number):
    counts = _counts(rng, 10 + 3 * number)
    while counts.sum() % 5 == 0 or counts.sum() % 2 == 0:
        counts[1] += 1
    return {"counts": counts, "width": [0.25, 0.1, 0.5][number % 3], "share": [0.9, 0.99, 0.95, 0.8][number % 4]}


def _exact_shares(rng, number):
    above, below = [(1, 1), (1, 3), (1, 7)][number % 3]  # of so many parts each: the share is below / (above + below)
    part = int(rng.integers(5, 20))
    cuts = np.sort(rng.choice(np.arange(1, below * part), 3, replace=False))
    inside = np.diff([0, *cuts, below * part])
    outside = [above * part - 2, 0, 2]
    return {"counts": np.array([*inside, *outside], np.int64), "width": 0.5, "share": below / (above + below)}


def _all_of_them(rng, number):
    counts = _counts(rng, 8 + number)
    return {"counts": np.concatenate([counts, np.zeros(number, np.int64)]), "width": 0.125, "share": 1.0}


def _nearest_rank(counts, width, share):
    places = np.repeat(np.arange(len(counts)), counts)
    rank = max(1, math.ceil(share * len(places)))
    return (places[rank - 1] + 1) * width


def _reach(counts, width, share, strictly=False, past=1, of=None):
    sums = np.cumsum(counts)
    wanted = share * (sums[-1] if of is None else of)
    reached = sums > wanted if strictly else sums >= wanted
    return (np.argmax(reached) + past) * width


PERCENTILE = Task(
    name="m05.q3",
    title="A percentile from a histogram",
    function="percentile_threshold",
    points=4,
    minutes=8,
    source="EE219 lab, section V.E; docs/calibration-and-rounding.md",
    kinds=(
        Kind("typical", "histograms that fall towards the end", _shares, count=6, public=2),
        Kind("exact share", "a bin at whose outer edge the share is reached exactly", _exact_shares, count=3),
        Kind("all of them", "a share of 1, with empty bins at the end", _all_of_them, count=3),
    ),
    oracle=_nearest_rank,
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "inner edge",
            "This is the inner edge of the right bin, so its own values lie beyond the threshold. Take the outer edge.",
            lambda counts, width, share: _reach(counts, width, share, past=0),
        ),
        Mistake(
            "more than the share",
            "You go one bin too far where the share is met exactly: at least the share is enough.",
            lambda counts, width, share: _reach(counts, width, share, strictly=share < 1),
        ),
        Mistake(
            "share of the range",
            "This is a share of the range. A percentile is a share of the values: add the counts up from the first bin on.",
            lambda counts, width, share: share * len(counts) * width,
        ),
        Mistake(
            "share of the largest bin",
            "You compare with the largest bin. The share is meant of all values, that is, of the sum of the counts.",
            lambda counts, width, share: _reach(counts, width, share, of=counts.max()),
        ),
    ),
    library="labkit.quantization.clipping.percentile.percentile_range",
)

# --- m05.q4 -----------------------------------------------------------------------------------------------------------


def _bell(rng, number):
    while True:
        x = rng.normal(0, 1, [(30,), (5, 8), (3, 3, 4)][number % 3]).astype(np.float32)
        threshold = [1.5, 1.0, 2.0, 0.5][number % 4]
        if np.all(np.abs(np.abs(x) - threshold) > 1e-3) and (np.abs(x) > threshold).any():
            return {"x": x, "threshold": threshold, "bits": [4, 3, 5, 6, 2, 8][number % 6]}


def _after_relu(rng, number):
    x = np.maximum(rng.normal(0, 2, 40), 0).astype(np.float32)
    return {"x": x, "threshold": round(float(x.max()) * 0.6, 2), "bits": 3 + number}


def _unclipped(rng, number):
    x = rng.normal(0, 1, 16).astype(np.float32)
    x[3] = -np.abs(x).max() - 0.5
    return {"x": x, "threshold": float(np.abs(x).max()), "bits": [4, 3, 2][number % 3]}


def _negative_outliers(rng, number):
    x = rng.uniform(-1, 1, 20).astype(np.float32)
    x[number : number + 4] = -2 - rng.uniform(0, 1, 4)
    return {"x": x, "threshold": 1.5, "bits": 3 + number}


def _split(x, threshold, bits):
    spec = QuantSpec(bits, narrow=True)
    params = params_from_range(-threshold, threshold, spec)
    squares = (x.astype(np.float64) - dequantize(quantize(x, params, spec), params, spec).astype(np.float64)) ** 2
    beyond = np.abs(x) > threshold
    return squares[beyond].sum() / x.size, squares[~beyond].sum() / x.size


def _parts(x, threshold, bits, *, rounding=np.rint, low=None, largest=None, own_means=False, roots=False):
    n = largest(bits) if largest else 2 ** (bits - 1) - 1
    values = x.astype(np.float64)
    step = threshold / n
    q = np.clip(rounding(values / step), -n if low is None else low, n)
    squares = (values - step * q) ** 2
    beyond = np.abs(values) > threshold
    parts = [squares[beyond], squares[~beyond]]
    if own_means:
        return tuple(part.mean() if part.size else 0.0 for part in parts)
    sums = [part.sum() / x.size for part in parts]
    return tuple(np.sqrt(sums)) if roots else tuple(sums)


SPLIT = Task(
    name="m05.q4",
    title="What clipping costs and what rounding costs",
    function="split_error",
    points=5,
    minutes=10,
    source="EE219 lab, section V.E, figure 4; docs/arithmetic.md, eq. 2 and 4",
    kinds=(
        Kind("typical", "bell-shaped values of both signs at 2 to 8 bits", _bell, count=6, public=2),
        Kind("after a ReLU", "values that are never negative, many of them 0", _after_relu, count=3),
        Kind("nothing clipped", "a threshold at the largest magnitude", _unclipped, count=3),
        Kind("negative outliers", "values that only the negative end of the grid clips", _negative_outliers, count=3),
    ),
    oracle=_split,
    judge=Items((Close(1e-3, 1e-7), Close(1e-3, 1e-7))),
    mistakes=(
        Mistake(
            "mean of each part",
            "Each part is divided by its own number of values. Divide both by the number of all values: then they add up to "
            "the mean squared error.",
            lambda x, threshold, bits: _parts(x, threshold, bits, own_means=True),
        ),
        Mistake(
            "full grid",
            "Your grid has 2**(bits - 1) positive integers, one too many. At 8 bits the threshold falls on 127.",
            lambda x, threshold, bits: _parts(x, threshold, bits, largest=lambda b: 2 ** (b - 1)),
        ),
        Mistake(
            "one end only",
            "The negative end is not clipped. The grid is symmetric, from -n to n.",
            lambda x, threshold, bits: _parts(x, threshold, bits, low=-np.inf),
        ),
        Mistake(
            "truncation",
            "You cut the fraction off. To round is to take the nearest integer; cutting off makes the error four times as large.",
            lambda x, threshold, bits: _parts(x, threshold, bits, rounding=np.trunc),
        ),
        Mistake(
            "roots",
            "You took square roots. The parts of a squared error add up; their roots do not.",
            lambda x, threshold, bits: _parts(x, threshold, bits, roots=True),
        ),
    ),
    library="labkit.arithmetic.affine.quantize",
    equivalent=(
        Equivalent(
            "clipped = np.abs(x) > threshold",
            "clipped = np.abs(x) >= threshold",
            "The threshold itself is an integer of the grid, so its error is 0 in either part.",
        ),
    ),
)

# --- m05.q5 -----------------------------------------------------------------------------------------------------------


def _errors(x, bits, shares):
    return [sum(_parts(x, float(np.abs(x).max()) * share, bits)) for share in shares]


def _clear_best(draw, steps, bits):
    while True:
        x = draw()
        if _gap(_errors(x, bits, 1 - np.arange(steps) / 100)) > 2e-3:
            return {"x": x, "bits": bits, "steps": steps}


def _laplace(rng, number):
    shape = [(40,), (4, 9), (2, 4, 5)][number % 3]
    bits, steps = [3, 4, 2][number % 3], [80, 60, 90][number % 3]
    return _clear_best(lambda: rng.laplace(0, 1, shape).astype(np.float32), steps, bits)


def _negative_tail(rng, number):
    def draw():
        x = np.maximum(rng.normal(0, 1, 32), 0).astype(np.float32)
        x[number] = -5
        return x

    return _clear_best(draw, 80, 3 + number % 2)


def _even(rng, number):
    n = 2 ** (1 + number % 2) - 1  # every value is on the grid of the whole range, so that nothing should be clipped

    def draw():
        x = rng.integers(-n, n + 1, 24).astype(np.float32)
        x[0] = n
        return x / 4

    return _clear_best(draw, 50, 2 + number % 2)


def _narrow(rng, number):
    def draw():
        x = rng.normal(0, 1, 30).astype(np.float32)
        x[number] = 40
        return x

    # so many small values and one so large that the best of a few candidates is the first or the last
    return _clear_best(draw, 4 + number, 8)


def _least(x, bits, steps):
    low, high = lp_range_of_values(x, QuantSpec(bits, narrow=True), 2.0, steps)
    return max(-low, high)


def _best_of(x, bits, steps, part=None, largest=None, first=0):
    top = float(np.abs(x).max() if largest is None else largest(x))
    candidates = [top * (1 - k / 100) for k in range(first, first + steps)]
    errors = [
        sum(parts) if part is None else parts[part]
        for parts in (_parts(x, threshold, bits) for threshold in candidates)
    ]
    return candidates[int(np.argmin(errors))]


BEST = Task(
    name="m05.q5",
    title="The threshold of least squared error",
    function="best_threshold",
    points=5,
    minutes=10,
    source="docs/calibration-and-rounding.md, ranges by mse; BRECQ's search (Li et al. 2021)",
    kinds=(
        Kind("typical", "values with long tails on both sides", _laplace, count=6, public=2),
        Kind("negative tail", "values whose one outlier is negative", _negative_tail, count=3),
        Kind("on the grid", "values that the grid of the whole range holds without any error", _even, count=2),
        Kind("few candidates", "an extreme outlier and only a few candidates", _narrow, count=3),
    ),
    oracle=_least,
    judge=Close(1e-5),
    mistakes=(
        Mistake(
            "clipping only",
            "You looked for the least clipping error, which is always 0 for the whole range. Both parts count.",
            lambda x, bits, steps: _best_of(x, bits, steps, part=0),
        ),
        Mistake(
            "rounding only",
            "You looked for the least rounding error, which likes the narrowest range. Both parts count.",
            lambda x, bits, steps: _best_of(x, bits, steps, part=1),
        ),
        Mistake(
            "largest value",
            "You started from the largest value. The whole range goes by the largest magnitude, whatever its sign.",
            lambda x, bits, steps: _best_of(x, bits, steps, largest=np.max),
        ),
        Mistake(
            "starts a step late",
            "The whole range, k = 0, is not among your candidates. Sometimes it is the best one.",
            lambda x, bits, steps: _best_of(x, bits, steps, first=1),
        ),
    ),
    library="labkit.quantization.clipping.lp.lp_range_of_values",
)

# --- m05.q6 -----------------------------------------------------------------------------------------------------------


def _merging(rng, number):
    bins = [12, 10, 17, 20, 9, 11][number % 6]
    return {"counts": _counts(rng, bins, zeros=0.3), "levels": [4, 3, 5, 6, 2, 4][number % 6]}


def _of_the_lab(rng, number):
    return {"counts": np.array([1, 0, 2, 3, 5, 3, 1, 7]), "levels": [2, 4][number % 2]}


def _empty_group(rng, number):
    counts = _counts(rng, 14 + number, zeros=0.2)
    counts[4:8] = 0
    return {"counts": counts, "levels": [7, 3, 5][number % 3]}


def _extreme_levels(rng, number):
    counts = _counts(rng, 7 + number, zeros=0.3)
    return {"counts": counts, "levels": [1, len(counts)][number % 2]}


def _expanded(counts, levels, *, over_all=False, whole=False, rest=True, groups=None):
    size = len(counts) // levels
    pieces = groups(counts) if groups else np.split(counts, size * np.arange(1, levels))
    if not rest:
        pieces = [piece[:size] for piece in pieces] + [np.zeros(len(counts) - size * levels, np.int64)]
    parts = []
    for piece in pieces:
        filled = piece > 0
        number = len(piece) if over_all else max(filled.sum(), 1)
        share = piece.sum() // max(number, 1) if whole else piece.sum() / max(number, 1)
        parts.append(np.full(len(piece), float(share)) if over_all else np.where(filled, share, 0.0))
    return np.concatenate(parts)


MERGE = Task(
    name="m05.q6",
    title="Merge bins into levels, and expand them again",
    function="merge_and_expand",
    points=6,
    minutes=14,
    source="EE219 lab, section V.E (a), figure 5",
    kinds=(
        Kind("the lab's example", "the eight bins of the lab's figure 5", _of_the_lab, count=2, public=2),
        Kind("typical", "histograms whose length need not be a multiple of the levels", _merging, count=6, public=2),
        Kind("empty group", "a group whose bins are all empty", _empty_group, count=3),
        Kind("extremes", "one level, or as many levels as bins", _extreme_levels, count=4),
    ),
    oracle=merge_and_expand,
    judge=Close(1e-6, 1e-9),
    mistakes=(
        Mistake(
            "empty bins filled",
            "Bins that were empty got a share, too. A group's sum is spread over those of its bins that were not empty.",
            lambda counts, levels: _expanded(counts, levels, over_all=True),
        ),
        Mistake(
            "whole shares",
            "Your shares are cut to whole numbers, so that counts get lost. Q need not be whole.",
            lambda counts, levels: _expanded(counts, levels, whole=True),
        ),
        Mistake(
            "remainder lost",
            "The bins left over after the last full group are 0 in your Q. They belong to the last group.",
            lambda counts, levels: _expanded(counts, levels, rest=False),
        ),
        Mistake(
            "remainder shared out",
            "You made some groups one bin longer. Here every group has the same number of bins, and the last takes the rest.",
            lambda counts, levels: _expanded(counts, levels, groups=lambda c: np.array_split(c, levels)),
        ),
    ),
    library=f"{_DIVERGENCE}.merge_and_expand",
)

# --- m05.q7 -----------------------------------------------------------------------------------------------------------


def _pair(rng, number):
    size = 5 + 2 * number
    p = rng.integers(1, 30, size)
    return {"p": p, "q": rng.uniform(0.5, 10, size) if number % 2 else rng.integers(1, 12, size)}


def _holes(rng, number):
    p, q = rng.integers(1, 20, 8), rng.uniform(0.5, 5, 8)
    p[[number, number + 3]] = 0
    q[number] = 0  # both are 0 here; in the other place only P is
    return {"p": p, "q": q}


def _impossible(rng, number):
    p, q = rng.integers(1, 20, 6), rng.uniform(0.5, 5, 6)
    q[number] = 0
    return {"p": p, "q": q}


def _proportional(rng, number):
    p = rng.integers(0, 9, 7)
    p[0] = 3
    return {"p": p, "q": p * (0.5 + number)}


def _kl(p, q, *, normalise=True, log=np.log, epsilon=0.0):
    a, b = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if normalise:
        a, b = a / a.sum(), b / b.sum()
    b = b + epsilon
    both = (a > 0) & (b > 0)
    return float((a[both] * log(a[both] / b[both])).sum())


KL = Task(
    name="m05.q7",
    title="The Kullback-Leibler divergence",
    function="kl_divergence",
    points=5,
    minutes=10,
    source="EE219 lab, section V.E (a)",
    kinds=(
        Kind("typical", "counts without zeros", _pair, count=5, public=2),
        Kind("holes", "places where P is 0, and places where both are 0", _holes, count=4),
        Kind("impossible", "a place where Q is 0 and P is not", _impossible, count=3),
        Kind("proportional", "distributions that are equal once they are normalised", _proportional, count=3),
    ),
    oracle=kl_divergence,
    judge=Close(1e-5, 1e-7),
    mistakes=(
        Mistake(
            "not normalised",
            "These are counts, and a divergence is defined for shares: divide each by its own sum first.",
            lambda p, q: _kl(p, q, normalise=False),
        ),
        Mistake(
            "the other direction",
            "This is KL(Q || P). It is not symmetric: P is the reference and stands in front of the logarithm.",
            lambda p, q: _kl(q, p),
        ),
        Mistake(
            "bits",
            "This is in bits (logarithm of base 2). The natural one is asked for.",
            lambda p, q: _kl(p, q, log=np.log2),
        ),
        Mistake(
            "skips the impossible",
            "You left a place out where Q is 0 and P is not. Q says that such values never occur, and they did: "
            "no finite number is honest there.",
            lambda p, q: _kl(p, q),
        ),
        Mistake(
            "epsilon",
            "You added something small to Q. Some tools do; the contract here says what comes out where Q is 0 and P is not.",
            lambda p, q: _kl(p, q, epsilon=1e-4),
        ),
    ),
    library=f"{_DIVERGENCE}.kl_divergence",
    equivalent=(
        Equivalent(
            "if np.any(q[present] == 0):",
            "if np.any(q[present] == -1):",
            "Without the question the division by 0 gives infinity all the same, with a warning.",
        ),
        Equivalent(
            "if np.any(q[present] == 0):",
            "if np.all(q[present] == 0):",
            "Where only some are 0, the division by 0 gives infinity all the same, with a warning.",
        ),
    ),
    seconds=5.0,  # SciPy's share of it is an import
)

# --- m05.q8 -----------------------------------------------------------------------------------------------------------


def _candidate(rng, number):
    bins = 16 + 3 * number
    counts = _counts(rng, bins)
    end = [9, 12, 10, 14, 13, 8][number % 6]
    counts[end - 1] = 5  # so that the divergence is finite
    return {"counts": counts, "i": end, "levels": [4, 3, 4, 5, 2, 8][number % 6]}


def _no_outliers(rng, number):
    counts = _counts(rng, 14 + number)
    return {"counts": counts, "i": len(counts), "levels": 4 + number}


def _outliers_on_nothing(rng, number):
    counts = _counts(rng, 16)
    end = 8 + 2 * number
    counts[end - 1] = 0
    return {"counts": counts, "i": end, "levels": 4}


def _of_candidate(counts, i, levels):
    borders = np.array([[*(np.arange(levels) * (i // levels)), i]])
    return float(clipped_divergences(counts, borders)[0])


def _candidate_like(counts, i, levels, *, keep_outliers=True, into_q=False, cut=0):
    p = counts[: i + cut].copy()
    q_from = p.copy()
    if keep_outliers:
        p[-1] += counts[i + cut :].sum()
    return kl_divergence(p, merge_and_expand(p if into_q else q_from, levels))


CANDIDATE = Task(
    name="m05.q8",
    title="How much one threshold loses",
    function="candidate_divergence",
    points=5,
    minutes=10,
    source="EE219 lab, section V.E (a), figure 5",
    kinds=(
        Kind("typical", "histograms with outliers beyond the threshold", _candidate, count=6, public=2),
        Kind("no outliers", "a threshold at the end of the histogram", _no_outliers, count=3),
        Kind(
            "outliers into an empty bin",
            "a last bin that was empty before the outliers came",
            _outliers_on_nothing,
            count=3,
        ),
    ),
    oracle=_of_candidate,
    judge=Close(1e-5, 1e-7),
    mistakes=(
        Mistake(
            "outliers in Q",
            "Your Q is made from P with the outliers in it. Q is made from the bins as they were before clipping.",
            lambda counts, i, levels: _candidate_like(counts, i, levels, into_q=True),
        ),
        Mistake(
            "outliers dropped",
            "The values beyond the threshold have vanished from P. Clipping moves them into the last bin that is kept.",
            lambda counts, i, levels: _candidate_like(counts, i, levels, keep_outliers=False),
        ),
        Mistake(
            "one bin more",
            "You kept the bins 0 to i. There are i bins to keep, 0 to i - 1.",
            lambda counts, i, levels: _candidate_like(counts, i, levels, cut=1),
        ),
    ),
    given=(f"{_DIVERGENCE}.merge_and_expand", f"{_DIVERGENCE}.kl_divergence"),
    library="labkit.quantization.clipping.divergence.clipped_divergences",
)

# --- m05.q9 -----------------------------------------------------------------------------------------------------------


def _tail(rng, bins, zeros=0.1):
    """Counts with a long thin tail and a spike at 0, as an activation after a ReLU has them."""
    counts = rng.poisson(40 * np.exp(-np.arange(bins) * 6 / bins) + 1.0)
    counts[rng.random(bins) < zeros] = 0
    counts[0] += rng.integers(100, 300)
    counts[-1] += 1
    return counts.astype(np.int64)


def _clear_search(draw, curve, place=None):
    """Inputs whose best candidate is clearly the best, and the first (0) or the last (-1) one where ``place`` says so."""
    while True:
        inputs = draw()
        found = curve(**inputs)
        asked = place is None or found.best == range(len(found.divergence))[place]
        if asked and np.isfinite(found.divergence).any() and _gap(found.divergence) > 1e-3:
            return inputs


def _slides(counts, width, levels, start):
    return tensorrt_curve(counts, width, levels, start)


def _search(rng, number):
    levels, start = [(8, 8), (4, 10), (6, 16), (8, 12)][number % 4]
    bins = [36, 30, 40, 24][number % 4]
    width = [0.25, 0.1, 0.5][number % 3]
    return _clear_search(
        lambda: {"counts": _tail(rng, bins), "width": width, "levels": levels, "start": start}, _slides
    )


def _first_or_last(rng, number):
    if number % 2:  # almost flat, so that every clipped value hurts: the farthest candidate is the best
        return _clear_search(
            lambda: {"counts": rng.integers(18, 22, 16), "width": 0.5, "levels": 4, "start": 8}, _slides, place=-1
        )

    def pairs():  # equal pairs, which groups of two bins do not change, and hardly anything beyond them
        counts = np.concatenate([np.repeat(rng.integers(50, 200, 4), 2), rng.integers(0, 3, 8)])
        return {"counts": counts, "width": 0.5, "levels": 4, "start": 8}

    return _clear_search(pairs, _slides, place=0)


def _all_refused(rng, number):
    counts = np.zeros(20 + number, np.int64)
    counts[: 3 + number] = rng.integers(5, 50, 3 + number)
    counts[-1] = 4
    return {"counts": counts, "width": 0.25, "levels": 4, "start": 8}


def _search_like(counts, width, levels, start, *, half=0.5, last=False, refuse=True, from_p=False):
    ends = list(range(start, len(counts) + last))
    found = []
    for i in ends:
        value = _candidate_like(counts, i, levels, into_q=from_p)
        found.append(value)
    if not np.isfinite(found).any() and refuse:
        return len(counts) * width
    return (ends[int(np.argmin(found))] + half) * width


SEARCH = Task(
    name="m05.q9",
    title="Search for the KL threshold",
    function="kl_threshold",
    points=5,
    minutes=10,
    source="EE219 lab, section V.E (a), figure 5; Migacz, GTC 2017",
    kinds=(
        Kind("typical", "histograms with a spike at 0 and a long tail", _search, count=6, public=2),
        Kind(
            "at the ends",
            "histograms whose best candidate is the first or the last one",
            _first_or_last,
            count=4,
            public=2,
        ),
        Kind("all refused", "histograms for which every candidate is infinite", _all_refused, count=3),
    ),
    oracle=lambda counts, width, levels, start: tensorrt_curve(counts, width, levels, start).chosen[1],
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "edge of the bin",
            "This is the edge i * width. The slides put the threshold half a bin farther out.",
            lambda counts, width, levels, start: _search_like(counts, width, levels, start, half=0.0),
        ),
        Mistake(
            "whole range tried",
            "You also tried i = B, which is no clipping. The slides' loop ends before it: `for i in range(start, B)`.",
            lambda counts, width, levels, start: _search_like(counts, width, levels, start, last=True, half=0.5),
        ),
        Mistake(
            "first of the infinite",
            "Every candidate was infinite and you took the first. None is acceptable then, so nothing should be clipped.",
            lambda counts, width, levels, start: _search_like(counts, width, levels, start, refuse=False),
        ),
        Mistake(
            "outliers in Q",
            "The outliers are in your Q as well. Then cutting off everything looks harmless, and narrow ranges win.",
            lambda counts, width, levels, start: _search_like(counts, width, levels, start, from_p=True),
        ),
    ),
    given=(f"{_DIVERGENCE}.merge_and_expand", f"{_DIVERGENCE}.kl_divergence"),
    library="labkit.quantization.clipping.kl_tensorrt.tensorrt_curve",
)

# --- m05.c1 -----------------------------------------------------------------------------------------------------------


def _toolkit(counts, width, levels, start):
    return toolkit_curve(counts, width, levels, start)


def _toolkit_search(rng, number):
    levels, start = [(8, 8), (4, 10), (6, 13), (5, 9)][number % 4]
    bins = [34, 29, 38, 25][number % 4]

    def draw():
        counts = _tail(rng, bins, zeros=0.35)
        counts[1:3] = [(90, 4), (3, 60)][number % 2]  # so that it matters which count the first bin is given
        return {"counts": counts, "width": [0.25, 0.1, 0.5][number % 3], "levels": levels, "start": start}

    return _clear_search(draw, _toolkit)


def _unclipped_search(rng, number):
    bins = 20 + number

    def draw():
        return {"counts": rng.integers(18, 22, bins).astype(np.int64), "width": 0.5, "levels": 4, "start": 8}

    return _clear_search(draw, _toolkit, place=-1)


def _toolkit_like(counts, width, levels, start, *, spike=True, last=True, half=0.0, even=True):
    bins = counts.copy()
    if spike:
        bins[0] = bins[1]
    ends = list(range(start, len(bins) + last))
    found = []
    for i in ends:
        borders = (
            -(-np.arange(levels + 1) * i // levels) if even else np.array([*(np.arange(levels) * (i // levels)), i])
        )
        found.append(float(clipped_divergences(bins, borders[None])[0]))
    found = np.array(found)[::-1]
    return (ends[len(ends) - 1 - int(np.argmin(found))] + half) * width


TOOLKIT = Task(
    name="m05.c1",
    title="The search that NVIDIA shipped",
    function="toolkit_threshold",
    points=6,
    minutes=20,
    source="docs/calibration-and-rounding.md; NVIDIA pytorch-quantization, calib/histogram.py",
    kinds=(
        Kind("typical", "histograms with a spike at 0 and a long tail", _toolkit_search, count=8, public=3),
        Kind("no clipping", "histograms for which the whole range is the best candidate", _unclipped_search, count=3),
    ),
    oracle=lambda counts, width, levels, start: toolkit_curve(counts, width, levels, start).chosen[1],
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "spike kept",
            "The spike of zeros is still in the first bin. The toolkit replaces it before anything else.",
            lambda counts, width, levels, start: _toolkit_like(counts, width, levels, start, spike=False),
        ),
        Mistake(
            "no whole range",
            "i = B is missing from your candidates: here the whole range may win.",
            lambda counts, width, levels, start: _toolkit_like(counts, width, levels, start, last=False),
        ),
        Mistake(
            "groups as on the slides",
            "Your last group takes the whole remainder. The toolkit divides the bins evenly.",
            lambda counts, width, levels, start: _toolkit_like(counts, width, levels, start, even=False),
        ),
        Mistake(
            "half a bin",
            "You added half a bin, as the slides do. The toolkit takes the edge.",
            lambda counts, width, levels, start: _toolkit_like(counts, width, levels, start, half=0.5),
        ),
    ),
    given=(f"{_DIVERGENCE}.kl_divergence",),
    library="labkit.quantization.clipping.kl_toolkit.toolkit_curve",
)

# --- questions --------------------------------------------------------------------------------------------------------

ZERO_IN_Q = Question(
    name="m05.e1",
    title="When Q is 0 and P is not",
    text="""
Where Q = 0 and P > 0, one may (a) call the divergence infinite, (b) skip the bin, or (c) replace 0 by something tiny. In which
bin can this happen at all in the loop of the slides? Say what each of the three does to the search.
""",
    points=3,
    rubric=(
        (
            1,
            "Only in the last bin kept, i - 1: it was empty, and the outliers were put there. Elsewhere Q is 0 only where P is.",
        ),
        (
            1,
            "(a) refuses that candidate; (b) the outliers' term is missing from the sum, so that clipping looks free.",
        ),
        (
            1,
            "(c) makes it dear but possible, and the answer then depends on the epsilon (1e-4 in onnxruntime, 1e-30 in PPQ).",
        ),
    ),
    minutes=6,
)

SPIKE = Question(
    name="m05.e2",
    title="Why does the slides' loop clip so much behind a ReLU?",
    text="""
Look at the thresholds of section 6: behind a ReLU the loop of the slides cuts off far more than its relatives do. How does the
spike of zeros in the first bin push its threshold inwards? And why may a tool simply remove that spike before it searches?
""",
    points=4,
    rubric=(
        (
            1,
            "Expanding spreads the sum of the first group evenly over its bins: Q has far too few zeros; that term dominates.",
        ),
        (
            2,
            "A group has i // levels bins, so a narrow range makes the first group small, down to one bin, and the spike exact; "
            "the search accepts any clipping for that. (1 point for either half.)",
        ),
        (
            1,
            "Real 0 is an integer on every grid (eq. 1): zeros have no error whatever the threshold is, and need no say in it.",
        ),
    ),
    minutes=6,
)

MODULE = Module(
    name="m05",
    topic="calibration",
    title="Calibration: how far should the ruler reach?",
    minutes=115,
    source="EE219 lab, sections IV and V.E; HAWQ slides, a closer look at one layer",
    tasks=(EMA, HISTOGRAM, PERCENTILE, SPLIT, BEST, MERGE, KL, CANDIDATE, SEARCH, TOOLKIT),
    questions=(ZERO_IN_Q, SPIKE),
)
