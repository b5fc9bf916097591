"""Transformers against their emulation in PyTorch: every node and parameter, random sizes, masks and plans, tolerance 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from parity.encoders import Sizes, drawn_sizes, encoder, sentences, whole_sentences
from torch import nn

import labkit
from labkit.errors import ModelError, UnsupportedOperation
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, FloatNode, IntNode
from labkit.kernels import reference_transformer
from labkit.kernels.kernel_set import REFERENCE, KernelSet
from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder, encoder_graph
from labkit.net import IntegerNet
from labkit.parity.compare import parameters_of
from labkit.parity.emulate_sequences import SequenceEmulation
from labkit.parity.random_inputs import random_inputs
from labkit.quantization.calibration import Calibration

TIERS = ("reference", "numba")


def quantized(sizes: Sizes, seed: int, **options: Any) -> tuple[IntegerNet, FloatGraph]:
    """An encoder of these ``sizes`` by ``seed``, quantized with ``options``."""
    graph = encoder(sizes, seed)
    return labkit.quantize(graph, whole_sentences(sizes, 8, seed), **options), graph


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("seed", range(40))
def test_random_encoders(seed: int, tier: str) -> None:
    sizes = drawn_sizes(seed)
    options = {
        "weights": (8, 4, 8, 3, 2)[seed % 5],
        "activation_scheme": ("affine", "affine", "symmetric")[seed % 3],
        "per_channel": seed % 4 != 3,
    }
    net, graph = quantized(sizes, seed, **options)
    x = sentences(sizes, 9, seed)
    derived = labkit.verify(net, graph, x, kernels=tier)
    assert derived.passed, derived
    assert {c.name for c in derived.comparisons if c.kind == "tensor"} == {node.name for node in net.graph}
    assert derived.images == 9
    restated = labkit.verify(net, None, x, kernels=tier)
    assert restated.passed, restated


@pytest.mark.parametrize("bits", [1, 5, 6, 7])
def test_other_bits_of_weights(bits: int) -> None:
    net, graph = quantized(Sizes(), 1, weights=bits)
    assert labkit.verify(net, graph, sentences(Sizes(), 5)).passed


@pytest.mark.parametrize(
    "options",
    [
        {"weight_ranges": "mse"},
        {"weight_ranges": "3sigma", "per_channel": False},
        {"ranges": "kl"},
        {"ranges": "percentile", "weights": 4},
        {"rounding": "gptq", "weights": 4},
        {"rounding": "stochastic", "weights": 3},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_other_ranges_and_roundings(options: dict[str, Any]) -> None:
    net, graph = quantized(Sizes(), 3, **options)
    report = labkit.verify(net, graph, sentences(Sizes(), 5))
    assert report.passed, report
    assert bool(report.remarks) is ("rounding" in options or options.get("weight_ranges") == "mse")


def test_decided_weights_of_another_graph_are_said_to_be() -> None:
    net, graph = quantized(Sizes(), 3, rounding="gptq", weights=4)
    other = encoder(Sizes(), seed=4)
    report = labkit.verify(net, other, sentences(Sizes(), 2))
    assert report.first is not None
    assert report.first.where == "parameters of the graph, sha256"
    assert labkit.verify(net, graph, sentences(Sizes(), 2)).passed


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_fewer_bits_where_16_are_not_needed(bits: int, scheme: str) -> None:
    """A GELU of 8 bits is a table; scores, shares and what layers take may have any bits."""
    graph = encoder(Sizes(), 6)
    plan = labkit.BitPlan.uniform(graph, activation_scheme=scheme)
    narrow = dict.fromkeys(("0.inner", "0.gelu", "0.shares", "0.scores", "0.short", "0.query", "0.context"), bits)
    plan = replace(plan, activations={**plan.activations, **narrow})
    net = labkit.quantize(graph, whole_sentences(Sizes(), 8), plan=plan)
    assert isinstance(net.graph["0.gelu"].op, int_ops.Lookup)
    for tier in TIERS:
        for source in (graph, None):
            report = labkit.verify(net, source, sentences(Sizes(), 6), kernels=tier)
            assert report.passed, report


def small_encoder(seed: int = 0) -> SentenceEncoder:
    torch.manual_seed(seed)
    module = SentenceEncoder(EncoderSizes(vocabulary=31, positions=12, width=12, heads=3, layers=2, inner=20)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def token_batches(count: int, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, 31, (count, length)), "mask": np.ones((count, length), bool)} for length in lengths]


@cache
def imported(weights: int = 8) -> tuple[IntegerNet, SentenceEncoder, FloatGraph]:
    """BERT's module translated and quantized: the net, the module, the float graph."""
    module = small_encoder()
    graph = encoder_graph(module, 9)
    return labkit.quantize(graph, token_batches(6, (9, 4, 7)), weights=weights), module, graph


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("weights", [8, 4])
def test_an_imported_encoder(weights: int, tier: str) -> None:
    net, module, graph = imported(weights)
    x = random_inputs(net.graph, 20, np.random.default_rng(3))
    for source in (module, graph, None):
        report = labkit.verify(net, source, x, kernels=tier)
        assert report.passed, report
        assert not report.remarks
    assert "derived from the float module SentenceEncoder" in str(labkit.verify(net, module, x))
    assert "derived from the float graph" in str(labkit.verify(net, graph, x))


