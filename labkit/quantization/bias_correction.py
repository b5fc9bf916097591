"""Bias correction: rounding the weights shifts the mean of a layer's output, and the bias can take that shift back.

Nagel et al. 2019 (section 4.2): with the error of the weights e and the input x, the output of each channel is off by
``E[e x]`` on average. `correct_empirically` measures it on images, layer after layer in the quantized network.
`correct_analytically` needs no image: where the input comes from a batch norm and a ReLU, it takes its mean from a
normal distribution that is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.gram import Layer
from labkit.quantization.weight_rounding.prefix import Prefix, run_in_chunks

__all__ = ["clipped_normal_moments", "correct_analytically", "correct_empirically", "input_means"]

Values = NDArray[np.float64]
Moments = tuple[Values, Values]  # mean and variance of each channel


def correct_empirically(
    graph: FloatGraph, weights: Mapping[str, QTensor], calibration: Calibration, plan: BitPlan, batches: Any
) -> FloatGraph:
    """The graph with biases that give each layer of the quantized network the mean outputs of the float network.

    Parameters
    ----------
    graph : after `passes.simplify`
    weights : the integers of each layer's weights
    calibration : a range for each tensor
    plan : bits of activations
    batches : calibration images as `calibrate` takes them

    Returns
    -------
    the same nodes; each layer has a bias
    """
    images = torch.from_numpy(np.concatenate(list(image_batches(batches))))
    prefix, ops = Prefix(graph, calibration, plan, images), {}
    for node in graph:
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            prefix.step(node)
            continue
        wanted = prefix.output(node)
        rounded = replace(node.op, weight=weights[node.name].dequantized())
        got = run_in_chunks(
            replace(node, op=rounded, activation=Activation.NONE), [prefix.rounded[name] for name in node.inputs]
        )
        axis = 1 if isinstance(node.op, float_ops.Conv2d) else wanted.ndim - 1
        axes = [i for i in range(wanted.ndim) if i != axis]
        shift = (wanted - got).mean(axes, dtype=torch.float64).numpy()
        bias = (_bias(node.op) + shift).astype(np.float32)
        ops[node.name] = replace(node.op, bias=bias)
        prefix.step(node, replace(rounded, bias=bias), wanted)
    return FloatGraph(tuple(replace(node, op=ops.get(node.name, node.op)) for node in graph), graph.outputs)


def correct_analytically(graph: FloatGraph, original: FloatGraph, weights: Mapping[str, QTensor]) -> FloatGraph:
    """The graph with biases that take back the mean shift of rounded weights, where batch norms tell the inputs' means.

    Layers whose input does not come from a batch norm keep their bias. Padding is taken to look like the rest of the
    image.

    Parameters
    ----------
    graph : after `passes.simplify`
    original : the same network before batch norms were folded
    weights : the integers of each layer's weights
    """
    means, nodes = input_means(original), []
    for node in graph:
        if node.name in means and isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            error = weights[node.name].dequantized().astype(np.float64) - node.op.weight
            groups = node.op.groups if isinstance(node.op, float_ops.Conv2d) else 1
            by_input = error.reshape(groups, len(error) // groups, error.shape[1], -1).sum(3)
            mean = means[node.name]
            if mean.size != groups * error.shape[1]:  # flattened: each channel is a run of inputs
                mean = np.repeat(mean, error.shape[1] // mean.size)
            shift = (by_input @ mean.reshape(groups, -1, 1)).reshape(-1)
            node = replace(node, op=replace(node.op, bias=(_bias(node.op) - shift).astype(np.float32)))
        nodes.append(node)
    return FloatGraph(tuple(nodes), graph.outputs)


def input_means(graph: FloatGraph) -> dict[str, Values]:
    """The expected mean of each input channel of the layers of ``graph`` (batch norms not folded), float64 [C] by layer name.

    A batch norm puts out a normal distribution with mean beta and deviation gamma; a ReLU clips it; sums of independent
    inputs add means and variances and are taken to be normal again. Layers that nothing is known of are left out.
    """
    known: dict[str, Moments] = {}
    found: dict[str, Values] = {}
    for node in graph:
        inputs = [known.get(name) for name in node.inputs]
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear) and inputs[0] is not None:
            found[node.name] = inputs[0][0]
        moments = _moments(node, inputs)
        if moments is not None:
            known[node.name] = moments
    return found


def clipped_normal_moments(mean: Values, variance: Values, low: float, high: float) -> Moments:
    """Mean and variance of ``clip(x, low, high)`` for normal x (Nagel et al. 2019, appendix C).

    Parameters
    ----------
    mean, variance : float64 [C], of x
    low, high : the clamp; 0 and infinity for a ReLU

    Returns
    -------
    mean and variance, both float64 [C]
    """
    deviation = np.sqrt(np.maximum(variance, 1e-24))
    below, above = (low - mean) / deviation, (high - mean) / deviation
    mass = _distribution(above) - _distribution(below)
    slope = _density(below) - _density(above)
    top = 0.0 if math.isinf(high) else high
    bottom = 0.0 if math.isinf(low) else low
    outside = bottom * _distribution(below) + top * (1 - _distribution(above))
    first = mean * mass + deviation * slope + outside
    edges = _weighted(below) - _weighted(above)
    second = (mean**2 + deviation**2) * mass + 2 * mean * deviation * slope + deviation**2 * edges
    second = second + bottom**2 * _distribution(below) + top**2 * (1 - _distribution(above))
    return first, np.maximum(second - first**2, 0.0)


def _moments(node: FloatNode, inputs: list[Moments | None]) -> Moments | None:
    """Mean and variance of each channel of what ``node`` puts out, or None where nothing is known."""
    op = node.op
    if isinstance(op, float_ops.BatchNorm2d):
        return op.beta.astype(np.float64), op.gamma.astype(np.float64) ** 2
    if any(moments is None for moments in inputs) or not inputs:
        return None
    given = [moments for moments in inputs if moments is not None]
    mean, variance = given[0]
    if isinstance(op, float_ops.Relu):
        return clipped_normal_moments(mean, variance, 0.0, math.inf if op.kind is Activation.RELU else 6.0)
    if isinstance(op, float_ops.Add):
        return mean + given[1][0], variance + given[1][1]
    if isinstance(op, float_ops.Identity | float_ops.Flatten):
        return mean, variance
    if isinstance(op, float_ops.AveragePool2d | float_ops.AdaptiveAveragePool2d):
        return mean, variance  # the variance is too large; only means are used from here on
    if isinstance(op, float_ops.Concat):
        return np.concatenate([m for m, _ in given]), np.concatenate([v for _, v in given])
    return None


def _density(x: Values) -> Values:
    return np.asarray(np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi), np.float64)


def _distribution(x: Values) -> Values:
    return np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()])


def _weighted(x: Values) -> Values:
    """``x`` times the density, 0 at infinity."""
    finite = np.where(np.isfinite(x), x, 0)
    return np.where(np.isfinite(x), finite * _density(finite), 0.0)


def _bias(op: Layer) -> Values:
    return np.zeros(len(op.weight)) if op.bias is None else op.bias.astype(np.float64)
