"""Nagel et al. 2020, section 2: two weights that interact, and how often rounding to nearest is then not the best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.weight_rounding.qubo import Qubo
from labkit.quantization.weight_rounding.qubo_solvers import solve_exactly
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["area_not_nearest", "rounding_qubo", "run"]

Rows = NDArray[np.float64]

_SHOWN = 0.5  # off-diagonal entry of the example
_ENTRIES = (-0.9, -0.7, -0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
_SIZES = (1, 2, 3, 4, 6, 8, 10, 12)
_COUPLINGS = (0.1, 0.3, 0.5)
_MAPS = (-0.5, 0.0, 0.5)
_EXAMPLE = (0.42, 0.45)
_WORDS = {(0, 0): "both down", (0, 1): "first down, second up", (1, 0): "first up, second down", (1, 1): "both up"}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Try all roundings of weights between two levels under Hessians with off-diagonal entries.

    ``settings`` say how fine; ``tell`` is called with (step, done, total). No images are needed.
    """
    side, draws = (8, 4) if settings.smoke else (40, 1500)
    total = len(_ENTRIES) + len(_SIZES)
    places = (np.arange(side) + 0.5) / side
    tables = [_example()]
    rows: list[tuple[str, float, float, float, str]] = []
    measured: list[float] = []
    opposite = same = 0
    for done, entry in enumerate(_ENTRIES):
        best = _answers(entry, places)
        better = (best != _nearest(places)).any(-1)
        share = float(better.mean())
        changes = _changes(best, places)[better]
        products = changes.prod(-1)
        won = np.sign(products) == -np.sign(entry)
        if entry > 0:
            opposite, same = opposite + int(won.sum()), same + int((~won).sum())
        gain = 100 * _gain(entry, best, places)
        rows.append((f"{entry:+.1f}", 100 * share, 100 * area_not_nearest(entry), gain, _won(won)))
        measured.append(100 * share)
        tell("two weights", done + 1, total)
    tables.append(
        Table(
            f"Two weights anywhere between their levels, {side} x {side} places, Hessian [[1, c], [c, 1]]",
            (
                "c",
                "nearest is not the best, %",
                "by formula |c| / (2 + 2 |c|), %",
                "mean cost that the best saves, %",
                "sign of the product of the best perturbations there",
            ),
            tuple(rows),
        )
    )
    many = {c: _many(c, draws, settings.seeds) for c in _COUPLINGS}
    for done in range(len(_SIZES)):
        tell("two weights", len(_ENTRIES) + done + 1, total)
    tables.append(_many_table(many, draws))
    shown = measured[_ENTRIES.index(_SHOWN)]
    worst = max(abs(row[1] - row[2]) for row in rows)
    diagonal = rows[_ENTRIES.index(0.0)][1]
    return StudyResult(
        tuple(tables),
        (
            Finding(
                "With the diagonal entries alone, rounding to nearest is optimal",
                f"c = 0: nearest is not the best at {diagonal:.2f} % of the places",
                "yes" if diagonal == 0 else "no",
            ),
            Finding(
                "With positive off-diagonal entries, perturbations of opposite signs are better",
                f"where nearest is not the best, the best perturbations have opposite signs at {opposite} of "
                f"{opposite + same} places",
                "yes" if opposite and not same else "partly" if opposite > same else "no",
            ),
            Finding(
                "Rounding to nearest is often sub-optimal because it ignores the off-diagonal contributions",
                f"c = {_SHOWN}: at {shown:.1f} % of the places of two weights; for {_SIZES[-1]} weights that all interact by "
                f"{_SHOWN}, in {100 * many[_SHOWN][-1][0]:.0f} % of draws",
                "yes" if shown > 10 else "partly" if shown > 0 else "no",
            ),
            Finding(
                "The region is where the formula says (ours, not the paper's)",
                f"largest difference {worst:.2f} percentage points, on a grid of {side} x {side} places",
                "yes" if worst < 200 / side else "no",
            ),
        ),
        (_map(8 if settings.smoke else 24), _shares(measured), _many_figure(many)),
        (
            "The paper's matrix is not legible in the text at hand; any with equal positive off-diagonal entries makes its "
            "point. Here both diagonal entries are 1, weights are in steps of the grid, and the cost is d H d / 2.",
            "A weight at f between two levels is moved by -f or 1 - f. With both below 1/2 nearest moves both down. Lifting the "
            "first instead changes the cost by (1 - 2 f1) / 2 - c f2, which is negative for f1 > 1/2 - c f2: hence the formula, "
            "the area of two such triangles less their overlap, in two of the four quadrants.",
            "Many weights: uniform draws, all pairs with the same off-diagonal entry, all 2^n roundings tried.",
        ),
    )


def rounding_qubo(fractions: Rows, hessian: Rows) -> Qubo:
    """The cost ``d H d / 2`` over up (1) and down (0) of weights that lie at ``fractions`` above their lower levels.

    Parameters
    ----------
    fractions : float64 [n] in 0..1, in steps of the grid; down moves a weight by -f, up by 1 - f
    hessian : float64 [n, n], symmetric
    """
    pull = hessian @ -fractions
    return Qubo(hessian / 2, pull, float(-fractions @ pull / 2))


def area_not_nearest(entry: float) -> float:
    """The share of places in the unit square where nearest is not best for two weights and H = [[1, c], [c, 1]].

    ``|c| / (2 (1 + |c|))`` with c the off-diagonal ``entry`` in -1..1: in two of the four quadrants, of area 1/4, two triangles
    of area |c| / 8 that overlap in c^2 / (4 (1 + |c|)).
    """
    return abs(entry) / (2 * (1 + abs(entry)))


