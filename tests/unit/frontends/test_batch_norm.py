"""Folding batch norms changes a network by no more than float32 does, and what is folded are always the frozen statistics."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from parity.brought import NETS, images, make
from torch import nn

import labkit
from labkit.errors import UnsupportedOperation
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.passes import simplify
from labkit.models.mobilenet import MobileNetV2Small
from labkit.models.resnet import ResNet20
from labkit.models.settled import settled


class Fire(nn.Module):
    """SqueezeNet's module with batch norms, as its newer relatives have them."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_norm = nn.Conv2d(inputs, squeezed, 1), nn.BatchNorm2d(squeezed)
        self.one, self.one_norm = nn.Conv2d(squeezed, expanded, 1), nn.BatchNorm2d(expanded)
        self.three, self.three_norm = nn.Conv2d(squeezed, expanded, 3, padding=1), nn.BatchNorm2d(expanded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.squeeze_norm(self.squeeze(x)))
        return torch.relu(torch.cat([self.one_norm(self.one(x)), self.three_norm(self.three(x))], 1))


def fires() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2))
    body = nn.Sequential(Fire(32, 8, 32), Fire(64, 8, 32), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(64, 16, 64))
    return nn.Sequential(stem, body, nn.Conv2d(128, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def small(build: Callable[[], nn.Module], side: int) -> tuple[nn.Module, int]:
    return settled(build, images(16, side, seed=1)), side


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    **{
        name: partial(lambda name: (make(name, NETS[name].small_side), NETS[name].small_side), name)
        for name in ("resnet18", "mobilenet_v2", "inception_v3")
    },
    "fires with batch norms": lambda: small(fires, 64),
    "ResNet20": lambda: small(ResNet20, 32),
    "MobileNetV2Small": lambda: small(MobileNetV2Small, 32),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_folded_network_computes_what_the_module_does(name: str) -> None:
    """Against the module in float64, to 1e-5 of the largest output.

    Many layers make float32 itself worse than that: there, folding must not be further off than the module is.
    """
    module, side = SUBJECTS[name]()
    x = images(4, side, seed=5)
    graph = simplify(from_torch(module, (3, side, side)))
    with torch.no_grad():
        in_float = module(torch.from_numpy(x)).numpy()
        wanted = deepcopy(module).double()(torch.from_numpy(x).double()).numpy()
    (folded,) = run_float(graph, {graph.inputs[0]: x}, only_outputs=True).values()
    own, error = (np.abs(got - wanted).max() / np.abs(wanted).max() for got in (in_float, folded))
    print(f"{name}: the module in float32 is off by {own:.2e}, folded by {error:.2e}")
    assert error <= max(1e-5, 2 * own)
    assert own < 1e-4
    assert wanted.std(0).max() > 1e-3 * np.abs(wanted).max(), "an output that is always the same proves nothing"
    norms = {
        n for n, part in module.named_modules() if isinstance(part, nn.BatchNorm2d) and not n.startswith("AuxLogits")
    }
    assert norms and norms <= {carried for node in graph for carried in node.carries}


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(3, 8, 3),
    "convolution without bias": lambda: nn.Conv2d(3, 8, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, bias=False),
    "sequences": lambda: nn.Conv1d(3, 8, 5),
    "linear": lambda: nn.Linear(12, 8),
}


def exact(number: Any) -> Decimal:
    return Decimal(
        number.item() if isinstance(number, torch.Tensor) else float(number)
    )  # float32 and float64 are finite decimals


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("affine", [True, False], ids=["gains", "no gains"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_fold_is_rounded_once(kind: str, affine: bool, seed: int) -> None:
    """Against 60 decimal digits: no folded number is further off than half a step of float32, and a bias by one step."""
    torch.manual_seed(seed)
    layer: Any = LAYERS[kind]()
    norm: Any = (nn.BatchNorm1d if kind in ("sequences", "linear") else nn.BatchNorm2d)(8, affine=affine)
    norm.running_mean.normal_(0.0, 2.0)
    norm.running_var.uniform_(1e-4, 4.0)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    shape = {"sequences": (3, 9), "linear": (12,)}.get(kind, (getattr(layer, "in_channels", 0), 6, 6))
    graph = simplify(from_torch(nn.Sequential(layer, norm), shape))
    op = graph["_0" if "_0" in {n.name for n in graph} else "0"].op
    assert isinstance(op, float_ops.Conv2d | float_ops.Linear) and op.bias is not None
    with localcontext(prec=60):
        for channel in range(8):
            gain = (
                exact(norm.weight[channel] if affine else 1)
                / (exact(norm.running_var[channel]) + exact(norm.eps)).sqrt()
            )
            weights = layer.weight[channel].detach().reshape(-1)
            for before, after in zip(weights, op.weight[channel].reshape(-1), strict=True):
                off = abs(exact(after) - exact(before) * gain)
                assert off <= exact(np.spacing(np.abs(after))) * Decimal("0.500001")
            bias = exact(0 if layer.bias is None else layer.bias[channel]) - exact(norm.running_mean[channel])
            wanted = exact(norm.bias[channel] if affine else 0) + bias * gain
            assert abs(exact(op.bias[channel]) - wanted) <= exact(np.spacing(np.abs(op.bias[channel])))


def _parts(module: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in module.named_modules()}


@pytest.mark.parametrize("mode", ["training", "norms frozen in training", "evaluation"])
def test_statistics_are_frozen_whatever_the_mode(mode: str) -> None:
    """Calibration runs hundreds of images: in training mode they would move the statistics, and the net with them."""
    module = settled(ResNet20, images(16, 32, seed=1))
    x = images(8, 32, seed=6)
    wanted = labkit.quantize(module, x).run(x)
    module.train(mode != "evaluation")
    if mode == "norms frozen in training":
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
    before, flags = {k: v.clone() for k, v in module.state_dict().items()}, _parts(module)
    net = labkit.quantize(module, x)
    assert np.array_equal(net.run(x), wanted)
    assert labkit.verify(net, module, x).passed
    assert _parts(module) == flags
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_norms_that_always_take_the_batch_are_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedOperation, match="^1: batch norm without running statistics cannot be folded"):
        from_torch(module, (3, 8, 8))


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(self.conv(x), None, None, training=True)


def test_a_norm_by_function_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="^batch_norm: batch_norm has no integer form"):
        from_torch(ByFunction(), (3, 8, 8))
