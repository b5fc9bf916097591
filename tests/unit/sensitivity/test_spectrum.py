"""The spectral density integrates to 1 and has the moments of the eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
from unit.sensitivity.nets import objective
from unit.sensitivity.test_eigenvalues import symmetric

from labkit.errors import InputError
from labkit.sensitivity.hessian import full_hessian
from labkit.sensitivity.spectrum import hessian_density, spectral_density


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_density_integrates_to_one(steps: int) -> None:
    matrix = symmetric(60, 0)
    found = spectral_density(lambda v: matrix @ v, 60, 4, steps)
    for weights in found.weights:
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert (weights >= 0).all()
    grid, width = found.grid(4000, 0.05)
    density = found.density(grid, width)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-5)
    assert np.trapezoid(density * grid, grid) == pytest.approx(found.moment(1)[0], abs=1e-4)


def test_quadrature_of_one_start_is_exact_up_to_its_degree() -> None:
    matrix, steps = symmetric(40, 1), 5
    found = spectral_density(lambda v: matrix @ v, 40, 1, steps, seed=2)
    start = np.random.default_rng((2, 0)).integers(0, 2, 40) * 2.0 - 1
    power = start
    for degree in range(1, 2 * steps + 2):
        power = matrix @ power
        exact = start @ power / 40
        got = found.moment(degree)[0]
        if degree < 2 * steps:
            assert got == pytest.approx(exact, rel=1e-8, abs=1e-12)
    assert abs(got - exact) > 1e-6  # and beyond it is not


@pytest.mark.parametrize("power", [1, 2, 3])
def test_moments_are_those_of_the_eigenvalues_within_the_stated_error(power: int) -> None:
    matrix = symmetric(60, 3, np.random.default_rng(0).exponential(size=60))
    exact = np.trace(np.linalg.matrix_power(matrix, power)) / 60
    runs = [spectral_density(lambda v: matrix @ v, 60, 8, 4, seed).moment(power) for seed in range(50)]
    values, errors = np.array(runs).T
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) <= 4 * spread / np.sqrt(len(runs))
    np.testing.assert_allclose(np.sqrt(np.square(errors).mean()), spread, rtol=0.35)


def test_distribution_is_that_of_the_eigenvalues() -> None:
    values = np.sort(np.random.default_rng(5).standard_normal(200))
    matrix = symmetric(200, 5, values)
    found = spectral_density(lambda v: matrix @ v, 200, 20, 60)
    grid, width = found.grid(4000, 0.02)
    below = np.cumsum(found.density(grid, width)) * (grid[1] - grid[0])
    exact = np.searchsorted(values, grid) / 200
    assert np.abs(below - exact).max() < 0.06


def test_density_of_a_hessian_has_its_trace() -> None:
    found = objective("branched", count=12)
    for layers in (None, ["fc"]):
        matrix, told = full_hessian(found, layers), []
        density = hessian_density(found, layers, 40, 20, progress=lambda done, most: told.append((done, most)))  # noqa: B023
        assert density.size == len(matrix)
        assert told[-1] == (800, 800)
        mean, error = density.moment(1)
        assert abs(mean * density.size - np.trace(matrix)) <= 4 * error * density.size
        top = np.linalg.eigvalsh(matrix)[-1]
        assert max(nodes.max() for nodes in density.nodes) == pytest.approx(top, rel=1e-6)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="at least one start"):
        spectral_density(lambda v: v, 3, 0)
    with pytest.raises(InputError, match="width"):
        spectral_density(lambda v: v, 3).density(np.zeros(2), 0)
