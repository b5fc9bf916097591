"""QUBOs against the loss they stand for, and every solver against all answers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from unit.quantization.weight_rounding.problems import form, grid_of

from labkit.errors import InputError
from labkit.quantization.weight_rounding.qubo import Qubo, decisions_qubo, hessian_qubo
from labkit.quantization.weight_rounding.qubo_solvers import (
    LARGEST_EXACT,
    anneal,
    cross_entropy,
    descend_bits,
    solve_exactly,
)
from labkit.quantization.weight_rounding.simple import up_share


def random_qubo(size: int, seed: int) -> Qubo:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, size))
    return Qubo((matrix + matrix.T) / 2, rng.normal(size=size), float(rng.normal()))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_energy_is_the_error_of_the_decided_weights(groups: int, bits: int) -> None:
    weights, gram = form(4, 7, groups, seed=1)
    grid = grid_of(0.8 * weights, bits)
    down, up = grid.choices(weights)
    rng = np.random.default_rng(0)
    for row in range(4):
        qubo, free = decisions_qubo(weights, grid, gram, row)
        assert np.array_equal(free, np.flatnonzero(down[row] != up[row]))
        assert len(free) < 7 or bits > 1
        z = rng.random((50, len(free))) < 0.5
        for bits_drawn, energy in zip(z, qubo.energy(z), strict=True):
            levels = down.copy()
            levels[row, free[bits_drawn]] = up[row, free[bits_drawn]]
            assert energy == pytest.approx(gram.error(grid.values(levels))[row], rel=1e-9)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_energy_of_a_hessian_is_the_second_order_rise(with_gradient: bool) -> None:
    weights, _ = form(2, 5)
    grid = grid_of(weights, 3)
    rng = np.random.default_rng(1)
    hessian = rng.normal(size=(10, 10))
    hessian = hessian + hessian.T
    gradient = rng.normal(size=10) if with_gradient else None
    qubo, free = hessian_qubo(weights, grid, hessian, gradient)
    down, up = (grid.values(levels).reshape(-1) for levels in grid.choices(weights))
    for _ in range(20):
        z = rng.random(len(free)) < 0.5
        change = down - weights.reshape(-1)
        change[free[z]] = (up - weights.reshape(-1))[free[z]]
        wanted = change @ hessian @ change / 2 + (0 if gradient is None else gradient @ change)
        assert qubo.energy(z) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_channels_do_not_interact() -> None:
    """Appendix B of the AdaRound paper: the joint problem of a layer is the sum of its channels' problems."""
    weights, gram = form(3, 4)
    grid = grid_of(weights, 3)
    joint = np.kron(np.eye(3), gram.gram[0])
    symmetric = gram.symmetric(weights)
    whole, free = hessian_qubo(weights, grid, 2 * joint)
    parts = [decisions_qubo(weights, grid, symmetric, row) for row in range(3)]
    assert np.array_equal(free, np.concatenate([4 * row + part[1] for row, part in enumerate(parts)]))
    ends = np.cumsum([len(part[1]) for part in parts])[:-1]
    for seed in range(10):
        z = np.random.default_rng(seed).random(whole.size) < 0.5
        apart = sum(part[0].energy(piece) for part, piece in zip(parts, np.split(z, ends), strict=True))
        assert whole.energy(z) == pytest.approx(apart, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_exact_answer_is_the_least_of_all(size: int) -> None:
    for seed in range(5):
        qubo = random_qubo(size, seed)
        every = np.array(list(product((0, 1), repeat=size)))
        assert qubo.energy(solve_exactly(qubo)) == pytest.approx(qubo.energy(every).min(), abs=1e-12)


def test_exact_answer_of_no_bits_is_empty() -> None:
    assert solve_exactly(Qubo(np.zeros((0, 0)), np.zeros(0))).shape == (0,)


@pytest.mark.parametrize(("solver", "left"), [(cross_entropy, 0.1), (anneal, 0.02), (descend_bits, 0.15)])
def test_solvers_go_most_of_the_way_to_the_exact_answer(solver, left: float) -> None:  # type: ignore[no-untyped-def]
    short = whole = 0.0
    for seed in range(12):
        qubo, chance = random_qubo(14, seed), np.random.default_rng(seed).uniform(0.3, 0.7, 14)
        found = solver(qubo, chance, np.random.default_rng(0))
        assert found.dtype == np.bool_ and found.shape == (14,)
        best, start = float(qubo.energy(solve_exactly(qubo))), float(qubo.energy(chance >= 0.5))
        assert best - 1e-9 <= qubo.energy(found) <= start + 1e-9
        short, whole = short + float(qubo.energy(found)) - best, whole + start - best
    assert short < left * whole


@pytest.mark.parametrize("solver", [cross_entropy, anneal])
def test_solvers_repeat_themselves(solver) -> None:  # type: ignore[no-untyped-def]
    qubo, chance = random_qubo(40, 1), np.full(40, 0.5)
    once, again = (solver(qubo, chance, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(once, again)


def test_start_near_nearest_rounding_helps_the_cross_entropy_method() -> None:
    """Appendix A: of few samples, those drawn around the likely answers are better."""
    near = far = 0.0
    for seed in range(6):
        weights, gram = form(1, 60, seed=seed, shift=0)
        grid = grid_of(weights, 4)
        qubo, free = decisions_qubo(weights, grid, gram, 0)
        share = up_share(weights, grid)[0, free]
        near += qubo.energy(cross_entropy(qubo, share, np.random.default_rng(0), samples=30, iterations=5))
        far += qubo.energy(
            cross_entropy(qubo, np.full(len(free), 0.5), np.random.default_rng(0), samples=30, iterations=5)
        )
    assert near < far


def test_what_is_no_qubo_is_refused() -> None:
    with pytest.raises(InputError, match="symmetric 2 x 2"):
        Qubo(np.array([[0.0, 1.0], [0.0, 0.0]]), np.zeros(2))
    with pytest.raises(InputError, match=f"at most {LARGEST_EXACT} bits, got 21"):
        solve_exactly(random_qubo(21, 0))
    weights, _ = form(2, 5)
    with pytest.raises(InputError, match="10 weights"):
        hessian_qubo(weights, grid_of(weights), np.eye(9))
