"""`round_weights`: any method, layer by layer, each on what the quantized layers before it really put out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from labkit.arithmetic.affine import QTensor
from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.calibration import Calibration
from labkit.quantization.convert import quantize_table
from labkit.quantization.inputs import Given, GraphOfInputs, named_batches
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
    batches : calibration images or sentences as `calibrate` takes them; the first ``options.images`` are used
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
        There is no such method, there are no images, or a scale cannot be chosen; or sentences of several lengths are handed to
        a method that compares outputs image by image.
    InputError
        The images do not fit the network.
    """
    started = time.perf_counter()
    options = options or RoundingOptions()
    if method not in METHODS:
        raise QuantizationError(f"The rounding method must be one of {', '.join(METHODS)}, got {method!r}.")
    after_activation = method in BLOCK_METHODS or (method == "adaround-images" and options.with_activation)
    options = replace(options, correct_bias=options.corrects_bias(after_activation))
    chooser = output_error_chooser(options.omse_up_to) if options.activation_ranges == "omse" else None
    groups = _groups(graph, batches, options.images)
    if len(groups) > 1 and (method in BLOCK_METHODS or method == "adaround-images"):
        raise QuantizationError(
            f"{method!r} compares outputs image by image and takes inputs of one shape, got {len(groups)} lengths. Take a method "
            f"that looks at quadratic forms, such as 'gptq+descent'."
        )
    prefixes = [Prefix(one, calibration, plan, given, None if i else chooser) for i, (one, given) in enumerate(groups)]
    prefix = prefixes[0]
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
            _step(prefixes, node, _rounded_table(node, plan))
            continue
        outputs = [one.output(node) for one in prefixes]
        problem = layer_problem(prefixes, node, outputs, options, seed + index)
        _step(prefixes, node, run.layer(node, problem, np.random.default_rng((seed, index))), outputs)
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


def _step(
    prefixes: Sequence[Prefix],
    node: FloatNode,
    quantized: Layer | float_ops.Embedding | None,
    outputs: Sequence[torch.Tensor] | None = None,
) -> None:
    """`Prefix.step` of ``node`` for all lengths: the first chooses a range where ranges are chosen, the others take it."""
    for index, prefix in enumerate(prefixes):
        prefix.calibration = prefixes[0].calibration
        prefix.step(prefix.graph[node.name], quantized, None if outputs is None else outputs[index])


def _rounded_table(node: FloatNode, plan: BitPlan) -> float_ops.Embedding | None:
    """An embedding with the table that its integers will stand for; they are rounded to nearest."""
    if not isinstance(node.op, float_ops.Embedding):
        return None
    table = quantize_table(node.name, node.op.weight, plan.weight_spec(node.name), plan.weight_ranges)
    return replace(node.op, weight=table.dequantized())


def _groups(graph: FloatGraph, batches: Any, count: int) -> list[tuple[FloatGraph, dict[str, torch.Tensor]]]:
    """The first ``count`` images in groups of one shape, each with the network for it and tensors by input name."""
    graph_of, have = GraphOfInputs(graph), 0
    found: dict[int, tuple[FloatGraph, list[Given]]] = {}
    for given in named_batches(graph, batches):
        part = {name: array[: count - have] for name, array in given.items()}
        network = graph_of(part)
        found.setdefault(id(network), (network, []))[1].append(part)
        have += len(part[graph.inputs[0]])
        if have >= count:
            break
    if not have:
        raise QuantizationError(
            "There are no calibration images, so nothing tells which rounding is better. Hand in about a thousand images "
            "like those of training."
        )
    return [
        (network, {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in graph.inputs})
        for network, parts in found.values()
    ]
