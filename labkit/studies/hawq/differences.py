"""How far a simulation is from the engine, tensor by tensor, summed up over batches of images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from labkit.graph.ir import FloatGraph
from labkit.net import IntegerNet
from labkit.studies.hawq.fake import Kind, fake_trace, to_steps

__all__ = ["Depth", "compare"]

_BATCH = 50


@dataclass
class Depth:
    """How far simulated quantization is from the engine, summed up batch by batch.

    squared, energy : by node, the sums of squared differences and of squared deployed values; both in steps, so that their
        quotient is that of real values
    differing, elements, beyond, largest : by node, elements that differ, all, those that differ by more than one step, and the
        largest difference in steps
    flipped : share of images whose class differs
    """

    squared: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    energy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    differing: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    elements: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    largest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    beyond: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    flipped: float = 0.0

    def normalised(self, name: str) -> float:
        """||simulated - deployed|| / ||deployed|| of the node ``name``."""
        return float(np.sqrt(self.squared[name] / self.energy[name])) if self.energy[name] else 0.0

    def share(self, name: str) -> float:
        """Differing elements of the node ``name``, per cent."""
        return 100 * self.differing[name] / self.elements[name]


def compare(graph: FloatGraph, net: IntegerNet, x: NDArray[np.float32], kinds: tuple[Kind, ...]) -> dict[Kind, Depth]:
    """``net``, made from the simplified ``graph``, against its simulations of ``kinds`` on the images ``x`` float32 [N, ...].

    Both are compared on the grid of each tensor: what the simulation leaves in float is rounded for that, not on the way.
    """
    found: dict[Kind, Depth] = {kind: Depth() for kind in kinds}
    last = graph.outputs[0]
    for start in range(0, len(x), _BATCH):
        part = x[start : start + _BATCH]
        deployed = net.trace(part)
        for kind, depth in found.items():
            fake = fake_trace(graph, net.graph, part, kind)
            for node in graph:
                engine = deployed[node.name].astype(np.int32)
                simulated = to_steps(net.graph, node.name, fake[node.name])
                difference = (simulated - engine).astype(np.float64)
                real = engine - float(net.graph[node.name].output.quantized[1].zero_point)
                depth.squared[node.name] += float(np.square(difference).sum())
                depth.energy[node.name] += float(np.square(real).sum())
                depth.differing[node.name] += int(np.count_nonzero(difference))
                depth.elements[node.name] += engine.size
                depth.beyond[node.name] += int(np.sum(np.abs(difference) > 1))
                depth.largest[node.name] = max(depth.largest[node.name], int(np.abs(difference).max()))
                if node.name == last:
                    depth.flipped += float(np.sum(simulated.argmax(1) != engine.argmax(1))) / len(x)
    return found
