"""Accuracy of an integer net on labelled images, beside that of the float network on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from labkit.errors import InputError
from labkit.reporting.paired import change_error
from labkit.reporting.summary import signed_points

__all__ = ["Accuracies", "accuracies_table", "label_ranks", "measure"]

Scorer = Callable[[NDArray[np.float32]], NDArray[Any]]

_FEW_CLASSES = 10  # up to which "among the five best" says little
_TOPS = (1, 5)


@dataclass(frozen=True, eq=False)
class Accuracies:
    """Where the right class came among the scores, image by image.

    Attributes
    ----------
    classes
        How many there are; None where the net puts out the best class alone.
    integer
        int64 [N], N >= 1: the rank of the label with the integer net, 0 where it is the best.
    reference
        The same for the float network over the same images, or None.
    """

    classes: int | None
    integer: NDArray[np.int64]
    reference: NDArray[np.int64] | None = None

    @property
    def tops(self) -> tuple[int, ...]:
        """(1,), or (1, 5) where there are more than ten classes."""
        return _TOPS if self.classes is not None and self.classes > _FEW_CLASSES else _TOPS[:1]

    def percent(self, top: int) -> tuple[float, float | None]:
        """Images in per cent with the label among the ``top`` best: of the integer net, and of the float network or None."""
        integer, reference = (
            None if ranks is None else 100 * int((ranks < top).sum()) / len(ranks)
            for ranks in (self.integer, self.reference)
        )
        assert integer is not None
        return integer, reference

    def change(self, top: int) -> tuple[float, float] | None:
        """Percentage points from the float network to the integer one, and their standard error; None without the former.

        ``top`` is as in `percent`; the error is `paired.change_error`.
        """
        if self.reference is None:
            return None
        right, before = self.integer < top, self.reference < top
        points = 100 * (int(right.sum()) - int(before.sum())) / len(right)
        return points, change_error(right, before)

    def to_json(self) -> dict[str, Any]:
        """Every figure as plain JSON, in per cent and percentage points."""
        found: dict[str, Any] = {"images": len(self.integer), "classes": self.classes}
        for top in self.tops:
            integer, reference = self.percent(top)
            change = self.change(top)
            found[f"top{top}"] = {
                "integer": integer,
                "float": reference,
                "change": None if change is None else change[0],
                "change_standard_error": None if change is None else change[1],
            }
        return found


def label_ranks(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """At which place the score of each label stands, 0 the best; of equal scores the first counts as better, as in argmax.

    Parameters
    ----------
    scores
        [N, C], any dtype; a NaN is behind everything, and everything before a NaN.
    labels
        int64 [N], each in 0..C - 1.

    Returns
    -------
    int64 [N]
    """
    own = np.take_along_axis(scores, labels[:, None], 1)
    ahead = ~(scores <= own)  # true of every class where the label's own score is a NaN
    earlier = (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return np.asarray((ahead | earlier).sum(1), np.int64)


def measure(
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]],
    integer: Scorer,
    reference: Scorer | None = None,
    progress: Callable[[int], None] | None = None,
) -> Accuracies:
    """Run one or two networks over labelled images, a batch at a time.

    Parameters
    ----------
    batches
        Pairs of images, float32 [N, ...], and labels, int64 [N].
    integer, reference
        Give the scores [N, C] of a batch, or int32 [N] the best class alone.
    progress
        Told how many images are done.

    Raises
    ------
    InputError
        There are no images, a network gives something else than scores or has too few classes for a label, or the two
        have different numbers of classes.
    """
    found: dict[str, list[NDArray[np.int64]]] = {"integer": [], "reference": []}
    scorers = {"integer": integer} if reference is None else {"integer": integer, "reference": reference}
    classes: dict[str, int | None] = {}
    done = 0
    for x, labels in batches:
        for name, scorer in scorers.items():
            ranks, count = _ranks(np.asarray(scorer(x)), labels)
            found[name].append(ranks)
            classes[name] = count
        if None not in classes.values() and len(set(classes.values())) > 1:
            raise InputError(
                f"The integer network tells {classes['integer']} classes apart and the float network {classes['reference']}: "
                f"they are not the same network. Give the one that was quantized."
            )
        done += len(labels)
        if progress is not None:
            progress(done)
    if not done:
        raise InputError("There are no images to measure the accuracy on.")
    whole = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    return Accuracies(classes["integer"], whole["integer"], whole.get("reference"))


def _ranks(scores: NDArray[Any], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None]:
    if scores.dtype.kind in "iu" and scores.size == len(labels):  # a network that ends in an argmax
        return np.asarray(scores.reshape(-1) != labels, np.int64), None
    flat = scores.reshape(len(scores), -1)
    if len(scores) != len(labels) or flat.shape[1] != scores.shape[1]:
        raise InputError(f"Accuracy needs one score a class, [N, classes], and the network gives {scores.shape}.")
    if len(labels) and labels.max() >= flat.shape[1]:
        raise InputError(f"The label {labels.max()} is beyond the {flat.shape[1]} classes that the network knows.")
    return label_ranks(flat, labels), flat.shape[1]


def accuracies_table(found: Accuracies) -> Table:
    """A row for each network and one for the change, with its standard error."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for top in found.tops:
        table.add_column(f"top-{top} %", justify="right", no_wrap=True)
    percents = [found.percent(top) for top in found.tops]
    changes = [found.change(top) for top in found.tops]
    if found.reference is not None:
        table.add_row("Float network", *(f"{reference:.2f}" for _, reference in percents))
    table.add_row("Integer network", *(f"{integer:.2f}" for integer, _ in percents))
    if found.reference is not None:
        table.add_row("Change", *(f"{signed_points(c[0])} ± {c[1]:.2f}" for c in changes if c is not None))
    return table
