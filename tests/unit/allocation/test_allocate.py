"""`allocate`: from tables to a plan that the integer network obeys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from unit.quantization.nets import branches, images

from labkit.allocation.allocate import METHODS, allocate, make_problem
from labkit.allocation.budgets import average_bits, between
from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import bit_operations, weight_bytes
from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import check_plan, convert
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.table import SensitivityTable

GRAPH = simplify(from_torch(branches(), (3, 8, 8)))
SIZE = weight_bytes(GRAPH)
BOPS = bit_operations(GRAPH, 4)
LAYERS = SIZE.layers


def sensitivity(
    bits: tuple[int, ...] = (2, 3, 4, 8), seed: int = 0, layers: tuple[str, ...] = LAYERS
) -> SensitivityTable:
    rng = np.random.default_rng(seed)
    values = (
        rng.lognormal(0, 1, (len(layers), 1)) * 4.0 ** -np.array(bits) * rng.lognormal(0, 0.2, (len(layers), len(bits)))
    )
    return SensitivityTable(layers, bits, values, np.zeros_like(values), "made up", "loss")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_plan_that_the_network_obeys(method: str) -> None:
    found = allocate(sensitivity(), SIZE, average_bits(3.0), method, graph=GRAPH, activations=4)
    check_plan(GRAPH, found.plan)
    assert dict(found.plan.activations) == dict(BitPlan.uniform(GRAPH, activations=4).activations)
    assert SIZE.total(found.plan.weights) == found.allocation.costs[0] <= average_bits(3.0).of(SIZE)
    assert found.allocation.value == pytest.approx(sensitivity().predicted(found.plan.weights), rel=1e-12)
    assert found.gap == found.allocation.gap >= 0
    assert f"Allocation by {method}" in str(found) and "size: " in str(found)
    assert found.average_bits == np.mean(list(found.plan.weights.values()))
    net = convert(GRAPH, calibrate(GRAPH, images()), found.plan)
    for layer, bits in found.plan.weights.items():
        assert net[layer].op.weight.spec.bits == bits  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(5))
def test_exact_and_ilp_agree_and_nothing_is_better(seed: int) -> None:
    table = sensitivity(seed=seed)
    exact = allocate(table, SIZE, average_bits(3.3), graph=GRAPH).allocation
    assert exact.value == allocate(table, SIZE, average_bits(3.3), "ilp", graph=GRAPH).allocation.value
    for method in METHODS:
        assert allocate(table, SIZE, average_bits(3.3), method, graph=GRAPH).allocation.value >= exact.value


def test_several_budgets_hold_at_once() -> None:
    pairs = ([SIZE, BOPS], [between(0.5, 2, 8), between(0.3, 2, 8)])
    found = allocate(sensitivity(), *pairs, "ilp", graph=GRAPH)
    for cost, budget in zip(*pairs, strict=True):
        assert cost.total(found.plan.weights) <= budget.of(cost)
    alone = allocate(sensitivity(), SIZE, between(0.5, 2, 8), "ilp", graph=GRAPH)
    assert alone.allocation.value <= found.allocation.value
    assert {"size", "bit operations"} == set(found.allocation.names)
    with pytest.raises(QuantizationError, match="knows one budget, got 2"):
        allocate(sensitivity(), *pairs, "exact", graph=GRAPH)


@pytest.mark.parametrize("method", METHODS)
def test_fixed_and_tied_layers(method: str) -> None:
    options: dict[str, Any] = {"fixed": {"fc": 8}, "tied": [("stem", "depthwise")]}
    found = allocate(sensitivity(), SIZE, average_bits(6), method, graph=GRAPH, **options)
    assert found.plan.weights["fc"] == 8 and found.plan.weights["stem"] == found.plan.weights["depthwise"]
    with pytest.raises(QuantizationError, match=r"for size cannot be met: the least possible is [\d,]+ bytes"):
        allocate(sensitivity(), SIZE, average_bits(3), method, graph=GRAPH, **options)


def test_tables_may_be_ordered_differently() -> None:
    turned = CostTable(LAYERS[::-1], SIZE.bits, SIZE.values[::-1], SIZE.unit, SIZE.name, SIZE.fixed, SIZE.notes)
    for cost in (SIZE, turned):
        np.testing.assert_array_equal(make_problem(sensitivity(), cost, 900).costs[0], SIZE.values[:, [1, 2, 3, 7]])
        assert make_problem(sensitivity(), cost, 900).budgets == (900 - SIZE.fixed,)


def test_activations_and_options_reach_the_plan() -> None:
    plan = BitPlan.uniform(GRAPH, 8, 5)
    for given in (plan, plan.activations):
        found = allocate(sensitivity(), SIZE, 900, graph=GRAPH, activations=given, plan_options={"per_channel": False})
        assert dict(found.plan.activations) == dict(plan.activations) and not found.plan.per_channel


def test_a_search_may_run_the_network() -> None:
    seen: list[dict[str, int]] = []

    def evaluate(bits: dict[str, int]) -> float:
        seen.append(bits)
        return -bits["stem"]  # as if only the stem counted

    for method in ("random", "evolutionary"):
        seen.clear()
        found = allocate(sensitivity(), SIZE, 900, method, graph=GRAPH, evaluations=25, evaluate=evaluate)
        assert len(seen) == 25 and found.plan.weights["stem"] == max(bits["stem"] for bits in seen)
        assert found.allocation.notes["evaluated"] == -found.plan.weights["stem"]
    again = [allocate(sensitivity(), SIZE, 900, "random", graph=GRAPH, seed=3).plan for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(QuantizationError, match="Every evaluation was NaN"):
        allocate(sensitivity(), SIZE, 900, "random", graph=GRAPH, evaluate=lambda _: float("nan"))


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: allocate(sensitivity(), SIZE, 900, "best", graph=GRAPH), "method must be one of exact, greedy-up"),
    (
        lambda: allocate(sensitivity(), SIZE, 900, graph=GRAPH, seed=1),
        "'exact' has no option 'seed'; it has most_states",
    ),
    (lambda: allocate(sensitivity(), [SIZE, BOPS], 900, "ilp", graph=GRAPH), "got 2 costs and 1 budgets"),
    (lambda: allocate(sensitivity(), SIZE, [1, 2], "ilp", graph=GRAPH), "got 1 costs and 2 budgets"),
    (
        lambda: allocate(sensitivity(), weight_bytes(GRAPH, (2, 4, 8)), 900, graph=GRAPH),
        r"\(size\) have no column for 3 bits",
    ),
    (lambda: allocate(sensitivity(layers=("stem", "fc")), SIZE, 900, graph=GRAPH), "differ in the layer 'depthwise'"),
    (lambda: allocate(sensitivity(), SIZE, 900, graph=GRAPH, activations=1), "activation bits must be an integer in 2"),
    (lambda: allocate(sensitivity(), SIZE, 900, "random", graph=GRAPH, evaluations=0), "evaluations must be 1 or more"),
    (lambda: allocate(sensitivity(), SIZE, 900, "evolutionary", graph=GRAPH, population=1), "population must be 2"),
    (lambda: allocate(sensitivity(), SIZE, 90, graph=GRAPH), r"The budget of 90 bytes for size cannot be met"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        call()


def test_an_allocation_of_another_network_makes_no_plan() -> None:
    layers = ("a", "b")
    cost = CostTable(layers, (4, 8), [[1.0, 2.0]] * 2, "bytes", "size")  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="The allocation and the network differ in the layer 'a'"):
        allocate(sensitivity((4, 8), layers=layers), cost, 3, graph=GRAPH)
