"""Strings of spoken digits: recordings of one set, put together with short pauses, and what was said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data.log_mel import LogMel, pad_frames
from labkit.data.spoken_digits import SpokenDigits
from labkit.errors import InputError

__all__ = ["Distortion", "Strings", "draw_sound", "draw_strings"]

_DIGITS = (3, 7)  # in a string, at least and at most
_LONGEST_PAUSE = 560  # samples, 70 ms

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Distortion:
    """How a training string is made different from every other one.

    tempo : the most by which it is played faster or slower, voice and all, as a factor; 1 leaves it as it is
    noise : the most hiss, as a share of the string's deviation
    bands, frames : the most bands, and the most frames of each of two spans, that are set to 0 (Park et al. 2019)
    """

    tempo: float = 1.25
    noise: float = 0.05
    bands: int = 7
    frames: int = 8


@dataclass(frozen=True, eq=False)
class Strings:
    """Strings of digits as a network takes them.

    x : float32 [N, bands, frames], zeros after the end of each
    frames : int64 [N], of each before the zeros
    digits : what was said, a tuple of digits each
    """

    x: NDArray[np.float32]
    frames: Indices
    digits: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.digits)

    def padded(self, frames: int) -> Strings:
        """The same with ``frames`` in all.

        Raises
        ------
        InputError
            That is fewer than now.
        """
        return Strings(np.stack([pad_frames(one, frames) for one in self.x]), self.frames, self.digits)


def draw_sound(
    data: SpokenDigits, among: Indices, generator: np.random.Generator
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """A sound, float32 [samples], of 3 to 7 recordings with pauses of up to 70 ms of silence between, and its digits.

    ``among`` are the indices of the recordings of ``data`` that may be taken, int64 [M]; ``generator`` draws them.
    """
    low, high = _DIGITS
    chosen = generator.choice(among, int(generator.integers(low, high + 1)))
    parts: list[NDArray[np.float32]] = []
    for index in chosen:
        parts += [data.sounds[index], np.zeros(int(generator.integers(0, _LONGEST_PAUSE + 1)), np.float32)]
    return np.concatenate(parts), tuple(int(digit) for digit in data.digits[chosen])


def draw_strings(
    data: SpokenDigits,
    among: Indices,
    count: int,
    *seed: int,
    front: LogMel | None = None,
    distortion: Distortion | None = None,
) -> Strings:
    """``count`` strings, padded to the longest of them; string i depends on ``seed`` and i alone.

    Parameters
    ----------
    data : the recordings
    among : indices of those that may be taken, int64 [M], at least one
    count : at least 1
    seed : any number of integers of at least 0
    front : makes the features; None: `LogMel` as it is
    distortion : as in training; None: the recordings as they are

    Raises
    ------
    InputError
        There is nothing to draw, or nothing to draw from.
    """
    if count < 1 or not len(among):
        raise InputError(f"Strings are drawn from one recording or more, got {count} strings from {len(among)}.")
    front = front or LogMel(rate=8000)
    features, digits = [], []
    for index in range(count):
        generator = np.random.default_rng((*seed, index))
        sound, said = draw_sound(data, among, generator)
        features.append(front(sound) if distortion is None else _distorted(sound, front, distortion, generator))
        digits.append(said)
    frames = np.array([one.shape[1] for one in features], np.int64)
    longest = int(frames.max())
    return Strings(np.stack([pad_frames(one, longest) for one in features]), frames, tuple(digits))


def _distorted(
    sound: NDArray[np.float32], front: LogMel, distortion: Distortion, generator: np.random.Generator
) -> NDArray[np.float32]:
    factor = distortion.tempo ** generator.uniform(-1, 1)
    at = np.arange(int(len(sound) / factor)) * factor
    sound = np.interp(at, np.arange(len(sound)), sound)
    hiss = distortion.noise * generator.uniform(0, 1) ** 2 * sound.std()
    features = front(sound + hiss * generator.standard_normal(len(sound)))
    first, width = generator.integers(0, front.bands), generator.integers(0, distortion.bands + 1)
    features[first : first + width] = 0
    for _ in range(2):
        start = int(generator.integers(0, features.shape[1]))
        features[:, start : start + int(generator.integers(0, distortion.frames + 1))] = 0
    return features
