"""What LeNet answers after each step of the EE219 lab, simulated as in the lab and in the integer engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.graph.ir import FloatGraph, IntGraph
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import run_simulated, simulate_weights
from labkit.studies.ee219.bias import unscaled_bias, without_bias
from labkit.studies.lab import Lab, logits

__all__ = ["STEPS", "answers", "float_answers"]

_Classes = NDArray[np.int64]

_BATCH = 500

# step -> (label, the report's row, the step of the float network that it is compared with)
STEPS: dict[str, tuple[str, str | None, str | None]] = {
    "float": ("float network", "float", None),
    "weights": ("weights in 8 bits", "weights", "float"),
    "both": ("weights and activations in 8 bits", "weights and activations", "float"),
    "engine": ("the same in the integer engine", None, "float"),
    "bias float": ("float network with a bias in fc3", "float with bias", None),
    "bias removed": ("the same float network, its bias left out", None, "bias float"),
    "bias exact": ("8 bits, bias in float", None, "bias float"),
    "bias unscaled": ("8 bits, bias left unscaled", "bias unscaled", "bias float"),
    "bias unscaled engine": ("the same in the integer engine", None, "bias float"),
    "bias dropped": ("8 bits, bias left out", None, "bias float"),
    "bias quantized": ("8 bits, bias at S_w S_x", "bias quantized", "bias float"),
    "bias engine": ("the same in the integer engine", None, "bias float"),
}


def float_answers(lab: Lab, biased: Lab) -> dict[str, _Classes]:
    """The class of each test image, int64 [N], by step, for steps with float activations.

    ``lab`` is without biases, ``biased`` is the one with a bias. Nothing here depends on calibration.
    """
    bare = without_bias(biased.graph)
    weights = simulate_weights(lab.graph, convert(lab.graph, lab.calibration, _plan(lab)))
    graphs = {"float": lab.graph, "weights": weights, "bias float": biased.graph, "bias removed": bare}
    return {step: logits(graph, lab.x).argmax(1) for step, graph in graphs.items()}


def answers(lab: Lab, biased: Lab) -> dict[str, _Classes]:
    """The class of each test image, int64 [N], by step, for steps with activations in 8 bits.

    ``lab`` is without biases, ``biased`` is the one with a bias.
    """
    graph, with_bias, x = lab.graph, biased.graph, lab.x
    bare = without_bias(with_bias)
    net = convert(graph, lab.calibration, _plan(lab))
    bias_net, bare_net = (convert(one, biased.calibration, _plan(biased)) for one in (with_bias, bare))
    unscaled = unscaled_bias(with_bias, bias_net)
    unscaled_net = convert(with_bias, biased.calibration, _plan(biased), {}, unscaled)

    def simulated(rounded: FloatGraph, grids: IntGraph) -> _Classes:
        parts = (run_simulated(rounded, grids, x[i : i + _BATCH]) for i in range(0, len(x), _BATCH))
        return np.concatenate([part.argmax(1) for part in parts])

    def engine(one: IntGraph) -> _Classes:
        return np.asarray(IntegerNet(one).run(x).argmax(1))

    return {
        "both": simulated(simulate_weights(graph, net), net),
        "engine": engine(net),
        "bias exact": simulated(simulate_weights(with_bias, bias_net, "float"), bias_net),
        "bias unscaled": simulated(simulate_weights(with_bias, bias_net, "unscaled"), bias_net),
        "bias unscaled engine": engine(unscaled_net),
        "bias dropped": simulated(simulate_weights(bare, bare_net), bare_net),
        "bias quantized": simulated(simulate_weights(with_bias, bias_net, "quantized"), bias_net),
        "bias engine": engine(bias_net),
    }


def _plan(lab: Lab) -> BitPlan:
    """The lab's: 8 bits, symmetric, one scale a tensor."""
    return BitPlan.uniform(lab.graph, 8, 8, per_channel=False, activation_scheme="symmetric")
