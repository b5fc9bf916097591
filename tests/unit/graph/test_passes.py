"""Passes on float graphs: the same result, a simpler graph, and no merge that would change a result."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from unit.graph.builders import NO_PADDING, float_conv, float_input, random_norm

from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.passes import (
    fold_batch_norm,
    fold_into,
    fuse_activations,
    remove_dead_nodes,
    remove_identities,
    simplify,
)

POOL = float_ops.MaxPool2d((2, 2), (2, 2), NO_PADDING, (1, 1), False)
RELU, RELU6 = float_ops.Relu(Activation.RELU), float_ops.Relu(Activation.RELU6)


def graph(*nodes: FloatNode, outputs: str | tuple[str, ...] = "", shape: tuple[int, ...] = (3, 5, 5)) -> FloatGraph:
    names = (outputs,) if isinstance(outputs, str) else outputs
    return FloatGraph((float_input(*shape), *nodes), names if names[0] else (nodes[-1].name,))


def outputs_of(made: FloatGraph, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    results = run_float(made, {"x": x})
    return [results[name] for name in made.outputs]


def same(before: FloatGraph, after: FloatGraph, tolerance: float = 1e-5, seed: int = 0) -> None:
    """Both give the same outputs, within ``tolerance`` of the largest, and these are not trivial."""
    x = np.random.default_rng(seed).normal(size=(4, *before["x"].op.shape)).astype(np.float32)  # type: ignore[union-attr]
    pairs = list(zip(outputs_of(before, x), outputs_of(after, x), strict=True))
    assert pairs
    for old, new in pairs:
        assert np.std(old) > 0.01
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * np.abs(old).max())


def conv(name: str, source: str, channels: int = 4, seed: int = 0, bias: bool = False, groups: int = 1) -> FloatNode:
    rng = np.random.default_rng(seed)
    inputs = 3 if source in ("x", "id0") else 4
    weight = rng.normal(size=(channels, inputs // groups, 3, 3)).astype(np.float32)
    return FloatNode(
        name, float_conv(weight, rng.normal(size=channels).astype(np.float32) if bias else None, groups), (source,)
    )


def kinds(made: FloatGraph) -> list[str]:
    return [f"{node.name}:{type(node.op).__name__}" for node in made]


# Batch norm


@pytest.mark.parametrize("seed", range(8))
def test_folding_batch_norm_keeps_the_result(seed: int) -> None:
    before = graph(
        conv("c1", "x", seed=seed, bias=seed % 2 == 0),
        FloatNode("bn1", random_norm(4, seed), ("c1",)),
        FloatNode("r1", RELU, ("bn1",)),
        conv("c2", "r1", seed=seed + 10, groups=4 if seed % 3 else 1),
        FloatNode("bn2", random_norm(4, seed + 20), ("c2",)),
        FloatNode("flat", float_ops.Flatten(), ("bn2",)),
        FloatNode(
            "fc", float_ops.Linear(np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32), None), ("flat",)
        ),
        FloatNode("bn3", random_norm(4, seed + 30), ("fc",)),
    )
    after = fold_batch_norm(before)
    assert kinds(after) == ["x:Input", "c1:Conv2d", "r1:Relu", "c2:Conv2d", "flat:Flatten", "fc:Linear"]
    assert [after[name].carries for name in ("c1", "c2", "fc")] == [("bn1",), ("bn2",), ("bn3",)]
    assert after.outputs == ("fc",)
    same(before, after, seed=seed)


def test_folded_parameters_are_rounded_once() -> None:
    """Equations 22 and 23 in fractions, but for the root."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    norm = random_norm(4)
    for old in (bias, None):
        folded, shifted = fold_into(weight, old, norm)
        assert folded.dtype == shifted.dtype == np.float32
        for c in range(4):
            gain = Fraction(float(norm.gamma[c])) / Fraction(
                float(np.sqrt(np.float64(norm.variance[c]) + norm.epsilon))
            )
            assert folded[c].tolist() == [np.float32(float(Fraction(float(w)) * gain)) for w in weight[c]]
            start = Fraction(float(old[c])) if old is not None else Fraction(0)
            wanted = Fraction(float(norm.beta[c])) + (start - Fraction(float(norm.mean[c]))) * gain
            assert shifted[c] == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("outputs", [("add",), ("bn", "c1")])
def test_a_batch_norm_after_a_shared_layer_stands_alone(outputs: tuple[str, ...]) -> None:
    before = graph(
        conv("c1", "x"),
        FloatNode("bn", random_norm(4), ("c1",)),
        FloatNode("add", float_ops.Add(), ("c1", "bn")),
        outputs=outputs,
    )
    after = fold_batch_norm(remove_dead_nodes(before))
    norm = after["bn"].op
    assert isinstance(norm, float_ops.Conv2d)
    assert (norm.weight.shape, norm.groups) == ((4, 1, 1, 1), 4)
    assert after["c1"].carries == ()
    assert np.array_equal(after["c1"].op.weight, before["c1"].op.weight)  # type: ignore[union-attr]
    same(before, after)


def test_a_batch_norm_after_something_else_stands_alone() -> None:
    before = graph(FloatNode("bn", random_norm(3), ("x",)), FloatNode("relu", RELU, ("bn",)))
    after = simplify(before)
    assert kinds(after) == ["x:Input", "bn:Conv2d"]
    assert after["bn"].activation is Activation.RELU
    same(before, after)


