"""The factors of the lab's eqs. 4 to 6: what the integers of each layer are worth, derived and checked with numbers.

The lab multiplies: a tensor T becomes the integers n T. For one layer, with the layer's integer sum multiplied by n_Out,

    n_W W * n_In In * n_Out = n_W n_In n_Out Out                                                                  (4)

ReLU and max-pooling pass a positive factor on, so the input of the second layer carries the factor of the first one's output:

    conv1:  n_W1 n_In n_Out1                                                                                      (5)
    conv2:  n_W2 (n_W1 n_In n_Out1) n_Out2                                                              (6, corrected)

The report prints n_W2 n_In / (n_W1 n_Out1) n_Out2 for conv2: the right factor divided by (n_W1 n_Out1) squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, IntGraph

__all__ = ["Factors", "factors", "scaled_outputs"]


@dataclass(frozen=True)
class Factors:
    """The lab's factors of conv1 and conv2, read off an integer network.

    w1, into, out1 : n_W1, n_In and n_Out1
    w2, out2 : n_W2 and n_Out2
    """

    w1: float
    into: float
    out1: float
    w2: float
    out2: float

    @property
    def first(self) -> float:
        """The factor of conv1's output, eq. 5."""
        return self.w1 * self.into * self.out1

    @property
    def second(self) -> float:
        """The factor of conv2's output, eq. 6 corrected."""
        return self.w2 * self.first * self.out2

    @property
    def second_as_printed(self) -> float:
        """The factor of conv2's output that eq. 6 prints."""
        return self.w2 * self.into / (self.w1 * self.out1) * self.out2


def factors(net: IntGraph) -> Factors:
    """The factors of ``net``, an integer LeNet with one scale a tensor: n_W = 1 / S_w, n_In = 1 / S_x, n_Out = M."""
    one, two = net["conv1"], net["conv2"]
    assert isinstance(one.op, int_ops.Conv2d) and isinstance(two.op, int_ops.Conv2d)
    into, first, second = (float(t.quantized[1].scale) for t in (net.inputs_of(one)[0], one.output, two.output))
    w1, w2 = float(one.op.weight.params.scale), float(two.op.weight.params.scale)
    return Factors(1 / w1, 1 / into, w1 * into / first, 1 / w2, w2 * first / second)


def scaled_outputs(
    graph: FloatGraph, x: NDArray[np.float32], by: Factors, rounded: bool = False
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For conv1 and conv2 of the float LeNet ``graph``: the output with every factor in place, and the plain output.

    Parameters
    ----------
    graph : simplified FloatGraph
    x : float32 [N, 3, 32, 32]
    by : the factors, by which inputs, weights and sums are multiplied
    rounded : round inputs, weights and outputs to whole numbers on the way, and clamp outputs to [-128, 127], as the lab does

    Returns
    -------
    by layer, two float64 arrays [N, C, H, W]; without rounding the first is a multiple of the second
    """

    def whole(t: torch.Tensor) -> torch.Tensor:
        return t.round() if rounded else t

    weights = []
    for name in ("conv1", "conv2"):
        op = graph[name].op
        assert isinstance(op, float_ops.Conv2d) and op.bias is None
        weights.append(torch.from_numpy(op.weight.astype(np.float64)))
    plain = torch.from_numpy(x.astype(np.float64))
    scaled = whole(by.into * plain)
    found = {}
    for name, weight, n_w, n_out in zip(("conv1", "conv2"), weights, (by.w1, by.w2), (by.out1, by.out2), strict=True):
        plain = F.relu(F.conv2d(plain, weight))
        scaled = whole(F.relu(n_out * F.conv2d(scaled, whole(n_w * weight))))
        scaled = scaled.clamp(-128, 127) if rounded else scaled
        found[name] = (scaled.numpy(), plain.numpy())
        plain, scaled = F.max_pool2d(plain, 2), F.max_pool2d(scaled, 2)
    return found
