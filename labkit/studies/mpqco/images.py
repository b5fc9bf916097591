"""Chen et al. 2021, supplement, section 2: how many images the loss perturbation needs, and what they cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.allocate import make_problem
from labkit.allocation.budgets import average_bits
from labkit.allocation.cost_table import CostTable
from labkit.allocation.exact import solve_exact
from labkit.data import load as load_data
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.perturbation import project_changes
from labkit.sensitivity.slopes import Directions
from labkit.sensitivity.table import SensitivityTable
from labkit.studies.mpqco.bench import CANDIDATES, Bench, nets, open_bench
from labkit.studies.mpqco.scores import straightness
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["Pool", "run", "spread_of_means"]

Numbers = NDArray[np.float64]

_COUNTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_RESAMPLES = 10
_NETS = 2  # the third would take as long as the other two together
_COSTLY = ("resnet20", "Gauss-Newton")  # a quarter of the images, to stay within minutes
_BITS = 4  # at which spreads are shown
_AVERAGE = 3.0  # bits, of the allocations
METHODS = {"MPQCO": "labels", "Gauss-Newton": "fisher"}


@dataclass(frozen=True, eq=False)
class Pool:
    """Every image's own loss perturbation.

    net, method : of what.
    terms : float64 [N, L, B].
    counts, seconds : the N images were worked on in runs of so many, which took so much processor time each.
    """

    net: str
    method: str
    terms: Numbers
    counts: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class _Row:
    """What ten draws of so many images give.

    spreads : relative, of the whole network's perturbation, and of the median and the worst layer's.
    same : share of layers with the bits that all images give.
    extra : by how much the loss predicted by all images is above the best: median and worst of the draws, relative.
    """

    count: int
    spreads: tuple[float, float, float]
    same: float
    extra: tuple[float, float]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Measure the perturbation of every one of 4,080 images, and see what fewer of them would have said.

    ``settings`` say how much of it; ``tell`` is called with (net and method, images done, images).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    counts = (8, 16, 32) if settings.smoke else _COUNTS
    pools: list[Pool] = []
    rows: list[list[_Row]] = []
    for net in nets(settings)[:_NETS]:
        bench = open_bench(net, data, sum(counts))
        for method in METHODS:
            some = counts[:-2] if (net, method) == _COSTLY else counts
            pools.append(_pool(bench, method, some, tell))
            rows.append(_rows(pools[-1], bench.cost, some))
    whole = sum(counts)
    return StudyResult(
        (_convergence(pools, rows), _allocations(pools, rows), _times(pools)),
        (*_converged(pools, rows), *_stable(pools, rows), _linear(pools)),
        (_spreads(pools, rows), _timing(pools)),
        (
            f"One pool of {whole:,} training images with labels for each network (a quarter of it for the Gauss-Newton form of "
            f"ResNet-20), worked on in runs of {counts[0]} to "
            f"{counts[-1]:,} images, each of them timed (processor time of one thread: the projection for all layers and eight "
            f"bit-widths). Each number of images is drawn {_RESAMPLES} times from the pool, without replacement; the spread is "
            "the standard deviation of the draws over the mean of the pool, divided by the root of 1 - N / pool, because larger "
            "draws share images.",
            f"A spread of {_RESAMPLES} draws is itself known to a quarter only. Perturbations at {_BITS} bits. 'Whole network' "
            "is the sum over layers. The supplement gives no number for 'converges rapidly' (its figure is in the main paper); "
            "the line drawn here is a spread of 10 % at 512 images.",
            f"The allocations are exact ones at {_AVERAGE:g} bits on average, from 1 to 8 bits. Their extra loss is what the "
            "whole pool's table predicts, above the best by that table.",
            "MPQCO's perturbation of an image is the square of one number, with the image's own label: the few images that the "
            "network gets wrong carry most of it. The Gauss-Newton form takes the expectation over the labels for ten times "
            "the backward passes.",
            CANDIDATES,
        ),
    )


def spread_of_means(terms: Numbers, count: int, draws: int = _RESAMPLES, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Means of ``draws`` choices of ``count`` images, and their relative spread.

    Parameters
    ----------
    terms : float64 [N, ...], a value for each image of the pool
    count : images of a choice, less than N
    draws : choices, each without replacement
    seed : of them

    Returns
    -------
    the means, float64 [draws, ...], and their standard deviation over the mean of all, float64 [...], corrected for a pool
    that is not endless: its root of 1 - count / N is divided out
    """
    generator = np.random.default_rng((seed, count))
    chosen = (generator.choice(len(terms), count, replace=False) for _ in range(draws))
    means = np.stack([terms[rows].mean(0) for rows in chosen])
    finite = np.sqrt(1 - count / len(terms))
    return means, means.std(0, ddof=1) / finite / np.abs(terms.mean(0))


