"""Convolutions and Linear layers by every way to multiply (`Dot`), against the reference: tolerance 0.

The ways times the layers is the full product. Grids, weights, numbers of images, ties and ends of the grid rotate through
it with numbers of steps that have no common divisor with the number of ways, so that each meets each way and, over the
ways, each layer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, U4, U8, WAYS, Builder, affine, can_run, images_for, lenet, way_name

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.engine import lowering_products
from labkit.engine.arena import arena_for
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Registers, Route, prepare
from labkit.engine.run import run, trace
from labkit.kernels.fast.conv import conv2d_kernel, linear_one_kernel
from labkit.kernels.fast.finish import FINISHES
from labkit.kernels.fast.packing import aligned_zeros
from labkit.kernels.kernel_set import REFERENCE

CHANNEL = PerAxis(0)
BINARY = QuantSpec(1, narrow=True)
GRIDS = [U8, S8, affine(U8), affine(S8), U4, S4, affine(U4), affine(S4), QuantSpec(6, symmetric=False), QuantSpec(2)]
SMALL_GRIDS = [affine(U4), S4, U4, affine(S4), QuantSpec(3, symmetric=False), QuantSpec(2), QuantSpec(1, signed=False)]
# Less their zero points these fit eight bits
WEIGHTS = [
    *(QuantSpec(bits, granularity=CHANNEL) for bits in range(2, 9)),
    QuantSpec(8, narrow=True),
    QuantSpec(1, narrow=True, granularity=CHANNEL),
    QuantSpec(7, symmetric=False, granularity=CHANNEL),
    QuantSpec(5, signed=False, symmetric=False),
]
NINE_BITS = [QuantSpec(8, symmetric=False, granularity=CHANNEL), QuantSpec(8, signed=False, symmetric=False)]
# and these have magnitudes of at most eight
SMALL_WEIGHTS = [
    QuantSpec(4, granularity=CHANNEL),
    QuantSpec(4, narrow=True),
    QuantSpec(3, symmetric=False, granularity=CHANNEL),
    QuantSpec(2, granularity=CHANNEL),
    QuantSpec(1, narrow=True, granularity=CHANNEL),
    QuantSpec(1, signed=False, symmetric=False),
    QuantSpec(3),
]
DEFAULTS = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
SAME = {"padding": ((1, 1), (1, 1))}

# Size (C, H, W) or (C, L) of the input, outputs, kernel, and what is not as in DEFAULTS
CONVOLUTIONS = {
    "1x1": ((16, 5, 7), 16, (1, 1), {}),
    "1x1, 17 to 48": ((17, 4, 3), 48, (1, 1), {"padding": ((2, 0), (0, 1))}),
    "1x1, 33 to 80, stride": ((33, 7, 5), 80, (1, 1), {"stride": (2, 2)}),
    "1x1, 1 to 1": ((1, 1, 1), 1, (1, 1), {}),
    "1x1, 64 to 112": ((64, 3, 3), 112, (1, 1), {}),
    "3x3": ((16, 6, 5), 32, (3, 3), SAME),
    "3x3, 1 to 16": ((1, 9, 8), 16, (3, 3), SAME),
    "3x3, 2 to 33": ((2, 7, 7), 33, (3, 3), {}),
    "3x3, 3 to 20, stride": ((3, 11, 10), 20, (3, 3), {"stride": (2, 2), "padding": ((0, 1), (0, 1))}),
    "3x3, 20 to 48": ((20, 6, 9), 48, (3, 3), SAME),
    "3x3, 5 to 3, stride": ((5, 8, 7), 3, (3, 3), {"stride": (2, 1), "padding": ((1, 0), (0, 2))}),
    "3x3, 16 to 112": ((16, 4, 4), 112, (3, 3), SAME),
    "3x3, dilated": ((6, 9, 9), 17, (3, 3), {"padding": ((2, 2), (2, 2)), "dilation": (2, 2)}),
    "3x3, dilated rows": ((18, 9, 6), 40, (3, 3), {"dilation": (3, 1), "padding": ((3, 1), (1, 1))}),
    "3x3, 176 channels": ((176, 4, 3), 18, (3, 3), SAME),
    "5x5, 3 to 12": ((3, 9, 8), 12, (5, 5), {}),
    "5x5, 12 to 80": ((12, 6, 6), 80, (5, 5), {"padding": ((2, 2), (2, 2))}),
    "7x7, 3 to 48, stride": ((3, 15, 15), 48, (7, 7), {"stride": (2, 2), "padding": ((3, 3), (3, 3))}),
    "7x7, 2 to 16, uneven": ((2, 9, 8), 16, (7, 7), {"padding": ((3, 2), (4, 1))}),
    "1x4, dilated": ((5, 3, 12), 12, (1, 4), {"padding": ((0, 0), (1, 2)), "dilation": (1, 2)}),
    "2x3, uneven": ((12, 9, 11), 17, (2, 3), {"stride": (1, 2), "padding": ((1, 2), (3, 0)), "dilation": (3, 1)}),
    "4x1": ((4, 8, 3), 64, (4, 1), {"padding": ((1, 2), (0, 0))}),
    "1-D": ((3, 40), 5, (1, 9), {"stride": (1, 4), "padding": ((0, 0), (4, 4))}),
    "1-D, 17 to 48": ((17, 13), 48, (1, 3), {"padding": ((0, 0), (2, 1)), "dilation": (1, 2)}),
    "1-D, 1 to 33": ((1, 50), 33, (1, 5), {}),
    "two groups": ((12, 6, 5), 34, (1, 1), {"groups": 2}),
    "four groups": ((12, 6, 6), 8, (3, 3), {"groups": 4, "padding": ((1, 0), (0, 1))}),
    "two outputs a channel": ((3, 6, 6), 6, (3, 3), {"groups": 3, **SAME}),
    "depthwise 3x3": ((20, 7, 9), 20, (3, 3), {"groups": 20, **SAME}),
    "depthwise 3x3, stride": ((16, 8, 11), 16, (3, 3), {"groups": 16, "stride": (2, 2), "padding": ((0, 1), (0, 1))}),
    "depthwise 5x3, dilated": ((33, 9, 8), 33, (5, 3), {"groups": 33, "dilation": (2, 1), "padding": ((4, 4), (1, 1))}),
    "depthwise 2x2": ((5, 7, 6), 5, (2, 2), {"groups": 5, "dilation": (1, 2), "stride": (2, 1)}),
    "depthwise 1-D": ((17, 20), 17, (1, 3), {"groups": 17, "padding": ((0, 0), (1, 1))}),
}
# Inputs and outputs; of nibbles more than 512 inputs are taken apart
LINEAR = [
    (1, 1),
    (3, 5),
    (4, 16),
    (17, 12),
    (31, 64),
    (40, 144),
    (128, 65),
    (63, 112),
    (513, 48),
    (515, 17),
    (960, 30),
]
LAYERS = [*CONVOLUTIONS, *LINEAR]
GROUPED = [name for name, (*_, options) in CONVOLUTIONS.items() if "groups" in options]
ON_TILES = [layer for layer in LAYERS if layer not in GROUPED]
# Each Dot with one width, in turn: for what sees the sums, or the storage, and not the Dot
DOT_WAYS = [way for at, way in enumerate(WAYS) if at % 4 in (0, 3)]
# Convolutions in groups are no products of matrices. They see words or bytes, and whether there are quads for 512 bits
GROUPED_WAYS = [
    (registers, dots)
    for registers, dots in WAYS
    if dots[0] is not Dot.NIBBLES_AVX2 and ((registers is Registers.BITS_512) == dots[0].value.startswith("quads"))
]


def build(layer, index, grid, weights, rule=RoundingRule.SINGLE):
    """A network of this one layer."""
    b = Builder(index, rule=rule, ties=index % 3 == 0, extreme=index % 4 == 1, inside=index % 5 < 2)
    spec = [affine(U8), affine(S8), U8, affine(U4), S4][index % 5]
    channels = index % 3 != 2
    if layer in CONVOLUTIONS:
        size, outputs, kernel, options = CONVOLUTIONS[layer]
        options = DEFAULTS | options
        b.conv(b.quantize(size, grid), outputs, kernel, weights=weights, spec=spec, channels=channels, **options)
    else:
        inputs, outputs = layer
        b.linear(b.quantize((inputs,), grid), outputs, weights=weights, spec=spec, channels=channels)
    return b.graph()


def case(way, layer, rule=RoundingRule.SINGLE):
    """A network of ``layer`` for which the first Dot of ``way`` is exact, and a number of images."""
    index = 3 * LAYERS.index(layer) + 7 * WAYS.index(way)
    dot = way[1][0]
    grids = SMALL_GRIDS if dot.sums_int16 else GRIDS
    weights = SMALL_WEIGHTS if dot.sums_int16 else WEIGHTS + (NINE_BITS if dot is Dot.PAIRS else [])
    graph = build(layer, index, grids[index % len(grids)], weights[index % len(weights)], rule)
    return graph, (1, 2, 33, 5)[index % 4]


def assert_same(graph, count, way, route=Route.FASTEST, seed=0, spoil=None):
    """Compare every node for ``count`` images, as they are traced and as they run; return what was prepared.

    ``spoil`` : changes what was prepared
    """
    registers, dots = way
    prepared = prepare(graph, route=route, registers=registers, dots=dots)
    prepared = spoil(prepared) if spoil else prepared
    inputs = images_for(graph, count, seed)
    expected = run_nodes(graph, inputs, REFERENCE)
    for name, array in trace(prepared, inputs).items():
        assert array.dtype == expected[graph.carriers()[name]].dtype
        np.testing.assert_array_equal(array, expected[graph.carriers()[name]], err_msg=f"{name} of\n{graph}")
    for name, array in run(prepared, inputs).items():
        np.testing.assert_array_equal(array, expected[name])
    return prepared


def assert_multiplies_by(prepared, name, way):
    """The layer ``name`` goes over the tile for the first Dot of ``way``."""
    registers, (dot, *_) = way
    op = prepared.graph[name].op
    rule = op.requantizer.rule if op.requantizer.rule in FINISHES else None
    step = next(step for step in prepared.steps if step.node == name)
    assert step.kernel is conv2d_kernel(registers, dot, -(-len(op.bias) // 16), rule)
    assert step.kernel_for_one in (None, rule and linear_one_kernel(registers, dot, rule))
    come, go = (prepared.exits[node].place.buffer for node in (*prepared.graph[name].inputs, name))
    wanted = np.int16 if dot is Dot.PAIRS else np.uint8
    assert prepared.buffers[come].dtype is prepared.buffers[go].dtype is wanted


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("layer", ON_TILES, ids=str)
def test_layers(way, layer):
    graph, count = case(way, layer)
    prepared = assert_same(graph, count, way, Route.DIRECT)
    assert_multiplies_by(prepared, graph.outputs[0], way)


@pytest.mark.parametrize("way", GROUPED_WAYS, ids=way_name)
@pytest.mark.parametrize("layer", GROUPED)
def test_groups(way, layer):
    graph, count = case(way, layer)
    prepared = assert_same(graph, count, way)
    x = prepared.exits["quantize0"].place
    assert prepared.buffers[x.buffer].dtype is (np.int16 if way[1][0] is Dot.PAIRS else np.uint8)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("count", [1, 2, 33])
def test_numbers_of_images(way, count):
    """Positions that do not fill the last tile, and the kernel for a single image, which has tiles of four panels."""
    for layer in ("1x1, 17 to 48", "3x3, 20 to 48", (40, 144), (515, 17)):
        assert_same(case(way, layer)[0], count, way)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
def test_routes(way, route):
    """What goes by Winograd multiplies pairs, whatever the Dot, on the storage that the others want."""
    b = Builder(WAYS.index(way))
    grid, weights = (U4, SMALL_WEIGHTS[0]) if way[1][0].sums_int16 else (U8, WEIGHTS[6])
    x = b.conv(b.quantize((3, 9, 8), affine(grid)), 20, (3, 3), weights=weights, spec=affine(grid))
    y = b.conv(x, 33, (3, 3), weights=weights, spec=affine(grid), **SAME)
    y = b.conv(y, 20, (3, 3), weights=weights, spec=affine(grid), padding=((0, 2), (2, 0)))
    b.conv(b.add(x, y, spec=affine(grid)), 48, (1, 1), weights=weights, spec=affine(S8))
    for count in (1, 3):
        prepared = assert_same(b.graph(), count, way, route)
    kernels = [step.kernel.__name__.split("_")[0] for step in prepared.steps]
    assert kernels == ["conv2d", "conv3x3", "conv3x3", "add", "conv2d"]


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("weights", [*WEIGHTS, *NINE_BITS, *SMALL_WEIGHTS], ids=str)
def test_which_dot_is_exact(way, weights):
    """Every grid of weights on every way, with inputs of all grids in turn: the first Dot is used where it may be."""
    registers, (dot, *_) = way
    everything = [*GRIDS, BINARY]
    index = [*WEIGHTS, *NINE_BITS, *SMALL_WEIGHTS].index(weights) + WAYS.index(way)
    grid = everything[index % len(everything)]
    b = Builder(index, extreme=index % 2 == 0)
    y = b.conv(b.quantize((5, 5, 6), grid), 20, (3, 3), weights=weights, spec=affine(U8), **SAME)
    prepared = assert_same(b.graph(), 3, way, Route.DIRECT)
    op = b.graph()[y].op
    centred = op.weight.values.astype(int) - op.weight.params.zero_point.reshape(-1, 1, 1, 1)
    is_small = grid.qmax - grid.qmin < 16 and np.abs(centred).max() <= 8
    is_exact = not grid.is_binary and -128 <= centred.min() <= centred.max() <= 127 and (is_small or not dot.sums_int16)
    x = prepared.exits["quantize0"].place
    assert prepared.buffers[x.buffer].dtype is (np.uint8 if is_exact and dot is not Dot.PAIRS else np.int16)
    if is_exact:
        (step,) = prepared.steps
        assert step.kernel is conv2d_kernel(registers, dot, 2, RoundingRule.SINGLE)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("way", DOT_WAYS, ids=way_name)
def test_rounding_rules(way, rule):
    for layer in ("5x5, 12 to 80", (40, 144)):
        graph, _ = case(way, layer, rule)
        for count in (1, 3):
            assert_same(graph, count, way)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("way", GROUPED_WAYS[:1] + GROUPED_WAYS[-1:], ids=way_name)
@pytest.mark.parametrize("layer", ["depthwise 3x3", "four groups"])
def test_rounding_rules_of_groups(way, rule, layer):
    assert_same(case(way, layer, rule)[0], 3, way)


def test_some_ways_stand_for_every_dot_and_width():
    assert {dots[0] for _, dots in DOT_WAYS} == {dots[0] for _, dots in WAYS}
    assert {registers for registers, _ in DOT_WAYS} == set(Registers)


# The ends of the grids


class Ends(Builder):
    """Layers of given integer weights, zero points subtracted, on inputs with a given zero point, scale 1."""

    def __init__(self, values, zero_point, rule, real):
        super().__init__(0, rule=rule)
        self.values, self.zero_point, self.real = values, zero_point, real
        # more than eight bits are eight bits and a zero point
        self.weight_zero_point = int(min(0, 127 - values.max()) + max(0, -128 - values.min()))

    def params(self, spec, scale=None):
        return QParams(np.float32(1), np.int32(self.zero_point if spec.bits < 8 or not spec.signed else 0))

    def weights(self, shape, spec):
        values = (self.values.reshape(shape) + self.weight_zero_point).astype(np.int8)
        return QTensor(values, QParams(np.float32(1), np.int32(self.weight_zero_point)), QuantSpec(8, symmetric=False))

    def requantizer(self, spec, params, real, channels=None):
        return Requantizer(self.rule, FixedPointMultiplier.from_real(self.real), 0, (-128, 127), False)


# The lowest and the highest input, zero point subtracted, and weight
ENDS_OF_BYTES = [((0, 255), (-128, 127)), ((-255, 0), (-128, 127)), ((-128, 127), (-127, 127))]
ENDS_OF_NIBBLES = [((0, 15), (-8, 7)), ((-15, 0), (-7, 8)), ((-8, 7), (-8, 8))]
ENDS_OF_WORDS = [*ENDS_OF_BYTES, ((0, 255), (0, 255)), ((-255, 0), (-255, 0))]
# Around the longest run of nibbles, four to a step, and its multiples; a last step that is not full
DEPTHS = [1, 3, 4, 5, 508, 512, 513, 516, 517, 1024, 1025, 1029, 2048, 4099]


def ends_for(way):
    dot = way[1][0]
    return ENDS_OF_NIBBLES if dot.sums_int16 else ENDS_OF_WORDS if dot is Dot.PAIRS else ENDS_OF_BYTES


def patterns(low, high, depth, seed, count):
    """Rows of ``depth`` numbers at the ends: all the highest, all the lowest, in turn, in pairs, and at random."""
    odd = np.arange(depth) % 2 == 0
    pairs = np.arange(depth) % 4 < 2
    rng = np.random.default_rng(seed)
    rows = [np.ones(depth, bool), np.zeros(depth, bool), odd, ~odd, pairs, ~pairs]
    rows += [rng.random(depth) < 0.5 for _ in range(count - len(rows))]
    return np.where(np.array(rows[:count]), high, low)


def graph_of_ends(inputs, weights, depth, outputs, rule, as_image):
    """One layer at the ends ``inputs`` and ``weights``; a convolution has windows of ``depth`` / 3 channels of three rows."""
    low, high = inputs
    values = patterns(*weights, depth, depth, outputs)
    real = 100 / (depth * max(-low, high) * max(-weights[0], weights[1]))
    b = Ends(values, -low, rule, real)
    grid = QuantSpec(4 if high - low == 15 else 8, signed=False, symmetric=False)
    if as_image:
        x = b.quantize((depth // 3, 3, 4), grid)
        b.conv(x, outputs, (3, 1), channels=False)
    else:
        b.linear(b.quantize((depth,), grid), outputs, channels=False)
    return b.graph(), values


def images_of_ends(inputs, depth, as_image, count=8):
    rows = patterns(*inputs, depth, 1, count)
    if not as_image:
        return rows
    return np.stack([np.roll(rows, at, axis=0).reshape(count, depth // 3, 3) for at in range(4)], axis=-1)


def assert_exact_sums(way, inputs, weights, depth, outputs, as_image):
    """The int32 sums in memory, for a rule that the tile does not finish; they hold the surplus of what is stored."""
    registers, (dot, *_) = way
    graph, values = graph_of_ends(inputs, weights, depth, outputs, RoundingRule.DYADIC, as_image)
    prepared = prepare(graph, registers=registers, dots=way[1])
    step = prepared.steps[0]
    assert step.kernel is conv2d_kernel(registers, dot, -(-outputs // 16), None)
    images = images_of_ends(inputs, depth, as_image)
    run(prepared, {"quantize0": images.astype(np.float32)})
    got = arena_for(prepared, len(images)).buffers[step.buffers[1]][: len(images), 0, :, :outputs]
    stored = images.astype(np.int64) - (0 if dot is Dot.PAIRS else inputs[0])
    windows = stored.reshape(len(images), depth, -1)
    np.testing.assert_array_equal(got, np.einsum("nkj,ok->njo", windows, values.astype(np.int64)))


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("depth", DEPTHS)
def test_sums_at_the_ends(way, depth):
    """A number of outputs for a tile of one panel and one for a tile of two."""
    for inputs, weights in ends_for(way):
        for outputs in (13, 40):
            assert_exact_sums(way, inputs, weights, depth, outputs, as_image=False)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
def test_sums_at_the_ends_of_long_rows(way):
    """Each row of the kernel is a run of its own, which is taken apart in its turn."""
    for inputs, weights in ends_for(way):
        assert_exact_sums(way, inputs, weights, 3 * 530, 20, as_image=True)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("depth", [4, 517, 1029])
def test_finished_sums_at_the_ends(way, depth):
    """By the kernel for a single image too; the multiplier is so small that no end is clamped away."""
    for inputs, weights in ends_for(way):
        graph, _ = graph_of_ends(inputs, weights, depth, 72, RoundingRule.SINGLE, as_image=False)
        prepared = prepare(graph, registers=way[0], dots=way[1])
        images = images_of_ends(inputs, depth, as_image=False).astype(np.float32)
        expected = run_nodes(graph, {"quantize0": images}, REFERENCE)[graph.outputs[0]]
        assert len(np.unique(expected)) > 2
        for some in (slice(0, 1), slice(1, 2), slice(7, 8), slice(None)):
            got = run(prepared, {"quantize0": images[some]})[graph.outputs[0]]
            np.testing.assert_array_equal(got, expected[some])


@pytest.mark.parametrize("length", [1, 512, 513, 528, 1040, 8720, 20336, 65600])
def test_pieces_of_a_run_are_the_run(length):
    """No piece is too long for int16 sums, and none reads beyond the last step of its run."""
    weights = np.random.default_rng(length).integers(-8, 9, (2, 3, length))
    runs = np.array([0, 70_000, 140_000])
    pieces, starts = lowering_products._in_short_runs(weights, runs)
    assert pieces.shape[2] <= 4 * lowering_products.LONGEST_NIBBLE_RUN
    assert 2 * 15 * 8 * lowering_products.LONGEST_NIBBLE_RUN < 2**15
    found = np.zeros((2, 210_000), np.int64)
    for at, start in enumerate(starts):
        found[:, start : start + pieces.shape[2]] += pieces[:, at]
        assert start % 70_000 + pieces.shape[2] <= -(-length // 4) * 4
    for at, run_start in enumerate(runs):
        np.testing.assert_array_equal(found[:, run_start : run_start + length], weights[:, at])
    assert np.abs(found).sum() == np.abs(weights).sum()


# Words and bytes in one network


def weights_and_grids(way):
    """Weights that the first Dot takes, and weights that need words; a grid for both."""
    if way[1][0].sums_int16:
        return SMALL_WEIGHTS[0], WEIGHTS[6], U4
    return WEIGHTS[6], NINE_BITS[0], U8


@pytest.mark.parametrize("way", DOT_WAYS, ids=way_name)
@pytest.mark.parametrize("seed", range(3))
def test_words_and_bytes_in_one_network(way, seed):
    """A tensor is stored as bytes unless one of its readers, or of what only moves it, needs words."""
    fits, needs_words, grid = weights_and_grids(way)
    grid = affine(grid)
    b = Builder(seed, extreme=seed == 1, ties=seed == 2)
    x = b.quantize((3, 9, 8), grid)
    both = b.conv(x, 20, (3, 3), weights=fits, spec=grid, **SAME)
    nine = b.conv(both, 17, (3, 3), weights=needs_words, spec=grid, **SAME)
    beside = b.conv(both, 17, (1, 1), weights=fits, spec=grid)
    depthwise = b.conv(beside, 17, (3, 3), weights=needs_words, spec=grid, groups=17, **SAME)
    signs = b.conv(depthwise, 16, (3, 3), weights=fits, spec=BINARY)
    of_signs = b.conv(signs, 17, (2, 2), weights=SMALL_WEIGHTS[4], spec=grid, padding=((2, 1), (2, 1)))
    joined = b.concat(nine, of_signs, b.add(nine, beside, spec=grid), spec=grid)
    pooled = b.max_pool(joined, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))
    taken = b.conv(pooled, 35, (3, 3), weights=needs_words, spec=grid, stride=(2, 1))
    flat = b.flatten(b.max_pool(taken, (2, 2), stride=(1, 1)))
    out = b.linear(flat, 10, weights=fits, spec=affine(S8))
    graph = b.graph(b.dequantize(out), joined, b.linear(flat, 70, weights=fits, spec=grid))
    for count in (1, 2, 33):
        prepared = assert_same(graph, count, way, seed=seed)
    words = {both, signs, joined, pooled}
    for node in graph:
        if node.output.spec is not None:
            dtype = prepared.buffers[prepared.exits[node.name].place.buffer].dtype
            assert dtype is (np.int16 if way[1][0] is Dot.PAIRS or node.name in words else np.uint8), node.name


SUMS_INT16 = [way for way in WAYS if way[1][0].sums_int16]
EXACT_FOR_BYTES = [way for way in WAYS if not way[1][0].sums_int16 and way[1][0] is not Dot.PAIRS]


@pytest.mark.parametrize("way", SUMS_INT16, ids=way_name)
@pytest.mark.parametrize("count", [1, 5])
def test_w4a4(way, count):
    """All of a LeNet in nibbles."""
    prepared = assert_same(lenet(3, spec=U4, weights=SMALL_WEIGHTS[0]), count, way, Route.DIRECT)
    chosen = [step.kernel.__name__ for step in prepared.steps if not step.kernel.__name__.startswith("max_pool")]
    assert len(chosen) == 5
    assert all(f"_{way[0].value}_{way[1][0].value}_" in name for name in chosen)


@pytest.mark.parametrize("nibbles", SUMS_INT16, ids=way_name)
@pytest.mark.parametrize("quads", EXACT_FOR_BYTES, ids=way_name)
def test_nibbles_quads_and_pairs_in_one_network(nibbles, quads):
    """Each layer takes the first of three that is exact for it."""
    registers, (small, _) = nibbles
    if quads[0] is not registers:
        quads = (registers, quads[1])
    ways = (small, quads[1][0], Dot.PAIRS)
    if (registers, quads[1]) not in WAYS:
        pytest.skip("this processor has no such instruction for vectors of this width")
    b = Builder(1)
    x = b.conv(b.quantize((5, 7, 6), affine(U4)), 48, (3, 3), weights=SMALL_WEIGHTS[0], spec=affine(U4))
    x = b.conv(x, 48, (3, 3), weights=WEIGHTS[6], spec=affine(U8))
    x = b.conv(x, 48, (1, 1), weights=WEIGHTS[6], spec=affine(U8))
    b.conv(x, 48, (1, 1), weights=NINE_BITS[0], spec=affine(U4))
    prepared = assert_same(b.graph(), 3, (registers, ways), Route.DIRECT)
    wanted = (small, ways[1], ways[1], Dot.PAIRS)
    assert [s.kernel for s in prepared.steps] == [conv2d_kernel(registers, d, 3, RoundingRule.SINGLE) for d in wanted]


# The sweeps fail where something is wrong


def unnoticed(way, spoil=None):
    """The layers of the sweep that pass, although something is wrong."""
    found = []
    for layer in [*ON_TILES, *(GROUPED if way in GROUPED_WAYS else [])]:
        count = 7 if layer in CONVOLUTIONS else 33  # the latter have a single position
        try:
            assert_same(case(way, layer)[0], count, way, Route.DIRECT, spoil=spoil)
        except AssertionError:
            continue
        found.append(layer)
    return found


def with_wrong_weight(prepared):
    """One weight of each layer, the largest, has the other sign."""
    steps = []
    for step in prepared.steps:
        index = next(
            (i for i, c in enumerate(step.constants) if getattr(c, "dtype", None) in (np.int8, np.int16)), None
        )
        constants = list(step.constants)
        if index is not None:
            wrong = aligned_zeros(constants[index].shape, constants[index].dtype)
            wrong[...] = constants[index]
            at = np.unravel_index(np.abs(wrong.astype(int)).argmax(), wrong.shape)
            wrong[at] = -max(int(wrong[at]), -127)
            constants[index] = wrong
        steps.append(replace(step, constants=tuple(constants)))
    assert any(a.constants is not b.constants for a, b in zip(steps, prepared.steps, strict=True))
    return replace(prepared, steps=tuple(steps))


@pytest.mark.parametrize("way", WAYS, ids=way_name)
def test_a_wrong_weight_is_noticed_in_every_layer(way):
    assert unnoticed(way, with_wrong_weight) == []


@pytest.mark.parametrize("way", WAYS, ids=way_name)
def test_a_wrong_surplus_is_noticed_in_every_layer(way, monkeypatch):
    """As if the byte that stands for 0, or the 0 of words, were one more than it is."""
    right = lowering_products.bias_of

    def wrong(op, x):
        return right(op, replace(x, zero=x.zero + 1))

    monkeypatch.setattr(lowering_products, "bias_of", wrong)
    assert unnoticed(way) == []


@pytest.mark.parametrize("way", WAYS, ids=way_name)
def test_a_wrong_weight_is_noticed_at_the_ends(way, monkeypatch):
    right = lowering_products.pack_panels

    def wrong(weights, group):
        panels = right(weights, group)
        panels[0, -1, 0, 5, 0] ^= 1
        return panels

    monkeypatch.setattr(lowering_products, "pack_panels", wrong)
    for inputs, weights in ends_for(way):
        with pytest.raises(AssertionError, match="Mismatched elements"):
            assert_exact_sums(way, inputs, weights, 516, 13, as_image=False)


@pytest.mark.parametrize("way", SUMS_INT16, ids=way_name)
@pytest.mark.parametrize("as_image", [False, True])
def test_nibbles_that_are_not_taken_apart_overflow(way, as_image, monkeypatch):
    monkeypatch.setattr(lowering_products, "LONGEST_NIBBLE_RUN", 1 << 20)
    for inputs, weights in ends_for(way):
        with pytest.raises(AssertionError, match="Mismatched elements"):
            assert_exact_sums(way, inputs, weights, 1800, 13, as_image)


@pytest.mark.parametrize("rule", [RoundingRule.SINGLE, RoundingRule.DYADIC])
def test_sums_of_bytes_that_wrap_are_right_once_the_bias_is_in(rule):
    """255 * 127 * 100,000 exceeds int32, 127 * 127 * 100,000 does not: in memory the highest s8 is the byte 255."""
    depth = 100_000
    builder = Builder(1, rule=rule)
    result = builder.conv(builder.quantize((2 * depth, 1, 1), S8), 2, (1, 1), groups=2)
    node = builder.nodes[-1]
    weight = replace(node.op.weight, values=np.full_like(node.op.weight.values, 127))
    multiplier = FixedPointMultiplier.from_real(np.full(2, 2.0**-25))
    requantizer = replace(node.op.requantizer, multiplier=multiplier, clamp=(-128, 127))
    op = replace(node.op, weight=weight, bias=np.zeros(2, np.int32), requantizer=requantizer)
    builder.nodes[-1] = replace(node, op=op)
    graph = builder.graph(builder.dequantize(result))
    images = {name: np.full((2, 2 * depth, 1, 1), 1000, np.float32) for name in graph.inputs}
    expected, got = run_nodes(graph, images, REFERENCE), run(prepare(graph), images)
    for name in graph.outputs:
        assert np.array_equal(got[name], expected[name])
        assert np.all(expected[name] > 0)


@pytest.mark.skipif(not can_run(Registers.BITS_512, Dot.QUADS_VNNI), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize(
    ("size", "takes_threes"), [(1, True), (3, False), (4, True), (5, False), (7, False), (8, True)]
)
def test_three_panels_at_a_time_only_where_they_fill_tiles(size, takes_threes):
    """For one image; there is room for 10 positions of two panels and for 8 of three."""
    b = Builder(size)
    b.conv(b.quantize((5, size, size), affine(U8)), 96, (1, 1), spec=affine(U8))
    options = {"registers": Registers.BITS_512, "dots": (Dot.QUADS_VNNI, Dot.PAIRS)}
    step = next(step for step in prepare(b.graph(), **options).steps if step.node == b.nodes[-1].name)
    threes, wide = (
        conv2d_kernel(Registers.BITS_512, Dot.QUADS_VNNI, 6, RoundingRule.SINGLE, takes) for takes in (True, False)
    )
    assert step.kernel is conv2d_kernel(Registers.BITS_512, Dot.QUADS_VNNI, 6, RoundingRule.SINGLE)
    assert (step.kernel_for_one or step.kernel).__name__ == (threes if takes_threes else wide).__name__
    assert threes.__name__ != wide.__name__
    graph = b.graph()
    for count in (1, 3):
        inputs = images_for(graph, count)
        for name, expected in run_nodes(graph, inputs, REFERENCE).items():
            np.testing.assert_array_equal(trace(prepare(graph, **options), inputs)[name], expected)
