"""Two integers to a byte: section 6 of docs/arithmetic.md."""

from __future__ import annotations

import numpy as np
import oracle_arithmetic as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.packing import pack_int4, unpack_int4
from labkit.errors import QuantizationError

LOWEST = {True: -8, False: 0}


@given(signed=st.booleans(), shape=st.lists(st.integers(0, 4), max_size=4).map(tuple), seed=st.integers(0, 999))
def test_pack_and_unpack(signed: bool, shape: tuple[int, ...], seed: int) -> None:
    low = LOWEST[signed]
    kind = np.int8 if signed else np.uint8
    values = np.random.default_rng(seed).integers(low, low + 16, shape).astype(kind)
    packed = pack_int4(values)
    assert packed.dtype == np.uint8
    assert packed.tolist() == oracle.pack_int4(values.reshape(-1).tolist())
    assert len(packed) == (values.size + 1) // 2
    again = unpack_int4(packed, shape, signed)
    assert again.dtype == kind
    assert again.shape == shape
    assert np.array_equal(again, values)


def test_the_documents_example() -> None:
    packed = pack_int4(np.array([1, -1, 7, -8, 3]))
    assert packed.tobytes().hex(" ") == "f1 87 03"
    assert unpack_int4(packed, (5,), signed=True).tolist() == [1, -1, 7, -8, 3]
    assert unpack_int4(packed, (5,), signed=False).tolist() == [1, 15, 7, 8, 3]


def test_a_transposed_array_is_packed_in_its_own_order() -> None:
    values = np.arange(6, dtype=np.int8).reshape(2, 3).T
    assert np.array_equal(unpack_int4(pack_int4(values), (3, 2), signed=True), values)


@pytest.mark.parametrize("values", [[-9], [16], [-1, 8], [8, -8], [127], [-128]])
def test_what_takes_more_than_four_bits_is_refused(values: list[int]) -> None:
    with pytest.raises(QuantizationError, match=rf"got {min(values)}\.\.{max(values)}"):
        pack_int4(np.array(values))


@pytest.mark.parametrize(
    ("packed", "shape"),
    [
        (np.zeros(2, np.uint8), (5,)),
        (np.zeros(4, np.uint8), (5,)),
        (np.zeros(3, np.int8), (5,)),
        (np.zeros((3, 1), np.uint8), (5,)),
        (np.zeros(1, np.uint8), (0,)),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(packed: np.ndarray, shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match="four-bit integers take"):
        unpack_int4(packed, shape, signed=True)
