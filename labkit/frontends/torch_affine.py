"""The one use of slices that has an integer form: every channel of the input times a number, plus a number.

torchvision's Inception and GoogLeNet begin with it where ``transform_input`` is set, which it is with their own weights::

    red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
    x = torch.cat((red, green, blue), 1)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from labkit.frontends.torch_nodes import argument, flat, is_tensor, shape_of, source_of
from labkit.graph import float_ops

__all__ = ["ChannelAffine", "channel_affine"]

_TIMES = (operator.mul, torch.mul, "mul")
_PLUS = (operator.add, torch.add, "add")
_ALL = slice(None)


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """``gains[c] * x[:, c] + shifts[c]`` for every channel c of ``source``, joined again.

    source : the traced input
    parts : the traced nodes between it and the concatenation
    """

    source: fx.Node
    gains: tuple[float, ...]
    shifts: tuple[float, ...]
    parts: frozenset[fx.Node]

    @property
    def op(self) -> float_ops.BatchNorm2d:
        """The same as a frozen batch norm of mean 0 and variance 1, which passes make a depthwise convolution of."""
        zeros, ones = np.zeros(len(self.gains), np.float32), np.ones(len(self.gains), np.float32)
        return float_ops.BatchNorm2d(
            np.array(self.gains, np.float32), np.array(self.shifts, np.float32), zeros, ones, epsilon=0.0
        )


def channel_affine(node: fx.Node) -> ChannelAffine | None:
    """What the traced ``node`` is, if it is the concatenation that ends such a map of the network's input, else None."""
    if node.target not in (torch.cat, torch.concat) or not is_tensor(node):
        return None
    if node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) not in (1, -3) or len(shape_of(node)) != 4:
        return None
    found = [_channel(part) for part in flat(node.args[0] if node.args else node.kwargs["tensors"])]
    channels = [channel for channel in found if channel is not None]
    if len(channels) < len(found) or len({channel.source for channel in channels}) != 1:
        return None
    parts = frozenset(part for channel in channels for part in channel.parts)
    in_order = [channel.index for channel in channels] == list(range(shape_of(channels[0].source)[1]))
    if not in_order or any(user is not node and user not in parts for part in parts for user in part.users):
        return None
    gains, shifts = tuple(channel.gain for channel in channels), tuple(channel.shift for channel in channels)
    return ChannelAffine(channels[0].source, gains, shifts, parts)


@dataclass(frozen=True, eq=False)
class _Channel:
    source: fx.Node
    index: int
    gain: float
    shift: float
    parts: tuple[fx.Node, ...]


def _channel(end: Any) -> _Channel | None:
    """One channel of the input, perhaps times a number, perhaps plus a number after that."""
    if not isinstance(end, fx.Node):
        return None
    shift, scaled = _peeled(end, _PLUS)
    gain, taken = _peeled(scaled, _TIMES)
    sliced = taken
    if taken.target in (torch.unsqueeze, "unsqueeze") and argument(taken, 1, "dim", None) in (1, -3):
        sliced = source_of(taken)
    index = _index(sliced, keeps_axis=sliced is taken)
    if index is None or source_of(sliced).op != "placeholder":
        return None
    parts = tuple(dict.fromkeys((end, scaled, taken, sliced)))
    return _Channel(source_of(sliced), index, 1.0 if gain is None else gain, 0.0 if shift is None else shift, parts)


def _peeled(node: fx.Node, targets: tuple[Any, ...]) -> tuple[float | None, fx.Node]:
    """The number that ``node``, a call of one of ``targets``, takes, and the tensor; None and itself where it is no such call."""
    tensors = [given for given in node.args if isinstance(given, fx.Node) and is_tensor(given)]
    numbers = [given for given in node.args if isinstance(given, int | float)]
    if node.target not in targets or node.kwargs or (len(node.args), len(tensors), len(numbers)) != (2, 1, 1):
        return None, node
    return float(numbers[0]), tensors[0]


def _index(node: fx.Node, keeps_axis: bool) -> int | None:
    """The c of ``x[:, c : c + 1]``, or of ``x[:, c]`` where the axis is not kept; None where ``node`` is something else."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple) or len(node.args[1]) < 2:
        return None
    batch, channel, *rest = node.args[1]
    if batch != _ALL or any(part != _ALL for part in rest):
        return None
    if isinstance(channel, int):
        return None if keeps_axis else channel
    if not keeps_axis or not isinstance(channel, slice) or not isinstance(channel.start, int):
        return None
    return channel.start if channel == slice(channel.start, channel.start + 1) else None
