"""What a report says of each tensor and of the sample images, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.data import DataSet
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph
from labkit.kernels.kernel_set import KernelSet
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.reporting.layers import layer_rows, sample_rows, sqnr
from labkit.reporting.results import LayerRow, Sample


def array(*values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


# Signal to noise


@pytest.mark.parametrize(
    ("signal", "approximation", "decibels"),
    [
        ([3, 4], [3, 3.5], 20),  # 25 / 0.25 = 10**2
        ([30, 40], [30, 35], 20),  # a unit of measure changes nothing
        ([1, 1, 1, 1], [2, 2, 2, 2], 0),
        ([1, 0], [0, 3], -10),  # 1 / 10
        ([2, 0, 0], [1, 1, 0], 10 * math.log10(2)),
        ([[5, 5], [5, 5]], [[5, 5], [5, 5.1]], 40),  # 100 / 0.01
    ],
)
def test_sqnr_by_hand(signal: Any, approximation: Any, decibels: float) -> None:
    got = sqnr(np.array(signal, np.float64), np.array(approximation, np.float64))
    assert got == pytest.approx(decibels, abs=1e-9)


@pytest.mark.parametrize("signal", [[1.5, -2.25], [0.0, 0.0]])
def test_an_exact_copy_has_infinite_sqnr(signal: list[float]) -> None:
    assert sqnr(array(*signal), array(*signal)) == math.inf


def test_noise_without_a_signal() -> None:
    assert sqnr(array(0, 0), array(0, 1e-3)) == -math.inf


def test_sqnr_sums_in_float64() -> None:
    # The squares would be infinite in float32.
    assert sqnr(array(1e20, 1e20), array(1e20, 0)) == pytest.approx(10 * math.log10(2))


# A conv of two channels and a linear layer, small enough to follow on paper

CONV = array(9, -5, 3, 1).reshape(2, 1, 1, 2)  # mean 2, deviations 7 -7 1 -1: sigma 5
FC = array([1, -1], [0, 2])
FC_BIAS = array(-30, -20)
SEEN = array(9, -5, 3, 1).reshape(2, 1, 1, 2)
X = SEEN[:1]  # other images than those of the histograms

GRAPH = FloatGraph(
    (
        FloatNode("x", float_ops.Input((1, 1, 2))),
        FloatNode(
            "conv",
            float_ops.Conv2d(CONV, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
            ("x",),
            Activation.RELU,
            ("relu",),
        ),
        FloatNode("flatten", float_ops.Flatten(), ("conv",)),
        FloatNode("fc", float_ops.Linear(FC, FC_BIAS), ("flatten",)),
    ),
    ("fc",),
)
CALIBRATION = calibrate(GRAPH, SEEN)

# What the float net computes for SEEN: 9*9 + 5*5, 3*9 - 5; 9*3 - 5*1, 3*3 + 1*1. Then differences and biases.
CONV_SEEN = [106, 22, 22, 10]
FC_SEEN = [106 - 22 - 30, 2 * 22 - 20, 22 - 10 - 30, 2 * 10 - 20]


class ReadableNet(IntegerNet):
    """Traced with the readable kernels, so that these tests compile nothing."""

    def trace(self, x: Any, kernels: str | KernelSet = "reference") -> dict[str, NDArray[np.generic]]:
        return super().trace(x, kernels)


def net(weights: int = 8, activations: int = 8, **options: Any) -> IntegerNet:
    return ReadableNet(convert(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH, weights, activations, **options)))


def described(nets: dict[str, IntegerNet]) -> dict[str, LayerRow]:
    return {f"{row.name} {row.kind}": row for row in layer_rows(GRAPH, CALIBRATION, nets, SEEN, X)}


ROWS = described({"per channel": net(), "per tensor": net(per_channel=False), "W4": net(4, 8)})


def test_rows_are_in_running_order_and_flatten_has_none() -> None:
    assert list(ROWS) == ["x activation", "conv weight", "conv activation", "fc weight", "fc activation"]
    assert [row.shape for row in ROWS.values()] == [(1, 1, 2), (2, 1, 1, 2), (2, 1, 1), (2, 2), (2,)]


@pytest.mark.parametrize(
    ("row", "values", "mean", "sigma"),
    [
        ("x activation", [9, -5, 3, 1], 2, 5),
        ("conv weight", [9, -5, 3, 1], 2, 5),
        ("conv activation", CONV_SEEN, 40, math.sqrt((66**2 + 18**2 + 18**2 + 30**2) / 4)),
        ("fc weight", [1, -1, 0, 2], 0.5, math.sqrt((0.5**2 + 1.5**2 + 0.5**2 + 1.5**2) / 4)),
        ("fc activation", FC_SEEN, 15, 27),  # deviations 39 9 -33 -15
    ],
)
def test_histogram_range_and_three_sigma(row: str, values: list[float], mean: float, sigma: float) -> None:
    got = ROWS[row]
    counts, edges = got.histogram.counts, got.histogram.edges
    assert counts.dtype == np.int64 and edges.dtype == np.float64
    assert counts.sum() == len(values)
    assert len(edges) == len(counts) + 1 >= 11
    assert (edges[0], edges[-1]) == (min(values), max(values))
    np.testing.assert_allclose(edges, np.linspace(min(values), max(values), len(edges)), rtol=1e-6, atol=1e-6)
    for k, edge in enumerate(edges):
        if min(abs(value - edge) for value in values) > 1e-4:  # closer, and rounding decides the side
            assert counts[:k].sum() == sum(value < edge for value in values)
    assert (got.actual.low, got.actual.high) == (min(values), max(values))
    assert (got.three_sigma.low, got.three_sigma.high) == pytest.approx((mean - 3 * sigma, mean + 3 * sigma))


@pytest.mark.parametrize(
    ("row", "low", "high"),
    [
        ("x activation", -91 * 14 / 255, 164 * 14 / 255),  # -5..9: scale 14 / 255, zero point 5 / scale = 91.07
        ("conv weight", -9, 9),  # channel 0 is the wider one
        ("conv activation", 0, 106),  # 10..106, widened to 0
        ("fc weight", -2, 2),  # channel 1 is the wider one
        ("fc activation", -64 * 72 / 255, 191 * 72 / 255),  # -18..54: scale 72 / 255, zero point 63.75
    ],
)
def test_chosen_thresholds(row: str, low: float, high: float) -> None:
    assert (ROWS[row].chosen.low, ROWS[row].chosen.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_thresholds_are_those_of_the_first_net() -> None:
    rows = described({"W4A4": net(4, 4, per_channel=False, activation_scheme="symmetric"), "W8A8": net()})
    for name, end in {"x": 9, "fc": 54}.items():  # symmetric, and 8 bits at the borders
        assert (rows[f"{name} activation"].chosen.low, rows[f"{name} activation"].chosen.high) == pytest.approx(
            (-end, end), rel=1e-6
        )
    assert rows["conv activation"].chosen.low == pytest.approx(-106, rel=1e-6)
    for name, end in {"conv": 9, "fc": 2}.items():
        assert (rows[f"{name} weight"].chosen.low, rows[f"{name} weight"].chosen.high) == pytest.approx(
            (-end, end), rel=1e-6
        )


def test_thresholds_of_a_grid_with_one_more_negative_integer() -> None:
    graph = net().graph
    op: Any = graph["conv"].op
    wide = replace(op, weight=replace(op.weight, spec=QuantSpec(8, granularity=PerAxis(0))))
    nodes = tuple(replace(node, op=wide) if node.name == "conv" else node for node in graph)
    chosen = described({"W8A8": ReadableNet(IntGraph(nodes, graph.outputs))})["conv weight"].chosen
    assert (chosen.low, chosen.high) == pytest.approx((-128 * 9 / 127, 9), rel=1e-6)


def test_errors_of_weights() -> None:
    found = ROWS["conv weight"].sqnr_db
    power = 81 + 25 + 9 + 1
    # -5 is -70.56 steps of 9/127, kept as -71; 1 is 42.33 steps of 3/127, kept as 42.
    assert found["per channel"] == pytest.approx(10 * math.log10(power * 127**2 / (4**2 + 1**2)), abs=1e-3)
    # With 9/127 for all: 3 is 42.33 steps, kept as 42, and 1 is 14.11, kept as 14.
    assert found["per tensor"] == pytest.approx(10 * math.log10(power * 127**2 / (4**2 + 3**2 + 1**2)), abs=1e-3)
    # In 4 bits -5 is -3.89 steps of 9/7, and 1 is 2.33 steps of 3/7.
    assert found["W4"] == pytest.approx(10 * math.log10(power * 7**2 / (1**2 + 1**2)), abs=1e-3)


def test_errors_of_activations_are_measured_on_x() -> None:
    # 9 is 163.93 steps of 14/255, kept as 164; -5 is -91.07, kept as -91: each 1/255 off.
    for decibels in ROWS["x activation"].sqnr_db.values():
        assert decibels == pytest.approx(10 * math.log10((81 + 25) * 255**2 / (1**2 + 1**2)), abs=1e-3)
    # In integers: (164*127 + 91*71) M = 255.4, clamped to 255, which is 106 exactly; (164*127 - 91*42) M' = 53.06,
    # kept as 53, which is 22 + 8/255. M = 9/127 * 14/255 / (106/255), M' with 3/127.
    found = ROWS["conv activation"].sqnr_db["per channel"]
    assert found == pytest.approx(10 * math.log10((106**2 + 22**2) * 255**2 / 8**2), abs=1e-3)


# Sample images

LABELS = np.arange(20) % 3
LN2, LN3, LN6 = math.log(2), math.log(3), math.log(6)


class TableNet:
    """Stands for an integer net: looks up each image's logits by the number that the image carries."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = logits

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.logits[x[:, 0, 1, 1].astype(int)]


