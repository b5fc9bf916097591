"""The accumulator's bound: equation 9."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.bounds import INT32_LIMIT, accumulator_bound, check_accumulator
from labkit.errors import BoundError

NO_BIAS = np.zeros(1, np.int32)


@given(
    weights=st.lists(st.integers(-255, 255), min_size=1, max_size=8),
    zero_point=st.integers(0, 255),
    bias=st.integers(-(2**30), 2**30),
    data=st.data(),
)
def test_no_partial_sum_in_any_order_exceeds_the_bound(
    weights: list[int], zero_point: int, bias: int, data: st.DataObject
) -> None:
    low, high = -zero_point, 255 - zero_point
    bound = int(accumulator_bound(np.array([weights]), low, high, np.array([bias]))[0])
    inputs = data.draw(st.lists(st.sampled_from([low, high, 0]), min_size=len(weights), max_size=len(weights)))
    terms = [bias, *(w * x for w, x in zip(weights, inputs, strict=True))]
    order = data.draw(st.permutations(range(len(terms))))
    partial = 0
    for i in order:
        partial += terms[i]
        assert abs(partial) <= bound
    for start in range(len(order)):  # sums of any run of terms, as parallel lanes make them
        assert abs(sum(terms[i] for i in order[start:])) <= bound


@pytest.mark.parametrize(
    ("weights", "low", "high", "bias", "inputs"),
    [
        ([127, 127, 3], 0, 255, 1000, [255, 255, 255]),  # one sign, the far end
        ([-127, -1, -5], 0, 255, -1000, [255, 255, 255]),
        ([127, -127, 8], -127, 127, 9, [127, -127, 127]),  # a grid with both ends reaches it under any signs
        ([4, 4], -200, 55, -1, [-200, -200]),
    ],
)
def test_adversarial_inputs_reach_the_bound_exactly(
    weights: list[int], low: int, high: int, bias: int, inputs: list[int]
) -> None:
    bound = accumulator_bound(np.array([weights]), low, high, np.array([bias]))
    assert bound.dtype == np.int64
    assert abs(int(np.dot(weights, inputs)) + bias) == int(bound[0])


def test_the_last_sum_that_fits_passes_and_one_more_is_refused() -> None:
    weights = np.full((2, 66_311), 127, np.int8)
    left = INT32_LIMIT - 66_311 * 127 * 255
    assert 0 <= left < 127 * 255
    check_accumulator("fc1", weights, 0, 255, np.array([0, left]))
    check_accumulator("fc1", weights, -255, 0, np.array([0, -left]))
    with pytest.raises(BoundError, match=r"^fc1: .* output channel 1 can reach 2,147,483,648"):
        check_accumulator("fc1", weights, 0, 255, np.array([0, left + 1]))
    with pytest.raises(BoundError, match="output channel 0"):
        check_accumulator("fc1", np.full((1, 66_312), 127, np.int8), 0, 255, NO_BIAS)


def test_channels_are_judged_by_their_own_weights() -> None:
    weights = np.array([[-128, 1], [0, 0]], np.int8)  # |-128| does not fit int8
    assert accumulator_bound(weights, -3, 2, np.array([-5, 7])).tolist() == [129 * 3 + 5, 7]
