"""From one calibration to the ranges of any method, for the grids of a plan; and what is saved of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantization.nets import branches, images, small

from labkit.errors import InputError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate, choose_ranges
from labkit.quantization.clipping.methods import CLIPPING, clipped_range
from labkit.quantization.convert import convert
from labkit.quantization.observers import TensorStatistics
from labkit.quantization.plan import BitPlan, observed_names
from labkit.quantization.quantized_loss import quantized_loss
from labkit.quantization.ranges import ALL_RANGES, choose_from

GRAPH = simplify(from_torch(branches(), (3, 8, 8)))
X = images(300)
SEEN = calibrate(GRAPH, X, histograms=True)
PLANS = {
    (bits, scheme): BitPlan.uniform(GRAPH, 8, bits, activation_scheme=scheme)
    for bits in (8, 4)
    for scheme in ("affine", "symmetric")
}
OPTIONS: dict[str, dict[str, Any]] = {
    "percentile": {"percentile": 99.0},
    "mse": {"steps": 80},
    "l2.4": {"steps": 30},
    "kl": {"variant": "ppq"},
    "aciq": {"distribution": "gauss"},
}


def test_histograms_change_nothing_else() -> None:
    plain = calibrate(GRAPH, X)
    assert plain == SEEN and SEEN.to_json() == plain.to_json()
    assert not plain.histograms and set(SEEN.histograms) == set(observed_names(GRAPH)) == set(plain.averages)
    assert SEEN.averages == plain.averages
    for name, histogram in SEEN.histograms.items():
        assert histogram.statistics == plain.statistics[name]


def test_one_pass_tells_how_far_it_is() -> None:
    told: list[int] = []
    passes: list[int] = []

    def once() -> Any:
        passes.append(1)
        yield from (X[:100], X[100:])

    calibrate(GRAPH, once(), histograms=True, progress=told.append)
    assert told == [100, 228, 300] and passes == [1]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("method", [m for m in ALL_RANGES if m != "lapq"])
def test_every_method_makes_a_network(method: str, plan: tuple[int, str]) -> None:
    for options in [OPTIONS[method]] if method in ("mse", "l2.4") else [{}, OPTIONS.get(method, {})]:
        chosen = choose_ranges(SEEN, GRAPH, PLANS[plan], method, **options)
        assert (chosen.method, dict(chosen.options)) == (method, options)
        assert (chosen.statistics, chosen.images) == (SEEN.statistics, 300)
        for name, (low, high) in chosen.ranges.items():
            seen = SEEN.statistics[name]
            assert seen.minimum <= low <= high <= seen.maximum
            if method == "kl" and name in GRAPH.outputs:
                assert (low, high) == (seen.minimum, seen.maximum)
            elif method in CLIPPING:
                spec = PLANS[plan].activation_spec(name)
                assert (low, high) == clipped_range(method, SEEN.histograms[name], spec, **options)
        net = IntegerNet(convert(GRAPH, chosen, PLANS[plan]))
        assert Calibration.from_json(net.graph.notes["calibration"]) == chosen
        for node in net.graph:
            if node.output.spec is not None and not node.output.spec.symmetric:
                spec, params = node.output.quantized
                assert spec.qmin <= int(params.zero_point) <= spec.qmax, "real 0 is on the grid"
        if plan[0] == 8 and method in ("minmax", "mse", "l2.4", "percentile"):
            exact = branches()(X[:50]).detach().numpy()
            assert np.abs(net.run(X[:50].numpy()) - exact).max() < 0.2 * np.abs(exact).max()


def test_the_bits_of_each_tensor_decide() -> None:
    mixed = BitPlan(PLANS[8, "affine"].weights, {**PLANS[8, "affine"].activations, "stem": 3})
    eight = choose_ranges(SEEN, GRAPH, PLANS[8, "affine"], "mse").ranges
    three = choose_ranges(SEEN, GRAPH, mixed, "mse").ranges
    assert three["stem"] != eight["stem"]
    assert {k: v for k, v in three.items() if k != "stem"} == {k: v for k, v in eight.items() if k != "stem"}


@pytest.mark.parametrize("method", ["minmax", "3sigma"])
def test_the_old_methods_are_as_they_were(method: str) -> None:
    chosen = choose_ranges(SEEN, GRAPH, PLANS[8, "affine"], method)
    assert chosen == calibrate(GRAPH, X, method) == SEEN.with_ranges(method)
    assert list(chosen.to_json()) == ["method", "images", "ranges", "statistics"], "older files have these keys"


def test_moving_averages_are_those_of_the_batches() -> None:
    momentum = 0.7
    calibration = calibrate(GRAPH, [X[:90], X[90:120], X[120:]], momentum=momentum)
    chosen = choose_ranges(calibration, GRAPH, PLANS[8, "affine"], "ema")
    low = high = None
    for part in (X[:90], X[90:120], X[120:248], X[248:]):  # batches are cut to 128 images
        a, b = float(part.min()), float(part.max())
        low = a if low is None else momentum * low + (1 - momentum) * a
        high = b if high is None else momentum * high + (1 - momentum) * b
    assert chosen.ranges[GRAPH.inputs[0]] == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("method", ALL_RANGES)
def test_it_survives_json(method: str) -> None:
    options = OPTIONS.get(method, {})
    if method == "lapq":
        options = {"loss": lambda ranges: ranges["stem"][1], "exponents": (2.0,), "iterations": 0}
    chosen = choose_ranges(SEEN, GRAPH, PLANS[4, "affine"], method, **options)
    read = Calibration.from_json(json.loads(json.dumps(chosen.to_json())))
    assert read.ranges == chosen.ranges and read.method == method
    assert json.loads(json.dumps(dict(read.options))) == json.loads(json.dumps(dict(chosen.options)))
    assert str(read).startswith(f"Calibration on 300 images, ranges by {method}")


def test_what_is_not_saved_must_be_seen_again() -> None:
    read = Calibration.from_json(SEEN.to_json())
    for method in (*CLIPPING, "ema", "lapq"):
        options = {"loss": lambda ranges: 0.0} if method == "lapq" else {}
        with pytest.raises(QuantizationError, match="a saved calibration has none.*Calibrate again"):
            choose_ranges(read, GRAPH, PLANS[8, "affine"], method, **options)
    assert choose_ranges(read, GRAPH, PLANS[8, "affine"], "3sigma") == SEEN.with_ranges("3sigma")


def test_errors() -> None:
    plan = PLANS[8, "affine"]
    with pytest.raises(QuantizationError, match="ranges must be one of minmax, 3sigma, ema, .*, lapq, got 'best'"):
        choose_ranges(SEEN, GRAPH, plan, "best")
    with pytest.raises(QuantizationError, match="take the options variant, got 'steps'"):
        choose_ranges(SEEN, GRAPH, plan, "kl", steps=3)
    with pytest.raises(QuantizationError, match="'ema' take no options, got steps"):
        choose_ranges(SEEN, GRAPH, plan, "ema", steps=3)
    with pytest.raises(QuantizationError, match="'lapq' need a function loss="):
        choose_ranges(SEEN, GRAPH, plan, "lapq")
    with pytest.raises(QuantizationError, match="'lapq' .* got loss, steps"):
        choose_ranges(SEEN, GRAPH, plan, "lapq", loss=lambda ranges: 0.0, steps=3)
    other = simplify(from_torch(small(), (3, 8, 8)))
    with pytest.raises(QuantizationError, match="The calibration knows no tensor 'input_1'"):
        choose_ranges(SEEN, other, BitPlan.uniform(other), "mse")
    zeros = TensorStatistics(0, 0, 0, 0, 9)
    for method in (*CLIPPING, "ema", "minmax"):
        with pytest.raises(QuantizationError, match="'relu3' was 0 for every calibration image"):
            choose_from(method, "relu3", zeros, None, None, plan.activation_spec("stem"))


def test_the_loss_of_a_network() -> None:
    plan = PLANS[8, "affine"]
    labels = branches()(X).argmax(1).numpy()
    for given in (labels, None):
        loss = quantized_loss(GRAPH, SEEN, plan, X.numpy(), given)
        logits = branches()(X).detach()
        target = torch.softmax(logits, 1) if given is None else torch.from_numpy(labels)
        exact = float(torch.nn.functional.cross_entropy(logits, target))
        assert loss(SEEN.ranges) == pytest.approx(exact, abs=0.02)
        narrow = {name: (0.1 * low, 0.1 * high) for name, (low, high) in SEEN.ranges.items()}
        assert loss(narrow) > loss(SEEN.ranges) + 0.01
    with pytest.raises(InputError, match="one label for each image, got 3 labels for 300"):
        quantized_loss(GRAPH, SEEN, plan, X.numpy(), labels[:3])


def test_the_joint_search_lowers_the_loss_of_a_network() -> None:
    plan = BitPlan.uniform(GRAPH, 8, 3)
    loss = quantized_loss(GRAPH, SEEN, plan, X[:32].numpy())
    chosen = choose_ranges(SEEN, GRAPH, plan, "lapq", loss=loss, exponents=(2.0, 3.0, 4.0), max_evaluations=50)
    assert loss(chosen.ranges) < loss(SEEN.ranges)
    assert loss(chosen.ranges) <= loss(choose_ranges(SEEN, GRAPH, plan, "mse").ranges) + 0.01
    assert 2 <= chosen.options["exponent"] <= 4 and "loss" not in chosen.options


def test_kl_keeps_the_whole_range_of_outputs() -> None:
    graph = simplify(
        from_torch(nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), (3, 4, 4))
    )
    x = np.random.default_rng(1).standard_cauchy((200, 3, 4, 4)).astype(np.float32)
    plan = BitPlan.uniform(graph, 8, 8)
    seen = calibrate(graph, x, histograms=True)
    chosen = choose_ranges(seen, graph, plan, "kl").ranges
    last, first = graph.outputs[0], graph.inputs[0]
    assert chosen[last] == (seen.statistics[last].minimum, seen.statistics[last].maximum)
    assert chosen[first][1] < seen.statistics[first].maximum
