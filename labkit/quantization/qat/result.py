"""`FineTuned`: what fine-tuning ends with, as a module and as an integer network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration
from labkit.quantization.convert import convert, quantize_weight
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.network import Phase, TrainableNet
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.parts import submodule
from labkit.quantization.rounded import RoundedLayer

__all__ = ["Epoch", "FineTuned", "finished"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    loss : mean of what was minimised.
    accuracy : per cent of the augmented training images that the network got right as it went.
    seconds : it took.
    """

    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned network.

    module : a copy of the given one with the new weights, in evaluation mode; without rounding it is an ordinary float network.
    graph : the same, simplified.
    calibration : the ranges of activations as they were learned.
    plan : bits and grids.
    rounded : by layer, the integers of weights whose scales were learned; other layers are rounded by ``convert``.
    options : of the training.
    history : an entry an epoch.
    trained : the network with fake quantization, as it was trained.
    """

    module: nn.Module
    graph: FloatGraph
    calibration: Calibration
    plan: BitPlan
    rounded: Mapping[str, RoundedLayer]
    options: FineTuning
    history: tuple[Epoch, ...]
    trained: TrainableNet

    def to_net(self, **notes: Any) -> IntegerNet:
        """The integer network, with ``notes`` (plain JSON values) on how it came about.

        Raises
        ------
        LabkitError
            As `convert`.
        """
        kept = {
            "rounding": "fine-tuning",
            "source": type(self.module).__name__,
            "parameters_sha256": parameters_digest(self.module),
            "fine_tuning": self.options.as_dict(),
        }
        return IntegerNet(convert(self.graph, self.calibration, self.plan, {**kept, **notes}, self.rounded))


def finished(net: TrainableNet, module: nn.Module, calibration: Calibration, history: tuple[Epoch, ...]) -> FineTuned:
    """What ``net`` has become.

    Parameters
    ----------
    net : after training; it is left in evaluation mode
    module : the one that it was made from; it is not changed
    calibration : of the network before training, whose statistics are kept
    history : of the training
    """
    net.phase = Phase()  # everything rounded, batch norms folded, ranges fixed
    net.eval()
    tuned = copy.deepcopy(module).eval()
    _write_back(net, tuned)
    shape = net.graph[net.graph.inputs[0]].op.shape  # type: ignore[union-attr]
    graph = simplify(from_torch(tuned, shape))
    ranges = {**calibration.ranges, **net.ranges()}
    settled = replace(
        calibration, ranges=ranges, method="fine-tuning", options={"activation_scales": net.options.activation_scales}
    )
    rounded = {}
    for node in graph:
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            continue
        layer, learned = net.layer(node.name), net.has_learned_scale(node.name)
        if not learned and (layer.bias is None or node.op.bias is not None):
            continue  # all follows from the module; else it has no place for the bias that was trained
        weight, bias = (None if one is None else one.detach().numpy().copy() for one in layer.folded())
        assert weight is not None
        spec = net.plan.weight_spec(node.name)
        integers = net.weight_tensor(node.name, weight) if learned else quantize_weight(node.name, weight, spec)
        rounded[node.name] = RoundedLayer(integers, np.zeros(len(weight), np.float32) if bias is None else bias)
    return FineTuned(tuned, graph, settled, net.plan, rounded, net.options, history, net)


def _write_back(net: TrainableNet, module: nn.Module) -> None:
    """Put the parameters of ``net`` into ``module``, a copy of what it was made from."""
    with torch.no_grad():
        for node in net.graph:
            if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear) or not net.is_trained(node.name):
                continue
            layer = net.layer(node.name)
            part = submodule(module, node.name)
            part.weight.copy_(layer.weight.reshape(part.weight.shape))  # a sequence is an image of height 1
            if part.bias is not None:
                part.bias.copy_(layer.bias)
            if layer.norm:
                norm = submodule(module, layer.norm)
                for theirs, ours in (
                    (norm.weight, layer.gain),
                    (norm.bias, layer.shift),
                    (norm.running_mean, layer.mean),
                    (norm.running_var, layer.variance),
                ):
                    theirs.copy_(ours)
