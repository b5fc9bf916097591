"""Output sizes of windowed operations."""

from __future__ import annotations

__all__ = ["Padding", "symmetric_padding", "window_output"]

Padding = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right))


def symmetric_padding(height: int, width: int) -> Padding:
    """``height`` rows above and below, ``width`` columns left and right."""
    return (height, height), (width, width)


def window_output(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int = 1, ceil_mode: bool = False
) -> int:
    """How many positions a window takes along one axis; 0 or less where it does not fit.

    ``size`` is the input's, ``kernel`` the window's, ``stride`` the step, ``padding`` what is added (before, after) and
    ``dilation`` the distance of taps, all in elements. ``ceil_mode`` adds a last, partly outside window, but only if it
    starts inside the input or its leading padding (the rule of PyTorch).
    """
    before, after = padding
    span = size + before + after - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    positions = -(-span // stride) + 1
    return positions - 1 if (positions - 1) * stride >= size + before else positions
