"""Weights of every layer rounded to several widths in one pass over the images: candidates that a strong rounding would reach.

A table of sensitivities compares the float weights with candidates. Those rounded to nearest say what a layer loses under
rounding to nearest; GPTQ with coordinate descent leaves a fraction of that, and not the same fraction in every layer and at
every width. Here each layer is fitted to the float network's inputs, so its quadratic form depends on no width and is
gathered once: another width costs its search alone. (`labkit.sensitivity.candidates.rounded_candidates` rounds by any method
and with any prefix, in a whole run for each width.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.gram import collect_gram
from labkit.quantization.weight_rounding.methods import LAYER_METHODS, round_layer
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.quantization.weight_rounding.prefix import run_in_chunks
from labkit.quantization.weight_rounding.problem import LayerProblem, choose_grid, weight_rows
from labkit.sensitivity.candidates import Candidates

__all__ = ["rounded_widths"]


def rounded_widths(
    graph: FloatGraph,
    images: NDArray[np.float32],
    bits: Sequence[int],
    method: str,
    options: RoundingOptions,
    per_channel: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Candidates for each of ``bits``, each layer fitted to what the float network gives it, its bias left as it is.

    Parameters
    ----------
    graph : after `passes.simplify`, of one input
    images : float32 [N, ...] calibration images; the first ``options.images`` are used
    bits : each in 1..8
    method : a rounding that treats layers one by one and needs no images beside the quadratic form, such as "gptq+descent"
    options : of the rounding; what it says of prefixes, biases and activations does not apply here
    per_channel : one scale for each output channel, or one for the layer
    seed : of the samples
    progress : called with how many nodes are done and how many there are

    Raises
    ------
    QuantizationError
        The method treats blocks, or a scale cannot be chosen.
    """
    if method not in LAYER_METHODS:
        raise QuantizationError(
            f"Candidates are rounded layer by layer, by one of {', '.join(LAYER_METHODS)}, got {method!r}. "
            f"Use `rounded_candidates` for {method!r}."
        )
    plans = {b: BitPlan.uniform(graph, b, per_channel=per_channel) for b in sorted({int(b) for b in bits})}
    last_use = {name: node.name for node in graph for name in node.inputs}
    values: dict[str, torch.Tensor] = {}
    found: dict[str, dict[int, Any]] = {}
    for index, node in enumerate(graph):
        if progress is not None:
            progress(index, len(graph.nodes))
        if isinstance(node.op, float_ops.Input):
            values[node.name] = torch.from_numpy(np.array(images[: options.images], np.float32))
            continue
        inputs = [values[name] for name in node.inputs]
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            output = run_in_chunks(replace(node, activation=Activation.NONE), inputs)
            found[node.name] = _rounded(node, inputs[0], output, plans, method, options, seed + index)
            values[node.name] = _activated(output, node.activation)
        else:
            values[node.name] = run_in_chunks(node, inputs)
        for name in {*node.inputs}:
            if last_use[name] == node.name:
                del values[name]
    if progress is not None:
        progress(len(graph.nodes), len(graph.nodes))
    return Candidates(found, f"{method}, each layer on the float network's inputs, seed {seed}")


def _rounded(
    node: FloatNode,
    inputs: torch.Tensor,
    output: torch.Tensor,
    plans: dict[int, BitPlan],
    method: str,
    options: RoundingOptions,
    seed: int,
) -> dict[int, NDArray[np.float32]]:
    op = node.op
    assert isinstance(op, float_ops.Conv2d | float_ops.Linear)
    weights = weight_rows(op)
    gram = collect_gram(op, inputs, output, options.samples, centred=False, seed=seed)
    scarce = gram.samples < options.scarce_below * weights.shape[1]
    held = gram.with_ridge(weights, options.scarce_ridge if scarce else options.ridge)
    problem = LayerProblem(node.name, op, node.activation, weights, gram, held, inputs, output)
    rounded = {}
    for b, plan in plans.items():
        grid = choose_grid(node, plan, options, held)
        levels, grid, _ = round_layer(method, problem, grid, options, np.random.default_rng((seed, b)))
        rounded[b] = grid.values(levels).reshape(op.weight.shape).astype(np.float32)
    return rounded


def _activated(value: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.NONE:
        return value
    return value.clamp(0, 6) if activation is Activation.RELU6 else value.clamp(min=0)
