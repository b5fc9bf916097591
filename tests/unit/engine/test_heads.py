"""Softmax and ArgMax: the fast tier against the reference tier, tolerance 0."""

from __future__ import annotations

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine
from unit.engine.test_run import assert_same

from labkit.engine.prepare import prepare
from labkit.engine.run import run

SHAPES = [((10,), 0), ((1,), 0), ((300,), 0), ((5, 7), 0), ((5, 7), 1), ((17, 4, 3), 0), ((3, 4, 5), 1), ((3, 4, 5), 2)]
SHAPES += [((2, 3, 4, 5), axis) for axis in range(4)]
GRIDS = [S8, affine(S8), affine(U8), affine(S4), affine(U4)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("grid", range(len(GRIDS)))
def test_softmax(shape, axis, grid):
    """Scales from steps that hardly matter to such that leave one element."""
    b = Builder(grid + axis)
    outs = []
    for scale in (0.001, 0.03, 0.25, 3.0):
        x = b.quantize(shape, GRIDS[grid], scale)
        spec = GRIDS[(grid + len(outs)) % len(GRIDS)]
        outs.append(b.softmax(x, axis, spec=spec, bits=1 + (3 * len(outs) + grid) % 8))
    assert_same(b.graph(*outs), 5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("grid", range(len(GRIDS)))
@pytest.mark.parametrize("keepdims", [False, True])
def test_argmax(shape, axis, grid, keepdims):
    """On four bits most groups have ties."""
    b = Builder(grid + axis)
    x = b.quantize(shape, GRIDS[grid])
    graph = b.graph(b.argmax(x, axis, keepdims=keepdims), b.argmax(b.requantize(x, spec=affine(U4)), axis))
    got = assert_same(graph, 5)
    assert got[graph.outputs[0]].dtype == np.int32


def test_the_lowest_index_wins_a_tie():
    b = Builder(0)
    graph = b.graph(b.argmax(b.quantize((6,), S8, 1.0), 0))
    x = np.array([[0, 3, 3, -1, 3, 2], [5, 5, 5, 5, 5, 5], [-9, -8, -7, -7, -9, -8]], np.float32)
    (name,) = graph.inputs
    assert run(prepare(graph), {name: x})[graph.outputs[0]].tolist() == [1, 0, 2]


def test_heads_after_layers_beside_other_readers():
    b = Builder(5)
    x = b.conv(b.quantize((3, 6, 5), affine(S8)), 19, (3, 3), padding=((1, 1), (1, 1)), spec=affine(U8))
    classes = b.argmax(x, 0)
    shares = b.softmax(x, 0, spec=affine(U8))
    again = b.conv(b.pad(shares, ((1, 0), (0, 2))), 4, (3, 3), padding=((1, 1), (1, 1)), spec=affine(S8))
    flat = b.softmax(b.linear(b.flatten(again), 12, spec=affine(S8)), 0)
    assert_same(b.graph(classes, b.dequantize(shares), b.dequantize(flat), b.argmax(flat, 0)), 5)


def test_a_softmax_of_the_largest_differences():
    """All 256 differences, and a sum of many equal elements."""
    b = Builder(1)
    x = b.quantize((256,), U8, 0.02)
    wide = b.quantize((4000,), U8, 0.02)
    graph = b.graph(b.softmax(x, 0), b.softmax(wide, 0))
    inputs = {x: np.arange(256, dtype=np.float32)[None] * np.float32(0.02), wide: np.ones((1, 4000), np.float32)}
    got = run(prepare(graph), inputs)
    assert got[graph.outputs[1]].tolist() == [[0] * 4000]
    assert np.all(np.diff(got[graph.outputs[0]][0].astype(int)) >= 0)
    assert_same(graph)
