"""From real weights, biases and ranges to the integers of a net: equations 2 to 8a, 10, 12, 19 to 21."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import oracle_arithmetic as oracle
import pytest
import torch
from torch import nn
from unit.quantization.nets import branches, images, small

import labkit
from labkit.arithmetic.affine import PerAxis, PerTensor, QTensor, QuantSpec
from labkit.errors import BoundError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert, quantize_bias, quantize_weight
from labkit.quantization.plan import BitPlan

RNG = np.random.default_rng(0)
WEIGHT = (RNG.normal(size=(6, 4, 3, 3)) * [[[[1]]], [[[3]]], [[[0.1]]], [[[10]]], [[[1e-3]]], [[[1]]]]).astype(
    np.float32
)


# Weights


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_rounded_to_nearest(bits: int, per_channel: bool) -> None:
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0) if per_channel else PerTensor())
    got = quantize_weight("conv1", WEIGHT, spec)
    assert got.values.shape == WEIGHT.shape
    assert got.params.scale.shape == ((6,) if per_channel else ())
    groups = (
        zip(WEIGHT, got.values, got.params.scale, strict=True)
        if per_channel
        else [(WEIGHT, got.values, got.params.scale)]
    )
    for reals, integers, scale in groups:
        flat = reals.reshape(-1).tolist()
        if bits == 1:
            assert Fraction(float(scale)) == oracle.binary_scale(flat)
            assert integers.reshape(-1).tolist() == [1 if r >= 0 else -1 for r in flat]
        else:
            assert Fraction(float(scale)) == oracle.symmetric_scale(min(flat), max(flat), 2 ** (bits - 1) - 1)
            low, high = oracle.grid(bits, True, True)
            assert integers.reshape(-1).tolist() == [oracle.quantize(r, scale, 0, low, high) for r in flat]
            assert np.abs(integers).max() == high


def test_per_channel_is_finer_than_per_tensor() -> None:
    errors = []
    for granularity in (PerAxis(0), PerTensor()):
        real = quantize_weight("conv1", WEIGHT, QuantSpec(4, narrow=True, granularity=granularity)).dequantized()
        errors.append(np.square(real - WEIGHT).reshape(6, -1).sum(1))
    assert (errors[0] <= errors[1]).all()
    assert errors[0][2] < errors[1][2] / 10


@pytest.mark.parametrize("per_channel", [True, False])
def test_three_sigma_clips_weights(per_channel: bool) -> None:
    weight = WEIGHT.copy()
    weight[0, 0, 0, 0] = 50
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(0) if per_channel else PerTensor())
    got = quantize_weight("conv1", weight, spec, "3sigma")
    for c in range(6) if per_channel else (slice(None),):
        reals = weight[c].astype(np.float64)
        mean, spread = reals.mean(), 3 * reals.std()
        end = max(abs(max(reals.min(), mean - spread)), abs(min(reals.max(), mean + spread)))
        assert got.params.scale.reshape(-1)[c if per_channel else 0] == pytest.approx(end / 127, rel=1e-6)
    assert got.values[0, 0, 0, 0] == 127
    assert got.params.scale.flat[0] < quantize_weight("conv1", weight, spec).params.scale.flat[0]


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("ranges", ["minmax", "3sigma"])
def test_an_all_zero_channel_is_named_with_its_layer(bits: int, ranges: str) -> None:
    weight = WEIGHT.copy()
    weight[3] = 0
    with pytest.raises(QuantizationError, match=r"^conv7, weights: .*channel 3 holds only zeros"):
        quantize_weight("conv7", weight, QuantSpec(bits, narrow=True, granularity=PerAxis(0)), ranges)
    assert not quantize_weight("conv7", weight, QuantSpec(8, narrow=True)).values[3].any()  # one scale can bear it
    with pytest.raises(QuantizationError, match=r"^conv7, weights: .*every value is 0"):
        quantize_weight("conv7", weight * 0, QuantSpec(bits, narrow=True), ranges)


# Biases


def _layer(scale: float = 1.0, per_channel: bool = True) -> tuple[np.ndarray, QTensor]:
    weight = (WEIGHT * scale).astype(np.float32)
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(0) if per_channel else PerTensor())
    return weight, quantize_weight("conv1", weight, spec)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_is_rounded_at_the_scale_of_the_products(per_channel: bool) -> None:
    weight, quantized = _layer(per_channel=per_channel)
    bias = RNG.normal(size=6).astype(np.float32)
    x_scale = np.float32(0.0123)
    same, got = quantize_bias("conv1", bias, weight, quantized, x_scale)
    assert same is quantized
    assert got.dtype == np.int32
    for c in range(6):
        scale = Fraction(float(quantized.params.scale[c] if per_channel else quantized.params.scale))
        exact = Fraction(float(bias[c])) / (scale * Fraction(float(x_scale)))
        assert abs(int(got[c]) - exact) <= Fraction(1, 2) + Fraction(1, 2**20)
        assert int(got[c]) == oracle.half_even(oracle.float64(exact))


def test_no_bias_is_zeros() -> None:
    weight, quantized = _layer()
    same, got = quantize_bias("conv1", None, weight, quantized, np.float32(0.1))
    assert same is quantized
    assert (got.dtype, got.tolist()) == (np.int32, [0] * 6)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_scale_is_enlarged_where_its_bias_needs_it(per_channel: bool) -> None:
    """Equation 8a: only where needed, only as far as needed, and the weights follow."""
    weight, quantized = _layer(1e-7, per_channel)
    bias = np.array([1.0, 1e-6, -40.0, 0.0, 3.0, 1e-7], np.float32)
    x_scale = np.float32(1 / 128)
    enlarged, got = quantize_bias("conv1", bias, weight, quantized, x_scale)
    needed = [abs(Fraction(float(b))) / (Fraction(float(x_scale)) * 2**30) for b in bias]
    old = [Fraction(float(s)) for s in np.broadcast_to(quantized.params.scale, 6)]
    new = [Fraction(float(s)) for s in np.broadcast_to(enlarged.params.scale, 6)]
    wanted = needed if per_channel else [max(needed)] * 6
    grew = [n > s for n, s in zip(wanted, old, strict=True)]
    assert any(grew)
    assert all(grew) is not per_channel
    for c in range(6):
        if not grew[c]:
            assert new[c] == old[c]
            assert np.array_equal(enlarged.values[c], quantized.values[c])
            continue
        assert wanted[c] < new[c] <= wanted[c] * (1 + Fraction(1, 2**22))
        low, high = oracle.grid(8, True, True)
        integers = [oracle.quantize(w, float(new[c]), 0, low, high) for w in weight[c].reshape(-1).tolist()]
        assert enlarged.values[c].reshape(-1).tolist() == integers
    exact = [Fraction(float(b)) / (s * Fraction(float(x_scale))) for b, s in zip(bias, new, strict=True)]
    assert got.tolist() == [oracle.half_even(oracle.float64(e)) for e in exact]
    assert 0.999 * 2**30 < np.abs(got).max() <= 2**30


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_net_with_an_enlarged_scale_is_right(per_channel: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()
    with torch.no_grad():
        module[0].weight[0] *= 1e-9
        module[0].weight[1] *= 1.0 if per_channel else 1e-9
        module[0].bias.copy_(torch.tensor([2.0, -0.5]) if per_channel else torch.tensor([2.0, 1.5]))
    x = images(16)
    net = labkit.quantize(module, x, per_channel=per_channel)
    op: Any = net.graph["0"].op
    assert 0.999 * 2**30 < abs(int(op.bias[0])) <= 2**30
    report = labkit.verify(net, module, x, kernels="reference")
    assert report.first is None, str(report)
    with torch.no_grad():
        wanted = module(x).numpy()
    step = float(net.graph["3"].output.quantized[1].scale)
    assert np.abs(net.run(x, kernels="reference") - wanted).max() < 4 * step
    middle = net.trace(x, kernels="reference")["0"][:, 0]
    _, params = net.graph["0"].output.quantized
    assert np.abs((middle - int(params.zero_point)) * float(params.scale) - 2.0).max() <= float(params.scale)


# Whole nets


def _parts(module: nn.Module) -> tuple[Any, Calibration, BitPlan]:
    graph = simplify(from_torch(module, (3, 8, 8)))
    return graph, calibrate(graph, images()), BitPlan.uniform(graph)


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_every_multiplier_is_that_of_its_equation(scheme: str) -> None:
    graph, calibration, plan = _parts(branches())
    net = convert(graph, calibration, replace(plan, activation_scheme=scheme))

    def scale(name: str) -> Fraction:
        return Fraction(float(net[name].output.quantized[1].scale))

    def check(requantizer: Any, multipliers: list[Fraction], name: str) -> None:
        form = requantizer.multiplier
        pairs = list(zip(form.mantissa.reshape(-1).tolist(), form.exponent.reshape(-1).tolist(), strict=True))
        assert pairs == [oracle.quantize_multiplier(oracle.float64(m)) for m in multipliers]
        assert requantizer.zero_point == int(net[name].output.quantized[1].zero_point)

    for name, source in (("stem", "x"), ("depthwise", "stem"), ("fc", "mean")):
        op: Any = net[name].op
        weights = [Fraction(float(s)) for s in op.weight.params.scale]
        check(op.requantizer, [w * scale(source) / scale(name) for w in weights], name)
    check(net["mean"].op.requantizer, [scale("cat") / (scale("mean") * 4)], "mean")  # type: ignore[union-attr]
    for requantizer, source in zip(net["cat"].op.requantizers, ("stem", "add"), strict=True):  # type: ignore[union-attr]
        check(requantizer, [scale(source) / scale("cat")], "cat")
    add: Any = net["add"].op
    ratios = [oracle.float64(scale(source) / scale("add")) for source in ("depthwise", "stem")]
    assert add.multipliers.tolist() == [oracle.half_up(r * 2**add.shift) for r in ratios]
    assert 2**29 <= add.multipliers.max() <= 2**30


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_clamps_are_those_of_the_activations(scheme: str) -> None:
    graph, calibration, plan = _parts(branches())
    ranges = {**calibration.ranges, "stem": (-1.0, 5.0), "add": (-2.0, 9.0)}  # so that the clamps say something
    calibration = Calibration(calibration.statistics, ranges, "minmax", 32)
    net = convert(graph, calibration, replace(plan, activation_scheme=scheme))
    for name, top in (("stem", None), ("add", 6.0), ("depthwise", None)):
        spec, params = net[name].output.quantized
        op: Any = net[name].op
        clamp = op.clamp if name == "add" else op.requantizer.clamp
        zero = int(params.zero_point)
        if name == "depthwise":
            assert clamp == (spec.qmin, spec.qmax)
        else:
            high = spec.qmax if top is None else oracle.quantize(top, params.scale, zero, spec.qmin, spec.qmax)
            assert clamp == (zero, high)
            assert spec.qmin < zero <= clamp[1]
    assert net["add"].op.clamp[1] < net["add"].output.quantized[0].qmax  # type: ignore[union-attr]


def test_pool_and_flatten_keep_the_scale() -> None:
    net = labkit.quantize(branches(), images()).graph
    assert net["pool"].output.quantized == net["cat"].output.quantized
    assert net["flatten"].output.quantized == net["mean"].output.quantized


def test_more_bits_are_closer_to_float() -> None:
    module, x = branches(), images(64)
    with torch.no_grad():
        wanted = module(x).numpy()
    errors = [
        np.square(labkit.quantize(module, x, weights=w, activations=a).run(x, kernels="reference") - wanted).mean()
        for w, a in ((8, 8), (6, 6), (4, 4), (3, 3), (2, 2))
    ]
    assert all(finer < coarser for finer, coarser in pairwise(errors))
    assert errors[0] < 0.001 * wanted.var()
    binary = labkit.quantize(module, x, weights=1).run(x, kernels="reference")
    assert np.corrcoef(binary.ravel(), wanted.ravel())[0, 1] > 0.5


def test_a_tensor_that_was_not_calibrated_is_named() -> None:
    graph, calibration, plan = _parts(small())
    ranges = {name: ends for name, ends in calibration.ranges.items() if name != "3"}
    with pytest.raises(QuantizationError, match=r"knows no tensor '3'; it has input_1, 0\. Calibrate this network"):
        convert(graph, Calibration(calibration.statistics, ranges, "minmax", 1), plan)


def test_a_multiplier_out_of_bounds_is_named() -> None:
    graph, calibration, plan = _parts(small())
    ranges = {**calibration.ranges, "0": (0.0, 1e-12)}
    with pytest.raises(BoundError, match=r"^0: A multiplier must be below 2\*\*30"):
        convert(graph, Calibration(calibration.statistics, ranges, "minmax", 1), plan)


def test_scales_too_far_apart_for_an_add_are_named() -> None:
    graph, calibration, plan = _parts(branches())
    ranges = {**calibration.ranges, "add": (0.0, 1e-10)}
    with pytest.raises(BoundError, match=r"^add: The scales of a sum's inputs and its output are too far apart"):
        convert(graph, Calibration(calibration.statistics, ranges, "minmax", 1), plan)


def test_a_sum_too_deep_for_int32_is_named() -> None:
    module = nn.Sequential(nn.Linear(70_000, 1, bias=False))
    with torch.no_grad():
        module[0].weight.fill_(0.01)
    with pytest.raises(BoundError, match=r"^0: the accumulator of output channel 0 can reach 2,\d{3},\d{3},\d{3}"):
        labkit.quantize(module, torch.rand(2, 70_000))
    labkit.quantize(module, torch.rand(2, 70_000), weights=4)


def test_what_the_net_was_made_from_is_kept() -> None:
    graph, calibration, plan = _parts(small())
    notes = convert(graph, calibration, plan, {"source": "a test"}).notes
    assert notes["source"] == "a test"
    assert Calibration.from_json(notes["calibration"]) == calibration
    assert BitPlan.from_json(notes["plan"]) == plan
