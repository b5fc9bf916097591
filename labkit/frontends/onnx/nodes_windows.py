"""ONNX operators with a window: convolutions and pooling in any number of dimensions, and the windows themselves.

Float convolutions sum in float32, in whatever order NumPy's matrix product takes; integers are summed exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operators, integer_ends
from labkit.graph.shapes import window_output

__all__ = ["WINDOWS", "Window", "convolve", "counts", "exact_product", "padded", "taps", "window_of"]


@dataclass(frozen=True)
class Window:
    """How a window moves over the spatial axes: one number each, ``pads`` as (before, after); ``out`` are the positions."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    out: tuple[int, ...]


def window_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of ``call`` (strides, dilations, pads, auto_pad, ceil_mode) for spatial ``sizes`` and ``kernel``.

    Raises
    ------
    ModelError
        The attributes do not fit, or the window does not fit into the image.
    """
    rank = len(sizes)
    strides = tuple(int(s) for s in call.get("strides", [1] * rank))
    dilations = tuple(int(d) for d in call.get("dilations", [1] * rank))
    ends = [int(p) for p in call.get("pads", [0] * 2 * rank)]
    if (
        not rank == len(kernel) == len(strides) == len(dilations) == len(ends) // 2
        or min((*strides, *dilations, *kernel)) < 1
    ):
        raise call.wrong(
            f"kernel {list(kernel)}, strides {strides}, dilations {dilations} and pads {ends} for {rank} axes"
        )
    auto, ceil = str(call.get("auto_pad", "NOTSET")), bool(call.get("ceil_mode", 0))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        ceil, pads = False, []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            less, more = total // 2, total - total // 2
            pads.append((less, more) if auto == "SAME_UPPER" else (more, less))
    elif auto == "VALID":
        pads = [(0, 0)] * rank
    else:
        pads = list(zip(ends[:rank], ends[rank:], strict=True))
    out = tuple(
        window_output(size, k, s, p, d, ceil)
        for size, k, s, p, d in zip(sizes, kernel, strides, pads, dilations, strict=True)
    )
    call.bounded([size + before + after for size, (before, after) in zip(sizes, pads, strict=True)])
    call.bounded([*kernel, *out])
    if min(out) < 1:
        raise call.wrong(f"a window of {list(kernel)} with pads {pads} does not fit into {list(sizes)}")
    return Window(tuple(int(k) for k in kernel), strides, dilations, tuple(pads), out)


def padded(x: Array, window: Window, fill: Any) -> Array:
    """``x`` [N, C, ...] with ``fill`` around it, as far as any position of ``window`` looks."""
    ends = []
    for axis, (before, after) in enumerate(window.pads):
        span = (window.out[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        ends.append((before, max(after, span - x.shape[2 + axis] - before)))
    return np.asarray(np.pad(x, [(0, 0), (0, 0), *ends], constant_values=fill))


def taps(x: Array, window: Window, fill: Any) -> Iterator[Array]:
    """For each cell of the ``window``, row by row: what it sees of ``x`` [N, C, ...] at all positions, [N, C, *out].

    ``fill`` is what lies outside of the image.
    """
    whole = padded(x, window, fill)
    for cell in itertools.product(*(range(k) for k in window.kernel)):
        places = []
        for axis, index in enumerate(cell):
            start, step = index * window.dilations[axis], window.strides[axis]
            places.append(slice(start, start + (window.out[axis] - 1) * step + 1, step))
        yield whole[(slice(None), slice(None), *places)]


def exact_product(a: Array, b: Array) -> Array:
    """The matrix product of integers as NumPy's matmul has it, exact, int64.

    ``a`` and ``b`` hold integers of at most 16 bits, [..., M, K] and [..., K, N]: their products are summed in float64, which
    is exact as long as the sum stays below 2**53, for 16 bits up to a depth of 2**21.
    """
    return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64))


def convolve(call: Call, x: Array, w: Array) -> Array:
    """The convolution of ``x`` [N, C, ...] by ``w`` [M, C / group, ...], padded with zeros, of whichever type they have.

    ``call`` gives group, strides, dilations and pads. Integers (int64) give exact sums, floats those of their own type.

    Raises
    ------
    ModelError
        The shapes do not fit.
    """
    group = int(call.get("group", 1))
    if x.ndim != w.ndim or x.ndim < 3 or group < 1 or x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise call.wrong(f"an input {list(x.shape)} and weights {list(w.shape)} with group {group} do not fit")
    if list(call.get("kernel_shape", w.shape[2:])) != list(w.shape[2:]):
        raise call.wrong(f"kernel_shape {call.get('kernel_shape')} is not that of the weights {list(w.shape)}")
    window = window_of(call, x.shape[2:], w.shape[2:])
    call.bounded([len(x), w.shape[0], *window.out])
    call.bounded([len(x), x.shape[1], *window.kernel, *window.out])
    seen = np.stack(list(taps(x, window, 0)), 2)  # [N, C, cells, *out]
    n, positions = len(x), int(np.prod(window.out))
    seen = seen.reshape(n, group, -1, positions)
    weights = w.reshape(group, w.shape[0] // group, -1)
    product = exact_product if x.dtype.kind in "iu" else np.matmul
    return product(weights[None], seen).reshape(n, w.shape[0], *window.out)


def _conv(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    y = convolve(call, x, w)
    return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def _kernel(call: Call, x: Array) -> list[int]:
    kernel = call.get("kernel_shape")
    if kernel is None or x.ndim != len(kernel) + 2:
        raise call.wrong(f"kernel_shape {kernel} does not fit an input {list(x.shape)}")
    return [int(k) for k in kernel]


def _max_pool(call: Call, x: Array) -> Array | tuple[Array, ...]:
    window = window_of(call, x.shape[2:], _kernel(call, x))
    lowest = -np.inf if x.dtype.kind == "f" else integer_ends(x.dtype)[0]
    best: Array | None = None
    for seen in taps(x, window, lowest):
        best = seen.copy() if best is None else np.maximum(best, seen)
    assert best is not None
    return best if call.outputs == 1 else (best, _positions(call, x, window, best))


def _positions(call: Call, x: Array, window: Window, best: Array) -> Array:
    """Where in ``x``, counted over all of it, the first cell with the largest number lies."""
    sizes = x.shape[2:]
    flat = np.arange(int(np.prod(sizes))).reshape(sizes, order="F" if call.get("storage_order", 0) else "C")
    starts = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(sizes)) * flat.size
    numbers = starts + flat
    found = np.full(best.shape, -1, np.int64)
    for seen, number in zip(taps(x, window, 0), taps(numbers, window, -1), strict=True):
        found = np.where((found < 0) & (number >= 0) & (seen == best), number, found)
    return found


def _average_pool(call: Call, x: Array) -> Array:
    window = window_of(call, x.shape[2:], _kernel(call, x))
    total = sum(taps(x, window, 0), np.zeros((), x.dtype))
    return np.asarray(total / counts(call, x.shape[2:], window).astype(x.dtype), x.dtype)


def counts(call: Call, sizes: Sequence[int], window: Window) -> Array:
    """How many cells a mean is divided by at each position: int64 [*out].

    ``call`` says whether padding counts (count_include_pad); what the last window of ceil_mode sees beyond it never does.
    ``sizes`` are those of the image, ``window`` how it is pooled.
    """
    inside = np.ones((1, 1, *sizes), np.int64)
    if not call.get("count_include_pad", 0):
        return np.asarray(np.asarray(sum(taps(inside, window, 0)))[0, 0])
    inside = np.pad(inside, [(0, 0), (0, 0), *window.pads], constant_values=1)
    moved = Window(window.kernel, window.strides, window.dilations, ((0, 0),) * len(sizes), window.out)
    return np.asarray(np.asarray(sum(taps(inside, moved, 0)))[0, 0])


def _global_average_pool(call: Call, x: Array) -> Array:
    return np.asarray(x.mean(tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype))


def _global_max_pool(call: Call, x: Array) -> Array:
    return np.asarray(x.max(tuple(range(2, x.ndim)), keepdims=True))


WINDOWS: Operators = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
}
