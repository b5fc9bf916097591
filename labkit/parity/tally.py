"""Counting what differs, name by name, and keeping the first difference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.parity.report import Comparison, Difference

__all__ = ["Tally"]


class Tally:
    """Counts of elements and differences by name, and the first difference."""

    def __init__(self) -> None:
        self.first: Difference | None = None
        self._counts: dict[tuple[str, str], list[int]] = {}

    def missing(self, where: str, expected: str, got: str) -> None:
        """Note that ``where`` cannot be compared: what was ``expected`` there and what was ``got``, in words."""
        is_tensor = where.startswith("tensor ")
        self._note((where.removeprefix("tensor "), "tensor" if is_tensor else "parameter"), 1, 1)
        self.first = self.first or Difference(where, (), expected, got)

    def parameter(self, where: str, expected: NDArray[np.generic], got: NDArray[np.generic]) -> None:
        """Compare the parameter ``where`` (``conv1.bias``): arrays ``expected`` and ``got`` of one shape, any dtype."""
        if expected.shape != got.shape:
            self.missing(where, f"shape {expected.shape}", f"shape {got.shape}")
            return
        self._compare((where, "parameter"), where, expected, got, 0)

    def tensor(
        self, name: str, expected: NDArray[np.generic], got: NDArray[np.generic] | None, first_image: int
    ) -> None:
        """Compare what node ``name`` put out for a batch: arrays ``expected`` and ``got`` [N, ...], any dtype.

        None is a tensor that is absent; ``first_image`` is the number of the batch's first image, for the index of a difference.
        """
        if got is None or expected.shape != got.shape:
            self.missing(f"tensor {name}", f"shape {expected.shape}", "absent" if got is None else f"shape {got.shape}")
            return
        self._compare((name, "tensor"), f"tensor {name}", expected, got, first_image)

    def node(self, name: str, expected: NDArray[np.generic], got: NDArray[np.generic], first_image: int) -> None:
        """Compare what node ``name`` makes of a runtime's own tensors with what the runtime made of them.

        ``expected`` [N, ...] is the runtime's, ``got`` labkit's, any dtype; ``first_image`` as for a tensor.
        """
        if expected.shape != got.shape:
            self._note((name, "node"), expected.size, expected.size)
            self.first = self.first or Difference(f"node {name}", (), f"shape {expected.shape}", f"shape {got.shape}")
            return
        self._compare((name, "node"), f"node {name}", expected, got, first_image)

    def add(self, later: Tally) -> None:
        """Take in what a ``later`` part found; the first difference of the earlier one stays first."""
        for key, (elements, differing) in later._counts.items():
            self._note(key, elements, differing)
        self.first = self.first or later.first

    def comparisons(self) -> tuple[Comparison, ...]:
        """The counts by name, in the order in which the names first came."""
        return tuple(Comparison(name, kind, *counts) for (name, kind), counts in self._counts.items())

    def _compare(
        self,
        key: tuple[str, str],
        where: str,
        expected: NDArray[np.generic],
        got: NDArray[np.generic],
        first_image: int,
    ) -> None:
        wrong = expected != got
        count = int(np.count_nonzero(wrong))
        self._note(key, wrong.size, count)
        if count and self.first is None:
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
            shown = (index[0] + first_image, *index[1:]) if index else index
            self.first = Difference(where, shown, str(expected[index]), str(got[index]))

    def _note(self, key: tuple[str, str], elements: int, differing: int) -> None:
        counts = self._counts.setdefault(key, [0, 0])
        counts[0] += elements
        counts[1] += differing
