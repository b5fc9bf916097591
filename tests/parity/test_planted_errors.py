"""A certificate is worth what it catches: one mistake at a time, each must be found and named where it was made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from parity.nets import images, tied, tiers
from parity.oracle import conv_element, tie_count
from parity.zoo import Case, build, conv
from torch import nn

import labkit
from labkit.arithmetic.affine import QParams, QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import passes
from labkit.graph.float_ops import BatchNorm2d
from labkit.graph.ir import IntNode
from labkit.kernels import reference
from labkit.kernels.kernel_set import REFERENCE, KernelSet
from labkit.net import IntegerNet
from labkit.parity.report import Difference, ParityReport
from labkit.quantization import convert

Change = Callable[[IntNode], IntNode]


class Net(nn.Module):
    """One of each operation that has parameters, so that every kind of mistake has a place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(4))
        self.left = conv(4, 4, (3, 2), (2, 1))
        self.right = conv(4, 4, (3, 2), (2, 1), groups=2)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(160, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.stem(x))
        left = self.left(y)
        joined = F.relu(left + self.right(y))
        out: torch.Tensor = self.fc(self.pool(torch.cat([joined, left], 1)).flatten(1))
        return out


CASE = Case("planted", Net, ())


@cache
def sound() -> tuple[IntegerNet, Any]:
    module = build(CASE, seed=3)
    return labkit.quantize(module, images(32, seed=2), weights=4), module


def with_change(name: str, change: Change) -> IntegerNet:
    """The sound net with ``change`` made to the node ``name``."""
    graph = sound()[0].graph
    nodes = tuple(change(node) if node.name == name else node for node in graph)
    return IntegerNet(replace(graph, nodes=nodes))


def of_op(**fields: Callable[[Any], Any]) -> Change:
    """A change to fields of the operation, each given as a function of its old value."""
    return lambda node: replace(
        node, op=replace(node.op, **{name: new(getattr(node.op, name)) for name, new in fields.items()})
    )


def of_requantizer(**fields: Callable[[Any], Any]) -> Change:
    """A change to fields of the operation's requantizer."""
    return of_op(
        requantizer=lambda old: replace(old, **{name: new(getattr(old, name)) for name, new in fields.items()})
    )


