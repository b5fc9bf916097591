"""A float network and its quantized twin, run side by side, node by node: what each layer is given and what it should put out.

The twin's tensors are rounded to their integer grids but stay float32 ("fake quantization", as
`labkit.quantization.simulate`). Only results that a later node still takes are kept, so that memory holds a few
tensors of all images and not the network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from labkit.errors import ModelError
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode, Tensor
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan, observed_names
from labkit.quantization.tensors import output_tensor
from labkit.quantization.weight_rounding.gram import Layer

__all__ = ["Prefix", "RangeChooser", "fake_quantize", "run_in_chunks"]

CHUNK = 128  # images that a node is computed for at a time

# (prefix, node, what the quantized twin computed for it) -> a range for it
RangeChooser = Callable[["Prefix", FloatNode, torch.Tensor], tuple[float, float]]


class Prefix:
    """The part of a network that has been quantized so far, on some images.

    graph : simplified FloatGraph.
    plan : bits.
    images : float32 [N, ...]; for several inputs tensors [N, ...] by name.
    calibration : a range for each tensor; where a ``choose_range`` is given, it holds the ranges chosen so far.
    floats, rounded : results of the float network and of its twin by node name, while a later node takes them.
    tensors : grid and scale by node name.

    Raises
    ------
    ModelError
        The images are not given by the names of the network's inputs.
    """

    def __init__(
        self,
        graph: FloatGraph,
        calibration: Calibration,
        plan: BitPlan,
        images: torch.Tensor | Mapping[str, torch.Tensor],
        choose_range: RangeChooser | None = None,
    ) -> None:
        given = dict(images) if isinstance(images, Mapping) else {graph.inputs[0]: images}
        if set(given) != set(graph.inputs):
            raise ModelError(
                f"Rounding runs the network on its inputs {', '.join(graph.inputs)}, got {', '.join(given)}. Hand in a dict of "
                f"tensors by these names."
            )
        self.graph, self.plan, self.calibration = graph, plan, calibration
        self.floats: dict[str, torch.Tensor] = {}
        self.rounded: dict[str, torch.Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.given = given
        self._choose_range = choose_range
        self._observed = frozenset(observed_names(graph))
        self._last_use = {name: node.name for node in graph for name in node.inputs}

    @property
    def images(self) -> torch.Tensor:
        """What the first input is given: float32 [N, ...]."""
        return self.given[self.graph.inputs[0]]

    def output(self, node: FloatNode) -> torch.Tensor:
        """What the float network's ``node`` puts out before its activation: float32 [N, ...]."""
        return run_in_chunks(replace(node, activation=Activation.NONE), [self.floats[name] for name in node.inputs])

    def target(self, node: FloatNode, output: torch.Tensor) -> torch.Tensor:
        """What the quantized ``node`` should put out, given its float ``output`` float32 [N, ...]; the same shape.

        Where its result is added to a tensor that is fixed by now, it should also make up for the error of that one.
        """
        consumers = self.graph.consumers(node.name)
        if len(consumers) != 1 or node.activation is not Activation.NONE or node.name in self.graph.outputs:
            return output
        (consumer,) = consumers
        if not isinstance(consumer.op, float_ops.Add) or consumer.inputs[0] == consumer.inputs[1]:
            return output
        other = next(name for name in consumer.inputs if name != node.name)
        if other not in self.rounded:
            return output
        return output + self.floats[other] - self.rounded[other]

    def step(
        self, node: FloatNode, quantized: Layer | float_ops.Embedding | None = None, output: torch.Tensor | None = None
    ) -> None:
        """Compute ``node`` in both networks, and drop what no later node takes.

        Parameters
        ----------
        node : the next one of the graph
        quantized : for a layer or an embedding, the same with the weights that its integers stand for, and the bias that goes
            with them
        output : float32 [N, ...], the result of `output` where it is at hand
        """
        if isinstance(node.op, float_ops.Input):
            value = self.floats[node.name] = self.given[node.name]
        else:
            self.floats[node.name] = (
                self._run(node, self.floats) if output is None else _activated(output, node.activation)
            )
            value = self._run(node if quantized is None else replace(node, op=quantized), self.rounded)
        if self._choose_range is not None and node.name in self._observed:
            ends = self._choose_range(self, node, value)
            ranges = {**self.calibration.ranges, node.name: ends}
            self.calibration = replace(self.calibration, ranges=ranges)
        inputs = [self.tensors[name] for name in node.inputs]
        self.tensors[node.name] = output_tensor(node, inputs, self.calibration, self.plan)
        self.rounded[node.name] = fake_quantize(value, self.tensors[node.name])
        for name in {*node.inputs, node.name}:
            if self._last_use.get(name, node.name) == node.name and name not in self.graph.outputs:
                del self.floats[name], self.rounded[name]

    def _run(self, node: FloatNode, results: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(node.op, float_ops.Constant):
            return run_node(node, []).expand(len(self.images), *node.op.values.shape)
        return run_in_chunks(node, [results[name] for name in node.inputs])


def run_in_chunks(node: FloatNode, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The result of ``node`` on ``inputs`` float32 [N, ...], some images at a time; float32 [N, ...]."""
    with torch.no_grad():
        parts = [
            run_node(node, [value[start : start + CHUNK] for value in inputs])
            for start in range(0, len(inputs[0]), CHUNK)
        ]
        return torch.cat(parts)


def fake_quantize(value: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """``value`` float32 [N, ...] rounded to the grid of ``tensor``; the same shape. An index stays as it is."""
    if tensor.is_index:
        return value
    spec, params = tensor.quantized
    scale, zero_point = float(params.scale), int(params.zero_point)
    return torch.round(value / scale).clamp_(spec.qmin - zero_point, spec.qmax - zero_point).mul_(scale)


def _activated(value: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.NONE:
        return value
    return value.clamp(0, 6) if activation is Activation.RELU6 else value.clamp(min=0)
