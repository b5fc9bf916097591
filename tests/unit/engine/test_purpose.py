"""Prepared for speed or for few bytes: the same integers, and what they take."""

from __future__ import annotations

import numpy as np
import pytest
from unit.engine.graphs import S8, U4, U8, Builder, affine, images_for, lenet

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.memory import slot_bytes
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Purpose, Registers, Route, prepare
from labkit.engine.run import run, trace
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.costs import costs
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet

SAME = ((1, 1), (1, 1))
W8, W4 = QuantSpec(8, narrow=True, granularity=PerAxis(0)), QuantSpec(4, granularity=PerAxis(0))
PORTABLE = (Dot.PAIRS,)
FEW_BYTES = 1.3  # times the weights and the two largest activations at one byte each


def residual_net(weights=W8, rule=RoundingRule.SINGLE):
    """A shortcut, a depthwise and a grouped layer, and sizes that change."""
    b = Builder(4, rule=rule)
    first = x = b.conv(b.quantize((3, 13, 12), affine(U8)), 40, (3, 3), padding=SAME, spec=affine(U8))
    y = b.conv(x, 40, (3, 3), padding=SAME, spec=affine(U8), weights=weights)
    y = b.conv(y, 40, (3, 3), padding=SAME, spec=affine(S8), weights=weights)
    x = b.add(x, y, spec=affine(U8))
    y = b.conv(x, 40, (3, 3), groups=40, padding=SAME, spec=affine(U8), weights=weights)
    z = b.conv(first, 40, (3, 3), groups=8, padding=SAME, spec=affine(U8), weights=weights)
    x = b.average_pool(b.concat(y, z, spec=affine(S8)), (3, 3))
    return b.graph(b.dequantize(b.linear(b.flatten(x), 10, weights=weights)))


def resnet18(weights, activations):
    """The layers of ResNet-18 for images of 224 x 224, with random weights; its first and last layer have 8 bits."""
    b = Builder(0)
    x = b.quantize((3, 224, 224), affine(U8))
    x = b.conv(x, 64, (7, 7), stride=(2, 2), padding=((3, 3), (3, 3)), spec=activations, weights=W8)
    x = b.max_pool(x, (3, 3), stride=(2, 2), padding=SAME)
    for channels, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        options = {"spec": activations, "weights": weights}
        y = b.conv(x, channels, (3, 3), stride=(stride, stride), padding=SAME, **options)
        y = b.conv(y, channels, (3, 3), padding=SAME, **options)
        if stride > 1:
            x = b.conv(x, channels, (1, 1), stride=(stride, stride), **options)
        x = b.add(x, y, spec=activations)
    x = b.flatten(b.average_pool(x, (7, 7), spec=affine(U8)))
    return b.graph(b.dequantize(b.linear(x, 1000, weights=W8)))


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("weights", [W8, W4], ids=str)
@pytest.mark.parametrize("dots", [None, PORTABLE], ids=["default", "pairs"])
@pytest.mark.parametrize("graph", [residual_net, lambda w: lenet(1, weights=w)], ids=["residual", "lenet"])
def test_no_purpose_changes_a_number(purpose, weights, dots, graph):
    graph = graph(weights)
    prepared = prepare(graph, purpose=purpose, dots=dots)
    for count, threads in ((1, 1), (5, 1), (5, 2)):
        images = images_for(graph, count, count)
        expected = run_nodes(graph, images, REFERENCE)
        found = trace(prepared, images)
        for node in graph:
            np.testing.assert_array_equal(found[node.name], expected[node.name], err_msg=node.name)
        for name, result in run(prepared, images, threads).items():
            np.testing.assert_array_equal(result, expected[name])


@pytest.mark.parametrize("rule", RoundingRule)
def test_every_rule_for_few_bytes(rule):
    graph = residual_net(W4, rule)
    images = images_for(graph, 2)
    expected = run_nodes(graph, images, REFERENCE)
    for name, result in run(prepare(graph, purpose=Purpose.MEMORY), images).items():
        np.testing.assert_array_equal(result, expected[name])


