"""The plans that the study compares: within the size, filled up, and made as they say."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.allocation.budgets import average_bits
from labkit.allocation.cost_table import CostTable
from labkit.sensitivity.table import SensitivityTable
from labkit.studies.kit.mixed_precision import divergence, inverse_table, random_plan, split_plan

WEIGHTS = np.array([100, 400, 50, 800, 10])
LAYERS = tuple("abcde")
BITS = (2, 3, 4, 8)
SIZE = CostTable(
    LAYERS, BITS, WEIGHTS[:, None] * np.array(BITS) / 8, "bytes", "size", 24.0, {"weights": int(WEIGHTS.sum())}
)


def test_the_split_fills_from_the_front_and_skips_what_does_not_fit() -> None:
    # 2.5 bits of 1,360 weights leave 680 bits above 2 a weight: a, b and c take 550, d does not fit, e does.
    assert split_plan(SIZE, 2.5) == {"a": 3, "b": 3, "c": 3, "d": 2, "e": 3}
    assert split_plan(SIZE, 2.0) == dict.fromkeys(LAYERS, 2)
    assert split_plan(SIZE, 8.0, 2, 8) == dict.fromkeys(LAYERS, 8)


@pytest.mark.parametrize("average", [2.0, 2.3, 3.0, 5.5, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_random_plan_keeps_the_size_and_has_no_room_left(average: float, seed: int) -> None:
    bits = random_plan(SIZE, average, seed)
    limit = average_bits(average).of(SIZE)
    assert SIZE.total(bits) <= limit and bits == random_plan(SIZE, average, seed)
    for layer, b in bits.items():
        if b != BITS[-1]:
            assert SIZE.total({**bits, layer: BITS[BITS.index(b) + 1]}) > limit


def test_random_plans_differ_by_seed() -> None:
    assert len({tuple(random_plan(SIZE, 3.5, seed).items()) for seed in range(10)}) > 5


def test_inverse_gives_the_most_sensitive_layer_the_least_sensitivity() -> None:
    each = np.array(
        [[4.0, 2.0, 1.0, 0.5], [1.0, 0.9, 0.8, 0.7], [3.0, 1.0, 0.1, 0.0], [5.0, 0.2, 0.1, 0.1], [2, 1, 1, 0]]
    )
    table = SensitivityTable(LAYERS, BITS, each * WEIGHTS[:, None], np.zeros((5, 4)), "made up", "loss")
    got = inverse_table(table, SIZE)
    # ranks by loss a weight at 2 bits: b < e < c < a < d, so b and d trade, e and a trade, and c stays
    expected = each[[4, 3, 2, 1, 0]]
    np.testing.assert_allclose(got.values, expected * WEIGHTS[:, None], rtol=1e-12)
    np.testing.assert_allclose(inverse_table(got, SIZE).values, table.values, rtol=1e-12)


def test_divergence_of_two_coins_by_hand() -> None:
    sure, even = np.log(np.array([[0.9, 0.1]], np.float32)), np.zeros((1, 2), np.float32)
    assert divergence(sure, even) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2), rel=1e-6)
    assert divergence(sure, sure + 3) == pytest.approx(0, abs=1e-7)  # a constant added to logits changes no probability