def plus(index: Any, step: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """``array[index] += step`` on a copy."""

    def changed(array: NDArray[Any]) -> NDArray[Any]:
        copy = np.array(array)
        copy[index] += step
        return copy

    return changed


def judged(net: IntegerNet, kernels: Any = "reference") -> tuple[ParityReport, Difference]:
    """The report on ``net`` against the sound module, which must have failed."""
    report = labkit.verify(net, sound()[1], images(), kernels=kernels)
    assert not report.passed
    assert report.differing > 0
    assert report.first is not None
    where = report.first.where
    key = ("tensor", where.removeprefix("tensor ")) if where.startswith("tensor ") else ("parameter", where)
    faulty = [(found.kind, found.name) for found in report.comparisons if found.differing]
    assert faulty[0] == key, "everything before the first difference is equal"
    assert f"First difference: {where}, index {list(report.first.index)}: expected" in str(report)
    return report, report.first


def test_sound_net_passes() -> None:
    net, module = sound()
    for tier in ("reference", "numba"):
        assert labkit.verify(net, module, images(), kernels=tier).passed


# ---- parameters: the node, the parameter, the index and both values

PARAMETERS: dict[str, tuple[str, Change, str, tuple[int, ...], int]] = {
    # node, change, name in the report, index, and by how much the value differs
    "bias off by one": ("left", of_op(bias=plus(3, 1)), "left.bias", (3,), 1),
    "bias of a linear layer": ("fc", of_op(bias=plus(4, -1)), "fc.bias", (4,), -1),
    "mantissa plus one": (
        "left",
        of_requantizer(multiplier=lambda m: FixedPointMultiplier(plus(1, 1)(m.mantissa), m.exponent)),
        "left.mantissa",
        (1,),
        1,
    ),
    "exponent plus one": (
        "right",
        of_requantizer(multiplier=lambda m: FixedPointMultiplier(m.mantissa, plus(2, 1)(m.exponent))),
        "right.exponent",
        (2,),
        1,
    ),
    "exponent of a pooling: sum for mean": (
        "pool",
        of_requantizer(multiplier=lambda m: FixedPointMultiplier(m.mantissa, m.exponent + 2)),
        "pool.exponent",
        (),
        2,
    ),
    "mantissa of one part of a concatenation": (
        "cat",
        of_op(
            requantizers=lambda parts: (
                parts[0],
                replace(
                    parts[1],
                    multiplier=FixedPointMultiplier(parts[1].multiplier.mantissa + 1, parts[1].multiplier.exponent),
                ),
            )
        ),
        "cat.mantissa",
        (1,),
        1,
    ),
    "lower clamp": ("add", of_op(clamp=lambda c: (c[0] + 1, c[1])), "add.clamp", (0,), 1),
    "upper clamp": ("fc", of_requantizer(clamp=lambda c: (c[0], c[1] - 1)), "fc.clamp", (1,), -1),
    "shift of an addition": ("add", of_op(shift=lambda s: s + 1), "add.shift", (), 1),
    "multiplier of an addition": ("add", of_op(multipliers=plus(1, -1)), "add.multipliers", (1,), -1),
    "zero point": (
        "left",
        lambda node: replace(
            of_requantizer(zero_point=lambda z: z + 1)(node),
            output=replace(
                node.output, params=QParams(node.output.quantized[1].scale, node.output.quantized[1].zero_point + 1)
            ),
        ),
        "left.zero_point",
        (),
        1,
    ),
    "zero point of weights": (
        "right",
        of_op(weight=lambda w: QTensor(w.values, QParams(w.params.scale, plus(2, 1)(w.params.zero_point)), w.spec)),
        "right.weight_zero_point",
        (2,),
        1,
    ),
}


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("mistake", PARAMETERS)
def test_wrong_parameter(mistake: str, tier: str) -> None:
    node, change, where, index, difference = PARAMETERS[mistake]
    report, first = judged(with_change(node, change), tier)
    assert first.where == where
    assert first.index == index
    assert int(first.got) - int(first.expected) == difference
    [compared] = [found for found in report.comparisons if found.name == where]
    assert compared.differing == 1


@pytest.mark.parametrize("tier", tiers())
def test_wrong_weight(tier: str) -> None:
    net, module = sound()
    at = (2, 1, 0, 1)
    old = net.graph["right"].op.weight.values[at]
    step = 1 if old < 7 else -1
    changed = with_change("right", of_op(weight=lambda w: QTensor(plus(at, step)(w.values), w.params, w.spec)))
    _, first = judged(changed, tier)
    real = module.right.weight.detach().numpy()[at[0]]
    scale = np.float32(float(np.abs(real).max()) / 7)
    truth = round(float(np.float32(real[at[1:]] / scale)))
    assert first == Difference("right.weight", at, str(truth), str(truth + step))


def test_wrong_scale() -> None:
    """One unit in the last place of float32: no tensor changes, the certificate fails all the same."""

    def change(node: IntNode) -> IntNode:
        _, params = node.output.quantized
        wrong = np.nextafter(params.scale, np.float32(1))
        return replace(node, output=replace(node.output, params=QParams(wrong, params.zero_point)))

    net, _ = sound()
    low, high = net.graph.notes["calibration"]["ranges"]["left"]
    truth = np.float32((max(high, 0) - min(low, 0)) / 255)
    report, first = judged(with_change("left", change))
    assert first == Difference("left.scale", (), str(truth), str(np.nextafter(truth, np.float32(1))))
    assert report.differing == 1


def test_wrong_weight_scale() -> None:
    wrong = of_op(
        weight=lambda w: QTensor(
            w.values, QParams(w.params.scale * np.float32([1, 1, 1.5, 1]), w.params.zero_point), w.spec
        )
    )
    report, first = judged(with_change("left", wrong))
    truth = np.float32(sound()[1].left.weight[2].abs().max().item() / 7)
    assert first == Difference("left.weight_scale", (2,), str(truth), str(truth * np.float32(1.5)))
    assert report.differing == 1


# ---- conversion: the mistakes of one who writes it for the first time


def folded_bias(module: Any, net: IntegerNet, channel: int, fold: Callable[..., tuple[float, float]]) -> int:
    """The integer bias of one channel of the stem; ``fold`` gives gain and offset from (gamma, beta, mean, variance)."""
    layer, norm = module.stem[0], module.stem[1]
    statistics = [t[channel].item() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    gain, offset = fold(*statistics, norm.eps)
    largest = max(abs(float(np.float32(w.item() * gain))) for w in layer.weight[channel].flatten())
    weight_scale = float(np.float32(largest / 7))
    bias = float(np.float32(offset + layer.bias[channel].item() * gain))
    return round(bias / (weight_scale * float(net.graph["x"].output.quantized[1].scale)))


def right_fold(gamma: float, beta: float, mean: float, variance: float, epsilon: float) -> tuple[float, float]:
    gain = gamma / math.sqrt(variance + epsilon)
    return gain, beta - mean * gain


def forgotten_mean(gamma: float, beta: float, mean: float, variance: float, epsilon: float) -> tuple[float, float]:
    return gamma / math.sqrt(variance + epsilon), beta


def wrong_epsilon(gamma: float, beta: float, mean: float, variance: float, epsilon: float) -> tuple[float, float]:
    return right_fold(gamma, beta, mean, variance, 1e-3)


@pytest.mark.parametrize("mistake", [forgotten_mean, wrong_epsilon])
def test_wrong_fold(mistake: Callable[..., tuple[float, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = sound()

    def fold_into(weight: Any, bias: Any, norm: BatchNorm2d) -> tuple[Any, Any]:
        pairs = [
            mistake(*map(float, row), norm.epsilon)
            for row in zip(norm.gamma, norm.beta, norm.mean, norm.variance, strict=True)
        ]
        gain, offset = np.array(pairs).T
        folded = weight.astype(np.float64) * gain.reshape(-1, 1, 1, 1)
        return folded.astype(np.float32), (offset + bias.astype(np.float64) * gain).astype(np.float32)

    monkeypatch.setattr(passes, "fold_into", fold_into)
    net = labkit.quantize(module, images(32, seed=2), weights=4)
    _, first = judged(net)
    truths = [folded_bias(module, net, channel, right_fold) for channel in range(4)]
    faults = [folded_bias(module, net, channel, mistake) for channel in range(4)]
    channel = next(i for i in range(4) if truths[i] != faults[i])
    assert first == Difference("stem.0.bias", (channel,), str(truths[channel]), str(faults[channel]))


def test_gain_forgotten_in_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights left as they were: their integers hardly change, their scales do."""
    right = passes.fold_into
    monkeypatch.setattr(passes, "fold_into", lambda weight, bias, norm: (weight, right(weight, bias, norm)[1]))
    report, first = judged(labkit.quantize(sound()[1], images(32, seed=2), weights=4))
    assert first.where == "stem.0.bias"
    differing = {found.name for found in report.comparisons if found.differing and found.kind == "parameter"}
    assert {"stem.0.weight", "stem.0.weight_scale", "stem.0.mantissa"} <= differing


def test_bias_left_unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of the EE219 lab: a real bias rounded as it is and added to integer sums."""
    monkeypatch.setattr(
        convert,
        "quantize_bias",
        lambda name, bias, weight, quantized, scale: (quantized, np.rint(bias).astype(np.int32)),
    )
    net = labkit.quantize(sound()[1], images(32, seed=2), weights=4)
    report, first = judged(net)
    truth = folded_bias(sound()[1], net, 0, right_fold)
    layer, norm = sound()[1].stem[0], sound()[1].stem[1]
    folded = (layer.bias - norm.running_mean) * norm.weight / torch.sqrt(norm.running_var + norm.eps) + norm.bias
    assert first == Difference("stem.0.bias", (0,), str(truth), str(round(folded[0].item())))
    assert {f"{name}.bias" for name in ("stem.0", "left", "right", "fc")} == {
        found.name for found in report.comparisons if found.kind == "parameter" and found.differing
    }


def test_scales_rounded_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipliers from scales in float64 that were never rounded to float32: off in the last bits of the mantissa."""
    right = FixedPointMultiplier.from_real
    monkeypatch.setattr(FixedPointMultiplier, "from_real", lambda real: right(np.asarray(real) * (1 + 2.0**-26)))
    _, first = judged(labkit.quantize(sound()[1], images(32, seed=2), weights=4))
    assert (first.where, first.index) == ("stem.0.mantissa", (0,))
    assert 16 <= int(first.got) - int(first.expected) <= 33


@pytest.mark.parametrize("tier", tiers())
def test_relu_forgotten(tier: str) -> None:
    """On a grid with room below zero. On an unsigned one the ReLU's clamp is the end of the grid, and nothing is lost."""
    module = sound()[1]
    net = labkit.quantize(module, images(32, seed=2), weights=4, activation_scheme="symmetric")
    change = of_requantizer(clamp=lambda c: (-127, c[1]))
    nodes = tuple(change(node) if node.name == "stem.0" else node for node in net.graph)
    assert labkit.verify(net, module, images(), kernels=tier).passed
    report, first = judged(IntegerNet(replace(net.graph, nodes=nodes)), tier)
    assert first == Difference("stem.0.clamp", (0,), "0", "-127")
    [tensor] = [found for found in report.comparisons if (found.kind, found.name) == ("tensor", "stem.0")]
    assert tensor.differing > 100


# ---- execution: kernels that compute something else from the right parameters


def overridden(operation: str, function: Callable[..., Any]) -> KernelSet:
    return REFERENCE.with_override(operation, function)


def input_of(name: str) -> NDArray[Any]:
    """The integers that go into the node ``name`` of the sound net, for the images of `judged`."""
    net, _ = sound()
    return net.trace(images(), kernels="reference")[net.graph[name].inputs[0]]


def test_padding_with_integer_zero() -> None:
    """Padding must hold the zero point, which is the integer that stands for real 0."""

    def wrong(x: Any, weight: Any, bias: Any, *, padding: Any, **options: Any) -> Any:
        padded = np.pad(x, ((0, 0), (0, 0), *padding))
        return reference.conv2d(padded, weight, bias, padding=((0, 0), (0, 0)), **options)

    net, _ = sound()
    assert int(net.graph["x"].output.quantized[1].zero_point) > 0
    report, first = judged(net, overridden("conv2d", wrong))
    assert first.where == "tensor stem.0"
    _, _, row, column = first.index
    assert row in (0, 7) or column in (0, 7), "only the border touches the padding"
    x = input_of("stem.0")
    assert first.expected == str(conv_element(net.graph, "stem.0", x, first.index))
    assert first.got == str(conv_element(net.graph, "stem.0", x, first.index, pad=0))
    assert not any(found.differing for found in report.comparisons if found.kind == "parameter")


@pytest.mark.parametrize("tier", tiers())
def test_padding_on_the_wrong_side(tier: str) -> None:
    net = with_change("left", of_op(padding=lambda old: ((1, 3), old[1])))
    _, first = judged(net, tier)
    assert first.where == "tensor left"
    x = input_of("left")
    assert first.expected == str(conv_element(sound()[0].graph, "left", x, first.index))
    assert first.got == str(conv_element(net.graph, "left", x, first.index))


def test_zero_point_forgotten() -> None:
    def wrong(x: Any, weight: Any, bias: Any, *, input_zero_point: int, **options: Any) -> Any:
        return reference.conv2d(x, weight, bias, input_zero_point=0, **options)

    _, first = judged(sound()[0], overridden("conv2d", wrong))
    assert first.where == "tensor stem.0"
    assert first.expected == str(conv_element(sound()[0].graph, "stem.0", input_of("stem.0"), first.index))


def test_zero_point_of_the_result_forgotten() -> None:
    """At the border out: every real number is off by zero point times scale."""
    wrong = overridden("dequantize", lambda x, params, spec: x.astype(np.float32) * params.scale)
    net, _ = sound()
    report, first = judged(net, wrong)
    assert (first.where, first.index) == ("tensor output", (0, 0))
    _, params = net.graph["fc"].output.quantized
    integer = int(net.trace(images(), kernels="reference")["fc"][0, 0])
    assert first.expected == str(np.float32(integer - int(params.zero_point)) * params.scale)
    assert first.got == str(np.float32(integer) * params.scale)
    assert report.differing == 8 * 5


MISTAKES: dict[str, tuple[str, Callable[..., Any], str]] = {
    "images cut off instead of rounded": (
        "quantize",
        lambda x, params, spec: np.clip(np.floor(x / params.scale) + params.zero_point, 0, 255).astype(np.uint8),
        "tensor x",
    ),
    "kernel turned round, as in mathematics": (
        "conv2d",
        lambda x, weight, bias, **options: reference.conv2d(x, weight[:, :, ::-1, ::-1], bias, **options),
        "tensor stem.0",
    ),
    "bias left out": (
        "conv2d",
        lambda x, weight, bias, **options: reference.conv2d(x, weight, 0 * bias, **options),
        "tensor stem.0",
    ),
    "sums in 8 bits": (
        "linear",
        lambda x, weight, bias, *, input_zero_point, weight_zero_point, requantizer: requantizer.apply(
            ((x.astype(np.int32) - input_zero_point) @ weight.T.astype(np.int32) + bias).astype(np.int8)
        ),
        "tensor fc",
    ),
    "groups crossed": (
        "conv2d",
        lambda x, weight, bias, **options: reference.conv2d(
            x[:, ::-1] if options["groups"] > 1 else x, weight, bias, **options
        ),
        "tensor right",
    ),
    "mean without rounding": (
        "average_pool2d",
        lambda x, **options: reference.average_pool2d(
            x, **options | {"requantizer": _truncating(options["requantizer"])}
        ),
        "tensor pool",
    ),
    "sum rounded twice": (
        "add",
        lambda a, b, *, zero_points, multipliers, shift, output_zero_point, clamp: np.clip(
            sum(
                ((x.astype(np.int64) - z) * int(m) + (1 << (shift - 1))) >> shift
                for x, z, m in zip((a, b), zero_points, multipliers, strict=True)
            )
            + output_zero_point,
            *clamp,
        ),
        "tensor add",
    ),
    "parts in another order": (
        "concat",
        lambda parts, *, zero_points, requantizers: reference.concat(
            parts[::-1], zero_points=zero_points[::-1], requantizers=requantizers[::-1]
        ),
        "tensor cat",
    ),
    "flattened in another order": (
        "flatten",
        lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
        "tensor flatten",
    ),
}


def _truncating(requantizer: Requantizer) -> Any:
    class Truncating:
        def apply(self, sums: NDArray[Any], axis: int = 1) -> NDArray[Any]:
            real = np.asarray(requantizer.multiplier.to_real())
            scaled = np.trunc(sums * (real.reshape([-1] + [1] * (sums.ndim - 2)) if real.ndim else real))
            return np.clip(scaled.astype(np.int32) + requantizer.zero_point, *requantizer.clamp)

    return Truncating()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_kernel(mistake: str) -> None:
    operation, function, where = MISTAKES[mistake]
    net, _ = sound()
    report, first = judged(net, overridden(operation, function))
    assert first.where == where
    assert not any(found.differing for found in report.comparisons if found.kind == "parameter")
    alone = labkit.verify(net, None, images(), kernels=overridden(operation, function))
    assert alone.first == first, "execution can be judged without the module"


@pytest.mark.parametrize("tier", tiers())
def test_concatenation_of_swapped_inputs(tier: str) -> None:
    swapped = with_change("cat", lambda node: replace(node, inputs=node.inputs[::-1]))
    report, first = judged(swapped, tier)
    assert first.where == "tensor cat"
    assert not any(found.differing for found in report.comparisons if found.kind == "parameter")
    both = with_change(
        "cat", lambda node: replace(of_op(requantizers=lambda r: r[::-1])(node), inputs=node.inputs[::-1])
    )
    _, first = judged(both, tier)
    assert first.where in ("cat.exponent", "cat.mantissa")
    assert first.index == (0,)


# ---- rounding: only ties tell

ROUNDINGS: dict[str, Callable[[Requantizer], Any]] = {
    "half to even": lambda requantizer: replace(requantizer, rule=RoundingRule.DYADIC),
    "half away from zero": lambda requantizer: replace(
        requantizer,
        rule=RoundingRule.FLOAT64_AWAY,
        multiplier=requantizer.multiplier.to_real(),
    ),
    "cut off": _truncating,
}


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_wrong_rounding(rounding: str) -> None:
    net, module, x = tied("residual", "W4A4", 4)
    trace: dict[str, Any] = net.trace(x, kernels="reference")
    assert tie_count(net.graph, net.graph["stem"], trace) > 20

    def wrong(*arrays: Any, requantizer: Requantizer, **options: Any) -> Any:
        return reference.conv2d(*arrays, requantizer=ROUNDINGS[rounding](requantizer), **options)

    report = labkit.verify(net, module, x, kernels=overridden("conv2d", wrong))
    assert not report.passed
    assert report.first is not None
    assert report.first.where == "tensor stem"
    truth = conv_element(net.graph, "stem", trace["input_1"], report.first.index)
    assert report.first.expected == str(truth)
    below = truth - 1  # all three round that sum down
    assert report.first.got == str(below if rounding != "cut off" else int(report.first.got))
    assert report.first.got != report.first.expected
    if rounding == "half to even":
        [compared] = [found for found in report.comparisons if (found.kind, found.name) == ("tensor", "stem")]
        ties = tie_count(net.graph, net.graph["stem"], trace)
        assert 0 < compared.differing < ties, "about half of the ties, and nothing else"


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("rule", [RoundingRule.DYADIC, RoundingRule.GEMMLOWP])
def test_rounding_rule_of_the_graph(rule: RoundingRule, tier: str) -> None:
    """The same mistake made in the graph instead of the kernel."""
    net, module, x = tied("residual", "W4A4", 4)
    change = of_requantizer(rule=lambda _: rule)
    nodes = tuple(change(node) if node.name == "stem" else node for node in net.graph)
    report = labkit.verify(IntegerNet(replace(net.graph, nodes=nodes)), module, x, kernels=tier)
    assert report.first is not None
    assert (report.first.where, report.first.got) == ("stem.rule", rule.name)
    assert {c.name: c.differing for c in report.comparisons if c.kind == "tensor"}["stem"] > 0
    assert labkit.verify(IntegerNet(replace(net.graph, nodes=nodes)), None, x, kernels=tier).passed  # its own integers


def test_difference_in_a_later_batch_has_the_index_of_its_image() -> None:
    net, module = sound()
    x = np.array(images())
    seen = 0

    def wrong(x: Any) -> Any:
        nonlocal seen
        out = reference.flatten(x).copy()
        if seen <= 5 < seen + len(out):
            out[5 - seen, 7] ^= 1
        seen += len(out)
        return out

    batches = [x[:3], x[3:7], x[7:]]
    report = labkit.verify(net, module, batches, kernels=overridden("flatten", wrong))
    assert report.first is not None
    assert (report.first.where, report.first.index) == ("tensor flatten", (5, 7))
    assert int(report.first.got) == int(report.first.expected) ^ 1
    assert report.images == 8
