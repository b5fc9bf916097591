"""The last section of every module: a student's own function at work in a network, on as many images as the time allows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.data.dataset import DataSet
from labkit.errors import InputError

__all__ = ["Showing", "seconds_to_spend", "show_accuracy"]

_DEFAULT_SECONDS = 20.0


def seconds_to_spend() -> float:
    """The time for a module's last section: 20 seconds, or ``LABKIT_COURSE_SECONDS``.

    Raises
    ------
    InputError
        ``LABKIT_COURSE_SECONDS`` is no positive number.
    """
    said = os.environ.get("LABKIT_COURSE_SECONDS")
    try:
        seconds = float(said) if said else _DEFAULT_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"LABKIT_COURSE_SECONDS must be a positive number of seconds, got {said!r}.")
    return seconds


@dataclass(frozen=True)
class Showing:
    """How many of the same images each network got right. It displays itself as a table.

    ``correct`` counts by name, ``seconds`` is the time of each by name.
    """

    data: str
    images: int
    of: int
    correct: Mapping[str, int]
    seconds: Mapping[str, float]

    def percent(self, name: str) -> float:
        """The share of images that ``name`` got right, in per cent."""
        return 100.0 * self.correct[name] / self.images

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, right in self.correct.items():
            p = right / self.images
            error = 100 * (p * (1 - p) / self.images) ** 0.5
            rows.append((name, f"{100 * p:.1f} %", f"± {error:.1f}", f"{self.seconds[name]:.2f} s"))
        return rows

    @property
    def _caption(self) -> str:
        return f"{self.images:,} of {self.of:,} test images of {self.data}, the same for each; ± is one standard error"

    def __str__(self) -> str:
        width = max(map(len, self.correct))
        lines = [f"{n:<{width}}  {p:>7} {e:>6}  {s:>9}" for n, p, e, s in self._rows()]
        return "\n".join([*lines, f"({self._caption})"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        cell = "padding:2px 12px;text-align:{}"
        head = "".join(
            f'<th style="{cell.format("left" if i == 0 else "right")}">{title}</th>'
            for i, title in enumerate(("network", "images right", "", "time"))
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="{cell.format("left" if i == 0 else "right")}">{escape(text)}</td>'
                for i, text in enumerate(row)
            )
            + "</tr>"
            for row in self._rows()
        )
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><small>{escape(self._caption)}</small>"
        )


def show_accuracy(
    networks: Mapping[str, Callable[[NDArray[np.float32]], Any]],
    data: DataSet,
    *,
    seconds: float | None = None,
    batch: int = 25,
) -> Showing:
    """Run every network on the same test images, batch by batch, until the time is over or there are no more images.

    Parameters
    ----------
    networks : by name, functions from float32 images [N, 3, 32, 32] to logits [N, classes] (arrays or tensors)
    data : the data set whose test images are taken, in their order
    seconds : the time in all; `seconds_to_spend` where it is left out
    batch : images at a time

    Raises
    ------
    InputError
        There is no network, or one returned no row of logits for each image.
    """
    if not networks:
        raise InputError("There is no network to run; give at least one function from images to logits.")
    budget = seconds_to_spend() if seconds is None else seconds
    images, labels = data.test(len(data.test_labels))
    correct = dict.fromkeys(networks, 0)
    spent = dict.fromkeys(networks, 0.0)
    done = 0
    bar = _Bar(budget)
    while done < len(labels) and (done == 0 or sum(spent.values()) < budget):
        x, y = images[done : done + batch], labels[done : done + batch]
        for name, network in networks.items():
            begun = time.perf_counter()
            logits = np.asarray(_array(network(x)))
            spent[name] += time.perf_counter() - begun
            if logits.ndim != 2 or len(logits) != len(x):
                raise InputError(f"{name}: {len(x)} rows of logits are wanted, one an image; got shape {logits.shape}.")
            correct[name] += int(np.count_nonzero(logits.argmax(axis=1) == y))
        done += len(x)
        bar.tell(sum(spent.values()), done)
    bar.end()
    return Showing(data.name, done, len(labels), correct, spent)


class _Bar:
    """How much of the time is over, drawn in one place of a notebook's cell and wiped at the end; nothing elsewhere."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.handle: Any = None
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            return
        if get_ipython() is None:
            return
        self._html: Callable[[str], Any] = HTML
        self.handle = display(self._html(""), display_id=True)  # type: ignore[no-untyped-call]

    def tell(self, spent: float, images: int) -> None:
        """Draw ``spent`` seconds and so many ``images``."""
        if self.handle is not None:
            left = max(0.0, self.budget - spent)
            share = min(1.0, spent / self.budget)
            text = f'<progress value="{share:.2f}"></progress> {images:,} images, {left:.0f} s left'
            self.handle.update(self._html(text))

    def end(self) -> None:
        """Wipe it."""
        if self.handle is not None:
            self.handle.update(self._html(""))


def _array(logits: Any) -> Any:
    return logits.detach().cpu().numpy() if hasattr(logits, "detach") else logits
