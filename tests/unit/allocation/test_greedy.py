"""The greedy: how many steps it makes, how fast, when it is best, and by how much it can fail."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from unit.allocation.problems import KINDS, problem

from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("hull", [True, False])
def test_at_most_one_step_for_each_layer_and_width(kind: str, direction: str, hull: bool) -> None:
    for share in (0.0, 0.3, 0.9, 1.0):
        given = problem(kind, 30, 8, 4, share)
        found = solve_greedy(given, direction, hull=hull)
        assert 0 <= found.notes["steps"] <= 30 * 8
        assert found.method == f"greedy-{direction}{'' if hull else ' without hull'}"


@pytest.mark.parametrize("seed", range(10))
def test_directions_meet_at_the_ends(seed: int) -> None:
    best = problem("net", 10, 8, seed, 1.0)
    for direction in ("up", "down"):
        for hull in (True, False):
            assert set(solve_greedy(best, direction, hull=hull).bits) <= set(solve_exact(best).bits)
            assert solve_greedy(best, direction, hull=hull).value == solve_exact(best).value
    assert solve_greedy(best, "down").notes["steps"] == 0


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("seed", range(10))
def test_on_convex_tables_the_hull_changes_nothing(direction: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 10_000, 15)[:, None]
    bits = np.arange(1, 9)
    values = rng.lognormal(0, 2, (15, 1)) * 4.0**-bits  # each bit gains a quarter of the one before
    names = tuple(f"l{i}" for i in range(15))
    given = Mckp(names, tuple(range(1, 9)), values, (sizes * bits / 8)[None], (float(sizes.sum()) * 3 / 8,))
    assert solve_greedy(given, direction).bits == solve_greedy(given, direction, hull=False).bits


@pytest.mark.parametrize("scale", [2.0, 10.0, 1000.0])
def test_up_fails_where_a_small_step_blocks_a_large_one(scale: float) -> None:
    # The first layer gains slightly more for a unit, and takes the place of a step that gains `scale` times as much.
    values = [[1.1, 0.0], [scale, 0.0]]
    costs = [[[0.0, 1.0], [0.0, scale]]]
    given = Mckp(("small", "large"), (4, 8), values, costs, (scale,))  # type: ignore[arg-type]
    exact, greedy = solve_exact(given), solve_greedy(given)
    assert (exact.bits, exact.value) == ((4, 8), 1.1)
    assert (greedy.bits, greedy.value) == ((8, 4), scale)
    assert greedy.gap >= greedy.value - exact.value  # and its own bound says so


@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_the_hull_fails_where_the_best_choice_is_off_it(scale: float) -> None:
    # Three quarters of the cost gain nearly all, but a little less than the straight line to the last choice.
    values = [[scale, 0.26 * scale, 0.0]]
    costs = [[[0.0, 3.0, 4.0]]]
    given = Mckp(("only",), (2, 4, 8), values, costs, (3.5,))  # type: ignore[arg-type]
    assert solve_exact(given).bits == (4,)
    for direction in ("up", "down"):
        greedy = solve_greedy(given, direction)
        assert greedy.bits == (2,) and greedy.value / solve_exact(given).value == pytest.approx(1 / 0.26)
        assert greedy.relative_gap > 0.7


@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_without_the_hull_a_poor_step_hides_a_good_one(scale: float) -> None:
    # From 2 to 4 bits the first layer gains nothing to speak of, from 4 to 8 everything: only the hull sees past 4.
    values = [[scale, scale - 0.1, 0.0], [1.0, 0.5, 0.0]]
    costs = [[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]]
    given = Mckp(("late", "even"), (2, 4, 8), values, costs, (2.0,))  # type: ignore[arg-type]
    assert solve_greedy(given).value == solve_exact(given).value == 1.0
    walked = solve_greedy(given, hull=False)
    assert walked.bits == (2, 8) and walked.value == scale


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(QuantizationError, match="direction must be one of up, down, got 'sideways'"):
        solve_greedy(problem("net", 3, 3, 0), "sideways")


def least_cpu_seconds(call: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


@pytest.mark.parametrize("kind", ["net", "any", "real"])
def test_two_hundred_layers_of_eight_widths_are_fast(kind: str) -> None:
    given = problem(kind, 200, 8, 1)
    assert least_cpu_seconds(lambda: solve_greedy(given), 7) < 0.010
    assert least_cpu_seconds(lambda: solve_greedy(given, "down"), 7) < 0.010
    assert least_cpu_seconds(lambda: solve_exact(given), 3) < 1.0


def test_the_greedy_grows_no_faster_than_its_sort() -> None:
    few, many = problem("net", 200, 8, 2), problem("net", 1600, 8, 2)
    ratio = least_cpu_seconds(lambda: solve_greedy(many), 7) / least_cpu_seconds(lambda: solve_greedy(few), 7)
    assert ratio < 32  # 8 times the layers; O(|B| L^2) would take 64 times as long
