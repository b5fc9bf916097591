"""Calls of PyTorch that join tensors, multiply them, move their elements or end a network, as operations of a `FloatGraph`.

Each function takes the call ``node`` and its ``name`` in the graph. The batch axis is not part of a graph: it must stay
first and as long as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_nodes import argument, exchanged_axes, flat, permuted_axes, shape_of, source_of
from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp

__all__ = [
    "add",
    "argmax",
    "concat",
    "multiply",
    "pad",
    "pad_layer",
    "permute",
    "reshape",
    "softmax",
    "softmax_layer",
    "squeeze",
    "transpose",
    "upsample",
    "upsample_layer",
]


def add(node: fx.Node, name: str) -> FloatOp:
    """The sum ``node``, called ``name``, of two tensors.

    Raises
    ------
    UnsupportedOperation
        They are not two tensors of one shape.
    """
    shapes = _operands(node)
    if node.kwargs.get("alpha", 1) != 1:
        raise UnsupportedOperation(
            f"{name}: a sum with alpha is not supported. Multiply before you add, or fold it away."
        )
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        raise UnsupportedOperation(f"{name}: only the sum of two tensors of one shape is supported, got {shapes}.")
    return float_ops.Add()


def multiply(node: fx.Node, name: str) -> FloatOp:
    """The product ``node``, called ``name``, of two tensors.

    Raises
    ------
    UnsupportedOperation
        They are neither of one shape nor an image and one number for each of its channels.
    """
    shapes = _operands(node)
    a, b = (*shapes, None, None)[:2]
    if len(shapes) == 2 and a is not None and b is not None:
        image, gate = (a, b) if math.prod(a) >= math.prod(b) else (b, a)
        if a == b or (len(image) in (3, 4) and gate == (*image[:2], *(1 for _ in image[2:]))):
            return float_ops.Multiply()
    raise UnsupportedOperation(
        f"{name}: only the product of two tensors of one shape, or of images (N, C, H, W) and gates (N, C, 1, 1), is "
        f"supported, got {shapes}."
    )


def concat(node: fx.Node, name: str) -> FloatOp:
    """The concatenation ``node``, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It is not one of images or sequences along the channel axis.
    """
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = [n for n in flat(node.args[0] if node.args else node.kwargs["tensors"]) if isinstance(n, fx.Node)]
    ranks = {len(shape_of(n)) for n in parts}
    if ranks not in ({3}, {4}) or axis not in (1, 1 - max(ranks)):
        raise UnsupportedOperation(
            f"{name}: only concatenation of images along the channel axis (1) is supported, got {axis}."
        )
    return float_ops.Concat()


def pad(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of F.pad, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It does not put zeros around images.
    """
    edges, mode, value = (
        argument(node, 1, "pad", ()),
        argument(node, 2, "mode", "constant"),
        argument(node, 3, "value", None),
    )
    if mode != "constant":
        raise UnsupportedOperation(f"{name}: padding of mode {mode!r} is not supported, only 'constant' with 0.")
    return _zeros(node, name, tuple(edges), value)


