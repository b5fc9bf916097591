"""Coordinate descent against all answers, GPTQ against the update that it abbreviates, and what both must keep to."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from unit.quantization.weight_rounding.problems import form, grid_of

from labkit.errors import QuantizationError
from labkit.quantization.weight_rounding.descent import descend, descend_decisions
from labkit.quantization.weight_rounding.gptq import best_weights, gptq
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.simple import round_floor


def least_of_all(gram: Gram, grid: RowGrid, row: int) -> float:
    """The lowest error of one row over every combination of levels."""
    size = gram.cross.shape[1]
    levels = np.arange(grid.low[row, 0], grid.high[row, 0] + 1, grid.step)
    every = np.array(list(product(levels, repeat=size))) * grid.scale[row]
    matrix = gram.gram[row * gram.groups // len(gram.cross)]
    return float((((every @ matrix) * every).sum(1) - 2 * every @ gram.cross[row] + gram.energy[row]).min())


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("levels", ["narrow", "mirrored"])
@pytest.mark.parametrize("groups", [1, 2])
def test_descent_comes_near_the_best_of_all_answers(bits: int, levels: str, groups: int) -> None:
    left = whole = 0.0
    for seed in range(10):
        weights, gram = form(4, 5, groups, seed)
        grid = grid_of(weights, bits, levels)
        start = grid.nearest(weights)
        found = gram.error(grid.values(descend(start, grid, gram)))
        nearest = gram.error(grid.values(start))
        best = np.array([least_of_all(gram, grid, row) for row in range(4)])
        assert np.all(found >= best - 1e-9)
        assert np.all(found <= nearest + 1e-12)
        left, whole = left + (found - best).sum(), whole + (nearest - best).sum()
    assert left < 0.4 * whole


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_no_single_move_betters_the_result(bits: int, groups: int) -> None:
    weights, gram = form(6, 12, groups, 1)
    grid = grid_of(weights, bits)
    for low, high, found in (
        (grid.low + 0 * weights, grid.high + 0 * weights, descend(grid.nearest(weights), grid, gram, 1000)),
        (*grid.choices(weights), descend_decisions(weights, grid.nearest(weights), grid, gram, 1000)),
    ):
        assert np.all((found >= low) & (found <= high))
        error = gram.error(grid.values(found))
        for k, change in product(range(12), (-grid.step, grid.step)):
            moved = found.copy()
            moved[:, k] = np.clip(moved[:, k] + change, low[:, k], high[:, k])
            assert np.all(gram.error(grid.values(moved)) >= error - 1e-8)


def test_decisions_are_down_or_up_and_free_levels_are_not_worse_on_the_whole() -> None:
    free, restricted = 0.0, 0.0
    for seed in range(8):
        weights, gram = form(8, 30, seed=seed, shift=0.4)
        grid = grid_of(weights, 3)
        down, up = grid.choices(weights)
        decided = descend_decisions(weights, grid.nearest(weights), grid, gram)
        assert np.all((decided == down) | (decided == up))
        restricted += gram.error(grid.values(decided)).sum()
        free += gram.error(grid.values(descend(grid.nearest(weights), grid, gram))).sum()
    assert free < restricted


def test_the_toy_of_two_weights_where_nearest_is_wrong() -> None:
    """Two inputs that always agree: one weight rounded down and one up cancel, both to nearest do not."""
    gram = Gram(np.array([[[1.0, 0.95], [0.95, 1.0]]]), np.zeros((1, 2)), np.zeros(1), np.zeros((1, 2)), np.zeros(1), 9)
    weights = np.array([[0.4, 0.4]])
    gram = Gram(
        gram.gram, gram.times(weights), (gram.times(weights) * weights).sum(1), *[np.zeros((1, 2)), np.zeros(1)], 9
    )
    grid = grid_of(np.array([[3.0, 3.0]]), 3)
    assert grid.scale == 1
    assert np.array_equal(grid.nearest(weights), [[0, 0]])
    assert sorted(descend(grid.nearest(weights), grid, gram)[0]) == [0, 1]


def plain_gptq(weights, grid, gram, damping, ordered):  # type: ignore[no-untyped-def]
    """Optimal brain surgery, column by column, with a new inverse for the columns that are left: O(n) inversions."""
    levels = np.empty(weights.shape)
    together = len(weights) // gram.groups
    for group, matrix in enumerate(gram.gram):
        damped = matrix + damping * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        left = list(np.argsort(-np.diagonal(matrix), kind="stable") if ordered else range(len(matrix)))
        for row in range(group * together, (group + 1) * together):
            current, free = weights[row].copy(), list(left)
            while free:
                j = free[0]
                inverse = np.linalg.inv(damped[np.ix_(free, free)])
                level = grid.low[row, 0] + grid.step * np.rint(
                    (current[j] / grid.scale[row, 0] - grid.low[row, 0]) / grid.step
                )
                levels[row, j] = np.clip(level, grid.low[row, 0], grid.high[row, 0])
                error = current[j] - levels[row, j] * grid.scale[row, 0]
                current[free] -= error / inverse[0, 0] * inverse[0]
                free.pop(0)
    return levels


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize(
    ("bits", "groups", "levels"), [(3, 1, "narrow"), (2, 2, "mirrored"), (4, 1, "full"), (1, 1, "narrow")]
)
def test_gptq_is_repeated_optimal_surgery(ordered: bool, block: int, bits: int, groups: int, levels: str) -> None:
    weights, gram = form(6, 14, groups, seed=2)
    grid = grid_of(weights, bits, levels)
    found = gptq(weights, grid, gram, 0.01, block, ordered)
    assert np.array_equal(found, plain_gptq(weights, grid, gram, 0.01, ordered))


def test_gptq_beats_nearest() -> None:
    weights, gram = form(20, 40, seed=5, shift=0)
    grid = grid_of(weights, 3)
    errors = [gram.error(grid.values(levels)).sum() for levels in (grid.nearest(weights), gptq(weights, grid, gram))]
    assert errors[1] - 20 < 0.7 * (errors[0] - 20)


@pytest.mark.parametrize("groups", [1, 3])
def test_best_weights_have_no_gradient(groups: int) -> None:
    weights, gram = form(6, 10, groups, shift=0.7)
    best = best_weights(gram)
    assert np.abs(gram.half_gradient(best)).max() < 1e-9
    np.testing.assert_allclose(gram.error(best), 1, rtol=1e-9)
    assert not np.allclose(best, weights, atol=0.1)


def test_a_matrix_without_an_inverse_is_refused() -> None:
    weights, gram = form(2, 4)
    flat = Gram(np.zeros_like(gram.gram), gram.cross, gram.energy, gram.input_mean, gram.output_mean, 1)
    with pytest.raises(QuantizationError, match="positive definite"):
        gptq(weights, grid_of(weights), flat)
    with pytest.raises(QuantizationError, match="singular"):
        best_weights(flat)


def test_descent_from_a_bad_start_still_ends_on_the_grid() -> None:
    weights, gram = form(5, 9)
    grid = grid_of(weights, 2, "mirrored")
    grid.tensor(descend(round_floor(weights, grid), grid, gram), weights.shape)
