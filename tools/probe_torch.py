"""Examples for every layer that the PyTorch front end takes, and for what it refuses (for tools/make_support.py)."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from probe_operations import qparams
from torch import nn

import labkit
from labkit.arithmetic.affine import QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.kernel_set import REFERENCE

__all__ = ["CALLS", "FORMS", "MODULES", "TRACED_AS", "images", "mistakes", "named", "with_call"]

SIDE = 8


def images() -> NDArray[np.float32]:
    """Four random images, float32 [4, 3, 8, 8]."""
    return np.random.default_rng(1).uniform(-1, 1, (4, 3, SIDE, SIDE)).astype(np.float32)


def named(*layers: nn.Module) -> nn.Module:
    """The layers one after the other, each under the name of its kind, so that an error can be read."""
    torch.manual_seed(0)
    names: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        name = type(layer).__name__.lower()
        names[name if name not in names else f"{name}_{len(names)}"] = layer
    return nn.Sequential(names).eval()


class Network(nn.Module):
    """A convolution, and what ``function`` does with its result."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        """The result, for float32 [N, 3, H, W]."""
        return self.function(self.conv(x))


def with_call(function: Callable[[Any], Any]) -> nn.Module:
    """A network that calls ``function`` on the result of a convolution, float32 [N, 4, 8, 8]."""
    torch.manual_seed(0)
    return Network(function).eval()


class _Channels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.unsqueeze(x[:, i], 1) * (0.45 + i / 100) + (i / 20 - 0.1) for i in range(3)], 1)


def _conv(**options: Any) -> nn.Module:
    return nn.Conv2d(3, 4, 3, **options)


def _sequences() -> tuple[nn.Module, nn.Module]:
    return nn.Flatten(2), nn.Conv1d(3, 4, 3)


def _flat() -> tuple[nn.Module, nn.Module]:
    return nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 6)


MODULES: dict[Any, Callable[[], tuple[nn.Module, ...]]] = {
    nn.Conv2d: lambda: (_conv(),),
    nn.Conv1d: _sequences,
    nn.Linear: _flat,
    nn.BatchNorm2d: lambda: (_conv(), nn.BatchNorm2d(4)),
    nn.BatchNorm1d: lambda: (*_flat(), nn.BatchNorm1d(6)),
    nn.ReLU: lambda: (_conv(), nn.ReLU()),
    nn.GELU: lambda: (_conv(), nn.GELU()),
    nn.Hardtanh: lambda: (_conv(), nn.ReLU6()),
    nn.MaxPool2d: lambda: (nn.MaxPool2d(2),),
    nn.AvgPool2d: lambda: (nn.AvgPool2d(2),),
    nn.AdaptiveAvgPool2d: lambda: (nn.AdaptiveAvgPool2d(1),),
    nn.AdaptiveMaxPool2d: lambda: (nn.AdaptiveMaxPool2d(2),),
    nn.MaxPool1d: lambda: (*_sequences(), nn.MaxPool1d(2)),
    nn.AvgPool1d: lambda: (*_sequences(), nn.AvgPool1d(2)),
    nn.AdaptiveAvgPool1d: lambda: (*_sequences(), nn.AdaptiveAvgPool1d(1)),
    nn.AdaptiveMaxPool1d: lambda: (*_sequences(), nn.AdaptiveMaxPool1d(1)),
    nn.ZeroPad2d: lambda: (nn.ZeroPad2d((1, 0, 2, 1)),),
    nn.ZeroPad1d: lambda: (*_sequences(), nn.ZeroPad1d(1)),
    nn.ConstantPad2d: lambda: (nn.ConstantPad2d(1, 0.0),),
    nn.ConstantPad1d: lambda: (*_sequences(), nn.ConstantPad1d((0, 2), 0.0)),
    nn.Upsample: lambda: (_conv(), nn.Upsample(scale_factor=2)),
    nn.Unflatten: lambda: (_conv(), nn.Unflatten(1, (2, 2))),
    nn.Softmax: lambda: (_conv(), nn.Softmax(1)),
    nn.Softmax2d: lambda: (_conv(), nn.Softmax2d()),
    nn.Dropout1d: lambda: (*_sequences(), nn.Dropout1d()),
    nn.Flatten: lambda: (nn.Flatten(),),
    nn.Dropout: lambda: (_conv(), nn.Dropout()),
    nn.Dropout2d: lambda: (_conv(), nn.Dropout2d()),
    nn.Identity: lambda: (_conv(), nn.Identity()),
}
CALLS: dict[Any, Callable[[Any], Any]] = {
    F.relu: lambda x: F.relu(x),
    torch.relu: lambda x: torch.relu(x),
    F.relu6: lambda x: F.relu6(x),
    F.gelu: lambda x: F.gelu(x),
    F.max_pool2d: lambda x: F.max_pool2d(x, 2),
    torch.max_pool2d: lambda x: torch.max_pool2d(x, 2),
    F.avg_pool2d: lambda x: F.avg_pool2d(x, 2),
    F.adaptive_avg_pool2d: lambda x: F.adaptive_avg_pool2d(x, 1),
    F.adaptive_max_pool2d: lambda x: F.adaptive_max_pool2d(x, 2),
    F.max_pool1d: lambda x: F.max_pool1d(x.flatten(2), 2),
    F.avg_pool1d: lambda x: F.avg_pool1d(x.flatten(2), 2),
    F.adaptive_avg_pool1d: lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    F.adaptive_max_pool1d: lambda x: F.adaptive_max_pool1d(x.flatten(2), 4),
    F.pad: lambda x: F.pad(x, (1, 0, 0, 2)),
    F.interpolate: lambda x: F.interpolate(x, scale_factor=(1, 2)),
    torch.squeeze: lambda x: torch.squeeze(F.max_pool2d(x, (1, SIDE)), 3),
    torch.unsqueeze: lambda x: torch.unsqueeze(x, 2),
    torch.permute: lambda x: torch.permute(x, (0, 2, 3, 1)),
    torch.transpose: lambda x: torch.transpose(x, 1, 2),
    torch.mul: lambda x: torch.mul(x, F.relu(x)),
    operator.mul: lambda x: x * F.relu(x),
    operator.imul: lambda x: _multiplied_in_place(F.relu(x), x),
    F.softmax: lambda x: F.softmax(x, dim=1),
    torch.softmax: lambda x: torch.softmax(x, -1),
    torch.argmax: lambda x: torch.argmax(x, 1),
    F.dropout: lambda x: F.dropout(x, training=False),
    torch.flatten: lambda x: torch.flatten(x, 1),
    torch.reshape: lambda x: torch.reshape(x, (x.size(0), -1)),
    torch.mean: lambda x: torch.mean(x, (2, 3), keepdim=True),
    torch.add: lambda x: torch.add(x, F.relu(x)),
    operator.add: lambda x: x + F.relu(x),
    operator.iadd: lambda x: _added_in_place(F.relu(x), x),
    torch.cat: lambda x: torch.cat([x, F.relu(x)], 1),
    torch.concat: lambda x: torch.concat([x, F.relu(x)], 1),
    "relu": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.size(0), -1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "add": lambda x: x.add(F.relu(x)),
    "add_": lambda x: F.relu(x).add_(x),
    "squeeze": lambda x: F.max_pool2d(x, (SIDE, 1)).squeeze(2),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(2, 3),
    "mul": lambda x: x.mul(F.relu(x)),
    "mul_": lambda x: F.relu(x).mul_(x),
    "softmax": lambda x: x.softmax(1),
    "argmax": lambda x: x.argmax(dim=1, keepdim=True),
    "contiguous": lambda x: x.contiguous(),
}
TRACED_AS = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
}  # torch.fx itself may record the one as the other

FORMS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "convolution with a stride of 2": lambda: (_conv(stride=2),),
    "convolution with a dilation of 2": lambda: (_conv(dilation=2),),
    "convolution with `padding='same'`": lambda: (_conv(padding="same"),),
    "convolution with a kernel of 3x1": lambda: (nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),),
    "grouped convolution": lambda: (_conv(), nn.Conv2d(4, 6, 3, groups=2)),
    "depthwise convolution": lambda: (nn.Conv2d(3, 3, 3, groups=3),),
    "depthwise convolution with two filters a channel": lambda: (nn.Conv2d(3, 6, 3, groups=3),),
    "batch norm that follows no layer": lambda: (nn.MaxPool2d(2), nn.BatchNorm2d(3)),
    "every channel of the input times a number, plus a number (`transform_input`)": lambda: (_Channels(),),
    "ReLU of the input": lambda: (nn.ReLU(),),
    "max-pool with padding": lambda: (nn.MaxPool2d(3, 2, padding=1),),
    "max-pool with a dilation of 2": lambda: (nn.MaxPool2d(2, dilation=2),),
    "max-pool with `ceil_mode`": lambda: (nn.MaxPool2d(3, 2, ceil_mode=True),),
    "average pool with padding that counts": lambda: (nn.AvgPool2d(3, 2, padding=1),),
    "adaptive average pool to a size that does not divide": lambda: (nn.AdaptiveAvgPool2d((3, 5)),),
    "up-sampling of sequences": lambda: (*_sequences(), nn.Upsample(scale_factor=3)),
    "zeros on one side, then a convolution": lambda: (nn.ZeroPad2d((1, 0, 1, 0)), _conv(stride=2)),
    "convolution of sequences with a stride of 2": lambda: (nn.Flatten(2), nn.Conv1d(3, 4, 5, stride=2, padding=2)),
    "depthwise convolution of sequences": lambda: (nn.Flatten(2), nn.Conv1d(3, 3, 3, groups=3)),
    "batch norm of sequences": lambda: (*_sequences(), nn.BatchNorm1d(4)),
    "layer norm over the features of sequences": lambda: (nn.Flatten(2), nn.LayerNorm(SIDE * SIDE)),
    "GELU between linear layers": lambda: (*_flat(), nn.GELU(), nn.Linear(6, 3)),
    "linear layer after linear layer": lambda: (*_flat(), nn.ReLU(), nn.Linear(6, 3)),
}


def mistakes() -> dict[str, Callable[[], Any]]:
    """By a few words on what is tried: something that must end in an error of labkit."""

    def quantized(*layers: nn.Module, **options: Any) -> Callable[[], Any]:
        return lambda: labkit.quantize(named(*layers), images(), **options)

    def called(function: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: labkit.quantize(with_call(function), images())

    return {
        "9 weight bits": quantized(_conv(), weights=9),
        "1 activation bit": quantized(_conv(), activations=1),
        "unknown ranges": quantized(_conv(), ranges="max"),
        "unknown rounding": quantized(_conv(), rounding="up"),
        "no calibration images": lambda: labkit.quantize(_conv(), []),
        "an operation without integer form": quantized(_conv(), nn.SiLU()),
        "a GELU by its tanh": quantized(_conv(), nn.GELU(approximate="tanh")),
        "padding with the image's own edge": quantized(_conv(padding=1, padding_mode="reflect")),
        "average pooling over a partial window": quantized(nn.AvgPool2d(3, ceil_mode=True)),
        "average pooling that leaves its padding out": quantized(nn.AvgPool2d(2, padding=1, count_include_pad=False)),
        "adaptive max-pooling to a size that does not divide": quantized(nn.AdaptiveMaxPool2d(3)),
        "adaptive pooling to a larger size": quantized(nn.AdaptiveAvgPool2d(9)),
        "a linear layer over images": quantized(nn.Linear(SIDE, 4)),
        "flat batch norm that follows no linear layer": quantized(nn.Flatten(), nn.BatchNorm1d(3 * SIDE * SIDE)),
        "a reshape that changes the batch axis": called(lambda x: x.view(-1, 2, SIDE, SIDE)),
        "a mean over other axes": called(lambda x: x.mean(1, keepdim=True)),
        "a permutation of the batch axis": called(lambda x: x.permute(1, 0, 2, 3)),
        "multiplying by a constant": called(lambda x: x * 2),
        "padding with something else than 0": called(lambda x: F.pad(x, (1, 1), value=1.0)),
        "up-sampling that mixes neighbours": quantized(_conv(), nn.Upsample(scale_factor=2, mode="bilinear")),
        "up-sampling by a factor that is not whole": called(lambda x: F.interpolate(x, scale_factor=1.5)),
        "a softmax over the images": called(lambda x: F.softmax(x, 0)),
        "computing with an index": called(lambda x: x + x.argmax(1, keepdim=True)),
        "adding a constant": called(lambda x: x + 1),
        "a sum that stretches one tensor": called(lambda x: x + F.adaptive_avg_pool2d(x, 1)),
        "joining along another axis": called(lambda x: torch.cat([x, x], 2)),
        "overwriting what is read again": called(lambda x: F.relu(x, inplace=True) + x),
        "branching on values": called(lambda x: x if x.sum() > 0 else F.relu(x)),
        "a NaN among the weights": quantized(_spoilt(float("nan"))),
        "a channel of zeros, one scale a channel": quantized(_spoilt(0.0)),
        "sums beyond 32 bits": lambda: _linear_graph((70_000,), 1, 127),
        "a float multiplier under an integer rule": lambda: Requantizer(
            RoundingRule.SINGLE, np.asarray(0.5, np.float32), 0, (0, 255)
        ),
        "a left shift out of 32 bits (GEMMLOWP rules)": lambda: Requantizer(
            RoundingRule.GEMMLOWP, FixedPointMultiplier.from_real(8.0), 0, (0, 255)
        ).apply(np.array([2**30])),
        "a kernel of your own that leaves the grid": lambda: _own_flatten(lambda x: np.full((len(x), x[0].size), 1000)),
        "a kernel of your own that returns real numbers": lambda: _own_flatten(lambda x: x.reshape(len(x), -1) * 0.5),
        "a linear layer over several axes, in an integer graph": lambda: _linear_graph((3, 4), 2, 1),
    }


def _added_in_place(a: Any, b: Any) -> Any:
    a += b
    return a


def _multiplied_in_place(a: Any, b: Any) -> Any:
    a *= b
    return a


def _spoilt(value: float) -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        conv.weight[1] = value
    return conv


def _linear_graph(shape: tuple[int, ...], outputs: int, weight: int) -> IntGraph:
    """A linear layer ``fc`` over the last axis of ``shape``, every weight the same."""
    unsigned, signed, params = QuantSpec(8, signed=False), QuantSpec(8, narrow=True), qparams(1, 0)
    weights = QTensor(np.full((outputs, shape[-1]), weight, np.int8), params, signed)
    half = Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(0.5), 0, (0, 255))
    op = int_ops.Linear(weights, np.zeros(outputs, np.int32), half)
    x = IntNode("x", int_ops.Quantize(shape), (), Tensor(shape, unsigned, params))
    fc = IntNode("fc", op, ("x",), Tensor((*shape[:-1], outputs), unsigned, params))
    return IntGraph((x, fc), ("fc",))


def _own_flatten(function: Callable[[Any], Any]) -> Any:
    net = labkit.quantize(named(nn.Flatten()), images())
    return net.run(images(), kernels=REFERENCE.with_override("flatten", function))
