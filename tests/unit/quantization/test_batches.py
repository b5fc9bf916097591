"""Images in batches of a size that is asked for, or that memory allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import InputError
from labkit.quantization.batches import images_for, sized_batches
from labkit.quantization.observers import Observer


@pytest.mark.parametrize("shape", [(2,), (3, 32, 32), (3, 224, 224)])
def test_as_many_as_asked_for_whatever_their_size(shape: tuple[int, ...]) -> None:
    x = np.arange(7, dtype=np.float64).reshape(7, *(1 for _ in shape)) * np.ones(shape)
    parts = list(sized_batches([x, x[:1], x[:0]], 3))
    assert [part.shape for part in parts] == [(3, *shape), (3, *shape), (1, *shape), (1, *shape)]
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}
    assert [float(part.flat[0]) for part in parts] == [0, 3, 6, 0]


def test_what_are_no_images_is_refused() -> None:
    with pytest.raises(InputError, match="Images must be"):
        list(sized_batches(5, 3))


@given(budget=st.integers(0, 1 << 40), each=st.integers(0, 1 << 40), largest=st.integers(1, 128))
def test_images_fit_their_budget(budget: int, each: int, largest: int) -> None:
    number = images_for(budget, each, largest)
    assert 1 <= number <= largest
    assert number == 1 or number * each <= budget
    assert number == largest or (number + 1) * each > budget


@given(seed=st.integers(0, 99), size=st.integers(1, 60), piece=st.integers(1, 70))
def test_a_batch_observed_in_pieces_is_the_same_batch(seed: int, size: int, piece: int) -> None:
    values = np.random.default_rng(seed).normal(3, 2, (size, 5)).astype(np.float32)
    whole, parts = Observer("x"), Observer("x")
    whole.update(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.quantization.observers._PIECE", piece)
        parts.update(values)
    a, b = whole.result(), parts.result()
    assert (a.minimum, a.maximum, a.count) == (b.minimum, b.maximum, b.count)
    assert b.mean == pytest.approx(a.mean, rel=1e-12) and b.deviation == pytest.approx(a.deviation, rel=1e-9)
    assert parts.average() == whole.average(), "one batch, however many pieces"
