"""Weights of four bits, two to a byte in memory: what is kept so, and that every integer stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.engine.graphs import S4, S8, U4, U8, WAYS, Builder, affine, images_for, lenet, way_name

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Purpose, Registers, Route, prepare
from labkit.engine.run import run, trace
from labkit.kernels.fast.border import fill_border
from labkit.kernels.fast.nibble_tile import wraps_nowhere
from labkit.kernels.fast.nibbles import fits_nibbles, pack_nibbles, unpack_panel
from labkit.kernels.fast.packing import pack_panels
from labkit.kernels.fast.tile import fastest_dots, widest_registers
from labkit.kernels.kernel_set import REFERENCE

W4 = QuantSpec(4, granularity=PerAxis(0))
AFFINE4 = QuantSpec(4, symmetric=False, granularity=PerAxis(0))  # less its zero point it needs five bits
INPUTS = [affine(U8), affine(S8), S8, affine(U4), S4, QuantSpec(1, narrow=True)]


def agrees(graph, count, way=None, seed=1, **options):
    """Compare every node for ``count`` images with the reference tier; return what was prepared."""
    registers, dots = way or (None, None)
    prepared = prepare(graph, registers=registers, dots=dots, **options)
    images = images_for(graph, count, seed)
    expected, found = run_nodes(graph, images, REFERENCE), trace(prepared, images)
    for node in graph:
        np.testing.assert_array_equal(found[node.name], expected[node.name], err_msg=node.name)
    for name, result in run(prepared, images).items():
        np.testing.assert_array_equal(result, expected[name])
    return prepared


def kernels(prepared, count=1):
    """Names of the kernels that run ``count`` images, but for those that fill borders."""
    chosen = [step.kernel_for_one if count == 1 and step.kernel_for_one else step.kernel for step in prepared.steps]
    return [kernel.__name__ for kernel in chosen if kernel is not fill_border]


def one_linear(inputs, outputs, *, seed=0, spec=U8, rule=RoundingRule.SINGLE, weights=W4, **options):
    b = Builder(seed, rule=rule, **options)
    b.linear(b.quantize((inputs,), affine(spec)), outputs, weights=weights, spec=affine(S8))
    return b.graph()


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 1, 4), (17, 3, 5), (33, 2, 7), (160, 1, 31)])
@pytest.mark.parametrize("group", [2, 4])
def test_packing_is_undone_panel_by_panel(shape, group):
    weights = np.random.default_rng(0).integers(-8, 8, shape)
    panels = pack_panels(weights, group)
    packed = pack_nibbles(panels)
    assert packed.dtype == np.int8
    assert packed.nbytes == -(-panels.shape[0] // 2) * panels[0].nbytes
    found = np.full_like(panels, 99)
    for p in range(panels.shape[0]):
        unpack_panel(packed.reshape(packed.shape[0], -1), p, found[p].reshape(-1))
    np.testing.assert_array_equal(found, panels)


@pytest.mark.parametrize(("weights", "fits"), [([-8, 7], True), ([-9, 0], False), ([0, 8], False), ([], True)])
def test_what_fits(weights, fits):
    assert fits_nibbles(np.array(weights)) is fits


@pytest.mark.parametrize(("depth", "safe"), [(65_793, True), (65_794, False)])
def test_sixteen_times_a_sum_stays_in_32_bits(depth, safe):
    """16 * 255 * 8 * depth < 2**31, and not one input more."""
    assert (16 * 255 * 8 * depth < 2**31) is safe
    assert wraps_nowhere(np.array([8 * depth]), 255) is safe


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (7, 15), (8, 16), (33, 17), (63, 33), (5, 129), (130, 260), (515, 161)]
)
def test_linear(way, inputs, outputs):
    for count in (1, 2, 33):
        prepared = agrees(one_linear(inputs, outputs, seed=inputs + outputs), count, way, purpose=Purpose.MEMORY)
    assert [name.startswith("linear_nibbles") for name in kernels(prepared)] == [True]


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("spec", INPUTS, ids=str)
@pytest.mark.parametrize("extreme", [False, True])
def test_linear_on_every_grid(way, spec, extreme):
    """Weights at both ends, -8 and 7, and inputs of one, four and eight bits."""
    b = Builder(3, extreme=extreme)
    b.linear(b.quantize((603,), spec), 50, weights=W4, spec=affine(S8))
    for purpose in Purpose:
        for count in (1, 2, 33):
            agrees(b.graph(), count, way, purpose=purpose)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize("ties", [False, True])
def test_linear_under_every_rule(rule, count, ties):
    for purpose in Purpose:
        agrees(one_linear(301, 150, rule=rule, ties=ties, inside=True), count, purpose=purpose)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
@pytest.mark.parametrize("outputs", [1, 16, 17, 40, 100])
@pytest.mark.parametrize("spec", [affine(U8), affine(U4)], ids=str)
def test_convolutions(way, outputs, spec):
    b = Builder(outputs)
    x = b.quantize((5, 7, 6), spec)
    x = b.conv(x, outputs, (3, 3), padding=((1, 1), (1, 1)), weights=W4, spec=spec)
    x = b.conv(x, outputs, (3, 3), padding=((1, 1), (0, 1)), stride=(2, 1), dilation=(1, 2), weights=W4, spec=spec)
    b.conv(x, 33, (1, 1), weights=W4, spec=affine(S8))
    for count in (1, 3):
        prepared = agrees(b.graph(), count, way, purpose=Purpose.MEMORY)
    assert [name.startswith("conv2d_nibbles") for name in kernels(prepared)] == [True] * 3


@pytest.mark.parametrize("rule", RoundingRule)
def test_convolutions_under_every_rule(rule):
    b = Builder(1, rule=rule)
    b.conv(b.conv(b.quantize((3, 6, 6), affine(U8)), 33, (3, 3), weights=W4), 70, (3, 3), weights=W4)
    for purpose in Purpose:
        agrees(b.graph(), 3, purpose=purpose)


def test_panels_that_do_not_fit_the_scratch_together():
    """9 * 256 inputs: two panels of 16 channels fill it, and of the last pair one was there before."""
    b = Builder(5)
    b.conv(b.quantize((256, 4, 4), affine(U8)), 70, (3, 3), weights=W4, padding=((1, 1), (1, 1)))
    prepared = agrees(b.graph(), 2, purpose=Purpose.MEMORY)
    step = prepared.steps[-1]
    scratch = prepared.buffers[step.buffers[-1]]
    assert not scratch.is_per_image
    assert scratch.shape[0] < 5
    assert scratch.bytes <= 1 << 18


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("weights", [QuantSpec(8, narrow=True), AFFINE4], ids=str)
def test_weights_that_do_not_fit_stay_int8(weights, purpose):
    graph = one_linear(512, 128, weights=weights, extreme=True)
    prepared = agrees(graph, 1, purpose=purpose)
    assert kernels(prepared)[0].startswith("linear_one")
    assert prepared.resident_bytes >= 512 * 128


def test_plus_eight_stays_int8():
    """4-bit weights -8..7 less a zero point of -1 are -7..8."""
    graph = one_linear(64, 128, weights=QuantSpec(4, symmetric=False), extreme=True)
    op = graph.nodes[1].op
    op.weight.params.zero_point.flags.writeable = True
    op.weight.params.zero_point[...] = -1
    op.weight.params.zero_point.flags.writeable = False
    prepared = agrees(graph, 1, purpose=Purpose.MEMORY)
    assert kernels(prepared)[0].startswith("linear_one")


@pytest.mark.parametrize("registers", Registers)
def test_large_linear_layers_are_kept_packed_for_speed_too(registers):
    """Where reading weights takes longer than multiplying by them; else int8 is faster."""
    dots = fastest_dots(registers)
    is_limited = dots[0] is Dot.QUADS_VNNI or (registers is Registers.BITS_512 and dots[0] is Dot.NIBBLES_AVX2)
    graph = one_linear(1024, 512, spec=U4)
    prepared = agrees(graph, 1, (registers, dots))
    assert kernels(prepared)[0].startswith("linear_nibbles") is is_limited
    assert (prepared.resident_bytes < 1024 * 512 * 0.6) is is_limited
    assert kernels(prepare(one_linear(64, 64), registers=registers, dots=dots))[0].startswith("linear_one")


@pytest.mark.parametrize(
    ("channels", "size", "transformed"),
    [
        (16, 32, {256, 512}),
        (64, 56, {256, 512}),
        (128, 28, {256}),
        (64, 8, {256}),
        (256, 14, set()),
        (512, 7, set()),
    ],
)
@pytest.mark.parametrize("registers", Registers)
def test_winograd_or_nibbles_by_shape(channels, size, transformed, registers):
    """Where products of nibbles are fast the transform is for few weights and many tiles, and it is F4."""
    b = Builder(0)
    b.conv(b.quantize((channels, size, size), affine(U4)), channels, (3, 3), padding=((1, 1), (1, 1)), weights=W4)
    prepared = prepare(b.graph(), registers=registers, dots=(Dot.NIBBLES_AVX2, Dot.PAIRS))
    is_transformed = registers.value in transformed
    assert kernels(prepared)[0].startswith("conv3x3" if is_transformed else "conv2d") is True
    chosen = prepare(b.graph(), registers=registers, dots=(Dot.NIBBLES_AVX2, Dot.PAIRS), route=Route.F4)
    assert (prepared.steps[0].kernel is chosen.steps[0].kernel) is is_transformed


def test_too_long_a_sum_is_not_divided_by_sixteen():
    graph = one_linear(65_800, 3, extreme=True)
    weights = np.abs(graph.nodes[1].op.weight.values.astype(np.int64))
    assert not wraps_nowhere(weights.sum(axis=1), 255) or weights.min() < 8
    agrees(graph, 1, purpose=Purpose.MEMORY)


@pytest.mark.parametrize("spec", [U8, U4], ids=str)
def test_lenet(spec):
    graph = lenet(2, spec=spec, weights=W4)
    results = [agrees(graph, count, purpose=purpose) for purpose in Purpose for count in (1, 5)]
    assert results[2].resident_bytes < results[0].resident_bytes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(Purpose),
    st.booleans(),
)
def test_any_linear_layer(inputs, outputs, seed, count, purpose, extreme):
    agrees(one_linear(inputs, outputs, seed=seed, extreme=extreme), count, purpose=purpose)


def test_the_widest_registers_are_among_the_ways():
    assert widest_registers() in {registers for registers, _ in WAYS}
