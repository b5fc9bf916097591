"""What has no integer form is refused with the name of its node and advice, never translated into something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity.zoo import SHAPE, conv, net, row
from torch import nn

import labkit
from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.frontends.torch_fx import from_torch


def after_conv(function: Callable[[torch.Tensor], Any]) -> nn.Module:
    return net(lambda s, x: function(s.conv(x)), conv=conv())


def with_parameter(function: Callable[[Any, torch.Tensor], torch.Tensor]) -> nn.Module:
    module = net(lambda s, x: function(s, s.conv(x)), conv=conv())
    module.gain = nn.Parameter(torch.ones(4, 1, 1))
    module.kernel = nn.Parameter(torch.ones(2, 4, 1, 1))
    module.register_buffer("offset", torch.ones(1, 4, 8, 8))
    return module


REWRITE = "rewrite this part"
# How the module is built, the node that the error must start with, and words of its advice.
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "sigmoid": (lambda: row(conv=conv(), gate=nn.Sigmoid()), "gate: nn.Sigmoid", REWRITE),
    "sigmoid function": (lambda: after_conv(torch.sigmoid), "sigmoid: sigmoid", REWRITE),
    "silu": (lambda: row(conv=conv(), head=nn.Sequential(nn.SiLU())), "head.0: nn.SiLU", REWRITE),
    "gelu by a tanh": (
        lambda: row(conv=conv(), head=nn.Sequential(nn.GELU(approximate="tanh"))),
        "head.0: a GELU with approximate='tanh'",
        "Write nn.GELU()",
    ),
    "gelu function by a tanh": (
        lambda: after_conv(lambda y: F.gelu(y, approximate="tanh")),
        "gelu: a GELU with approximate='tanh'",
        "Write nn.GELU()",
    ),
    "bilinear up-sampling": (
        lambda: row(conv=conv(), up=nn.Upsample(scale_factor=2, mode="bilinear")),
        "up: up-sampling from (8, 8) to (16, 16) with mode 'bilinear'",
        "repeats each pixel",
    ),
    "bilinear up-sampling to the same size": (
        lambda: after_conv(lambda y: F.interpolate(y, (8, 8), mode="bilinear")),
        "interpolate: up-sampling from (8, 8) to (8, 8) with mode 'bilinear'",
        "repeats each pixel",
    ),
    "up-sampling by a factor that is not whole": (
        lambda: row(conv=conv(), up=nn.Upsample(scale_factor=1.5)),
        "up: up-sampling from (8, 8) to (12, 12)",
        "by whole factors",
    ),
    "up-sampling by nearly 3, to sizes that 3 gives": (
        lambda: after_conv(lambda y: F.interpolate(y, scale_factor=3.1)),
        "interpolate: up-sampling from (8, 8) to (24, 24)",
        "by whole factors",
    ),
    "down-sampling": (
        lambda: after_conv(lambda y: F.interpolate(y, size=4)),
        "interpolate: up-sampling from (8, 8) to (4, 4)",
        "by whole factors",
    ),
    "softmax over images": (
        lambda: after_conv(lambda y: F.softmax(y, dim=0)),
        "softmax: softmax needs an axis",
        "dim=1",
    ),
    "softmax without an axis": (lambda: row(conv=conv(), head=nn.Softmax()), "head: softmax needs an axis", "dim=1"),
    "argmax over everything": (lambda: after_conv(lambda y: y.argmax()), "argmax: argmax needs an axis", "got None"),
    "argmax over images": (lambda: after_conv(lambda y: torch.argmax(y, -4)), "argmax: argmax needs an axis", "got -4"),
    "use of an index": (
        lambda: after_conv(lambda y: torch.cat([y, y.argmax(1, keepdim=True)], 1)),
        "argmax: the result of argmax is an index",
        "Return it",
    ),
    "batch size as a number": (
        lambda: after_conv(lambda y: y.reshape(2, 4, -1)),
        "reshape: the module works for batches of 2 images and not for 3",
        "x.size(0)",
    ),
    "batch size as a number that does not fit": (
        lambda: after_conv(lambda y: y.view(2, 256)),
        "view: the module works for batches of 2 images and not for 3",
        "x.size(0)",
    ),
    "scaled sum": (lambda: after_conv(lambda y: torch.add(y, y, alpha=2)), "add: a sum with alpha", "Multiply before"),
    "leaky relu": (lambda: row(conv=conv(), leaky=nn.LeakyReLU()), "leaky: nn.LeakyReLU", REWRITE),
    "transposed convolution": (
        lambda: row(conv=conv(), up=nn.ConvTranspose2d(4, 2, 2)),
        "up: nn.ConvTranspose2d",
        REWRITE,
    ),
    "group norm": (lambda: row(conv=conv(), norm=nn.GroupNorm(2, 4)), "norm: nn.GroupNorm", REWRITE),
    "instance norm": (lambda: row(conv=conv(), norm=nn.InstanceNorm2d(4)), "norm: nn.InstanceNorm2d", REWRITE),
    "reflect padding": (
        lambda: row(conv=conv(padding_mode="reflect")),
        "conv: padding_mode 'reflect'",
        "only 'zeros'",
    ),
    "mean over channels": (lambda: after_conv(lambda y: y.mean(1, keepdim=True)), "mean: only the mean", "(2, 3)"),
    "mean of everything": (lambda: after_conv(lambda y: y.mean()), "mean: only the mean", "(2, 3)"),
    "mean that drops axes": (lambda: after_conv(lambda y: y.mean((2, 3))), "mean: use mean", "keepdim=True"),
    "adaptive pooling that enlarges": (
        lambda: row(conv=conv(), pool=nn.AdaptiveAvgPool2d(9)),
        "pool: adaptive pooling from (8, 8) to (9, 9)",
        "divides the input's",
    ),
    "adaptive max-pooling that does not divide": (
        lambda: after_conv(lambda y: F.adaptive_max_pool2d(y, (8, 5))),
        "adaptive_max_pool2d: adaptive pooling from (8, 8) to (8, 5)",
        "divides the input's",
    ),
    "average pool in ceil mode": (
        lambda: row(conv=conv(), pool=nn.AvgPool2d(3, stride=2, ceil_mode=True)),
        "pool: average pooling with ceil_mode",
        "count_include_pad=True, or no padding",
    ),
    "average pool that does not count its padding": (
        lambda: after_conv(lambda y: F.avg_pool2d(y, 3, padding=1, count_include_pad=False)),
        "avg_pool2d: average pooling",
        "count_include_pad=True, or no padding",
    ),
    "average pool with a divisor": (
        lambda: row(conv=conv(), pool=nn.AvgPool2d(2, divisor_override=3)),
        "pool: average pooling",
        "divisor_override",
    ),
    "cat on another axis": (lambda: after_conv(lambda y: torch.cat([y, y], 2)), "cat: only concatenation", "axis (1)"),
    "cat of flat tensors": (
        lambda: after_conv(lambda y: torch.cat([y.flatten(1), y.flatten(1)], 1)),
        "cat: only concatenation",
        "of images",
    ),
    "hardtanh": (lambda: row(conv=conv(), clip=nn.Hardtanh(-1, 1)), "clip: Hardtanh(-1, 1)", REWRITE),
    "product with a parameter": (
        lambda: with_parameter(lambda s, y: s.gain * y),
        "mul: ",
        "Put the parameter into an nn",
    ),
    "sum with a buffer": (lambda: with_parameter(lambda s, y: y + s.offset), "add: ", "Put the parameter into an nn"),
    "convolution with a free parameter": (
        lambda: with_parameter(lambda s, y: F.conv2d(y, s.kernel)),
        "conv2d: ",
        "Put the parameter into an nn",
    ),
    "reshape over the images": (lambda: after_conv(lambda y: y.view(1, -1)), "view: a reshape", "x.size(0)"),
    "channels into the batch": (lambda: after_conv(lambda y: y.view(-1, 8, 8)), "view: a reshape", "changes the batch"),
    "flatten with the images": (lambda: after_conv(torch.flatten), "flatten: a reshape", "must stay first"),
    "unsqueeze before the batch": (lambda: after_conv(lambda y: y.unsqueeze(0)), "unsqueeze: a reshape", "batch axis"),
    "squeeze of every axis": (
        lambda: after_conv(lambda y: y.squeeze()),
        "squeeze: squeeze needs an axis",
        "squeeze(-1)",
    ),
    "squeeze of the batch": (lambda: after_conv(lambda y: torch.squeeze(y, 0)), "squeeze: squeeze needs", "batch axis"),
    "product with a number": (lambda: after_conv(lambda y: y * 2), "mul: only the product", "None"),
    "product that stretches rows": (
        lambda: after_conv(lambda y: y * F.max_pool2d(y, (1, 8))),
        "mul: only the product",
        "(2, 4, 8, 1)",
    ),
    "padding with ones": (lambda: after_conv(lambda y: F.pad(y, (1, 1), value=1.0)), "pad: only zeros", "with 1.0"),
    "layer that pads with ones": (lambda: row(pad=nn.ConstantPad2d(1, 1.0)), "pad: only zeros", "with 1.0"),
    "padding that cuts": (lambda: after_conv(lambda y: F.pad(y, (-1, 1))), "pad: only zeros", "(-1, 1)"),
    "padding of channels": (lambda: after_conv(lambda y: F.pad(y, (0, 0, 0, 0, 1, 0))), "pad: only zeros", "1, 0)"),
    "padding with the edge": (
        lambda: after_conv(lambda y: F.pad(y, (1, 1, 1, 1), mode="replicate")),
        "pad: padding of mode 'replicate'",
        "'constant'",
    ),
    "convolution of sequences without a batch": (
        lambda: row(flat=nn.Flatten(), conv=nn.Conv1d(2, 4, 3)),
        "conv: it needs an input (N, channels, length), got (2, 192)",
        "channel axis",
    ),
    "sum with a number": (lambda: after_conv(lambda y: y + 1), "add: only the sum of two tensors", "got"),
    "broadcast sum": (
        lambda: after_conv(lambda y: y + y.mean((2, 3), keepdim=True)),
        "add: only the sum of two tensors of one shape",
        "(2, 4, 1, 1)",
    ),
    "permute of the images": (lambda: after_conv(lambda y: y.permute(1, 0, 2, 3)), "permute: the order", "batch axis"),
    "transpose of the images": (
        lambda: after_conv(lambda y: torch.transpose(y, 0, 3)),
        "transpose: the order",
        "batch",
    ),
    "split": (lambda: after_conv(lambda y: y.chunk(2, 1)[0]), "getitem: taking a part of a tensor", REWRITE),
    "linear on an image": (
        lambda: row(fc=nn.Linear(8, 5)),
        "fc: a linear layer needs a flat input",
        "Flatten it first",
    ),
    "batch norm without statistics": (
        lambda: row(conv=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        "bn: batch norm without running statistics",
        "Track them",
    ),
    "batch norm of a flat tensor": (
        lambda: row(flat=nn.Flatten(), fc=nn.Linear(192, 8), relu=nn.ReLU(), bn=nn.BatchNorm1d(8)),
        "bn: batch norm of a flat tensor",
        "right after a linear layer",
    ),
    "overwriting relu": (
        lambda: net(lambda s, x: (lambda y: s.relu(y) + y)(s.conv(x)), conv=conv(), relu=nn.ReLU(inplace=True)),
        "relu: it overwrites a tensor that 'add' reads",
        "without inplace=True",
    ),
    "overwriting relu function": (
        lambda: after_conv(lambda y: F.relu(y, True) + y),
        "relu: it overwrites a tensor that 'add' reads",
        "without inplace=True",
    ),
    "overwriting sum": (
        lambda: net(lambda s, x: (lambda y: (s.conv(x).add_(y), y.relu_(), y))(s.conv(x)), conv=conv()),
        "relu_: it overwrites a tensor that 'output' reads",
        "without inplace=True",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_error_names_the_node_and_says_what_to_do(name: str) -> None:
    make, start, advice = UNSUPPORTED[name]
    with pytest.raises(UnsupportedOperation) as caught:
        from_torch(make().eval(), SHAPE)
    message = str(caught.value)
    assert message.startswith(start), message
    assert advice in message, message
    assert "\n" not in message


def test_volumes_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"^conv1: nn\.Conv3d has no integer form .*rewrite this part"):
        from_torch(row(conv1=nn.Conv3d(3, 4, 3)), (3, 8, 8, 8))


def test_sequences_may_enter_the_network() -> None:
    graph = from_torch(row(conv1=nn.Conv1d(3, 4, 3), pool=nn.MaxPool1d(2)).eval(), (3, 9))
    assert [type(node.op).__name__ for node in graph] == ["Input", "Conv2d", "MaxPool2d"]


def test_an_overwriting_product_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="mul_: it overwrites a tensor that 'add' reads"):
        from_torch(after_conv(lambda y: y.mul_(F.relu(y)) + y), SHAPE)


def test_in_place_operations_whose_input_nobody_reads_again_are_fine() -> None:
    module = net(
        lambda s, x: s.drop((lambda y: y.add_(s.other(x)))(s.relu(s.conv(x)).relu_())),
        conv=conv(),
        other=conv(),
        relu=nn.ReLU(inplace=True),
        drop=nn.Dropout(inplace=True),
    )
    assert len(from_torch(module, SHAPE).nodes) == 7


def _branching(y: torch.Tensor) -> torch.Tensor:
    return y if y.sum() > 0 else -y


def _looping(y: torch.Tensor) -> torch.Tensor:
    for part in y:
        y = y + part
    return y


@pytest.mark.parametrize("function", [_branching, _looping])
def test_control_flow_on_values_cannot_be_traced(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ModelError, match=r"Net cannot be traced by torch\.fx: .*must not branch or loop on the values"):
        from_torch(after_conv(function), SHAPE)


@pytest.mark.parametrize(
    "output",
    [lambda y: {"logits": y}, lambda y: (y, y.size(0)), lambda y: F.max_pool2d(y, 2, return_indices=True)],
    ids=["a dict", "a number", "indices"],
)
def test_outputs_must_be_tensors(output: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ModelError, match="outputs must be nodes|a tuple of tensors is needed"):
        from_torch(after_conv(output), SHAPE)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (3, 8), (3, 9, 8), (192,), (3, 0, 0)])
def test_wrong_image_shape(shape: tuple[int, ...], capfd: pytest.CaptureFixture[str]) -> None:
    module = nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 5))
    with pytest.raises(
        InputError, match=r"Sequential does not accept an input of shape \('N', .*of the size"
    ) as caught:
        from_torch(module, shape)
    assert "\n" not in str(caught.value)
    assert "While executing" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the error is the one thing that the user is to read"


def test_two_inputs_are_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(InputError, match=r"Net does not accept an input .*'y'"):
        from_torch(Net(), SHAPE)


@pytest.mark.parametrize("thing", [{"conv.weight": 1}, lambda x: x, None])
def test_only_modules_are_taken(thing: Any) -> None:
    with pytest.raises(ModelError, match=r"A torch\.nn\.Module is needed, got \w+\. Build"):
        from_torch(thing, SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("parameter", ["0.weight", "0.bias", "1.running_var", "1.weight"])
def test_parameters_that_are_not_finite(parameter: str, value: float) -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    module.state_dict()[parameter].reshape(-1)[1] = value
    with pytest.raises(ModelError, match=rf"^{parameter[0]}: \w+ holds {value} at index \(.*train it again"):
        from_torch(module, SHAPE)
    with pytest.raises(ModelError, match=rf"^{parameter[0]}: "):
        labkit.quantize(module, np.ones((2, *SHAPE), np.float32))
