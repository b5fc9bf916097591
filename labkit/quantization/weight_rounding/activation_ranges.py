"""Ranges of activations by what they do to the layers that take them ("omse"): clip what the next outputs do not miss.

A range that minimises the squared error of the tensor itself treats all errors alike. Here shares of that range are
tried, and the one is kept whose rounded tensor changes the outputs of its consumers least: the variance of the
change, since the bias of a layer takes up its mean. The tensor is that of the quantized network so far, the consumers
still have their float weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from labkit.arithmetic.affine import QuantSpec, params_from_range
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode, Tensor
from labkit.quantization.weight_rounding.prefix import Prefix, RangeChooser, fake_quantize

__all__ = ["mse_range", "output_error_chooser"]

SHARES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)
LOW_SHARES = (0.2, 0.3, 0.4, 0.5, *SHARES)  # of an end that a ReLU cuts off later
IMAGES = 128
_MOVES_NUMBERS = (
    *(float_ops.MaxPool2d, float_ops.Flatten, float_ops.Pad, float_ops.Reshape, float_ops.Transpose),
    *(float_ops.AveragePool2d, float_ops.AdaptiveAveragePool2d, float_ops.Relu, float_ops.UpsampleNearest2d),
)


def mse_range(values: torch.Tensor, spec: QuantSpec) -> tuple[float, float]:
    """The share of the range of ``values`` (float32, any shape) whose rounding to the grid ``spec`` has the least squared error.

    35 shares from 0.15 to 1, then nine around the best.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    sample = values.reshape(-1)[:: max(1, values.numel() // 200_000)]

    def error(share: float) -> float:
        ends = (low * share, high * share)
        return float((_rounded(sample, ends, spec) - sample).square().mean())

    best = min(np.linspace(0.15, 1.0, 35), key=error)
    best = min(np.clip(np.linspace(best - 0.03, best + 0.03, 9), 0.05, 1.0), key=error)
    return low * float(best), high * float(best)


def output_error_chooser(highest_bits: int = 8) -> RangeChooser:
    """A chooser for `Prefix`: ranges by output error for tensors of at most ``highest_bits`` bits, the others as calibrated."""

    def choose(prefix: Prefix, node: FloatNode, value: torch.Tensor) -> tuple[float, float]:
        spec = prefix.plan.activation_spec(node.name)
        if spec.bits > highest_bits or float(value.abs().max()) == 0:
            return prefix.calibration.ranges[node.name]
        low, high = mse_range(value, spec)
        sample = slice(0, IMAGES)
        judged = _consumers(prefix.graph, node.name)
        if (sums := _rectified_sum(prefix, node, sample)) is not None:
            return _best_for_sum(value[sample], prefix.floats[node.name][sample], sums, (low, high), spec)
        if not judged:
            return low, high
        exact, given = prefix.floats[node.name][sample], value[sample]
        with torch.no_grad():
            wanted = [_follow(path, exact) for path in judged]

            def error(share: float) -> float:
                rounded = _rounded(given, (low * share, high * share), spec)
                changes = [_follow(path, rounded) - target for path, target in zip(judged, wanted, strict=True)]
                return sum(_spread(c) / max(_spread(t), 1e-12) for c, t in zip(changes, wanted, strict=True))

            best = min(SHARES, key=error)
        return low * best, high * best

    return choose


def _rectified_sum(
    prefix: Prefix, node: FloatNode, sample: slice
) -> tuple[FloatNode, torch.Tensor, torch.Tensor] | None:
    """The addition with a ReLU that alone takes ``node``, with the float and the rounded form of what it adds; else None."""
    consumers = prefix.graph.consumers(node.name)
    if len(consumers) != 1 or node.name in prefix.graph.outputs:
        return None
    (addition,) = consumers
    if not isinstance(addition.op, float_ops.Add) or addition.activation is Activation.NONE:
        return None
    other = addition.inputs[addition.inputs[0] == node.name]
    if other not in prefix.rounded:
        return None
    return addition, prefix.floats[other][sample], prefix.rounded[other][sample]


def _best_for_sum(
    given: torch.Tensor,
    exact: torch.Tensor,
    sums: tuple[FloatNode, torch.Tensor, torch.Tensor],
    ends: tuple[float, float],
    spec: QuantSpec,
) -> tuple[float, float]:
    """Shares of either end of the range ``ends``, for the least squared error after the sum and its activation.

    What a ReLU sets to 0 need not be told apart, so that the lower end of a branch can be cut off further than the upper.
    """
    addition, float_other, rounded_other = sums
    with torch.no_grad():
        wanted = run_node(addition, [exact, float_other])

        def error(low: float, high: float) -> float:
            return float(
                (run_node(addition, [_rounded(given, (low, high), spec), rounded_other]) - wanted).square().mean()
            )

        low, high = ends
        for _ in range(2):
            low = min((ends[0] * share for share in LOW_SHARES), key=lambda tried: error(tried, high))
            high = min((ends[1] * share for share in SHARES), key=lambda tried: error(low, tried))
    return low, high


def _consumers(graph: FloatGraph, name: str) -> list[list[FloatNode]]:
    """Ways from ``name`` to what takes it: through nodes that move or average numbers, to a layer or an addition."""
    ways: list[list[FloatNode]] = []
    for node in graph.consumers(name):
        if isinstance(node.op, _MOVES_NUMBERS):
            ways += [[node, *way] for way in _consumers(graph, node.name)] or [[node]]
        elif isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            ways.append([replace(node, activation=Activation.NONE)])
        elif isinstance(node.op, float_ops.Add):  # the other branch adds the same to all candidates
            ways.append([])
    return ways


def _follow(way: list[FloatNode], value: torch.Tensor) -> torch.Tensor:
    for node in way:
        value = run_node(node, [value])
    return value


def _spread(value: torch.Tensor) -> float:
    """The variance of each channel, summed over channels."""
    axes = (0, 2, 3) if value.ndim == 4 else tuple(range(value.ndim - 1)) if value.ndim < 3 else (0, 2)
    return float(value.var(dim=axes, unbiased=False).sum())


def _rounded(values: torch.Tensor, ends: tuple[float, float], spec: QuantSpec) -> torch.Tensor:
    return fake_quantize(values, Tensor((), spec, params_from_range(*ends, spec)))
