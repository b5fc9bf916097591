"""Facts of weights, and packed weights that all networks with one tensor share as long as any of them lives."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, S16, U8, Builder, affine, encoder, images_for
from unit.engine.test_run import assert_same

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.engine import weights
from labkit.engine.prepare import Dot, Purpose, Registers, Route, prepare
from labkit.engine.run import run
from labkit.engine.weights import centred, facts_of
from labkit.graph.ir import IntGraph


def packed_of(prepared):
    """The packed weights of each convolution and linear layer, by node."""
    found = {}
    for step in prepared.steps:
        if step.kernel.__name__.startswith(("conv2d", "linear")):
            found[step.node] = step.constants[0]
    return found


@pytest.mark.parametrize("spec", [None, QuantSpec(8, symmetric=False, granularity=PerAxis(0)), S4], ids=str)
def test_facts(spec):
    b = Builder(1)
    b.conv(b.quantize((3, 5, 5), affine(U8)), 6, (3, 3), weights=spec)
    weight = b.nodes[-1].op.weight
    found, exact = facts_of(weight), centred(weight).astype(np.int64)
    assert (found.low, found.high) == (min(exact.min(), 0), max(exact.max(), 0))
    np.testing.assert_array_equal(found.sums, exact.sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(found.magnitudes, np.abs(exact).sum(axis=(1, 2, 3)))
    assert found.fits_int8 == bool(np.all((exact >= -128) & (exact <= 127)))
    assert found.largest == np.abs(exact).max()
    assert facts_of(weight) is found


def test_a_second_network_packs_nothing_anew(monkeypatch):
    graph = encoder(1, 6)
    first = prepare(graph)
    monkeypatch.setattr("labkit.engine.lowering_products.pack_panels", lambda *_: pytest.fail("packed again"))
    second = prepare(IntGraph(graph.nodes, graph.outputs))
    assert len(packed_of(first)) == 6
    for name, panels in packed_of(first).items():
        assert packed_of(second)[name] is panels
    inputs = images_for(graph, 2)
    for name, expected in run(first, inputs).items():
        np.testing.assert_array_equal(run(second, inputs)[name], expected)


def test_packed_weights_go_with_the_last_network():
    graph = encoder(2, 6)
    held = [node.op.weight for node in graph if hasattr(node.op, "bias")]
    first, second = prepare(graph), prepare(graph)
    assert all(len(weights._packed[weight]) == 1 for weight in held)
    del first
    gc.collect()
    assert all(len(weights._packed[weight]) == 1 for weight in held)
    del second
    gc.collect()
    assert all(len(weights._packed[weight]) == 0 for weight in held)


def test_each_order_has_its_own():
    """One tensor in layers whose inputs lie otherwise, for both purposes and every way to multiply."""
    b = Builder(3)
    image = b.quantize((3, 6, 6), affine(U8))  # without filling lanes
    x = b.conv(image, 20, (3, 3))
    weight = b.nodes[-1].op.weight
    y = b.conv(b.max_pool(image, (2, 2)), 20, (3, 3))  # with filling lanes
    z = b.conv(image, 20, (3, 3), dilation=(2, 2))
    b.nodes[:] = [replace(n, op=replace(n.op, weight=weight)) if n.name in (x, y, z) else n for n in b.nodes]
    graph = b.graph(x, y, z)
    kept = []
    for registers in Registers:
        for dots in ((Dot.PAIRS,), (Dot.QUADS, Dot.PAIRS)):
            for purpose in Purpose:
                kept.append(prepare(graph, registers=registers, dots=dots, purpose=purpose))
                assert_same(graph, registers=registers, dots=dots, purpose=purpose)
    assert len({panels.shape for prepared in kept for panels in packed_of(prepared).values()}) > 3


# --- convolutions and linear layers that put out 16 bits -----------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.1, 3.0, 2.0**12], ids=["fits", "clamped", "finished apart"])
@pytest.mark.parametrize("way", [("direct", 1), ("f2", 1), ("f4", 1), ("direct", 12), ("direct", 4)], ids=str)
def test_sums_at_16_bits(gain, way):
    route, groups = way
    b = Builder(4, ties=gain < 1)
    x = b.conv(
        b.quantize((12, 9, 9), affine(U8)), 12, (3, 3), groups=groups, padding=((1, 1), (1, 1)), spec=S16, gain=gain
    )
    b.linear(b.flatten(b.requantize(x, spec=affine(S8), gain=2.0**-8)), 20, spec=S16, gain=gain)
    b.linear(b.nodes[-2].name, 20, spec=S16, gain=gain, weights=S4)
    graph = b.graph(*(node.name for node in b.nodes))
    for registers in Registers:
        for dots in ((Dot.PAIRS,), (Dot.QUADS, Dot.PAIRS), None):
            got = assert_same(graph, registers=registers, dots=dots, route=Route(route))
    reached = {int(np.abs(got[name].astype(np.int32)).max()) for name in graph.outputs if got[name].dtype == np.int16}
    assert max(reached) > 1000 if gain < 1 else reached == {32767}
