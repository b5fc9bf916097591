"""The network in training computes what the integer engine will, and its live batch norms are PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labkit import data, models
from labkit.arithmetic.affine import dequantize
from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import IntGraph
from labkit.graph.passes import simplify
from labkit.models.settled import settled
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.layer import TrainableLayer, normalised
from labkit.quantization.qat.network import Phase, TrainableNet
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.start import trainable
from labkit.quantization.simulate import run_simulated, simulate_weights

PLAIN = FineTuning(start="nearest", weight_scales="minmax", activation_scales="ema", wide_up_to=0)


class Mixed(nn.Module):
    """Depthwise and pointwise layers, ReLU6, a residual sum, a batch norm that stands alone, and a join of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.alone = nn.BatchNorm2d(6)
        self.relu6 = nn.ReLU6()
        self.pool = nn.MaxPool2d(2)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu6(self.norm1(self.first(x)))
        y = self.norm2(self.depthwise(x))
        x = torch.relu(x + y)
        x = torch.cat([self.pool(self.alone(x)), self.pool(x)], 1)
        return self.last(self.mean(x).flatten(1))


def pictures(count: int = 40) -> np.ndarray:  # type: ignore[type-arg]
    return data.load("mnist5k").test(count)[0]


def nets(module: nn.Module, options: FineTuning, weights: int, activations: int, per_channel: bool = True):  # type: ignore[no-untyped-def]
    x = pictures()
    raw = from_torch(module, x.shape[1:])
    graph = simplify(raw)
    plan = BitPlan.uniform(graph, weights, activations, per_channel=per_channel)
    calibration = calibrate(graph, x)
    return x, graph, calibration, plan, trainable(raw, graph, plan, calibration, x, options)


def build(name: str) -> nn.Module:
    if name == "mixed":
        return settled(Mixed, pictures(8))
    return models.load(name, data="mnist5k")


@pytest.mark.parametrize("name", ["lenet", "lenet-bias", "mixed", "mobilenetv2-small", "resnet20"])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3), (1, 8)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_node_computes_what_the_engine_computes(name: str, bits: tuple[int, int], per_channel: bool) -> None:
    """Given the engine's own inputs, a node differs at ties alone: by one step, and hardly ever."""
    x, graph, calibration, plan, net = nets(build(name), PLAIN, *bits, per_channel)
    integers = convert(graph, calibration, plan)
    trace = IntegerNet(integers).trace(x)
    reals = {node.name: real(integers, node.name, trace[node.name]) for node in graph}
    net.eval()
    for node in graph:
        inputs = [x] if not node.inputs else [reals[key] for key in node.inputs]
        with torch.no_grad():
            found = net.node_output(node, [torch.from_numpy(one) for one in inputs]).numpy()
        steps = np.abs(found - reals[node.name]) / float(integers[node.name].output.quantized[1].scale)
        assert steps.max() < 1.01
        # 0.5 * S_w S_x / S_y of the bias's rounding is below 0.01 of a step, and 8-bit sums lie densely
        assert np.mean(steps > 0.5) <= 0.01, node.name


