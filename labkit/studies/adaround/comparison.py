"""What the comparisons of rounding methods share: outcomes that can be run two ways, and when a difference counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.bias_correction import correct_empirically
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.problem import choose_grid, weight_rows
from labkit.studies.lab import Lab

__all__ = ["TIE", "TIE_NOTE", "Outcome", "bound", "corrected", "nearest", "outcome", "verdict"]

TIE = 0.3  # points: twice the standard error where two networks answer 2 % of 10,000 images differently
TIE_NOTE = (
    "A difference agrees where it is larger than twice its standard error over the seeds and larger than "
    f"{TIE} points (what chance gives where two networks answer 2 % of 10,000 test images differently); a smaller one of the "
    "right sign agrees in part."
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A network with rounded weights: float ``graph``, ranges ``calibration``, bits ``plan``, and the rounded ``layers``."""

    graph: FloatGraph
    calibration: Calibration
    plan: BitPlan
    layers: Mapping[str, RoundedLayer]

    def integer_accuracy(self, lab: Lab) -> float:
        """Per cent of the test images of ``lab`` that the integer engine gets right."""
        return lab.integer_accuracy(self.plan, self.layers, self.calibration, self.graph)

    def float_activations_accuracy(self, lab: Lab) -> float:
        """Per cent of the test images of ``lab`` that the rounded weights get right with float activations."""
        return lab.float_accuracy(self.simulated())

    def simulated(self) -> FloatGraph:
        """The float network with the weights and biases that the integers stand for."""
        nodes = []
        for node in self.graph:
            if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
                layer = self.layers[node.name]
                node = replace(node, op=replace(node.op, weight=layer.weight.dequantized(), bias=layer.bias.copy()))
            nodes.append(node)
        return FloatGraph(tuple(nodes), self.graph.outputs)


def outcome(lab: Lab, plan: BitPlan, rounded: RoundedWeights) -> Outcome:
    """What the network of ``lab`` becomes under ``plan`` with the weights ``rounded``."""
    return Outcome(lab.graph, rounded.calibration, plan, rounded.layers)


def nearest(graph: FloatGraph, calibration: Calibration, plan: BitPlan, grid: str = "minmax") -> Outcome:
    """Every weight of ``graph`` rounded to nearest, biases as they are.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : a range for each tensor
    plan : bits and grids
    grid : "minmax" or "mse"; the grids that only weights decide
    """
    layers = {}
    for node in graph:
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            continue
        chosen = choose_grid(node, plan, RoundingOptions(grid=grid))
        levels = chosen.nearest(weight_rows(node.op))
        bias = np.zeros(len(node.op.weight), np.float32) if node.op.bias is None else node.op.bias
        layers[node.name] = RoundedLayer(chosen.tensor(levels, node.op.weight.shape), bias)
    return Outcome(graph, calibration, plan, layers)


def corrected(before: Outcome, lab: Lab) -> Outcome:
    """The integers of ``before``, with biases corrected on the calibration images of ``lab`` (Nagel et al. 2019, section 4.2)."""
    weights = {name: layer.weight for name, layer in before.layers.items()}
    graph = correct_empirically(before.graph, weights, before.calibration, before.plan, lab.images)
    biases = {node.name: node.op.bias for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)}
    layers = {name: RoundedLayer(layer.weight, np.asarray(biases[name])) for name, layer in before.layers.items()}
    return replace(before, layers=layers)


def bound(better: Sequence[float], worse: Sequence[float]) -> float:
    """From which mean difference on, in points, ``better`` counts as above ``worse``: one accuracy a seed in each.

    Twice the standard error of the paired differences, and at least `TIE`.
    """
    apart = [a - b for a, b in zip(better, worse, strict=True)]
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else 0.0
    return max(2 * error, TIE)


def verdict(better: Sequence[float], worse: Sequence[float]) -> Literal["yes", "no", "partly"]:
    """Whether ``better`` is above ``worse``, accuracies by seed: beyond `bound`, in the mean only ("partly"), or not."""
    apart = statistics.fmean(better) - statistics.fmean(worse)
    if apart > bound(better, worse):
        return "yes"
    return "partly" if apart > 0 else "no"
