"""Which tensors have 16 bits, and where a Rescale stands between 16 bits and 8."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.passes import narrow_products, simplify
from labkit.graph.widths import scale_owner, wide_names
from labkit.quantization.plan import BitPlan
from labkit.quantization.plan import wide_names as known_to_plans

D, T = 4, 5
rng = np.random.default_rng(0)
RESCALE, GELU, ADD = float_ops.Rescale(), float_ops.Gelu(), float_ops.Add()
POOL = float_ops.AveragePool2d((1, T), (1, T), ((0, 0), (0, 0)))


def linear() -> float_ops.Conv2d:
    weight = rng.normal(size=(D, D, 1, 1)).astype(np.float32)
    return float_ops.Conv2d(weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)


def norm() -> float_ops.LayerNorm:
    return float_ops.LayerNorm(np.ones(D, np.float32), np.zeros(D, np.float32), 1e-5)


def graph(*nodes: tuple[str, float_ops.FloatOp, str], outputs: str = "") -> FloatGraph:
    """Nodes (name, operation, inputs apart by blanks) behind a real input x (D, T)."""
    made = [FloatNode("x", float_ops.Input((D, T)))]
    made += [FloatNode(name, op, tuple(inputs.split())) for name, op, inputs in nodes]
    return FloatGraph(tuple(made), tuple(outputs.split()) or (made[-1].name,))


def text(made: FloatGraph) -> list[str]:
    return [f"{node.name} <- {' '.join(node.inputs)}" for node in made][1:]


def same(before: FloatGraph, after: FloatGraph) -> None:
    x = {name: rng.normal(size=(3, *before[name].op.shape)).astype(np.float32) for name in before.inputs}  # type: ignore
    old, new = run_float(before, x, only_outputs=True), run_float(after, x, only_outputs=True)
    for a, b in zip(before.outputs, after.outputs, strict=True):
        assert np.array_equal(old[a], new[b])


def test_a_residual_after_a_norm() -> None:
    before = graph(
        ("fc", linear(), "x"),
        ("norm", norm(), "fc"),
        ("a", linear(), "norm"),
        ("b", linear(), "norm"),
        ("sum", ADD, "a norm"),
        ("last", norm(), "sum"),
        outputs="last b",
    )
    after = simplify(before)
    assert text(after) == [
        "fc <- x",
        "norm <- fc",
        "norm.narrow <- norm",
        "a <- norm.narrow",
        "b <- norm.narrow",
        "sum <- a norm",
        "last <- sum",
    ]
    assert wide_names(after) == ("fc", "norm", "a", "sum", "last")
    same(before, after)
    assert text(simplify(after)) == text(after), "once is enough"


def test_what_only_layers_take_is_narrow_at_once() -> None:
    words = FloatNode("words", float_ops.Embedding(rng.normal(size=(7, D)).astype(np.float32)), ("ids",))
    ids = FloatNode("ids", float_ops.Input((T,), InputKind.INDEX))
    layers = (FloatNode("a", linear(), ("words",)), FloatNode("b", linear(), ("words",)))
    after = simplify(FloatGraph((ids, words, *layers, FloatNode("sum", ADD, ("a", "b"))), ("sum",)))
    assert len(after.nodes) == 5
    assert wide_names(after) == ()


def test_a_norm_is_wide_whoever_takes_it() -> None:
    """Its integers have no zero point: 8 bits, half of them unused where gamma and beta are one-sided, would be few."""
    after = simplify(
        graph(
            ("fc", linear(), "x"),
            ("norm", norm(), "fc"),
            ("a", linear(), "norm"),
            ("b", linear(), "norm"),
            ("sum", ADD, "a b"),
        )
    )
    assert text(after) == [
        "fc <- x",
        "norm <- fc",
        "norm.narrow <- norm",
        "a <- norm.narrow",
        "b <- norm.narrow",
        "sum <- a b",
    ]
    assert wide_names(after) == ("fc", "norm")


def test_behind_reshapes_and_transposes() -> None:
    before = graph(
        ("fc", linear(), "x"),
        ("norm", norm(), "fc"),
        ("heads", float_ops.Reshape((2, 2, T)), "norm"),
        ("product", float_ops.MatMul(transpose_a=True), "heads heads"),
        ("back", float_ops.Transpose((1, 0)), "norm"),
        ("sum", ADD, "norm norm"),
        outputs="product back sum",
    )
    after = simplify(before)
    assert text(after) == [
        "fc <- x",
        "norm <- fc",
        "norm.narrow <- norm",
        "heads <- norm.narrow",
        "product <- heads heads",
        "back <- norm",
        "sum <- norm norm",
    ]
    assert isinstance(after["norm.narrow"].op, float_ops.Rescale)
    assert wide_names(after) == ("fc", "norm"), "the Transpose leaves the network with 16 bits"
    same(before, after)


def test_a_reshape_that_both_take() -> None:
    before = graph(
        ("fc", linear(), "x"),
        ("norm", norm(), "fc"),
        ("moved", float_ops.Reshape((D, T)), "norm"),
        ("a", linear(), "moved"),
        ("sum", ADD, "a moved"),
        ("last", norm(), "sum"),
    )
    after = simplify(before)
    assert text(after)[2:5] == ["moved <- norm", "moved.narrow <- moved", "a <- moved.narrow"]
    assert wide_names(after) == ("fc", "norm", "a", "sum", "last")
    assert scale_owner(after, "moved") == "norm"
    same(before, after)


@pytest.mark.parametrize("outputs", ["mean", "norm mean"])
def test_a_pool_needs_eight_bits(outputs: str) -> None:
    after = simplify(graph(("fc", linear(), "x"), ("norm", norm(), "fc"), ("mean", POOL, "norm"), outputs=outputs))
    assert text(after) == ["fc <- x", "norm <- fc", "norm.narrow <- norm", "mean <- norm.narrow"]
    assert wide_names(after) == ("fc", "norm")


def test_a_gelu_has_sixteen_bits_before_it() -> None:
    after = simplify(graph(("fc", linear(), "x"), ("gelu", GELU, "fc"), ("last", linear(), "gelu")))
    assert len(after.nodes) == 4
    assert wide_names(after) == ("fc",)
    before = graph(
        ("pool", float_ops.MaxPool2d((1, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), False), "x"), ("gelu", GELU, "pool")
    )
    after = simplify(before)
    assert text(after) == ["pool <- x", "pool.wide <- pool", "gelu <- pool.wide"]
    assert wide_names(after) == ("pool.wide",)
    same(before, after)
    both = simplify(graph(("fc", linear(), "x"), ("gelu", GELU, "fc"), ("next", linear(), "fc"), outputs="gelu next"))
    assert text(both) == ["fc <- x", "fc.narrow <- fc", "gelu <- fc", "next <- fc.narrow"]
    assert wide_names(both) == ("fc",)


def test_what_needs_sixteen_bits_and_cannot_have_them() -> None:
    """A LayerNorm of images and a softmax of integers with a zero point: a Rescale makes 16 bits of them."""
    before = graph(("norm", norm(), "x"), ("sum", ADD, "norm x"), ("last", norm(), "sum"))
    after = simplify(before)
    assert text(after) == ["x.wide <- x", "norm <- x.wide", "sum <- norm x", "last <- sum"]
    assert wide_names(after) == ("x.wide", "norm", "sum", "last"), "the sum reads the images at 8 bits"
    same(before, after)
    nodes = (
        FloatNode("scores", float_ops.Input((2, T, T))),
        FloatNode("mask", float_ops.Input((T,), InputKind.MASK)),
        FloatNode("shares", float_ops.MaskedSoftmax(), ("scores", "mask")),
    )
    assert text(simplify(FloatGraph(nodes, ("shares",))))[1:] == ["scores.wide <- scores", "shares <- scores.wide mask"]


def test_scores_of_a_masked_softmax() -> None:
    nodes = (
        FloatNode("ids", float_ops.Input((T,), InputKind.INDEX)),
        FloatNode("mask", float_ops.Input((T,), InputKind.MASK)),
        FloatNode("words", float_ops.Embedding(rng.normal(size=(7, D)).astype(np.float32)), ("ids",)),
        FloatNode("heads", float_ops.Reshape((2, 2, T)), ("words",)),
        FloatNode("scores", float_ops.MatMul(transpose_a=True), ("heads", "heads")),
        FloatNode("shares", float_ops.MaskedSoftmax(), ("scores", "mask")),
        FloatNode("context", float_ops.MatMul(transpose_b=True), ("heads", "shares")),
    )
    made = simplify(FloatGraph(nodes, ("context",)))
    assert len(made.nodes) == len(nodes)
    assert wide_names(made) == ("scores",), "not the shares, not the mask, and not the words: products alone take them"


def test_plans_follow() -> None:
    assert known_to_plans is wide_names
    made = simplify(
        graph(("fc", linear(), "x"), ("norm", norm(), "fc"), ("a", linear(), "norm"), ("sum", ADD, "a norm"))
    )
    assert dict(BitPlan.uniform(made, 8, 4).activations) == {
        **{"x": 8, "fc": 16, "norm": 16},
        **{"norm.narrow": 4, "a": 4, "sum": 8},
    }


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.RELU])
def test_other_networks_stay_as_they_are(activation: Activation) -> None:
    before = graph(
        ("a", linear(), "x"),
        ("relu", float_ops.Relu(Activation.RELU), "a"),
        ("b", linear(), "relu"),
        ("sum", ADD, "relu b"),
        ("pool", POOL, "sum"),
        outputs="pool sum",
    )
    after = narrow_products(before)
    assert text(after) == text(before)
    assert all(a.op is b.op for a, b in zip(before, after, strict=True))
    assert wide_names(before) == ()


def test_names_in_use_are_left_alone() -> None:
    before = graph(
        ("fc", linear(), "x"),
        ("norm", norm(), "fc"),
        ("norm.narrow", linear(), "norm"),
        ("sum", ADD, "norm norm.narrow"),
    )
    assert text(narrow_products(before))[2] == "norm.narrow_ <- norm"
