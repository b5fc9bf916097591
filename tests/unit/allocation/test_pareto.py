"""Pareto fronts: monotone, complete on small problems, and never above or below what single answers reach."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from unit.allocation.problems import KINDS, every_answer, problem

from labkit.allocation.exact import solve_exact
from labkit.allocation.pareto import answers_at, exact_front, hull_front
from labkit.errors import QuantizationError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_the_exact_front_holds_every_point_that_none_beats(kind: str, seed: int) -> None:
    given = problem(kind, 4, 3, seed, 1.0, tied=(("l0", "l2"),))
    points = sorted({(cost, value) for value, (cost,), _ in every_answer(given)})
    front: list[tuple[Fraction, Fraction]] = []
    for cost, value in points:
        if (not front or value < front[-1][1]) and float(cost) <= given.budgets[0]:
            front.append((cost, value))
    found = exact_front(given)
    assert len(found) == len(front)
    np.testing.assert_allclose(found.costs, [float(c) for c, _ in front], rtol=1e-12)
    np.testing.assert_allclose(found.values, [float(v) for _, v in front], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_fronts_are_monotone_and_their_points_are_what_they_say(kind: str) -> None:
    given = problem(kind, 8, 4, 3, 0.8)
    for front in (hull_front(given), exact_front(given)):
        assert np.all(np.diff(front.costs) > 0) and np.all(np.diff(front.values) < 0)
        for index in range(0, len(front), max(1, len(front) // 20)):
            columns = [given.bits.index(front.bits(index)[name]) for name in given.layers]
            rows = np.arange(len(columns))
            assert front.values[index] == pytest.approx(given.values[rows, columns].sum(), rel=1e-12, abs=1e-9)
            assert front.costs[index] == pytest.approx(given.costs[0][rows, columns].sum(), rel=1e-12)
    convex = hull_front(given)
    assert np.all(np.diff(np.diff(convex.values) / np.diff(convex.costs)) > -1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_point_within_a_budget_is_the_exact_answer(kind: str) -> None:
    given = problem(kind, 8, 4, 5, 0.9)
    exact, hull = exact_front(given), hull_front(given)
    low, high = exact.costs[0], exact.costs[-1]
    budgets = [low + share * (high - low) for share in (0.01, 0.2, 0.5, 0.77)]
    answers = answers_at(given, budgets)
    for budget, answer in zip(budgets, answers, strict=True):
        assert exact.values[exact.within(budget)] == pytest.approx(answer.value, rel=1e-12, abs=1e-9)
        assert hull.values[hull.within(budget)] >= answer.value - 1e-9
    assert [a.value for a in answers] == sorted((a.value for a in answers), reverse=True)


def test_hull_points_are_best_for_their_own_cost() -> None:
    given = problem("net", 12, 6, 7, 1.0)
    front = hull_front(given)
    for index in range(0, len(front), 9):
        (answer,) = answers_at(given, [float(front.costs[index])])
        assert answer.value == pytest.approx(float(front.values[index]), rel=1e-12)


def test_what_was_taken_off_a_budget_comes_back() -> None:
    given = problem("net", 5, 4, 1, 0.5)
    more = problem("net", 5, 4, 1, 0.5, offsets=(1000.0,))
    np.testing.assert_array_equal(exact_front(more).costs, exact_front(given).costs + 1000)
    assert answers_at(more, [exact_front(more).costs[3]])[0].value == exact_front(given).values[3]


def test_a_front_prints_and_says_what_it_cannot() -> None:
    given = problem("net", 5, 4, 1, 0.5, names=("size",), units=("bytes",))
    front = exact_front(given)
    assert str(front).startswith(f"Pareto front (exact): {len(front)} points of size in bytes and loss\n")
    with pytest.raises(QuantizationError, match="No point of the front costs 1 or less; the cheapest costs"):
        front.within(1.0)
    with pytest.raises(QuantizationError, match=r"more than 10 partial allocations.*answers_at"):
        exact_front(given, most_states=10)
    # Nothing tells partial sums apart where the loss falls by exactly the cost, and no two costs agree.
    hard = problem("signed", 12, 4, 1, 0.5)
    hard = replace(hard, values=-hard.costs[0])
    with pytest.raises(QuantizationError, match=r"more than 50 partial allocations.*method 'ilp'"):
        solve_exact(hard, most_states=50)
    with pytest.raises(QuantizationError, match="knows one budget, got 2"):
        hull_front(problem("net", 5, 4, 1, 0.5, constraints=2))
