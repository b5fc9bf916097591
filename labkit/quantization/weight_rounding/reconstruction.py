"""Block reconstruction (BRECQ, QDrop): the rounding of all layers of a block is chosen by what the block puts out.

Li et al. 2021 (*BRECQ*) minimise the error of a block's output, since layers joined by an addition can make up for each
other's errors; they weigh it by the squared gradient of the loss (``fisher``). Wei et al. 2022 (*QDrop*) leave out the rounding
of a random half of the activations in each step, which keeps the weights from fitting the rounding errors of the
calibration images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import QuantizationError
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode, Tensor
from labkit.quantization.plan import BitPlan
from labkit.quantization.tensors import output_tensor
from labkit.quantization.weight_rounding.adaround_images import SoftWeights, apply_layer
from labkit.quantization.weight_rounding.blocks import Block
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.options import LayerHistory, RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix, fake_quantize, run_in_chunks
from labkit.quantization.weight_rounding.problem import choose_grid, weight_rows
from labkit.quantization.weight_rounding.relaxation import annealed_beta

__all__ = ["loss_gradients", "reconstruct_block"]

Rows = NDArray[np.float64]

ITERATIONS, LEARNING_RATE = 500, 0.01  # the papers take 20,000 and 0.001
CHUNK = 128


@dataclass(frozen=True, eq=False)
class _Trained:
    """A block while its rounding is sought: soft weights by layer, grids of tensors by node (None: not rounded)."""

    nodes: tuple[FloatNode, ...]
    soft: dict[str, SoftWeights]
    tensors: dict[str, Tensor | None]


def reconstruct_block(
    prefix: Prefix, block: Block, plan: BitPlan, options: RoundingOptions, drop: bool, seed: int
) -> dict[str, tuple[Rows, RowGrid, LayerHistory | None]]:
    """Levels for all layers of a block.

    Parameters
    ----------
    prefix : all before the block
    block : its nodes
    plan : bits
    options : iterations, learning rate, batch size, lambda, warm-up, drop_share, fisher, grid
    drop : QDrop: leave activations unrounded at random; else they are rounded always
    seed : of batches and drops

    Returns
    -------
    by layer: levels float64 [O, K], their grid, and the block's history

    Raises
    ------
    QuantizationError
        The block starts before its inputs are known, or the grid cannot be chosen.
    """
    graph = prefix.graph
    nodes = tuple(graph[name] for name in block.nodes)
    outside = sorted({name for node in nodes for name in node.inputs} - set(block.nodes))
    if missing := [name for name in outside if name not in prefix.rounded]:
        raise QuantizationError(
            f"The block {block.nodes[0]} .. {block.output} takes {missing[0]!r}, which comes after its first node or is no "
            f"longer at hand. A block is a run of nodes that starts after all of its inputs."
        )
    target = _float_output(nodes, {name: prefix.floats[name] for name in outside})
    grids = {node.name: choose_grid(node, plan, options) for node in nodes if _is_layer(node)}
    soft = {
        node.name: SoftWeights(weight_rows(node.op), grids[node.name], node.op.weight.shape)
        for node in nodes
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)
    }
    trained = _Trained(nodes, soft, _internal_tensors(prefix, nodes, plan))
    weighing = None
    if options.fisher:
        weighing = loss_gradients(graph, prefix.images, block.output).square()
        weighing /= weighing.mean().clamp_min(1e-30)
    history = _search(prefix, trained, outside, target, weighing, options, drop, seed)
    return {name: (layer.levels(), grids[name], history) for name, layer in soft.items()}


def loss_gradients(graph: FloatGraph, images: torch.Tensor, name: str) -> torch.Tensor:
    """The gradient of each image's loss with respect to the result of a node, in the float network.

    No labels are needed: the loss is the cross-entropy with the class that the network itself finds likeliest.

    Parameters
    ----------
    graph : a network whose first output are logits [N, classes]
    images : float32 [N, ...]
    name : of the node

    Returns
    -------
    float32 [N, ...], the shape of the node's result
    """
    parts = []
    for start in range(0, len(images), CHUNK):
        results: dict[str, torch.Tensor] = {}
        for node in graph:
            if isinstance(node.op, float_ops.Input):
                results[node.name] = images[start : start + CHUNK]
            else:
                results[node.name] = run_node(node, [results[source] for source in node.inputs])
            if node.name == name:
                results[name] = results[name].detach().requires_grad_()
        logits = results[graph.outputs[0]]
        loss = torch.nn.functional.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
        parts.append(torch.autograd.grad(loss, results[name])[0])
    return torch.cat(parts)


def _search(
    prefix: Prefix,
    block: _Trained,
    outside: list[str],
    target: torch.Tensor,
    weighing: torch.Tensor | None,
    options: RoundingOptions,
    drop: bool,
    seed: int,
) -> LayerHistory:
    """Adam on the variables of all of the block's layers."""
    iterations = options.iterations or ITERATIONS
    variables = [layer.variables for layer in block.soft.values()]
    optimizer = torch.optim.Adam(variables, lr=options.learning_rate or LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    share = options.drop_share if drop else 0.0
    losses = np.empty(iterations)
    for step in range(iterations):
        chosen = torch.randint(len(target), (options.batch_size,), generator=generator)
        given = {
            name: _mixed(prefix.floats[name][chosen], prefix.rounded[name][chosen], share, generator)
            for name in outside
        }
        decisions = {name: layer.decisions() for name, layer in block.soft.items()}
        gap = (_soft_output(block, given, decisions, share, generator) - target[chosen]).square()
        if weighing is not None:
            gap = gap * weighing[chosen]
        loss = (gap.sum(1) if gap.ndim > 2 else gap.sum(-1)).mean()
        losses[step] = loss.item()
        beta = annealed_beta(step, iterations, options.warm_up)
        if beta is not None:
            drawn = [layer.penalty(decisions[name], beta) for name, layer in block.soft.items()]
            loss = loss + options.regularization * torch.stack(drawn).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return LayerHistory(losses)


def _soft_output(
    block: _Trained,
    given: dict[str, torch.Tensor],
    decisions: dict[str, torch.Tensor],
    share: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """The block's output with soft weights and rounded activations; its last tensor is not rounded."""
    results = dict(given)
    for node in block.nodes:
        inputs = [results[name] for name in node.inputs]
        if node.name in block.soft:
            bias = None if node.op.bias is None else torch.from_numpy(node.op.bias)  # type: ignore[union-attr]
            weight = block.soft[node.name].weight(decisions[node.name])
            value = _activated(apply_layer(node.op, inputs[0], weight, bias), node.activation)  # type: ignore[arg-type]
        else:
            value = run_node(node, inputs)
        tensor = block.tensors[node.name]
        results[node.name] = value if tensor is None else _mixed(value, _through(value, tensor), share, generator)
    return results[block.nodes[-1].name]


def _through(value: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """``value`` rounded to its grid, with the gradient of a clamp (straight-through)."""
    spec, params = tensor.quantized
    scale, zero_point = float(params.scale), int(params.zero_point)
    clipped = value.clamp((spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale)
    return clipped + (fake_quantize(value.detach(), tensor) - clipped.detach())


def _mixed(exact: torch.Tensor, rounded: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """``rounded`` with a random ``share`` of its elements taken from ``exact``."""
    if share == 0:
        return rounded
    return torch.where(torch.rand(exact.shape, generator=generator) < share, exact, rounded)


def _internal_tensors(prefix: Prefix, nodes: tuple[FloatNode, ...], plan: BitPlan) -> dict[str, Tensor | None]:
    tensors = dict(prefix.tensors)
    for node in nodes:
        inputs = [tensors[name] for name in node.inputs]
        tensors[node.name] = output_tensor(node, inputs, prefix.calibration, plan)
    return {node.name: tensors[node.name] if node is not nodes[-1] else None for node in nodes}


def _float_output(nodes: tuple[FloatNode, ...], given: dict[str, torch.Tensor]) -> torch.Tensor:
    results = dict(given)
    for node in nodes:
        results[node.name] = run_in_chunks(node, [results[name] for name in node.inputs])
    return results[nodes[-1].name]


def _activated(value: torch.Tensor, activation: Activation) -> torch.Tensor:
    return (
        run_node(replace(_RELU, op=float_ops.Relu(activation)), [value]) if activation is not Activation.NONE else value
    )


_RELU = FloatNode("relu", float_ops.Relu(Activation.RELU))


def _is_layer(node: FloatNode) -> bool:
    return isinstance(node.op, float_ops.Conv2d | float_ops.Linear)
