"""Any function of one or two integers of at most eight bits, looked up in a table. See `reference` for what they compute.

The table is made by the readable tier itself when a network is prepared (`engine.tables`), so that it cannot differ. It holds
numbers as they are stored in the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["lookup", "table_of_two", "tables_of_two"]

Array = NDArray[Any]


@jit
def lookup(part: int, parts: int, images: int, x: Array, y: Array, table: Array, low: int, patch: Patch) -> int:
    """``y = table[x - low]`` for every pixel and channel of ``patch``.

    part, parts : the share of this call, of all rows of all images
    x, y : int16 or uint8 [N, H, W, C]
    table : of the dtype of ``y``, an entry for each integer of the grid of ``x``
    low : what stands in ``x`` for the lowest integer of its grid
    """
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            source = x[n, patch.top + i, patch.left + j]
            target = y[n, patch.into_top + i, patch.into_left + j]
            for c in range(patch.channels):
                target[patch.into_channel + c] = table[np.int64(source[c]) - low]
    return 0


@jit
def table_of_two(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    table: Array,
    low: tuple[int, int],
    corner_b: Corner,
    patch: Patch,
) -> int:
    """``y = table[a - low[0], b - low[1]]`` for every pixel and channel of ``patch``, whose source is ``a``.

    part, parts : the share of this call, of all rows of all images
    a, b, y : int16 or uint8 [N, H, W, C]
    table : of the dtype of ``y``, with a row for each integer of the grid of ``a`` and a column for each of that of ``b``
    low : what stands in ``a`` and ``b`` for the lowest integers of their grids
    corner_b : of the image in ``b``
    """
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            left = a[n, patch.top + i, patch.left + j]
            right = b[n, corner_b.top + i, corner_b.left + j]
            target = y[n, patch.into_top + i, patch.into_left + j]
            for c in range(patch.channels):
                target[c] = table[np.int64(left[c]) - low[0], np.int64(right[c]) - low[1]]
    return 0


@jit
def tables_of_two(
    part: int,
    parts: int,
    images: int,
    a: Array,
    b: Array,
    y: Array,
    table: Array,
    which: Array,
    low: tuple[int, int],
    corner_b: Corner,
    patch: Patch,
) -> int:
    """As `table_of_two`, with several tables: ``which`` uint8 [H, W, C] says by which of them an element is computed.

    ``table`` has one more axis, the first.
    """
    first, end = share(images * patch.height, part, parts)
    for line in range(first, end):
        n, i = line // patch.height, line % patch.height
        for j in range(patch.width):
            left = a[n, patch.top + i, patch.left + j]
            right = b[n, corner_b.top + i, corner_b.left + j]
            target = y[n, patch.into_top + i, patch.into_left + j]
            choice = which[i, j]
            for c in range(patch.channels):
                target[c] = table[choice[c], np.int64(left[c]) - low[0], np.int64(right[c]) - low[1]]
    return 0
