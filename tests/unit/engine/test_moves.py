"""Multiply, Pad, Reshape, Transpose, UpsampleNearest2d and sequences: the fast tier against the reference tier, tolerance 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine, images_for
from unit.engine.test_run import assert_same, settings

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.engine.plan import Purpose
from labkit.engine.prepare import prepare
from labkit.engine.run import run
from labkit.errors import BoundError
from labkit.kernels.fast.tile import Dot
from labkit.kernels.kernel_set import REFERENCE

GRIDS = [S8, affine(S8), affine(U8), S4, affine(S4), affine(U4)]
NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


# ---- Multiply

# shapes of a and b
PRODUCTS = [
    ((3, 5, 4), (3, 5, 4)),
    ((17, 3, 4), (17, 1, 1)),
    ((5, 1, 1), (5, 6, 3)),
    ((16, 1, 1), (16, 1, 1)),
    ((7,), (7,)),
    ((6, 9), (6, 9)),
    ((6, 9), (6, 1)),
    ((2, 3, 2, 2), (2, 3, 2, 2)),
]


@pytest.mark.parametrize("index", range(len(PRODUCTS)))
@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_multiply(index, grid):
    b = Builder(index, ties=(index + grid) % 2 == 0)
    left = b.quantize(PRODUCTS[index][0], GRIDS[grid])
    right = b.quantize(PRODUCTS[index][1], GRIDS[(grid + index) % len(GRIDS)])
    b.multiply(left, right, spec=GRIDS[(2 * grid + index) % len(GRIDS)])
    assert_same(b.graph())


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_multiply_under_every_rule(rule, inside, ties):
    b = Builder(5, rule=rule, ties=ties, inside=inside)
    x, gate = b.quantize((5, 6, 7), affine(U8)), b.quantize((5, 1, 1), affine(S8))
    scaled = b.multiply(x, gate, spec=affine(U8), gain=0.008)
    b.multiply(scaled, x, spec=affine(S8), gain=0.004)
    assert_same(b.graph())


def test_all_products_of_two_grids():
    """Every pair of eight-bit numbers, through the loop and through the table."""
    pairs = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij")).astype(np.float32)
    for rule in (RoundingRule.SINGLE, RoundingRule.DYADIC):
        b = Builder(1, rule=rule, ties=True)
        left, right = (b.quantize((1, 256, 256), S8, 1.0) for _ in range(2))
        graph_of = b.multiply(left, right, spec=affine(S8), gain=2.0**-7)
        graph = b.graph()
        inputs = {name: pairs[i][None, None] for i, name in enumerate((left, right))}
        expected = run_nodes(graph, inputs, REFERENCE)[graph_of]
        np.testing.assert_array_equal(run(prepare(graph), inputs)[graph_of], expected)
        assert len(np.unique(expected)) >= 240


def test_products_far_above_the_grid_saturate():
    b = Builder(3)
    b.multiply(b.quantize((3, 4, 4), affine(S8)), b.quantize((3, 4, 4), affine(S8)), gain=2.0**28)
    got = assert_same(b.graph())
    assert {-128, 127} <= set(np.unique(got[b.graph().outputs[0]]))


def test_left_shift_of_a_product_out_of_int32_is_an_error():
    b = Builder(8, rule=RoundingRule.GEMMLOWP)
    b.multiply(b.quantize((3, 5, 5), affine(S8)), b.quantize((3, 5, 5), affine(S8)), gain=2.0**28)
    graph = b.graph()
    inputs = images_for(graph, 2)
    with pytest.raises(BoundError, match="SINGLE"):
        run_nodes(graph, inputs, REFERENCE)
    with pytest.raises(BoundError, match=f"{graph.outputs[0]}.*SINGLE"):
        run(prepare(graph), inputs)
    nothing = {name: np.zeros_like(array) for name, array in inputs.items()}  # 0 fits under any shift
    for name, array in run(prepare(graph), nothing).items():
        np.testing.assert_array_equal(array, run_nodes(graph, nothing, REFERENCE)[name])


def test_squeeze_and_excite():
    """The gate comes from the image that it scales, whose buffer has a border."""
    b = Builder(6)
    x = b.conv(b.quantize((3, 8, 8), affine(S8)), 17, (3, 3), padding=ONE, spec=affine(U8))
    gate = b.conv(b.conv(b.average_pool(x, (8, 8)), 4, (1, 1), spec=affine(U8)), 17, (1, 1), spec=affine(U8))
    scaled = b.multiply(x, gate, spec=affine(U8))
    b.conv(scaled, 5, (3, 3), padding=((2, 1), (0, 1)), spec=affine(S8))
    assert_same(b.graph(), 5)


# ---- Pad

PADDINGS = [NONE, ONE, ((2, 0), (1, 3)), ((0, 3), (0, 0)), ((0, 0), (5, 0))]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("spec", [affine(S8), affine(U8), affine(U4)], ids=str)
def test_pad(padding, channels, spec):
    b = Builder(channels)
    b.pad(b.quantize((channels, 5, 4), spec), padding)
    got = assert_same(b.graph())
    zero_point = int(b[b.graph().outputs[0]].params.zero_point)
    (top, _), (left, _) = padding
    image = np.array(got[b.graph().outputs[0]])
    image[:, :, top : top + 5, left : left + 4] = zero_point
    assert np.all(image == zero_point)


# what is done with the padded image
USES = {
    "convolution": lambda b, x: b.conv(x, 6, (3, 3), spec=affine(U8)),
    "convolution with a padding of its own": lambda b, x: b.conv(x, 6, (3, 3), padding=((1, 2), (0, 1)), stride=(2, 1)),
    "depthwise": lambda b, x: b.conv(x, 5, (3, 3), groups=5),
    "max-pool": lambda b, x: b.max_pool(x, (2, 2), padding=((1, 0), (0, 1)), stride=(1, 1)),
    "average pool": lambda b, x: b.average_pool(x, (3, 2), padding=((0, 1), (1, 0)), stride=(2, 1)),
    "flatten and linear": lambda b, x: b.linear(b.flatten(x), 7),
    "flatten": lambda b, x: b.requantize(b.flatten(x)),
    "another pad": lambda b, x: b.conv(b.pad(x, ((0, 2), (1, 1))), 4, (3, 3), padding=ONE),
    "a product": lambda b, x: b.multiply(x, x),
    "a concatenation": lambda b, x: b.concat(x, x),
    "a reshape": lambda b, x: b.requantize(b.reshape(x, (5, math.prod(b[x].shape[1:])))),
    "a transposition": lambda b, x: b.requantize(b.transpose(x, (1, 2, 0))),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("source", ["input", "convolution", "pool", "reshape"])
def test_use_of_a_padded_image(use, source):
    """Also beside a reader of the image without its padding."""
    b = Builder(len(use))
    x = b.quantize((5, 6, 6) if source != "reshape" else (5, 36), affine(S8))
    if source == "convolution":
        x = b.conv(x, 5, (3, 3), padding=ONE, spec=affine(U8))
    elif source == "pool":
        x = b.max_pool(x, (2, 2), stride=(1, 1))
    elif source == "reshape":
        x = b.reshape(x, (5, 6, 6))
    padded = b.pad(x, ((1, 0), (2, 1)))
    beside = b.conv(x, 3, (3, 3), padding=ONE, spec=affine(S8))
    out = USES[use](b, padded)
    assert_same(b.graph(out, beside), 5)


def test_a_pad_of_a_reshape_of_the_same_image():
    b = Builder(4)
    x = b.reshape(b.conv(b.quantize((3, 1, 9), affine(S8)), 5, (1, 3), spec=affine(U8)), (5, 7))
    b.conv(b.pad(x, ((0, 0), (3, 1))), 4, (1, 3), spec=affine(S8))
    assert_same(b.graph(), 5)


# ---- Reshape and Transpose

RESHAPES = [
    ((12,), (3, 2, 2)),
    ((3, 4, 5), (5, 12)),
    ((3, 4, 5), (3, 20)),
    ((17, 6), (17, 2, 3)),
    ((17, 6), (6, 17)),
    ((6, 1, 1), (6,)),
    ((6,), (6, 1)),
    ((4, 3, 2), (4, 3, 2)),
    ((4, 6), (2, 2, 3, 2)),
    ((2, 2, 3, 2), (6, 2, 2)),
    ((2, 2, 3, 2), (24,)),
    ((1, 8, 8), (64, 1, 1)),
]


@pytest.mark.parametrize(("before", "after"), RESHAPES)
@pytest.mark.parametrize("spec", [affine(S8), affine(U4)], ids=str)
def test_reshape(before, after, spec):
    b = Builder(len(before))
    x = b.quantize(before, spec)
    b.requantize(b.reshape(b.requantize(x, spec=affine(U8)), after))
    b.dequantize(b.reshape(x, after))
    assert_same(b.graph(*(node.name for node in b.nodes[-2:])), 5)


TRANSPOSES = [
    ((5, 7), (1, 0)),
    ((17, 3), (1, 0)),
    ((3, 4, 5), (1, 2, 0)),
    ((3, 4, 5), (2, 0, 1)),
    ((17, 4, 5), (0, 2, 1)),
    ((17, 4, 5), (0, 1, 2)),
    ((3, 4, 5), (2, 1, 0)),
    ((2, 3, 4, 5), (2, 0, 3, 1)),
    ((2, 3, 2, 2, 2), (1, 0, 4, 2, 3)),
    ((9,), (0,)),
]


@pytest.mark.parametrize(("shape", "axes"), TRANSPOSES)
@pytest.mark.parametrize("spec", [affine(S8), affine(U4)], ids=str)
def test_transpose(shape, axes, spec):
    b = Builder(len(shape))
    x = b.requantize(b.quantize(shape, spec), spec=affine(U8))
    b.requantize(b.transpose(x, axes))
    assert_same(b.graph(), 5)


def test_channel_shuffle():
    b = Builder(7)
    x = b.conv(b.quantize((3, 6, 5), affine(S8)), 20, (3, 3), padding=ONE, spec=affine(U8))
    x = b.transpose(b.reshape(x, (4, 5, 6, 5)), (1, 0, 2, 3))
    b.conv(b.reshape(x, (20, 6, 5)), 8, (3, 3), padding=((1, 0), (0, 2)), groups=4, spec=affine(S8))
    assert_same(b.graph(), 5)


# ---- Sequences: (channels, length) as images of height 1

# channels, outputs, kernel, stride, padding, dilation, groups, length
SEQUENCES = [
    (1, 1, 1, 1, (0, 0), 1, 1, 1),
    (3, 17, 5, 1, (2, 2), 1, 1, 20),
    (16, 16, 3, 2, (0, 1), 1, 1, 11),
    (17, 5, 4, 3, (3, 0), 2, 1, 30),
    (6, 6, 3, 1, (1, 1), 1, 6, 9),
    (8, 4, 3, 1, (1, 1), 1, 2, 9),
]


@pytest.mark.parametrize("index", range(len(SEQUENCES)))
@pytest.mark.parametrize("spec", [S8, affine(S8), affine(U8), affine(U4)], ids=str)
def test_sequences(index, spec):
    channels, outputs, kernel, stride, padding, dilation, groups, length = SEQUENCES[index]
    b = Builder(index, **settings(index))
    x = b.quantize((channels, length), spec)
    x = b.conv(
        x,
        outputs,
        (1, kernel),
        stride=(1, stride),
        padding=((0, 0), padding),
        dilation=(1, dilation),
        groups=groups,
        spec=affine(U8),
    )
    if b[x].shape[1] >= 2:
        pooled = b.max_pool(x, (1, 2), stride=(1, 1), padding=((0, 0), (1, 0)))
        mean = b.average_pool(pooled, (1, 2), padding=((0, 0), (0, 1)), spec=affine(S8))
        x = b.conv(b.concat(mean, b.pad(mean, ((0, 0), (0, 0)))), 3, (1, 1), spec=affine(S8))
    b.linear(b.flatten(x), 4)
    assert_same(b.graph(), 5)


# ---- Up-sampling


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (1, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_upsample(factor, channels, spec):
    """Of the input, of a convolution's result, and in front of a convolution that wants a border."""
    b = Builder(channels)
    x = b.quantize((channels, 4, 5), spec)
    inner = b.upsample(b.conv(x, 5, (3, 3), padding=ONE, spec=affine(U8)), factor)
    around = b.conv(inner, 4, (3, 3), padding=((2, 1), (0, 1)), spec=affine(S8))
    assert_same(b.graph(b.upsample(x, factor), inner, around), 5)


