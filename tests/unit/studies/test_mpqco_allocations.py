"""Random allocations, the Hessian along them, scores, spreads, and the supplement's own search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from unit.allocation.problems import best_by_trying
from unit.sensitivity.nets import objective

from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.quantization.differentiable import layer_op
from labkit.sensitivity.hessian import full_hessian
from labkit.studies.mpqco.allocations import average_bits, curvature_along, random_allocations
from labkit.studies.mpqco.bench import labelled_images
from labkit.studies.mpqco.candidates import rises
from labkit.studies.mpqco.figure_1 import Sample
from labkit.studies.mpqco.first_order import Orders
from labkit.studies.mpqco.images import spread_of_means
from labkit.studies.mpqco.instances import ADVERSARIES, made_up_network, search_greedy, with_average
from labkit.studies.mpqco.scores import line, median_interval, power, relative_errors, straightness

SIZES = np.array([1, 2, 4], np.int64)


def test_allocations_are_all_those_of_the_average_equally_often() -> None:
    bits = (1, 2, 3)
    drawn = random_allocations(SIZES, bits, 2.0, 4000, seed=3, tolerance=0.1)
    every = [a for a in itertools.product(bits, repeat=3) if abs(np.dot(a, SIZES) / 7 - 2) <= 0.2 + 1e-12]
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(row) for row in found.tolist()] == sorted(every)
    expected = 4000 / len(every)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert np.abs(average_bits(SIZES, drawn) - 2).max() <= 0.2 + 1e-12


def test_allocations_follow_the_seed() -> None:
    first, again, other = (random_allocations(SIZES, (1, 2, 3, 4), 2.5, 20, seed, 0.2) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_average_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.studies.mpqco.allocations._TRIES", 3)
    with pytest.raises(InputError, match=r"3,000 random allocations of 4 to 8 bits only 0 have 3 bits"):
        random_allocations(SIZES, (4, 8), 3.0, 1)


@pytest.mark.parametrize("net", ["mlp", "branched", "gate"])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_curvature_along_is_the_form_of_the_whole_hessian(net: str, loss: str) -> None:
    found = objective(net, 7, loss, seed=2)
    generator = np.random.default_rng(0)
    changes = {name: generator.standard_normal(layer_op(found.graph, name).weight.shape) for name in found.layers}
    moved = {name: layer_op(found.graph, name).weight + change for name, change in changes.items()}
    flat = np.concatenate([change.ravel() for change in changes.values()])
    assert curvature_along(found, moved) == pytest.approx(flat @ full_hessian(found) @ flat / 2, rel=1e-9)


def test_line_through_the_origin() -> None:
    x = np.array([1.0, 2.0, 3.0])
    found = line(x, 2 * x)
    assert (found.slope, found.r, found.rho) == pytest.approx((2, 1, 1))
    x, y = np.random.default_rng(0).random((2, 30))
    assert line(x, y).slope == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
    assert line(np.zeros(3), np.ones(3)).slope == 0
    assert str(found) == "2.00 / 1.00 / 1.00"


def test_relative_errors_and_their_medians() -> None:
    errors = relative_errors(np.array([2.0, -1.0, 4.0]), np.array([1.0, 1.0, 4.0]))
    assert errors.tolist() == [50.0, 200.0, 0.0]
    one = median_interval(errors)
    assert one.value == 50
    assert one.low == 0 and one.high == 200
    generator = np.random.default_rng(0)
    base = generator.normal(0, 5, 60)
    paired = np.stack([base + 1, base], 1)
    gap = median_interval(paired)
    assert (gap.value, gap.low, gap.high) == pytest.approx((1, 1, 1))  # pairs stay together
    assert gap.text() == "1.0 (1.0 to 1.0)"


def test_power_and_straightness() -> None:
    x = np.array([1.0, 2.0, 5.0, 10.0])
    assert power(x, 3 * x**1.7) == pytest.approx(1.7)
    assert straightness(x, 4 + 2 * x) == pytest.approx(1)
    assert straightness(x, np.array([1.0, -1.0, 1.0, -1.0])) < 0.5


@pytest.mark.parametrize("count", [20, 200, 400])
def test_spread_of_means_is_that_of_an_endless_pool(count: int) -> None:
    """Standard deviation over the root of the number, whatever share of the pool is drawn."""
    terms = np.random.default_rng(0).exponential(1.0, 500)
    means, spread = spread_of_means(terms, count, draws=3000)
    assert means.shape == (3000,)
    assert float(spread) == pytest.approx(terms.std() / np.sqrt(count) / terms.mean(), rel=0.08)


@pytest.mark.parametrize("layers", [1, 5, 60])
def test_supplements_search_takes_the_same_steps_as_the_heap(layers: int) -> None:
    """On made-up networks each further bit gains less, so that the hull hides nothing and both ways meet."""
    problem = made_up_network(layers, 3)
    smooth = np.sort(problem.values, 1)[:, ::-1]
    smooth = smooth[:, :1] * 4.0 ** -np.arange(8)
    given = type(problem)(problem.layers, problem.bits, smooth, problem.costs, problem.budgets)
    columns, steps, looks = search_greedy(given)
    heap = solve_greedy(given, "up", hull=False)
    assert [given.bits[c] for c in columns] == list(heap.bits)
    assert steps == heap.notes["steps"] <= 8 * layers
    assert looks <= (steps + layers) * layers
    assert given.fits(columns)


def test_search_goes_on_behind_a_step_that_does_not_fit() -> None:
    columns, steps, _ = search_greedy(ADVERSARIES["a small step blocks a large one"])
    assert columns.tolist() == [1, 0]
    assert steps == 1


@pytest.mark.parametrize("name", list(ADVERSARIES))
def test_adversaries_mislead_some_greedy(name: str) -> None:
    problem = ADVERSARIES[name]
    best = solve_exact(problem).value
    assert best == best_by_trying(problem)
    found = [solve_greedy(problem, way, hull=hull).value for way in ("up", "down") for hull in (True, False)]
    assert max(found) > 3 * best


def test_budget_of_a_network_is_an_average() -> None:
    problem = made_up_network(7, 0)
    sizes = problem.costs[0, :, 7]  # eight bits: a byte a weight
    assert with_average(problem, 5.0).budgets[0] == pytest.approx(sizes.sum() * 5 / 8)
    assert with_average(problem, 3.0).budgets == pytest.approx(problem.budgets)
    assert np.array_equal(made_up_network(7, 0).values, problem.values)


def test_rising_errors_are_found() -> None:
    assert rises(np.array([[4.0, 2.0, 1.0], [4.0, 5.0, 1.0], [4.0, 4.0, 1.0]])).tolist() == [False, True, True]


def test_sample_compares_the_first_fifty() -> None:
    truth = np.arange(1.0, 101)
    ways = {"MPQCO, block": truth * 1.1, "HAWQ-V2, half": truth * 1.3}
    sample = Sample("net", "bits", 100, truth, ways)
    assert len(sample.errors("MPQCO, block")) == 50
    gap = sample.against_hawq("MPQCO, block")
    assert (gap.value, gap.high < 0) == (pytest.approx(-20), True)


def test_first_order_matters_where_it_is_large_and_no_chance() -> None:
    first = np.array([[1.0, -1.0, 0.1, 1.0]])
    orders = Orders(
        "net",
        10,
        first,
        np.array([[0.1, 0.1, 0.01, 0.9]]),
        np.full((1, 4), 1.5),
        np.array([[2.0, 1.0, 1.6, 2.5]]),
        np.zeros((1, 4)),
    )
    assert orders.real.tolist() == [[True, True, True, False]]
    assert orders.matters.tolist() == [[True, True, False, False]]
    np.testing.assert_allclose(orders.missed(orders.first + orders.second), [0.25, 0.5, 0, 0], atol=1e-12)


class _Data:
    """Eight training images whose pixels are all their number."""

    train_images = frozen_array(np.arange(8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 32, 32)), np.uint8)
    train_labels = np.arange(8)


def test_labels_belong_to_their_images() -> None:
    images, labels = labelled_images(_Data, 5, seed=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(images[:, 0, 0, 0], labels / 127.5 - 1, atol=1e-6)
    assert len(set(labels.tolist())) == 5
    assert len(labelled_images(_Data, 100)[1]) == 8  # type: ignore[arg-type]
