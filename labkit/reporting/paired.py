"""How sure a change of accuracy is, when both networks saw the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.reporting.results import AccuracyRow
from labkit.reporting.summary import reference_row

__all__ = ["Graded", "change_error", "with_change_errors"]

Graded = tuple[AccuracyRow, NDArray[np.bool_]]


def change_error(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """One standard error, in percentage points, of the difference between two accuracies over the same images.

    With b images that only the first network gets right and c that only the second does, the accuracies differ by
    (b - c) / n. Under the hypothesis of McNemar's test (1947), that such an image is as likely to be of either kind,
    the variance of b - c is b + c, so the standard error is 100 sqrt(b + c) / n. The images on which both are right or
    both are wrong do not enter, which is why it is mostly far below the error of each accuracy.

    Parameters
    ----------
    right, reference
        bool [N], N >= 1: whether each network is right about each image, in the same order.

    Returns
    -------
    float
        0 where the two are right about the same images.
    """
    return 100 * math.sqrt(np.count_nonzero(right != reference)) / len(right)


def with_change_errors(graded: Sequence[Graded]) -> list[AccuracyRow]:
    """The rows, each with the standard error of its change against its reference row; references stay as they are.

    Parameters
    ----------
    graded
        All rows of the table, each with bool [N]: whether it is right about each of the same N images.
    """
    rows = [row for row, _ in graded]
    rights = {id(row): right for row, right in graded}

    def completed(row: AccuracyRow) -> AccuracyRow:
        reference = reference_row(rows, row)
        if reference is None or reference is row:
            return row
        return replace(row, change_error=change_error(rights[id(row)], rights[id(reference)]))

    return [completed(row) for row in rows]