def real(net: IntGraph, name: str, values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    spec, params = net[name].output.quantized
    return dequantize(values.astype(spec.dtype), params, spec)


@pytest.mark.parametrize("name", ["lenet", "lenet-bias", "mixed", "mobilenetv2-small", "resnet20"])
def test_the_answers_are_those_of_the_engine(name: str) -> None:
    x, graph, calibration, plan, net = nets(build(name), PLAIN, 8, 8)
    expected = IntegerNet(convert(graph, calibration, plan)).run(x)
    with torch.no_grad():
        found = net.eval()(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_tensors_are_rounded_where_the_engine_rounds_them() -> None:
    _, graph, _, plan, net = nets(build("mixed"), PLAIN, 4, 4)
    assert set(net.ranges()) == set(plan.activations)
    scale, levels = net.activation_grid("first")
    assert graph["first"].activation.value == "relu6"
    assert levels.low == 0
    assert levels.high * float(scale) == pytest.approx(6.0, abs=float(scale) / 2) or levels.high == 15


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_live_batch_norm_is_that_of_pytorch(bias: bool, linear: bool) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(5, 4, bias=bias) if linear else nn.Conv2d(3, 4, 3, bias=bias)
    norm = nn.BatchNorm1d(4) if linear else nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    x = torch.randn(16, 5) if linear else torch.randn(8, 3, 6, 6)
    with torch.no_grad():
        norm.train()(layer(x))  # statistics that are not those of the next batch
    arrays = (one.detach().numpy().copy() for one in (norm.weight, norm.bias, norm.running_mean, norm.running_var))  # type: ignore[union-attr]
    frozen = float_ops.BatchNorm2d(*arrays, norm.eps)  # type: ignore[arg-type]
    weight = layer.weight.detach().numpy()
    offset = None if layer.bias is None else layer.bias.detach().numpy()
    op: float_ops.Linear | float_ops.Conv2d = float_ops.Linear(weight, offset)
    if not linear:
        op = float_ops.Conv2d(weight, offset, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    ours = TrainableLayer(op, frozen, "norm")
    x = 2 * x + 1
    expected = norm(layer(x))
    folded, _ = ours.folded()
    sums = nn.functional.linear(x, folded) if linear else nn.functional.conv2d(x, folded)
    found = normalised(ours, sums)
    assert torch.allclose(found, expected, atol=2e-5)
    assert torch.allclose(ours.mean, norm.running_mean, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(ours.variance, norm.running_var, rtol=1e-4)  # type: ignore[arg-type]


def test_folding_in_training_is_that_of_the_graph() -> None:
    _, graph, _, _, net = nets(build("resnet20"), PLAIN, 8, 8)
    for node in graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            weight, bias = net.layer(node.name).folded()
            assert np.allclose(weight.detach().numpy(), node.op.weight, rtol=1e-5, atol=1e-7)
            assert bias is not None and node.op.bias is not None
            assert np.allclose(bias.detach().numpy(), node.op.bias, rtol=1e-4, atol=1e-5)


def test_moving_averages_move_towards_what_is_seen_and_only_when_told() -> None:
    x, _, _, _, net = nets(build("lenet"), replace(PLAIN, ema_momentum=0.5), 8, 8)
    name = net.graph.inputs[0]
    before = net.ends(name)
    net(torch.from_numpy(3 * x))
    assert net.ends(name) == before
    net.phase = Phase(move_ranges=True)
    net(torch.from_numpy(3 * x))
    low, high = net.ends(name)
    assert low == pytest.approx((before[0] + 3 * x.min()) / 2)
    assert high == pytest.approx((before[1] + 3 * x.max()) / 2)


def test_observing_only_leaves_activations_alone() -> None:
    x, graph, calibration, plan, net = nets(build("lenet"), PLAIN, 8, 2)
    net.phase = Phase(quantize_activations=False)
    integers = convert(graph, calibration, plan)
    expected = run_simulated(simulate_weights(graph, integers), integers, x, activations=False)
    with torch.no_grad():
        assert np.allclose(net(torch.from_numpy(x)).numpy(), expected, atol=1e-4)


def test_the_best_start_keeps_the_decisions_that_were_made() -> None:
    """Every weight begins in the cell that the best rounding chose, so the first answers are those of ``method="best"``."""
    from labkit.quantization.weight_rounding.best import round_best

    x, graph, calibration, plan, net = nets(build("resnet20"), FineTuning(seed=5), 2, 4)
    best = round_best(graph, calibration, plan, x, 5)
    for name, weight in best.weights.items():
        folded, _ = net.layer(name).folded()
        assert np.array_equal(net.weight_tensor(name, folded.detach().numpy()).values, weight.values)
    expected = run_simulated(best.simulated(), convert(graph, best.calibration, plan, None, best.layers), x)
    with torch.no_grad():
        found = net.eval()(torch.from_numpy(x)).numpy()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_a_batch_norm_that_stands_alone_is_not_trained() -> None:
    *_, net = nets(build("mixed"), PLAIN, 8, 8)
    assert [name for name in ("first", "depthwise", "alone", "last") if net.is_trained(name)] == [
        "first",
        "depthwise",
        "last",
    ]


def test_scales_stay_positive() -> None:
    *_, net = nets(build("lenet"), FineTuning(), 4, 4)
    assert isinstance(net, TrainableNet)
    with torch.no_grad():
        for scale in net.weight_scales.values():
            scale.fill_(-1.0)
    net.keep_in_bounds()
    assert all(bool((scale > 0).all()) for scale in net.weight_scales.values())


def layer_with_norm(gain: float) -> TrainableLayer:
    rng = np.random.default_rng(0)
    op = float_ops.Conv2d(rng.normal(size=(2, 3, 1, 1)).astype(np.float32), None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    arrays = ([gain, 1.0], [0.5, 0.0], [0.0, 0.0], [1.0, 1.0])
    return TrainableLayer(op, float_ops.BatchNorm2d(*(np.array(one, np.float32) for one in arrays), 1e-5), "norm")


def test_a_live_channel_without_gain_is_its_shift() -> None:
    layer = layer_with_norm(0.0)
    sums = nn.functional.conv2d(torch.randn(4, 3, 5, 5), layer.folded()[0])
    found = normalised(layer, sums)
    assert torch.equal(found[:, 0], torch.full((4, 5, 5), 0.5))
    assert bool(torch.isfinite(found).all())
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None and bool(torch.isfinite(layer.weight.grad).all())


def test_a_live_batch_of_one_number_a_channel_is_refused() -> None:
    with pytest.raises(InputError, match="needs two numbers a channel"):
        normalised(layer_with_norm(1.0), torch.randn(1, 2, 1, 1))


class Capped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu6, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Linear(3600, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu6(self.conv(x)).flatten(1))


def test_the_cap_of_a_relu6_does_not_pull_at_the_scale() -> None:
    """What ReLU6 cuts off is 6 whatever the scale; only its rounding changes with it."""
    *_, net = nets(Capped().eval(), FineTuning(start="nearest"), 8, 4)
    node = net.graph["conv"]
    with torch.no_grad():
        net.activation_scales[net._keys["conv"]].fill_(0.7)  # 15 levels reach 10.5
    value = torch.full((1, 4, 30, 30), 50.0)
    out = net._activation(node, value)
    assert float(out.detach()[0, 0, 0, 0]) == pytest.approx(0.7 * 9)  # round(6 / 0.7) = 9
    out.mean().backward()  # type: ignore[no-untyped-call]
    gradient = net.activation_scales[net._keys["conv"]].grad
    assert gradient is not None
    assert float(gradient) * np.sqrt(3600 * 15) == pytest.approx(9 - 6 / 0.7, rel=1e-3)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu, self.fc = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Linear(3600, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(torch.cat([self.a(x), self.b(x)], 1)).flatten(1))


def test_pact_learns_the_end_of_a_relu_that_stands_alone() -> None:
    *_, net = nets(Joined().eval(), replace(PLAIN, activation_scales="pact"), 8, 4)
    assert {name for name in net.ranges() if net.learns(name)} == {"relu"}


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_both_activation_schemes_match_the_engine(scheme: str) -> None:
    x = pictures()
    module = models.load("resnet20", data="mnist5k")
    raw = from_torch(module, x.shape[1:])
    graph = simplify(raw)
    plan = BitPlan.uniform(graph, 4, 4, activation_scheme=scheme)
    calibration = calibrate(graph, x)
    net = trainable(raw, graph, plan, calibration, x, PLAIN).eval()
    with torch.no_grad():
        found = net(torch.from_numpy(x)).numpy()
    assert (found == IntegerNet(convert(graph, calibration, plan)).run(x)).mean() > 0.9
