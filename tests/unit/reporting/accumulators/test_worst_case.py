"""The worst case against every input there is; the pair rule and Winograd's column against examples worked by hand."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from itertools import product

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.bounds import accumulator_bound
from labkit.engine.prepare import prepare
from labkit.graph import int_ops
from labkit.kernels.fast import winograd
from labkit.net import IntegerNet
from labkit.reporting.accumulators import worst_case as worst_case_module
from labkit.reporting.accumulators.analyse import analyse
from labkit.reporting.accumulators.results import PairRule, Span
from labkit.reporting.accumulators.worst_case import pair_rule, worst_case

NONE = ((0, 0), (0, 0))
TWO_BITS = QuantSpec(2, signed=False, symmetric=False)
SIGNED_TWO_BITS = QuantSpec(2, symmetric=False)


def every_image(shape, spec):
    """All images of ``shape`` on the grid of ``spec``, as integers [N, *shape]."""
    size = int(np.prod(shape))
    return np.array(list(product(range(spec.qmin, spec.qmax + 1), repeat=size)), np.int64).reshape(-1, *shape)


def subset_ends(terms, bias):
    """The lowest and the highest sum of any subset of ``terms`` [..., K] and ``bias``."""
    terms = np.concatenate([terms, np.broadcast_to(bias, terms.shape[:-1])[..., None]], axis=-1)
    return int(np.minimum(terms, 0).sum(axis=-1).min()), int(np.maximum(terms, 0).sum(axis=-1).max())


def found(graph, name):
    return next(layer for layer in analyse(IntegerNet(graph)).layers if layer.name == name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", [TWO_BITS, SIGNED_TWO_BITS, QuantSpec(2, narrow=True)], ids=["u2", "s2", "narrow"])
@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "options"),
    [
        ((1, 2, 2), 3, (2, 2), {}),
        ((1, 2, 2), 2, (2, 1), {"padding": ((1, 0), (0, 1))}),
        ((1, 2, 2), 2, (3, 3), {"padding": ((1, 1), (1, 1))}),  # no position meets the whole kernel
        ((1, 1, 4), 2, (1, 3), {"padding": ((0, 0), (2, 2)), "dilation": (1, 2)}),  # nor here
        ((2, 1, 2), 4, (1, 2), {"groups": 2}),
        ((2, 1, 3), 2, (1, 2), {"stride": (1, 2), "padding": ((0, 0), (0, 1))}),
    ],
    ids=str,
)
def test_worst_case_of_a_convolution_is_that_of_all_inputs(shape, outputs, kernel, options, spec, seed):
    b = Builder(seed)
    x = b.quantize(shape, spec)
    graph = b.graph(b.conv(x, outputs, kernel, **options))
    name = graph.nodes[-1].name
    op = graph[name].op
    groups, zero_point = op.groups, int(graph[x].output.params.zero_point)
    images = every_image(shape, spec) - zero_point
    weights = op.weight.values.astype(np.int64)
    rows = oracle.window(shape[1], kernel[0], op.stride[0], op.padding[0], op.dilation[0])
    columns = oracle.window(shape[2], kernel[1], op.stride[1], op.padding[1], op.dilation[1])
    depth = weights.shape[1]
    lows, highs = [], []
    for o, row, column in product(range(outputs), rows, columns):
        first = o // (outputs // groups) * depth
        terms = [np.zeros(len(images), np.int64)]  # a corner window may lie in the padding
        terms += [
            images[:, first + c, h, w] * weights[o, c, i, j]
            for c in range(depth)
            for (i, h), (j, w) in product(enumerate(row), enumerate(column))
            if h is not None and w is not None
        ]
        low, high = subset_ends(np.stack(terms, axis=-1), op.bias[o])
        lows.append(low)
        highs.append(high)
    layer = found(graph, name)
    assert layer.worst == Span(min(lows), max(highs))
    assert layer.products == depth * kernel[0] * kernel[1]
    low, high = spec.qmin - zero_point, spec.qmax - zero_point
    assert layer.bound == accumulator_bound(weights, low, high, op.bias).max()
    assert layer.worst.magnitude <= layer.bound


@given(
    weights=st.lists(st.lists(st.integers(-7, 7), min_size=3, max_size=3), min_size=1, max_size=3),
    weight_zero_point=st.integers(-3, 3),
    zero_point=st.integers(0, 3),
    bias=st.integers(-40, 40),
)
def test_worst_case_of_a_linear_layer_is_that_of_all_inputs(weights, weight_zero_point, zero_point, bias):
    b = Builder(0)
    x = b.quantize((3,), TWO_BITS)
    params = QParams(np.float32(1), np.int32(zero_point))
    b.nodes[0] = replace(b.nodes[0], output=replace(b.nodes[0].output, params=params))
    values = np.array(weights, np.int8)
    tensor = QTensor(values, QParams(np.float32(1), np.int32(weight_zero_point)), QuantSpec(4, symmetric=False))
    biases = np.full(len(weights), bias, np.int32)
    name = b.linear(x, len(weights), channels=False)
    b.nodes[-1] = replace(b.nodes[-1], op=int_ops.Linear(tensor, biases, b.nodes[-1].op.requantizer))
    graph = b.graph()
    images = every_image((3,), TWO_BITS) - zero_point
    terms = images[:, None, :] * (values.astype(np.int64) - weight_zero_point)
    assert found(graph, name).worst == Span(*subset_ends(terms, biases))


@pytest.mark.parametrize("padding", [NONE, ((1, 0), (0, 0)), ((1, 1), (1, 1))], ids=str)
def test_operations_without_weights_reach_their_worst_case(padding):
    b = Builder(3)
    x = b.quantize((1, 2, 2), TWO_BITS)
    b.requantize(x, spec=SIGNED_TWO_BITS)
    b.add(x, x)
    b.concat(x, x)
    kernel = (2, 2) if padding != ((1, 1), (1, 1)) else (3, 3)
    b.average_pool(x, kernel, padding=padding, stride=(1, 1))
    graph = b.graph(*(node.name for node in b.nodes[1:]))
    scale, zero_point = (np.asarray(part) for part in vars(graph[x].output.params).values())
    images = ((every_image((1, 2, 2), TWO_BITS) - zero_point) * scale).astype(np.float32)
    layers = analyse(IntegerNet(graph), images).layers
    assert [layer.operation for layer in layers] == ["Requantize", "Add", "Concat", "AveragePool2d"]
    for layer in layers:
        assert layer.worst == layer.observed
    assert layers[0].worst == Span(int(0 - zero_point), int(3 - zero_point))


def test_worst_case_of_a_concatenation_covers_its_parts():
    b = Builder(4)
    x = b.quantize((1, 2, 2), affine(U8))
    y = b.requantize(x, spec=affine(S4))
    graph = b.graph(b.concat(x, y))
    ends = [(t.spec.qmin - int(t.params.zero_point), t.spec.qmax - int(t.params.zero_point)) for t in (b[x], b[y])]
    assert worst_case(graph, graph.nodes[-1]).worst == Span(min(e[0] for e in ends), max(e[1] for e in ends))


def test_worst_case_of_a_product_has_all_four_corners():
    b = Builder(1)
    x, y = b.quantize((1, 2, 2), affine(U4)), b.quantize((1, 2, 2), affine(U8))
    graph = b.graph(b.multiply(x, y))
    grids = [
        range(t.spec.qmin - int(t.params.zero_point), t.spec.qmax + 1 - int(t.params.zero_point)) for t in (b[x], b[y])
    ]
    products = [p * q for p, q in product(*grids)]
    assert worst_case(graph, graph.nodes[-1]).worst == Span(min(products), max(products))


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (3, 4)])
def test_worst_case_of_uneven_windows_is_reached(size):
    b = Builder(1)
    x = b.quantize((1, 5, 6), affine(U8))
    graph = b.graph(b.adaptive_average_pool(x, size))
    found = worst_case(graph, graph.nodes[-1])
    spec, zero_point = b[x].spec, int(b[x].params.zero_point)
    rows, columns = ([oracle.adaptive_window(n, m, i) for i in range(m)] for n, m in zip((5, 6), size, strict=True))
    areas = [len(row) * len(column) for row, column in product(rows, columns)]
    common = math.lcm(*areas)
    assert found.worst == Span(common * (spec.qmin - zero_point), common * (spec.qmax - zero_point))
    assert found.products == max(areas)


BY_THEMSELVES = (  # they sum integers without a requantizer
    *(int_ops.Add, int_ops.AddAwayFromZero, int_ops.AddFixedPoint),
    *(int_ops.AveragePoolOfValid, int_ops.MeanFloat32),
)
OPERATIONS = [kind for kind in vars(int_ops).values() if is_dataclass(kind) and kind.__module__ == int_ops.__name__]


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.__name__)
def test_every_operation_that_requantizes_has_a_row(kind):
    sums = any("Requantizer" in str(entry.type) for entry in fields(kind)) or kind in BY_THEMSELVES
    assert (worst_case_module._sums.dispatch(kind) is not worst_case_module._sums.dispatch(object)) is sums


def test_moves_and_borders_have_no_sums():
    b = Builder(1)
    x = b.max_pool(b.quantize((1, 4, 4)), (2, 2))
    graph = b.graph(b.dequantize(b.flatten(x)))
    assert analyse(IntegerNet(graph)).layers == ()


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [
        (0, 0, 1),
        (-1, 0, 1),
        (0, 1, 2),
        (-128, 127, 8),
        (-129, 0, 9),
        (0, 128, 9),
        (-32768, 32767, 16),
        (0, 2**31 - 1, 32),
    ],
)
def test_bits_of_a_signed_integer(low, high, bits):
    assert Span(low, high).bits == bits
    assert -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1)


@pytest.mark.parametrize(
    ("row", "reach", "expected"),
    [
        ([64, 64, 65, 64, -127, 1, -64, -65], 255, PairRule(4, 2)),  # 128 fits, 129 does not, 127 does, -129 does not
        ([127, -127, 127, 2, 1, 127, 127, 1], 255, PairRule(4, 1)),  # signs do not add up; 129 does, 128 twice
        ([-64, -64, -128, 0, -128, -1], 255, PairRule(3, 1)),
        ([127, 127, -128, -128, 127, 127], 127, PairRule(3, 0)),  # seven bits never do
        ([127, 127, 127], 255, PairRule(2, 1)),  # the last one's neighbour is the filling 0
        ([128, 0], 255, None),  # nine bits
    ],
    ids=str,
)
def test_saturating_pairs_worked_by_hand(row, reach, expected):
    assert pair_rule(np.array([row]), reach) == expected


@given(a=st.integers(-128, 127), b=st.integers(-128, 127), bits=st.integers(2, 8))
def test_a_pair_saturates_where_some_input_leaves_int16(a, b, bits):
    reach = 2**bits - 1
    corners = [a * x + b * y for x, y in product((0, reach), repeat=2)]
    leaves = min(corners) < -(2**15) or max(corners) >= 2**15
    assert pair_rule(np.array([[a, b]]), reach) == PairRule(1, int(leaves))


def conv_with(values, shape, *, source=None, groups=1):
    """A graph of one convolution with these weights on an image of ``shape``, after another one if ``source``."""
    b = Builder(0)
    x = b.quantize(shape if source is None else source, affine(U8))
    if source is not None:
        x = b.conv(x, shape[0], (1, 1), spec=affine(U8))
    b.conv(x, values.shape[0], values.shape[2:], groups=groups)
    weight = QTensor(values.astype(np.int8), QParams(np.float32(1), np.int32(0)), QuantSpec(8))
    b.nodes[-1] = replace(b.nodes[-1], op=replace(b.nodes[-1].op, weight=weight))
    return b.graph()


def large(shape, *places):
    values = np.zeros(shape)
    for place in places:
        values[place] = 100
    return values


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        # an input image of 3 channels is one row of numbers: (column 0, channel 2) and (column 1, channel 0) are neighbours
        (conv_with(large((1, 3, 1, 2), (0, 2, 0, 0), (0, 0, 0, 1)), (3, 4, 4)), PairRule(3, 1)),
        # further inside, 3 channels are filled up: they are not
        (conv_with(large((1, 3, 1, 2), (0, 2, 0, 0), (0, 0, 0, 1)), (3, 4, 4), source=(1, 4, 4)), PairRule(4, 0)),
        (conv_with(large((1, 4, 1, 1), (0, 2, 0, 0), (0, 3, 0, 0)), (4, 4, 4), source=(1, 4, 4)), PairRule(2, 1)),
        (conv_with(large((1, 4, 1, 1), (0, 1, 0, 0), (0, 2, 0, 0)), (4, 4, 4), source=(1, 4, 4)), PairRule(2, 0)),
        # depthwise: neighbouring elements of the 3x3 kernel, here the last of row 0 and the first of row 1
        (conv_with(large((2, 1, 3, 3), (1, 0, 0, 2), (1, 0, 1, 0)), (2, 4, 4), groups=2), PairRule(10, 1)),
    ],
    ids=["input", "filled", "neighbours", "not neighbours", "depthwise"],
)
def test_pairs_are_those_that_a_kernel_reads(graph, expected):
    assert found(graph, graph.nodes[-1].name).pairs == expected


@pytest.mark.parametrize("channels", range(1, 7))
def test_the_engine_fills_the_channels_that_the_pairs_take_as_filled(channels):
    b = Builder(0)
    x = b.quantize((channels, 4, 4), affine(U8))
    graph = b.graph(b.conv(x, 2, (1, 3)))
    prepared = prepare(graph)
    lanes = prepared.buffers[prepared.entries[0].place.buffer].shape[2]
    layer = found(graph, graph.nodes[-1].name)
    dense = 2 * -(-3 * channels // 2)
    filled = 2 * 3 * -(-channels // 2)
    assert layer.pairs.pairs == (dense if lanes == channels else filled)


def test_pairs_of_a_linear_layer_follow_the_image_that_was_flattened():
    b = Builder(0)
    x = b.flatten(b.quantize((2, 1, 2), affine(U8)))
    b.linear(x, 1)
    # in PyTorch's order channel 0: (100, 0), channel 1: (100, 0); by pixel the pairs are (100, 100) and (0, 0)
    weight = QTensor(np.array([[100, 0, 100, 0]], np.int8), QParams(np.float32(1), np.int32(0)), QuantSpec(8))
    b.nodes[-1] = replace(b.nodes[-1], op=replace(b.nodes[-1].op, weight=weight))
    assert found(b.graph(), b.nodes[-1].name).pairs == PairRule(2, 1)


def test_weights_of_nine_bits_have_no_pairs():
    b = Builder(2, extreme=True)
    weights = QuantSpec(8, symmetric=False, granularity=PerAxis(0))
    graph = b.graph(b.conv(b.quantize((2, 4, 4)), 4, (2, 2), weights=weights))
    assert found(graph, graph.nodes[-1].name).pairs is None


@pytest.mark.parametrize(
    ("kernel", "options", "applies"),
    [
        ((3, 3), {}, True),
        ((3, 3), {"stride": (2, 2)}, False),
        ((3, 3), {"dilation": (2, 2)}, False),
        ((3, 3), {"groups": 2}, False),
        ((1, 3), {}, False),
    ],
    ids=str,
)
def test_winograd_is_named_where_it_applies(kernel, options, applies):
    b = Builder(0)
    graph = b.graph(b.conv(b.quantize((4, 8, 8), affine(U8)), 4, kernel, **options))
    assert (found(graph, graph.nodes[-1].name).winograd is not None) is applies


@pytest.mark.parametrize(
    ("channels", "expected"), [(16, ("F4", "F2")), (256, ("F2",))], ids=["few channels", "many channels"]
)
def test_winograd_is_exact_where_the_sums_allow_it(channels, expected):
    graph = conv_with(np.full((1, channels, 3, 3), 127), (channels, 4, 4), source=(1, 4, 4))
    layer = found(graph, graph.nodes[-1].name)
    assert layer.winograd == expected
    largest = 127 * 9 * channels * max(abs(end) for end in grid(graph))
    assert (largest <= winograd.F4.limit) is ("F4" in expected)


def grid(graph):
    tensor = graph[graph.nodes[-1].inputs[0]].output
    return tensor.spec.qmin - int(tensor.params.zero_point), tensor.spec.qmax - int(tensor.params.zero_point)


def test_a_sequence_is_an_image_of_height_one():
    b = Builder(5)
    x = b.quantize((2, 6), affine(S8))
    sequence = b.graph(b.conv(x, 3, (1, 3), padding=((0, 0), (1, 1))))
    layer = found(sequence, sequence.nodes[-1].name)
    b = Builder(5)
    x = b.quantize((2, 1, 6), affine(S8))
    image = b.graph(b.conv(x, 3, (1, 3), padding=((0, 0), (1, 1))))
    assert layer == found(image, image.nodes[-1].name)
