"""Grids against plain restatements: rounding, choices, and scales compared with a finer search."""

from __future__ import annotations

import numpy as np
import pytest
from unit.quantization.weight_rounding.problems import form, grid_of

from labkit.arithmetic.affine import PerAxis, PerTensor, QuantSpec, params_from_values, quantize
from labkit.errors import QuantizationError
from labkit.quantization.weight_rounding.grids import (
    LEVELS,
    RowGrid,
    grid_spec,
    minmax_grid,
    mse_grid,
    output_mse_grid,
    refit_scale,
)
from labkit.quantization.weight_rounding.simple import (
    round_ceil,
    round_floor,
    round_nearest,
    round_stochastic,
    up_share,
)

WEIGHTS = form(6, 20, seed=3)[0]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_nearest_on_the_narrow_grid_is_labkits_own_rounding(bits: int, per_channel: bool) -> None:
    grid = grid_of(WEIGHTS, bits, per_channel=per_channel)
    small = WEIGHTS.astype(np.float32)
    params = params_from_values(small, grid.spec)
    tensor = minmax_grid(small.astype(np.float64), grid.spec).tensor(grid.nearest(WEIGHTS), (6, 4, 5))
    assert np.array_equal(tensor.values.reshape(6, 20), quantize(small, params, grid.spec))
    assert tensor.values.shape == (6, 4, 5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("levels", "count"), [("narrow", -1), ("full", 0), ("mirrored", 0)])
def test_levels_are_counted(bits: int, levels: str, count: int) -> None:
    grid = grid_of(WEIGHTS, bits, levels)
    assert np.all(grid.high - grid.low + 1 == 2**bits + count)
    if levels == "mirrored":
        assert set(np.unique(grid.params.zero_point)) <= {0, -1}
        assert len(set(np.unique(grid.params.zero_point))) == 2, "no row leans the other way: the case tests nothing"


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_minmax_covers_all_weights(levels: str, per_channel: bool) -> None:
    grid = grid_of(WEIGHTS, 3, levels, per_channel)
    assert np.all((grid.high * grid.scale) * (1 + 1e-6) >= WEIGHTS)
    assert np.all((grid.low * grid.scale) * (1 + 1e-6) <= WEIGHTS)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_integers_stand_for_the_levels(levels: str, bits: int) -> None:
    grid = grid_of(WEIGHTS, bits, levels)
    chosen = grid.nearest(WEIGHTS)
    np.testing.assert_allclose(grid.tensor(chosen, WEIGHTS.shape).dequantized(), grid.values(chosen), rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_simple_roundings_take_one_of_the_two_choices(bits: int) -> None:
    grid = grid_of(0.7 * WEIGHTS, bits)  # so that some weights lie beyond the ends
    down, up = grid.choices(WEIGHTS)
    beyond = (WEIGHTS / grid.scale < grid.low) | (WEIGHTS / grid.scale > grid.high)
    assert beyond.any() and np.array_equal(down == up, beyond)
    assert np.array_equal(round_floor(WEIGHTS, grid), down)
    assert np.array_equal(round_ceil(WEIGHTS, grid), up)
    drawn = [round_stochastic(WEIGHTS, grid, np.random.default_rng(seed)) for seed in range(400)]
    assert all(np.all((levels == down) | (levels == up)) for levels in drawn)
    share = (np.mean(drawn, 0) - down) / grid.step
    np.testing.assert_allclose(share[~beyond], up_share(WEIGHTS, grid)[~beyond], atol=0.13)
    away = np.abs(up_share(WEIGHTS, grid) - 0.5) > 1e-9
    nearest = round_nearest(WEIGHTS, grid)
    assert np.array_equal(nearest[away], np.where(up_share(WEIGHTS, grid) > 0.5, up, down)[away])


def test_weights_on_a_level_stay_there() -> None:
    grid = RowGrid(QuantSpec(3, narrow=True), params_from_values(np.array([3.0]), QuantSpec(3, narrow=True)), 1)
    exact = np.array([[-3.0, -1.0, 0.0, 2.0, 3.0]])
    for choose in (round_floor, round_ceil, round_nearest):
        assert np.array_equal(choose(exact, grid), exact)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_searched_scales_are_as_good_as_a_finer_search(levels: str, per_channel: bool, bits: int) -> None:
    weights, gram = form(5, 16, seed=4)
    spec = grid_spec(QuantSpec(bits, narrow=True, granularity=PerAxis(0) if per_channel else PerTensor()), levels)

    def least(error):  # type: ignore[no-untyped-def]
        """By a search of its own over scales and mirrorings, row by row."""
        largest, found = np.abs(weights).max(1), []
        for mirrored in (False, True) if levels == "mirrored" else (False,):
            n = 2 ** (bits - 1)
            low, high = (1 - n if levels == "narrow" else -n), n - 1
            if mirrored:
                low, high = -high, -low
            for share in np.linspace(0.1, 2.2, 300):
                scale = (np.full(5, largest.max()) if not per_channel else largest)[:, None] * share / n
                found.append(error(scale * np.clip(np.rint(weights / scale), low, high)))
        return np.min(found, 0).sum() if per_channel else np.min(np.sum(found, 1))

    def squares(values):  # type: ignore[no-untyped-def]
        return np.square(values - weights).sum(1)

    for grid, error in ((mse_grid(weights, spec), squares), (output_mse_grid(weights, spec, gram), gram.error)):
        assert error(grid.values(grid.nearest(weights))).sum() < 1.1 * least(error)


def test_importance_weighs_the_error() -> None:
    importance = np.ones_like(WEIGHTS)
    importance[:, np.abs(WEIGHTS).argmax(1)] = 1000
    spec = QuantSpec(2, narrow=True, granularity=PerAxis(0))
    assert np.all(mse_grid(WEIGHTS, spec, importance).scale > mse_grid(WEIGHTS, spec).scale)


@pytest.mark.parametrize("per_channel", [True, False])
def test_refit_is_the_least_squares_scale(per_channel: bool) -> None:
    weights, gram = form(5, 16, seed=5)
    grid = grid_of(weights, 2, per_channel=per_channel)
    levels = grid.nearest(weights)
    fitted = refit_scale(grid, levels, gram)
    best = gram.error(fitted.values(levels))
    for share in (0.99, 1.01):
        other = gram.error(levels * fitted.scale * share)
        assert np.all(other > best) if per_channel else other.sum() > best.sum()


def test_refit_keeps_a_scale_that_cannot_be_fitted() -> None:
    weights, gram = form(3, 8)
    grid = grid_of(weights)
    assert np.array_equal(refit_scale(grid, np.zeros_like(weights), gram).scale, grid.scale)
    assert np.array_equal(refit_scale(grid, -grid.nearest(weights), gram).scale, grid.scale)


def test_what_is_no_level_is_refused() -> None:
    grid = grid_of(WEIGHTS)
    with pytest.raises(QuantizationError, match="whole number"):
        grid.tensor(np.full_like(WEIGHTS, 0.5), WEIGHTS.shape)
    with pytest.raises(QuantizationError, match="on the grid"):
        grid.tensor(np.full_like(WEIGHTS, 4), WEIGHTS.shape)
    with pytest.raises(QuantizationError, match="levels must be one of narrow, full, mirrored, got 'wide'"):
        grid_spec(grid.spec, "wide")
    dead = WEIGHTS.copy()
    dead[2] = 0
    with pytest.raises(QuantizationError, match="channel 2 holds only zeros"):
        mse_grid(dead, grid.spec)
