"""The sum of two tensors as ONNX Runtime computes it. See `reference.add_float32`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.requantize import Patch
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["add_float32"]

Array = NDArray[Any]


def _over_rows(function: Callable[..., Any], name: str) -> Callable[..., int]:
    def add(
        part: int,
        parts: int,
        images: int,
        a: Array,
        b: Array,
        y: Array,
        numbers: Array,
        corner_b: Corner,
        patch: Patch,
    ) -> int:
        """The sum of ``a`` and ``b``, element by element; the loop is plain so that it is compiled to vectors.

        part, parts : the share of this call, of all rows of all images
        a, b, y : int16 or uint8 [N, H, W, C]; lanes beyond the last channel may get numbers without meaning
        numbers : of the sum
        corner_b : of the image in ``b``
        """
        lanes = y.shape[3]
        # pixels of equally many lanes lie side by side in all three, filling lanes and all
        is_one_run = a.shape[3] == lanes and b.shape[3] == lanes
        runs = 1 if is_one_run else patch.width
        length = patch.width * lanes if is_one_run else patch.channels
        first, end = share(images * patch.height, part, parts)
        for line in range(first, end):
            n, i = line // patch.height, line % patch.height
            row_a, row_b = a[n, patch.top + i].reshape(-1), b[n, corner_b.top + i].reshape(-1)
            row_y = y[n, patch.into_top + i].reshape(-1)
            for j in range(runs):
                from_a, from_b = (patch.left + j) * a.shape[3], (corner_b.left + j) * b.shape[3]
                into = (patch.into_left + j) * lanes
                left, right = row_a[from_a : from_a + length], row_b[from_b : from_b + length]
                function(left, right, row_y[into : into + length], numbers)
        return 0

    add.__name__ = add.__qualname__ = name
    return jit(add)


@jit
def _float32(left: Array, right: Array, target: Array, numbers: Array) -> None:
    """Eq. 32. Products and sums are exact in float64 (`labkit.engine.lowering_runtimes` sees to that) and rounded once.

    ``numbers`` float32 [8]: the addend, the multipliers, what the integers of ``left`` and ``right`` are above the numbers
    stored there, the clamp, and what the result is above the number to store.
    """
    addend, by_a, by_b = np.float64(numbers[0]), np.float64(numbers[1]), np.float64(numbers[2])
    above_a, above_b, lowest, highest, above_y = numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]
    for c in range(target.shape[0]):
        first = np.float32(np.float64(np.float32(right[c]) + above_b) * by_b + addend)
        total = np.rint(np.float32(np.float64(np.float32(left[c]) + above_a) * by_a + np.float64(first)))
        target[c] = np.int32(min(max(total, lowest), highest) - above_y)


add_float32 = _over_rows(_float32, "add_float32")
