"""What there is to count in a network for one image: weights, biases, MACs by layer, and what stands between the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops

__all__ = ["Counted", "LayerCount", "Plans", "a_plan", "all_plans", "bops", "count", "megabytes", "stride_first"]

_MEGA = 2**20


@dataclass(frozen=True)
class LayerCount:
    """A convolution or linear layer: its name, numbers of weights and biases, and MACs for one image."""

    name: str
    weights: int
    biases: int
    macs: int


@dataclass(frozen=True)
class Counted:
    """A network.

    layers : in running order
    normed, activated, added : elements that leave batch norms, activations and residual sums
    parameters, buffers : numbers in the module: all its parameters, and running statistics (with their counters)
    """

    layers: tuple[LayerCount, ...]
    normed: int
    activated: int
    added: int
    parameters: int
    buffers: int

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def ends(self) -> frozenset[str]:
        """The first and the last layer, which many methods leave at 8 bits."""
        return frozenset({self.layers[0].name, self.layers[-1].name})


def count(module: nn.Module, shape: tuple[int, int, int]) -> Counted:
    """Run ``module`` on one image of ``shape`` (channels, height, width) and count; batch norms are not folded."""
    graph = from_torch(module, shape)
    results = run_float(graph, {graph.inputs[0]: np.zeros((1, *shape), np.float32)})
    layers: list[LayerCount] = []
    normed = activated = added = 0
    for node in graph:
        op, size = node.op, results[node.name][0].size
        if isinstance(op, float_ops.Conv2d | float_ops.Linear):
            positions = math.prod(results[node.name].shape[2:])
            biases = 0 if op.bias is None else op.bias.size
            layers.append(LayerCount(node.name, op.weight.size, biases, op.weight.size * positions))
        normed += size * isinstance(op, float_ops.BatchNorm2d)
        activated += size * isinstance(op, float_ops.Relu)
        added += size * isinstance(op, float_ops.Add)
    parameters, buffers = (sum(tensor.numel() for tensor in group) for group in (module.parameters(), module.buffers()))
    return Counted(tuple(layers), normed, activated, added, parameters, buffers)


def stride_first(resnet: nn.Module) -> nn.Module:
    """The ``resnet`` of torchvision, of bottlenecks, changed in place to have a stage's stride in its first 1x1 convolution.

    So it is in He et al. 2015. torchvision moved it to the 3x3 convolution after it. Returns the same module.
    """
    for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
        block: Any = stage[0]  # type: ignore[index]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return resnet


def megabytes(net: Counted, bits: Mapping[str, int] | int) -> float:
    """The weights of ``net`` alone, in units of 2**20 bytes, with ``bits`` by layer or for all."""
    return (
        sum(layer.weights * (bits if isinstance(bits, int) else bits[layer.name]) for layer in net.layers) / 8 / _MEGA
    )


def bops(net: Counted, weights: Mapping[str, int] | int, inputs: Mapping[str, int] | int) -> float:
    """MACs x weight bits x input bits of ``net``, in units of 10**9; ``weights`` and ``inputs`` are bits by layer or for all."""
    total = 0
    for layer in net.layers:
        of_weights, of_inputs = (bits if isinstance(bits, int) else bits[layer.name] for bits in (weights, inputs))
        total += layer.macs * of_weights * of_inputs
    return total / 1e9


@dataclass(frozen=True, eq=False)
class Plans:
    """All plans that give each layer but the first and the last 4 bits or 8, weights and inputs alike.

    counts : int64 [W + 1, M + 1], plans whose 4-bit layers have together ``i * weight_unit`` weights and ``j * mac_unit`` MACs
    weight_unit, mac_unit : greatest common divisors of the layers' numbers
    sizes, bops : float64 [W + 1] and [M + 1], of the whole network, in 2**20 bytes and 10**9
    """

    counts: NDArray[np.int64]
    weight_unit: int
    mac_unit: int
    sizes: NDArray[np.float64]
    bops: NDArray[np.float64]


def all_plans(net: Counted) -> Plans:
    """Count every one of the 2**(layers - 2) plans of ``net``, exactly: a layer adds its weights and MACs, or nothing."""
    inner = [layer for layer in net.layers if layer.name not in net.ends]
    weight_unit = math.gcd(*(layer.weights for layer in inner))
    mac_unit = math.gcd(*(layer.macs for layer in inner))
    steps = [(layer.weights // weight_unit, layer.macs // mac_unit) for layer in inner]
    counts = np.zeros((1 + sum(w for w, _ in steps), 1 + sum(m for _, m in steps)), np.int64)
    counts[0, 0] = 1
    for w, m in steps:
        counts[w:, m:] += counts[: counts.shape[0] - w, : counts.shape[1] - m].copy()
    sizes = megabytes(net, 8) - np.arange(counts.shape[0]) * weight_unit * 4 / 8 / _MEGA
    operations = bops(net, 8, 8) - np.arange(counts.shape[1]) * mac_unit * (64 - 16) / 1e9
    return Plans(counts, weight_unit, mac_unit, sizes, operations)


def a_plan(net: Counted, size: float, operations: float) -> frozenset[str]:
    """Names of the layers of ``net`` with 4 bits in a plan as near as any to ``size`` and ``operations``, relatively.

    Layers at the end of the network are given 4 bits first, where there is a choice.
    """
    plans = all_plans(net)
    apart = np.abs(plans.sizes / size - 1)[:, None] + np.abs(plans.bops / operations - 1)
    w, m = np.unravel_index(np.argmin(np.where(plans.counts > 0, apart, np.inf)), apart.shape)
    inner = [layer for layer in net.layers if layer.name not in net.ends]
    reachable = [{(0, 0)}]  # by the first layers, as sets of (weights, MACs) in units
    for layer in inner:
        one = layer.weights // plans.weight_unit, layer.macs // plans.mac_unit
        reachable.append(
            reachable[-1] | {(a + one[0], b + one[1]) for a, b in reachable[-1] if a + one[0] <= w and b + one[1] <= m}
        )
    chosen, at = set(), (int(w), int(m))
    for layer, before in zip(reversed(inner), reversed(reachable[:-1]), strict=True):
        less = at[0] - layer.weights // plans.weight_unit, at[1] - layer.macs // plans.mac_unit
        if less in before:
            chosen.add(layer.name)
            at = less
    return frozenset(chosen)
