"""The windows of adaptive pooling, which may have differing sizes (docs/arithmetic.md, section 9)."""

from __future__ import annotations

import math

__all__ = ["adaptive_windows", "common_area"]


def adaptive_windows(size: int, positions: int) -> tuple[tuple[int, int], ...]:
    """First element and the one after the last of each of ``positions`` windows over ``size`` elements, as PyTorch has them.

    Window i covers ``floor(i * size / positions)`` up to ``ceil((i + 1) * size / positions)``. Where ``positions`` does not
    divide ``size`` they have two sizes and may overlap.
    """
    return tuple((i * size // positions, -(-(i + 1) * size // positions)) for i in range(positions))


def common_area(height: int, width: int, output_size: tuple[int, int]) -> int:
    """The least common multiple of the areas of all windows over an image: D of eq. 27.

    ``height`` and ``width`` are those of the image, ``output_size`` (H', W') that of the result.
    """
    rows, columns = (
        {stop - start for start, stop in adaptive_windows(size, positions)}
        for size, positions in zip((height, width), output_size, strict=True)
    )
    return math.lcm(*(row * column for row in rows for column in columns))