def dataset(count: int) -> DataSet:
    pixels = np.random.default_rng(3).integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return DataSet(
        "colours", "made up", ("red", "green", "blue"), pixels[:1], LABELS[:1], pixels, LABELS[:count].copy()
    )


def samples(
    floats: NDArray[np.float32], integers: dict[str, NDArray[np.float32]]
) -> tuple[list[int], tuple[Sample, ...], DataSet]:
    """Rows of `sample_rows`, and which images they show, for given logits [N, 3]."""
    weight = np.zeros((3, 3 * 32 * 32), np.float32)
    weight[range(3), [0, 1024, 2048]] = 1  # the first pixel of each channel carries the float net's logit
    graph = FloatGraph(
        (
            FloatNode("x", float_ops.Input((3, 32, 32))),
            FloatNode("flatten", float_ops.Flatten(), ("x",)),
            FloatNode("fc", float_ops.Linear(weight, None), ("flatten",)),
        ),
        ("fc",),
    )
    x = np.zeros((len(floats), 3, 32, 32), np.float32)
    x[:, :, 0, 0] = floats
    x[:, 0, 1, 1] = np.arange(len(floats))
    data = dataset(len(floats))
    nets: Any = {name: TableNet(logits) for name, logits in integers.items()}
    rows = sample_rows(data, graph, nets, x, data.test_labels)
    stored = [image.transpose(1, 2, 0).tobytes() for image in data.test_images]
    return [stored.index(np.ascontiguousarray(row.pixels).tobytes()) for row in rows], rows, data


