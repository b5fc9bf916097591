"""AdaRound's loss against torch and finite differences, its decisions against all answers, and the way from V to integers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from unit.quantization.weight_rounding.problems import form, grid_of

from labkit.quantization.weight_rounding.adaround import (
    HOPFIELD,
    RECTIFIED,
    SIGMOID,
    Relaxation,
    adaround,
    adaround_loss,
)
from labkit.quantization.weight_rounding.relaxation import (
    annealed_beta,
    decide,
    decided_levels,
    initial_variables,
    penalty,
    rectified_sigmoid,
    soft_weights,
)
from labkit.quantization.weight_rounding.simple import round_nearest, up_share
from labkit.quantization.weight_rounding.straight_through import straight_through

RELAXATIONS = {"rectified": RECTIFIED, "sigmoid": SIGMOID, "hopfield": HOPFIELD}


@pytest.mark.parametrize("beta", [None, 2.0, 8.0, 20.0])
@pytest.mark.parametrize("groups", [1, 2])
def test_loss_and_gradient_are_those_of_torch_and_of_differences(beta: float | None, groups: int) -> None:
    weights, gram = form(4, 6, groups)
    grid = grid_of(weights, 3)
    variables = np.random.default_rng(0).normal(scale=1.5, size=weights.shape)
    loss, gradient = adaround_loss(variables, weights, grid, gram, 0.3, beta)

    v = torch.tensor(variables, requires_grad=True)
    h = torch.clamp(torch.sigmoid(v) * 1.2 - 0.1, 0, 1)
    scale, floor = torch.tensor(grid.scale.copy()), torch.floor(torch.tensor(weights / grid.scale))
    soft = scale * torch.clip(floor + h, -3, 3)
    matrices, cross = torch.tensor(np.array(gram.gram)), torch.tensor(np.array(gram.cross))
    applied = (soft.reshape(groups, -1, 6) @ matrices).reshape(4, 6)
    wanted = (applied * soft - 2 * cross * soft).sum() + float(gram.energy.sum())
    if beta is not None:
        wanted = wanted + 0.3 * (1 - (2 * h - 1).abs() ** beta).sum()
    wanted.backward()
    assert v.grad is not None
    assert loss == pytest.approx(wanted.item(), rel=1e-10)
    np.testing.assert_allclose(gradient, v.grad.numpy(), atol=1e-9)

    step = 1e-6
    for row, column in product(range(4), range(0, 6, 2)):
        ahead, back = variables.copy(), variables.copy()
        ahead[row, column] += step
        back[row, column] -= step
        slope = (
            adaround_loss(ahead, weights, grid, gram, 0.3, beta)[0]
            - adaround_loss(back, weights, grid, gram, 0.3, beta)[0]
        )
        assert slope / (2 * step) == pytest.approx(gradient[row, column], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_descent_in_float32_is_adam_on_that_loss(name: str) -> None:
    """The loop against torch's Adam in float64, over the phases with and without the penalty."""
    relaxation: Relaxation = RELAXATIONS[name]
    weights, gram = form(3, 8, seed=2)
    grid = grid_of(weights, 3)
    iterations = 60
    levels, history = adaround(weights, grid, gram, relaxation, iterations, 0.05, 0.02, 0.2, keep=(0, iterations))
    v = torch.tensor(initial_variables(weights, grid, relaxation.zeta, relaxation.gamma), requires_grad=True)
    down, up = (torch.tensor(level) for level in grid.choices(weights))
    matrix, cross, scale = (
        torch.tensor(np.array(gram.gram[0])),
        torch.tensor(np.array(gram.cross)),
        torch.tensor(grid.scale.copy()),
    )
    optimizer, losses = torch.optim.Adam([v], lr=0.05), []

    def decisions(temperature: float) -> torch.Tensor:
        return torch.clamp(
            torch.sigmoid(v / temperature) * (relaxation.zeta - relaxation.gamma) + relaxation.gamma, 0, 1
        )

    for step in range(iterations):
        temperature = 0.05 ** (step / iterations) if relaxation.anneals else 1.0
        with torch.no_grad():
            w = scale * (down + decisions(temperature) * (up - down))
            losses.append(float(((w @ matrix - 2 * cross) * w).sum() + gram.energy.sum()))
        h = decisions(temperature)
        loss = (2 * (w @ matrix - cross) * scale * (up - down) * h).sum()
        beta = annealed_beta(step, iterations, 0.2)
        if relaxation.penalty and beta is not None:
            loss = loss + 0.02 * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(history.losses, losses, rtol=2e-3)
    np.testing.assert_allclose(history.decisions[0], up_share(weights, grid), atol=2e-3)
    assert np.array_equal(levels, torch.where(v >= 0, up, down).detach().numpy())


