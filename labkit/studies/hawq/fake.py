"""A network as frameworks simulate it: float32 arithmetic, values rounded to the grid at some places or at all of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.frontends.float_run import run_node
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.quantization.simulate import simulate_weights

__all__ = ["KINDS", "Kind", "branches", "fake_trace", "to_steps"]

Kind = Literal["all", "tensors", "sums", "layers"]
KINDS: dict[Kind, str] = {
    "all": "every tensor and bias rounded",
    "tensors": "every tensor rounded",
    "sums": "branches of sums in float",
    "layers": "only layer inputs rounded",
}


def branches(graph: FloatGraph) -> frozenset[str]:
    """The results of layers of ``graph`` that nothing but residual sums read."""
    layers = (node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear))
    return frozenset(
        name
        for name in layers
        if (readers := graph.consumers(name)) and all(isinstance(node.op, float_ops.Add) for node in readers)
    )


def fake_trace(graph: FloatGraph, net: IntGraph, x: NDArray[np.float32], kind: Kind) -> dict[str, NDArray[np.float32]]:
    """Every node's real values in simulated quantization.

    Parameters
    ----------
    graph : simplified FloatGraph
    net : the IntGraph made from it, which gives weights and grids
    x : float32 [N, ...]
    kind : "all" rounds every result, and biases as ``net`` does. The others leave biases in float: "tensors" rounds every
        result; "sums" leaves those of `branches` in float, so that a residual sum rounds once what integers round twice;
        "layers" rounds what convolutions and linear layers read and nothing else, so that shortcuts, sums and pooling stay in
        float

    Returns
    -------
    float32 arrays [N, ...] by name, rounded or not as ``kind`` says
    """
    left = branches(graph) if kind == "sums" else frozenset()
    results: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for node in simulate_weights(graph, net, "quantized" if kind == "all" else "float"):
            if isinstance(node.op, float_ops.Input):
                value = torch.from_numpy(np.ascontiguousarray(x, np.float32))
            else:
                reads = node.inputs
                inputs = [results[name] for name in reads]
                if kind == "layers" and isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
                    inputs = [_on_grid(net, name, value) for name, value in zip(reads, inputs, strict=True)]
                value = run_node(node, inputs)
            is_left = kind == "layers" or node.name in left
            results[node.name] = value if is_left else _on_grid(net, node.name, value)
    return {name: value.numpy() for name, value in results.items()}


def to_steps(net: IntGraph, name: str, values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Real ``values`` float32 [N, ...] of the node ``name`` as integers of its grid in ``net``, int32 [N, ...].

    The quotient by S is taken in float32, and ties go to even (eq. 2).
    """
    spec, params = net[name].output.quantized
    quotients = np.rint(values / np.float32(params.scale)).astype(np.int64)
    return np.asarray(np.clip(quotients + int(params.zero_point), spec.qmin, spec.qmax), np.int32)


def _on_grid(net: IntGraph, name: str, value: torch.Tensor) -> torch.Tensor:
    spec, params = net[name].output.quantized
    zero_point = int(params.zero_point)
    q = torch.round(value / float(params.scale)).clamp_(spec.qmin - zero_point, spec.qmax - zero_point)
    return q.mul_(float(params.scale))
