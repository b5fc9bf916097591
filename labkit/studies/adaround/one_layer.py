"""One layer of a network on few bits and all else as it was: what the paper's section 2 and 5.1 look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerTensor, QuantSpec
from labkit.data import DataSet, normalise
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.differentiable import layer_names
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.quantization.weight_rounding.gram import Gram, Layer, collect_gram
from labkit.quantization.weight_rounding.grids import RowGrid, mse_grid
from labkit.quantization.weight_rounding.prefix import run_in_chunks
from labkit.quantization.weight_rounding.problem import weight_rows
from labkit.quantization.weight_rounding.qubo_solvers import Bits
from labkit.studies.lab import Lab

__all__ = [
    "OneLayer",
    "first_layer",
    "integer_logits",
    "labelled",
    "layer_input",
    "local_gram",
    "mean_cross_entropy",
    "with_weights",
]

Rows = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OneLayer:
    """The layer ``name`` of a network and the grid of its weights.

    op : the layer itself.
    weights : float64 [O, K], its rows.
    grid : one scale for all of them, the one with the least squared error (section 5 of the paper).
    """

    name: str
    op: Layer
    weights: Rows
    grid: RowGrid

    @classmethod
    def of(cls, graph: FloatGraph, name: str, bits: int) -> OneLayer:
        """The layer ``name`` of ``graph`` with a grid of ``bits``."""
        op: Layer = graph[name].op  # type: ignore[assignment]
        rows = weight_rows(op)
        return cls(name, op, rows, mse_grid(rows, QuantSpec(bits, narrow=True, granularity=PerTensor())))

    @property
    def nearest(self) -> Rows:
        """The levels nearest to the weights: float64 [O, K]."""
        return self.grid.nearest(self.weights)

    def change(self, levels: Rows) -> Rows:
        """How far ``levels`` float64 [O, K] move the weights; the same shape."""
        return self.grid.values(levels) - self.weights

    def levels(self, bits: Bits, free: NDArray[np.intp]) -> Rows:
        """The levels float64 [O, K] that an answer to a problem over the whole layer stands for.

        Parameters
        ----------
        bits : bool [n], True for up
        free : integers [n], the flattened weights that they belong to; the others have no choice
        """
        down, up = self.grid.choices(self.weights)
        found = down.copy().reshape(-1)
        found[free[bits]] = up.reshape(-1)[free[bits]]
        return found.reshape(down.shape)

    def rounded(self, levels: Rows) -> RoundedLayer:
        """``levels`` float64 [O, K] with the layer's own bias, as `convert` takes them."""
        bias = np.zeros(len(self.weights), np.float32) if self.op.bias is None else self.op.bias
        return RoundedLayer(self.grid.tensor(levels, self.op.weight.shape), bias)


def first_layer(graph: FloatGraph) -> str:
    """The first layer of ``graph`` that has weights to round."""
    return layer_names(graph)[0]


def with_weights(graph: FloatGraph, rows: Mapping[str, Rows]) -> FloatGraph:
    """``graph`` with other weights in the layers that ``rows`` (float64 [O, K] by name) names; all else as it was."""
    nodes = []
    for node in graph:
        if node.name in rows:
            op: Layer = node.op  # type: ignore[assignment]
            node = replace(node, op=replace(op, weight=rows[node.name].reshape(op.weight.shape).astype(np.float32)))
        nodes.append(node)
    return FloatGraph(tuple(nodes), graph.outputs)


def integer_logits(
    lab: Lab, layers: Mapping[str, tuple[OneLayer, Rows]], images: int | None = None
) -> NDArray[np.float32]:
    """Logits float32 [N, classes] of the integer network, all layers at 8 bits but those given.

    Parameters
    ----------
    lab : the network
    layers : by name, a layer and its levels float64 [O, K]
    images : how many of the lab's test images; None for all
    """
    eight = lab.plan(8, 8)
    bits = {name: layer.grid.spec.bits for name, (layer, _) in layers.items()}
    plan = BitPlan({**eight.weights, **bits}, eight.activations)
    rounded = {name: layer.rounded(levels) for name, (layer, levels) in layers.items()}
    answers: NDArray[np.float32] = IntegerNet(convert(lab.graph, lab.calibration, plan, {}, rounded)).run(
        lab.x[:images]
    )
    return answers


def layer_input(graph: FloatGraph, name: str, images: NDArray[np.float32]) -> torch.Tensor:
    """What the layer ``name`` is given in the float network.

    Parameters
    ----------
    graph : the network
    name : of one of its nodes
    images : float32 [N, ...]

    Returns
    -------
    float32 [N, ...]
    """
    results: dict[str, torch.Tensor] = {}
    source = graph[name].inputs[0]
    for node in graph:
        if isinstance(node.op, float_ops.Input):
            results[node.name] = torch.from_numpy(np.array(images))
        else:
            results[node.name] = run_in_chunks(node, [results[one] for one in node.inputs])
        if node.name == source:
            break
    return results[source]


def local_gram(graph: FloatGraph, layer: OneLayer, images: NDArray[np.float32], samples: int = 32768) -> Gram:
    """The squared error of the output of ``layer`` as a quadratic form, without a change of its bias (equation 20).

    Parameters
    ----------
    graph : the float network, which gives the layer's input
    layer : of it
    images : float32 [N, ...]
    samples : windows to gather it from, about
    """
    inputs = layer_input(graph, layer.name, images)
    output = run_in_chunks(replace(graph[layer.name], activation=Activation.NONE), [inputs])
    return collect_gram(layer.op, inputs, output, samples, centred=False).symmetric(layer.weights)


def mean_cross_entropy(answers: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean cross-entropy, in nats, of logits ``answers`` float32 [N, classes] with ``labels`` int64 [N]."""
    exact = answers.astype(np.float64)
    exact -= exact.max(1, keepdims=True)
    picked = exact[np.arange(len(labels)), labels]
    return float((np.log(np.exp(exact).sum(1)) - picked).mean())


def labelled(data: DataSet, count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The images of ``data.calibration(count, seed)`` with their labels: float32 [N, 3, 32, 32] and int64 [N]."""
    chosen = np.random.default_rng(seed).choice(len(data.train_images), size=count, replace=False)
    return normalise(data.train_images[chosen]), data.train_labels[chosen]
