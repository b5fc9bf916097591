"""ONNX's float operators as operations of a `FloatGraph`: one small function each.

Each takes a `FloatCall`, which knows the shapes that were seen on probe images and the tensors that are constant. A layer over
sequences (N, C, L) is the layer over images of height 1, as in `labkit.frontends.torch_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import UnsupportedOperation
from labkit.frontends.onnx.nodes_call import Call
from labkit.frontends.onnx.nodes_layout import LAYOUT, axes_of
from labkit.frontends.onnx.nodes_windows import Window, window_of
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, FloatOp
from labkit.graph.shapes import Padding, window_output

__all__ = ["FLOAT_OPERATORS", "FloatCall", "Step", "supported_kinds"]

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FloatCall:
    """A node of a float network, with what is known of its tensors.

    call : its operator and attributes.
    inputs : names of the tensors that it takes; "" for one that is left out.
    shapes : of each input, batch axis included; () for one that is left out.
    constants : the values of those inputs that do not depend on the images, by position.
    result : shape of its first result, batch axis included.
    follows_linear : whether its first input is the result of a linear layer that nobody else takes.
    is_output_only : whether nobody takes its result, which leaves the network.
    """

    call: Call
    inputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    constants: Mapping[int, Array]
    result: Shape
    follows_linear: bool
    is_output_only: bool

    def unsupported(self, what: str, advice: str) -> UnsupportedOperation:
        """The error for ``what`` is not supported, with ``advice`` for what to do."""
        return UnsupportedOperation(f"{self.call.name}: {self.call.kind}: {what}. {advice}")

    def constant(self, position: int, label: str) -> NDArray[np.float32]:
        """The float32 values, of any shape, of the input at ``position``, which errors call its ``label``.

        Raises
        ------
        UnsupportedOperation
            It is left out, depends on the images, or is of another type.
        """
        values = self.constants.get(position)
        if values is None or values.dtype != np.float32:
            have = "depends on the images" if values is None else f"is {values.dtype}"
            raise self.unsupported(f"its {label} {have}", f"Only a constant {label} of float32 is supported.")
        return values.copy(order="C")  # what a file holds is read-only, which torch warns of

    def optional(self, position: int, label: str) -> NDArray[np.float32] | None:
        """As `constant`, float32 of any shape, with the same ``position`` and ``label``; None where the input is left out."""
        return self.constant(position, label) if position < len(self.inputs) and self.inputs[position] else None

    @property
    def real(self) -> tuple[int, ...]:
        """Positions of the inputs that depend on the images."""
        return tuple(i for i, name in enumerate(self.inputs) if name and i not in self.constants)


Step = FloatOp | tuple[FloatOp, ...]  # several: one after the other
_NONE: Padding = ((0, 0), (0, 0))


def supported_kinds() -> str:
    """The operators that a float network may be made of, for messages."""
    return ", ".join(sorted(FLOAT_OPERATORS))


def _image(node: FloatCall) -> Shape:
    """Height and width of the first input, or (1, length)."""
    have = node.shapes[0]
    if len(have) not in (3, 4):
        raise node.unsupported(
            f"an input of shape {have}", "Images (N, C, H, W) and sequences (N, C, L) are supported."
        )
    return have[2:]


def _two(numbers: tuple[int, ...], height: int) -> tuple[int, int]:
    """One number for each axis of images; of sequences, ``height`` for the vertical one."""
    down, across = (height, *numbers) if len(numbers) == 1 else numbers
    return int(down), int(across)


def _edges(window: Window) -> Padding:
    return (window.pads[0], window.pads[1]) if len(window.pads) == 2 else ((0, 0), window.pads[0])


def _window(node: FloatCall, kernel: Any) -> Window:
    sizes = _image(node)
    if kernel is None or len(kernel) != len(sizes):
        raise node.unsupported(f"a kernel {kernel} for an input {node.shapes[0]}", "Export the network again.")
    return window_of(node.call, sizes, [int(k) for k in kernel])


def _conv(node: FloatCall) -> Step:
    weight, bias = node.constant(1, "weight"), node.optional(2, "bias")
    window = _window(node, weight.shape[2:])
    kernel = _two(window.kernel, 1)
    dilations, edges = _two(window.dilations, 1), _edges(window)
    total = [dilations[i] * (kernel[i] - 1) for i in range(2)]
    same = tuple((all_of // 2, all_of - all_of // 2) for all_of in total)  # what PyTorch's layer can do too
    split = edges != same and any(before != after for before, after in edges)
    conv = float_ops.Conv2d(
        weight.reshape(*weight.shape[:2], *kernel),
        bias,
        _two(window.strides, 1),
        _NONE if split else edges,
        dilations,
        int(node.call.get("group", 1)),
    )
    return (float_ops.Pad(edges), conv) if split else conv


def _flat(node: FloatCall) -> None:
    if len(node.shapes[0]) != 2:
        raise node.unsupported(
            f"an input of shape {node.shapes[0]}", "A linear layer needs a flat input: flatten it first."
        )


def _gemm(node: FloatCall) -> Step:
    _flat(node)
    if node.call.get("transA", 0):
        raise node.unsupported("transA", "The images are its rows: export the network without it.")
    weight, bias = node.constant(1, "matrix B"), node.optional(2, "bias C")
    weight = weight if node.call.get("transB", 0) else weight.T
    alpha, beta = np.float32(node.call.get("alpha", 1.0)), np.float32(node.call.get("beta", 1.0))
    if bias is not None:
        if bias.ndim > 1 and bias.shape[0] != 1:
            raise node.unsupported(f"a bias of shape {bias.shape}", "One number for each output is supported.")
        bias = np.broadcast_to(bias.reshape(-1) * beta, weight.shape[:1]).copy()
    return float_ops.Linear(np.ascontiguousarray(weight * alpha), bias)


def _matmul(node: FloatCall) -> Step:
    _flat(node)
    if node.real != (0,):
        raise node.unsupported(
            "a product of two tensors", "Only a constant on the right is supported, which is a linear layer."
        )
    return float_ops.Linear(np.ascontiguousarray(node.constant(1, "right matrix").T), None)


def _decimal(value: float) -> float:
    """The shortest decimal number that reads as the float32 ``value``: ONNX keeps 1e-5 as 9.999999747e-06."""
    return float(str(np.float32(value)))


def _batch_norm(node: FloatCall) -> Step:
    if node.call.get("training_mode", 0) or node.call.outputs > 1:
        raise node.unsupported("training mode", "Export the network for inference.")
    _normalisable(node)
    gamma, beta = node.constant(1, "scale"), node.constant(2, "bias")
    mean, variance = node.constant(3, "mean"), node.constant(4, "variance")
    return float_ops.BatchNorm2d(gamma, beta, mean, variance, _decimal(node.call.get("epsilon", 1e-5)))


def _normalisable(node: FloatCall) -> None:
    if len(node.result) == 2 and not node.follows_linear:
        raise node.unsupported(
            "numbers for each channel of a flat tensor",
            "They are supported right after a linear layer only, where they can be folded: move it there.",
        )


def _affine(node: FloatCall, gain: Array, shift: Array) -> Step:
    """``gain * x + shift``, each one number or one for each channel, as a frozen batch norm that passes fold."""
    _normalisable(node)
    rank, channels = len(node.result), node.result[1]
    if node.result != node.shapes[node.real[0]]:
        raise node.unsupported(f"a constant that makes {node.result} of {node.shapes[node.real[0]]}", "Leave it out.")
    spread = []
    for values in (gain, shift):
        aligned = values.reshape((1,) * (rank - values.ndim) + values.shape)
        if (
            aligned.shape[0] != 1
            or aligned.shape[1] not in (1, channels)
            or any(size != 1 for size in aligned.shape[2:])
        ):
            raise node.unsupported(
                f"a constant of shape {values.shape}", "One number, or one for each channel, is supported."
            )
        spread.append(np.broadcast_to(aligned.reshape(-1), (channels,)).astype(np.float32))
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return float_ops.BatchNorm2d(spread[0], spread[1], zeros, ones, epsilon=0.0)


def _number(value: float) -> Array:
    return np.asarray(value, np.float32)


def _add(node: FloatCall) -> Step:
    if len(node.real) == 1:
        return _affine(node, _number(1), node.constant(1 - node.real[0], "summand"))
    _same_shape(node)
    return float_ops.Add()


def _subtract(node: FloatCall) -> Step:
    if len(node.real) != 1:
        raise node.unsupported("a difference of two tensors", "Multiply one by -1 and add.")
    values = node.constant(1 - node.real[0], "constant")
    return _affine(node, _number(1), -values) if node.real == (0,) else _affine(node, _number(-1), values)


def _same_shape(node: FloatCall) -> None:
    if len(node.shapes) != 2 or node.shapes[0] != node.shapes[1]:
        raise node.unsupported(f"tensors of shapes {node.shapes}", "Only two tensors of one shape are supported.")


def _multiply(node: FloatCall) -> Step:
    if len(node.real) == 1:
        return _affine(node, node.constant(1 - node.real[0], "factor"), _number(0))
    a, b = node.shapes
    image, gate = (a, b) if math.prod(a) >= math.prod(b) else (b, a)
    if a != b and not (len(image) in (3, 4) and gate == (*image[:2], *(1 for _ in image[2:]))):
        raise node.unsupported(
            f"tensors of shapes {node.shapes}",
            "Two of one shape, or images (N, C, H, W) and gates (N, C, 1, 1), are supported.",
        )
    return float_ops.Multiply()


def _divide(node: FloatCall) -> Step:
    if node.real != (0,):
        raise node.unsupported("a division by a tensor", "Only division by a constant is supported.")
    divisor = node.constant(1, "divisor")
    if not np.all(divisor):
        raise node.unsupported("a division by 0", "Export the network again.")
    return _affine(node, (1 / divisor.astype(np.float64)).astype(np.float32), _number(0))


def _relu(node: FloatCall) -> Step:
    return float_ops.Relu(Activation.RELU)


def _clip(node: FloatCall) -> Step:
    ends = [node.optional(1, "lower end"), node.optional(2, "upper end")]
    low, high = (
        default if end is None else float(end.reshape(())) for end, default in zip(ends, (-np.inf, np.inf), strict=True)
    )
    if low == 0 and high == 6:
        return float_ops.Relu(Activation.RELU6)
    if low == 0 and high >= float(np.finfo(np.float32).max):
        return float_ops.Relu(Activation.RELU)
    raise node.unsupported(f"ends {low:g} and {high:g}", "Supported are 0 and 6 (ReLU6), and 0 alone (ReLU).")


def _max_pool(node: FloatCall) -> Step:
    if node.call.outputs > 1:
        raise node.unsupported("its positions as a second result", "Export the network without them.")
    window = _window(node, node.call.get("kernel_shape"))
    ceil = bool(node.call.get("ceil_mode", 0)) and node.call.get("auto_pad", "NOTSET") == "NOTSET"
    kernel, strides, dilations = _two(window.kernel, 1), _two(window.strides, 1), _two(window.dilations, 1)
    return float_ops.MaxPool2d(kernel, strides, _edges(window), dilations, ceil)


def _average_pool(node: FloatCall) -> Step:
    window = _window(node, node.call.get("kernel_shape"))
    floor = tuple(
        window_output(size, k, s, p)
        for size, k, s, p in zip(_image(node), window.kernel, window.strides, window.pads, strict=True)
    )
    uneven = np.any(window.pads) and not node.call.get("count_include_pad", 0)
    if uneven or floor != window.out or any(d != 1 for d in window.dilations):
        raise node.unsupported(
            "windows of differing sizes (ceil_mode, padding that is not counted) or dilated ones",
            "Export it with count_include_pad=1, or without padding.",
        )
    kernel, strides, edges = _two(window.kernel, 1), _two(window.strides, 1), _edges(window)
    if any(before != after for before, after in edges):
        return float_ops.Pad(edges), float_ops.AveragePool2d(kernel, strides, _NONE)
    return float_ops.AveragePool2d(kernel, strides, edges)


def _global_average_pool(node: FloatCall) -> Step:
    kernel = _two(_image(node), 1)
    return float_ops.AveragePool2d(kernel, kernel, _NONE)


def _global_max_pool(node: FloatCall) -> Step:
    kernel = _two(_image(node), 1)
    return float_ops.MaxPool2d(kernel, kernel, _NONE, (1, 1), False)


def _mean(node: FloatCall) -> Step:
    rank = len(node.shapes[0])
    axes = axes_of(node.call, node.constants.get(1), rank)
    if rank not in (3, 4) or axes is None or set(axes) != set(range(2, rank)):
        raise node.unsupported(
            f"a mean over axes {axes}", "Only the mean over height and width, or over the length, is supported."
        )
    pool = _global_average_pool(node)
    assert isinstance(pool, float_ops.AveragePool2d)
    return pool if node.call.get("keepdims", 1) else (pool, float_ops.Flatten())


def _reshape(node: FloatCall) -> Step:
    have, want = node.shapes[0], node.result
    if want == have:
        return float_ops.Identity()
    if len(want) < 2 or want[0] != have[0]:
        raise node.unsupported(
            f"a shape {want} of {have} changes the batch axis, which must stay first", "Flatten from axis 1 on."
        )
    return float_ops.Flatten() if len(want) == 2 else float_ops.Reshape(want[1:])


def _transpose(node: FloatCall) -> Step:
    rank = len(node.result)
    axes = [int(axis) % rank for axis in node.call.get("perm", tuple(reversed(range(rank))))]
    if axes[0] != 0:
        raise node.unsupported(
            f"the order {tuple(axes)} moves the batch axis, which must stay first", "Permute the others only."
        )
    rest = tuple(axis - 1 for axis in axes[1:])
    return float_ops.Identity() if list(rest) == sorted(rest) else float_ops.Transpose(rest)


def _concat(node: FloatCall) -> Step:
    rank = len(node.result)
    if rank not in (3, 4) or int(node.call.get("axis", 0)) not in (1, 1 - rank) or len(node.real) < len(node.inputs):
        raise node.unsupported(
            f"along axis {node.call.get('axis')} of {rank} axes",
            "Only images joined along the channel axis (1) are supported.",
        )
    return float_ops.Concat()


def _pad(node: FloatCall) -> Step:
    rank, pads = len(node.result), node.constants.get(1)
    value = node.optional(2, "value")
    if pads is None or str(node.call.get("mode", "constant")) != "constant" or (value is not None and np.any(value)):
        raise node.unsupported("padding with something else than zeros", "Only zeros around images are supported.")
    named = axes_of(node.call, node.constants.get(3), rank) if 3 in node.constants else tuple(range(rank))
    ends = [(0, 0)] * rank
    for i, axis in enumerate(named or ()):
        ends[axis] = int(pads[i]), int(pads[i + len(named or ())])
    if rank not in (3, 4) or np.any(ends[:2]) or min(min(pair) for pair in ends) < 0:
        raise node.unsupported(
            f"padding {ends}", "Only rows and columns of images (or the length of sequences) can be padded."
        )
    edges: Padding = (ends[2], ends[3]) if rank == 4 else ((0, 0), ends[2])
    return float_ops.Pad(edges) if np.any(edges) else float_ops.Identity()


def _inner_axis(node: FloatCall, default: int) -> int:
    rank = len(node.shapes[0])
    axis = int(node.call.get("axis", default)) % rank
    if axis == 0:
        raise node.unsupported("the batch axis (0)", "Take it along another axis.")
    return axis - 1


def _softmax(node: FloatCall) -> Step:
    return float_ops.Softmax(_inner_axis(node, -1))


def _arg_max(node: FloatCall) -> Step:
    if node.call.get("select_last_index", 0):
        raise node.unsupported("select_last_index", "The first of equal numbers is what is supported.")
    if not node.is_output_only:
        raise node.unsupported("its result is taken by another node", "An index can only be an output.")
    return float_ops.ArgMax(_inner_axis(node, 0), bool(node.call.get("keepdims", 1)))


def _nothing(node: FloatCall) -> Step:
    if node.call.outputs > 1:
        raise node.unsupported("a second result", "Export the network for inference.")
    return float_ops.Identity()


def _cast(node: FloatCall) -> Step:
    if int(node.call.get("to", 0)) != 1:
        raise node.unsupported("a conversion to another type than float32", "Export the network in float32.")
    return float_ops.Identity()


def _resize(node: FloatCall) -> Step:
    """Tried on an image of pixels that all differ: which pixels are repeated is all that counts."""
    have, want = node.shapes[0], node.result
    factors = [w // h for h, w in zip(have, want, strict=True)]
    if len(have) in (3, 4) and factors[:2] == [1, 1] and have[:2] == want[:2] and min(factors) >= 1:
        x = np.arange(math.prod(have), dtype=np.float64).reshape(have)
        expected = x
        for axis, factor in enumerate(factors):
            expected = np.repeat(expected, factor, axis)
        given = [node.constants.get(i) for i in range(1, len(node.inputs))]
        if np.array_equal(LAYOUT["Resize"](node.call, x, *given), expected):
            down, across = _two(tuple(factors[2:]), 1)
            return float_ops.Identity() if down == across == 1 else float_ops.UpsampleNearest2d((down, across))
    raise node.unsupported(
        f"from {have} to {want}", "Only mode nearest by whole factors, which repeats each pixel, is supported."
    )


FLOAT_OPERATORS: Mapping[str, Callable[[FloatCall], Step]] = {
    "Add": _add,
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _divide,
    "Dropout": _nothing,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Identity": _nothing,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _multiply,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Sub": _subtract,
    "Sum": _add,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