@pytest.mark.parametrize("purpose", list(Purpose))
def test_an_encoder_and_decoder(purpose):
    """The pooled image, stretched again, beside the image that it was made of."""
    b = Builder(9)
    x = b.conv(b.quantize((3, 12, 8), affine(U8)), 6, (3, 3), padding=ONE, spec=affine(U8))
    deep = b.conv(b.max_pool(x, (2, 2)), 9, (3, 3), padding=ONE, spec=affine(U8))
    deeper = b.upsample(b.conv(b.max_pool(deep, (2, 2)), 9, (3, 3), padding=ONE, spec=affine(U8)), (2, 2))
    up = b.upsample(b.add(deep, deeper, spec=affine(U8)), (2, 2))
    joined = b.conv(b.concat(x, b.pad(up, ((0, 0), (0, 0))), spec=affine(U8)), 4, (3, 3), padding=ONE)
    assert_same(b.graph(joined, b.argmax(joined, 0)), 5, purpose=purpose)


@pytest.mark.parametrize("factor", [2, 3])
def test_upsample_of_a_sequence(factor):
    b = Builder(factor)
    b.conv(b.upsample(b.quantize((5, 7), affine(S8)), (1, factor)), 4, (1, 3), padding=((0, 0), (1, 1)))
    assert_same(b.graph(), 5)


