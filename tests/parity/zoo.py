"""Small networks as data: one for each operation and each way of joining them that labkit can quantize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["CASES", "SHAPE", "Case", "build"]

SHAPE = (3, 8, 8)


@dataclass(frozen=True)
class Case:
    """``make`` builds the module; ``nodes`` are the names that its graph must have, in order; ``dead`` of them unused."""

    name: str
    make: Callable[[], nn.Module]
    nodes: tuple[str, ...]
    dead: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def build(case: Case, seed: int = 0) -> nn.Module:
    """The module of ``case`` in inference mode: seeded weights, batch norms with statistics as after training."""
    torch.manual_seed(seed)
    module = case.make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0.0, 0.3)
            part.running_var.uniform_(0.3, 2.0)
            if part.affine:
                nn.init.uniform_(part.weight, 0.4, 1.6)
                part.weight.data[::2] *= -1  # a negative gain turns ranges round
                nn.init.normal_(part.bias, 0.0, 0.3)
    return module.eval()


def net(forward: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    """A module with ``parts`` as its attributes; ``forward`` takes the module and the input."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: torch.Tensor) -> Any:
            return forward(self, x)

    return Net()


def conv(inputs: int = 3, outputs: int = 4, kernel: Any = 3, padding: Any = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **options)


def row(**parts: nn.Module) -> nn.Module:
    """A sequence of named parts."""
    whole = nn.Sequential()
    for name, part in parts.items():
        whole.add_module(name, part)
    return whole


class Block(nn.Module):
    """The basic block of a residual network, with a convolution on its shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(conv(inputs, outputs, 1, 0, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


def _twice(s: Any, x: torch.Tensor) -> torch.Tensor:
    y = s.conv(x)
    out: torch.Tensor = s.left(y) + s.right(s.relu(y))
    return out


def _norm_of_shared(s: Any, x: torch.Tensor) -> torch.Tensor:
    y = s.conv(x)
    out: torch.Tensor = torch.relu(s.norm(y)) + y
    return out


def _sized(s: Any, x: torch.Tensor) -> torch.Tensor:
    y = F.avg_pool2d(s.conv(x), x.size(2) // 4)
    out: torch.Tensor = s.fc(y.reshape(y.shape[0], y.size(1) * y.size(2) * y.size(3)))
    return out


def _dead_branch(s: Any, x: torch.Tensor) -> torch.Tensor:
    y = s.conv(x)
    s.unused(y)
    out: torch.Tensor = s.norm(y)
    return out


def _scaled_channels(x: torch.Tensor) -> torch.Tensor:
    """As torchvision's Inception and GoogLeNet do where their ``transform_input`` is set."""
    numbers = enumerate(((0.458, -0.03), (-0.7, 0.25), (0.45, -0.188)))
    return torch.cat([torch.unsqueeze(x[:, i], 1) * gain + shift for i, (gain, shift) in numbers], 1)


def _tiny_weights() -> nn.Module:
    module: Any = row(conv=conv(), relu=nn.ReLU(), last=conv(4, 2))
    with torch.no_grad():
        module.conv.weight[1] *= 1e-12  # its bias would not fit int32 at S_w S_x
        module.conv.bias[1] = 0.7
    return module


def _plain_norm() -> nn.Module:
    return row(conv=conv(), bn=nn.BatchNorm2d(4, affine=False), relu=nn.ReLU(), fc=conv(4, 2, 8, 0))


