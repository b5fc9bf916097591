"""The log-mel front end against sums of sines and triangles written out, and what no loudness may change."""

from __future__ import annotations

import cmath
import math
from itertools import pairwise

import numpy as np
import pytest

from labkit.data.log_mel import LogMel, hertz_of_mel, mel_filters, mel_of_hertz, pad_frames
from labkit.errors import InputError

SMALL = LogMel(rate=1000, window=20, hop=7, transform=32, bands=4, lowest=30.0, highest=480.0)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples)


def power_by_hand(sound: list[float], front: LogMel) -> list[list[float]]:
    """Each band's power in each window, one number after the other."""
    emphasised = [sound[0]] + [b - front.emphasis * a for a, b in pairwise(sound)]
    mel = [2595 * math.log10(1 + f / 700) for f in (front.lowest, front.highest)]
    steps = [mel[0] + (mel[1] - mel[0]) * i / (front.bands + 1) for i in range(front.bands + 2)]
    edges = [700 * (10 ** (m / 2595) - 1) for m in steps]
    result: list[list[float]] = [[] for _ in range(front.bands)]
    start = 0
    while start + front.window <= len(sound):
        part = [
            emphasised[start + n] * (0.5 - 0.5 * math.cos(2 * math.pi * n / (front.window - 1)))
            for n in range(front.window)
        ]
        lines = []
        for k in range(front.transform // 2 + 1):
            value = sum(x * cmath.exp(-2j * math.pi * k * n / front.transform) for n, x in enumerate(part))
            lines.append(abs(value) ** 2)
        for band in range(front.bands):
            left, peak, right = edges[band : band + 3]
            weights = []
            for k in range(len(lines)):
                f = k * front.rate / front.transform
                up, down = (f - left) / (peak - left), (right - f) / (right - peak)
                weights.append(max(0.0, min(up, down)))
            result[band].append(sum(w * x for w, x in zip(weights, lines, strict=True)) / sum(weights))
        start += front.hop
    return result


@pytest.mark.parametrize("samples", [20, 26, 27, 90])
def test_power_is_that_of_the_sums_written_out(samples: int) -> None:
    sound = noise(samples, samples)
    wanted = power_by_hand(sound.tolist(), SMALL)
    got = SMALL.power(sound)
    assert got.shape == (4, SMALL.frames(samples)) == (4, len(wanted[0]))
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_the_sound_itself_is_left_alone() -> None:
    sound = noise(300)
    before = sound.copy()
    LogMel()(sound)
    np.testing.assert_array_equal(sound, before)


def test_features_are_logarithms_with_mean_0_and_deviation_1() -> None:
    sound, front = noise(4000, 3), LogMel()
    got = front(sound)
    assert got.dtype == np.float32
    assert got.shape == (40, front.frames(4000)) == (40, 48)
    np.testing.assert_allclose(got.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(1), 1, atol=1e-3)
    power = front.power(sound)
    logs = np.log(power + 1e-3 * power.mean())
    np.testing.assert_allclose(got, (logs - logs.mean(1)[:, None]) / logs.std(1)[:, None], atol=2e-4)


@pytest.mark.parametrize("gain", [0.01, 0.5, 7.0])
def test_loudness_changes_nothing(gain: float) -> None:
    sound = noise(3000, 5)
    np.testing.assert_allclose(LogMel()(gain * sound), LogMel()(sound), atol=1e-4)


@pytest.mark.parametrize("hertz", [200, 440, 1000, 3000])
def test_a_tone_is_loudest_in_the_band_nearest_to_it(hertz: int) -> None:
    front = LogMel()
    peaks = hertz_of_mel(np.linspace(float(mel_of_hertz(np.array(80.0))), float(mel_of_hertz(np.array(4000.0))), 42))
    tone = np.sin(2 * np.pi * hertz * np.arange(2000) / 8000)
    loudest = peaks[1:-1][front.power(tone).mean(1).argmax()]
    assert abs(mel_of_hertz(loudest) - mel_of_hertz(np.array(float(hertz)))) < 55  # bands are 51 mel apart


def test_mel_is_about_a_thousand_at_1000_hertz_and_goes_back() -> None:
    assert float(mel_of_hertz(np.array(1000.0))) == pytest.approx(1000, abs=0.1)
    hertz = np.array([0.0, 80.0, 440.0, 4000.0])
    np.testing.assert_allclose(hertz_of_mel(mel_of_hertz(hertz)), hertz, atol=1e-9)


@pytest.mark.parametrize("front", [LogMel(), SMALL, LogMel(bands=120)])
def test_every_band_hears_something(front: LogMel) -> None:
    filters = mel_filters(front)
    assert filters.shape == (front.bands, front.transform // 2 + 1)
    np.testing.assert_allclose(filters.sum(1), 1)
    assert filters.min() == 0
    peaks = filters.argmax(1)
    assert np.all(np.diff(peaks) >= 0)
    assert peaks[-1] > peaks[0]


def test_padding_is_zeros_after_the_end() -> None:
    features = LogMel()(noise(1000))
    padded = pad_frames(features, 30)
    np.testing.assert_array_equal(padded[:, : features.shape[1]], features)
    assert padded.shape == (40, 30)
    assert not padded[:, features.shape[1] :].any()
    with pytest.raises(InputError, match=r"11 frames does not fit into 10\. Cut it"):
        pad_frames(features, 10)


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        (np.zeros(199), "at least 200 samples .*got 199"),
        (np.zeros(400), "is silent"),
        (np.zeros((2, 400)), r"one row of real samples, got float64 \[2, 400\]"),
        (np.zeros(400, np.int16), r"got int16 \[400\]"),
        (np.full(400, np.nan), "holds a NaN"),
    ],
)
def test_what_is_no_sound_is_refused(sound: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LogMel()(sound)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"hop": 0}, "at least 1"),
        ({"window": 300}, "window at most the transform"),
        ({"highest": 4001.0}, r"must lie in 0\.\.4000 Hz \(half the rate\), got 80 to 4001"),
        ({"lowest": 4000.0}, "got 4000 to 4000"),
        ({"emphasis": 1.0}, r"emphasis must be in \[0, 1\) and guard above 0, got 1 and 0.001"),
        ({"guard": 0.0}, "got 0.97 and 0"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LogMel(**numbers)  # type: ignore[arg-type]
