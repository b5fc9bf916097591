"""What the comparisons of AdaRound with other roundings share, against independent computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE, Outcome, bound, corrected, nearest, outcome, verdict
from labkit.studies.adaround.figure_4 import draw
from labkit.studies.adaround.images_seen import DOMAINS, blurred_noise, channel_noise, draw_images, uniform_noise
from labkit.studies.adaround.table_7 import ROWS
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Settings

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


@pytest.fixture(scope="module")
def lab() -> Lab:
    return open_lab("lenet", Settings.short())


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("per_channel", [False, True])
def test_nearest_on_the_grid_of_the_range(lab: Lab, bits: int, per_channel: bool) -> None:
    made = nearest(lab.graph, lab.calibration, lab.plan(bits, 8, per_channel))
    assert tuple(made.layers) == LAYERS
    top = 2 ** (bits - 1) - 1
    for name, layer in made.layers.items():
        weight = lab.graph[name].op.weight  # type: ignore[union-attr]
        reach = np.abs(weight.reshape(len(weight), -1)).max(1 if per_channel else None)
        exact = weight.reshape(len(weight), -1) / np.reshape(reach / top, (-1, 1))
        off = np.abs(layer.weight.values.reshape(exact.shape) - exact)
        assert off.max() <= 0.5 + 1e-4
        assert np.abs(layer.weight.values).max() == top
        assert not layer.bias.any()  # this LeNet has none


@pytest.mark.parametrize("grid", ["minmax", "mse"])
def test_nearest_is_what_the_driver_rounds(lab: Lab, grid: str) -> None:
    plan = lab.plan(4, 8, per_channel=False)
    driven = lab.round(plan, "nearest", RoundingOptions(grid=grid, correct_bias=False))
    made = nearest(lab.graph, lab.calibration, plan, grid)
    for name in LAYERS:
        assert np.array_equal(made.layers[name].weight.values, driven.weights[name].values)
        assert made.layers[name].weight.params.scale == driven.weights[name].params.scale
    assert made.integer_accuracy(lab) == outcome(lab, plan, driven).integer_accuracy(lab)
    simulated, theirs = made.simulated(), driven.simulated()
    for name in LAYERS:
        assert np.array_equal(simulated[name].op.weight, theirs[name].op.weight)  # type: ignore[union-attr]


def test_float_activations_are_those_of_the_float_network(lab: Lab) -> None:
    exact = nearest(lab.graph, lab.calibration, lab.plan(8, 8))
    layers = {
        name: replace(layer, bias=layer.bias + np.float32(100) * (np.arange(len(layer.bias)) == 3))
        for name, layer in exact.layers.items()
        if name == "fc3"
    }
    pushed = Outcome(exact.graph, exact.calibration, exact.plan, {**exact.layers, **layers})
    assert exact.float_activations_accuracy(lab) >= lab.accuracy - 2
    assert pushed.float_activations_accuracy(lab) == pytest.approx(100 * float((lab.labels == 3).mean()))


def test_correction_gives_the_first_layer_its_mean_back(lab: Lab) -> None:
    before = nearest(lab.graph, lab.calibration, lab.plan(2, 8, per_channel=False))
    after = corrected(before, lab)
    weight = torch.from_numpy(np.array(lab.graph["conv1"].op.weight))  # type: ignore[union-attr]
    rounded = torch.from_numpy(np.array(before.layers["conv1"].weight.dequantized()))
    low, high = lab.calibration.ranges[lab.graph.inputs[0]]
    scale = (high - low) / 255
    seen = torch.from_numpy(
        np.clip(np.rint(lab.images / scale) + np.rint(-low / scale), 0, 255) - np.rint(-low / scale)
    )
    wanted = torch.nn.functional.conv2d(torch.from_numpy(np.array(lab.images)), weight).mean((0, 2, 3)).numpy()
    got = torch.nn.functional.conv2d((seen * scale).float(), rounded).mean((0, 2, 3)).numpy()
    assert np.abs(got - wanted).max() > 0.01
    assert got + after.layers["conv1"].bias == pytest.approx(wanted, abs=1e-3)
    for name in LAYERS:
        assert np.array_equal(after.layers[name].weight.values, before.layers[name].weight.values)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.slow], ids=lambda row: row.name)
def test_ways_stay_on_their_grid_and_are_the_same_each_time(lab: Lab, row) -> None:  # type: ignore[no-untyped-def]
    made, again = row.make(lab, 3, True), row.make(lab, 3, True)
    for name in LAYERS:
        values = made.layers[name].weight.values
        assert -4 <= values.min() < 0 < values.max() <= 3
        assert np.array_equal(values, again.layers[name].weight.values)
        channels = made.layers[name].weight.params.scale.size
        assert (channels > 1) == (row.name == "nearest, one scale a channel")


def test_dfq_equalizes(lab: Lab) -> None:
    (dfq,) = (row for row in ROWS if row.name == "DFQ")
    made = dfq.make(lab, 8, True)
    first = np.abs(made.graph["conv1"].op.weight).max((1, 2, 3))  # type: ignore[union-attr]
    second = np.abs(made.graph["conv2"].op.weight).max((0, 2, 3))  # type: ignore[union-attr]
    assert first == pytest.approx(second, rel=0.02)
    assert lab.float_accuracy(made.graph) == lab.accuracy


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=5))
def test_verdict_is_antisymmetric_and_needs_more_than_a_tie(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    assert bound(one, other) == pytest.approx(bound(other, one))
    assert bound(one, other) >= TIE
    if verdict(one, other) == "yes":
        assert verdict(other, one) == "no"
        assert sum(one) - sum(other) > TIE * len(pairs) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("better", "worse", "expected", "limit"),
    [
        ([90.0], [89.0], "yes", TIE),
        ([90.0], [89.8], "partly", TIE),
        ([90.0], [90.0], "no", TIE),
        ([92.0, 90.0], [91.0, 89.0], "yes", TIE),  # paired: the spread between seeds does not count
        ([92.0, 90.0], [90.0, 91.0], "partly", 2 * math.sqrt(4.5 / 2)),
    ],
)
def test_verdict(better: list[float], worse: list[float], expected: str, limit: float) -> None:
    assert verdict(better, worse) == expected
    assert bound(better, worse) == pytest.approx(limit)


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_from_elsewhere(lab: Lab, domain: str) -> None:
    images = draw_images(domain, lab.images, 40, 1)
    assert images.shape == (40, 3, 32, 32)
    assert images.dtype == np.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert np.array_equal(images, draw_images(domain, lab.images, 40, 1))
    assert not np.array_equal(images, draw_images(domain, lab.images, 40, 2))


def test_training_images_are_nested(lab: Lab) -> None:
    assert np.array_equal(draw(lab.data, "training images", 16, 3), draw(lab.data, "training images", 64, 3)[:16])


def _images(generator: np.random.Generator) -> np.ndarray:  # type: ignore[type-arg]
    """Channels of their own mean and spread, hardly any pixel near an end."""
    means, spreads = np.array([-0.1, 0.0, 0.3]), np.array([0.2, 0.3, 0.1])
    noise = generator.normal(size=(50, 3, 16, 16))
    return (noise * spreads[:, None, None] + means[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("make", [channel_noise, blurred_noise])
def test_noise_has_the_statistics_of_the_images(make) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(0)
    images = _images(generator)
    noise = make(images, 300, generator)
    for what in (np.mean, np.std):
        assert what(noise, (0, 2, 3)) == pytest.approx(what(images, (0, 2, 3)), abs=2e-3)


def _slope(images: np.ndarray) -> float:  # type: ignore[type-arg]
    """How the logarithm of the amplitude depends on that of the frequency, along rows, by least squares."""
    rows = images[:, 0] - images[:, 0].mean()
    amplitude = np.sqrt((np.abs(np.fft.fft2(rows)) ** 2).mean(0))[0, 1:8]
    return float(np.polyfit(np.log(np.arange(1, 8)), np.log(amplitude), 1)[0])


def test_blurred_noise_falls_with_frequency_and_the_others_do_not() -> None:
    generator = np.random.default_rng(0)
    images = _images(generator)
    assert _slope(blurred_noise(images, 400, generator)) == pytest.approx(-1, abs=0.1)
    assert _slope(channel_noise(images, 400, generator)) == pytest.approx(0, abs=0.1)
    assert _slope(uniform_noise((400, 3, 16, 16), generator)) == pytest.approx(0, abs=0.1)
