"""ONNX operators that move elements or describe shapes, in NumPy; any element type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from labkit.frontends.onnx.nodes_call import Array, Call, Operators

__all__ = ["LAYOUT", "axes_of"]


def axes_of(call: Call, given: Array | None, rank: int) -> tuple[int, ...] | None:
    """The axes that ``call`` names, by an input ``given`` or by its attribute, from 0 to ``rank`` - 1; None for none.

    Raises
    ------
    ModelError
        An axis is beyond the rank or stands there twice.
    """
    values = call.get("axes") if given is None else given.reshape(-1)
    if values is None:
        return None
    axes = [int(axis) for axis in values]
    if any(not -rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) < len(axes):
        raise call.wrong(f"axes {axes} of a tensor of {rank} axes")
    return tuple(axis % rank for axis in axes)


def _axis(call: Call, default: int, rank: int, beyond: int = 0) -> int:
    axis = int(call.get("axis", default))
    if not -rank <= axis < rank + beyond:
        raise call.wrong(f"axis {axis} of a tensor of {rank} axes")
    return axis + rank if axis < 0 else axis


def _flatten(call: Call, x: Array) -> Array:
    axis = _axis(call, 1, x.ndim, beyond=1)
    return x.reshape(math.prod(x.shape[:axis]), -1) if x.size else x.reshape(math.prod(x.shape[:axis]), 0)


def _reshape(call: Call, x: Array, shape: Array) -> Array:
    wanted = [int(size) for size in shape.reshape(-1)]
    if not call.get("allowzero", 0):
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(wanted)):
            raise call.wrong(f"a shape {wanted} that keeps an axis which {list(x.shape)} does not have")
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _transpose(call: Call, x: Array) -> Array:
    return np.transpose(x, call.get("perm", tuple(reversed(range(x.ndim)))))


def _squeeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    named = axes_of(call, axes, x.ndim)
    return np.squeeze(x, named)


def _unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    count = len(call.get("axes", ())) if axes is None else axes.size
    return np.expand_dims(x, axes_of(call, axes, x.ndim + count) or ())


def _concat(call: Call, *parts: Array) -> Array:
    return np.concatenate(parts, int(call.get("axis", 0)))


def _shape(call: Call, x: Array) -> Array:
    start, end = int(call.get("start", 0)), call.get("end")
    return np.array(x.shape[slice(start, None if end is None else int(end))], np.int64)


def _size(call: Call, x: Array) -> Array:
    return np.array(x.size, np.int64)


def _gather(call: Call, x: Array, indices: Array) -> Array:
    axis = _axis(call, 0, x.ndim)
    call.bounded([x.size // max(1, x.shape[axis]), indices.size])
    return np.take(x, indices, axis)


def _slice(
    call: Call, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    named = tuple(range(starts.size)) if axes is None else axes_of(call, axes, x.ndim)
    strides = np.ones(starts.size, np.int64) if steps is None else steps
    places: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(named or (), starts, ends, strides, strict=True):
        beyond = step < 0 and end < -x.shape[axis]  # a negative end that lies before the first element
        places[axis] = slice(int(start), None if beyond else int(end), int(step))
    return x[tuple(places)]


def _split(call: Call, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    axis = _axis(call, 0, x.ndim)
    if sizes is None and call.get("split") is not None:  # before opset 13
        sizes = np.array(call.get("split"))
    if sizes is None:
        size = -(-x.shape[axis] // call.outputs)
        ends = [min(size * (i + 1), x.shape[axis]) for i in range(call.outputs - 1)]
    else:
        ends = [int(end) for end in np.cumsum(sizes)[:-1]]
    return tuple(np.split(x, ends, axis))


def _expand(call: Call, x: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(x.shape, tuple(int(size) for size in shape))
    call.bounded(wanted)
    return np.broadcast_to(x, wanted).copy()


def _tile(call: Call, x: Array, repeats: Array) -> Array:
    call.bounded([x.size, *(int(r) for r in repeats)])
    return np.tile(x, [int(r) for r in repeats])


def _constant_of_shape(call: Call, shape: Array) -> Array:
    value = call.get("value")
    filling = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    call.bounded(shape.tolist())
    return np.full([int(size) for size in shape], filling, filling.dtype)


def _range(call: Call, start: Array, limit: Array, delta: Array) -> Array:
    count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
    call.bounded([count])
    return np.asarray((start.reshape(()) + np.arange(count) * delta.reshape(())).astype(start.dtype))


def _pad(
    call: Call, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> Array:
    if call.opset < 11:
        pads = np.array(call.get("pads", ()), np.int64)
        value = np.asarray(call.get("value", 0.0), x.dtype)
    mode = str(call.get("mode", "constant"))
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise call.unsupported(f"mode {mode!r}")
    named = tuple(range(x.ndim)) if axes is None else axes_of(call, axes, x.ndim) or ()
    if pads is None or len(pads) != 2 * len(named):
        raise call.wrong(f"{0 if pads is None else len(pads)} pads for {len(named)} axes")
    ends = [(0, 0)] * x.ndim
    for i, axis in enumerate(named):
        ends[axis] = int(pads[i]), int(pads[i + len(named)])
    kept = tuple(slice(max(0, -a), x.shape[axis] - max(0, -b)) for axis, (a, b) in enumerate(ends))
    grown = [(max(0, a), max(0, b)) for a, b in ends]
    call.bounded([size + before + after for size, (before, after) in zip(x.shape, ends, strict=True)])
    options: dict[str, Any] = {}
    if mode == "constant":
        options["constant_values"] = np.zeros((), x.dtype) if value is None else value.reshape(())
    return np.pad(x[kept], grown, mode=mode, **options)  # type: ignore[call-overload, no-any-return]


def _resize(
    call: Call, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> Array:
    mode = str(call.get("mode", "nearest"))
    how = str(call.get("coordinate_transformation_mode", "half_pixel"))
    if call.opset < 11:
        raise call.unsupported(f"the inputs of opset {call.opset}")
    if mode != "nearest" or how not in _COORDINATES or call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.unsupported(f"mode {mode!r}, {how!r}")
    axes = axes_of(call, None, x.ndim) or tuple(range(x.ndim))
    for i, axis in enumerate(axes):
        have = x.shape[axis]
        if sizes is not None and sizes.size:
            want = int(sizes[i])
            factor = want / have
        elif scales is not None:
            factor = float(scales[i])
            want = math.floor(have * factor)
        else:
            raise call.wrong("neither scales nor sizes are given")
        call.bounded([x.size // max(1, have), want])
        if want != have or factor != 1:
            x = np.take(x, _nearest(call, how, have, want, factor), axis)
    return x


def _nearest(call: Call, how: str, have: int, want: int, factor: float) -> Array:
    """For each place of the result the place of the input that it repeats: int64 [want]."""
    place = _COORDINATES[how](np.arange(want, dtype=np.float64), have, want, factor)
    match str(call.get("nearest_mode", "round_prefer_floor")):
        case "round_prefer_floor":
            found = np.ceil(place - 0.5)
        case "round_prefer_ceil":
            found = np.floor(place + 0.5)
        case "floor":
            found = np.floor(place)
        case "ceil":
            found = np.ceil(place)
        case other:
            raise call.wrong(f"nearest_mode {other!r}")
    return np.asarray(np.clip(found, 0, have - 1).astype(np.int64))


_COORDINATES: dict[str, Any] = {
    "half_pixel": lambda i, have, want, factor: (i + 0.5) / factor - 0.5,
    "pytorch_half_pixel": lambda i, have, want, factor: (i + 0.5) / factor - 0.5 if want > 1 else 0 * i,
    "asymmetric": lambda i, have, want, factor: i / factor,
    "align_corners": lambda i, have, want, factor: i * ((have - 1) / max(1, want - 1)),
}


LAYOUT: Operators = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