def _pool(bench: Bench, method: str, counts: tuple[int, ...], tell: Tell) -> Pool:
    whole, wanted = bench.objective, Directions(METHODS[method])
    parts, seconds, start = [], [], 0
    project_changes(_part(whole, 0, counts[0]), bench.candidates, wanted)  # torch's first run is slower
    for count in counts:
        began = time.process_time()
        part = project_changes(_part(whole, start, count), bench.candidates, wanted)
        seconds.append(time.process_time() - began)
        parts.append(np.stack(list(part.terms().values()), 1))
        start += count
        tell(f"{bench.net}, {method}", start, sum(counts))
    return Pool(bench.net, method, np.concatenate(parts), counts, tuple(seconds))


def _part(objective: Objective, start: int, count: int) -> Objective:
    where = slice(start, start + count)
    return replace(
        objective,
        images=objective.images[where],
        targets=objective.targets[where],
        outputs=objective.outputs[where],
    )


def _rows(pool: Pool, cost: CostTable, counts: tuple[int, ...]) -> list[_Row]:
    best = _bits(pool.terms.mean(0), cost)
    truth = pool.terms.mean(0)
    layers = np.arange(truth.shape[0])
    least = truth[layers, best - 1].sum()
    rows = []
    for count in counts:
        _, spread = spread_of_means(pool.terms[:, :, _BITS - 1], count)
        _, total = spread_of_means(pool.terms[:, :, _BITS - 1].sum(1), count)
        tables, _ = spread_of_means(pool.terms, count)
        chosen = np.stack([_bits(table, cost) for table in tables])
        extra = truth[layers, chosen - 1].sum(1) / least - 1
        rows.append(
            _Row(
                count,
                (float(total), float(np.median(spread)), float(spread.max())),
                float((chosen == best).mean()),
                (float(np.median(extra)), float(extra.max())),
            )
        )
    return rows


def _bits(values: Numbers, cost: CostTable) -> NDArray[np.int64]:
    """The best bits of each layer, int64 [L], by the perturbations ``values`` [L, B]."""
    table = SensitivityTable(cost.layers, cost.bits, values, np.zeros_like(values), "mean", "nats an image")
    return np.array(solve_exact(make_problem(table, cost, average_bits(_AVERAGE))).bits)


def _convergence(pools: list[Pool], rows: list[list[_Row]]) -> Table:
    cells: list[tuple[str | int, ...]] = []
    for at, count in enumerate(row.count for row in rows[0]):
        spreads = ("" if at >= len(f) else " / ".join(f"{100 * s:.1f}" for s in f[at].spreads) for f in rows)
        cells.append((count, *spreads))
    return Table(
        "Spread of the loss perturbation, per cent: whole network / median layer / worst layer",
        ("images", *(f"{pool.net}, {pool.method}" for pool in pools)),
        tuple(cells),
    )


def _allocations(pools: list[Pool], rows: list[list[_Row]]) -> Table:
    cells: list[tuple[str | int, ...]] = []
    for at, count in enumerate(row.count for row in rows[0]):
        texts = (
            "" if at >= len(f) else f"{100 * f[at].same:.0f} / {100 * f[at].extra[0]:.1f} / {100 * f[at].extra[1]:.1f}"
            for f in rows
        )
        cells.append((count, *texts))
    return Table(
        "Exact allocations: layers with the bits that all images give, % / extra predicted loss, median and worst draw, %",
        ("images", *(f"{pool.net}, {pool.method}" for pool in pools)),
        tuple(cells),
    )


