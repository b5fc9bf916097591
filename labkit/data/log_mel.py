"""Log-mel features of a sound, in NumPy: what stands between a microphone and an integer network. It computes in real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["LogMel", "hertz_of_mel", "mel_filters", "mel_of_hertz", "pad_frames"]

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class LogMel:
    """A front end: windows of a sound to logarithms of the power in bands, each band with mean 0 and deviation 1.

    rate : samples a second
    window, hop : samples of a window, and from the start of one to the start of the next
    transform : points of the Fourier transform, at least ``window``; the rest of them are zeros
    bands : triangles that overlap by half, equally wide in mel
    lowest, highest : Hz, where the first triangle begins and the last one ends, at most half the rate
    emphasis : the share of the sample before that is taken from each one
    guard : what is added to each power before the logarithm, as a share of the sound's mean power. Silence is then as loud
        for every sound, whatever hiss its recording has.

    Raises
    ------
    InputError
        A number is outside its range.
    """

    rate: int = 8000
    window: int = 200
    hop: int = 80
    transform: int = 256
    bands: int = 40
    lowest: float = 80.0
    highest: float = 4000.0
    emphasis: float = 0.97
    guard: float = 1e-3

    def __post_init__(self) -> None:
        if min(self.rate, self.window, self.hop, self.bands) < 1 or self.window > self.transform:
            raise InputError(
                f"rate, window, hop and bands must be at least 1 and the window at most the transform, got {self}."
            )
        if not 0 <= self.lowest < self.highest <= self.rate / 2:
            raise InputError(
                f"Bands must lie in 0..{self.rate / 2:g} Hz (half the rate), got {self.lowest:g} to {self.highest:g}."
            )
        if not (0 <= self.emphasis < 1 and self.guard > 0):
            raise InputError(
                f"emphasis must be in [0, 1) and guard above 0, got {self.emphasis:g} and {self.guard:g}; "
                f"0.97 and 0.001 are usual."
            )

    def frames(self, samples: int) -> int:
        """Windows that fit whole into a sound of ``samples``."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def __call__(self, sound: NDArray[np.floating]) -> NDArray[np.float32]:
        """The features of ``sound``, float [samples]: float32 [bands, frames].

        The mean and the deviation of each band are those of this sound, as QuartzNet's front end has it (Kriman et al. 2020,
        in NeMo). How loud the sound is makes no difference.

        Raises
        ------
        InputError
            The sound is shorter than a window, silent, not one channel, or holds a NaN or an infinity.
        """
        power = self.power(sound)
        mean = float(power.mean())
        if mean == 0:
            raise InputError("The sound is silent: all its samples are equal. Record it again.")
        logs = np.log(power + self.guard * mean)
        centred = logs - logs.mean(1, keepdims=True)
        return np.asarray(centred / (centred.std(1, keepdims=True) + 1e-5), np.float32)

    def power(self, sound: NDArray[np.floating]) -> Reals:
        """The power of ``sound``, float [samples], in each band and window: float64 [bands, frames].

        Raises
        ------
        InputError
            As for the features, but for silence.
        """
        if sound.ndim != 1 or sound.dtype.kind != "f":
            raise InputError(
                f"A sound is one row of real samples, got {sound.dtype} {list(sound.shape)}. Hand in one channel in [-1, 1]."
            )
        if len(sound) < self.window:
            raise InputError(f"A sound must have at least {self.window} samples (one window), got {len(sound)}.")
        if not np.isfinite(sound).all():
            raise InputError("The sound holds a NaN or an infinity. Read it from its file again.")
        wide = sound.astype(np.float64)
        wide[1:] -= self.emphasis * wide[:-1]  # the right side is read whole before any of it is written
        windows = np.lib.stride_tricks.sliding_window_view(wide, self.window)[:: self.hop]
        spectrum = np.abs(np.fft.rfft(windows * np.hanning(self.window), self.transform)) ** 2
        return np.asarray(mel_filters(self) @ spectrum.T)


@cache
def mel_filters(front: LogMel) -> Reals:
    """The triangles of ``front``: float64 [bands, transform / 2 + 1], each with the sum 1."""
    low, high = mel_of_hertz(np.array([front.lowest, front.highest]))
    edges = hertz_of_mel(np.linspace(float(low), float(high), front.bands + 2))
    lines = np.arange(front.transform // 2 + 1) * front.rate / front.transform
    left, peak, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.maximum(np.minimum((lines - left) / (peak - left), (right - lines) / (right - peak)), 0)
    # A band that lies between two lines of the transform would be empty: it takes the line nearest to its peak.
    empty = triangles.sum(1) == 0
    triangles[empty, np.abs(lines - peak[empty]).argmin(1)] = 1
    triangles /= triangles.sum(1, keepdims=True)
    triangles.setflags(write=False)
    return np.asarray(triangles)


def mel_of_hertz(hertz: Reals) -> Reals:
    """The pitch of ``hertz``, float64 of any shape, in mel: 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    return np.asarray(2595 * np.log10(1 + hertz / 700))


def hertz_of_mel(mel: Reals) -> Reals:
    """The frequency of ``mel``, float64 of any shape, in Hz."""
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def pad_frames(features: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """``features``, float32 [bands, T], with zeros (each band's mean) after them: float32 [bands, frames].

    Raises
    ------
    InputError
        There are more than ``frames``.
    """
    if features.shape[1] > frames:
        raise InputError(
            f"A sound of {features.shape[1]} frames does not fit into {frames}. Cut it, or allow more frames."
        )
    return np.pad(features, ((0, 0), (0, frames - features.shape[1])))
