"""Eigenvalues by Lanczos and by power iteration against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
from unit.sensitivity.nets import objective

from labkit.errors import InputError
from labkit.sensitivity.eigenvalues import lanczos, lanczos_eigenvalues, power_iteration, top_eigenvalues
from labkit.sensitivity.hessian import full_hessian


def symmetric(size: int, seed: int, values: np.ndarray | None = None) -> np.ndarray:
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    values = generator.standard_normal(size) if values is None else values
    return (basis * values) @ basis.T


@pytest.mark.parametrize("seed", range(4))
def test_lanczos_with_all_steps_finds_all_eigenvalues(seed: int) -> None:
    matrix = symmetric(30, seed)
    found = lanczos(lambda v: matrix @ v, np.random.default_rng(seed).standard_normal(30), 30)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(30), atol=1e-12)
    np.testing.assert_allclose(found.ritz()[0], np.linalg.eigvalsh(matrix), atol=1e-10)


def test_lanczos_has_no_copies_where_it_would_without_reorthogonalisation() -> None:
    values = np.concatenate([np.linspace(0, 1, 199), [1000.0]])  # the large one converges first and would come back
    matrix = symmetric(200, 0, values)
    found = lanczos(lambda v: matrix @ v, np.random.default_rng(0).standard_normal(200), 60)
    assert (found.ritz()[0] > 500).sum() == 1
    assert np.abs(found.basis @ found.basis.T - np.eye(60)).max() < 1e-12


def test_lanczos_stops_where_the_space_is_invariant() -> None:
    matrix = symmetric(40, 1, np.concatenate([[3.0, 2.0, -1.0], np.zeros(37)]))
    found = lanczos(lambda v: matrix @ v, np.random.default_rng(0).standard_normal(40), 40)
    assert len(found.diagonal) == 4  # three directions and the null space's share of the start
    assert found.last == 0
    np.testing.assert_allclose(found.ritz()[0], [-1, 0, 2, 3], atol=1e-9)


@pytest.mark.parametrize("method", [lanczos_eigenvalues, power_iteration])
def test_eigenpairs_are_those_of_largest_magnitude(method: object) -> None:
    values = np.array([5.0, -4.0, 3.0, -2.0, *np.linspace(-1, 1, 40)])
    matrix = symmetric(44, 3, values)
    many = {"steps": 44} if method is lanczos_eigenvalues else {"iterations": 500, "tolerance": 1e-10}
    found = method(lambda v: matrix @ v, 44, 4, **many)  # type: ignore[operator]
    np.testing.assert_allclose(found.values, [5, -4, 3, -2], rtol=1e-9)
    gaps = np.linalg.norm(found.vectors @ matrix - found.values[:, None] * found.vectors, axis=1)
    np.testing.assert_allclose(gaps, found.residuals, atol=1e-8)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(4), atol=1e-8)


def test_residual_bounds_the_error_before_convergence() -> None:
    matrix = symmetric(100, 4)
    exact = np.linalg.eigvalsh(matrix)
    for found in (
        lanczos_eigenvalues(lambda v: matrix @ v, 100, 3, 8),
        power_iteration(lambda v: matrix @ v, 100, 1, 8),
    ):
        assert (found.residuals > 1e-3).any()
        for value, residual in zip(found.values, found.residuals, strict=True):
            assert np.abs(exact - value).min() <= residual


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("name", ["branched", "gate"])
def test_top_eigenvalues_are_those_of_the_matrix(name: str, method: str) -> None:
    found = objective(name, count=12)
    for layers in (None, [found.layers[1]]):
        exact = np.linalg.eigvalsh(full_hessian(found, layers))
        exact = exact[np.argsort(-np.abs(exact))][:2]
        got = top_eigenvalues(found, layers, 2, method, iterations=300 if method == "power" else None)
        np.testing.assert_allclose(got.values, exact, rtol=1e-4)


def test_lanczos_needs_fewer_products_than_power_iteration() -> None:
    found = objective("branched", count=12)
    power, quick = top_eigenvalues(found, count=3, method="power"), top_eigenvalues(found, count=3)
    assert quick.products < power.products
    assert quick.residuals.max() < 1e-3 * abs(quick.values[-1])


def test_progress_ends_and_bad_numbers_are_refused() -> None:
    told: list[tuple[int, int]] = []
    matrix = np.diag([1.0, 1.0, 2.0])
    lanczos(lambda v: matrix @ v, np.ones(3), 3, lambda done, most: told.append((done, most)))
    assert told[-1] == (3, 3)
    with pytest.raises(InputError, match="not 0"):
        lanczos(lambda v: v, np.zeros(3), 2)
    with pytest.raises(InputError, match=r"count must be 1\.\.3"):
        lanczos_eigenvalues(lambda v: v, 3, 4)
    with pytest.raises(InputError, match=r"count must be 1\.\.3"):
        power_iteration(lambda v: v, 3, 0)
    with pytest.raises(InputError, match="lanczos, power"):
        top_eigenvalues(objective(), method="qr")
