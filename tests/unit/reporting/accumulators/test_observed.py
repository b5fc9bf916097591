"""What is seen on images, against sums that NumPy and Python fractions compute from the fast engine's tensors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import oracle
import pytest
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine, images_for, lenet

import labkit
from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.net import IntegerNet
from labkit.reporting.accumulators.analyse import BATCH, analyse
from labkit.reporting.accumulators.results import Landing, Span

RULES = {
    RoundingRule.SINGLE: oracle.single,
    RoundingRule.DYADIC: oracle.dyadic,
    RoundingRule.GEMMLOWP: oracle.gemmlowp,
    RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
}


def windows(x, kernel, stride, padding, dilation):
    """int64 [N, C, H', W', kH, kW]: what each output position meets."""
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    reach = [dilation[a] * (kernel[a] - 1) + 1 for a in range(2)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def sums_of(graph, node, trace):
    """The finished sums of ``node``, int64, by one tensor product each; the parts of a Concat one after the other."""
    parts = [trace[name].astype(np.int64) - int(graph[name].output.params.zero_point) for name in node.inputs]
    op = node.op
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        weights = op.weight.values.astype(np.int64)
        weights = weights - op.weight.params.zero_point.astype(np.int64).reshape([-1] + [1] * (weights.ndim - 1))
        bias = op.bias.astype(np.int64)
        if isinstance(op, int_ops.Linear):
            return [np.tensordot(parts[0], weights, (1, 1)) + bias]
        met = windows(parts[0], weights.shape[2:], op.stride, op.padding, op.dilation)
        filters = np.split(weights, op.groups)
        groups = [
            np.tensordot(x, w, ((1, 4, 5), (1, 2, 3)))
            for x, w in zip(np.split(met, op.groups, axis=1), filters, strict=True)
        ]
        return [(np.concatenate(groups, axis=-1) + bias).transpose(0, 3, 1, 2)]
    if isinstance(op, int_ops.AveragePool2d):
        return [windows(parts[0], op.kernel, op.stride, op.padding, (1, 1)).sum(axis=(4, 5))]
    if isinstance(op, int_ops.Add):
        return [parts[0] * int(op.multipliers[0]) + parts[1] * int(op.multipliers[1])]
    if isinstance(op, int_ops.Multiply):
        return [parts[0] * parts[1]]
    return parts


def before_clamp(op, index, sums):
    """Each output before its clamp, as a list of Python integers in the order of ``sums`` [N, C, ...]."""
    if isinstance(op, int_ops.Add):
        return [oracle.half_up(Fraction(int(s), 2**op.shift)) + op.zero_point for s in sums.reshape(-1)]
    requantizer = op.requantizers[index] if isinstance(op, int_ops.Concat) else op.requantizer
    multiplier, rule = requantizer.multiplier, RULES[requantizer.rule]
    assert isinstance(multiplier, FixedPointMultiplier)
    shape = [1, -1] + [1] * (sums.ndim - 2) if multiplier.mantissa.ndim else []
    mantissa, exponent = (
        np.broadcast_to(part.reshape(shape), sums.shape).reshape(-1)
        for part in (multiplier.mantissa, multiplier.exponent)
    )
    results = {}
    for one in zip(sums.reshape(-1).tolist(), mantissa.tolist(), exponent.tolist(), strict=True):
        if one not in results:
            results[one] = rule(*one) + requantizer.zero_point
    return [results[one] for one in zip(sums.reshape(-1).tolist(), mantissa.tolist(), exponent.tolist(), strict=True)]


def clamp_of(op):
    return (
        op.clamp
        if isinstance(op, int_ops.Add)
        else getattr(op, "requantizer", getattr(op, "requantizers", [0])[0]).clamp
    )


def branches(seed, rule, ties=False):
    """Every operation that sums, on one small image."""
    b = Builder(seed, rule=rule, ties=ties)
    x = b.quantize((4, 5, 6), affine(U8))
    y = b.conv(x, 6, (3, 3), padding=((1, 1), (1, 0)), spec=affine(U4), gain=2.0)
    z = b.conv(x, 6, (2, 3), padding=((1, 0), (0, 1)), groups=2, spec=affine(S8))
    z = b.conv(z, 6, (3, 3), groups=6, dilation=(2, 1), padding=((2, 2), (1, 1)), stride=(1, 1), spec=affine(S4))
    y = b.add(y, z, spec=affine(S8))
    y = b.multiply(y, z, spec=affine(U8))
    y = b.requantize(b.concat(y, z, spec=affine(U8)), spec=affine(S8), gain=1.5)
    y = b.average_pool(y, (2, 2), stride=(2, 1), padding=((1, 0), (0, 1)), spec=affine(U8))
    return b.graph(b.dequantize(b.linear(b.flatten(y), 7, gain=3.0)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ties", [False, True], ids=["any", "ties"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_sums_and_outputs_are_those_of_an_independent_computation(rule, ties, seed):
    graph = branches(seed, rule, ties)
    inputs = images_for(graph, 4, seed)
    net = IntegerNet(graph)
    trace = net.trace(inputs)
    layers = analyse(net, inputs[graph.inputs[0]]).layers
    assert {layer.operation for layer in layers} == set(
        "Conv2d Add Multiply Concat Requantize AveragePool2d Linear".split()
    )
    for layer in layers:
        node = graph[layer.name]
        sums = sums_of(graph, node, trace)
        assert layer.observed == Span(min(int(s.min()) for s in sums), max(int(s.max()) for s in sums)), layer.name
        assert layer.worst.low <= layer.observed.low and layer.observed.high <= layer.worst.high
        low, high = clamp_of(node.op)
        outputs = [value for index, part in enumerate(sums) for value in before_clamp(node.op, index, part)]
        landing = layer.landing
        assert landing.outputs == trace[layer.name].size == len(outputs)
        assert (landing.at_low, landing.at_high) == tuple(int(np.sum(trace[layer.name] == end)) for end in (low, high))
        assert (landing.cut_low, landing.cut_high) == (sum(o < low for o in outputs), sum(o > high for o in outputs))
        spec, params = node.output.quantized
        assert landing.low_is_activation is (low == int(params.zero_point))
        assert landing.high_is_activation is (high < spec.qmax)


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 3])
def test_batches_add_up(count):
    graph = lenet(3)
    x = images_for(graph, count, 1)[graph.inputs[0]]
    net, told = IntegerNet(graph), []
    whole = analyse(net, x, "these", told.append)
    apart = analyse(net, (x[i : i + 1] for i in range(count)), "these")
    assert whole == apart
    assert (whole.images, whole.source) == (count, "these")
    assert told == [min(done, count) for done in range(BATCH, count + BATCH, BATCH)]


def test_without_images_only_the_worst_case_is_known():
    net = IntegerNet(lenet(1))
    bare = analyse(net)
    seen = analyse(net, images_for(net.graph, 2)[net.graph.inputs[0]])
    assert bare.images == 0
    assert [replace(layer, observed=None, landing=None) for layer in seen.layers] == list(bare.layers)


def test_the_network_is_left_as_it_was():
    net = IntegerNet(lenet(1))
    x = images_for(net.graph, 3)[net.graph.inputs[0]]
    ops = [node.op for node in net.graph]
    expected = net.run(x)
    analyse(net, x)
    assert [node.op for node in net.graph] == ops
    assert np.array_equal(net.run(x), expected)


def one_requantize(spec, scale, zero_point, clamp, real):
    """A graph that only moves an input of 8 bits to ``spec`` under ``clamp``, and the outputs that ``real`` make."""
    b = Builder(0)
    b.requantize(b.quantize((1, 1, len(real)), QuantSpec(8), 1.0), spec=spec)
    node = b.nodes[-1]
    requantizer = replace(
        node.op.requantizer, multiplier=FixedPointMultiplier.from_real(1.0), zero_point=zero_point, clamp=clamp
    )
    output = replace(node.output, params=QParams(np.float32(scale), np.int32(zero_point)))
    b.nodes[-1] = replace(node, op=int_ops.Requantize(requantizer), output=output)
    graph = b.graph()
    (layer,) = analyse(IntegerNet(graph), np.array(real, np.float32).reshape(1, 1, 1, -1)).layers
    return layer.landing


SIX = float(np.float32(6) / np.float32(15))


@pytest.mark.parametrize(
    ("scale", "zero_point", "clamp", "expected", "shares"),
    [
        # no activation: 5 of 8 at the low end (4 of them beyond it), 2 at the high end (1 beyond it)
        (1.0, 3, (0, 15), Landing(8, 5, 2, 4, 1, False, False), (0, 5 / 8, 2 / 8, 5 / 8)),
        # a ReLU at the zero point 3
        (1.0, 3, (3, 15), Landing(8, 6, 2, 5, 1, True, False), (6 / 8, 0, 2 / 8, 1 / 8)),
        # a ReLU on a grid that begins at real 0
        (1.0, 0, (0, 15), Landing(8, 6, 1, 5, 0, True, False), (6 / 8, 0, 1 / 8, 0)),
        # a ReLU6 whose 6 lies inside the grid
        (1.0, 3, (3, 9), Landing(8, 6, 2, 5, 2, True, True), (8 / 8, 0, 0, 0)),
        # a ReLU6 whose grid ends at 6, and a ReLU whose grid ends near it
        (SIX, 0, (0, 15), Landing(8, 6, 1, 5, 0, True, True), (7 / 8, 0, 0, 0)),
        (SIX * 1.001, 0, (0, 15), Landing(8, 6, 1, 5, 0, True, False), (6 / 8, 0, 1 / 8, 0)),
    ],
    ids=["none", "relu", "relu at the end", "relu6", "relu6 at the end", "relu near 6"],
)
def test_outputs_at_a_clamp_are_put_down_to_what_set_it(scale, zero_point, clamp, expected, shares):
    landing = one_requantize(affine(U4), scale, zero_point, clamp, [-50, -40, -5, -4, -3, 0, 12, 15])
    assert landing == expected
    assert (landing.by_activation, landing.saturated_low, landing.saturated_high, landing.cut) == shares


@pytest.mark.parametrize("real", [[3, 5, 4], [-3, -5, -4]], ids=["above 0", "below 0"])
def test_sums_of_one_sign_do_not_reach_to_zero(real):
    b = Builder(0)
    b.requantize(b.quantize((1, 1, 3), QuantSpec(8), 1.0))
    (layer,) = analyse(IntegerNet(b.graph()), np.array(real, np.float32).reshape(1, 1, 1, 3)).layers
    assert layer.observed == Span(min(real), max(real))


@pytest.mark.parametrize("clamp", [(0, 3), (2, 5)])
def test_an_add_is_rounded_before_its_outputs_are_counted(clamp):
    b = Builder(0)
    x = b.quantize((1, 1, 16), U4, 1.0)
    b.add(x, x, spec=U4)
    op = int_ops.Add(np.array([1, 1], np.int32), 2, 0, clamp)  # 2 x / 4, ties up
    b.nodes[-1] = replace(b.nodes[-1], op=op)
    values = range(16)
    images = np.array(values, np.float32).reshape(1, 1, 1, 16)
    (layer,) = analyse(IntegerNet(b.graph()), images).layers
    outputs = [oracle.half_up(Fraction(value, 2)) for value in values]
    assert layer.observed == Span(0, 30)
    assert (layer.landing.cut_low, layer.landing.cut_high) == (
        sum(o < clamp[0] for o in outputs),
        sum(o > clamp[1] for o in outputs),
    )
    assert layer.landing.at_high == sum(o >= clamp[1] for o in outputs)


def test_no_images_and_wrong_images_are_refused():
    net = IntegerNet(lenet(1))
    with pytest.raises(InputError, match="no images to analyse"):
        analyse(net, [])
    with pytest.raises(InputError, match="must have shape"):
        analyse(net, np.zeros((2, 3, 16, 16), np.float32))


@pytest.mark.parametrize("weights", [8, 4])
def test_shipped_lenet(weights):
    data = labkit.data.load("mnist5k")
    calibration = data.calibration(64)
    net = labkit.quantize(labkit.models.load("lenet", data="mnist5k"), calibration, weights=weights)
    trace = net.trace(calibration)
    found = analyse(net, calibration)
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert [layer.products for layer in found.layers] == [75, 108, 1152, 256, 64]
    for layer in found.layers:
        (sums,) = sums_of(net.graph, net.graph[layer.name], trace)
        assert layer.observed == Span(int(sums.min()), int(sums.max()))
        assert layer.landing.at_low == np.sum(trace[layer.name] == 0)
        assert layer.landing.low_is_activation is (layer.name != "fc3")
    assert (sum(layer.pairs.saturating for layer in found.layers) > 0) is (weights == 8)
