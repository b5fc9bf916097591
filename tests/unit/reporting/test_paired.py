"""The standard error of a change, against tables of right and wrong that are counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labkit.reporting.paired import change_error, with_change_errors
from labkit.reporting.results import AccuracyRow


@pytest.mark.parametrize(
    ("right", "reference", "error"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 0.0),
        ([1, 1, 0, 0], [1, 0, 1, 0], 100 * math.sqrt(2) / 4),  # equal accuracies are uncertain all the same
        ([1, 1, 1, 1], [0, 0, 0, 0], 50.0),
        ([1], [0], 100.0),
    ],
)
def test_error_counts_the_images_on_which_one_is_right(right: list[int], reference: list[int], error: float) -> None:
    assert change_error(np.array(right, bool), np.array(reference, bool)) == pytest.approx(error)


def test_error_is_the_spread_of_the_change_over_many_test_sets() -> None:
    # Ten thousand test sets of 400 images, of which a twentieth are right for one net only, each net as often.
    random = np.random.default_rng(5)
    kinds = random.choice(3, size=(10_000, 400), p=[0.95, 0.025, 0.025])
    changes = 100 * ((kinds == 1).sum(1) - (kinds == 2).sum(1)) / 400
    errors = [change_error(kind == 1, kind == 2) for kind in kinds[:200]]
    assert np.mean(errors) == pytest.approx(changes.std(), rel=0.05)


def test_each_row_is_paired_with_the_reference_of_its_section() -> None:
    def row(section: str, label: str, bits: int) -> AccuracyRow:
        return AccuracyRow(section, label, bits, bits, 50.0, 4)

    graded = [
        (row("float", "first", 32), np.array([1, 1, 0, 0], bool)),
        (row("bias", "own float", 32), np.array([0, 0, 0, 0], bool)),
        (row("bias", "eight", 8), np.array([1, 0, 0, 0], bool)),
        (row("integer engine", "W8A8", 8), np.array([1, 1, 0, 0], bool)),
        (row("integer engine", "W8A8", 8), np.array([0, 0, 1, 1], bool)),  # an equal row keeps its own answers
    ]
    rows = with_change_errors(graded)
    assert [r.label for r in rows] == [r.label for r, _ in graded]
    assert [r.change_error for r in rows] == [None, None, 25.0, 0.0, 50.0]
