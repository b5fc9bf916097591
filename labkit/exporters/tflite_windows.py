"""A window's padding as TFLite can say it: VALID, SAME, or explicit zeros around the image before it."""

from __future__ import annotations

from labkit.graph.shapes import Padding

__all__ = ["fitted"]


def fitted(
    sizes: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    out: tuple[int, int],
) -> tuple[str, Padding | None]:
    """VALID or SAME, and what has to be padded before (None: nothing), for a window that gives the size ``out``.

    ``sizes`` are those of the image, ``window`` how many rows and columns the window covers with its dilation, ``stride`` its
    steps and ``padding`` what is added. Rows and columns at the end that no window reaches are not padded.
    """
    edges = []
    for axis in range(2):
        before = padding[axis][0]
        edges.append((before, max(0, (out[axis] - 1) * stride[axis] + window[axis] - sizes[axis] - before)))
    needed = (edges[0], edges[1])
    if needed == ((0, 0), (0, 0)) and all(_valid(sizes[a], window[a], stride[a]) == out[a] for a in range(2)):
        return "VALID", None
    if all(_same(sizes[a], window[a], stride[a]) == (out[a], *needed[a]) for a in range(2)):
        return "SAME", None
    return "VALID", needed


def _valid(size: int, window: int, stride: int) -> int:
    return (size - window) // stride + 1


def _same(size: int, window: int, stride: int) -> tuple[int, int, int]:
    """How many positions SAME has, and what it pads before and after."""
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + window - size)
    return out, total // 2, total - total // 2