def pad_layer(layer: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``layer`` (ConstantPad1d, ConstantPad2d; ZeroPad1d and ZeroPad2d are such) called as ``node``, ``name``.

    Raises
    ------
    UnsupportedOperation
        It does not put zeros around images.
    """
    assert isinstance(layer, nn.ConstantPad1d | nn.ConstantPad2d)
    return _zeros(node, name, tuple(layer.padding), layer.value)


def reshape(node: fx.Node, name: str) -> FloatOp:
    """The call ``node``, called ``name``, that gives the same elements another shape: flatten, view, unsqueeze, ...

    Raises
    ------
    UnsupportedOperation
        The batch axis does not stay as it is.
    """
    have, want = shape_of(source_of(node)), shape_of(node)
    if want == have:
        return float_ops.Identity()
    if len(want) < 2 or want[0] != have[0]:
        raise UnsupportedOperation(
            f"{name}: a reshape from {have} to {want} is not supported: it changes the batch axis, which must stay first. "
            f"Write x.reshape(x.size(0), ...)."
        )
    return float_ops.Flatten() if len(want) == 2 else float_ops.Reshape(want[1:])


def squeeze(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of squeeze, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis: for a single image it would be dropped.
    """
    axes = argument(node, 1, "dim", None)
    dims = {int(axis) % len(shape_of(source_of(node))) for axis in flat(axes)} if axes is not None else {0}
    if 0 in dims:
        raise UnsupportedOperation(f"{name}: squeeze needs an axis, and not the batch axis (0). Write x.squeeze(-1).")
    return reshape(node, name)


def permute(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of permute, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It moves the batch axis.
    """
    return _order(node, name, permuted_axes(node))


def transpose(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of transpose, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It moves the batch axis.
    """
    return _order(node, name, exchanged_axes(node))


def upsample(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of F.interpolate, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It does not repeat every pixel of images (or element of sequences) equally often.
    """
    labels = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    given = {label: argument(node, 1 + i, label, None) for i, label in enumerate(labels)}
    return _repeated(node, name, **{label: value for label, value in given.items() if value is not None})


def upsample_layer(layer: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``layer`` (Upsample; UpsamplingNearest2d is one) called as ``node``, ``name``.

    Raises
    ------
    UnsupportedOperation
        It does not repeat every pixel of images (or element of sequences) equally often.
    """
    assert isinstance(layer, nn.Upsample)
    labels = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return _repeated(node, name, **{label: getattr(layer, label) for label in labels})


def softmax(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of softmax, called ``name``.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis.
    """
    return _softmax_along(argument(node, 1, "dim", None), node, name)


def softmax_layer(layer: nn.Module, node: fx.Node, name: str) -> FloatOp:
    """The layer ``layer`` (Softmax or Softmax2d) called as ``node``, ``name``.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis.
    """
    return _softmax_along(1 if isinstance(layer, nn.Softmax2d) else layer.dim, node, name)


def argmax(node: fx.Node, name: str) -> FloatOp:
    """The call ``node`` of argmax, called ``name``, whose result must leave the network as it is.

    Raises
    ------
    UnsupportedOperation
        It names no axis, or the batch axis, or something takes its result.
    """
    axis = _inner_axis(argument(node, 1, "dim", None), node, name, "argmax")
    if any(user.op != "output" for user in node.users):
        raise UnsupportedOperation(f"{name}: the result of argmax is an index and can only be an output. Return it.")
    return float_ops.ArgMax(axis, bool(argument(node, 2, "keepdim", False)))


def _softmax_along(dim: Any, node: fx.Node, name: str) -> FloatOp:
    return float_ops.Softmax(_inner_axis(dim, node, name, "softmax"))


def _inner_axis(dim: Any, node: fx.Node, name: str, what: str) -> int:
    """``dim`` without the batch axis, which it must not be."""
    rank = len(shape_of(source_of(node)))
    if dim is None or int(dim) % rank == 0:
        raise UnsupportedOperation(f"{name}: {what} needs an axis, and not the batch axis (0), got {dim}. Write dim=1.")
    return int(dim) % rank - 1


def _operands(node: fx.Node) -> list[tuple[int, ...] | None]:
    given = [*node.args[:2], *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
    return [shape_of(n) if isinstance(n, fx.Node) and "shape" in n.meta else None for n in given]


def _zeros(node: fx.Node, name: str, edges: tuple[Any, ...], value: Any) -> FloatOp:
    """A pad by ``edges``, last axis first as PyTorch counts, if what it adds are zeros around images."""
    rank = len(shape_of(node))
    numbers = [int(edge) for edge in edges]
    images = (*numbers, 0, 0, 0, 0)[:4] if rank == 4 else (*numbers, 0, 0)[:2]
    if value not in (None, 0) or rank not in (3, 4) or any(numbers[len(images) :]) or min(images) < 0:
        raise UnsupportedOperation(
            f"{name}: only zeros around the rows and columns of images (or the length of sequences) can be padded, got "
            f"padding {tuple(numbers)} with {value} for {rank} axes."
        )
    left, right, top, bottom = (*images, 0, 0)[:4]
    return float_ops.Pad(((top, bottom), (left, right))) if any(images) else float_ops.Identity()


def _repeated(node: fx.Node, name: str, mode: str = "nearest", **options: Any) -> FloatOp:
    """The interpolation ``node`` with PyTorch's ``options``, tried on an image of pixels that all differ.

    A factor of 3.1 can give the sizes that 3 gives; only what is repeated tells them apart.
    """
    have, want = shape_of(source_of(node))[2:], shape_of(node)[2:]
    factors = [w // h for h, w in zip(have, want, strict=True)]
    if mode in ("nearest", "nearest-exact") and len(have) in (1, 2) and min(factors) >= 1:
        x = torch.arange(math.prod(have), dtype=torch.float64).reshape(1, 1, *have)
        expected = x
        for axis, factor in enumerate(factors):
            expected = expected.repeat_interleave(factor, 2 + axis)
        if torch.equal(F.interpolate(x, mode=mode, **options), expected):
            down, across = factors if len(factors) == 2 else (1, *factors)
            return float_ops.Identity() if down == across == 1 else float_ops.UpsampleNearest2d((down, across))
    raise UnsupportedOperation(
        f"{name}: up-sampling from {have} to {want} with mode {mode!r} is not supported, only mode 'nearest' by whole factors, "
        f"which repeats each pixel. Write nn.Upsample(scale_factor=2, mode='nearest')."
    )


def _order(node: fx.Node, name: str, axes: list[int]) -> FloatOp:
    if axes[0] != 0:
        raise UnsupportedOperation(
            f"{name}: the order {tuple(axes)} moves the batch axis, which must stay first. Permute the others only."
        )
    rest = tuple(axis - 1 for axis in axes[1:])
    return float_ops.Identity() if list(rest) == sorted(rest) else float_ops.Transpose(rest)
