"""Answers before times: our own must be exact, and a peer's are counted where they are not.

Ours are compared with the reference tier, every tensor of the network, tolerance 0. A peer rounds by a rule of its own,
so its integers may rightly differ by 1 from ours in each layer, and such differences travel on. Whether its sums are
right is therefore asked layer by layer, of the peer's own inputs: there an exact sum, rounded in any way, is at most 1
from ours. A sum that saturated on its way is further off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.engine.node_by_node import run_nodes
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.kernels.kernel_set import REFERENCE, KernelSet
from labkit.net import IntegerNet

__all__ = ["PeerAnswer", "expected", "judge_peer", "last_integers", "wrong_answer"]

Results = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PeerAnswer:
    """How far a peer's integers are from the exact ones; shares are of 1.

    elements, differ, beyond_one : of the last integer tensor: how many there are, and the shares that are not ours and
        that are off by more than 1
    sums, wrong_sums : results of convolutions and linear layers, and the share that no rounding of the exact sum of the
        peer's own inputs explains
    worst_layer, worst_share : where that share is the largest; None and 0.0 where no sum is wrong
    """

    elements: int
    differ: float
    beyond_one: float
    sums: int
    wrong_sums: float
    worst_layer: str | None
    worst_share: float


def expected(graph: IntGraph, images: NDArray[np.float32]) -> Results:
    """Every node's result by the reference kernels for ``images`` float32 [N, ...] through ``graph``."""
    return run_nodes(graph, {graph.inputs[0]: images}, REFERENCE)


def wrong_answer(
    net: IntegerNet, exact: Results, images: NDArray[np.float32], batch: NDArray[np.float32], threads: int = 1
) -> str | None:
    """What ``net`` gets wrong, in words, or None.

    Parameters
    ----------
    net : with the kernels that are to be timed
    exact : `expected` of ``images``
    images : float32 [n, ...]; every tensor of them is compared
    batch : float32 [N, ...], the ``images`` over and over; of it the outputs are compared
    threads : that run the batch
    """
    for name, got in net.trace(images).items():
        if name in exact and (wrong := _first_difference(name, exact[name], got)):
            return wrong
    (output,) = net.graph.outputs
    times = -(-len(batch) // len(images))
    wanted = np.concatenate([exact[output]] * times)[: len(batch)]
    return _first_difference(f"{output}, batch {len(batch)}", wanted, net.run(batch, threads=threads))


def judge_peer(graph: IntGraph, exact: Results, images: NDArray[np.float32], trace: Results) -> PeerAnswer:
    """Compare a peer's integers with the exact ones.

    Parameters
    ----------
    graph : what the peer was built from
    exact : `expected` of ``images``
    images : float32 [n, ...]
    trace : the peer's integers by the name of each node, for the same ``images``
    """
    name = last_integers(graph)
    distance = np.abs(trace[name].astype(np.int32) - exact[name].astype(np.int32))
    shares, counts = _wrong_sums(graph, images, trace)
    total = sum(counts.values())
    worst = max(shares, key=lambda layer: shares[layer], default=None)
    if worst is not None and shares[worst] == 0.0:
        worst = None
    return PeerAnswer(
        distance.size,
        float(np.mean(distance > 0)),
        float(np.mean(distance > 1)),
        total,
        sum(shares[layer] * counts[layer] for layer in shares) / max(total, 1),
        worst,
        0.0 if worst is None else shares[worst],
    )


def last_integers(graph: IntGraph) -> str:
    """The name of the node whose integers the first output of ``graph`` is read from."""
    node = graph[graph.outputs[0]]
    return node.inputs[0] if isinstance(node.op, int_ops.Dequantize) else node.name


def _wrong_sums(
    graph: IntGraph, images: NDArray[np.float32], trace: Results
) -> tuple[dict[str, float], dict[str, int]]:
    """By layer: the share of sums that are off by more than 1, and how many there are.

    The reference kernels compute each node from the peer's own results: after each call its result is replaced by what
    the peer has there.
    """
    order = iter(graph)
    shares: dict[str, float] = {}
    counts: dict[str, int] = {}

    def following(function: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*arguments: Any, **more: Any) -> Any:
            node = next(order)  # each node is one call, in the order of the graph
            result = function(*arguments, **more)
            if node.name not in trace:
                return result
            if isinstance(node.op, int_ops.Conv2d | int_ops.Linear):
                distance = np.abs(np.asarray(result, np.int32) - trace[node.name].astype(np.int32))
                shares[node.name], counts[node.name] = float(np.mean(distance > 1)), distance.size
            return trace[node.name]

        return compute

    functions = {name: following(function) for name, function in REFERENCE.functions.items()}
    run_nodes(graph, {graph.inputs[0]: images}, KernelSet("a peer's own results", functions))
    return shares, counts


def _first_difference(name: str, wanted: NDArray[Any], got: NDArray[Any]) -> str | None:
    if wanted.shape != got.shape:
        return f"{name}: the shape should be {wanted.shape}, got {got.shape}"
    different = wanted != got
    if not np.any(different):
        return None
    where = tuple(int(i) for i in np.argwhere(different)[0])
    return f"{name}{list(where)} should be {wanted[where]}, got {got[where]} ({int(different.sum())} elements differ)"