class OnTokens(nn.Module):
    """Linear layers on each token of real numbers, [N, T, 8], with a layer norm and a GELU or with neither."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.first, self.norm = nn.Linear(8, 20), nn.LayerNorm(20)
        self.second, self.third = nn.Linear(20, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = y.relu() if self.plain else nn.functional.gelu(self.second(self.norm(y)))
        return x + self.third(self.second(y) if self.plain else y)


@pytest.mark.parametrize("plain", [True, False])
def test_modules_of_real_sequences(plain: bool) -> None:
    torch.manual_seed(0)
    module, x = OnTokens(plain).eval(), torch.randn(16, 5, 8)
    net = labkit.quantize(module, x)
    for tier in TIERS:
        for source in (module, None):
            report = labkit.verify(net, source, x, kernels=tier)
            assert report.passed, report
            assert not report.remarks


def test_shorter_sentences_of_the_same_net() -> None:
    net, module, graph = imported()
    short = net.at_length(5)
    x = random_inputs(short.graph, 6, np.random.default_rng(3))
    for source in (module, graph, None):
        report = labkit.verify(short, source, x)
        assert report.passed, report
        assert not report.remarks


def test_shorter_sentences_of_a_net_whose_weights_a_method_decided() -> None:
    """The digest of its parameters knows no length, and still tells other weights."""
    module = small_encoder()
    graph = encoder_graph(module, 12)
    batches = {"ids": np.random.default_rng(0).integers(0, 31, (16, 12)), "mask": np.ones((16, 12), np.uint8)}
    short = labkit.quantize(graph, batches, weights=4, rounding="gptq").at_length(5)
    x = random_inputs(short.graph, 6, np.random.default_rng(3))
    for source in (module, graph):
        report = labkit.verify(short, source, x)
        assert report.passed, report
    with torch.no_grad():
        module.encoder["layer"][0].output.dense.weight[0, 0] += 0.1  # type: ignore[index]
    report = labkit.verify(short, module, x)
    assert not report.passed
    assert "parameters of the module" in str(report.first)


def test_a_module_of_other_weights_differs_and_is_said_to() -> None:
    net, _, _ = imported()
    report = labkit.verify(net, small_encoder(seed=5), random_inputs(net.graph, 3, np.random.default_rng(3)))
    assert not report.passed
    assert report.first is not None
    assert report.first.where.startswith("embeddings.word_embeddings.")
    assert "not those that were quantized" in str(report)


def test_a_module_with_a_hook_is_refused() -> None:
    net, _, _ = imported()
    module = small_encoder()
    module.encoder["layer"][0].gelu.register_forward_hook(lambda part, given, result: result * 1.1)
    with pytest.raises(labkit.LabkitError, match="computes something else"):
        labkit.verify(net, module, random_inputs(net.graph, 2, np.random.default_rng(3)))


def test_a_graph_of_another_network_is_refused() -> None:
    net, _, _ = imported()
    with pytest.raises(ModelError, match="was not made from this FloatGraph"):
        labkit.verify(net, encoder(Sizes(length=9)), random_inputs(net.graph, 2, np.random.default_rng(3)))


# One mistake at a time, each found where it was made

HAND, HAND_GRAPH = quantized(Sizes(), 2)
Change = Callable[[Any], Any]


def with_operation(name: str, **fields: Change) -> IntegerNet:
    """The net ``HAND`` with fields of the operation of ``name`` changed, each given as a function of its old value."""

    def changed(node: IntNode) -> IntNode:
        op: Any = node.op
        return replace(node, op=replace(op, **{label: new(getattr(op, label)) for label, new in fields.items()}))

    nodes = tuple(changed(node) if node.name == name else node for node in HAND.graph)
    return IntegerNet(replace(HAND.graph, nodes=nodes))


def one_less(array: Any) -> Any:
    """The same with 1 less in the last element."""
    copy = np.array(array)
    copy.reshape(-1)[-1:] -= 1
    return copy


def less_mantissa(multiplier: Any) -> Any:
    return replace(multiplier, mantissa=one_less(multiplier.mantissa))


def other_weight(weight: Any) -> Any:
    values = np.array(weight.values)
    values[-1, -1] = -values[-1, -1] or 1
    return replace(weight, values=values)


def other_multiplier(requantizer: Any) -> Any:
    return replace(requantizer, multiplier=less_mantissa(requantizer.multiplier))


PLANTED: dict[str, tuple[str, dict[str, Change]]] = {
    "a row of a table": ("words.weight", {"weight": other_weight}),
    "a row's multiplier": ("words.mantissa", {"requantizer": other_multiplier}),
    "a constant": ("positions.values", {"values": one_less}),
    "gamma": ("norm.multipliers", {"multipliers": one_less}),
    "beta": ("norm.addends", {"addends": one_less}),
    "a shift": ("norm.shift", {"shift": lambda shift: shift - 1}),
    "a clamp": ("norm.clamp", {"clamp": lambda clamp: (clamp[0] + 1, clamp[1])}),
    "a product's multiplier": ("0.scores.mantissa", {"requantizer": other_multiplier}),
    "ln 2": ("0.shares.ln2", {"ln2": lambda ln2: ln2 - 1}),
    "the parabola of a softmax": ("0.shares.b", {"b": lambda b: b - 1}),
    "its constant": ("0.shares.c", {"c": lambda c: c - 1}),
    "the exponential's 16 bits": ("0.shares.mantissa", {"multiplier": less_mantissa}),
    "the parabola of a GELU": ("0.gelu.b", {"b": lambda b: b + 1}),
    "the constant of a GELU": ("0.gelu.c", {"c": lambda c: c + 1}),
    "the one of a GELU": ("0.gelu.one", {"one": lambda one: one + 1}),
    "a change of scale": ("0.short.mantissa", {"requantizer": other_multiplier}),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_parameter_is_found(mistake: str) -> None:
    where, fields = PLANTED[mistake]
    broken = with_operation(where.rpartition(".")[0], **fields)
    report = labkit.verify(broken, HAND_GRAPH, sentences(Sizes(), 2), kernels="reference")
    assert report.first is not None
    assert report.first.where == where
    assert labkit.verify(
        broken, None, sentences(Sizes(), 2), kernels="reference"
    ).passed  # its own integers are run well


def test_a_changed_factor_of_a_product_is_found() -> None:
    nodes = tuple(
        replace(node, op=replace(node.op, factor=1.0)) if isinstance(node.op, float_ops.MatMul) else node
        for node in HAND_GRAPH
    )
    report = labkit.verify(HAND, FloatGraph(nodes, HAND_GRAPH.outputs), sentences(Sizes(), 2))
    assert report.first is not None
    assert report.first.where in ("0.scores.mantissa", "0.scores.exponent")


KERNELS = {
    "words": "embedding",
    "0.scores": "batch_matmul",
    "0.shares": "i_softmax",
    "0.gelu": "i_gelu",
    "norm": "i_layer_norm",
}


def spoiled(operation: str) -> KernelSet:
    """The reference kernels, results of ``operation`` off where that shows after requantizing: the last element."""
    least = {"i_gelu": 2**24, "i_layer_norm": 2**26, "batch_matmul": 2**12}.get(operation, 1)

    def wrong(*arrays: Any, **options: Any) -> Any:
        result = np.array(getattr(reference_transformer, operation)(*arrays, **options), order="C")
        last = result.reshape(-1)[-1:]
        last += np.where(last > 0, -least, least).astype(result.dtype)
        return result

    return REFERENCE.with_override(operation, wrong)


@pytest.mark.parametrize("source", [HAND_GRAPH, None], ids=["derived", "own integers"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_found(name: str, source: FloatGraph | None) -> None:
    report = labkit.verify(HAND, source, random_inputs(HAND.graph, 3, np.random.default_rng(0)), spoiled(KERNELS[name]))
    assert report.first is not None
    assert report.first.where == f"tensor {name}"


def test_numbers_of_each_operation_are_named() -> None:
    names = {
        node.name: set(parameters_of(node)) - {"scale", "zero_point", "grid"}
        for node in HAND.graph
        if node.name != "output"
    }
    weights = {"weight", "weight_grid", "weight_scale", "weight_zero_point"}
    fixed = {"mantissa", "exponent", "clamp"}
    assert names["ids"] == names["mask"] == set()
    assert names["words"] == weights | fixed
    assert names["0.scores"] == names["0.short"] == fixed
    assert names["0.shares"] == {"ln2", "b", "c", "bits", "mantissa", "exponent"}
    assert names["0.gelu"] == {"b", "c", "one"} | fixed
    assert names["norm"] == {"multipliers", "addends", "shift", "clamp", "epsilon"}


# Inputs for a net of which nothing else is known


def test_random_inputs_are_indices_and_masks() -> None:
    given = random_inputs(HAND.graph, 300, np.random.default_rng(0))
    ids, mask = given["ids"], given["mask"]
    assert ids.dtype == np.int32
    assert set(np.unique(ids)) == set(range(Sizes().vocabulary))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert mask.any(axis=1).all()
    falls = (np.diff(mask.astype(int), axis=1) <= 0).all(axis=1)
    assert 100 < falls.sum() < 300  # sentences that end, and masks of other places


def test_what_has_no_emulation_is_named() -> None:
    pool = float_ops.AdaptiveAveragePool2d((1, 2))
    nodes = (*HAND_GRAPH.nodes, FloatNode("pool", pool, ("0.short",)))
    notes = HAND.graph.notes
    calibration, plan = Calibration.from_json(notes["calibration"]), labkit.BitPlan.from_json(notes["plan"])
    with pytest.raises(
        UnsupportedOperation,
        match=r"pool: AdaptiveAveragePool2d has no emulation from a float graph\. Verify the net alone",
    ):
        SequenceEmulation(FloatGraph(nodes, ("pool",)), calibration, plan)


class Classifier(nn.Module):
    """Patches of an image, a token in front, a layer norm, and what makes one vector of all tokens."""

    def __init__(self, head: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = head
        self.patches, self.norm, self.last = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 5)
        self.front = nn.Parameter(torch.randn(1, 1, 12))
        self.pool = nn.MaxPool1d(3, 2, padding=1, ceil_mode=head == "ceil")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.front.expand(len(x), -1, -1), x], 1)
        if self.head in ("max", "ceil"):
            x = self.pool(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(x)
        y: torch.Tensor = self.last(x[:, 0] if self.head == "first" else x.mean(1))
        return y


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("head", ["first", "mean", "max", "ceil"])
def test_tokens_in_front_and_pools_are_emulated(head: str, scheme: str) -> None:
    rng = np.random.default_rng(0)
    module = Classifier(head).eval()
    net = labkit.quantize(module, rng.standard_normal((16, 3, 16, 12)).astype(np.float32), activation_scheme=scheme)
    kinds = {type(node.op) for node in net.graph}
    assert int_ops.Pad in kinds
    assert kinds & {int_ops.MaxPool2d, int_ops.AveragePool2d}
    x = rng.standard_normal((4, 3, 16, 12)).astype(np.float32)
    for tier in TIERS:
        report = labkit.verify(net, module, x, kernels=tier)
        assert report.passed, report
        assert {c.name for c in report.comparisons if c.kind == "tensor"} == {node.name for node in net.graph}
    other = Classifier(head).eval()
    with torch.no_grad():
        other.front.add_(0.5)
    report = labkit.verify(net, other, x)
    assert report.first is not None
