"""The bit plans that a card compares: each a name, a rule in words, and the rule itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from labkit.errors import ModelError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan

__all__ = ["PLANS", "PlanRule", "mixed"]

_FEW = 0.1  # share of the network's weights
_LOW, _HIGH = 4, 8


@dataclass(frozen=True)
class PlanRule:
    """How the plan ``name`` is made: the rule in ``words``, and ``make``, which takes a simplified `FloatGraph`."""

    name: str
    words: str
    make: Callable[[FloatGraph], BitPlan]


def mixed(graph: FloatGraph) -> BitPlan:
    """Weights of 8 bits where they cost little or matter much, of 4 bits elsewhere; activations of 8 bits.

    The first and the last layer of the simplified ``graph`` get 8 bits. Of the layers between, those with the fewest weights do,
    as long as together they hold at most a tenth of all weights of the network; equally large ones in running order.

    Raises
    ------
    ModelError
        The network has no layer with weights.
    """
    sizes = {n.name: n.op.weight.size for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)}
    if not sizes:
        raise ModelError("The network has no convolution and no linear layer, so no weights to give bits to.")
    names = list(sizes)
    high, left = {names[0], names[-1]}, _FEW * sum(sizes.values())
    for name in sorted(names[1:-1], key=lambda name: sizes[name]):
        left -= sizes[name]
        if left < 0:
            break
        high.add(name)
    return replace(
        BitPlan.uniform(graph, _HIGH, _HIGH), weights={name: _HIGH if name in high else _LOW for name in names}
    )


def _uniform(weights: int, activations: int) -> PlanRule:
    words = f"weights of {weights} bits, activations of {activations} bits"
    if activations < _HIGH:
        words += ", but 8 bits for the network's input and output"
    return PlanRule(f"W{weights}A{activations}", words, lambda graph: BitPlan.uniform(graph, weights, activations))


PLANS = (
    _uniform(8, 8),
    _uniform(4, 8),
    _uniform(4, 4),
    PlanRule(
        "mixed",
        "weights of 8 bits for the first and the last layer and, of the layers between, for those with the fewest weights, as "
        "long as together they hold at most a tenth of all weights; of 4 bits for the others; activations of 8 bits",
        mixed,
    ),
)
