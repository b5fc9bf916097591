"""The networks of the zoo quantized in many ways, made once and shared by the tests; and networks full of rounding ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity.zoo import CASES, SHAPE, Case, build
from torch import nn

import labkit
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan, tensor_names

__all__ = ["PLANS", "TIERS", "case", "images", "on_a_binary_grid", "quantized", "tied"]

TIERS = ("reference", "numba")


def case(name: str) -> Case:
    """The case of the zoo with this name."""
    return next(found for found in CASES if found.name == name)


def _mixed(graph: FloatGraph) -> BitPlan:
    """All widths, in turn, so that neighbours differ."""
    layers = [n.name for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)]
    return BitPlan(
        {name: 1 + (3 * i + 1) % 8 for i, name in enumerate(layers)},
        {name: 2 + (4 * i + 6) % 7 for i, name in enumerate(tensor_names(graph))},
    )


def _uniform(weights: int, activations: int, **options: Any) -> Callable[[FloatGraph], BitPlan]:
    return lambda graph: BitPlan.uniform(graph, weights, activations, **options)


PLANS: dict[str, Callable[[FloatGraph], BitPlan]] = {
    "W8A8": _uniform(8, 8),
    "W4A8": _uniform(4, 8),
    "W4A4": _uniform(4, 4),
    "W1A8": _uniform(1, 8),
    "W8A8 per tensor, symmetric": _uniform(8, 8, per_channel=False, activation_scheme="symmetric"),
    "W1A5 per tensor": _uniform(1, 5, per_channel=False),
    "W6A8 3 sigma": _uniform(6, 8, weight_ranges="3sigma"),
    "mixed": _mixed,
}


@cache
def images(number: int = 8, seed: int = 1) -> NDArray[np.float32]:
    """Images [N, 3, 8, 8]; every second one is twice as wide as those of calibration, so that clamps are met."""
    x = np.random.default_rng(seed).uniform(-1, 1, (number, *SHAPE)).astype(np.float32)
    x[1::2] *= 2
    x.setflags(write=False)
    return x


@cache
def quantized(name: str, plan: str, ranges: str = "minmax") -> tuple[IntegerNet, nn.Module]:
    """The case ``name`` quantized under the plan called ``plan``, and the module that it was made from."""
    module = build(case(name))
    graph = simplify(from_torch(module, SHAPE))
    narrow = images(32, seed=2)[::2]
    return labkit.quantize(module, narrow, ranges=ranges, plan=PLANS[plan](graph)), module


def on_a_binary_grid(module: nn.Module, bits: int, seed: int = 0) -> nn.Module:
    """``module`` with new weights: integers of ``bits`` bits, the largest among them, times a power of two.

    Their scale is then exactly that power, and with `tied` ranges so is every multiplier: sums land on halves.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):
                # Coarse but for the largest: wherever that one meets a zero, the sum has many trailing zero bits.
                drawn = torch.randint(-3, 4, part.weight.shape, generator=random).float() * 2 ** (bits - 3)
                drawn.flatten(1)[:, 0] = 2 ** (bits - 1) - 1
                part.weight.copy_(drawn * 2.0 ** -(bits + 1))
                if part.bias is not None:
                    part.bias.copy_(torch.randint(-64, 64, part.bias.shape, generator=random) / 128)
            elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
                part.eps = 0.0
                part.running_var.fill_(4.0)
                part.running_mean.copy_(torch.randint(-8, 8, part.bias.shape, generator=random) / 16)
                part.weight.copy_(2.0 ** torch.randint(0, 2, part.bias.shape, generator=random))
                part.bias.copy_(torch.randint(-8, 8, part.bias.shape, generator=random) / 16)
    return module


def _with_binary_scales(calibration: Calibration, plan: BitPlan) -> Calibration:
    """The ranges moved so that every activation's scale is a power of two."""
    ranges = {}
    for name, (low, high) in calibration.ranges.items():
        spec = plan.activation_spec(name)
        low, high = min(low, 0.0), max(high, 0.0)
        bound = 2 * max(-low, high) if spec.symmetric else high - low
        scale = 2.0 ** round(np.log2(bound / (spec.qmax - spec.qmin)))
        zero_point = 0 if spec.symmetric else round(-low / scale)
        ranges[name] = ((spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale)
    return replace(calibration, ranges=ranges)


@cache
def tied(name: str, plan: str, bits: int) -> tuple[IntegerNet, nn.Module, NDArray[np.float32]]:
    """The case ``name`` with scales that are powers of two, its module, and images on halves of the input's grid."""
    module = on_a_binary_grid(build(case(name)), bits)
    graph = simplify(from_torch(module, SHAPE))
    chosen = PLANS[plan](graph)
    calibration = _with_binary_scales(calibrate(graph, images(32, seed=2)), chosen)
    net = IntegerNet(convert(graph, calibration, chosen))
    scale = float(net.graph[net.graph.inputs[0]].output.quantized[1].scale)
    x = np.round(images(48, seed=3) / scale * 2) * (scale / 2)
    return net, module, x.astype(np.float32)


def tiers() -> list[Any]:
    """Both tiers as parameters of a test."""
    return [pytest.param(tier, id=tier) for tier in TIERS]
