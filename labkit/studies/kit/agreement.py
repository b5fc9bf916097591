"""Does a fine-tuned network compute what its integers compute? Node by node, and what explains each difference.

Every node is given the integers that the engine gave it. The real result v, in steps of the output, is known to float64. The
engine rounds e, with a multiplier off by at most 2**-31 of itself; the network in float32 rounds f, whose error grows with the
number of terms. They can differ only where a tie k + 1/2 lies between e and f, hence no farther from v than the larger of the
two errors. What lies farther away is unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.frontends.float_run import run_node
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatNode, IntGraph
from labkit.quantization.qat.result import FineTuned
from labkit.studies.hawq.ties import centred, exact_sums, real_values

__all__ = ["Agreement", "agreement"]

_UNIT = 2.0**-24  # float32's relative rounding error
_MULTIPLIER = 2.0**-31  # eq. 12
_ROUNDINGS = 12  # of both factors, the scale, the bias, their sum, the quotient by the step, twice over
Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """A fine-tuned network against its integers.

    elements : compared, of all nodes.
    differing : of them.
    largest : difference in steps of the node's grid.
    unexplained : differing elements that lie beyond the bound of any tie.
    classes : share of the images that the two, each running by itself, class differently.
    """

    elements: int
    differing: int
    largest: int
    unexplained: int
    classes: float


def agreement(found: FineTuned, x: NDArray[np.float32]) -> Agreement:
    """Compare the trained network of ``found`` with its integers on ``x`` float32 [N, ...]."""
    net = found.to_net()
    trace, graph = net.trace(x), net.graph
    elements = differing = largest = unexplained = 0
    for node in found.graph:
        inputs = [x] if not node.inputs else [real_values(graph, name, trace[name]) for name in node.inputs]
        with torch.no_grad():
            ours = found.trained.node_output(node, [torch.from_numpy(one) for one in inputs]).numpy()
        _, params = graph[node.name].output.quantized
        steps = np.rint(ours / np.float32(params.scale)).astype(np.int64) + int(params.zero_point)
        gap = np.abs(steps - trace[node.name].astype(np.int64))
        elements += gap.size
        differing += int((gap > 0).sum())
        largest = max(largest, int(gap.max()))
        if gap.any():
            unexplained += _unexplained(node, graph, trace, gap > 0)
    with torch.no_grad():
        simulated = found.trained(torch.from_numpy(x)).numpy().argmax(1)
    classes = float((simulated != net.run(x).argmax(1)).mean())
    return Agreement(elements, differing, largest, unexplained, classes)


def _unexplained(
    node: FloatNode, graph: IntGraph, trace: dict[str, NDArray[np.generic]], differs: NDArray[np.bool_]
) -> int:
    exact = _exact(node, graph, trace)
    if exact is None:
        return int(differs.sum())
    value, bound = (one[differs] for one in exact)
    distance = np.abs(value - np.floor(value) - 0.5)
    return int((distance > bound).sum())


def _exact(node: FloatNode, graph: IntGraph, trace: dict[str, NDArray[np.generic]]) -> tuple[Reals, Reals] | None:
    """The real result in steps of the output, and how far from a tie it may be; None where nothing may differ."""
    integer = graph[node.name]
    op, step = integer.op, float(integer.output.quantized[1].scale)
    tensors = graph.inputs_of(integer)
    inputs = [centred(graph, name, trace[name]) for name in node.inputs]
    scales = [float(tensor.quantized[1].scale) for tensor in tensors]
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        layer = node.op
        assert isinstance(layer, float_ops.Conv2d | float_ops.Linear)
        params = op.weight.params
        shape = [-1] + [1] * (op.weight.values.ndim - 1)
        levels = op.weight.values.astype(np.float64) - params.zero_point.astype(np.float64).reshape(
            shape if params.zero_point.ndim else []
        )
        ratio = np.broadcast_to(params.scale.astype(np.float64) * scales[0] / step, (len(levels),))
        ratio = ratio.reshape(-1, 1, 1) if isinstance(op, int_ops.Conv2d) else ratio
        bias = op.bias.astype(np.float64).reshape(ratio.shape)
        value = (exact_sums(layer, inputs[0], levels) + bias) * ratio
        size = (exact_sums(layer, np.abs(inputs[0]), np.abs(levels)) + np.abs(bias)) * ratio
        return value, np.maximum(_MULTIPLIER, (int(np.prod(levels.shape[1:])) + _ROUNDINGS) * _UNIT) * size
    if isinstance(op, int_ops.Add):
        parts = [one * scale / step for one, scale in zip(inputs, scales, strict=True)]
        size = np.abs(parts[0]) + np.abs(parts[1])
        of_integers = (np.abs(inputs[0]) + np.abs(inputs[1])) * 0.5 * 2.0**-op.shift  # eq. 19
        return parts[0] + parts[1], np.maximum(of_integers, _ROUNDINGS * _UNIT * size)
    if isinstance(op, int_ops.AveragePool2d | int_ops.AdaptiveAveragePool2d):
        real = inputs[0] * scales[0] / step
        value, size = (run_node(node, [torch.from_numpy(one)]).numpy() for one in (real, np.abs(real)))
        return value, (int(np.prod(inputs[0].shape[2:])) + _ROUNDINGS) * _UNIT * size
    return None
