"""Kernel, stride, padding and dilation from the attributes of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit.errors import ModelError
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.values import refuse
from labkit.graph.shapes import Padding, window_output

__all__ = ["Window", "has_partial_window", "window_of"]

_LARGEST, _FARTHEST = 2**16, 256  # of kernels and strides; of pads and dilations


@dataclass(frozen=True)
class Window:
    """A window over an image; over a sequence its height is 1."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    ceil_mode: bool


def window_of(node: OnnxNode, shape: tuple[int, ...], kernel: tuple[int, ...] | None = None) -> Window:
    """The window of ``node`` over a tensor of ``shape`` (channels, [height,] width); ``kernel`` if its weights say it.

    Raises
    ------
    UnsupportedOperation
        The tensor is no image and no sequence, or a last partial window is counted in a way that labkit does not know.
    ModelError
        The attributes do not fit.
    """
    axes = len(shape) - 1
    if axes not in (1, 2):
        raise refuse(node, f"its input has shape {shape}; images and sequences of channels are run.")
    size = _numbers(node, "kernel_shape", axes, None)
    if kernel is not None:
        if size is not None and size != kernel:
            raise ModelError(f"{node}: kernel_shape is {size}, its weights say {kernel}.")
        size = kernel
    if size is None or len(size) != axes:
        raise ModelError(f"{node}: a window over {axes} axes is needed, got {size}.")
    stride = _numbers(node, "strides", axes, (1,) * axes) or ()
    dilation = _numbers(node, "dilations", axes, (1,) * axes) or ()
    automatic = node.attributes.get("auto_pad", "NOTSET")
    ceil_mode = bool(node.attributes.get("ceil_mode", 0))
    if min(*size, *stride, *dilation) < 1:
        raise ModelError(f"{node}: kernel {size}, strides {stride} and dilations {dilation} must be at least 1.")
    if automatic == "NOTSET":
        pads = _numbers(node, "pads", 2 * axes, (0,) * (2 * axes)) or ()
        edges = [(pads[i], pads[axes + i]) for i in range(axes)]
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        edges = [_same(shape[1 + i], size[i], stride[i], dilation[i], automatic == "SAME_UPPER") for i in range(axes)]
        ceil_mode = False  # nothing is left over
    elif automatic == "VALID":
        edges = [(0, 0)] * axes
    else:
        raise ModelError(f"{node}: auto_pad is {automatic!r}; NOTSET, SAME_UPPER, SAME_LOWER and VALID are known.")
    if any(edge < 0 for pair in edges for edge in pair):
        raise refuse(node, f"it takes rows or columns away: pads {edges}.")
    far = max(*dilation, *(edge for pair in edges for edge in pair))
    if max(*size, *stride) > _LARGEST or far > _FARTHEST:
        raise ModelError(
            f"{node}: a window of {size} with strides {stride}, pads {edges} and dilations {dilation} is too large: {_LARGEST:,} "
            f"elements and {_FARTHEST} of padding or dilation are allowed."
        )
    flat = ((0, 0),) * (2 - axes) + tuple(edges)
    one = (1,) * (2 - axes)
    return Window(_pair(one + size), _pair(one + stride), (flat[0], flat[1]), _pair(one + dilation), ceil_mode)


def has_partial_window(window: Window, shape: tuple[int, ...]) -> bool:
    """Whether rounding up gives ``window`` over ``shape`` a last position that rounding down does not."""
    image = shape[1:] if len(shape) == 3 else (1, shape[1])
    return any(
        window_output(image[i], window.kernel[i], window.stride[i], window.padding[i], window.dilation[i], True)
        != window_output(image[i], window.kernel[i], window.stride[i], window.padding[i], window.dilation[i], False)
        for i in range(2)
    )


def _same(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    """Padding (before, after) with which ``ceil(size / stride)`` positions fit; an odd one goes after if ``upper``."""
    positions = -(-size // stride)
    total = max(0, (positions - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def _numbers(node: OnnxNode, name: str, count: int, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    found: Any = node.attributes.get(name)
    if found is None or found == ():
        return default
    if not isinstance(found, tuple) or len(found) != count or not all(isinstance(value, int) for value in found):
        raise ModelError(f"{node}: {name} must be {count} whole numbers, got {str(found)[:60]}.")
    return found


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]
