"""The knapsack problem and its answers: what they refuse, what tied and fixed layers become, whole costs, hulls, JSON."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.allocation.problems import KINDS, problem

from labkit.allocation.answer import Allocation, answer
from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.grid import NEVER, whole_costs
from labkit.allocation.hull import efficient, hull_steps
from labkit.allocation.ilp import solve_ilp
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

VALUES = np.array([[3.0, 1.0], [5.0, 2.0], [7.0, 0.0]])
COSTS = np.array([[[1.0, 2.0], [1.0, 2.0], [2.0, 4.0]]])


def made(**changes: Any) -> Mckp:
    fields: dict[str, Any] = {
        "layers": ("a", "b", "c"),
        "bits": (4, 8),
        "values": VALUES,
        "costs": COSTS,
        "budgets": (6.0,),
    }
    return Mckp(**(fields | changes))


def test_tied_layers_become_one_class_and_fixed_ones_have_one_choice() -> None:
    classes = made(tied=(("a", "c"),), fixed={"b": 8}).classes
    assert classes.members == ((0, 2), (1,))
    np.testing.assert_array_equal(classes.values, [[10.0, 1.0], [np.inf, 2.0]])
    np.testing.assert_array_equal(classes.costs, [[[3.0, 6.0], [np.inf, 2.0]]])
    np.testing.assert_array_equal(made(tied=(("a", "c"),)).columns([1, 0]), [1, 0, 1])


def test_groups_with_a_common_layer_are_one() -> None:
    names = tuple("abcdef")
    given = Mckp(names, (4, 8), np.ones((6, 2)), np.ones((1, 6, 2)), (9.0,), (("f", "b"), ("d", "f"), (), ("c",)))
    assert given.classes.members == ((0,), (1, 3, 5), (2,), (4,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"costs": COSTS[0]}, r"must have shape \(constraints, layers, bits\), got \(3, 2\)"),
        ({"costs": -COSTS}, r"The costs 'cost' must be finite and not negative, got -1\.0 for a at 4 bits"),
        ({"values": VALUES[:2]}, r"The values must have shape \(3, 2\)"),
        ({"budgets": (1.0, 2.0)}, r"as many budgets as constraints, 1, got 2"),
        ({"budgets": (np.nan,)}, r"Budgets must be finite"),
        ({"names": ("x", "y")}, r"as many names as constraints, 1, got 2"),
        ({"tied": (("a", "z"),)}, r"no layer 'z' to tie or to fix; the layers are a, b, c"),
        ({"fixed": {"z": 4}}, r"no layer 'z' to tie or to fix"),
        ({"fixed": {"a": 5}}, r"a cannot be fixed to 5 bits; the candidates are 4, 8"),
        ({"tied": (("a", "b"),), "fixed": {"a": 4, "b": 8}}, r"a is fixed to 4 bits and b to 8, but they are tied"),
    ],
)
def test_what_is_no_problem_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        made(**changes)


def test_a_budget_that_cannot_be_met_is_refused_with_the_least_cost() -> None:
    words = r"The budget of 103\.5 bytes for size cannot be met: the least possible is 104 bytes\. Give at least that, offer"
    with pytest.raises(QuantizationError, match=words):
        solve_exact(made(budgets=(3.5,), names=("size",), units=("bytes",), offsets=(100.0,)))
    assert solve_exact(made(budgets=(4.0,))).bits == (4, 4, 4)
    with pytest.raises(QuantizationError, match="the least possible is 5"):
        solve_exact(made(budgets=(4.0,), fixed={"a": 8}))


def test_budgets_that_cannot_be_met_together_are_refused() -> None:
    both = np.stack([COSTS[0], COSTS[0][:, ::-1]])
    with pytest.raises(
        QuantizationError, match=r"cannot be met together.*least possible: cost 1 4 of 5, cost 2 4 of 5"
    ):
        solve_ilp(made(costs=both, budgets=(5.0, 5.0)))
    assert solve_ilp(made(costs=both, budgets=(6.0, 6.0))).costs == (6.0, 6.0)
    with pytest.raises(QuantizationError, match=r"knows one budget, got 2 \(cost 1, cost 2\)"):
        solve_exact(made(costs=both, budgets=(6.0, 6.0)))


def test_fractions_may_meet_budgets_that_no_choice_meets() -> None:
    # Half of each choice costs 1.5 twice; whole choices cost 1 and 2.
    given = Mckp(("a",), (4, 8), [[1.0, 0.0]], [[[1.0, 2.0]], [[2.0, 1.0]]], (1.5, 1.5))  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="cannot be met together"):
        solve_ilp(given)


def test_an_answer_prints_and_survives_json() -> None:
    found = solve_exact(made(names=("size",), units=("bytes",), offsets=(100.0,)))
    assert found.weights == {"a": 4, "b": 4, "c": 8} and found.costs == (106.0,) and found.budgets == (106.0,)
    text = str(found)
    assert "value 8, proven best" in text and "size: 106 of 106 bytes" in text and "c  ######## 8" in text
    again = Allocation.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    for broken in ({}, found.to_json() | {"more": 1}):
        with pytest.raises(QuantizationError, match="This is not an allocation"):
            Allocation.from_json(broken)


def test_gaps_say_how_far_the_best_can_be() -> None:
    given = made(budgets=(8.0,))
    loose = answer(given, [0, 0, 0], "by hand", 10.0, 0.0)
    assert (loose.value, loose.gap, loose.relative_gap) == (15.0, 5.0, 1 / 3)
    assert "at most 5 (33.33%) above the best" in str(loose)
    assert answer(given, [0, 0, 0], "by hand", None, 0.0).gap == 0
    assert answer(given, [0, 0, 0], "by hand", 99.0, 0.0).gap == 0  # rounding may lift a bound above the value
    nothing = answer(made(values=VALUES * 0, budgets=(8.0,)), [0, 0, 0], "by hand", -1.0, 0.0)
    assert nothing.gap == 1 and nothing.relative_gap == np.inf
    with pytest.raises(QuantizationError, match=r"chose cost of 8 for a budget of 6"):
        answer(made(), [1, 1, 1], "by hand", None, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("safe", [True, False])
def test_whole_costs_keep_the_budget(kind: str, safe: bool) -> None:
    for seed in range(20):
        given = problem(kind, 4, 4, seed, 0.5, fixed={"l1": 2})
        whole = whole_costs(given, safe=safe)
        assert whole.exact is (kind != "real")
        costs, allowed = given.classes.costs[0], given.classes.allowed
        assert np.all((whole.costs == NEVER) == ~allowed) and np.all(whole.costs[allowed] >= 0)
        assert np.all(whole.costs.min(1) == 0)
        rng = np.random.default_rng(seed)
        for _ in range(50):
            picks = [int(rng.choice(np.flatnonzero(row))) for row in allowed]
            truly = sum(Fraction(float(costs[g, j])) for g, j in enumerate(picks)) <= Fraction(given.budgets[0])
            here = sum(int(whole.costs[g, j]) for g, j in enumerate(picks)) <= whole.budget
            assert here == truly if whole.exact else (truly or not here) if safe else (here or not truly)


@pytest.mark.parametrize("size", [0.0, 5e-324, 2.5e-102, 1e-9, 1.0])
def test_costs_far_below_the_budget(size: float) -> None:
    given = made(costs=COSTS * size, budgets=(100.0,))
    assert solve_exact(given).bits == solve_greedy(given).bits == solve_ilp(given).bits == (8, 8, 8)
    if size:
        tight = made(costs=COSTS * size, budgets=(6 * size,))
        assert solve_exact(tight).bits == solve_ilp(tight).bits == (4, 4, 8)


def test_the_integer_program_does_not_exceed_a_budget_by_its_tolerance() -> None:
    # Both layers at 8 bits cost 2 more than 100 million, which is within the solver's tolerance of a millionth.
    costs = [[[0.0, 5e7, 5e7 + 1]] * 2]
    given = Mckp(("a", "b"), (2, 4, 8), [[3.0, 1.0, 0.0]] * 2, costs, (1e8,))  # type: ignore[arg-type]
    found = solve_ilp(given)
    assert found.bits == solve_exact(given).bits == (4, 4)
    assert found.notes["cuts"] >= 1


def test_whole_costs_have_no_common_divisor() -> None:
    whole = whole_costs(made(costs=COSTS * 4.5, budgets=(30.0,)))
    assert whole.exact and whole.unit == 4.5
    np.testing.assert_array_equal(whole.costs, [[0, 1], [0, 1], [0, 2]])
    assert whole.budget == 30 // 4.5 - 4


def hull_by_hand(values: list[float], costs: list[int]) -> list[int]:
    """Choices that are cheapest-and-best for some price, by trying prices between all slopes."""
    slopes = sorted(
        {
            Fraction(values[i] - values[j]) / (costs[j] - costs[i])
            for i in range(len(values))
            for j in range(len(values))
            if costs[j] != costs[i]
        }
        | {Fraction(0)}
    )
    slopes = [s for s in slopes if s >= 0]
    prices = [(a + b) / 2 for a, b in pairwise(slopes)] + [slopes[-1] + 1, slopes[0] + Fraction(1, 10**9)]
    found = set()
    for price in prices:
        paid = [Fraction(v) + price * c for v, c in zip(values, costs, strict=True)]
        found.add(min(range(len(values)), key=lambda j: (paid[j], costs[j], values[j], j)))
    return sorted(found, key=lambda j: costs[j])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6))
@example([(4, 0), (2, 1), (0, 2)])  # on a straight line
@example([(9, 0), (5, 1), (3, 2), (1, 3), (1, 4)])
def test_hulls_against_prices(pairs: list[tuple[int, int]]) -> None:
    values, costs = [float(v) for v, _ in pairs], [c for _, c in pairs]
    table = np.array([values]), np.array([costs])
    steps = hull_steps(*table)
    assert [int(steps.start[0]), *steps.to.tolist()] == hull_by_hand(values, costs)
    rates = steps.values / steps.costs
    assert np.all(steps.costs > 0) and np.all(steps.values < 0) and np.all(np.diff(rates) > 0)
    beaten = [
        any(
            (c, v) != (costs[j], values[j]) and c <= costs[j] and v <= values[j]
            for v, c in zip(values, costs, strict=True)
        )
        or any((costs[i], values[i]) == (costs[j], values[j]) for i in range(j))
        for j in range(len(pairs))
    ]
    np.testing.assert_array_equal(efficient(*table)[0], ~np.array(beaten))
