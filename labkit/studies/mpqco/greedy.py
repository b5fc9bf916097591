"""Chen et al. 2021, supplement, section 2: the greedy search for the knapsack problem, against the best answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.allocate import make_problem
from labkit.allocation.budgets import average_bits
from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.problem import Mckp
from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.sensitivity.perturbation import project_changes
from labkit.sensitivity.slopes import Directions
from labkit.studies.mpqco.bench import CANDIDATES, nets, open_bench
from labkit.studies.mpqco.instances import ADVERSARIES, made_up_network, search_greedy, with_average
from labkit.studies.mpqco.scores import power
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["Race", "run"]

Numbers = NDArray[np.float64]

_IMAGES = 256
_BUDGETS = tuple(2 + step / 4 for step in range(17))  # average bits, 2 to 6
_METHODS = {"MPQCO": "labels", "Gauss-Newton": "fisher"}
GREEDIES = {"up": ("up", True), "down": ("down", True), "up, without the hull": ("up", False)}
_LAYERS = (20, 50, 100, 200, 500, 1000, 2000)
_SEARCH = "the supplement's search"
_MOST = {_SEARCH: 500, "exact": 1000}  # layers; the first takes seconds beyond
_DRAWS = 5
_ENOUGH = 1.0  # per cent above the best


@dataclass(frozen=True, eq=False)
class Race:
    """One table of loss perturbations, at many budgets.

    name : network and method.
    layers : how many.
    best, bound : float64 [budgets], the exact answer's loss and the relaxation's.
    found : float64 [budgets] by greedy.
    steps : the most that each greedy made.
    """

    name: str
    layers: int
    best: Numbers
    bound: Numbers
    found: dict[str, Numbers]
    steps: dict[str, int]

    def excess(self, way: str) -> Numbers:
        """Loss above the best, per cent of it, float64 [budgets], of the greedy ``way``."""
        return np.asarray(100 * (self.found[way] / self.best - 1))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Solve the allocation of real and made-up networks exactly and greedily, count steps and take the time.

    ``settings`` say how much of it; ``tell`` is called with (what, done, all).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    budgets = _BUDGETS[::8] if settings.smoke else _BUDGETS
    races = []
    for net in nets(settings):
        races += _races(net, data, 16 if settings.smoke else _IMAGES, budgets, tell)
    layers = _LAYERS[:2] if settings.smoke else _LAYERS
    synthetic, times, looks = _synthetic(layers, 1 if settings.smoke else _DRAWS, tell)
    return StudyResult(
        (_quality(races), _by_size(layers, synthetic), _adversaries(), _durations(layers, times, looks)),
        (*_near(races, budgets), _counted(races), *_grows(layers, times, looks)),
        (_fronts(races, budgets), _excesses(races, budgets), _clock(layers, times)),
        (
            f"Tables from {_IMAGES} training images; budgets of 2 to 6 bits on average in quarters, bits 1 to 8. The budget is "
            "the size of the weights. The exact answer is proven best; the bound is that of the linear relaxation.",
            "The supplement gives neither the direction of Algorithm 1 nor its priority. Here: the best rate of loss for bytes, "
            "upwards and downwards, along each layer's lower convex hull; and upwards from bit-width to bit-width.",
            "LeNet is where the greedy does worst because one layer has 93 % of its weights: when that layer's next bit does not "
            "fit, all that is left of the budget goes to layers that hardly need it. With more layers such failures average out.",
            "Made-up networks: layers of 400 to 400,000 weights, a loss that falls by about four a bit, 3 bits on average. "
            f"Processor time, the median of {_DRAWS} problems each. 'The supplement's search' looks through all layers in every "
            "step, as its O(|B| L²) has it; the other greedies sort, or keep a heap.",
            CANDIDATES,
        ),
    )


def _races(net: str, data: DataSet, images: int, budgets: tuple[float, ...], tell: Tell) -> list[Race]:
    bench, found = open_bench(net, data, images), []
    for method, kind in _METHODS.items():
        table = project_changes(bench.objective, bench.candidates, Directions(kind)).table(method)
        found.append(_race(f"{net}, {method}", make_problem(table, bench.cost, average_bits(budgets[0])), budgets))
        tell(net, len(found), len(_METHODS))
    return found


def _race(name: str, first: Mckp, budgets: tuple[float, ...]) -> Race:
    problems = [with_average(first, average) for average in budgets]
    exact = [solve_exact(problem) for problem in problems]
    found, steps = {}, {}
    bound = np.array([answer.notes["relaxation"] for answer in exact])
    for way, (direction, hull) in GREEDIES.items():
        answers = [solve_greedy(problem, direction, hull=hull) for problem in problems]
        found[way] = np.array([answer.value for answer in answers])
        steps[way] = max(int(answer.notes["steps"]) for answer in answers)
    return Race(name, len(first.layers), np.array([answer.value for answer in exact]), bound, found, steps)


def _synthetic(
    layers: tuple[int, ...], draws: int, tell: Tell
) -> tuple[dict[int, Numbers], dict[str, list[float]], list[float]]:
    """Excess of the greedies by number of layers, float64 [draws, 3]; median seconds by method; layers looked at."""
    excess: dict[int, Numbers] = {}
    names = ("sorted, up", "sorted, down", "heap, without the hull", _SEARCH, "exact")
    times: dict[str, list[float]] = {name: [] for name in names}
    looks: list[float] = []
    solve_exact(made_up_network(5, 0))  # the first one loads things
    for at, count in enumerate(layers):
        seconds: dict[str, list[float]] = {name: [] for name in names}
        rows, seen = [], []
        for seed in range(draws):
            problem, values, best = made_up_network(count, seed), [], None
            for name, (direction, hull) in zip(names, GREEDIES.values(), strict=False):
                start = time.process_time()
                values.append(solve_greedy(problem, direction, hull=hull).value)
                seconds[name].append(time.process_time() - start)
            if count <= _MOST[_SEARCH]:
                start = time.process_time()
                seen.append(search_greedy(problem)[2])
                seconds[_SEARCH].append(time.process_time() - start)
            if count <= _MOST["exact"]:
                start = time.process_time()
                best = solve_exact(problem).value
                seconds["exact"].append(time.process_time() - start)
                rows.append([100 * (value / best - 1) for value in values])
        if rows:
            excess[count] = np.array(rows)
        if seen:
            looks.append(float(np.median(seen)))
        for name, found in seconds.items():
            if found:
                times[name].append(max(float(np.median(found)), 1e-6))
        tell("made-up networks", at + 1, len(layers))
    return excess, times, looks


def _quality(races: list[Race]) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for race in races:
        cells = []
        for way in GREEDIES:
            excess = race.excess(way)
            within = int((excess <= _ENOUGH).sum())
            cells.append(f"{np.median(excess):.2f} / {excess.max():.2f} / {within} of {len(excess)}")
        gap = 100 * (1 - race.bound / race.best)
        rows.append((race.name, race.layers, *cells, f"{np.median(gap):.2f} / {gap.max():.2f}"))
    columns = (
        "network, table",
        "layers",
        *(f"greedy {way}" for way in GREEDIES),
        "bound below the best: median / worst, %",
    )
    title = f"Loss above the best: median / worst, %, and budgets within {_ENOUGH:g} %"
    return Table(title, columns, tuple(rows))


def _by_size(layers: tuple[int, ...], excess: dict[int, Numbers]) -> Table:
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (count, *(f"{np.median(column):.2f} / {column.max():.2f}" for column in excess[count].T))
        for count in layers
        if count in excess
    )
    return Table(
        "Made-up networks: loss above the best, median / worst, %", ("layers", *(f"greedy {w}" for w in GREEDIES)), rows
    )


def _adversaries() -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for name, problem in ADVERSARIES.items():
        found = (solve_greedy(problem, direction, hull=hull).value for direction, hull in GREEDIES.values())
        rows.append((name, solve_exact(problem).value, *found))
    columns = ("instance", "best loss", *(f"greedy {way}" for way in GREEDIES))
    return Table("Instances made to fail", columns, tuple(rows))


def _durations(layers: tuple[int, ...], times: dict[str, list[float]], looks: list[float]) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for name, found in times.items():
        some = layers[: len(found)]
        rows.append((name, some[-1], f"{1000 * found[-1]:.1f}", f"{_slope(layers, found):.2f}"))
    rows.append(
        ("layers looked at by the supplement's search", layers[len(looks) - 1], None, f"{_slope(layers, looks):.2f}")
    )
    columns = ("method", "most layers", "time for them, ms", "time grows as layers to the power")
    return Table("Time against the number of layers", columns, tuple(rows))


def _slope(layers: tuple[int, ...], found: list[float]) -> float:
    """The exponent over the larger half of the sizes, where what does not grow no longer counts."""
    first = min(len(found) // 2, len(found) - 2)
    return power(np.array(layers[first : len(found)], float), np.array(found[first:]))


def _near(races: list[Race], budgets: tuple[float, ...]) -> list[Finding]:
    found = []
    for way in GREEDIES:
        worst = max(races, key=lambda race: float(race.excess(way).max()))
        excess = np.concatenate([race.excess(way) for race in races])
        share = float((excess <= _ENOUGH).mean())
        at = int(worst.excess(way).argmax())
        found.append(
            Finding(
                f"The greedy ({way if 'hull' in way else way + ', on the hull'}) solves the allocation: on real tables at most "
                f"{_ENOUGH:g} % above the best",
                f"within {_ENOUGH:g} % in {100 * share:.0f} % of {len(excess)} cases, median {np.median(excess):.2f} %; worst "
                f"{excess.max():.1f} %: {worst.name}, at {budgets[at]:g} bits",
                "yes" if share == 1 else "partly" if np.median(excess) <= _ENOUGH else "no",
            )
        )
    return found


def _counted(races: list[Race]) -> Finding:
    most = [(max(race.steps.values()), 8 * race.layers) for race in races]
    return Finding(
        "At most |B| L steps are made",
        "; ".join(f"{steps} of {limit}" for steps, limit in dict.fromkeys(most)),
        "yes" if all(steps <= limit for steps, limit in most) else "no",
    )


def _grows(layers: tuple[int, ...], times: dict[str, list[float]], looks: list[float]) -> list[Finding]:
    searched, counted = _slope(layers, times[_SEARCH]), _slope(layers, looks)
    quick, exact = _slope(layers, times["sorted, up"]), _slope(layers, times["exact"])
    last = times["exact"][-1]
    return [
        Finding(
            "Searching the best of L layers in every step costs O(|B| L²)",
            f"layers looked at grow as L to the power {counted:.2f}, time to the power {searched:.2f}",
            "yes" if abs(counted - 2) < 0.15 else "no",
        ),
        Finding(
            "Beyond the supplement: sorted steps need no search, and the best answer is no dearer than the search",
            f"sorted, up: L to the power {quick:.2f}; exact: to the power {exact:.2f}, {1000 * last:.0f} ms for "
            f"{layers[len(times['exact']) - 1]} layers, against {1000 * times[_SEARCH][-1]:.0f} ms of the search for "
            f"{layers[len(times[_SEARCH]) - 1]}",
            "yes" if quick < 1.5 and exact < 2 else "partly" if quick < 1.5 else "no",
        ),
    ]


def _fronts(races: list[Race], budgets: tuple[float, ...]) -> Figure:
    panels = []
    for race in races:
        if not race.name.endswith("Gauss-Newton"):
            continue
        curves = {
            "bound": race.bound,
            "exact": race.best,
            "greedy up": race.found["up"],
            "greedy down": race.found["down"],
        }
        series = tuple(Series(label, budgets, tuple(values.tolist())) for label, values in curves.items())
        panels.append(
            Figure("panel", race.name, "line", "average bits of a weight", "predicted loss, nats", series, log_y=True)
        )
    return Figure("fronts", "Predicted loss against size", "line", "", "", (), panels=tuple(panels))


def _excesses(races: list[Race], budgets: tuple[float, ...]) -> Figure:
    panels = []
    for net in dict.fromkeys(race.name.split(", ")[0] for race in races):
        series = []
        for race in races:
            network, table = race.name.split(", ")
            if network == net:
                series += [
                    Series(f"{table}, {way}", budgets, tuple(race.excess(way).tolist())) for way in ("up", "down")
                ]
        panels.append(Figure("panel", net, "line", "average bits of a weight", "above the best, %", tuple(series)))
    return Figure("excess", "The greedy's loss above the best", "line", "", "", (), panels=tuple(panels))


def _clock(layers: tuple[int, ...], times: dict[str, list[float]]) -> Figure:
    series = tuple(
        Series(name, tuple(map(float, layers[: len(found)])), tuple(1000 * s for s in found))
        for name, found in times.items()
    )
    return Figure("time", "Time of the search", "line", "layers", "time, ms", series, log_x=True, log_y=True)