def _hessian(size: int, entry: float) -> Rows:
    return np.full((size, size), entry) + (1 - entry) * np.eye(size)


def _answers(entry: float, places: Rows) -> NDArray[np.bool_]:
    """The best rounding of two weights at every pair of places: bool [m, m, 2]."""
    hessian = _hessian(2, entry)
    return np.array([[solve_exactly(rounding_qubo(np.array([a, b]), hessian)) for b in places] for a in places])


def _nearest(places: Rows) -> NDArray[np.bool_]:
    up = places > 0.5
    return np.stack(np.meshgrid(up, up, indexing="ij"), -1)


def _changes(ups: NDArray[np.bool_], places: Rows) -> Rows:
    return np.asarray(ups - np.stack(np.meshgrid(places, places, indexing="ij"), -1), np.float64)


def _gain(entry: float, best: NDArray[np.bool_], places: Rows) -> float:
    """By how much the best rounding lowers the mean cost over all places, as a share of nearest's."""
    hessian = _hessian(2, entry)

    def cost(ups: NDArray[np.bool_]) -> float:
        moved = _changes(ups, places)
        return float(np.einsum("abi,ij,abj->", moved, hessian, moved))

    return 1 - cost(best) / cost(_nearest(places))


def _won(won: NDArray[np.bool_]) -> str:
    if not len(won):
        return ""
    return f"opposite to c's at {won.sum()} of {len(won)}"


def _example() -> Table:
    """All four roundings of one pair of weights."""
    qubo = rounding_qubo(np.array(_EXAMPLE), _hessian(2, _SHOWN))
    diagonal = rounding_qubo(np.array(_EXAMPLE), np.eye(2))
    best = tuple(int(bit) for bit in solve_exactly(qubo))
    rows = []
    for bits, words in _WORDS.items():
        moved = np.array(bits) - np.array(_EXAMPLE)
        note = "nearest" if bits == (0, 0) else "the best" if bits == best else ""
        costs = (float(one.energy(np.array(bits))) for one in (diagonal, qubo))
        rows.append((words, f"{moved[0]:+.2f}", f"{moved[1]:+.2f}", *(f"{cost:.4f}" for cost in costs), note))
    first, second = _EXAMPLE
    return Table(
        f"Weights at {first} and {second} steps above their lower levels, c = {_SHOWN}",
        ("rounding", "first moves by", "second moves by", "cost of the diagonal", "cost with c", ""),
        tuple(rows),
    )


def _many(entry: float, draws: int, seeds: int) -> list[tuple[float, list[float]]]:
    """For each of the sizes: the share of draws whose best rounding is not nearest, and that share by seed."""
    found = []
    for size in _SIZES:
        hessian, shares = _hessian(size, entry), []
        for seed in range(seeds):
            generator = np.random.default_rng((seed, size))
            places = generator.random((draws, size))
            missed = [bool(np.any(solve_exactly(rounding_qubo(f, hessian)) != (f > 0.5))) for f in places]
            shares.append(float(np.mean(missed)))
        found.append((float(np.mean(shares)), shares))
    return found


def _many_table(many: dict[float, list[tuple[float, list[float]]]], draws: int) -> Table:
    rows: list[tuple[int | str, ...]] = [
        (size, *(mean_and_spread([100 * share for share in many[c][place][1]], 1) for c in _COUPLINGS))
        for place, size in enumerate(_SIZES)
    ]
    return Table(
        f"More weights, all pairs of which interact; {draws} draws a seed",
        ("weights", *(f"c = {c}: nearest is not the best, %" for c in _COUPLINGS)),
        tuple(rows),
    )


def _map(side: int) -> Figure:
    places = (np.arange(side) + 0.5) / side
    nearest, panels = _nearest(places), []
    for entry in _MAPS:
        best = _answers(entry, places)
        groups = {words: (best == np.array(bits)).all(-1) for bits, words in _WORDS.items()}
        groups["nearest is another"] = (best != nearest).any(-1)
        series = []
        for words, chosen in groups.items():
            a, b = np.nonzero(chosen)
            series.append(Series(words, tuple(places[a].tolist()), tuple(places[b].tolist())))
        panels.append(
            Figure(
                f"c{entry}", f"c = {entry:g}", "scatter", "first weight, steps", "second weight, steps", tuple(series)
            )
        )
    title = "The best rounding by how far both weights lie above their lower levels"
    return Figure("regions", title, "scatter", "", "", (), panels=tuple(panels))


def _shares(measured: list[float]) -> Figure:
    formula = tuple(100 * area_not_nearest(entry) for entry in _ENTRIES)
    return Figure(
        "shares",
        "How often rounding to nearest is not the best for two weights",
        "line",
        "off-diagonal entry c of the Hessian",
        "share of places, %",
        (Series("all four roundings tried", _ENTRIES, tuple(measured)), Series("|c| / (2 + 2 |c|)", _ENTRIES, formula)),
    )


def _many_figure(many: dict[float, list[tuple[float, list[float]]]]) -> Figure:
    sizes = tuple(float(size) for size in _SIZES)
    return Figure(
        "many-weights",
        "How often rounding to nearest is not the best for many weights",
        "line",
        "weights, all pairs of which interact by c",
        "share of draws, %",
        tuple(Series(f"c = {c}", sizes, tuple(100 * share for share, _ in many[c])) for c in _COUPLINGS),
    )
