"""How well pixels are labelled: the mean over classes of intersection over union (Everingham et al. 2015)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["confusion", "mean_iou"]


def confusion(got: NDArray[np.integer], wanted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """How many pixels of each class were given which class: int64 [classes, classes], rows are the ``wanted`` ones.

    ``got`` and ``wanted`` are arrays of one shape, of integers in 0..``classes`` - 1.

    Raises
    ------
    InputError
        The shapes differ, or a label is outside of the classes.
    """
    if got.shape != wanted.shape:
        raise InputError(f"As many labels must be given as wanted, got {got.shape} and {wanted.shape}.")
    for what, labels in (("given", got), ("wanted", wanted)):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise InputError(f"The labels {what} must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}.")
    pairs = wanted.astype(np.int64).reshape(-1) * classes + got.astype(np.int64).reshape(-1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(table: NDArray[np.int64]) -> float:
    """Per cent: the mean of intersection over union of the classes that occur in ``table``, int64 [C, C] of `confusion`."""
    both = np.diagonal(table).astype(np.float64)
    union = table.sum(0) + table.sum(1) - np.diagonal(table)
    occurs = union > 0
    return float(100 * np.mean(both[occurs] / union[occurs]))
