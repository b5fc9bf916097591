"""Operators that move or compare numbers and compute none: the same for integers and for real numbers that stand for them.

Each function takes the state of the import and a node, and says what the node's result is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from labkit.errors import ModelError
from labkit.frontends.onnx.building import Building
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.values import Dequantized, Index, Integers, Pending, Real, Value, refuse
from labkit.frontends.onnx.windows import window_of
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import Tensor

__all__ = ["MOVING"]

_LARGEST_SIDE = 2**16  # of a resized image


def _moved(state: Building, node: OnnxNode, op: IntOp) -> Value:
    """``op`` on the first input, whose scale the result keeps."""
    source = state.integers(node, 0)
    made = state.add(node.outputs[0], op, (source,), source.tensor)
    return Dequantized(made) if isinstance(state.value(node, 0), Dequantized) else made


def _same(state: Building, node: OnnxNode) -> Value:
    """The first input itself."""
    value = state.value(node, 0)
    if isinstance(value, Pending):
        return replace(value, names=(*value.names, node.outputs[0]))
    if isinstance(value, Integers | Dequantized):
        state.carry(value if isinstance(value, Integers) else value.of, node.outputs[0])
    return value


def _dropout(state: Building, node: OnnxNode) -> Value:
    training = state.constants.get(state.name(node, 2))
    if len([name for name in node.outputs if name]) > 1 or (
        state.has(node, 2) and (training is None or training.any())
    ):
        raise refuse(node, "it is in training mode, or its mask is wanted.")
    return _same(state, node)


def _cast(state: Building, node: OnnxNode) -> Value:
    value = state.value(node, 0)
    target = int(node.attributes.get("to", 0))
    if isinstance(value, Integers):
        same = {2: np.dtype(np.uint8), 3: np.dtype(np.int8)}.get(target) == value.tensor.dtype
    else:
        same = target == 1 and isinstance(value, Dequantized | Pending | Real)  # float32
    if not same:
        raise refuse(node, f"it changes the type (to {target}).")
    return _same(state, node)


def _flatten(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    axis = int(node.attributes.get("axis", 1))
    if axis + (len(shape) + 1 if axis < 0 else 0) != 1:
        raise refuse(node, f"it flattens from axis {axis}; the batch axis alone must stay.")
    return _moved(state, node, int_ops.Flatten())


def _reshape(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    wanted = [int(size) for size in state.constant(node, 1, "shape").reshape(-1)]
    if not wanted or len(wanted) > 9:
        raise refuse(node, f"it makes a tensor of {len(wanted)} axes.")
    if not node.attributes.get("allowzero", 0):
        wanted = [
            ((0, *shape)[i] if 0 < i <= len(shape) else 0) if size == 0 else size for i, size in enumerate(wanted)
        ]
    elements, batch = math.prod(shape), wanted[0]
    rest = wanted[1:]
    if -1 in rest and rest.count(-1) == 1 and batch != -1:
        known = -math.prod(rest)
        if known < 1 or elements % known:
            raise ModelError(f"{node}: {shape} cannot become {wanted}.")
        rest[rest.index(-1)] = elements // known
    if batch not in (0, -1, *state.batch) or math.prod(rest) != elements or min(rest, default=1) < 1:
        raise refuse(
            node, f"it makes {wanted} of (N, {', '.join(map(str, shape))}); each image must stay by itself, in axis 0."
        )
    return _moved(state, node, int_ops.Reshape(tuple(rest)))


def _squeeze(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    if state.has(node, 1):
        axes = _axes(node, state.constant(node, 1, "axes").reshape(-1).tolist(), len(shape) + 1)
    else:
        axes = {i + 1 for i, size in enumerate(shape) if size == 1}
    if 0 in axes or any(shape[axis - 1] != 1 for axis in axes):
        raise refuse(node, f"it takes the axes {sorted(axes)} from (N, {', '.join(map(str, shape))}).")
    kept = tuple(size for i, size in enumerate(shape) if i + 1 not in axes)
    return _moved(state, node, int_ops.Reshape(kept))


def _unsqueeze(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    listed = state.constant(node, 1, "axes").reshape(-1).tolist()
    rank = len(shape) + 1 + len(listed)
    axes = _axes(node, listed, rank)
    if 0 in axes or len(axes) != len(listed):
        raise refuse(node, f"it adds the axes {listed}; the batch axis must stay first.")
    sizes = iter(shape)
    return _moved(state, node, int_ops.Reshape(tuple(1 if axis in axes else next(sizes) for axis in range(1, rank))))


def _transpose(state: Building, node: OnnxNode) -> Value:
    rank = len(state.integers(node, 0).tensor.shape) + 1
    axes = node.attributes.get("perm") or tuple(reversed(range(rank)))
    if sorted(axes) != list(range(rank)):
        raise ModelError(f"{node}: {axes} is no order of {rank} axes.")
    if axes[0] != 0:
        raise refuse(node, f"it moves the batch axis (perm {axes}).")
    return _moved(state, node, int_ops.Transpose(tuple(int(axis) - 1 for axis in axes[1:])))


def _pad(state: Building, node: OnnxNode) -> Value:
    value, source = state.value(node, 0), state.integers(node, 0)
    shape = source.tensor.shape
    rank = len(shape) + 1
    if node.attributes.get("mode", "constant") != "constant" or rank not in (3, 4):
        raise refuse(node, f"it pads {shape} in the mode {node.attributes.get('mode', 'constant')!r}.")
    listed = [int(size) for size in state.constant(node, 1, "pads").reshape(-1)]
    axes = list(range(rank))
    if state.has(node, 3):
        axes = [int(axis) % rank for axis in state.constant(node, 3, "axes").reshape(-1)]
    if len(listed) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise ModelError(f"{node}: {len(listed)} pads for the axes {axes}.")
    around = {axis: (listed[i], listed[len(axes) + i]) for i, axis in enumerate(axes)}
    edges = [around.get(axis, (0, 0)) for axis in range(rank)]
    if edges[0] != (0, 0) or edges[1] != (0, 0) or min(edge for pair in edges for edge in pair) < 0:
        raise refuse(node, f"its pads are {edges}; only rows and columns are added.")
    filling = state.constant(node, 2, "value").reshape(-1)[:1] if state.has(node, 2) else np.zeros(1, np.int32)
    zero = int(source.tensor.quantized[1].zero_point) if isinstance(value, Integers) else 0
    if filling.size != 1 or filling[0] != zero:
        raise refuse(node, f"it pads with {filling}, which is not real 0 ({zero}).")
    rows = edges[2] if rank == 4 else (0, 0)
    return _moved(state, node, int_ops.Pad((rows, edges[-1])))


def _max_pool(state: Building, node: OnnxNode) -> Value:
    if len([name for name in node.outputs if name]) > 1:
        raise refuse(node, "its positions (second result) are wanted.")
    window = window_of(node, state.integers(node, 0).tensor.shape)
    return _moved(
        state,
        node,
        int_ops.MaxPool2d(window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode),
    )


def _global_max_pool(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    if len(shape) not in (2, 3):
        raise refuse(node, f"its input has shape {shape}; images and sequences of channels are run.")
    kernel = (*(1,) * (3 - len(shape)), *shape[1:])
    return _moved(state, node, int_ops.MaxPool2d((kernel[0], kernel[1]), (1, 1), ((0, 0), (0, 0)), (1, 1), False))


def _resize(state: Building, node: OnnxNode) -> Value:
    shape = state.integers(node, 0).tensor.shape
    if node.attributes.get("mode", "nearest") != "nearest" or len(shape) not in (2, 3) or "axes" in node.attributes:
        raise refuse(node, f"it resizes {shape} in the mode {node.attributes.get('mode', 'nearest')!r}.")
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        raise refuse(
            node, f"its keep_aspect_ratio_policy is {policy!r}; stretch, which takes the sizes as they are, is known."
        )
    if state.has(node, 3):
        sizes = [int(size) for size in state.constant(node, 3, "sizes").reshape(-1)]
        if len(sizes) != len(shape) + 1 or sizes[0] not in (0, 1, *state.batch):
            raise refuse(node, f"it resizes (N, {shape}) to {sizes}.")
        factors = [1.0, *(new / old for new, old in zip(sizes[1:], shape, strict=True))]
    else:
        factors = [float(factor) for factor in state.constant(node, 2, "scales").reshape(-1)]
    whole = [round(factor) if factor < 2**16 else 0 for factor in factors]
    if len(whole) != len(shape) + 1 or whole != factors or whole[:2] != [1, 1] or min(whole) < 1:
        raise refuse(node, f"it resizes by {factors}; rows and columns can be repeated a whole number of times.")
    for factor, size in zip(whole[2:], shape[1:], strict=True):
        state.work.spend(min(size * factor, _LARGEST_SIDE))
        if size * factor > _LARGEST_SIDE or not _repeats(node, size, factor):
            raise refuse(
                node,
                f"with {node.attributes.get('coordinate_transformation_mode', 'half_pixel')} and "
                f"{node.attributes.get('nearest_mode', 'round_prefer_floor')} it does not repeat each row and column alike.",
            )
    return _moved(state, node, int_ops.UpsampleNearest2d((whole[2] if len(shape) == 3 else 1, whole[-1])))


def _repeats(node: OnnxNode, size: int, factor: int) -> bool:
    """Whether each of ``size`` elements is taken ``factor`` times in a row."""
    places = np.arange(size * factor, dtype=np.float64)
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        source = places / factor
    elif mode in ("half_pixel", "half_pixel_symmetric") or (mode == "pytorch_half_pixel" and size * factor > 1):
        source = (places + 0.5) / factor - 0.5
    else:
        return factor == 1 and mode != "tf_crop_and_resize"  # which may crop at any factor
    nearest: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    rounded = nearest.get(node.attributes.get("nearest_mode", "round_prefer_floor"), np.zeros_like)(source)
    return bool(np.array_equal(np.clip(rounded, 0, size - 1), places // factor))


def _argmax(state: Building, node: OnnxNode) -> Value:
    source = state.integers(node, 0)
    rank = len(source.tensor.shape) + 1
    axis = int(node.attributes.get("axis", 0))
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank or node.attributes.get("select_last_index", 0):
        raise refuse(node, f"it compares images, or takes the last of several (axis {axis}).")
    op = int_ops.ArgMax(axis - 1, bool(node.attributes.get("keepdims", 1)))
    made = state.add(node.outputs[0], op, (source,), Tensor((), None, None, is_index=True))
    return Index(made.node)


def _axes(node: OnnxNode, listed: list[int], rank: int) -> set[int]:
    if any(not -rank <= int(axis) < rank for axis in listed):
        raise ModelError(f"{node}: there are no axes {listed} in {rank}.")
    return {int(axis) % rank for axis in listed}


MOVING: Mapping[str, Callable[[Building, OnnxNode], Value]] = MappingProxyType(
    {
        "ArgMax": _argmax,
        "Cast": _cast,
        "Dropout": _dropout,
        "Flatten": _flatten,
        "GlobalMaxPool": _global_max_pool,
        "Identity": _same,
        "MaxPool": _max_pool,
        "Pad": _pad,
        "Reshape": _reshape,
        "Resize": _resize,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
