"""Every method against the truth: all choices tried on small problems, two exact methods against each other on larger ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.allocation.problems import KINDS, best_by_trying, problem

from labkit.allocation.answer import Allocation
from labkit.allocation.bound import lagrangian, lower_bound
from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.ilp import solve_ilp
from labkit.allocation.problem import Mckp
from labkit.allocation.search import evolutionary_search, random_search
from labkit.errors import QuantizationError

INEXACT: dict[str, Callable[[Mckp], Allocation]] = {
    "greedy-up": solve_greedy,
    "greedy-down": lambda p: solve_greedy(p, "down"),
    "greedy-up without hull": lambda p: solve_greedy(p, "up", hull=False),
    "greedy-down without hull": lambda p: solve_greedy(p, "down", hull=False),
    "random": lambda p: random_search(p, 10),
    "evolutionary": lambda p: evolutionary_search(p, 20, population=5),
}


def check_answer(given: Mckp, found: Allocation) -> None:
    """What must hold of every answer, recomputed from its bits."""
    columns = [given.bits.index(b) for b in found.bits]
    rows = range(len(columns))
    value = sum(Fraction(float(given.values[r, columns[r]])) for r in rows)
    assert found.value == float(value)
    for table, cost, budget in zip(given.costs, found.costs, given.budgets, strict=True):
        spent = sum(Fraction(float(table[r, columns[r]])) for r in rows)
        assert cost == float(spent) <= budget
    assert found.lower_bound <= found.value and found.gap == found.value - found.lower_bound >= 0
    for name, b in given.fixed.items():
        assert found.weights[name] == b
    for group in given.tied:
        assert len({found.weights[name] for name in group}) <= 1


def check_all(given: Mckp, *, ilp: bool) -> None:
    """All methods with one budget against every choice."""
    truth = best_by_trying(given)
    if truth is None:
        for solve in (solve_exact, *INEXACT.values()):
            with pytest.raises(QuantizationError, match="cannot be met: the least possible is"):
                solve(given)
        return
    scale = float(np.abs(given.values).sum()) + 1e-300
    bound = lower_bound(given)
    assert Fraction(bound.value) <= truth
    exact = solve_exact(given)
    check_answer(given, exact)
    assert Fraction(exact.lower_bound) <= truth + Fraction(1e-12 * scale)
    if truth == best_by_trying(given, 1e-12) == best_by_trying(given, -1e-12):
        assert exact.gap == 0 and abs(Fraction(exact.value) - truth) <= Fraction(1e-12 * scale)
    else:  # a budget met to the last digits of costs that have no common measure
        assert float(truth) <= exact.value and exact.gap >= 0
        within = best_by_trying(given, -1e-12)
        assert within is None or exact.value <= float(within) + 1e-12 * scale
    for solve in INEXACT.values():
        found = solve(given)
        check_answer(given, found)
        assert Fraction(found.value) >= truth - Fraction(1e-12 * scale)
        assert Fraction(found.lower_bound) <= truth
    if ilp:
        found = solve_ilp(given)
        check_answer(given, found)
        assert abs(Fraction(found.value) - truth) <= Fraction(1e-8 * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(4))
def test_small_problems_against_every_choice(kind: str, part: int) -> None:
    rng = np.random.default_rng(part)
    for seed in range(40):
        layers, bits = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        share = float(rng.choice([-0.1, 0, 0.2, 0.5, 0.8, 1, 1.3]))
        check_all(problem(kind, layers, bits, 1000 * part + seed, share), ilp=seed % 8 == 0)


def small_problems(constraints: int) -> st.SearchStrategy[Mckp]:
    """Up to four layers and four bit-widths with awkward numbers: zeros, ties, and budgets that are met exactly."""

    @st.composite
    def make(draw: st.DrawFn) -> Mckp:
        layers, bits = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        names = tuple(f"l{i}" for i in range(layers))
        value = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3), st.floats(0, 1e-9))
        cost = draw(
            st.sampled_from([st.integers(0, 9).map(float), st.integers(0, 99).map(lambda c: c / 8), st.floats(0, 10)])
        )
        values = draw(st.lists(value, min_size=layers * bits, max_size=layers * bits))
        costs = draw(st.lists(cost, min_size=constraints * layers * bits, max_size=constraints * layers * bits))
        table = np.reshape(costs, (constraints, layers, bits))
        chosen = draw(st.lists(st.integers(0, bits - 1), min_size=layers, max_size=layers))
        budgets = tuple(float(t[np.arange(layers), chosen].sum()) for t in table)
        fixed = draw(st.dictionaries(st.sampled_from(names), st.integers(1, bits), max_size=1))
        tied = draw(st.lists(st.lists(st.sampled_from(names), max_size=3).map(tuple), max_size=2).map(tuple))
        return Mckp(names, tuple(range(1, bits + 1)), np.reshape(values, (layers, bits)), table, budgets, tied, fixed)

    return make()


@settings(max_examples=100)
@given(small_problems(1))
def test_awkward_problems_against_every_choice(given: Mckp) -> None:
    check_all(given, ilp=False)


@settings(max_examples=30)
@given(small_problems(3))
def test_awkward_problems_with_three_budgets(given: Mckp) -> None:
    check_several(given)


def check_several(given: Mckp) -> None:
    truth = best_by_trying(given)
    if truth is None:
        with pytest.raises(QuantizationError, match="cannot be met"):
            solve_ilp(given)
        return
    scale = float(np.abs(given.values).sum()) + 1e-300
    assert Fraction(lower_bound(given).value) <= truth
    found = solve_ilp(given)
    check_answer(given, found)
    assert abs(Fraction(found.value) - truth) <= Fraction(1e-8 * scale)
    yardsticks = []
    with suppress(QuantizationError):  # they may fail to meet several budgets, and then say so
        yardsticks = [random_search(given, 20), evolutionary_search(given, 40, population=5)]
    for other in yardsticks:
        check_answer(given, other)
        assert other.value >= float(truth)  # a value is rounded once, and rounding keeps the order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constraints", [2, 3])
def test_several_budgets_against_every_choice(kind: str, constraints: int) -> None:
    rng = np.random.default_rng(constraints)
    for seed in range(12):
        layers, bits = int(rng.integers(2, 5)), int(rng.integers(2, 5))
        check_several(problem(kind, layers, bits, seed, float(rng.choice([0.1, 0.3, 0.6])), constraints))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.35, 0.7])
@pytest.mark.parametrize("layers", [20, 60])
def test_exact_equals_ilp_on_larger_problems(kind: str, share: float, layers: int) -> None:
    given = problem(kind, layers, 8, layers, share)
    exact, ilp = solve_exact(given), solve_ilp(given)
    check_answer(given, exact)
    check_answer(given, ilp)
    assert ilp.value == pytest.approx(exact.value, rel=1e-9, abs=1e-9)
    bound = lower_bound(given).value
    up, down = solve_greedy(given), solve_greedy(given, "down")
    assert bound <= exact.value <= up.value <= down.value
    assert random_search(given, 100).value >= exact.value
    assert evolutionary_search(given, 300).value >= exact.value


@pytest.mark.parametrize("kind", KINDS)
def test_tied_and_fixed_layers_on_larger_problems(kind: str) -> None:
    tied = (("l0", "l7", "l3"), ("l11", "l7"), ("l5", "l6"))
    fixed = {"l3": 4, "l19": 8}
    given = problem(kind, 20, 8, 5, 0.6, tied=tied, fixed=fixed)
    exact, ilp, greedy = solve_exact(given), solve_ilp(given), solve_greedy(given)
    for found in (exact, ilp, greedy, random_search(given, 50)):
        check_answer(given, found)
        assert {found.weights[name] for name in ("l0", "l3", "l7", "l11")} == {4}
        assert found.value >= exact.value or found is ilp
    assert ilp.value == pytest.approx(exact.value, rel=1e-9, abs=1e-9)
    free = solve_exact(problem(kind, 20, 8, 5, 0.6))
    assert free.value <= exact.value


@given(st.sampled_from(KINDS), st.integers(0, 99), st.lists(st.floats(0, 1e4), min_size=2, max_size=2))
def test_any_prices_give_a_bound(kind: str, seed: int, prices: list[float]) -> None:
    given = problem(kind, 3, 3, seed, 0.5, constraints=2)
    truth = best_by_trying(given)
    assert truth is None or Fraction(lagrangian(given, prices)) <= truth
    assert truth is None or lagrangian(given, prices) <= lower_bound(given).value + 1e-6 * abs(float(truth))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_that_of_the_linear_relaxation(kind: str) -> None:
    from scipy.optimize import linprog

    given = problem(kind, 12, 5, 3, 0.4)
    flat = given.values.ravel()
    equal = np.kron(np.eye(12), np.ones(5))
    solved = linprog(flat, A_ub=given.costs[0].ravel()[None], b_ub=given.budgets, A_eq=equal, b_eq=np.ones(12))
    assert lower_bound(given).value == pytest.approx(solved.fun, rel=1e-6)
    twice = problem(kind, 12, 5, 3, 0.4, constraints=2)
    solved = linprog(flat, A_ub=twice.costs.reshape(2, -1), b_ub=twice.budgets, A_eq=equal, b_eq=np.ones(12))
    if np.array_equal(twice.values, given.values):
        assert lower_bound(twice).value == pytest.approx(solved.fun, rel=1e-6)


def test_prices_below_zero_are_refused() -> None:
    given = problem("net", 3, 3, 0)
    for wrong in ([-1.0], [1.0, 1.0], []):
        with pytest.raises(QuantizationError, match="one multiplier of 0 or more for each of 1 constraints"):
            lagrangian(given, wrong)
