"""Which integers an affine grid can give: exact answers against grids that were put in, and one layer of 4 bits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from labkit.arithmetic.requantize import Requantizer
from labkit.studies.hawq import mapping
from labkit.studies.hawq.affine_grids import best_line, largest_set, largest_set_of_integers, out_of_order
from labkit.studies.hawq.mapping import one_layer


def made(seed: int, count: int, x: Fraction, z: int) -> list[tuple[Fraction, int]]:
    """Pairs that the grid (x, z) has."""
    reals = [Fraction(int(n), 100) for n in np.random.default_rng(seed).integers(-900, 900, count)]
    return [(r, int((r * x + Fraction(1, 2)).__floor__()) - z) for r in reals]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("x", "z"), [(Fraction(25), -116), (Fraction(7, 3), 5), (Fraction(1, 2), 0)])
def test_a_grid_that_was_put_in_is_found(seed: int, x: Fraction, z: int) -> None:
    pairs = made(seed, 9, x, z)
    for count, (found_x, found_z) in (largest_set(pairs), largest_set_of_integers(pairs, 200)):
        assert count == 9
        assert all(abs(r * found_x - found_z - q) <= Fraction(1, 2) for r, q in pairs)
    assert best_line(pairs)[0] <= Fraction(1, 2)
    assert not out_of_order(pairs)


@pytest.mark.parametrize("spoilt", [1, 2])
def test_spoilt_pairs_are_left_out(spoilt: int) -> None:
    pairs = made(0, 8, Fraction(25), -100)
    wrong = [(r, q + 1000) if i < spoilt else (r, q) for i, (r, q) in enumerate(pairs)]
    assert largest_set(wrong)[0] == 8 - spoilt
    assert largest_set_of_integers(wrong, 150)[0] == 8 - spoilt


def test_largest_set_is_not_smaller_than_on_a_fine_search() -> None:
    pairs = tuple((Fraction(r), q) for r, q in zip(mapping._REAL, mapping._PRINTED, strict=True))
    reals, integers = np.array([float(r) for r, _ in pairs]), np.array(mapping._PRINTED)
    found = 0
    for x in np.linspace(0.5, 80, 1500):
        moved = reals * x - integers  # Z must be within 1/2 of it
        found = max(found, max(int((np.abs(moved - z) <= 0.5).sum()) for z in moved + 0.499))
    assert found <= largest_set(pairs)[0] < len(pairs)
    assert largest_set_of_integers(pairs, 700)[0] <= largest_set(pairs)[0]


def test_best_line_against_a_fine_search() -> None:
    pairs = [(Fraction(r), q) for r, q in ((-2, 3), (0, 1), (1, 9), (4, 12), (5, 30))]
    error, (x, z) = best_line(pairs)
    assert max(abs(r * x - z - q) for r, q in pairs) == error
    slopes, shifts = np.meshgrid(np.linspace(0, 8, 321), np.linspace(-20, 20, 801))
    searched = np.max([np.abs(float(r) * slopes + shifts - q) for r, q in pairs], axis=0).min()
    assert float(error) <= searched <= float(error) + 0.2


def test_order() -> None:
    assert out_of_order([(Fraction(1), 5), (Fraction(2), 4), (Fraction(3), 9)]) == [(0, 1)]


@pytest.mark.parametrize("shape", [(5, 3), (7, 40)])
def test_one_layer(shape: tuple[int, int]) -> None:
    found = one_layer(*shape, seed=3, rows=40)
    assert (found.not_oracle, found.not_rational, found.outputs) == (0, 0, 40 * shape[0])
    assert 0.4 < found.from_float <= 0.5 + 2.0**-23


def test_wrong_integers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mapping._whole_numbers

    def down(sums: np.ndarray, requantizer: Requantizer) -> np.ndarray:
        return whole(sums - 1, requantizer)

    monkeypatch.setattr(mapping, "_whole_numbers", down)
    assert one_layer(7, 40, seed=3, rows=40).not_oracle > 0


def test_halves_are_rounded_up() -> None:
    ratio = np.float32(0.5), np.float32(1), np.float32(1)
    values = mapping._rational(np.array([-3, -1, 1, 3, 100]), *ratio)
    assert values.tolist() == [-1, 0, 1, 2, 7]
