"""`View`: a traced tensor as a tensor of the graph whose axes may stand in another order.

PyTorch keeps sequences as (N, T, D), a graph as (D, T). To transpose, to split an axis into heads and to join heads again then
costs nothing as long as what is computed does not care; only what cares gets a Transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Role", "View", "permuted", "regrouped"]

Role = str  # "feature" or "place" (a token, a pixel); "" where it is not known


@dataclass(frozen=True, eq=False)
class View:
    """What a traced tensor (N, ...) is in the graph.

    name : of the node in the graph.
    shape : of its result, without the batch axis.
    axes : for each axis of the traced tensor but the first, the axis of the graph's tensor.
    roles : for each axis of the graph's tensor, what it counts.
    factor, addend : the traced tensor is ``factor`` times the graph's plus ``addend`` (float64, in the traced order of axes).
    total : the name for a node that adds the ``addend``.
    mask : the input that says which elements along the traced tensor's last axis are not hidden.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    roles: tuple[Role, ...]
    factor: float = 1.0
    addend: NDArray[np.float64] | None = None
    total: str = ""
    mask: str | None = None

    @property
    def traced_shape(self) -> tuple[int, ...]:
        """The shape of the traced tensor, without the batch axis."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is still to be multiplied, added or hidden."""
        return self.factor == 1.0 and self.addend is None and self.mask is None

    def in_graph_order(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``values``, float64 with the shape `traced_shape`, in the graph's order of axes."""
        return values.transpose(np.argsort(self.axes))


def permuted(view: View, order: Sequence[int]) -> View:
    """``view`` after a permutation of the traced axes, ``order`` without the batch axis: nothing in the graph changes."""
    return replace(view, axes=tuple(view.axes[axis] for axis in order))


def regrouped(view: View, shape: tuple[int, ...]) -> View | None:
    """``view`` of a traced tensor reshaped to ``shape``, if one reshape of the graph's tensor does it, else None.

    The name is still that of the unshaped node: the caller gives another where the graph's shape has changed. An addend or a
    mask must not be pending.
    """
    groups = _groups(view.traced_shape, shape)
    owner = {view.axes[old]: index for index, (olds, _) in enumerate(groups) for old in olds}
    for ignored in (0, 1):  # axes of length 1 may stand anywhere, but are best left where they are
        order = [axis for axis, size in enumerate(view.shape) if size != ignored]
        wanted = {
            index: [view.axes[old] for old in olds if view.axes[old] in order] for index, (olds, _) in enumerate(groups)
        }
        starts = {axes[0]: index for index, axes in wanted.items() if axes}
        walked = [axis for first in order if first in starts for axis in wanted[starts[first]]]
        if walked == order:
            placed = [starts[first] for first in order if first in starts]
            placed += [index for index in range(len(groups)) if index not in placed]
            return _laid_out(view, shape, groups, placed, owner)
    return None


def _laid_out(
    view: View,
    shape: tuple[int, ...],
    groups: list[tuple[list[int], list[int]]],
    placed: list[int],
    owner: dict[int, int],
) -> View:
    axes = [0] * len(shape)
    sizes: list[int] = []
    roles: list[Role] = []
    for index in placed:
        kinds = {view.roles[axis] for axis, group in owner.items() if group == index and view.shape[axis] > 1}
        kinds = kinds or {view.roles[axis] for axis, group in owner.items() if group == index}
        for new in groups[index][1]:
            axes[new] = len(sizes)
            sizes.append(shape[new])
            roles.append(kinds.copy().pop() if len(kinds) == 1 else "")
    return View(view.name, tuple(sizes), tuple(axes), tuple(roles), view.factor)


def _groups(have: tuple[int, ...], want: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of ``have`` and of ``want`` that hold the same elements, as short as they can be."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(have) and j < len(want):
        olds, news = [i], [j]
        i, j = i + 1, j + 1
        while (a := math.prod(have[o] for o in olds)) != (b := math.prod(want[n] for n in news)):
            if a < b:
                olds.append(i)
                i += 1
            else:
                news.append(j)
                j += 1
        groups.append((olds, news))
    if i < len(have) or j < len(want):  # axes of length 1 at the end
        if not groups:
            groups.append(([], []))
        groups[-1][0].extend(range(i, len(have)))
        groups[-1][1].extend(range(j, len(want)))
    return groups
