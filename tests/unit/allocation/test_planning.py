"""From a network, images and budgets to a plan: budgets kept, rules obeyed, the best within the table, and what is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from unit.quantization.nets import branches, images, small

import labkit
from labkit.allocation.allocate import METHODS as SOLVERS
from labkit.allocation.budgets import average_bits
from labkit.allocation.constraints import residual_partners
from labkit.allocation.costs import bit_operations, weight_bytes
from labkit.allocation.planning import Planned, check_latency, plan_for, plan_table
from labkit.allocation.request import SENSITIVITIES, Budgets, PlanOptions
from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.convert import check_plan
from labkit.sensitivity.measure import METHODS as MEASURES

MODULE = branches()
GRAPH = simplify(from_torch(MODULE, (3, 8, 8)))
X = images(32).numpy()
BITS = (2, 3, 4, 8)
SIZE = weight_bytes(GRAPH, BITS)
BOPS = bit_operations(GRAPH, 8, BITS)


def planned(budgets: Budgets, **options: Any) -> Planned:
    return plan_for(MODULE, X, budgets, PlanOptions(**{"bits": BITS, "rounding": "nearest", **options}))


def test_names_are_those_of_the_parts() -> None:
    assert SENSITIVITIES == MEASURES


@pytest.mark.parametrize("rounding", ["best", "nearest"])
@pytest.mark.parametrize("average", [2.0, 2.7, 3.5, 8.0])
def test_the_plan_is_the_best_of_all_within_the_average(rounding: str, average: float) -> None:
    found = planned(Budgets(average_bits=average), rounding=rounding)
    check_plan(GRAPH, found.plan)
    limit = average_bits(average).of(SIZE)
    assert SIZE.total(found.plan.weights) <= limit and found.average_bits <= average
    values = [
        found.sensitivity.predicted(dict(zip(SIZE.layers, bits, strict=True)))
        for bits in itertools.product(BITS, repeat=len(SIZE.layers))
        if SIZE.total(dict(zip(SIZE.layers, bits, strict=True))) <= limit
    ]
    assert found.allocation.value == pytest.approx(min(values), rel=1e-12, abs=1e-18)
    assert found.allocation.gap == 0 and found.allocation.method == "exact"


def test_several_budgets_are_kept_together() -> None:
    size, bops = SIZE.uniform(3), BOPS.uniform(4) * 0.9
    found = planned(Budgets(average_bits=8, bytes=size, bit_operations=bops))
    assert SIZE.total(found.plan.weights) <= size and BOPS.total(found.plan.weights) <= bops
    assert found.allocation.method == "ilp" and found.allocation.names == ("size", "bit operations")
    assert found.allocation.costs == (SIZE.total(found.plan.weights), BOPS.total(found.plan.weights))


@pytest.mark.parametrize(("average", "size", "limit"), [(3.0, 1e9, 3.0), (8.0, SIZE.uniform(3), 3.0)])
def test_of_an_average_and_bytes_the_smaller_counts(average: float, size: float, limit: float) -> None:
    both = planned(Budgets(average_bits=average, bytes=size))
    assert both.allocation.method == "exact"
    assert both.allocation.budgets == (average_bits(limit).of(SIZE),)
    assert dict(both.plan.weights) == dict(planned(Budgets(average_bits=limit)).plan.weights)


def test_first_last_and_residual_rules() -> None:
    found = planned(Budgets(average_bits=6.0), first_and_last=6, tie_residual=True)
    weights = found.plan.weights
    assert weights[SIZE.layers[0]] == weights[SIZE.layers[-1]] == 6
    assert 6 in found.sensitivity.bits and 6 not in BITS
    groups = residual_partners(GRAPH)
    assert groups and all(len({weights[name] for name in group}) == 1 for group in groups)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
def test_every_sensitivity_makes_a_plan(sensitivity: str) -> None:
    found = planned(Budgets(average_bits=3.0), sensitivity=sensitivity, images=8)
    assert found.sensitivity.method == sensitivity and found.sensitivity.notes["images"] == 8
    assert found.average_bits <= 3


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_makes_a_plan(solver: str) -> None:
    found = planned(Budgets(average_bits=3.0), solver=solver)
    assert found.allocation.method.startswith(solver.partition("-")[0]) and found.average_bits <= 3


def test_a_table_given_is_used_and_its_bits_are_the_candidates() -> None:
    table = plan_table(GRAPH, X, PlanOptions((3, 5), rounding="nearest"))
    found = plan_for(MODULE, X, Budgets(average_bits=4), PlanOptions(BITS), table)
    assert found.sensitivity is table and set(found.plan.weights.values()) <= {3, 5}


def test_best_candidates_lose_less_than_nearest_ones() -> None:
    tables = {
        rounding: plan_table(GRAPH, X, PlanOptions((2, 3), rounding=rounding)).values.sum(0)
        for rounding in ("best", "nearest")
    }
    assert np.all(tables["best"] < tables["nearest"])


def test_the_same_seed_gives_the_same_plan_and_graph_or_module_do_not_matter() -> None:
    options = PlanOptions(BITS, seed=3)
    first, again = (plan_for(net, X, Budgets(average_bits=2.6), options) for net in (MODULE, GRAPH))
    assert first.plan == again.plan
    np.testing.assert_array_equal(first.sensitivity.values, again.sensitivity.values)


def test_the_plan_goes_to_quantize_and_the_notes_are_plain() -> None:
    found = planned(Budgets(average_bits=3.0), activations=6, activation_scheme="symmetric", per_channel=False)
    net = labkit.quantize(MODULE, X, plan=found.plan, method="best").with_notes(planned=found.notes)
    assert {name: net.graph[name].op.weight.spec.bits for name in SIZE.layers} == dict(found.plan.weights)  # type: ignore[union-attr]
    assert (found.plan.per_channel, found.plan.activation_scheme) == (False, "symmetric")
    notes = json.loads(json.dumps(net.graph.notes["planned"]))
    assert notes["budgets"] == {"average_bits": 3.0} and notes["solver"] == "exact"
    assert notes["predicted_loss"] == found.allocation.value
    assert "bits a weight on average" in str(found)


def test_progress_is_told_for_each_long_step() -> None:
    told: list[tuple[str, int, int]] = []
    plan_for(small(), X, Budgets(microseconds=1e6), PlanOptions(BITS), progress=lambda *one: told.append(one))
    last = {step: (done, total) for step, done, total in told}
    assert list(last) == ["Measure the latency", "Round candidates", "Measure the sensitivity"]
    assert all(done == total for done, total in last.values())


def test_latency_is_predicted_and_measured() -> None:
    found = plan_for(small(), X, Budgets(microseconds=1e6), PlanOptions((2, 8), rounding="nearest"))
    check = check_latency(found, X, rounds=3)
    assert check.predicted == pytest.approx(found.allocation.costs[0])
    assert check.measured > 0 and check.error == pytest.approx(check.measured / check.predicted - 1)
    speed = check.uniform_measured / check.uniform_predicted
    assert check.paired_error == pytest.approx(check.measured / check.predicted / speed - 1)
    assert "predicted" in str(check) and "measured" in str(check)
    with pytest.raises(QuantizationError, match="no budget in microseconds"):
        check_latency(planned(Budgets(average_bits=3.0)), X)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ({}, "needs a budget"),
        ({"average_bits": 9.0}, "at most 8 bits"),
        ({"average_bits": -1.0}, "above 0, got -1"),
        ({"bytes": float("nan")}, "bytes must be a number above 0"),
        ({"bit_operations": True}, "bit operations must be a number"),
    ],
)
def test_budgets_that_make_no_sense(budgets: dict[str, float], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        Budgets(**budgets)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": ()}, "integers in 1..8"),
        ({"bits": (2, 9)}, "integers in 1..8"),
        ({"first_and_last": 0}, "integers in 1..8"),
        ({"sensitivity": "guess"}, "gauss-newton, fisher"),
        ({"solver": "guess"}, "exact, greedy-up"),
        ({"rounding": "gptq"}, "best, nearest"),
        ({"images": 0}, "at least one image"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(QuantizationError, match=says):
        PlanOptions(**options)


def test_what_cannot_be_is_refused_before_the_table_is_measured() -> None:
    told: list[tuple[str, int, int]] = []

    def ask(budgets: Budgets, **options: Any) -> None:
        plan_for(MODULE, X, budgets, PlanOptions(BITS, **options), progress=lambda *one: told.append(one))

    with pytest.raises(QuantizationError, match="cannot be met: the least possible is"):
        ask(Budgets(bytes=10))
    with pytest.raises(QuantizationError, match="cannot be met"):
        ask(Budgets(average_bits=2.5), first_and_last=8)
    with pytest.raises(QuantizationError, match="'greedy-up' knows one budget, got 2"):
        ask(Budgets(average_bits=3, bit_operations=1e9), solver="greedy-up")
    assert told == []
    with pytest.raises(QuantizationError, match="There are no images"):
        plan_for(MODULE, iter(()), Budgets(average_bits=3))