# ---- Adaptive pooling whose windows differ in size


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 5), (4, 4), (5, 6), (7, 6)])
@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_adaptive_average_pool(size, spec):
    b = Builder(size[0], ties=size[1] % 2 == 0)
    x = b.quantize((5, 7, 6), spec)
    pooled = b.adaptive_average_pool(x, size, spec=affine(U8))
    b.conv(b.pad(pooled, ((1, 0), (0, 1))), 17, (2, 2), spec=affine(S8))
    line = b.adaptive_average_pool(b.reshape(x, (5, 42)), (1, 5 * size[0]), spec=affine(S8))
    assert_same(b.graph(b.nodes[-3].name, line), 5)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("inside", [False, True])
def test_adaptive_average_pool_under_every_rule(rule, inside):
    b = Builder(2, rule=rule, ties=True, inside=inside)
    b.adaptive_average_pool(b.quantize((19, 7, 5), affine(S8)), (3, 2), spec=affine(U8))
    assert_same(b.graph(), 3)


# ---- storage as bytes or as int16, and calls in several parts


@pytest.mark.parametrize("move", ["pad", "reshape"])
@pytest.mark.parametrize("dots", [[Dot.PAIRS], [Dot.QUADS, Dot.PAIRS], [Dot.QUADS_VNNI, Dot.PAIRS]], ids=str)
def test_one_reader_wants_bytes_and_another_behind_a_move_wants_int16(move, dots):
    """Nine bits of weights need int16, and so then does all that lies in the same memory."""
    b = Builder(3)
    x = b.conv(b.quantize((3, 6, 6), affine(U8)), 16, (3, 3), padding=ONE, spec=affine(U8))
    moved = b.pad(x, ((1, 0), (0, 1))) if move == "pad" else b.reshape(x, (16, 6, 6))
    wide = QuantSpec(8, signed=False, symmetric=False)
    outs = [b.conv(x, 5, (3, 3)), b.conv(moved, 5, (2, 3), weights=wide), b.conv(moved, 4, (2, 2), spec=affine(U4))]
    graph = b.graph(*outs, b.transpose(moved, (2, 0, 1)))
    inputs = images_for(graph, 3)
    expected, got = run_nodes(graph, inputs, REFERENCE), run(prepare(graph, dots=dots), inputs)
    for name in graph.outputs:
        np.testing.assert_array_equal(got[name], expected[name])


