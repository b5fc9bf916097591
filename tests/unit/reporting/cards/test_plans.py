"""The plans that a card compares."""

from __future__ import annotations

import pytest
from torch import nn
from unit.quantization.nets import branches

from labkit.errors import ModelError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import build
from labkit.quantization.plan import tensor_names
from labkit.reporting.cards.plans import PLANS, mixed


def graph_of(module: nn.Module, *shape: int) -> FloatGraph:
    return simplify(from_torch(module.eval(), shape))


def chain(*widths: int) -> FloatGraph:
    """1x1 convolutions of 1 x widths[0], widths[0] x widths[1], ... weights."""
    pairs = zip((1, *widths), widths, strict=False)
    return graph_of(nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in pairs)), 1, 2, 2)


def test_names_and_bits() -> None:
    graph = graph_of(build("lenet"), 3, 32, 32)
    made = {plan.name: plan.make(graph) for plan in PLANS}
    assert list(made) == ["W8A8", "W4A8", "W4A4", "mixed"]
    for name, plan in made.items():
        if name != "mixed":
            assert set(plan.weights.values()) == {int(name[1])}
            bits = int(name[3])
            assert plan.activations == {t: 8 if t in ("x", "fc3") else bits for t in tensor_names(graph)}
    assert "8 bits for the network's input and output" in PLANS[2].words
    assert all(plan.words for plan in PLANS)


def test_mixed_plan_of_lenet() -> None:
    plan = mixed(graph_of(build("lenet"), 3, 32, 32))
    assert plan.weights == {"conv1": 8, "conv2": 8, "fc1": 4, "fc2": 8, "fc3": 8}  # 3,456 + 16,384 of 316,292
    assert set(plan.activations.values()) == {8}


@pytest.mark.parametrize(
    ("widths", "high"),
    [
        ((5,), [0]),  # the first is the last
        ((5, 7), [0, 1]),
        # 4, then 16, 16, 256, 64, 4 weights: a tenth is 36, for which 16 + 16 fit and 64 does not
        ((4, 4, 4, 64, 1, 4), [0, 1, 2, 5]),
        ((1, 1, 1, 8, 1), [0, 1, 4]),  # 1, 1, 1, 8, 8 weights: a tenth of 19 is one layer of one; the earlier one
        ((40, 10, 10, 40), [0, 3]),  # 40, 400, 100, 400: a tenth is 94
    ],
)
def test_mixed_rule(widths: tuple[int, ...], high: list[int]) -> None:
    graph = chain(*widths)
    plan = mixed(graph)
    assert [at for at, bits in enumerate(plan.weights.values()) if bits == 8] == high
    assert set(plan.weights.values()) <= {4, 8}


def test_mixed_rule_holds_at_most_a_tenth() -> None:
    graph = graph_of(branches(), 3, 8, 8)
    plan = mixed(graph)
    sizes = {n.name: n.op.weight.size for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)}
    between = list(sizes)[1:-1]
    high = [name for name in between if plan.weights[name] == 8]
    low = [name for name in between if plan.weights[name] == 4]
    assert sum(sizes[name] for name in high) <= 0.1 * sum(sizes.values())
    assert not low or min(sizes[name] for name in low) >= max((sizes[name] for name in high), default=0)
    assert [plan.weights[name] for name in sizes if name not in between] == [8, 8]


def test_no_weights_no_plan() -> None:
    with pytest.raises(ModelError, match="no convolution and no linear layer"):
        mixed(graph_of(nn.Sequential(nn.ReLU()), 1, 2, 2))
