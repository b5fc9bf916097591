"""The shape that each operation of an `IntGraph` puts out, from the shapes that go in.

A sequence (channels, length) is an image of height 1 to every operation with a window.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from labkit.errors import ModelError
from labkit.graph import int_ops
from labkit.graph.shapes import window_output

if TYPE_CHECKING:
    from labkit.graph.ir import IntNode, Tensor

__all__ = ["output_shape"]

Shape = tuple[int, ...]
Windowed = (
    int_ops.Conv2d | int_ops.MaxPool2d | int_ops.AveragePool2d | int_ops.AveragePoolOfValid | int_ops.AveragePoolFloat32
)


_Shares = int_ops.Softmax | int_ops.SoftmaxFixedPoint | int_ops.SoftmaxFloat32 | int_ops.SoftmaxByReciprocal


def output_shape(node: IntNode, inputs: tuple[Tensor, ...]) -> Shape:
    """The shape of the result of ``node`` without the batch axis, for ``inputs`` of the right number.

    Raises
    ------
    ModelError
        The shapes of the inputs do not fit the operation.
    """
    op = node.op
    if isinstance(op, int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero | int_ops.Input):
        return tuple(op.shape)
    if isinstance(op, int_ops.Constant):
        return tuple(op.values.shape)
    first = inputs[0].shape
    if isinstance(op, int_ops.Embedding):
        if len(first) != 1:
            raise ModelError(f"{node.name}: an Embedding takes one row of indices, got {first}.")
        return (op.weight.values.shape[-1], first[0])
    if isinstance(op, int_ops.MatMul):
        return _product_of_matrices(node, op, first, inputs[1].shape)
    if isinstance(op, int_ops.Flatten):
        return (math.prod(first),)
    if isinstance(op, int_ops.Linear):
        if len(first) != 1:
            raise ModelError(f"{node.name}: Linear takes a flat input, got {first}. Put a Flatten node before it.")
        return (op.weight.values.shape[0],)
    if isinstance(op, int_ops.Concat):
        _need_image(node, first)
        return (sum(t.shape[0] for t in inputs), *first[1:])
    if isinstance(op, Windowed):
        return _windowed(node, op, first)
    if isinstance(op, int_ops.AdaptiveAveragePool2d):
        _need_image(node, first)
        image = first if len(first) == 3 else (first[0], 1, first[1])
        if len(op.output_size) != 2:
            raise ModelError(f"{node.name}: a size has two axes, height and width, got {op.output_size}.")
        if not all(1 <= want <= have for want, have in zip(op.output_size, image[1:], strict=True)):
            raise ModelError(
                f"{node.name}: an image {first} cannot be averaged to {op.output_size}: make it smaller only."
            )
        return (first[0], *op.output_size[-len(first) + 1 :])
    if isinstance(op, int_ops.Multiply):
        return _product(node, first, inputs[1].shape)
    if isinstance(op, int_ops.Pad):
        _need_image(node, first)
        (top, bottom), (left, right) = op.padding
        if len(first) == 2 and (top or bottom):
            raise ModelError(f"{node.name}: a sequence {first} has no rows to pad, got {op.padding}.")
        return (*(first[:1] if len(first) == 2 else (first[0], first[1] + top + bottom)), first[-1] + left + right)
    if isinstance(op, int_ops.UpsampleNearest2d):
        _need_image(node, first)
        if len(first) == 2 and op.factor[0] != 1:
            raise ModelError(f"{node.name}: a sequence {first} has no rows to repeat, got the factor {op.factor}.")
        if len(op.factor) != 2:
            raise ModelError(f"{node.name}: rows and columns are repeated, two factors, got {op.factor}.")
        factors = op.factor[-len(first) + 1 :]
        return (first[0], *(size * factor for size, factor in zip(first[1:], factors, strict=True)))
    if isinstance(op, int_ops.Reshape):
        if math.prod(op.shape) != math.prod(first) or min(op.shape, default=0) < 1:
            raise ModelError(f"{node.name}: {first} cannot become {op.shape}; both need the same number of elements.")
        return tuple(op.shape)
    if isinstance(op, int_ops.Transpose):
        if sorted(op.axes) != list(range(len(first))):
            raise ModelError(
                f"{node.name}: {op.axes} is no order of the {len(first)} axes of {first}. Name each of 0..{len(first) - 1} once."
            )
        return tuple(first[axis] for axis in op.axes)
    if isinstance(op, int_ops.MeanFloat32):
        if not op.axes or sorted(set(op.axes)) != list(op.axes) or not 0 <= op.axes[0] <= op.axes[-1] < len(first):
            raise ModelError(f"{node.name}: a mean runs along some axes of {first} in rising order, got {op.axes}.")
        return tuple(1 if axis in op.axes else size for axis, size in enumerate(first))
    if isinstance(op, _Shares | int_ops.ArgMax):
        if not 0 <= op.axis < len(first):
            raise ModelError(f"{node.name}: there is no axis {op.axis} in {first}; name one of 0..{len(first) - 1}.")
        if isinstance(op, int_ops.ArgMax):
            return (*first[: op.axis], *((1,) if op.keepdims else ()), *first[op.axis + 1 :])
    return first


def _windowed(node: IntNode, op: Windowed, shape: Shape) -> Shape:
    _need_image(node, shape)
    kernel: Shape = op.weight.values.shape[2:] if isinstance(op, int_ops.Conv2d) else op.kernel
    dilation = op.dilation if isinstance(op, int_ops.Conv2d | int_ops.MaxPool2d) else (1, 1)
    ceil_mode = op.ceil_mode if isinstance(op, int_ops.MaxPool2d) else False
    settings = {"kernel": kernel, "stride": op.stride, "padding": op.padding, "dilation": dilation}
    if wrong := [f"{what} {value}" for what, value in settings.items() if len(value) != 2]:
        raise ModelError(f"{node.name}: a window has two axes, height and width, got {', '.join(wrong)}.")
    channels = op.weight.values.shape[0] if isinstance(op, int_ops.Conv2d) else shape[0]
    image = shape if len(shape) == 3 else (shape[0], 1, shape[1])
    height, width = (
        window_output(image[1 + i], kernel[i], op.stride[i], op.padding[i], dilation[i], ceil_mode) for i in range(2)
    )
    if len(shape) == 3:
        return channels, height, width
    if height != 1:
        raise ModelError(
            f"{node.name}: on a sequence {shape} the window has height 1 and no rows of padding, got height {kernel[0]} "
            f"and padding {op.padding}."
        )
    return channels, width


def _product(node: IntNode, a: Shape, b: Shape) -> Shape:
    if a == b or _is_gate(b, a):
        return a
    if _is_gate(a, b):
        return b
    raise ModelError(
        f"{node.name}: Multiply takes two tensors of one shape, or (C, H, W) and (C, 1, 1), got {a} and {b}."
    )


def _product_of_matrices(node: IntNode, op: int_ops.MatMul, a: Shape, b: Shape) -> Shape:
    if len(a) != 3 or len(b) != 3:
        raise ModelError(f"{node.name}: MatMul takes two tensors (B, m, k) and (B, k, n), got {a} and {b}.")
    rows, inner = (a[2], a[1]) if op.transpose_a else a[1:]
    inner_b, columns = (b[2], b[1]) if op.transpose_b else b[1:]
    if a[0] != b[0] or inner != inner_b:
        raise ModelError(
            f"{node.name}: {a}{' transposed' if op.transpose_a else ''} cannot be multiplied by "
            f"{b}{' transposed' if op.transpose_b else ''}: the first axes and the inner ones must be alike."
        )
    return a[0], rows, columns


def _is_gate(gate: Shape, image: Shape) -> bool:
    return len(gate) == len(image) in (2, 3) and gate == (image[0], *(1 for _ in image[1:]))


def _need_image(node: IntNode, shape: Shape) -> None:
    if len(shape) not in (2, 3):
        raise ModelError(
            f"{node.name}: {type(node.op).__name__} takes (channels, height, width) or (channels, length), got {shape}."
        )
