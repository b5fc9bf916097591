"""The strongest combination of the parts, as one function: what ``method="best"`` does.

- Start: GPTQ on the asymmetric quadratic form. Then coordinate descent over all levels.
- Scale: the grid with the least squared error of the weights; three times refitted to the levels found, with descent
  after each.
- Levels: up to 3 bits the mirrored set, all 2**b of them. At 2 bits that is worth more than any search: four levels
  instead of three. From 4 bits on it gains little and would cost the engine its packed weights.
- Bias: in closed form, inside the loss.
- Ridge: 1 %; 50 % in layers with fewer samples than inputs, where G says nothing of most directions.
- Activations of up to 4 bits: ranges by output error. At 8 bits the ranges of the calibration are kept.

The constants were compared on the last 5,000 training images of CIFAR-10, with a LeNet and calibration images from the other
45,000, and with a ResNet-20 that had seen all 50,000 (by the divergence from the float network's answers, which is less
noisy than accuracy). No test image took part.
"""

from __future__ import annotations

from typing import Any

from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions

__all__ = ["BEST", "BEST_METHOD", "round_best"]

BEST_METHOD = "gptq+descent"
BEST = RoundingOptions(levels="mirrored", wide_up_to=3, refits=3, activation_ranges="omse", omse_up_to=4)


def round_best(
    graph: FloatGraph, calibration: Calibration, plan: BitPlan, batches: Any, seed: int = 0
) -> RoundedWeights:
    """`round_weights` with `BEST_METHOD` and `BEST`.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : a range for each tensor
    plan : bits and grids
    batches : about 1,024 calibration images, as `calibrate` takes them
    seed : of the samples
    """
    return round_weights(graph, calibration, plan, batches, BEST_METHOD, BEST, seed)
