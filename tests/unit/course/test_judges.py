"""Judges: what they let pass, what they do not, and what they say."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch

from labkit.course.judges.base import Judge, described, plain
from labkit.course.judges.registry import judge_of
from labkit.course.judges.structural import BestPlan, RoundingChoice
from labkit.course.judges.values import Close, Exact, Fields, Items, shortened
from labkit.errors import InputError


class Two(IntEnum):
    TWO = 2


def wrong(judge: Judge, got: Any, expected: Any, inputs: Any = None) -> str:
    found = judge.compare(plain(got), expected, inputs or {})
    return "" if found is None else f"{found.message}|{found.place}|{found.expected}|{found.got}"


Q = np.array([[1, -2], [3, 4]], np.int8)


@pytest.mark.parametrize("got", [Q, Q.astype(np.int64), Q.tolist(), tuple(map(tuple, Q.tolist())), torch.tensor(Q)])
def test_lossless_forms_of_integers_pass(got: Any) -> None:
    assert wrong(Exact(), got, Q) == ""


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (Q + 1, "4 of 4 elements are wrong.|[0, 0]|1|2"),
        (Q.astype(float), "right, but they are real numbers (float64)"),
        (Q + 0.25, "They are real numbers"),
        (Q[0], "shape is another one.||(2, 2)|(2,)"),
        (5, "shape is another one"),
        ("1", "An array of numbers is wanted"),
        (None, "An array of numbers is wanted"),
        ([[1], [2, 3]], "An array of numbers is wanted"),
        (np.where(Q == 4, 5, Q), "1 of 4 elements are wrong.|[1, 1]|4|5"),
    ],
)
def test_wrong_integers_are_told(got: Any, says: str) -> None:
    assert says in wrong(Exact(), got, Q)


@pytest.mark.parametrize(
    ("got", "expected", "passes"),
    [
        (7, 7, True),
        (np.int8(7), 7, True),
        (torch.tensor(7), 7, True),
        (np.array(7), 7, True),
        (Two.TWO, 2, True),
        (True, True, True),
        (7.0, 7, False),
        ([7], 7, False),
        ("a", "a", True),
        ("a", "b", False),
        (None, None, True),
        (None, 3, False),
        (2**62, 2**62, True),
        (2**62 + 1, 2**62, False),
    ],
)
def test_exact_on_single_values(got: Any, expected: Any, passes: bool) -> None:
    assert (wrong(Exact(), got, expected) == "") is passes


@pytest.mark.parametrize(
    ("judge", "got", "expected", "passes"),
    [
        (Close(1e-3), 1.0005, 1.0, True),
        (Close(1e-3), 1.002, 1.0, False),
        (Close(1e-3), np.float32([1, 2]), np.array([1.0, 2.0]), True),
        (Close(1e-3), [1, 2], np.array([1.0, 2.0]), True),
        (Close(1e-3), [0.001, 1000.0], np.array([0.0, 1000.0]), False),
        (Close(1e-3, of_largest=True), [0.001, 1000.0], np.array([0.0, 1000.0]), True),
        (Close(0, 0.1), 5.05, 5.0, True),
        (Close(1e-3), float("nan"), float("nan"), True),
        (Close(1e-3), float("nan"), 1.0, False),
        (Close(1e-3), float("inf"), float("inf"), True),
        (Close(1e-3), float("-inf"), float("inf"), False),
        (Close(1e-3), float("inf"), 1.0, False),
        (Close(1e-3), np.zeros((0, 2)), np.zeros((0, 2)), True),
        (Close(1e-3), "a", 1.0, False),
    ],
)
def test_closeness(judge: Judge, got: Any, expected: Any, passes: bool) -> None:
    assert (wrong(judge, got, expected) == "") is passes


def test_parts_have_judges_of_their_own() -> None:
    judge = Items((Close(1e-3), Fields(("zero_point",), (Exact(),))))
    assert wrong(judge, (1.0, {"zero_point": 3}), (1.0, {"zero_point": 3})) == ""
    assert "[1]['zero_point']|3|4" in wrong(judge, [1.0, {"zero_point": 4}], (1.0, {"zero_point": 3}))
    assert "2 values are wanted" in wrong(judge, 1.0, (1.0, {"zero_point": 3}))
    assert "certain entries" in wrong(judge, (1.0, {"zp": 3}), (1.0, {"zero_point": 3}))
    assert judge.same((1.0, {"zero_point": 3}), (1.0, {"zero_point": 3}))
    assert not judge.same((1.0, {"zero_point": 3}), (1.0, {"zero_point": 4}))


def test_an_array_may_stand_for_a_tuple_of_numbers() -> None:
    assert wrong(Items((Close(1e-3), Close(1e-3))), np.array([1.0, 2.0]), (1.0, 2.0)) == ""


GRAM = np.array([[1.0, 0.9], [0.9, 1.0]])
REAL = {"real": np.array([[0.4, 0.4]]), "gram": GRAM, "low": 0, "high": 0}


@pytest.mark.parametrize(
    ("judge", "got", "says"),
    [
        (RoundingChoice("real", "gram"), np.array([[1, 0]]), ""),
        (RoundingChoice("real", "gram"), np.array([[0, 1]]), ""),  # as good as the expected one
        (RoundingChoice("real", "gram"), np.array([[0, 0]]), "too large"),
        (RoundingChoice("real", "gram", slack=10.0), np.array([[0, 0]]), ""),
        (RoundingChoice("real", "gram"), np.array([[2, 0]]), "Only the neighbours"),
        (RoundingChoice("real", "gram"), np.array([[1.0, 0.0]]), "Integers are wanted"),
        (RoundingChoice("real", "gram"), np.array([1, 0]), "shape"),
        (RoundingChoice("real", "gram", slack=9.0, low="low", high="high"), np.array([[1, 0]]), "Only the neighbours"),
    ],
)
def test_rounding_choices(judge: Judge, got: Any, says: str) -> None:
    said = wrong(judge, got, np.array([[1, 0]]), REAL)
    assert (says in said) if says else said == ""


PLAN = {"losses": np.array([[5.0, 1.0], [4.0, 1.0]]), "costs": np.array([[1, 3], [1, 3]]), "budget": 4}


@pytest.mark.parametrize(
    ("got", "says"),
    [
        ([1, 0], ""),
        ([0, 1], "A plan within the budget loses less"),
        ([1, 1], "over the budget"),
        ([2, 0], "must name a choice"),
        ([-1, 0], "must name a choice"),
        ([1.0, 0.0], "real numbers"),
        ([1], "shape"),
    ],
)
def test_plans(got: Any, says: str) -> None:
    said = wrong(BestPlan(), got, np.array([1, 0]), PLAN)
    assert (says in said) if says else said == ""
    assert wrong(BestPlan(slack=1.5), [0, 1], np.array([1, 0]), PLAN) == ""


@pytest.mark.parametrize(
    "judge",
    [
        Exact(),
        Close(1e-3, 2.0, True),
        Items((Exact(), Items((Close(),)))),
        Fields(("a", "b"), (Exact(), Close(0.5))),
        RoundingChoice("w", "g", 1.5, "low", None),
        BestPlan(slack=2.0),
    ],
    ids=lambda judge: judge.kind,
)
def test_a_judge_comes_back_from_its_description(judge: Judge) -> None:
    assert judge_of(described(judge)) == judge


def test_an_unknown_judge_is_named() -> None:
    with pytest.raises(InputError, match="no judge 'kind'"):
        judge_of({"judge": "kind"})


class Liar(np.ndarray):
    def __eq__(self, other: object) -> Any:
        return np.ones(self.shape, bool)

    def __sub__(self, other: object) -> Any:
        return np.zeros(self.shape)


def test_an_array_that_lies_about_itself_is_seen_through() -> None:
    assert wrong(Exact(), np.zeros((2, 2), np.int8).view(Liar), Q) != ""
    assert wrong(Close(), np.zeros((2, 2)).view(Liar), Q.astype(float)) != ""


@pytest.mark.parametrize("value", [object(), b"1", {1, 2}, np.array(["a"]), lambda: 1])
def test_what_is_no_plain_value_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="was returned"):
        plain(value)


def test_short_forms_stay_short() -> None:
    assert len(shortened(np.arange(10000).reshape(100, 100))) < 120
    assert len(shortened("x" * 500)) == 60
    assert shortened(np.array([1, 2], np.int8)) == "[1, 2] (shape (2,), int8)"