def _graph_of(kind):
    """A graph that ends in one kernel of this module's operations."""
    rule = RoundingRule.DYADIC if kind == "table" else RoundingRule.SINGLE
    b = Builder(5, rule=rule)
    x = b.quantize((5, 7, 6), affine(U8))
    {
        "multiply": lambda: b.multiply(x, x),
        "table": lambda: b.multiply(x, x),
        "transpose": lambda: b.transpose(x, (2, 0, 1)),
        "runs": lambda: b.reshape(x, (5, 42)),
        "upsample": lambda: b.upsample(x, (2, 3)),
        "softmax": lambda: b.softmax(x, 0),
        "argmax": lambda: b.argmax(x, 1),
        "adaptive": lambda: b.adaptive_average_pool(x, (3, 4)),
    }[kind]()
    return b.graph()


@pytest.mark.parametrize(
    "kind", ["multiply", "table", "transpose", "runs", "upsample", "softmax", "argmax", "adaptive"]
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_parts_of_a_call_are_the_whole(kind, dtype):
    """Each part writes its share and nothing else, also where there are more parts than rows."""
    graph = _graph_of(kind)
    prepared = prepare(graph, dots=[Dot.PAIRS] if dtype is np.int16 else [Dot.QUADS])
    step = next(step for step in prepared.steps if step.node == graph.outputs[0])
    rng, images = np.random.default_rng(0), 3
    buffers = [prepared.buffers[number] for number in step.buffers]
    assert buffers[0].dtype is dtype
    spec, params = graph[graph.inputs[0]].output.quantized
    stored_from = spec.qmin if dtype is np.uint8 else int(params.zero_point)
    values = rng.integers(spec.qmin, spec.qmax + 1, (images, *buffers[0].shape)) - stored_from
    values = values.astype(dtype)

    def results(parts):
        arrays = [np.array(values), *(np.full((images, *b.shape), 99, b.dtype) for b in buffers[1:])]
        if step.buffers[0] == step.buffers[1]:  # a product with itself
            arrays[1] = arrays[0]
        seen = []
        for part in range(parts):
            step.kernel(part, parts, images, *arrays, *step.constants)
            seen.append(np.array(arrays[-1]))
        return seen

    whole = results(1)[0]
    assert np.any(whole != 99)
    for parts in (2, 3, 500):
        seen = results(parts)
        np.testing.assert_array_equal(seen[-1], whole)
        assert not np.array_equal(seen[0], whole)
