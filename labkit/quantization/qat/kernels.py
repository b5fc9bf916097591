"""Fake quantization of a whole tensor and its gradient, each in one pass over memory.

PyTorch's own operations take six passes forward and as many backward, which is longer than the convolutions in between. What is
computed is that of `fake_quantize.reference`, element by element; a test holds the two equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.jit import jit

__all__ = ["fake_quantize_backward", "fake_quantize_forward"]

Flat = NDArray[np.float32]


@jit
def fake_quantize_forward(x: Flat, scale: Any, low: Any, high: Any, out: Flat) -> None:
    """``out = scale * clip(rint(x / scale), low, high)``.

    Parameters
    ----------
    x : float32 [n]
    scale, low, high : float32; the ends are integers less the zero point
    out : float32 [n]
    """
    for i in range(x.size):
        level = np.rint(x[i] / scale)
        level = low if level < low else level
        level = high if level > high else level
        out[i] = level * scale


@jit
def fake_quantize_backward(
    x: Flat, slope: Flat, scale: Any, low: Any, high: Any, share: Any, out: Flat, by_scale: Flat
) -> None:
    """The straight-through gradient, and the derivative of each result by the scale.

    Parameters
    ----------
    x, slope : float32 [n], the forward pass's input and the gradient by its result
    scale, low, high : as in the forward pass
    share : float32, 1; 0 leaves out of ``by_scale`` what was not clipped
    out : float32 [n], gets ``slope`` where the level was not clipped, else 0
    by_scale : float32 [n], gets the level, less ``x / scale`` where it was not clipped (Esser et al. 2020, equation 3)
    """
    zero = np.float32(0.0)
    for i in range(x.size):
        exact = x[i] / scale
        level = np.rint(exact)
        kept = low if level < low else level
        kept = high if kept > high else kept
        inside = kept == level
        out[i] = slope[i] if inside else zero
        by_scale[i] = share * (kept - exact) if inside else kept
