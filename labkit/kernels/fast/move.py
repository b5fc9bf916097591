"""Tensors in another order: pad, reshape, transpose. See the same names in `reference`.

Where a number lies in a buffer is settled when a network is prepared: `offsets` gives the place of every element, and what
is left for a run is to copy from one list of places to another. The integers keep their scale; the two buffers may differ in
dtype and in the number that stands for real 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.requantize import Patch
from labkit.kernels.jit import jit

__all__ = ["move_elements", "move_runs", "offsets", "pad", "runs_of"]

Array = NDArray[Any]


def offsets(
    stored: tuple[int, int, int], image: tuple[int, int, int], corner: tuple[int, int], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Where each element of a tensor lies in the memory of one image, counted in elements: int64 of ``shape``.

    Parameters
    ----------
    stored : height, width and lanes of the buffer
    image : the tensor as (C, H, W), in the order of PyTorch
    corner : row and column of its first pixel
    shape : of the result; as many elements as ``image``

    Returns
    -------
    int64 of ``shape``, each number below height * width * lanes
    """
    channels, height, width = image
    rows = (corner[0] + np.arange(height, dtype=np.int64)) * stored[1]
    pixels = (rows[:, None] + corner[1] + np.arange(width, dtype=np.int64)) * stored[2]
    assert math.prod(shape) == math.prod(image)
    return (np.arange(channels, dtype=np.int64)[:, None, None] + pixels).reshape(shape)


def runs_of(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours that stay neighbours: int64 [runs, 3] of first source, first target and length, by rising target.

    ``source`` and ``target`` have one shape; element i of the one is moved to element i of the other.
    """
    order = np.argsort(target, axis=None)
    come, go = source.reshape(-1)[order], target.reshape(-1)[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(come) != 1) | (np.diff(go) != 1)]))
    lengths = np.diff(np.concatenate([starts, [come.size]]))
    return np.ascontiguousarray(np.stack([come[starts], go[starts], lengths], axis=1))


@jit
def move_runs(images: int, x: Array, y: Array, runs: Array, zero_x: int, zero_y: int) -> int:
    """Copy ``runs`` int64 [runs, 3] from `runs_of`; ``zero_x`` and ``zero_y`` stand for real 0 in ``x`` and ``y``."""
    shift = np.int32(zero_y - zero_x)
    for n in range(images):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for r in range(runs.shape[0]):
            come, go = runs[r, 0], runs[r, 1]
            for k in range(runs[r, 2]):
                target[go + k] = np.int32(source[come + k]) + shift
    return 0


@jit
def move_elements(images: int, x: Array, y: Array, runs: Array, zero_x: int, zero_y: int) -> int:
    """As `move_runs` where every run has length 1."""
    shift = np.int32(zero_y - zero_x)
    for n in range(images):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for r in range(runs.shape[0]):
            target[runs[r, 1]] = np.int32(source[runs[r, 0]]) + shift
    return 0


@jit
def pad(
    images: int,
    x: Array,
    y: Array,
    before: tuple[int, int],
    size: tuple[int, int],
    patch: Patch,
    zero_x: int,
    zero_y: int,
) -> int:
    """An image in ``x`` with real 0 around it in ``y``, for images that have no border to serve.

    before : rows above and columns left of the image
    size : height and width of the image in ``x``
    patch : size of the padded image, place of the image in ``x`` and of the padded one in ``y``
    zero_x, zero_y : stand for real 0
    """
    shift = np.int32(zero_y - zero_x)
    for n in range(images):
        for i in range(patch.height):
            row = i - before[0]
            for j in range(patch.width):
                column = j - before[1]
                target = y[n, patch.into_top + i, patch.into_left + j]
                if 0 <= row < size[0] and 0 <= column < size[1]:
                    source = x[n, patch.top + row, patch.left + column]
                    for c in range(patch.channels):
                        target[c] = np.int32(source[c]) + shift
                else:
                    for c in range(patch.channels):
                        target[c] = zero_y
    return 0
