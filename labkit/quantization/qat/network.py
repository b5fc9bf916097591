"""`TrainableNet`: a network that computes with rounded numbers, as the integer engine will, and can be trained.

Its nodes are those of the simplified graph, so that every tensor is rounded exactly where the engine rounds it: branches before
an addition, the sum, pools, the input and the output. Batch norms are parameters of the layer before them and are folded into its
weights before these are rounded (eqs. 22 and 23), because the engine has no other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.arithmetic.affine import QTensor, params_from_range
from labkit.arithmetic.affine import quantize as to_integer
from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.plan import BitPlan, scale_owner, tensor_names
from labkit.quantization.qat.fake_quantize import Levels, fake_quantize, round_through, scale_gradient
from labkit.quantization.qat.layer import LEAST_FACTOR, TrainableLayer, normalised, trainable_layer
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.weights import integer_weight, rounded_weight
from labkit.quantization.weight_rounding.adaround_images import apply_layer
from labkit.quantization.weight_rounding.grids import RowGrid

__all__ = ["Phase", "TrainableNet"]

_FLOOR = 1e-8  # a learned scale never falls below


@dataclass(frozen=True)
class Phase:
    """What is switched on at a step of training.

    quantize_activations : else they are observed only.
    live_norms : batch norms normalise by the statistics of the batch.
    move_ranges : moving averages take in the batch.
    """

    quantize_activations: bool = True
    live_norms: bool = False
    move_ranges: bool = False


class TrainableNet(nn.Module):
    """The network of ``graph`` with rounded weights and activations.

    Parameters
    ----------
    raw : as `frontends.torch_fx.from_torch` gives it, batch norms in place
    graph : the same, simplified
    plan : bits and grids
    ranges : (low, high) in real units by tensor: where activation grids begin
    grids : by layer, the grid that its weights begin with; used with learned scales
    options : which scales are learned, and how
    """

    def __init__(
        self,
        raw: FloatGraph,
        graph: FloatGraph,
        plan: BitPlan,
        ranges: Mapping[str, tuple[float, float]],
        grids: Mapping[str, RowGrid],
        options: FineTuning,
    ) -> None:
        super().__init__()
        self.graph, self.plan, self.options, self.grids = graph, plan, options, dict(grids)
        self.layers, self.weight_scales, self.activation_scales = (
            nn.ModuleDict(),
            nn.ParameterDict(),
            nn.ParameterDict(),
        )
        self.phase = Phase()
        self._keys = {node.name: f"n{index}" for index, node in enumerate(graph)}  # names may hold dots, keys may not
        for node in graph:
            if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
                layer = trainable_layer(raw, node)
                self.layers[self._keys[node.name]] = layer
                if options.weight_scales == "learned" and not plan.weight_spec(node.name).is_binary:
                    start = torch.from_numpy(grids[node.name].params.scale.reshape(-1).copy())
                    self.weight_scales[self._keys[node.name]] = nn.Parameter(start)
        self._rounded, self._ranged = frozenset(tensor_names(graph)), tuple(ranges)
        for name, (low, high) in ranges.items():
            spec = plan.activation_spec(name)
            params = params_from_range(low, high, spec)
            key = self._keys[name]
            self.register_buffer(f"zero_point_{key}", torch.tensor(int(params.zero_point), dtype=torch.int64))
            self.register_buffer(f"ends_{key}", torch.tensor([low, high], dtype=torch.float64))
            if self.learns(name):
                self.activation_scales[key] = nn.Parameter(torch.from_numpy(params.scale.copy()))

    def learns(self, name: str) -> bool:
        """Whether the scale of the activation ``name`` is a parameter."""
        if self.options.activation_scales == "learned":
            return True
        return self.options.activation_scales == "pact" and _kind(self.graph[name]) is not Activation.NONE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, classes] of the images ``x`` float32 [N, ...]."""
        found: dict[str, torch.Tensor] = {}
        for node in self.graph:
            inputs = [x] if isinstance(node.op, float_ops.Input) else [found[name] for name in node.inputs]
            found[node.name] = self.node_output(node, inputs)
        return found[self.graph.outputs[0]]

    def node_output(self, node: FloatNode, inputs: list[torch.Tensor]) -> torch.Tensor:
        """What one ``node`` of the graph makes of its ``inputs``, float32 [N, ...], rounded to its own grid: float32 [N, ...].

        An input node is given the images.
        """
        if isinstance(node.op, float_ops.Input):
            value = inputs[0]
        elif isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            value = self._layer_output(node, inputs[0])
        else:
            value = run_node(replace(node, activation=Activation.NONE), inputs)
        return self._activation(node, value) if node.name in self._rounded else value

    def _layer_output(self, node: FloatNode, x: torch.Tensor) -> torch.Tensor:
        key = self._keys[node.name]
        layer = self.layer(node.name)
        weight, bias = layer.folded()
        scale = self.weight_scales[key] if self.has_learned_scale(node.name) else None
        rounded, step = rounded_weight(weight, scale, self.plan.weight_spec(node.name), self.grids.get(node.name))
        live = self.phase.live_norms and layer.epsilon is not None
        if bias is not None and self.phase.quantize_activations and not live:
            unit = step.double() * self._input_scale(node).double()
            bias = (round_through(bias.double() / unit) * unit).float()  # what an int32 at this scale can say (eq. 8)
        reduced = self.training and self.options.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
            value = apply_layer(layer.op, x, rounded, None if live else bias).float()
        return normalised(layer, value) if live else value

    def _input_scale(self, node: FloatNode) -> torch.Tensor:
        """The scale of what the layer ``node`` takes, without a gradient."""
        owner = scale_owner(self.graph, node.inputs[0])
        if owner not in self._ranged:  # a softmax: its largest integer stands for almost 1
            return torch.tensor(1 / (self.plan.activation_spec(owner).qmax + 1))
        return self.activation_grid(owner)[0].detach()

    def _activation(self, node: FloatNode, value: torch.Tensor) -> torch.Tensor:
        name, key = node.name, self._keys[node.name]
        if name not in self._ranged:  # a softmax, whose grid is known
            return value
        activation = _kind(node)
        if self.phase.move_ranges and not self.learns(name):
            self._observe(key, _activated(value.detach(), activation))
        if not self.phase.quantize_activations:
            return _activated(value, activation)
        scale, levels = self.activation_grid(name)
        if activation is Activation.RELU6:
            value = value.clamp(max=6.0)  # the cap does not move with the scale, so what it cuts off must not either
        if scale.requires_grad:
            most = self.plan.activation_spec(name).qmax
            pact = self.options.activation_scales == "pact"  # its parameter is the end itself, most * scale
            scale = scale_gradient(scale, 1 / most**2 if pact else 1 / float(np.sqrt(value[0].numel() * most)))
        return fake_quantize(value, scale, levels)

    def activation_grid(self, name: str) -> tuple[torch.Tensor, Levels]:
        """The scale of the activation ``name``, float32 scalar, and its levels, the node's ReLU being part of them."""
        key, node, spec = self._keys[name], self.graph[name], self.plan.activation_spec(name)
        low, high = self.ends(name)
        params = params_from_range(low, high, spec)
        zero = int(params.zero_point)
        scale = self.activation_scales[key] if self.learns(name) else torch.from_numpy(params.scale.copy())
        activation = _kind(node)
        least = spec.qmin if activation is Activation.NONE else max(zero, spec.qmin)
        most = int(to_integer(6.0, params, spec)) if activation is Activation.RELU6 else spec.qmax
        return scale, Levels(least - zero, most - zero, self.options.activation_scales == "learned")

    def ends(self, name: str) -> tuple[float, float]:
        """The range of the activation ``name`` as it is now: what `params_from_range` makes scale and zero point of."""
        key, spec = self._keys[name], self.plan.activation_spec(name)
        if not self.learns(name):
            low, high = (float(end) for end in getattr(self, f"ends_{key}"))
            return low, high
        scale, zero = float(self.activation_scales[key].detach()), int(getattr(self, f"zero_point_{key}"))
        return (spec.qmin - zero) * scale, (spec.qmax - zero) * scale

    def ranges(self) -> dict[str, tuple[float, float]]:
        """`ends` of every tensor that has a range of its own."""
        return {name: self.ends(name) for name in self._ranged}

    def layer(self, name: str) -> TrainableLayer:
        """The parameters of the layer ``name``: weight, bias, and gain, shift, mean and variance of the batch norm ``norm``."""
        found = self.layers[self._keys[name]]
        assert isinstance(found, TrainableLayer)
        return found

    def has_learned_scale(self, name: str) -> bool:
        """Whether the weights of the layer ``name`` have a scale that is a parameter."""
        return self._keys[name] in self.weight_scales

    def is_trained(self, name: str) -> bool:
        """Whether the layer ``name`` has parameters that training moves; a batch norm that stands alone has none."""
        return bool(self.layer(name).weight.requires_grad)

    def set_folded(self, name: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Let the layer ``name`` have this ``weight`` float32 [O, ...] and ``bias`` float32 [O] after folding.

        Channels whose batch norm has no gain stay as they are.

        A layer that had neither bias nor batch norm gets a bias: to the engine it costs nothing.
        """
        layer = self.layer(name)
        with torch.no_grad():
            factor = layer.factor()
            if factor is None:
                layer.weight.copy_(weight)
                if layer.bias is None:
                    layer.bias = nn.Parameter(torch.zeros_like(bias))
                layer.bias.copy_(bias)
                return
            usable = factor.abs() > LEAST_FACTOR
            safe = torch.where(usable, factor, torch.ones_like(factor))
            shape = [-1] + [1] * (weight.ndim - 1)
            layer.weight.copy_(torch.where(usable.reshape(shape), weight / safe.reshape(shape), layer.weight))
            before = 0.0 if layer.bias is None else layer.bias
            layer.shift.copy_(torch.where(usable, bias - (before - layer.mean) * factor, layer.shift))

    def weight_tensor(self, name: str, weight: NDArray[np.float32]) -> QTensor:
        """The integers of the layer ``name`` whose folded weight is ``weight`` float32 [O, ...], on its learned grid."""
        scale = self.weight_scales[self._keys[name]].detach().numpy()
        return integer_weight(weight, scale, self.grids[name])

    def is_finite(self) -> bool:
        """Whether every learned scale is a number still."""
        scales = (*self.weight_scales.values(), *self.activation_scales.values())
        return all(bool(torch.isfinite(scale).all()) for scale in scales)

    def keep_in_bounds(self) -> None:
        """Put learned scales that a step has made too small or negative back to the smallest that is allowed."""
        with torch.no_grad():
            for scale in (*self.weight_scales.values(), *self.activation_scales.values()):
                scale.clamp_(min=_FLOOR)

    def _observe(self, key: str, value: torch.Tensor) -> None:
        ends = getattr(self, f"ends_{key}")
        seen = torch.stack(torch.aminmax(value)).double()
        if not bool(torch.isfinite(seen).all()):
            return  # the loss of this step is no number either, and says so
        kept = self.options.ema_momentum
        ends.mul_(kept).add_(seen, alpha=1 - kept)


def _kind(node: FloatNode) -> Activation:
    """The ReLU that ``node`` is, or that is part of it."""
    return node.op.kind if isinstance(node.op, float_ops.Relu) else node.activation


def _activated(value: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.NONE:
        return value
    return F.relu(value) if activation is Activation.RELU else F.relu6(value)