def _times(pools: list[Pool]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for pool in pools:
        slope, fixed = np.polyfit(pool.counts, pool.seconds, 1)
        fit = straightness(np.array(pool.counts, float), np.array(pool.seconds))
        rows.append(
            (
                f"{pool.net}, {pool.method}",
                pool.counts[-1],
                f"{pool.seconds[-1]:.1f}",
                f"{1000 * slope:.2f}",
                f"{fixed:+.2f}",
                f"{fit:.4f}",
            )
        )
    columns = (
        "network, method",
        "images",
        "time for them, s",
        "an image, ms",
        "fixed, s",
        "R² of a straight line",
    )
    return Table("Processor time", columns, tuple(rows))


def _converged(pools: list[Pool], rows: list[list[_Row]]) -> list[Finding]:
    found = []
    for method in METHODS:
        some = [(pool, row[_few(row)]) for pool, row in zip(pools, rows, strict=True) if pool.method == method]
        good = [row.spreads[0] < 0.1 for _, row in some]
        layers = [row.spreads[1] < 0.1 for _, row in some]
        claim = "The loss perturbation converges rapidly, a few hundred images are enough"
        found.append(
            Finding(
                f"{claim} ({method}; spread below 10 % at {some[0][1].count})",
                "; ".join(
                    f"{pool.net} {100 * row.spreads[0]:.1f} % (median layer {100 * row.spreads[1]:.0f} %, worst "
                    f"{100 * row.spreads[2]:.0f} %)"
                    for pool, row in some
                ),
                "yes" if all(good) and all(layers) else "partly" if any(good) or any(layers) else "no",
            )
        )
    return found


def _few(rows: list[_Row]) -> int:
    """The place of 512 images, or of the most below."""
    return max(at for at, row in enumerate(rows) if row.count <= 512)


def _stable(pools: list[Pool], rows: list[list[_Row]]) -> list[Finding]:
    found = []
    for method in METHODS:
        some = [(pool, row[_few(row)]) for pool, row in zip(pools, rows, strict=True) if pool.method == method]
        cheap = [row.extra[1] < 0.05 for _, row in some]
        same = [row.same > 0.9 for _, row in some]
        found.append(
            Finding(
                f"So few are enough for the allocation ({method}, {some[0][1].count} images: worst of {_RESAMPLES} draws "
                "less than 5 % above the best)",
                "; ".join(
                    f"{pool.net} worst {100 * row.extra[1]:.1f} %, median {100 * row.extra[0]:.1f} %, "
                    f"{100 * row.same:.0f} % of layers with the same bits"
                    for pool, row in some
                ),
                "yes" if all(cheap) and all(same) else "partly" if any(cheap) else "no",
            )
        )
    return found


def _linear(pools: list[Pool]) -> Finding:
    fits = [straightness(np.array(pool.counts, float), np.array(pool.seconds)) for pool in pools]
    return Finding(
        "The cost is O(N T): linear in the number N of images (R² above 0.98)",
        "R² " + ", ".join(f"{fit:.4f} ({pool.net}, {pool.method})" for fit, pool in zip(fits, pools, strict=True)),
        "yes" if min(fits) > 0.98 else "partly" if max(fits) > 0.98 else "no",
    )


def _spreads(pools: list[Pool], rows: list[list[_Row]]) -> Figure:
    series = tuple(
        Series(
            f"{pool.net}, {pool.method}",
            tuple(float(row.count) for row in found),
            tuple(100 * row.spreads[0] for row in found),
        )
        for pool, found in zip(pools, rows, strict=True)
    )
    title = f"Spread of the loss perturbation at {_BITS} bits, whole network"
    return Figure(
        "spread",
        title,
        "line",
        "images",
        "standard deviation of the draws, %",
        series,
        {"512 images": 512.0},
        True,
        True,
    )


def _timing(pools: list[Pool]) -> Figure:
    series = tuple(
        Series(f"{pool.net}, {pool.method}", tuple(float(count) for count in pool.counts), pool.seconds)
        for pool in pools
    )
    return Figure("time", "Processor time of the loss perturbation", "line", "images", "time, s", series)
