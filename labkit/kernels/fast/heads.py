"""Softmax and argmax. See the same names in `reference`.

Both work on *groups*: the elements along one axis, which lie at equal distances in a buffer, wherever the axis is. Where each
group starts is settled when a network is prepared (`move.offsets`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["Groups", "argmax", "groups_along", "softmax"]

Array = NDArray[Any]


class Groups(NamedTuple):
    """How many elements a group has, and how far apart they lie in the source and in the target, in elements."""

    length: int
    step: int
    into_step: int


def groups_along(axis: int, source: NDArray[np.int64], target: NDArray[np.int64] | None) -> tuple[Array, Array, Groups]:
    """The groups along ``axis`` of a tensor whose elements lie at ``source`` and go to ``target``, int64 of its shape.

    Without ``target`` a group has one result, and that is left to the caller.

    Returns
    -------
    int64 [groups] first elements in the source, the same in the target, and their distances
    """
    come = np.moveaxis(source, axis, -1).reshape(-1, source.shape[axis])
    go = come if target is None else np.moveaxis(target, axis, -1).reshape(-1, source.shape[axis])
    steps = (int(at[0, 1] - at[0, 0]) if at.shape[1] > 1 else 0 for at in (come, go))
    return np.ascontiguousarray(come[:, 0]), np.ascontiguousarray(go[:, 0]), Groups(come.shape[1], *steps)


@jit
def softmax(
    part: int,
    parts: int,
    images: int,
    x: Array,
    y: Array,
    come: Array,
    go: Array,
    groups: Groups,
    table: Array,
    bits: int,
    clamp: tuple[int, int],
    zero_y: int,
) -> int:
    """``y = clamp((2**(bits + 1) e + s) // (2 s))`` with ``e = table[largest - x]`` and their sum ``s`` (eq. 26).

    part, parts : the share of this call, of all groups of all images
    x, y : [N, H, W, C] of any integer dtype
    come, go, groups : from `groups_along`
    table : int32 [256], at most 2**30: for up to 2**28 elements every number below fits 60 bits
    clamp : zero point subtracted; zero_y : stands for real 0 in ``y``
    """
    count = come.shape[0]
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for g in range(max(0, first - n * count), min(count, end - n * count)):
            largest: Any = np.int64(source[come[g]])
            for k in range(1, groups.length):
                largest = max(largest, np.int64(source[come[g] + k * groups.step]))
            total = np.int64(0)
            for k in range(groups.length):
                total += table[largest - np.int64(source[come[g] + k * groups.step])]
            for k in range(groups.length):
                power = np.int64(table[largest - np.int64(source[come[g] + k * groups.step])])
                rounded: Any = ((power << (bits + 1)) + total) // (2 * total)
                target[go[g] + k * groups.into_step] = min(max(rounded, clamp[0]), clamp[1]) + zero_y
    return 0


@jit
def argmax(part: int, parts: int, images: int, x: Array, y: Array, come: Array, go: Array, groups: Groups) -> int:
    """The index of the largest element of each group, the lowest where there are several, to int32 ``y`` at ``go``.

    part, parts : the share of this call, of all groups of all images
    x : [N, H, W, C] of any integer dtype; come, go, groups : from `groups_along`
    """
    count = come.shape[0]
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for g in range(max(0, first - n * count), min(count, end - n * count)):
            best, largest = 0, source[come[g]]
            for k in range(1, groups.length):
                value = source[come[g] + k * groups.step]
                if value > largest:
                    best, largest = k, value
            target[go[g]] = best
    return 0