def test_two_batch_norms_in_a_row_fold_or_stand_but_give_the_same() -> None:
    before = graph(
        conv("c1", "x"), FloatNode("bn1", random_norm(4, 1), ("c1",)), FloatNode("bn2", random_norm(4, 2), ("bn1",))
    )
    after = fold_batch_norm(before)
    assert not any(isinstance(node.op, float_ops.BatchNorm2d) for node in after)
    same(before, after)


# Activations


@pytest.mark.parametrize("op", [RELU, RELU6])
@pytest.mark.parametrize("carrier", ["conv", "linear", "add", "mean"])
def test_an_activation_is_fused_into_its_only_source(op: float_ops.Relu, carrier: str) -> None:
    rng = np.random.default_rng(0)
    flat = FloatNode("flat", float_ops.Flatten(), ("x",))
    producers = {
        "conv": (conv("p", "x"),),
        "linear": (
            flat,
            FloatNode("p", float_ops.Linear(rng.normal(size=(6, 75)).astype(np.float32), None), ("flat",)),
        ),
        "add": (FloatNode("p", float_ops.Add(), ("x", "x")),),
        "mean": (FloatNode("p", float_ops.AveragePool2d((2, 2), (2, 2), NO_PADDING), ("x",)),),
    }
    before = graph(*producers[carrier], FloatNode("act", op, ("p",)))
    after = fuse_activations(before)
    assert (after["p"].activation, after["p"].carries, after.outputs) == (op.kind, ("act",), ("p",))
    same(before, after, tolerance=0)


@pytest.mark.parametrize(
    ("nodes", "outputs", "left"),
    [
        ((conv("c", "x"), FloatNode("r", RELU, ("c",)), FloatNode("a", float_ops.Add(), ("c", "r"))), "a", "r"),  # shared
        ((conv("c", "x"), FloatNode("r", RELU, ("c",))), ("r", "c"), "r"),  # the layer's own result leaves too
        ((FloatNode("r", RELU, ("x",)),), "r", "r"),  # an input requantizes nothing
        ((FloatNode("p", POOL, ("x",)), FloatNode("r", RELU, ("p",))), "r", "r"),  # a max-pool requantizes nothing
        ((conv("c", "x"), FloatNode("q", RELU6, ("c",)), FloatNode("r", RELU, ("q",))), "r", "r"),  # one is fused already
        ((replace(conv("c", "x"), activation=Activation.RELU6), FloatNode("r", RELU, ("c",))), "r", "r"),  # likewise
    ],
)  # fmt: skip
def test_an_activation_that_cannot_be_fused_stays(
    nodes: tuple[FloatNode, ...], outputs: str | tuple[str, ...], left: str
) -> None:
    before = graph(*nodes, outputs=outputs)
    after = fuse_activations(before)
    assert isinstance(after[left].op, float_ops.Relu)
    same(before, after, tolerance=0)


# Identities and dead nodes


def test_identities_vanish_and_keep_their_names() -> None:
    before = graph(
        FloatNode("id0", float_ops.Identity(), ("x",)),
        conv("c1", "id0"),
        FloatNode("drop1", float_ops.Identity(), ("c1",)),
        FloatNode("drop2", float_ops.Identity(), ("drop1",)),
        FloatNode("add", float_ops.Add(), ("drop2", "c1")),
    )
    after = remove_identities(before)
    assert kinds(after) == ["x:Input", "c1:Conv2d", "add:Add"]
    assert (after["x"].carries, after["c1"].carries) == (("id0",), ("drop1", "drop2"))
    assert after["add"].inputs == ("c1", "c1")
    same(before, after, tolerance=0)


def test_a_network_that_ends_in_an_identity_ends_before_it() -> None:
    before = graph(conv("c1", "x"), FloatNode("drop", float_ops.Identity(), ("c1",)))
    assert remove_identities(before).outputs == ("c1",)


def test_dead_nodes_vanish() -> None:
    before = graph(
        conv("c1", "x"),
        conv("unused", "x", seed=1),
        FloatNode("aux", RELU, ("unused",)),
        FloatNode("r", RELU, ("c1",)),
        outputs="r",
    )
    after = remove_dead_nodes(before)
    assert kinds(after) == ["x:Input", "c1:Conv2d", "r:Relu"]
    same(before, after, tolerance=0)


def test_an_unused_input_stays() -> None:
    nodes = (float_input(3), FloatNode("y", float_ops.Input((2,))))
    assert remove_dead_nodes(FloatGraph(nodes, ("x",))).inputs == ("x", "y")


def test_simplify_lets_an_activation_reach_its_layer_through_dropout_and_batch_norm() -> None:
    before = graph(
        conv("c1", "x"),
        FloatNode("drop", float_ops.Identity(), ("c1",)),
        FloatNode("bn", random_norm(4), ("drop",)),
        FloatNode("unused", RELU6, ("c1",)),  # else the layer would be shared
        FloatNode("r", RELU, ("bn",)),
        outputs="r",
    )
    after = simplify(before)
    assert kinds(after) == ["x:Input", "c1:Conv2d"]
    assert after["c1"].carries == ("drop", "bn", "r")
    assert kinds(before) == ["x:Input", "c1:Conv2d", "drop:Identity", "bn:BatchNorm2d", "unused:Relu", "r:Relu"]
    same(before, after)
