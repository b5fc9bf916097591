"""The Fisher matrices against gradients formed one image and one class at a time, and how they differ from the Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from unit.sensitivity.nets import NETS, flat_weights, images, losses_of, objective

from labkit.errors import InputError
from labkit.sensitivity.fisher import (
    KINDS,
    fisher_diagonals,
    fisher_matrix,
    fisher_traces,
    sample_gradients,
)
from labkit.sensitivity.hessian import full_hessian
from labkit.sensitivity.objective import LOSSES, Objective, make_objective
from labkit.sensitivity.slopes import Directions, output_slopes


def gradients_by_loop(found: Objective) -> np.ndarray:
    rows = []
    for index in range(len(found.images)):
        weights = flat_weights(found).requires_grad_()
        (slope,) = torch.autograd.grad(losses_of(found, weights)[index], weights)
        rows.append(slope.numpy())
    return np.stack(rows)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_gradients_of_images_are_those_of_a_loop(name: str, loss: str) -> None:
    found = objective(name, count=35, loss=loss)
    rows = gradients_by_loop(found)
    np.testing.assert_allclose(sample_gradients(found), rows, atol=1e-12)
    np.testing.assert_allclose(fisher_matrix(found, "empirical"), rows.T @ rows / 35, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_true_fisher_is_the_expectation_over_classes(name: str) -> None:
    from dataclasses import replace

    found = objective(name)
    chance, total = found.outputs.softmax(1).numpy(), 0.0
    for label in range(3):
        rows = gradients_by_loop(replace(found, targets=torch.full_like(found.targets, label)))
        total += rows.T @ (chance[:, label, None] * rows) / len(rows)
    np.testing.assert_allclose(fisher_matrix(found, "true"), total, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_gauss_newton_is_the_true_fisher_and_the_empirical_is_not(name: str, loss: str) -> None:
    found = objective(name, loss=loss)
    true, other = fisher_matrix(found, "true"), fisher_matrix(found, "gauss-newton")
    np.testing.assert_allclose(other, true, atol=1e-12)
    empirical = fisher_matrix(found, "empirical")
    assert np.linalg.norm(empirical - true) > 0.1 * np.linalg.norm(true)


@pytest.mark.parametrize("name", ["mlp", "branched", "sequence"])
def test_blocks_of_piecewise_linear_layers_are_the_hessians(name: str) -> None:
    found = objective(name)
    for layer in found.layers:
        np.testing.assert_allclose(fisher_matrix(found, "true", [layer]), full_hessian(found, [layer]), atol=1e-12)
    gap = np.linalg.norm(fisher_matrix(found) - full_hessian(found))  # between layers they differ
    assert gap > 0.01 * np.linalg.norm(full_hessian(found))


def test_blocks_of_layers_before_a_product_are_not() -> None:
    found = objective("gate")
    gap = np.linalg.norm(fisher_matrix(found, "true", ["stem"]) - full_hessian(found, ["stem"]))
    assert gap > 0.01 * np.linalg.norm(full_hessian(found, ["stem"]))


def test_expected_hessian_is_the_true_fisher() -> None:
    """Supplement, equations 6 to 8, by an exact sum over the classes."""
    from dataclasses import replace

    found = objective("mlp")
    total = 0.0
    for index in range(len(found.images)):
        chance = found.outputs[index].softmax(0)
        for label in range(3):
            where = slice(index, index + 1)
            targets = torch.full((1,), label)
            one = replace(found, images=found.images[where], outputs=found.outputs[where], targets=targets)
            total += float(chance[label]) * full_hessian(one)
    np.testing.assert_allclose(total / len(found.images), fisher_matrix(found, "true"), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_traces_and_diagonals_are_those_of_the_matrix(name: str, loss: str, kind: str) -> None:
    found = objective(name, count=9, loss=loss)
    traces, errors = fisher_traces(found, kind, draws=2, seed=5)
    diagonals = fisher_diagonals(found, kind, draws=2, seed=5)
    for row, layer in enumerate(found.layers):
        matrix = fisher_matrix(found, kind, [layer], draws=2, seed=5)
        assert traces[row] == pytest.approx(np.trace(matrix), rel=1e-9)
        np.testing.assert_allclose(diagonals[layer].reshape(-1), np.diag(matrix), atol=1e-12)
    assert (errors > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_drawn_targets_give_the_true_fisher_on_average(loss: str) -> None:
    found = objective("mlp", loss=loss)
    true = fisher_matrix(found, "true")
    few, many = (np.linalg.norm(fisher_matrix(found, "drawn", draws=n) - true) for n in (4, 4000))
    assert many < 0.1 * np.linalg.norm(true)
    assert many < few / 5


@pytest.mark.parametrize(("channels", "groups", "few"), [(2, 1, False), (8, 1, True), (8, 2, True)])
def test_norms_are_those_of_the_gradients_by_both_ways_of_multiplying(channels: int, groups: int, few: bool) -> None:
    """With few places for long windows the gradients are not formed."""
    torch.manual_seed(0)
    size = 2 if few else 6
    conv = nn.Conv2d(channels, 8, 3, padding=1, groups=groups)
    module = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8 * size**2, 3)).eval()
    found = make_objective(module, images((channels, size, size), 4), layers=["0"], dtype=torch.float64)
    (part,) = output_slopes(found, Directions("fisher"))
    length, rows, places = 9 * channels // groups, 3 * 8 // groups, size**2
    assert (places * (length + rows) < rows * length) is few
    torch.testing.assert_close(part.squared_norms(), part.gradients().square().sum((1, 2)))


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="true, gauss-newton, empirical, drawn"):
        fisher_matrix(objective(), "exact")