def logits(classes: Sequence[int]) -> NDArray[np.float32]:
    return np.eye(3, dtype=np.float32)[list(classes)]


@pytest.mark.parametrize(
    ("differing", "shown"),
    [
        ({}, list(range(12))),
        ({"W8A8": [15]}, [15, *range(11)]),
        ({"W8A8": [2], "W4A4": [2, 14]}, [2, 14, 0, 1, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"W8A8": [11, 3], "W4A4": [17, 7, 5, 19]}, [3, 5, 7, 11, 0, 1, 2, 4, 6, 8, 9, 10]),
    ],
)
def test_disagreements_come_first_and_no_image_twice(differing: dict[str, list[int]], shown: list[int]) -> None:
    agreed = (LABELS + 1) % 3  # wrong everywhere, which is no disagreement
    integers = {}
    for name in ("W8A8", "W4A4"):
        classes = agreed.copy()
        classes[differing.get(name, [])] = LABELS[differing.get(name, [])]
        integers[name] = logits(classes)
    got, rows, data = samples(logits(agreed), integers)
    assert got == shown
    for i, row in zip(got, rows, strict=True):
        assert row.label == data.class_names[LABELS[i]]
        assert row.float_prediction == data.class_names[agreed[i]]
        for name, (prediction, _) in row.integer_predictions.items():
            wanted = LABELS[i] if i in differing.get(name, []) else agreed[i]
            assert prediction == data.class_names[wanted]


def test_few_images_are_shown_once_each() -> None:
    got, _, _ = samples(logits([0, 1, 2]), {"W8A8": logits([0, 1, 0])})
    assert got == [2, 0, 1]


def test_pixels_are_those_of_the_image_with_the_channels_last() -> None:
    got, rows, data = samples(logits([0, 1, 2]), {"W8A8": logits([0, 1, 0])})
    for i, row in zip(got, rows, strict=True):
        assert row.pixels.shape == (32, 32, 3) and row.pixels.dtype == np.uint8
        for channel, line, column in [(0, 0, 0), (1, 5, 30), (2, 31, 2)]:
            assert row.pixels[line, column, channel] == data.test_images[i, channel, line, column]


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    floats = array([LN2, 0, 0], [LN6, LN3, 0], [-LN6, -LN3, 0])
    integers = array([1000, 0, 0], [LN6 - 1000, -1000, -1000], [-100, -100, 100])
    got, rows, _ = samples(floats, {"W8A8": floats, "W4A4": integers})
    assert got == [0, 1, 2]
    assert [row.float_prediction for row in rows] == ["red", "red", "blue"]
    assert [row.float_probability for row in rows] == pytest.approx([2 / 4, 6 / 10, 6 / 9], abs=1e-6)
    for i, row in enumerate(rows):
        assert row.integer_predictions["W8A8"] == (row.float_prediction, row.float_probability)
        prediction, probability = row.integer_predictions["W4A4"]
        assert prediction == row.float_prediction
        assert probability == pytest.approx([1, 6 / 8, 1][i], abs=1e-4)  # logits at 1000 are 6e-5 apart
