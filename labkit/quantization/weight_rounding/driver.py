"""`round_weights`: any method, layer by layer, each on what the quantized layers before it really put out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from labkit.arithmetic.affine import QTensor
from labkit.errors import InputError, QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.activation_ranges import output_error_chooser
from labkit.quantization.weight_rounding.blocks import Block, find_blocks
from labkit.quantization.weight_rounding.gram import Layer
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.methods import BLOCK_METHODS, LAYER_METHODS, Rows, round_layer
from labkit.quantization.weight_rounding.options import LayerHistory, RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix
from labkit.quantization.weight_rounding.problem import LayerProblem, choose_grid, layer_problem
from labkit.quantization.weight_rounding.reconstruction import reconstruct_block

__all__ = ["METHODS", "round_weights"]

METHODS = (*LAYER_METHODS, *BLOCK_METHODS)


def round_weights(
    graph: FloatGraph,
    calibration: Calibration,
    plan: BitPlan,
    batches: Any,
    method: str = "gptq+descent",
    options: RoundingOptions | None = None,
    seed: int = 0,
    blocks: tuple[Block, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RoundedWeights:
    """Choose the integers of every layer's weights, from the first layer to the last.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : a range for each tensor
    plan : bits and grids
    batches : calibration images as `calibrate` takes them; the first ``options.images`` are used
    method : one of `METHODS`
    options : of the problem, the grid and the search
    seed : of all that is random
    blocks : what "brecq" and "qdrop" reconstruct together; None for the residual blocks of the graph, and layers
        between them
    progress : called before each node of the graph, and at the end, with how many are done and how many there are

    Returns
    -------
    the integers by layer, and the graph with the biases that go with them: hand both to `convert`

    Raises
    ------
    QuantizationError
        There is no such method, there are no images, or a scale cannot be chosen.
    InputError
        The images do not fit the network.
    """
    started = time.perf_counter()
    options = options or RoundingOptions()
    if method not in METHODS:
        raise QuantizationError(f"The rounding method must be one of {', '.join(METHODS)}, got {method!r}.")
    after_activation = method in BLOCK_METHODS or (method == "adaround-images" and options.with_activation)
    options = replace(options, correct_bias=options.corrects_bias(after_activation))
    images = _images(graph, batches, options.images)
    chooser = output_error_chooser(options.omse_up_to) if options.activation_ranges == "omse" else None
    prefix = Prefix(graph, calibration, plan, images, chooser)
    run = _Run(method, plan, options, seed)
    if method in BLOCK_METHODS:
        by_first = {block.nodes[0]: block for block in (find_blocks(graph) if blocks is None else blocks)}
    else:
        by_first = {}
    for index, node in enumerate(graph):
        if progress is not None:
            progress(index, len(graph.nodes))
        if node.name in by_first:
            started_block = time.perf_counter()
            block = by_first[node.name]
            run.reconstructed |= reconstruct_block(prefix, block, plan, options, method == "qdrop", seed + index)
            run.search_seconds += time.perf_counter() - started_block
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            prefix.step(node)
            continue
        output = prefix.output(node)
        problem = layer_problem(prefix, node, output, options, seed + index)
        prefix.step(node, run.layer(node, problem, np.random.default_rng((seed, index))), output)
    if progress is not None:
        progress(len(graph.nodes), len(graph.nodes))
    nodes = tuple(replace(node, op=run.ops.get(node.name, node.op)) for node in graph)
    ranges = replace(prefix.calibration, method=f"{calibration.method}, omse") if chooser else calibration
    return RoundedWeights(
        method,
        seed,
        run.weights,
        FloatGraph(nodes, graph.outputs),
        ranges,
        run.before,
        run.after,
        time.perf_counter() - started,
        run.search_seconds,
        run.history,
    )


class _Run:
    """What a run has decided so far."""

    def __init__(self, method: str, plan: BitPlan, options: RoundingOptions, seed: int) -> None:
        self.method, self.plan, self.options, self.seed = method, plan, options, seed
        self.weights: dict[str, QTensor] = {}
        self.ops: dict[str, Layer] = {}
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.history: dict[str, LayerHistory] = {}
        self.search_seconds = 0.0
        self.reconstructed: dict[str, tuple[Rows, RowGrid, LayerHistory | None]] = {}

    def layer(self, node: FloatNode, problem: LayerProblem, generator: np.random.Generator) -> Layer:
        """Round one layer; returns it with the weights that its integers stand for."""
        op = problem.op
        started = time.perf_counter()
        if node.name in self.reconstructed:
            levels, grid, history = self.reconstructed.pop(node.name)
        else:
            grid = choose_grid(node, self.plan, self.options, problem.held)
            levels, grid, history = round_layer(self.method, problem, grid, self.options, generator)
        self.search_seconds += time.perf_counter() - started
        nearest = choose_grid(node, self.plan, RoundingOptions(grid="minmax"))
        variance = max(float(problem.gram.energy.sum()), 1e-30)
        for table, weights in (
            (self.before, nearest.values(nearest.nearest(problem.weights))),
            (self.after, grid.values(levels)),
        ):
            table[node.name] = float(problem.gram.error(weights).sum()) / variance
        if history is not None and self.options.history:
            self.history[node.name] = history
        self.weights[node.name] = grid.tensor(levels, op.weight.shape)
        bias = op.bias
        if self.options.correct_bias:
            bias = problem.gram.best_bias(grid.values(levels)).astype(np.float32)
        self.ops[node.name] = replace(op, bias=bias)
        return replace(op, weight=self.weights[node.name].dequantized(), bias=bias)


def _images(graph: FloatGraph, batches: Any, count: int) -> torch.Tensor:
    """The first ``count`` images, as one tensor."""
    parts, have = [], 0
    for batch in image_batches(batches):
        parts.append(batch[: count - have])
        have += len(parts[-1])
        if have >= count:
            break
    if not have:
        raise QuantizationError(
            "There are no calibration images, so nothing tells which rounding is better. Hand in about a thousand images "
            "like those of training."
        )
    shapes: Mapping[tuple[int, ...], object] = dict.fromkeys(part.shape[1:] for part in parts)
    wanted = graph[graph.inputs[0]].op.shape  # type: ignore[union-attr]
    if set(shapes) != {wanted}:
        raise InputError(f"The calibration images have shape {next(iter(shapes))}, the network takes {wanted}.")
    return torch.from_numpy(np.concatenate(parts))
