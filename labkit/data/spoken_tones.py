"""Sounds that stand in for spoken digits where there are none: hummed formants, made in code from a seed.

Nobody would take them for speech. They have what a front end and a network need to be tried: ten words that differ in how their
resonances move, and voices that differ in pitch, in the size of the throat, in pace and in hiss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.data.spoken_digits import RATE, SpokenDigits
from labkit.errors import InputError

__all__ = ["spoken_tones"]

# Two resonances in Hz at the start, in the middle and at the end of each word.
_WORDS = (
    ((300, 2200), (500, 1800), (450, 900)),
    ((350, 800), (700, 1200), (300, 1700)),
    ((300, 1900), (350, 1300), (300, 800)),
    ((450, 1300), (400, 1900), (280, 2300)),
    ((500, 800), (550, 850), (450, 1250)),
    ((650, 1100), (750, 1300), (350, 2200)),
    ((400, 2600), (420, 2000), (400, 2600)),
    ((550, 1700), (500, 1200), (560, 1800)),
    ((420, 2000), (330, 2300), (300, 2500)),
    ((300, 1600), (720, 1250), (300, 1500)),
)
_WIDTH = 110.0  # of a resonance, Hz

Reals = NDArray[np.float64]


def spoken_tones(speakers: int = 3, takes: int = 8, seed: int = 0) -> SpokenDigits:
    """``takes`` recordings of each digit by each of ``speakers``; sound, digits and voices depend on ``seed`` alone.

    Raises
    ------
    InputError
        There would be no recording.
    """
    if speakers < 1 or takes < 1:
        raise InputError(f"At least one speaker and one take are needed, got {speakers} and {takes}.")
    places = [(digit, speaker, take) for speaker in range(speakers) for digit in range(10) for take in range(takes)]
    sounds = tuple(_sound(*place, seed) for place in places)
    digits, speaker, take = (np.array(column, np.int64) for column in zip(*places, strict=True))
    names = tuple(f"voice-{index}" for index in range(speakers))
    reason = f"Tones that stand in for spoken digits, made in code (seed {seed})."
    return SpokenDigits("spoken-tones", reason, names, sounds, digits, speaker, take)


def _sound(digit: int, speaker: int, take: int, seed: int) -> NDArray[np.float32]:
    """One word, float32 [samples] in [-1, 1]."""
    voice = np.random.default_rng((seed, 0, speaker))
    pitch, throat, pace, hiss = (voice.uniform(*ends) for ends in ((90, 220), (0.85, 1.2), (0.3, 0.45), (0.001, 0.02)))
    generator = np.random.default_rng((seed, 1, speaker, digit, take))
    samples = int(RATE * pace * generator.uniform(0.85, 1.15))
    along = np.linspace(0, 1, samples)
    resonances = [
        throat * generator.uniform(0.96, 1.04) * np.interp(along, (0, 0.5, 1), hertz)
        for hertz in zip(*_WORDS[digit], strict=True)
    ]
    tone = pitch * generator.uniform(0.93, 1.07) * (1.1 - 0.2 * along)
    phase = 2 * np.pi * np.cumsum(tone) / RATE
    sound = np.zeros(samples)
    for harmonic in range(1, int(0.45 * RATE / tone.max()) + 1):
        strength = sum(1 / (1 + ((harmonic * tone - hertz) / _WIDTH) ** 2) for hertz in resonances)
        sound += strength * np.sin(harmonic * phase)
    sound *= np.sin(np.pi * np.clip(along, 0.01, 0.99)) ** 0.5
    sound = sound / np.abs(sound).max() * generator.uniform(0.2, 0.9) + hiss * generator.standard_normal(samples)
    return np.asarray(np.clip(sound, -1, 1), np.float32)
