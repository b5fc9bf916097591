"""Greedy reading of CTC and edit distances, against definitions written out."""

from __future__ import annotations

from functools import cache
from itertools import groupby, product

import numpy as np
import pytest

from labkit.errors import InputError
from labkit.models.ctc import BLANK, edits, read_greedily, word_error_rate


def test_reading_by_hand() -> None:
    best = np.array([[0, 3, 3, 0, 3, 1, 1, 2, 0, 9], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [5, 5, 0, 0, 6, 6, 6, 5, 5, 5]])
    assert read_greedily(best, np.array([9, 10, 8])) == ((2, 2, 0, 1), (), (4, 5, 4))
    assert read_greedily(best, np.array([0, 0, 1])) == ((), (), (4,))


@pytest.mark.parametrize("seed", range(5))
def test_reading_is_runs_without_blanks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    best, frames = rng.integers(0, 4, (8, 12)).astype(np.int32), rng.integers(0, 13, 8)
    wanted = [
        tuple(kind - 1 for kind, _ in groupby(row[:count].tolist()) if kind != BLANK)
        for row, count in zip(best, frames, strict=True)
    ]
    assert list(read_greedily(best, frames)) == wanted


def distance(heard: tuple[int, ...], said: tuple[int, ...]) -> int:
    """The definition: the last words agree, or one of three edits."""

    @cache
    def of(a: int, b: int) -> int:
        if a == 0 or b == 0:
            return a + b
        return min(of(a - 1, b) + 1, of(a, b - 1) + 1, of(a - 1, b - 1) + (heard[a - 1] != said[b - 1]))

    return of(len(heard), len(said))


def test_edits_of_all_short_pairs() -> None:
    words = [w for length in range(4) for w in product(range(3), repeat=length)]
    for heard in words:
        for said in words:
            assert edits(heard, said) == distance(heard, said) == edits(said, heard)


def test_edits_by_hand() -> None:
    assert edits((1, 2, 3), (1, 2, 3)) == 0
    assert edits((1, 3), (1, 2, 3)) == 1
    assert edits((4, 1, 2, 9), (1, 2, 3)) == 2
    assert edits((), (1, 2, 3)) == 3


def test_the_rate_is_of_all_words_together() -> None:
    assert word_error_rate([(1, 2), (), (3, 3, 3)], [(1, 2), (5,), (3, 3, 4, 3, 4)]) == pytest.approx(100 * 3 / 8)
    assert word_error_rate([(1, 1, 1)], [(1,)]) == 200


def test_what_does_not_fit_is_refused() -> None:
    best = np.zeros((2, 5), np.int64)
    with pytest.raises(InputError, match=r"got float64 \[2, 5\] and \[2\]\. Take the argmax"):
        read_greedily(best.astype(float), np.array([1, 1]))
    with pytest.raises(InputError, match=r"got int64 \[2, 5\] and \[1\]"):
        read_greedily(best, np.array([1]))
    with pytest.raises(InputError, match=r"frames must be in 0\.\.5, got 1\.\.6"):
        read_greedily(best, np.array([1, 6]))
    with pytest.raises(InputError, match="got 1 and 2"):
        word_error_rate([(1,)], [(1,), (2,)])
    with pytest.raises(InputError, match="with words in them"):
        word_error_rate([(1,)], [()])
