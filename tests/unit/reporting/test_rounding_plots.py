"""What a rounding did to the weights: counted right, and drawn completely, legibly and the same each time."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from unit.quantization.weight_rounding.nets import images, residual

from labkit.arithmetic.affine import PerTensor, QParams, QTensor, QuantSpec
from labkit.errors import InputError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.quantization.calibration import calibrate
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import LayerHistory, RoundedWeights, RoundingOptions
from labkit.reporting import plots
from labkit.reporting.rounding_counts import LayerChoices, LayerErrors, decision_counts, layer_choices, layer_errors
from labkit.reporting.rounding_plots import decision_histograms, error_changes, moved_places, moved_shares

SVG = "{http://www.w3.org/2000/svg}"
GRAPH, IMAGES = residual(), images()
CALIBRATION = calibrate(GRAPH, IMAGES)
KEPT = (0, 20, 40)


def rounded(method: str, bits: int, levels: str, per_channel: bool) -> RoundedWeights:
    options = RoundingOptions(iterations=40, samples=4096, learning_rate=0.05, levels=levels, history=KEPT)
    plan = BitPlan.uniform(GRAPH, bits, 8, per_channel=per_channel)
    return round_weights(GRAPH, CALIBRATION, plan, IMAGES, method, options)


def by_hand() -> RoundedWeights:
    """Six weights on the grid -3 .. 3 with scale 1: one has no choice, and one is at neither of its two levels."""
    weights = np.array([[0.2, 0.4, 0.6, 1.9, 9.0, -0.3]], np.float32)
    integers = np.array([[0, 1, 0, 3, 3, -1]], np.int8)
    h = np.array([[0.0, 1.0, 0.005, 0.5, 0.3, 1.0]], np.float32)
    spec = QuantSpec(3, narrow=True, granularity=PerTensor())
    graph = FloatGraph(
        (FloatNode("x", float_ops.Input((6,))), FloatNode("fc", float_ops.Linear(weights, None), ("x",))), ("fc",)
    )
    return RoundedWeights(
        "by hand",
        0,
        {"fc": QTensor(integers, QParams(np.float32(1), np.int32(0)), spec)},
        graph,
        CALIBRATION,
        {"fc": 0.25},
        {"fc": 0.125},
        0.0,
        history={"fc": LayerHistory(np.zeros(1), {0: h * 0 + 0.5, 7: h})},
    )


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def label(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label", "")


def test_choices_counted_by_hand() -> None:
    (found,) = layer_choices(by_hand(), 4)
    assert (found.name, found.weights, found.moved, found.beyond) == ("fc", 6, 4, 1)
    assert found.starts.tolist() == [1, 1, 2, 1]
    assert found.ups.tolist() == [0, 1, 0, 1]
    assert found.strays.tolist() == [0, 1, 2, 1]


def test_decisions_counted_by_hand() -> None:
    first, last = decision_counts(by_hand(), bins=4)
    assert (first.iteration, first.total, first.undecided, first.down, first.up) == (0, 5, 5, 0, 0)
    assert (last.iteration, last.total, last.undecided, last.down, last.up) == (7, 5, 1, 1, 2)
    assert last.counts.tolist() == [2, 0, 1, 2]
    assert layer_errors(by_hand()) == (LayerErrors("fc", 0.25, 0.125),)


@pytest.mark.parametrize(
    ("method", "bits", "levels", "per_channel"),
    [
        ("adaround", 4, "narrow", False),
        ("adaround", 2, "mirrored", True),
        ("sigmoid", 3, "full", True),
        ("gptq+descent", 2, "mirrored", True),
        ("nearest", 3, "narrow", False),
        ("floor", 1, "narrow", True),
    ],
)
def test_choices_are_those_of_exact_fractions(method: str, bits: int, levels: str, per_channel: bool) -> None:
    result = rounded(method, bits, levels, per_channel)
    bins = 8
    for one in layer_choices(result, bins):
        tensor, rows = result.weights[one.name], GRAPH[one.name].op.weight  # type: ignore[union-attr]
        rows = rows.reshape(len(rows), -1)
        step = 2 if bits == 1 else 1
        moved = beyond = 0
        starts, ups = [0] * bins, [0] * bins
        for row, weights in enumerate(rows):
            scale = Fraction(float(tensor.params.scale.reshape(-1)[row if per_channel else 0]))
            zero = int(tensor.params.zero_point.reshape(-1)[row if per_channel else 0])
            low, high = tensor.spec.qmin - zero, tensor.spec.qmax - zero
            for weight, integer in zip(weights, tensor.values.reshape(len(rows), -1)[row], strict=True):
                exact, level = Fraction(float(weight)) / scale, int(integer) - zero
                below = low + step * math.floor((exact - low) / step)
                down, up = (max(low, min(high, value)) for value in (below, below + step))
                distance = min(abs(exact - value) for value in range(low, high + 1, step))
                moved += abs(exact - level) != distance
                beyond += not down <= level <= up
                if up > down:
                    place = (exact - down) / step
                    starts[min(int(place * bins), bins - 1)] += 1
                    ups[min(int(place * bins), bins - 1)] += level >= up
        assert (one.weights, one.moved, one.beyond) == (rows.size, moved, beyond)
        assert one.starts.tolist() == starts
        assert one.ups.tolist() == ups
        assert np.all(one.strays <= one.starts)
        if method == "nearest":
            assert one.moved == 0
        if method == "adaround":
            assert one.moved > 0 == one.beyond
    if method == "gptq+descent":
        assert sum(one.beyond for one in layer_choices(result)) > 0


def test_decisions_of_several_layers_are_added_up() -> None:
    result = rounded("adaround", 3, "narrow", False)
    whole, stem, rest = (
        decision_counts(result, names) for names in (None, ("stem",), tuple(n for n in result.weights if n != "stem"))
    )
    assert [one.iteration for one in whole] == list(KEPT)
    for every, one, other in zip(whole, stem, rest, strict=True):
        assert every.counts.tolist() == (one.counts + other.counts).tolist()
        assert (every.down, every.undecided) == (one.down + other.down, one.undecided + other.undecided)
    assert whole[0].undecided > whole[-1].undecided


def test_decisions_are_drawn_with_their_numbers() -> None:
    counts = decision_counts(rounded("adaround", 3, "narrow", False))
    svg = decision_histograms(counts, "h", "residual, 3 bits")
    found = texts(svg)
    assert {"residual, 3 bits", "h, from the level below (0) to the one above (1)"} <= set(found)
    for one in counts:
        words = f"after {one.iteration:,} iterations: {one.undecided:,} of {one.total:,} undecided"
        assert words in found
        assert f"{words}, {one.down + one.up:,} exactly 0 or 1." in label(svg)
    assert svg == decision_histograms(counts, "h", "residual, 3 bits")


def test_moved_weights_are_drawn_with_their_numbers() -> None:
    layers = layer_choices(rounded("adaround", 2, "narrow", False))
    bars = moved_shares(layers, "m", "residual, 2 bits")
    for one in layers:
        assert one.name in texts(bars)
        assert f"{100 * one.moved / one.weights:.1f} %" in texts(bars)
        assert f"{one.name} {one.moved:,} of {one.weights:,}" in label(bars)
    places = moved_places(layers, "p", "residual, 2 bits")
    assert {"residual, 2 bits", "weights", "to the nearest level", "to another"} <= set(texts(places))
    stray, start = sum(one.strays[3] for one in layers), sum(one.starts[3] for one in layers)
    assert f", {stray:,} of {start:,}, " in label(places)
    assert bars == moved_shares(layers, "m", "residual, 2 bits") and places == moved_places(
        layers, "p", "residual, 2 bits"
    )


def test_errors_are_drawn_with_their_numbers() -> None:
    errors = layer_errors(rounded("adaround", 3, "narrow", False))
    svg = error_changes(errors, "e", "residual, 3 bits")
    assert {"to nearest", "as chosen", *(one.name for one in errors)} <= set(texts(svg))
    for one in errors:
        assert f"{one.name} {100 * one.before:.3g} % and {100 * one.after:.3g} %" in label(svg)
    assert svg == error_changes(errors, "e", "residual, 3 bits")
    exact = error_changes([LayerErrors("fc", 0.1, 0.0)], "e", "t")
    assert "fc 10 % and 0 %" in label(exact)


def test_ids_start_with_the_key_and_nothing_leaks_into_the_page() -> None:
    result = by_hand()
    figures = [
        decision_histograms(decision_counts(result), "a", "t"),
        moved_shares(layer_choices(result), "b", "t"),
        moved_places(layer_choices(result), "c", "t"),
        error_changes(layer_errors(result), "d", "t"),
    ]
    for key, svg in zip("abcd", figures, strict=True):
        ids = re.findall(r'\sid="([^"]+)"', svg)
        assert len(ids) == len(set(ids)) and all(i == key or i.startswith(f"{key}-") for i in ids)
        assert ET.fromstring(svg).get("role") == "img" and "$" not in "".join(texts(svg))
        assert not any(stand_in in svg for stand_in in plots.COLOURS)


def test_a_layer_that_moved_nowhere_can_be_drawn() -> None:
    none = LayerChoices("fc", 4, 0, 0, *(np.zeros(5, np.int64) for _ in range(3)))
    assert "0.0 %" in texts(moved_shares([none], "m", "t"))
    assert "0 weights" in label(moved_places([none], "p", "t"))


def test_what_cannot_be_counted_or_drawn_is_refused() -> None:
    result = by_hand()
    for wrong in (replace(result, history={}), rounded("gptq", 3, "narrow", False)):
        with pytest.raises(InputError, match="no soft decisions of .* Round by a method that has them"):
            decision_counts(wrong)
    with pytest.raises(InputError, match="no soft decisions of 'other'"):
        decision_counts(result, ("other",))
    counts = decision_counts(result)
    for wrong_counts in ([], [counts[0]] * 7):
        with pytest.raises(InputError, match="room for 1 to 6 iterations"):
            decision_histograms(wrong_counts, "k", "t")
    for draw in (moved_shares, moved_places, error_changes):
        with pytest.raises(InputError, match="no layer to draw"):
            draw([], "k", "t")
