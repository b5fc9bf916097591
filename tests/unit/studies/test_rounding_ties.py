"""Ties are counted as rational numbers say: those of a mean, of a sum, and those that only float32 sees."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from parity.operator_graphs import one_operator

from labkit.arithmetic.affine import QParams
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.parity.exact import exact_value
from labkit.studies.kit.rounding_rules import _clear
from labkit.studies.kit.rounding_ties import ties_of


def _graph(kind: str, seed: int) -> tuple[IntGraph, dict[str, np.ndarray]]:
    graph, inputs = one_operator(kind, seed, zero_points=False)
    return graph, inputs


@pytest.mark.parametrize("kind", ["conv", "linear", "add", "average_pool", "requantize"])
@pytest.mark.parametrize("seed", [0, 1, 3, 6])
def test_ties_are_those_of_the_exact_numbers(kind: str, seed: int) -> None:
    graph, inputs = _graph(kind, seed)
    node = graph["y"]
    elements, ties, _ = ties_of(graph, node, inputs)
    sources = graph.inputs_of(node)
    arrays = [inputs[name] for name in node.inputs]
    shape = (len(arrays[0]), *node.output.shape)
    assert elements == np.prod(shape)
    counted = 0
    for index in np.ndindex(shape):
        if index[1] > 1:  # two channels are enough to count by hand
            continue
        exact = exact_value(node, sources, arrays, index)
        assert exact is not None
        counted += exact.is_tie
    part = node.output.shape[0] <= 2
    assert counted == ties if part else counted <= ties
    if seed % 3 == 0 and kind in ("conv", "average_pool"):
        assert ties > 0  # scales that are powers of two


def test_a_border_that_only_float32_sees_half_way() -> None:
    """2/255 rounded to float32 is a little more than that, so a half of it is no half; float32 says it is."""
    graph, _ = one_operator("quantize", 1)
    scale = np.float32(2 / 255)
    node = graph["y"]
    output = replace(node.output, shape=(1, 1, 256), params=QParams(np.asarray(scale), np.asarray(127, np.int32)))
    graph = IntGraph((replace(node, op=int_ops.Quantize((1, 1, 256)), output=output),), ("y",))
    pixels = np.arange(256, dtype=np.float32)[None, None, None]
    real = (pixels / np.float32(127.5) - np.float32(1)).astype(np.float32)
    halves = (real / scale) % 1 == 0.5
    exactly = [Fraction(float(x)) / Fraction(float(scale)) for x in real.ravel()]
    assert not any(x.denominator == 2 for x in exactly)
    assert halves.sum() > 50
    assert ties_of(graph, graph["y"], {"real y": real}) == (256, 0, int(halves.sum()))
    ties = np.float32(0.5) * scale * np.array([[[[1.0, -1.0, 2.0]]]], np.float32)
    assert ties_of(graph, graph["y"], {"real y": ties})[1:] == (2, 0)


def test_how_clear_a_change_is() -> None:
    assert _clear([0, 0]) == 0
    assert _clear([5, 5]) == 0
    assert _clear([16, 0]) == _clear([0, 16]) == 4
