"""Values travel as JSON and come back as they were."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from labkit.course.ingredients import Made
from labkit.course.values import decode, encode
from labkit.errors import InputError

ARRAYS = st.sampled_from(
    ["bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64"]
).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)))
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SIMPLE | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["array", "tuple", "made"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == nan_as(b, a)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def nan_as(array: np.ndarray, other: np.ndarray) -> bytes:
    """The bytes of ``array`` with its NaNs as ``other`` has them: only the fact of a NaN travels, not its payload."""
    if array.dtype.kind != "f":
        return array.tobytes()
    both = np.isnan(array) & np.isnan(other)
    return np.where(both, other, array).tobytes()


@given(VALUES)
def test_a_value_comes_back(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False)
    assert same(value, decode(json.loads(text)))


@given(hnp.arrays("float32", 20))
def test_shortest_decimals_lose_nothing(array: np.ndarray) -> None:
    assert same(array, decode(json.loads(json.dumps(encode(array)))))


def test_an_ingredient_keeps_its_data() -> None:
    made = Made("numbers.product_with", {"matrix": np.eye(2)})
    back = decode(json.loads(json.dumps(encode(made))))
    assert isinstance(back, Made)
    assert back.maker == made.maker
    assert np.array_equal(back.data["matrix"], np.eye(2))


@pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, np.array(["a"]), 1j, b"x"])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="cannot be part of a case"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {"array": "object", "shape": [1], "values": [1]},
        {"array": "int8", "shape": [2], "values": [1]},
        {"array": "int8", "shape": [1], "values": [300]},
        {"array": "int8", "shape": [1], "values": [[1, 2]]},
        {"real": "1.0"},
        {"tuple": [1], "more": 2},
    ],
)
def test_damaged_values_are_named(data: object) -> None:
    with pytest.raises(InputError, match="damaged"):
        decode(data)
