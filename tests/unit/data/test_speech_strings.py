"""Strings of digits: put together of the right recordings, drawn from seed and index alone, padded and distorted as said."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.data.digit_strings import Distortion, draw_sound, draw_strings
from labkit.data.log_mel import LogMel
from labkit.data.spoken_digits import SpokenDigits
from labkit.data.spoken_tones import spoken_tones
from labkit.errors import InputError

TONES = spoken_tones(2, 2)
ALL = np.arange(len(TONES.sounds))


def steps() -> SpokenDigits:
    """Ten recordings of a constant each, so that a string tells of what it was made: digit d is d + 1 over 16, d + 3 samples."""
    sounds = tuple(np.full(digit + 3, (digit + 1) / 16, np.float32) for digit in range(10))
    digits = np.arange(10)
    return SpokenDigits("steps", "", ("one",), sounds, digits, np.zeros(10, np.int64), np.zeros(10, np.int64))


def test_a_sound_says_its_digits() -> None:
    lengths, pauses = set(), []
    for seed in range(60):
        sound, said = draw_sound(steps(), np.arange(10), np.random.default_rng(seed))
        lengths.add(len(said))
        at = 0
        for digit in said:
            part = sound[at : at + digit + 3]
            assert np.all(part == (digit + 1) / 16)
            at += len(part)
            silent = 0
            while at < len(sound) and sound[at] == 0:
                at, silent = at + 1, silent + 1
            pauses.append(silent)
        assert at == len(sound)
    assert lengths == {3, 4, 5, 6, 7}
    assert max(pauses) <= 560
    assert min(pauses) < 60 < 500 < max(pauses)


def test_only_what_is_among_is_drawn() -> None:
    drawn = {
        digit for seed in range(20) for digit in draw_sound(steps(), np.array([2, 7]), np.random.default_rng(seed))[1]
    }
    assert drawn == {2, 7}


def test_a_string_depends_on_its_seed_and_index_alone() -> None:
    five, two, other = (
        draw_strings(TONES, ALL, 5, 3, 1),
        draw_strings(TONES, ALL, 2, 3, 1),
        draw_strings(TONES, ALL, 2, 3, 2),
    )
    assert (len(five), five.digits[:2]) == (5, two.digits)
    assert two.digits != other.digits
    width = two.x.shape[2]
    for index in range(2):
        count = two.frames[index]
        np.testing.assert_array_equal(five.x[index, :, :count], two.x[index, :, :count])
        assert not five.x[index, :, count:].any()
    assert width == two.frames.max()
    assert five.x.shape == (5, 40, five.frames.max())
    assert five.x.dtype == np.float32


def test_features_are_those_of_the_sound() -> None:
    strings = draw_strings(TONES, ALL, 3, 9)
    for index in range(3):
        sound, said = draw_sound(TONES, ALL, np.random.default_rng((9, index)))
        assert said == strings.digits[index]
        assert strings.frames[index] == LogMel().frames(len(sound))
        np.testing.assert_array_equal(strings.x[index, :, : strings.frames[index]], LogMel()(sound))


def test_more_zeros_change_nothing_else() -> None:
    strings = draw_strings(TONES, ALL, 2, 4)
    wider = strings.padded(500)
    assert wider.x.shape == (2, 40, 500)
    np.testing.assert_array_equal(wider.x[:, :, : strings.x.shape[2]], strings.x)
    assert not wider.x[:, :, strings.x.shape[2] :].any()
    assert (wider.digits, wider.frames.tolist()) == (strings.digits, strings.frames.tolist())
    with pytest.raises(InputError, match="does not fit into 20"):
        strings.padded(20)


def test_distortion_says_the_same_otherwise() -> None:
    plain, bent = (draw_strings(TONES, ALL, 40, 5, distortion=one) for one in (None, Distortion()))
    assert plain.digits == bent.digits
    factors = plain.frames / bent.frames
    assert 1 / 1.27 < factors.min() < 0.9 < 1.1 < factors.max() < 1.27
    none = draw_strings(TONES, ALL, 2, 5, distortion=Distortion(1.0, 0.0, 0, 0))
    np.testing.assert_array_equal(none.frames, plain.frames[:2])
    np.testing.assert_allclose(none.x, plain.x[:2, :, : none.x.shape[2]], atol=1e-5)


def test_masks_are_as_wide_as_said() -> None:
    strings = draw_strings(TONES, ALL, 30, 6, distortion=Distortion(1.0, 0.0, 5, 6))
    bands = [int((x[:, :count] == 0).all(1).sum()) for x, count in zip(strings.x, strings.frames, strict=True)]
    frames = [int((x[:, :count] == 0).all(0).sum()) for x, count in zip(strings.x, strings.frames, strict=True)]
    assert (max(bands), min(bands)) == (5, 0)
    assert 6 < max(frames) <= 12


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="got 0 strings from 40"):
        draw_strings(TONES, ALL, 0, 1)
    with pytest.raises(InputError, match="got 2 strings from 0"):
        draw_strings(TONES, ALL[:0], 2, 1)