def is_winograd(prepared):
    return any(step.kernel.__name__.startswith("conv3x3") for step in prepared.steps)


@pytest.mark.parametrize("registers", Registers)
def test_few_bytes_mean_no_transform_and_one_image_at_a_time(registers):
    b = Builder(0)
    b.conv(b.quantize((16, 24, 24), affine(U8)), 16, (3, 3), padding=SAME)
    graph = b.graph()
    fast = prepare(graph, dots=PORTABLE, registers=registers)
    small = prepare(graph, purpose=Purpose.MEMORY, dots=PORTABLE, registers=registers)
    assert is_winograd(fast)
    assert not is_winograd(small)
    assert (fast.chunk > 1, small.chunk) == (True, 1)
    assert small.resident_bytes < fast.resident_bytes / 2
    wanted = prepare(graph, purpose=Purpose.MEMORY, dots=PORTABLE, registers=registers, route=Route.F4)
    assert is_winograd(wanted)  # who names a transform gets it


@pytest.mark.parametrize(("weights", "activations"), [(W8, affine(U8)), (W4, affine(U4))], ids=["w8a8", "w4a4"])
@pytest.mark.parametrize("dots", [None, PORTABLE, (Dot.NIBBLES, Dot.PAIRS)], ids=["default", "pairs", "nibbles"])
def test_resnet18_in_few_bytes(weights, activations, dots):
    graph = resnet18(weights, activations)
    prepared = prepare(graph, purpose=Purpose.MEMORY, dots=dots)
    arena = sum(slot_bytes(prepared.buffers, prepared.slots, 1))
    sizes = sorted(int(np.prod(node.output.shape)) for node in graph if not isinstance(node.op, int_ops.Dequantize))
    width = 1 if Dot.PAIRS not in (dots or ())[:1] else 2  # a tile of pairs of int16 wants its inputs so
    assert prepared.resident_bytes + arena < FEW_BYTES * (costs(graph).size_bytes + width * sum(sizes[-2:]))


@pytest.mark.parametrize("dot", [dot for dot in Dot if not dot.is_native])
def test_four_bits_take_half_of_eight(dot):
    b = Builder(0)
    x = b.conv(b.quantize((64, 8, 8), affine(U4)), 128, (3, 3), weights=W4, spec=affine(U4))
    b.conv(x, 256, (3, 3), weights=W4)
    small, fast = (
        prepare(b.graph(), purpose=purpose, dots=(dot, Dot.PAIRS), route=Route.DIRECT) for purpose in reversed(Purpose)
    )
    weights = 9 * (64 * 128 + 128 * 256)
    assert fast.resident_bytes - small.resident_bytes == weights // 2


def test_resident_bytes_counts_each_array_once():
    b = Builder(0)
    b.linear(b.quantize((64,), affine(U8)), 32)
    prepared = prepare(b.graph())
    arrays = [constant for step in prepared.steps for constant in step.constants if isinstance(constant, np.ndarray)]
    assert prepared.resident_bytes == sum(array.nbytes for array in arrays)
    assert prepared.resident_bytes > 64 * 32


def test_a_net_keeps_what_it_prepared_for_each_purpose():
    graph = lenet(3, weights=W4)
    net = IntegerNet(graph)
    (x,) = images_for(graph, 3).values()
    expected = net.run(x, kernels="reference")
    for purpose in ("speed", "memory", Purpose.MEMORY):
        np.testing.assert_array_equal(net.run(x, purpose=purpose), expected)
    assert net.prepared("memory") is net.prepared(Purpose.MEMORY)
    assert net.prepared("memory") is not net.prepared()
    assert net.prepared("memory").resident_bytes < net.prepared().resident_bytes


@pytest.mark.parametrize("purpose", ["size", "", None, 1])
def test_unknown_purposes_are_refused(purpose):
    graph = lenet(3)
    (x,) = images_for(graph, 1).values()
    with pytest.raises(InputError, match=r'purpose must be "speed" or "memory"'):
        IntegerNet(graph).run(x, purpose=purpose)
