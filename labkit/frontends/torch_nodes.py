"""What a traced call of PyTorch says of itself: its arguments, the shapes that go in and out, and how it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from labkit.errors import UnsupportedOperation

__all__ = [
    "argument",
    "array_of",
    "exchanged_axes",
    "flat",
    "is_tensor",
    "optional_array",
    "permuted_axes",
    "shape_of",
    "source_of",
    "unsupported",
]


def argument(node: fx.Node, position: int, key: str, default: Any) -> Any:
    """An argument of the call ``node``, by ``position`` or by ``key``, else ``default``.

    What the call itself computes from sizes, such as ``x.size(2)``, is given as its value.
    """
    value = node.args[position] if len(node.args) > position else node.kwargs.get(key, default)
    return fx.map_arg(value, lambda n: n.meta.get("value", n))


def source_of(node: fx.Node) -> fx.Node:
    """The tensor that ``node`` takes first."""
    source = argument(node, 0, "input", None)
    assert isinstance(source, fx.Node)
    return source


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of the result of ``node``, for the two images of the trace."""
    return tuple(int(size) for size in node.meta["shape"])


def is_tensor(node: fx.Node) -> bool:
    """Whether the result of ``node`` is a tensor."""
    return "shape" in node.meta


def permuted_axes(node: fx.Node) -> list[int]:
    """The order of axes, the batch axis counted, that the call ``node`` of permute asks for."""
    rank = len(shape_of(node))
    axes = flat(argument(node, 1, "dims", ()))
    if len(axes) == 1 and rank > 1:  # a method takes them one by one
        axes = [argument(node, 1 + i, "dims", 0) for i in range(rank)]
    return [int(axis) % rank for axis in axes]


def exchanged_axes(node: fx.Node) -> list[int]:
    """The order of axes, the batch axis counted, that the call ``node`` of transpose asks for."""
    rank = len(shape_of(node))
    keys = (("dim0", "axis0"), ("dim1", "axis1"))
    a, b = (
        int(argument(node, 1 + i, first, argument(node, 1 + i, second, 0))) % rank
        for i, (first, second) in enumerate(keys)
    )
    axes = list(range(rank))
    axes[a], axes[b] = b, a
    return axes


def flat(value: Any) -> list[Any]:
    """The items of ``value``, nested lists and tuples of anything, in order."""
    return [item for part in value for item in flat(part)] if isinstance(value, list | tuple) else [value]


def array_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A float32 copy of ``tensor``, any shape."""
    return tensor.detach().cpu().to(torch.float32).numpy().copy()


def optional_array(tensor: torch.Tensor | None) -> NDArray[np.float32] | None:
    """A float32 copy of ``tensor``, any shape; None stays None."""
    return None if tensor is None else array_of(tensor)


def unsupported(name: str, what: str) -> UnsupportedOperation:
    """The error to raise where ``what`` at the node ``name`` has no integer form."""
    return UnsupportedOperation(
        f"{name}: {what} has no integer form in labkit. Supported are convolutions and pooling in one and two dimensions, "
        f"Linear, Embedding, batch norm, LayerNorm, ReLU, ReLU6, GELU, add, mul, matmul, cat, pad, nearest up-sampling, "
        f"flatten, reshape, permute, softmax, argmax and dropout: rewrite this part of the network with them, or leave it "
        f"outside of the network that you quantize."
    )
