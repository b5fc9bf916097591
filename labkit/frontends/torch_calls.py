"""The tables of the PyTorch front end: which module, function and method has which translator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.frontends import torch_layers as layers
from labkit.frontends import torch_layout as layout
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, FloatOp

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]

Call = Callable[[fx.Node, str], FloatOp]


def _relu(*_: Any) -> FloatOp:
    return float_ops.Relu(Activation.RELU)


def _relu6(*_: Any) -> FloatOp:
    return float_ops.Relu(Activation.RELU6)


def _nothing(*_: Any) -> FloatOp:
    return float_ops.Identity()


def _max_pool(axes: int) -> Callable[[Any, fx.Node, str], FloatOp]:
    return lambda m, node, name: layers.max_pool(
        node, name, axes, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode
    )


def _average_pool(axes: int) -> Callable[[Any, fx.Node, str], FloatOp]:
    return lambda m, node, name: layers.average_pool(
        *(node, name, axes, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad),
        getattr(m, "divisor_override", None),
    )


def _adaptive(axes: int, largest: bool) -> Callable[[Any, fx.Node, str], FloatOp]:
    return lambda m, node, name: layers.adaptive_pool(node, name, axes, largest)


MODULES: dict[type[nn.Module], Callable[[Any, fx.Node, str], FloatOp]] = {
    nn.Conv2d: layers.convolution,
    nn.Conv1d: layers.convolution,
    nn.Linear: layers.linear,
    nn.BatchNorm2d: layers.batch_norm,
    nn.BatchNorm1d: layers.batch_norm,
    nn.ReLU: _relu,
    nn.GELU: layers.gelu,
    nn.Hardtanh: lambda m, node, name: layers.hardtanh(m, name),
    nn.MaxPool2d: _max_pool(2),
    nn.MaxPool1d: _max_pool(1),
    nn.AvgPool2d: _average_pool(2),
    nn.AvgPool1d: _average_pool(1),
    nn.AdaptiveAvgPool2d: _adaptive(2, largest=False),
    nn.AdaptiveAvgPool1d: _adaptive(1, largest=False),
    nn.AdaptiveMaxPool2d: _adaptive(2, largest=True),
    nn.AdaptiveMaxPool1d: _adaptive(1, largest=True),
    nn.ZeroPad2d: layout.pad_layer,
    nn.ZeroPad1d: layout.pad_layer,
    nn.ConstantPad2d: layout.pad_layer,
    nn.ConstantPad1d: layout.pad_layer,
    nn.Upsample: layout.upsample_layer,
    nn.Flatten: lambda m, node, name: layout.reshape(node, name),
    nn.Unflatten: lambda m, node, name: layout.reshape(node, name),
    nn.Softmax: layout.softmax_layer,
    nn.Softmax2d: layout.softmax_layer,
    nn.Dropout: _nothing,
    nn.Dropout1d: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}

FUNCTIONS: dict[Any, Call] = {
    F.relu: _relu,
    torch.relu: _relu,
    F.relu6: _relu6,
    F.gelu: lambda node, name: layers.gelu(None, node, name),
    F.max_pool2d: partial(layers.call_max_pool, axes=2),
    torch.max_pool2d: partial(layers.call_max_pool, axes=2),
    F.max_pool1d: partial(layers.call_max_pool, axes=1),
    F.avg_pool2d: partial(layers.call_average_pool, axes=2),
    F.avg_pool1d: partial(layers.call_average_pool, axes=1),
    F.adaptive_avg_pool2d: partial(layers.adaptive_pool, axes=2, largest=False),
    F.adaptive_avg_pool1d: partial(layers.adaptive_pool, axes=1, largest=False),
    F.adaptive_max_pool2d: partial(layers.adaptive_pool, axes=2, largest=True),
    F.adaptive_max_pool1d: partial(layers.adaptive_pool, axes=1, largest=True),
    F.dropout: _nothing,
    F.pad: layout.pad,
    F.interpolate: layout.upsample,
    torch.flatten: layout.reshape,
    torch.reshape: layout.reshape,
    torch.squeeze: layout.squeeze,
    torch.unsqueeze: layout.reshape,
    torch.permute: layout.permute,
    torch.transpose: layout.transpose,
    torch.mean: layers.mean,
    torch.add: layout.add,
    operator.add: layout.add,
    operator.iadd: layout.add,
    torch.mul: layout.multiply,
    operator.mul: layout.multiply,
    operator.imul: layout.multiply,
    F.softmax: layout.softmax,
    torch.softmax: layout.softmax,
    torch.argmax: layout.argmax,
    torch.cat: layout.concat,
    torch.concat: layout.concat,
}

METHODS: dict[str, Call] = {
    "relu": _relu,
    "relu_": _relu,
    "flatten": layout.reshape,
    "view": layout.reshape,
    "reshape": layout.reshape,
    "squeeze": layout.squeeze,
    "unsqueeze": layout.reshape,
    "permute": layout.permute,
    "transpose": layout.transpose,
    "mean": layers.mean,
    "add": layout.add,
    "add_": layout.add,
    "mul": layout.multiply,
    "mul_": layout.multiply,
    "softmax": layout.softmax,
    "argmax": layout.argmax,
    "contiguous": _nothing,
}
