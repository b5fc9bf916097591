"""Tensors in another order or repeated: reshape, transpose and upsample_nearest2d. See the same names in `reference`.

A pad is a border (`engine.plan`).

Where a number lies in a buffer is settled when a network is prepared: `offsets` gives the place of every element, and what
is left for a run is to copy from one list of places to another. The integers keep their scale; the two buffers may differ in
dtype and in the number that stands for real 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["move_elements", "move_runs", "offsets", "runs_of"]

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
def move_runs(part: int, parts: int, images: int, x: Array, y: Array, runs: Array, zero_x: int, zero_y: int) -> int:
    """Copy ``runs`` int64 [runs, 3] from `runs_of`; ``zero_x`` and ``zero_y`` stand for real 0 in ``x`` and ``y``.

    ``part`` of ``parts`` is the share of this call, of all runs of all images.
    """
    shift = np.int32(zero_y - zero_x)
    count = runs.shape[0]
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for r in range(max(0, first - n * count), min(count, end - n * count)):
            come, go = runs[r, 0], runs[r, 1]
            for k in range(runs[r, 2]):
                target[go + k] = np.int32(source[come + k]) + shift
    return 0


@jit
def move_elements(part: int, parts: int, images: int, x: Array, y: Array, runs: Array, zero_x: int, zero_y: int) -> int:
    """As `move_runs` where every run has length 1."""
    shift = np.int32(zero_y - zero_x)
    count = runs.shape[0]
    first, end = share(images * count, part, parts)
    for n in range(first // count, (end + count - 1) // count):
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        for r in range(max(0, first - n * count), min(count, end - n * count)):
            target[runs[r, 1]] = np.int32(source[runs[r, 0]]) + shift
    return 0