CASES = (
    Case(
        "sequential",
        lambda: nn.Sequential(
            conv(), nn.ReLU(), nn.MaxPool2d(2), conv(4, 6, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
        ),
        ("input_1", "0", "1", "2", "3", "4", "5", "6"),
    ),
    Case(
        "residual",
        lambda: row(stem=conv(), layer1=nn.Sequential(Block(4, 4), Block(4, 6)), pool=nn.AdaptiveAvgPool2d(1)),
        (
            *("input_1", "stem"),
            *(f"layer1.0.{part}" for part in ("conv1", "bn1")),
            "relu",
            *(f"layer1.0.{part}" for part in ("conv2", "bn2", "shortcut.0", "shortcut.1")),
            *("add", "relu_1"),
            *(f"layer1.1.{part}" for part in ("conv1", "bn1")),
            "relu_2",
            *(f"layer1.1.{part}" for part in ("conv2", "bn2", "shortcut.0", "shortcut.1")),
            *("add_1", "relu_3", "pool"),
        ),
    ),
    Case(
        "concat of differing scales",
        lambda: net(
            lambda s, x: s.last(torch.cat([s.small(x), x, s.large(x)], dim=1)),
            small=_scaled(conv(3, 2), 0.05),
            large=_scaled(conv(3, 3), 20.0),
            last=conv(8, 4, 1, 0),
        ),
        ("x", "small", "large", "cat", "last"),
    ),
    Case(
        "depthwise with ReLU6",
        lambda: row(
            expand=_scaled(conv(3, 6, 1, 0, bias=False), 12.0),
            bn1=nn.BatchNorm2d(6),
            act1=nn.ReLU6(),
            depth=_scaled(conv(6, 6, groups=6, stride=2, bias=False), 4.0),
            bn2=nn.BatchNorm2d(6),
            act2=nn.ReLU6(),
            project=conv(6, 4, 1, 0),
        ),
        ("input_1", "expand", "bn1", "act1", "depth", "bn2", "act2", "project"),
    ),
    Case(
        "same padding of an even kernel",
        lambda: row(conv=conv(3, 4, 4, "same"), relu=nn.ReLU(), valid=conv(4, 2, 3, "valid")),
        ("input_1", "conv", "relu", "valid"),
    ),
    Case(
        "dilation",
        lambda: row(conv=conv(padding=(2, 1), dilation=(2, 1), stride=(1, 2)), relu=nn.ReLU(), last=conv(4, 2)),
        ("input_1", "conv", "relu", "last"),
    ),
    Case(
        "groups",
        lambda: row(first=conv(3, 6, 1, 0), grouped=conv(6, 4, groups=2), relu=nn.ReLU(), last=conv(4, 2, (1, 3), 0)),
        ("input_1", "first", "grouped", "relu", "last"),
    ),
    Case(
        "batch norm before convolution",
        lambda: row(bn=nn.BatchNorm2d(3), relu=nn.ReLU(), conv=conv(), bn2=nn.BatchNorm2d(4), bn3=nn.BatchNorm2d(4)),
        ("input_1", "bn", "relu", "conv", "bn2", "bn3"),
    ),
    Case(
        "batch norm of a linear layer",
        lambda: row(
            flatten=nn.Flatten(),
            fc1=nn.Linear(192, 8, bias=False),
            drop=nn.Dropout(),
            bn=nn.BatchNorm1d(8),
            relu=nn.ReLU(),
            fc2=nn.Linear(8, 5),
        ),
        ("input_1", "flatten", "fc1", "drop", "bn", "relu", "fc2"),
    ),
    Case(
        "batch norm without gain",
        _plain_norm,
        ("input_1", "conv", "bn", "relu", "fc"),
    ),
    Case(
        "one relu module used twice",
        lambda: net(
            lambda s, x: s.relu_1(s.b(s.relu(s.a(s.relu(x))))),
            a=conv(),
            b=conv(4, 4),
            relu=nn.ReLU(),
            relu_1=nn.ReLU(),  # the name that torch.fx gives to the second use of ``relu``
        ),
        ("x", "relu", "a", "relu_1_", "b", "relu_1"),
    ),
    Case(
        "one convolution used twice",
        lambda: net(lambda s, x: s.conv(F.relu(s.conv(x))), conv=conv(3, 3)),
        ("x", "conv", "relu", "conv_1"),
    ),
    Case(
        "functions",
        lambda: net(
            lambda s, x: s.fc(torch.flatten(F.max_pool2d(F.relu(s.b(F.relu6(s.a(x)))), 2, stride=2), 1)),
            a=conv(),
            b=conv(4, 4),
            fc=nn.Linear(64, 5),
        ),
        ("x", "a", "relu6", "b", "relu", "max_pool2d", "flatten", "fc"),
    ),
    Case(
        "functions by keyword",
        lambda: net(
            lambda s, x: s.fc(
                torch.flatten(input=F.adaptive_avg_pool2d(input=torch.add(s.a(input=x), x), output_size=4), start_dim=1)
            ),
            a=conv(3, 3),
            fc=nn.Linear(48, 5),
        ),
        ("x", "a", "add", "adaptive_avg_pool2d", "flatten", "fc"),
    ),
    Case(
        "view and mean",
        lambda: net(
            lambda s, x: s.fc((lambda y: y.view(y.size(0), -1))(s.conv(x).relu().mean((2, 3), keepdim=True))),
            conv=conv(),
            fc=nn.Linear(4, 5),
        ),
        ("x", "conv", "relu", "mean", "view", "fc"),
    ),
    Case(
        "torch.mean with negative axes",
        lambda: net(lambda s, x: F.relu(torch.mean(s.conv(x), dim=[-1, -2], keepdim=True)), conv=conv()),
        ("x", "conv", "mean", "relu"),
    ),
    Case(
        "sizes taken from the tensor",
        lambda: net(_sized, conv=conv(), fc=nn.Linear(64, 5)),
        ("x", "conv", "avg_pool2d", "reshape", "fc"),
    ),
    Case(
        "adaptive pooling",
        lambda: row(
            conv=conv(),
            average=nn.AdaptiveAvgPool2d((4, 8)),
            relu=nn.ReLU(),
            conv2=conv(4, 4),
            largest=nn.AdaptiveMaxPool2d((2, 4)),
            flatten=nn.Flatten(),
            fc=nn.Linear(32, 5),
        ),
        ("input_1", "conv", "average", "relu", "conv2", "largest", "flatten", "fc"),
    ),
    Case(
        "max-pool with padding and ceil mode",
        lambda: row(
            conv=conv(),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
            relu=nn.ReLU(),
            conv2=conv(4, 4, 2, 1),
            ceil=nn.MaxPool2d(2, stride=2, ceil_mode=True),
            wide=nn.MaxPool2d(2, stride=1, dilation=2),
            last=conv(4, 2, 1, 0),
        ),
        ("input_1", "conv", "pool", "relu", "conv2", "ceil", "wide", "last"),
    ),
    Case(
        "average pool with padding",
        lambda: row(
            conv=conv(),
            pool=nn.AvgPool2d(3, stride=2, padding=1),
            sparse=nn.AvgPool2d(1, stride=3),
            last=conv(4, 2, 1, 0),
        ),
        ("input_1", "conv", "pool", "sparse", "last"),
    ),
    Case(
        "dropout and identity",
        lambda: row(
            identity=nn.Identity(),
            conv=conv(),
            drop2=nn.Dropout2d(0.5),
            bn=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            again=nn.Flatten(),
            drop=nn.Dropout(0.5),
            fc=nn.Linear(256, 5),
            last=nn.Identity(),
        ),
        ("input_1", "identity", "conv", "drop2", "bn", "relu", "flatten", "again", "drop", "fc", "last"),
    ),
    Case(
        "two outputs",
        lambda: net(
            lambda s, x: (lambda y: (s.head(y), [F.relu(s.tail(y)), y]))(s.conv(x)),
            conv=conv(),
            head=conv(4, 2),
            tail=conv(4, 3, 1, 0),
        ),
        ("x", "conv", "head", "tail", "relu"),
    ),
    Case(
        "output taken before relu",
        lambda: net(
            lambda s, x: (lambda y: (y, s.last(s.relu(y))))(s.conv(x)), conv=conv(), relu=nn.ReLU(), last=conv(4)
        ),
        ("x", "conv", "relu", "last"),
    ),
    Case(
        "result used twice",
        lambda: net(_twice, conv=conv(), relu=nn.ReLU(), left=conv(4, 4, 1, 0), right=conv(4, 4)),
        ("x", "conv", "left", "relu", "right", "add"),
    ),
    Case(
        "batch norm of a shared result",
        lambda: net(_norm_of_shared, conv=conv(), norm=nn.BatchNorm2d(4)),
        ("x", "conv", "norm", "relu", "add"),
    ),
    Case(
        "relu after max-pool, twice",
        lambda: row(conv=conv(), pool=nn.MaxPool2d(2), relu=nn.ReLU(), clip=nn.ReLU6(), last=conv(4, 2)),
        ("input_1", "conv", "pool", "relu", "clip", "last"),
    ),
    Case(
        "a tensor with itself",
        lambda: net(lambda s, x: (lambda y: torch.cat((y + y, x, x), 1))(s.conv(x)), conv=conv()),
        ("x", "conv", "add", "cat"),
    ),
    Case(
        "relu of a concatenation",
        lambda: net(lambda s, x: s.last(F.relu(torch.cat([s.a(x), s.b(x)], -3))), a=conv(), b=conv(), last=conv(8, 2)),
        ("x", "a", "b", "cat", "relu", "last"),
    ),
    Case(
        "dead branch",
        lambda: net(_dead_branch, conv=conv(), unused=conv(4), norm=nn.BatchNorm2d(4)),
        ("x", "conv", "unused", "norm"),
        dead=("unused",),
    ),
    Case(
        "squeeze and excite",
        lambda: net(
            lambda s, x: s.last((lambda y: y * F.relu6(s.up(s.down(s.pool(y)))))(F.relu(s.conv(x)))),
            conv=conv(3, 6),
            pool=nn.AdaptiveAvgPool2d(1),
            down=_scaled(conv(6, 3, 1, 0), 3.0),
            up=_shifted(conv(3, 6, 1, 0), 1.0),
            last=conv(6, 4),
        ),
        ("x", "conv", "relu", "pool", "down", "up", "relu6", "mul", "last"),
    ),
    Case(
        "products",
        lambda: net(
            lambda s, x: (lambda y, g: F.relu(torch.mul(g, y)).mul(y * y))(s.conv(x), s.gate(x)),
            conv=conv(3, 4),
            gate=conv(3, 4, 8, 0),
        ),
        ("x", "conv", "gate", "mul", "relu", "mul_1", "mul_2"),
    ),
    Case(
        "zeros around images",
        lambda: net(
            lambda s, x: s.fc(F.pad(s.pool(s.wide(s.one(s.pad(x)))), (0, 1), "constant", 0).flatten(1)),
            pad=nn.ZeroPad2d((1, 0, 2, 1)),
            one=conv(3, 4, 3, 0),
            wide=nn.ConstantPad2d((0, 1, 0, 1), 0.0),
            pool=nn.MaxPool2d(2),
            fc=nn.Linear(100, 5),
        ),
        ("x", "pad", "one", "wide", "pool", "pad_1", "flatten", "fc"),
    ),
    Case(
        "padding that differs by side",
        lambda: net(
            lambda s, x: s.two(F.pad(F.relu(s.one(F.pad(x, (0, 1, 0, 1)))), (2, 1, 0, 3))),
            one=conv(3, 4, 3, 0, stride=2),
            two=conv(4, 3, (3, 2), (1, 0)),
        ),
        ("x", "pad", "one", "relu", "pad_1", "two"),
    ),
    Case(
        "encoder and decoder",
        lambda: net(
            lambda s, x: (
                lambda y: s.head(torch.cat([y, s.up(F.relu(s.deep(s.down(y))))], 1)) + F.interpolate(s.down(y), (8, 8))
            )(F.relu(s.conv(x))),
            conv=conv(),
            down=nn.MaxPool2d(2),
            deep=conv(4, 5),
            up=nn.Upsample(scale_factor=2),
            head=conv(9, 4),
        ),
        ("x", "conv", "relu", "down", "deep", "relu_1", "up", "cat", "head", "down_1", "interpolate", "add"),
    ),
    Case(
        "up-sampling in other words",
        lambda: row(
            up=nn.UpsamplingNearest2d(scale_factor=3),
            conv=conv(),
            same=nn.Upsample(size=24),
            exact=nn.Upsample(scale_factor=(1.0, 2.0), mode="nearest-exact"),
            relu=nn.ReLU(),
            flat=nn.Flatten(2),
            long=nn.Upsample(scale_factor=2),
            line=nn.Conv1d(4, 2, 5, stride=9),
        ),
        ("input_1", "up", "conv", "same", "exact", "relu", "flat", "long", "line"),
    ),
    Case(
        "channel shuffle",
        lambda: net(
            lambda s, x: s.b(
                (lambda y: y.view(y.size(0), 2, 3, 8, 8).transpose(1, 2).contiguous().view(-1, 6, 8, 8))(s.a(x))
            ),
            a=conv(3, 6),
            b=conv(6, 4, groups=2),
        ),
        ("x", "a", "view", "transpose", "contiguous", "view_1", "b"),
    ),
    Case(
        "moved axes",
        lambda: net(
            lambda s, x: s.fc(
                torch.permute(s.conv(x).permute(0, 2, 3, 1).transpose(-1, 2), (0, 2, 1, 3))
                .unsqueeze(2)
                .squeeze(2)
                .reshape(-1, 256)
            ),
            conv=conv(),
            fc=nn.Linear(256, 5),
        ),
        ("x", "conv", "permute", "transpose", "permute_1", "unsqueeze", "squeeze", "reshape", "fc"),
    ),
    Case(
        "orders that change nothing",
        lambda: net(
            lambda s, x: s.fc(torch.transpose(s.conv(x).permute(0, 1, 2, 3).reshape(-1, 4, 8, 8), 2, 2).flatten(1)),
            conv=conv(),
            fc=nn.Linear(256, 5),
        ),
        ("x", "conv", "permute", "reshape", "transpose", "flatten", "fc"),
    ),
    Case(
        "sequences",
        lambda: row(
            flat=nn.Flatten(2),
            conv1=nn.Conv1d(3, 6, 5, padding=2, stride=2),
            bn1=nn.BatchNorm1d(6),
            relu1=nn.ReLU(),
            pool=nn.MaxPool1d(3, 2, padding=1),
            conv2=nn.Conv1d(6, 6, 3, padding="same", groups=6, bias=False),
            bn2=nn.BatchNorm1d(6),
            relu2=nn.ReLU6(),
            mean=nn.AvgPool1d(2, padding=1),
            pad=nn.ZeroPad1d((2, 1)),
            bn3=nn.BatchNorm1d(6),
            conv3=nn.Conv1d(6, 8, 3, dilation=2),
            last=nn.AdaptiveAvgPool1d(4),
            flatten=nn.Flatten(),
            fc=nn.Linear(32, 5),
        ),
        (
            *(
                "input_1",
                "flat",
                "conv1",
                "bn1",
                "relu1",
                "pool",
                "conv2",
                "bn2",
                "relu2",
                "mean",
                "pad",
                "bn3",
                "conv3",
            ),
            *("last", "flatten", "fc"),
        ),
    ),
    Case(
        "functions of sequences",
        lambda: net(
            lambda s, x: (
                lambda y: s.b(torch.cat([F.max_pool1d(y, 2), F.avg_pool1d(y, 2)], 1)) * s.gate(y).mean(2, True)
            )(s.a(x.reshape(x.size(0), 12, -1))),
            a=nn.Conv1d(12, 4, 3, padding=1),
            b=nn.Conv1d(8, 4, 1),
            gate=nn.Conv1d(4, 4, 3),
        ),
        ("x", "reshape", "a", "max_pool1d", "avg_pool1d", "cat", "b", "gate", "mean", "mul"),
    ),
    Case(
        "softmax of an image",
        lambda: net(
            lambda s, x: (lambda y: (s.last(F.softmax(y, dim=1)), y.softmax(-1), y.argmax(dim=1, keepdim=True)))(
                s.conv(x)
            ),
            conv=_scaled(conv(3, 5), 8.0),
            last=_scaled(conv(5, 3), 4.0),
        ),
        ("x", "conv", "softmax", "last", "softmax_1", "argmax"),
    ),
    Case(
        "shares and classes",
        lambda: net(
            lambda s, x: (lambda y: (s.shares(y), torch.argmax(y, 1)))(s.fc(x.flatten(1))),
            fc=_sharp(nn.Linear(192, 6), 3.0),
            shares=nn.Softmax(dim=1),
        ),
        ("x", "flatten", "fc", "shares", "argmax"),
    ),
    Case(
        "attention over places",
        lambda: net(
            lambda s, x: s.fc((lambda y: s.shares(y.flatten(2)) * y.flatten(2))(s.conv(x)).reshape(-1, 256)),
            conv=_scaled(conv(3, 4), 6.0),
            shares=nn.Softmax(-1),
            fc=nn.Linear(256, 5),
        ),
        ("x", "conv", "flatten", "shares", "flatten_1", "mul", "reshape", "fc"),
    ),
    Case(
        "adaptive pooling that does not divide",
        lambda: net(
            lambda s, x: s.fc(F.adaptive_avg_pool1d(F.relu(s.uneven(s.conv(x))).flatten(2), 4).flatten(1)),
            conv=conv(3, 6),
            uneven=nn.AdaptiveAvgPool2d((3, 5)),
            fc=nn.Linear(24, 5),
        ),
        ("x", "conv", "uneven", "relu", "flatten", "adaptive_avg_pool1d", "flatten_1", "fc"),
    ),
    Case(
        "every channel of the input scaled and shifted",
        lambda: net(lambda s, x: s.conv(_scaled_channels(x)), conv=conv()),
        ("x", "cat", "conv"),
    ),
    Case("tiny weights under an ordinary bias", _tiny_weights, ("input_1", "conv", "relu", "last")),
)


def _sharp(layer: nn.Linear, factor: float) -> nn.Linear:
    layer.weight.data *= factor
    return layer


def _scaled(layer: nn.Conv2d, factor: float) -> nn.Conv2d:
    layer.weight.data *= factor
    return layer


def _shifted(layer: nn.Conv2d, by: float) -> nn.Conv2d:
    assert layer.bias is not None
    layer.bias.data += by
    return layer
