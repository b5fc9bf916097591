"""What each traced operation of PyTorch is to the emulation: a convolution, a sum, a clamp, something that only moves numbers."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["kind_of"]

_SILENT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
_SILENT_CALLS = (F.dropout, "contiguous")
_SHAPERS = (nn.Flatten, nn.Unflatten)
_STRETCHES = (nn.Upsample,)  # by a factor of 1 they change nothing
_PADS = (nn.ConstantPad2d, nn.ConstantPad1d)
_RESHAPES: tuple[Any, ...] = (
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze"),
)
_ORDERS: tuple[Any, ...] = (torch.permute, torch.transpose, "permute", "transpose")
_MODULE_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv2d, "conv"),
    (nn.Conv1d, "conv"),
    (nn.Linear, "linear"),
    (nn.BatchNorm2d, "norm"),
    (nn.BatchNorm1d, "norm"),
    (nn.ReLU, "relu"),
    (nn.Hardtanh, "relu6"),
    *((layer, "same") for layer in (nn.MaxPool2d, nn.MaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d)),
    (nn.Upsample, "same"),
    *((layer, "shape") for layer in _SHAPERS),
    *((layer, "pad") for layer in _PADS),
    *((layer, "softmax") for layer in (nn.Softmax, nn.Softmax2d)),
    *((layer, "mean") for layer in (nn.AvgPool2d, nn.AvgPool1d)),
    *((layer, "adaptive") for layer in (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d)),
)
_CALL_KINDS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), "relu"),
    F.relu6: "relu6",
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool2d), "same"),
    **dict.fromkeys((F.max_pool1d, F.adaptive_max_pool1d, F.interpolate, *_ORDERS), "same"),
    **dict.fromkeys(_RESHAPES, "shape"),
    F.pad: "pad",
    **dict.fromkeys((F.avg_pool2d, F.avg_pool1d), "mean"),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_avg_pool1d), "adaptive"),
    **dict.fromkeys((torch.mean, "mean"), "mean"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), "mul"),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), "softmax"),
    **dict.fromkeys((torch.argmax, "argmax"), "argmax"),
    **dict.fromkeys((torch.cat, torch.concat), "cat"),
}


def kind_of(node: fx.Node, part: nn.Module | None) -> str | None:
    """The kind of the traced ``node``, which calls the module ``part`` if that is not None; None where there is none.

    ``silent`` is what changes nothing.
    """
    if node.op == "placeholder":
        return "input"
    if part is not None:
        if isinstance(part, _SILENT) or (isinstance(part, _SHAPERS + _PADS + _STRETCHES) and _keeps_shape(node)):
            return "silent"
        return next((label for kind, label in _MODULE_KINDS if isinstance(part, kind)), None)
    if node.target in _SILENT_CALLS or (node.target in (*_RESHAPES, F.pad, F.interpolate) and _keeps_shape(node)):
        return "silent"
    if node.target in _ORDERS and _keeps_order(node):
        return "silent"
    return _CALL_KINDS.get(node.target)


def _keeps_shape(node: fx.Node) -> bool:
    return bool(node.meta["shape"] == node.all_input_nodes[0].meta["shape"])


def _keeps_order(node: fx.Node) -> bool:
    """Whether every element stays where it is, tried on numbers that all differ."""
    shape = tuple(node.all_input_nodes[0].meta["shape"])
    x = torch.arange(math.prod(shape)).reshape(shape)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: x if "shape" in n.meta else n.meta["value"])
    target: Any = node.target
    y = getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
    return y.shape == x.shape and torch.equal(y, x)
