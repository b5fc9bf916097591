"""One layer's rounding problem, gathered from the networks that run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatNode
from labkit.quantization.convert import quantize_weight
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.gram import Gram, Layer, collect_gram
from labkit.quantization.weight_rounding.grids import (
    RowGrid,
    grid_spec,
    minmax_grid,
    mse_grid,
    output_mse_grid,
)
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix

__all__ = ["LayerProblem", "choose_grid", "layer_problem", "weight_rows"]

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """What a rounding method needs to know of a layer.

    name, op, activation : of the layer's node.
    weights : float64 [O, K], its rows.
    gram : its quadratic form, as measured.
    held : the same with a ridge towards ``weights``: what is minimised.
    inputs, target : float32 [N, ...], what it is given, and what it shall put out before its activation; of sentences of
        several lengths those of the first.
    """

    name: str
    op: Layer
    activation: Activation
    weights: Rows
    gram: Gram
    held: Gram
    inputs: torch.Tensor
    target: torch.Tensor


def weight_rows(op: Layer) -> Rows:
    """The weights of the layer ``op`` as rows, float64 [O, K]."""
    return op.weight.reshape(len(op.weight), -1).astype(np.float64)


def layer_problem(
    prefixes: Sequence[Prefix], node: FloatNode, outputs: Sequence[torch.Tensor], options: RoundingOptions, seed: int
) -> LayerProblem:
    """The problem of ``node``, the next layer after a prefix.

    Parameters
    ----------
    prefixes : all before it, one for each length of sentences; for images one
    node : the layer
    outputs : for each prefix, float32 [N, ...], what the float network puts out there before the activation
    options : which form the problem takes
    seed : of the samples
    """
    op: Layer = node.op  # type: ignore[assignment]
    weights = weight_rows(op)
    inputs = [(one.rounded if options.asymmetric else one.floats)[node.inputs[0]] for one in prefixes]
    targets = list(outputs)
    if options.asymmetric and options.through_adds:
        targets = [one.target(node, output) for one, output in zip(prefixes, outputs, strict=True)]
    gram = collect_gram(op, inputs, targets, options.samples, options.corrects_bias(False), seed)
    scarce = gram.samples < options.scarce_below * weights.shape[1]
    held = gram.with_ridge(weights, options.scarce_ridge if scarce else options.ridge)
    return LayerProblem(node.name, op, node.activation, weights, gram, held, inputs[0], targets[0])


def choose_grid(node: FloatNode, plan: BitPlan, options: RoundingOptions, gram: Gram | None = None) -> RowGrid:
    """The grid of the weights of a layer.

    Parameters
    ----------
    node : the layer
    plan : its bits
    options : how to choose
    gram : its quadratic form, which the grid "output-mse" needs

    Raises
    ------
    QuantizationError
        A row of weights (or, with one scale, every weight) is zero; or the quadratic form is needed and not there.
    """
    op: Layer = node.op  # type: ignore[assignment]
    weights, narrow = weight_rows(op), plan.weight_spec(node.name)
    if op.vanished:  # rows of zeros, on purpose: any small scale will do for them
        weights[list(op.vanished)] = max(1e-3 * float(np.abs(weights).max()), 1e-6)
    spec = grid_spec(narrow, options.levels if narrow.bits <= options.wide_up_to else "narrow")
    try:
        if spec.is_binary or options.grid == "minmax":
            return minmax_grid(weights, spec)
        if options.grid == "mse":
            return mse_grid(weights, spec)
        if options.grid == "output-mse" and gram is not None:
            return output_mse_grid(weights, spec, gram)
    except QuantizationError as error:
        raise QuantizationError(f"{node.name}, weights: {error}") from error
    if options.grid == "output-mse":
        raise QuantizationError(
            f"{node.name}: methods that reconstruct blocks have no quadratic form for grid='output-mse': take 'mse'."
        )
    params = quantize_weight(node.name, op.weight, narrow, "3sigma").params
    return RowGrid(replace(spec, symmetric=True), params, len(weights))
