"""The fast tier against the reference tier: every node of every graph, tolerance 0."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine, images_for, lenet

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import prepare
from labkit.engine.run import run, trace
from labkit.errors import BoundError, ModelError, QuantizationError
from labkit.kernels.fast import elementwise
from labkit.kernels.fast.depthwise import DEPTHWISE, DEPTHWISE_SUMS
from labkit.kernels.kernel_set import REFERENCE

PER_CHANNEL = PerAxis(0)


def assert_same(graph, images=3, seed=0, **options):
    """Compare every node of ``graph``, and the names carried by it, over ``images`` images; ``options`` of `prepare`."""
    inputs = images_for(graph, images, seed)
    expected = run_nodes(graph, inputs, REFERENCE)
    prepared = prepare(graph, **options)
    got = trace(prepared, inputs)
    assert set(got) == set(graph.carriers())
    for name, carrier in graph.carriers().items():
        assert got[name].dtype == expected[carrier].dtype, name
        assert got[name].shape == expected[carrier].shape, name
        np.testing.assert_array_equal(got[name], expected[carrier], err_msg=f"{name} of\n{graph}")
    outputs = run(prepared, inputs)
    assert list(outputs) == list(graph.outputs)
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, expected[name])
    return got


def settings(index):
    """A third of the cases has power-of-two multipliers (ties), a third weights at the ends of their grid."""
    return {"ties": index % 3 == 0, "extreme": index % 3 == 1}


# input channels, output channels, kernel, stride, padding, dilation, height and width
CONVOLUTIONS = [
    (1, 1, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    (3, 12, (5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), (9, 8)),
    (3, 16, (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), (15, 15)),
    (5, 17, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (7, 6)),
    (12, 32, (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), (6, 6)),
    (17, 3, (3, 3), (2, 1), ((1, 0), (0, 2)), (1, 1), (8, 7)),
    (16, 16, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), (8, 8)),
    (4, 33, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), (5, 5)),
    (17, 48, (1, 1), (1, 1), ((2, 0), (0, 1)), (1, 1), (4, 3)),
    (3, 5, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), (7, 7)),
    (12, 17, (2, 3), (1, 2), ((1, 2), (3, 0)), (3, 1), (9, 11)),
    (5, 12, (1, 4), (1, 1), ((0, 0), (1, 2)), (1, 2), (3, 12)),
    (1, 5, (1, 9), (1, 4), ((0, 0), (4, 4)), (1, 1), (1, 40)),
]


@pytest.mark.parametrize("index", range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("spec", [S8, affine(S8), affine(U8), affine(S4), affine(U4)], ids=str)
def test_conv2d(index, spec):
    channels, outputs, kernel, stride, padding, dilation, size = CONVOLUTIONS[index]
    b = Builder(index, **settings(index + spec.bits))
    x = b.quantize((channels, *size), spec)
    b.conv(x, outputs, kernel, stride=stride, padding=padding, dilation=dilation, spec=affine(spec))
    assert_same(b.graph(), seed=index)


WEIGHTS = [
    *(QuantSpec(bits, granularity=PER_CHANNEL) for bits in range(2, 9)),
    QuantSpec(1, narrow=True, granularity=PER_CHANNEL),
    QuantSpec(8),
    QuantSpec(8, symmetric=False, granularity=PER_CHANNEL),
    QuantSpec(8, signed=False, symmetric=False),
    QuantSpec(4, signed=False, symmetric=False, granularity=PER_CHANNEL),
    QuantSpec(1, signed=False, symmetric=False),
]


@pytest.mark.parametrize("index", range(len(WEIGHTS)))
@pytest.mark.parametrize("extreme", [False, True])
def test_weights_of_any_grid(index, extreme):
    b = Builder(index, extreme=extreme, ties=index % 3 == 0)
    x = b.quantize((5, 6, 6), affine(U8))
    x = b.conv(x, 12, (3, 3), weights=WEIGHTS[index], channels=index % 2 == 0)
    b.linear(b.flatten(x), 17, weights=WEIGHTS[index], channels=index % 2 == 0)
    assert_same(b.graph())


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_rounding_rules(rule, inside, ties):
    """Each rule after a convolution, a grouped one, a Linear layer, an average pool, a Requantize and a Concat."""
    b = Builder(3, rule=rule, ties=ties, inside=inside)
    x = b.quantize((3, 8, 8), affine(S8))
    a = b.conv(x, 12, (3, 3), padding=((1, 1), (1, 1)), spec=affine(U8))
    c = b.conv(a, 12, (3, 3), padding=((1, 1), (1, 1)), groups=12, spec=affine(S8), channels=False)
    a = b.concat(b.requantize(a, spec=affine(U8)), c, spec=affine(S8))
    a = b.average_pool(a, (2, 2), spec=affine(S8))
    b.linear(b.flatten(a), 10, spec=affine(S8))
    assert_same(b.graph(), seed=1)


@pytest.mark.parametrize("rule", [RoundingRule.SINGLE, RoundingRule.DYADIC, RoundingRule.FLOAT64_AWAY])
def test_multipliers_far_above_one_saturate(rule):
    """Results beyond int32 before the clamp: the tile must not finish these in 32 bits."""
    b = Builder(8, rule=rule)
    x = b.quantize((3, 5, 5), affine(S8))
    x = b.conv(x, 5, (3, 3), gain=2.0**30, channels=False)
    b.linear(b.flatten(x), 3, gain=2.0**30)
    got = assert_same(b.graph())
    assert set(np.unique(got[b.graph().outputs[0]])) <= {-128, 0, 127} | {
        int(b[b.graph().outputs[0]].params.zero_point)
    }


def test_left_shift_out_of_int32_is_an_error():
    b = Builder(8, rule=RoundingRule.GEMMLOWP)
    b.conv(b.quantize((3, 5, 5), affine(S8)), 5, (3, 3), gain=2.0**30)
    graph = b.graph()
    inputs = images_for(graph, 2)
    with pytest.raises(BoundError, match="SINGLE"):
        run_nodes(graph, inputs, REFERENCE)
    with pytest.raises(BoundError, match=f"{graph.outputs[0]}.*SINGLE"):
        run(prepare(graph), inputs)


# channels, groups, outputs, kernel, stride, padding, dilation
GROUPED = [
    (5, 5, 5, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    (17, 17, 17, (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
    (16, 16, 16, (5, 3), (1, 2), ((2, 2), (0, 1)), (1, 2)),
    (3, 3, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    (12, 4, 8, (3, 3), (1, 1), ((1, 0), (0, 1)), (1, 1)),
    (12, 2, 34, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    (6, 3, 3, (2, 2), (1, 1), ((1, 1), (1, 1)), (2, 2)),
]


@pytest.mark.parametrize("index", range(len(GROUPED)))
@pytest.mark.parametrize("spec", [affine(S8), affine(U4)], ids=str)
def test_groups(index, spec):
    channels, groups, outputs, kernel, stride, padding, dilation = GROUPED[index]
    b = Builder(index, **settings(index))
    x = b.quantize((channels, 7, 6), spec)
    weights = QuantSpec(8, symmetric=False, granularity=PER_CHANNEL) if index % 2 else None
    b.conv(
        x, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, weights=weights, spec=spec
    )
    assert_same(b.graph())


# inputs, outputs
LINEAR = [(1, 1), (3, 5), (17, 12), (64, 10), (31, 64), (128, 65), (40, 144)]


@pytest.mark.parametrize("index", range(len(LINEAR)))
@pytest.mark.parametrize("count", [1, 5])
def test_linear(index, count):
    inputs, outputs = LINEAR[index]
    b = Builder(index, **settings(index))
    x = b.linear(b.quantize((inputs,), affine(S8)), outputs, spec=affine(U8))
    b.linear(x, 7, spec=affine(S8))
    assert_same(b.graph(), count)


# kernel, stride, padding, dilation, ceil_mode
MAX_POOLS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False),
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), False),
    ((3, 2), (2, 1), ((0, 1), (1, 0)), (1, 1), True),
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), True),
    ((2, 3), (1, 2), ((1, 1), (1, 1)), (3, 2), True),
    ((9, 7), (1, 1), ((0, 0), (0, 0)), (1, 1), False),
]


@pytest.mark.parametrize("index", range(len(MAX_POOLS)))
@pytest.mark.parametrize("channels", [1, 3, 5, 17])
def test_max_pool2d(index, channels):
    kernel, stride, padding, dilation, ceil_mode = MAX_POOLS[index]
    b = Builder(index)
    x = b.quantize((channels, 9, 7), affine(U8 if index % 2 else S8))
    b.max_pool(x, kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    assert_same(b.graph())


def test_max_pool2d_after_a_padded_neighbour():
    """A consumer with padding gives the buffer a border of zeros, over which a negative maximum must win."""
    b = Builder(0)
    x = b.quantize((5, 6, 6), S8, 0.05)
    pooled = b.max_pool(x, (3, 3), stride=(1, 1), padding=((1, 1), (1, 1)))
    other = b.conv(x, 5, (5, 5), padding=((2, 2), (2, 2)))
    graph = b.graph(pooled, other)
    inputs = {x: -np.abs(images_for(graph, 4)[x]) - np.float32(0.1)}
    expected = run_nodes(graph, inputs, REFERENCE)
    assert expected[pooled].max() < 0
    for name, array in trace(prepare(graph), inputs).items():
        np.testing.assert_array_equal(array, expected[graph.carriers()[name]])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0))),
        ((7, 6), (1, 1), ((0, 0), (0, 0))),
        ((3, 3), (1, 2), ((1, 1), (0, 1))),
    ],
)
@pytest.mark.parametrize("channels", [3, 17])
def test_average_pool2d(kernel, stride, padding, channels):
    b = Builder(channels, ties=channels == 3)
    x = b.quantize((channels, 7, 6), affine(U8))
    b.average_pool(x, kernel, stride=stride, padding=padding, spec=affine(S8))
    assert_same(b.graph())


@pytest.mark.parametrize("shift", [1, 15, 30])
@pytest.mark.parametrize("ties", [False, True])
def test_add(shift, ties):
    b = Builder(shift, ties=ties)  # shift 1 lets both terms saturate the result
    x = b.quantize((3, 5, 4), affine(U8))
    y = b.conv(x, 3, (3, 3), padding=((1, 1), (1, 1)), spec=affine(S8))
    z = b.add(x, y, spec=affine(S8), shift=shift)
    b.conv(z, 5, (3, 3), padding=((2, 2), (2, 2)))
    flat = b.quantize((19,), affine(S4))
    graph = b.graph(b.nodes[-2].name, b.add(flat, flat, spec=affine(S8)))
    assert_same(graph)


@pytest.mark.parametrize("multipliers", [(2**30 - 1, 2**30 - 1), (1, 2**30 - 1), (2**15, 2**15 - 1), (2**29, 2**29)])
@pytest.mark.parametrize("shift", [15, 16, 17, 30, 31, 45, 46, 62])
@pytest.mark.parametrize("channels", [3, 16, 17])
def test_add_by_halves_of_the_multipliers(multipliers, shift, channels):
    """Every pair of inputs at the ends of the grid and many in between, with the border of both sides kept."""
    b = Builder(shift)
    x, y = b.quantize((channels, 13, 21), U8, 1.0), b.quantize((channels, 13, 21), affine(S8), 1.0)
    z = b.add(x, y, spec=affine(S8), shift=1)
    op = replace(b.nodes[-1].op, multipliers=np.array(multipliers, np.int32), shift=shift)
    b.nodes[-1] = replace(b.nodes[-1], op=op)
    b.conv(b.add(z, y), 4, (3, 3), padding=((1, 1), (1, 1)))
    graph = b.graph()
    assert_same(graph)
    fits = 16 <= shift <= 45
    assert prepare(graph).steps[0].kernel is (elementwise.add_vectors if fits else elementwise.add)


@pytest.mark.parametrize("multipliers", [(2**30, 1), (2**31 - 1, 2**31 - 1), (-1, 5)])
def test_add_of_multipliers_that_do_not_split(multipliers):
    assert elementwise.split_multipliers(np.array(multipliers, np.int32), 30) is None


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [((3, 3), (1, 1), (1, 1)), ((2, 2), (2, 1), (1, 2))])
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_depthwise(rule, kernel, stride, dilation, channels):
    """An odd and an even number of kernel elements; a dense input, whole panels and a part of one."""
    b = Builder(channels, rule=rule, ties=channels == 16, extreme=channels == 40)
    x = b.quantize((channels, 8, 9), affine(U8))
    weights = QuantSpec(8, symmetric=False, granularity=PER_CHANNEL)
    options = {"stride": stride, "dilation": dilation, "padding": ((1, 1), (1, 1)), "groups": channels}
    x = b.conv(x, channels, kernel, weights=weights, spec=affine(S8), **options)
    b.conv(x, channels, kernel, weights=weights, spec=affine(U8), channels=False, **options)
    graph = b.graph()
    assert_same(graph, 2)
    assert prepare(graph).steps[0].kernel is DEPTHWISE.get(rule, DEPTHWISE_SUMS)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("parts", [(16, 16), (3, 17), (16, 5), (31, 1)])
def test_concat_keeps_the_neighbours(rule, parts):
    """What is written in sixteens must not reach into the next pixel."""
    b = Builder(parts[0], rule=rule)
    x = b.quantize((4, 5, 6), affine(S8))
    joined = b.concat(*(b.conv(x, count, (1, 1), spec=affine(U8)) for count in parts), spec=affine(S8))
    b.conv(b.requantize(joined, spec=affine(S4)), 5, (3, 3), padding=((1, 1), (1, 1)))
    assert_same(b.graph())


def test_branches_with_differing_padding():
    """One tensor read with paddings 0, 1, 2 and asymmetric, pooled, added, joined and flattened."""
    b = Builder(11)
    x = b.quantize((3, 9, 9), affine(S8))
    x = b.conv(x, 12, (3, 3), padding=((1, 1), (1, 1)), spec=affine(U8))
    one = b.conv(x, 5, (1, 1), spec=affine(S8))
    three = b.conv(x, 5, (3, 3), padding=((1, 1), (1, 1)), spec=affine(S8))
    five = b.conv(x, 17, (5, 5), padding=((2, 2), (2, 2)), spec=affine(U8))
    uneven = b.conv(x, 5, (2, 2), padding=((1, 0), (0, 1)), spec=affine(S8))
    joined = b.concat(b.add(one, three), five, uneven, spec=affine(S8))
    pooled = b.max_pool(joined, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))
    flat = b.flatten(pooled)
    out = b.linear(flat, 10, spec=affine(S8))
    padded = b.conv(pooled, 3, (3, 3), padding=((1, 1), (1, 1)))  # gives the flattened buffer a border
    graph = b.graph(b.dequantize(out), padded, joined, flat)
    assert_same(graph, 5)


def test_flatten_has_the_order_of_pytorch():
    b = Builder(2)
    x = b.flatten(b.max_pool(b.quantize((5, 4, 6), affine(S8)), (2, 2)))
    graph = b.graph(b.dequantize(b.requantize(b.flatten(x), spec=affine(S8))), b.dequantize(x))
    assert_same(graph)


def test_dequantize_images():
    b = Builder(2)
    x = b.quantize((3, 4, 6), affine(U8))
    assert_same(b.graph(b.dequantize(x), b.dequantize(b.conv(x, 17, (3, 3)))))


def test_binary_activations():
    b = Builder(2)
    x = b.quantize((3, 4, 6), QuantSpec(1, narrow=True))
    b.conv(x, 5, (3, 3), padding=((1, 1), (1, 1)))
    assert_same(b.graph())


@pytest.mark.parametrize("count", [1, 2, 5, 33, 70])
@pytest.mark.parametrize("spec", [S8, U4], ids=str)
def test_any_number_of_images(count, spec):
    assert_same(lenet(count, spec=spec), count)


def test_no_images():
    graph = lenet(0)
    got = trace(prepare(graph), images_for(graph, 0))
    for node in graph:
        assert got[node.name].shape == (0, *node.output.shape)
        assert got[node.name].dtype == (np.float32 if node.output.spec is None else node.output.spec.dtype)


def test_a_run_leaves_no_trace_in_the_next():
    """Buffers are used again: a second batch must not see the first, nor its border be touched."""
    graph = lenet(1)
    prepared = prepare(graph)
    first, second = images_for(graph, 40, 1), images_for(graph, 7, 2)
    expected = run(prepare(graph), second)
    run(prepared, first)
    for name, array in run(prepared, second).items():
        np.testing.assert_array_equal(array, expected[name])
    once_more = run(prepared, first)
    assert not any(np.shares_memory(array, once_more[name]) for name, array in run(prepared, first).items())


def test_memory_that_cannot_be_written_and_odd_views():
    graph = lenet(1)
    prepared = prepare(graph)
    (name,) = graph.inputs
    real = images_for(graph, 4)[name]
    expected = run(prepared, {name: real})
    real.flags.writeable = False
    for key, array in run(prepared, {name: real}).items():
        np.testing.assert_array_equal(array, expected[key])


def test_nan_is_refused_and_located():
    graph = lenet(1)
    (name,) = graph.inputs
    real = images_for(graph, 40)[name]
    real[37, 1, 2, 3] = np.nan
    with pytest.raises(QuantizationError, match=r"1 of 122880 values, the first at index \(37, 1, 2, 3\)"):
        run(prepare(graph), {name: real})
    real[37, 1, 2, 3] = np.inf
    expected = run_nodes(graph, {name: real}, REFERENCE)
    for key, array in run(prepare(graph), {name: real}).items():
        np.testing.assert_array_equal(array, expected[key])


def test_pooling_windows_without_an_element_are_refused():
    b = Builder(0)
    b.max_pool(b.quantize((3, 1, 4), S8), (2, 1), stride=(1, 1), padding=((1, 1), (0, 0)), dilation=(2, 1))
    with pytest.raises(ModelError, match="maxpool2d1.*wholly in the padding"):
        b.graph()


def test_threads_share_a_prepared_network():
    graph = lenet(5)
    prepared = prepare(graph)
    batches = [images_for(graph, count, count) for count in (1, 9, 33, 64)]
    expected = [trace(prepared, batch) for batch in batches]
    wrong, start = [], threading.Barrier(2)

    def work(order):
        start.wait()
        for _ in range(15):
            for i in order:
                got = trace(prepared, batches[i])
                wrong.extend(name for name in got if not np.array_equal(got[name], expected[i][name]))

    threads = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3], [3, 1, 0, 2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
