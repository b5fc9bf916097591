"""A `FloatGraph` as a function of its weights that PyTorch can differentiate, and what a layer multiplies at each place.

Batch norms are frozen and nothing is drawn at random, so the function is the network in inference mode. The second derivative
of ReLU and of a maximum is 0, as PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.weight_rounding.adaround_images import apply_layer
from labkit.quantization.weight_rounding.gram import Layer

__all__ = [
    "bending_nodes",
    "dependents",
    "layer_names",
    "layer_op",
    "layer_windows",
    "run_nodes",
    "weight_slopes",
    "with_dtype",
]


# Operations that are piecewise linear in their inputs; of any other the logits may have second derivatives.
_STRAIGHT = (
    float_ops.Conv2d
    | float_ops.Linear
    | float_ops.BatchNorm2d
    | float_ops.Relu
    | float_ops.MaxPool2d
    | float_ops.AveragePool2d
    | float_ops.AdaptiveAveragePool2d
    | float_ops.Flatten
    | float_ops.Add
    | float_ops.Concat
    | float_ops.Identity
    | float_ops.Pad
    | float_ops.Reshape
    | float_ops.Transpose
    | float_ops.UpsampleNearest2d
)


def layer_names(graph: FloatGraph) -> tuple[str, ...]:
    """The convolution and linear layers of ``graph`` in running order."""
    return tuple(node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear))


def layer_op(graph: FloatGraph, name: str) -> Layer:
    """The operation of the layer ``name`` of ``graph``, which must be a convolution or linear layer."""
    op = graph[name].op
    assert isinstance(op, float_ops.Conv2d | float_ops.Linear)
    return op


def dependents(graph: FloatGraph, names: Iterable[str]) -> frozenset[str]:
    """The nodes of ``graph`` whose results change with the weights of the layers ``names``, these included."""
    found = set(names)
    for node in graph:
        if found.intersection(node.inputs):
            found.add(node.name)
    return frozenset(found)


def bending_nodes(graph: FloatGraph, name: str) -> tuple[str, ...]:
    """The nodes of ``graph`` that keep the network from being piecewise linear in the weights of the layer ``name``."""
    after = dependents(graph, [name])
    return tuple(node.name for node in graph if node.name in after and not isinstance(node.op, _STRAIGHT))


def with_dtype(graph: FloatGraph, dtype: torch.dtype) -> FloatGraph:
    """``graph`` with its parameters as NumPy numbers of ``dtype``, torch.float32 or torch.float64."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    nodes = []
    for node in graph:
        arrays = {key: value.astype(kind) for key, value in vars(node.op).items() if isinstance(value, np.ndarray)}
        nodes.append(replace(node, op=replace(node.op, **arrays)) if arrays else node)  # type: ignore[arg-type]
    return FloatGraph(tuple(nodes), graph.outputs)


def run_nodes(
    graph: FloatGraph,
    known: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
    sums: dict[str, torch.Tensor] | None = None,
    needed: frozenset[str] | None = None,
) -> dict[str, torch.Tensor]:
    """The results of all nodes, those that are ``known`` as they are.

    Parameters
    ----------
    graph : with parameters of the inputs' dtype
    known : [N, ...] by node; the inputs of the network at least, and whatever need not be computed again
    weights : tensors in place of a layer's own weight, [O, ...], that gradients reach
    sums : gets what each layer puts out before its activation, as tensors [N, ...] that gradients reach
    needed : nodes to compute; None for all

    Returns
    -------
    tensors [N, ...] of the graph's dtype by node
    """
    found = dict(known)
    weights = weights or {}
    for node in graph:
        if node.name in found or (needed is not None and node.name not in needed):
            continue
        inputs = [found[name] for name in node.inputs]
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear) or (sums is None and node.name not in weights):
            found[node.name] = run_node(node, inputs)
            continue
        op = node.op
        weight = weights.get(node.name, torch.from_numpy(op.weight))
        value = apply_layer(op, inputs[0], weight, None if op.bias is None else torch.from_numpy(op.bias))
        if sums is not None:
            sums[node.name] = value if value.requires_grad else value.requires_grad_()
        found[node.name] = run_node(FloatNode(node.name, float_ops.Identity(), (), node.activation), [value])
    return found


def _as_image(x: torch.Tensor) -> torch.Tensor:
    """A sequence [N, C, T] as an image [N, C, 1, T] of height 1; an image as it is, in its own dtype."""
    return x.unsqueeze(2) if x.ndim == 3 else x


def layer_windows(op: Layer, x: torch.Tensor) -> torch.Tensor:
    """What ``op`` multiplies at each of P places, [N, groups, K, P], from its input ``x`` [N, ...], in its dtype."""
    if isinstance(op, float_ops.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2).unsqueeze(1)
    (top, bottom), (left, right) = op.padding
    padded = F.pad(_as_image(x), (left, right, top, bottom))
    kernel = (op.weight.shape[2], op.weight.shape[3])
    found = F.unfold(padded, kernel, op.dilation, 0, op.stride)  # [N, groups K, P]
    return found.reshape(len(found), op.groups, -1, found.shape[2])


def weight_slopes(op: Layer, slopes: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Each image's derivatives by the weights of ``op``, [N, n], from those by its output before the activation.

    Parameters
    ----------
    op : a convolution or linear layer with n weights
    slopes : [N, ...], of the output's shape
    windows : [N, groups, K, P] from `layer_windows`, in the same dtype
    """
    groups = windows.shape[1]
    if isinstance(op, float_ops.Linear):
        placed = slopes.reshape(len(slopes), -1, slopes.shape[-1]).transpose(1, 2).unsqueeze(1)
    else:
        flat = slopes.flatten(2)
        placed = flat.reshape(len(flat), groups, -1, flat.shape[2])
    return (placed @ windows.transpose(2, 3)).flatten(1)