@pytest.mark.parametrize("name", RELAXATIONS)
def test_decisions_come_near_the_best_of_all(name: str) -> None:
    left = whole = 0.0
    for seed in range(6):
        weights, gram = form(2, 7, seed=seed)
        grid = grid_of(weights, 3)
        down, up = grid.choices(weights)
        levels, _ = adaround(weights, grid, gram, RELAXATIONS[name], 600, 0.02, regularization=0.02)
        assert np.all((levels == down) | (levels == up))
        error, nearest = gram.error(grid.values(levels)), gram.error(grid.values(round_nearest(weights, grid)))
        every = np.array(list(product((False, True), repeat=7)))
        best = np.array(
            [min(gram.error(grid.values(np.where(ups, up, down)))[row] for ups in every) for row in range(2)]
        )
        left, whole = left + (error - best).sum(), whole + (nearest - best).sum()
    assert left < 0.75 * whole


def test_all_decisions_are_made_in_the_end() -> None:
    weights, gram = form(6, 20, seed=1)
    grid = grid_of(weights, 4)
    _, history = adaround(
        weights, grid, gram, iterations=1500, learning_rate=0.02, regularization=0.05, keep=(0, 300, 1500)
    )
    undecided = {step: np.mean((h > 0.01) & (h < 0.99)) for step, h in history.decisions.items()}
    assert undecided[0] > 0.9
    assert undecided[1500] < 0.02
    assert np.mean((history.decisions[1500] > 0.5) != (history.decisions[0] > 0.5)) > 0.02, (
        "no decision differs from nearest"
    )


def test_soft_weights_start_as_the_weights() -> None:
    weights, _ = form(5, 12)
    grid = grid_of(weights, 4)
    variables = initial_variables(weights, grid)
    np.testing.assert_allclose(
        soft_weights(weights, rectified_sigmoid(variables), grid), weights, atol=1.1e-3 * grid.scale.max()
    )
    levels = decided_levels(weights, decide(variables), grid)
    assert np.array_equal(levels, grid.nearest(weights))
    tensor = grid.tensor(levels, (5, 3, 4))
    np.testing.assert_allclose(tensor.dequantized().reshape(5, 12), grid.values(levels), rtol=1e-6)


def test_rectified_sigmoid_reaches_its_ends_and_sharpens() -> None:
    v = np.array([-9.0, -2.5, 0.0, 2.5, 9.0])
    assert np.array_equal(rectified_sigmoid(v)[[0, 1, 3, 4]], [0, 0, 1, 1])
    assert rectified_sigmoid(v)[2] == pytest.approx(0.5)
    np.testing.assert_allclose(rectified_sigmoid(v, 1, 0, 0.01), [0, 0, 0.5, 1, 1], atol=1e-12)


def test_penalty_and_its_schedule() -> None:
    assert penalty(np.array([0.0, 1.0]), 2) == 0
    assert penalty(np.array([0.5, 0.5]), 20) == 2
    assert penalty(np.array([0.25]), 2) == pytest.approx(0.75)
    assert annealed_beta(19, 100, 0.2) is None
    assert annealed_beta(20, 100, 0.2) == pytest.approx(20)
    assert annealed_beta(60, 100, 0.2) == pytest.approx(11)
    assert annealed_beta(100, 100, 0.2) == pytest.approx(2)


def test_straight_through_rounding_lowers_the_error() -> None:
    weights, gram = form(8, 24, seed=3, shift=0.5)
    grid = grid_of(weights, 3)
    levels, history = straight_through(weights, grid, gram)
    grid.tensor(levels, weights.shape)
    assert history.losses[0] == pytest.approx(gram.error(grid.values(grid.nearest(weights))).sum())
    assert gram.error(grid.values(levels)).sum() - 8 < 0.7 * (history.losses[0] - 8)
    down, up = grid.choices(weights)
    assert np.any((levels != down) & (levels != up)), "no level moved further than one step"
