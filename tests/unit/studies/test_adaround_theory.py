"""The mathematics of the studies of the AdaRound paper's theory, each against an independent computation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from unit.quantization.weight_rounding.nets import images, residual

from labkit.data import load as load_data
from labkit.frontends.float_run import run_float, run_node
from labkit.quantization.differentiable import layer_names
from labkit.quantization.weight_rounding.qubo import Qubo
from labkit.quantization.weight_rounding.qubo_solvers import solve_exactly
from labkit.quantization.weight_rounding.simple import round_stochastic, up_share
from labkit.quantization.weight_rounding.task_hessian import task_hessian
from labkit.studies.adaround import local_loss, table_2, table_10, toy
from labkit.studies.adaround.one_layer import (
    OneLayer,
    first_layer,
    integer_logits,
    labelled,
    layer_input,
    local_gram,
    mean_cross_entropy,
    with_weights,
)
from labkit.studies.correlation import correlate, pearson, ranks, spearman
from labkit.studies.lab import open_lab
from labkit.studies.study import Settings

CALIBRATION = images(48).numpy()


@pytest.mark.parametrize("entry", [-0.9, -0.4, 0.0, 0.2, 0.5, 0.99])
def test_toy_finds_the_cheapest_of_four(entry: float) -> None:
    hessian = np.array([[1, entry], [entry, 1]])
    for place in np.random.default_rng(0).random((50, 2)):
        qubo = toy.rounding_qubo(place, hessian)
        costs = {}
        for up in product((0, 1), repeat=2):
            moved = np.array(up) - place
            costs[up] = (moved[0] ** 2 + moved[1] ** 2) / 2 + entry * moved[0] * moved[1]
            assert float(qubo.energy(np.array(up))) == pytest.approx(costs[up], abs=1e-12)
        assert costs[tuple(int(bit) for bit in solve_exactly(qubo))] == pytest.approx(min(costs.values()), abs=1e-12)  # type: ignore[index]


@pytest.mark.parametrize("entry", [-0.8, -0.2, 0.1, 0.5, 0.95])
def test_area_of_the_region_is_the_formula(entry: float) -> None:
    """Counted on a fine grid, from the four costs written out."""
    side = (np.arange(600) + 0.5) / 600
    first, second = np.meshgrid(side, side, indexing="ij")
    costs = []
    for up in product((0, 1), repeat=2):
        a, b = up[0] - first, up[1] - second
        costs.append((a**2 + b**2) / 2 + entry * a * b)
    best = np.argmin(costs, 0)
    nearest = 2 * (first > 0.5) + (second > 0.5)
    assert np.mean(best != nearest) == pytest.approx(toy.area_not_nearest(entry), abs=2e-3)
    # where nearest loses, the winner's perturbations have the sign that makes the off-diagonal term negative
    a, b = best // 2 - first, best % 2 - second
    assert np.all((a * b * entry)[best != nearest] < 0)


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        x, y = rng.normal(size=60), rng.normal(size=60)
        y = np.round(x + y) if ties else x + y
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert np.array_equal(ranks(y), stats.rankdata(y))
    assert pearson(x, np.ones(60)) == 0


def test_interval_of_a_correlation_holds_it_and_narrows() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for count in (20, 200):
        x = rng.normal(size=count)
        found = correlate(x, x + rng.normal(size=count))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
    apart = correlate(rng.normal(size=200), rng.normal(size=200))
    assert not apart.sure
    assert str(apart).count("(") == 1


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("name", ["stem", "depthwise", "fc"])
def test_levels_of_an_answer(name: str, bits: int) -> None:
    graph = residual()
    layer = OneLayer.of(graph, name, bits)
    down, up = layer.grid.choices(layer.weights)
    free = np.flatnonzero((up - down).reshape(-1))
    chance = up_share(layer.weights, layer.grid).reshape(-1)[free]
    assert np.array_equal(
        layer.levels(chance >= 0.5, free), np.where(up_share(layer.weights, layer.grid) >= 0.5, up, down)
    )
    assert np.array_equal(layer.levels(np.zeros(len(free), bool), free), down)
    moved = layer.change(layer.nearest)
    inside = (up > down) & (layer.weights != layer.grid.values(up))
    assert np.abs(moved[inside]).max() <= layer.grid.scale[0, 0] * (0.5 + 1e-6)
    rounded = layer.rounded(layer.nearest)
    assert np.allclose(rounded.weight.dequantized().reshape(moved.shape), layer.weights + moved, atol=1e-6)


def test_network_with_other_weights() -> None:
    graph = residual()
    assert first_layer(graph) == "stem"
    assert layer_names(graph)[-1] == "fc"
    rows = {"fc": np.zeros((5, 12))}
    changed = run_float(with_weights(graph, rows), {graph.inputs[0]: CALIBRATION})
    exact = run_float(graph, {graph.inputs[0]: CALIBRATION})
    assert np.allclose(changed["fc"], graph["fc"].op.bias, atol=1e-6)  # type: ignore[union-attr]
    assert np.array_equal(changed["depthwise"], exact["depthwise"])


@pytest.mark.parametrize("name", ["stem", "a3", "depthwise", "fc"])
def test_input_of_a_layer_and_its_local_error(name: str) -> None:
    graph = residual()
    exact = run_float(graph, {graph.inputs[0]: CALIBRATION})
    given = layer_input(graph, name, CALIBRATION)
    assert np.allclose(given.numpy(), exact[graph[name].inputs[0]], atol=1e-6)
    layer = OneLayer.of(graph, name, 3)
    gram = local_gram(graph, layer, CALIBRATION, samples=1 << 20)  # every place
    for seed in range(3):
        change = layer.change(round_stochastic(layer.weights, layer.grid, np.random.default_rng(seed)))
        # by running the layer on images, without any quadratic form
        bare = replace(graph[name], activation=type(graph[name].activation).NONE)
        moved = replace(bare, op=replace(bare.op, weight=(layer.weights + change).reshape(layer.op.weight.shape)))  # type: ignore[arg-type]

        def output(node, given=given):  # type: ignore[no-untyped-def]
            op = replace(node.op, weight=node.op.weight.astype(np.float64), bias=None)
            return run_node(replace(node, op=op), [given.double()])

        wanted = float((output(moved) - output(bare)).square().sum(1).mean())
        assert local_loss.channel_sum(gram, change) == pytest.approx(wanted, rel=1e-5)
        assert local_loss.output_error(layer, given, change) == pytest.approx(wanted, rel=1e-9)
        whole = local_loss.joint_matrix(gram, len(change))
        assert change.reshape(-1) @ whole @ change.reshape(-1) == pytest.approx(wanted, rel=1e-5)


def test_joint_matrix_is_a_kronecker_product() -> None:
    graph = residual()
    gram = local_gram(graph, OneLayer.of(graph, "a2", 4), CALIBRATION)
    assert np.array_equal(local_loss.joint_matrix(gram, 12), np.kron(np.eye(12), gram.gram[0]))
    assert local_loss.block_share(local_loss.joint_matrix(gram, 12), 12) == pytest.approx(1)
    assert local_loss.block_share(np.ones((12, 12)), 4) == pytest.approx(1 / 4)


def test_cross_entropy_is_torchs() -> None:
    rng = np.random.default_rng(0)
    answers, labels = rng.normal(0, 50, (30, 7)).astype(np.float32), rng.integers(0, 7, 30)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(answers).double(), torch.from_numpy(labels))
    assert mean_cross_entropy(answers, labels) == pytest.approx(float(wanted), rel=1e-12)


def test_labels_are_of_the_calibration_images() -> None:
    data = load_data("mnist5k")
    for seed in (0, 3):
        x, labels = labelled(data, 20, seed)
        assert np.array_equal(x, data.calibration(20, seed))
        every, all_labels = data.train()
        for image, label in zip(x, labels, strict=True):
            same = (every == image).all((1, 2, 3))
            assert label in all_labels[same]


def test_restricted_problem_has_the_same_energies() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 9))
    qubo = Qubo(matrix + matrix.T, rng.normal(size=9), 0.7)
    bits = rng.random(9) < 0.5
    kept = np.array([7, 2, 4])
    small = table_10.restrict(qubo, bits, kept)
    for part in product((0, 1), repeat=3):
        whole = bits.copy()
        whole[kept] = np.array(part, bool)
        assert float(small.energy(np.array(part))) == pytest.approx(float(qubo.energy(whole)), abs=1e-12)


@pytest.mark.parametrize("solver", table_10.SOLVERS)
def test_solvers_start_where_they_say(solver: str) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 16))
    qubo = Qubo(matrix @ matrix.T, rng.normal(size=16))
    chance = rng.random(16)
    found = [table_10.SOLVERS[solver](qubo, chance, np.random.default_rng(seed)) for seed in range(8)]
    start = float(qubo.energy(chance >= 0.5))
    assert all(answer.dtype == np.bool_ and answer.shape == (16,) for answer in found)
    if "nearest" in solver or solver.endswith("stochastic rounding"):
        assert all(float(qubo.energy(answer)) <= start + 1e-9 for answer in found)
    if solver in ("rounding to nearest", "descent from nearest"):
        assert all(np.array_equal(answer, found[0]) for answer in found)
    if solver in ("random roundings", "stochastic roundings"):
        assert not all(np.array_equal(answer, found[0]) for answer in found)


def test_both_problems_of_table_2_are_bettered() -> None:
    graph = residual()
    layer = OneLayer.of(graph, "stem", 3)
    hessian = task_hessian(graph, "stem", CALIBRATION)
    gram = local_gram(graph, layer, CALIBRATION)
    nearest = layer.change(layer.nearest)
    by_task = layer.change(table_2.by_hessian(layer, hessian, 0, smoke=True))
    by_output = layer.change(table_2.by_local_error(layer, gram, 0))
    assert hessian.second_order(by_task) < 0.9 * hessian.second_order(nearest)
    assert local_loss.channel_sum(gram, by_output) < 0.8 * local_loss.channel_sum(gram, nearest)


def test_integer_network_takes_the_levels() -> None:
    lab = open_lab("lenet", Settings.short())
    layer = OneLayer.of(lab.graph, "conv1", 4)
    found = integer_logits(lab, {"conv1": (layer, layer.nearest)}, 50)
    assert found.shape == (50, 10)
    coarse = with_weights(lab.graph, {"conv1": layer.grid.values(layer.nearest)})
    simulated, exact = (run_float(graph, {graph.inputs[0]: lab.x[:50]})["fc3"] for graph in (coarse, lab.graph))
    assert np.abs(found - simulated).mean() < 0.5 * np.abs(found - exact).mean()
