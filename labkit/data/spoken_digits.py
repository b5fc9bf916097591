"""Spoken digits by several speakers, and FSDD, the Free Spoken Digit Dataset: found where the user keeps it."""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labkit.data.cifar10 import places
from labkit.errors import DataError, InputError

__all__ = ["FSDD_SPEAKERS", "FSDD_TAKES", "RATE", "SpokenDigits", "find_fsdd", "load_fsdd"]

RATE = 8000  # samples a second
FSDD_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
FSDD_TAKES = 50  # of each digit by each speaker
_WORKS = "Jakobovski/free-spoken-digit-dataset"
_FOLDERS = ("recordings", "fsdd/recordings", "free-spoken-digit-dataset*/recordings")


@dataclass(frozen=True, eq=False, repr=False)
class SpokenDigits:
    """Recordings of single digits. The arrays cannot be written to.

    name : "fsdd", or "spoken-tones" for the stand-in that is made in code
    reason : one sentence: which recordings, from where, under which licence
    speakers : their names
    sounds : float32 [samples] each, in [-1, 1], `RATE` samples a second
    digits, speaker, take : int64 [N]: the digit of each sound in 0..9, an index of ``speakers``, the number of the recording
    """

    name: str
    reason: str
    speakers: tuple[str, ...]
    sounds: tuple[NDArray[np.float32], ...]
    digits: NDArray[np.int64]
    speaker: NDArray[np.int64]
    take: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Hold the arrays to their contract, and freeze them.

        Raises
        ------
        InputError
            There is not one label a sound, a label is out of its range, or a sound is no row of float32.
        """
        count = len(self.sounds)
        for name, labels, most in (
            ("digits", self.digits, 9),
            ("speaker", self.speaker, len(self.speakers) - 1),
            ("take", self.take, None),
        ):
            if labels.dtype != np.int64 or labels.shape != (count,):
                raise InputError(
                    f"{self.name}: {name} must be int64 [{count}], got {labels.dtype} {list(labels.shape)}."
                )
            if count and (labels.min() < 0 or (most is not None and labels.max() > most)):
                allowed = "at least 0" if most is None else f"in 0..{most}"
                raise InputError(f"{self.name}: {name} must be {allowed}, got {labels.min()}..{labels.max()}.")
            labels.setflags(write=False)
        for sound in self.sounds:
            if sound.dtype != np.float32 or sound.ndim != 1 or not len(sound):
                raise InputError(
                    f"{self.name}: a sound must be a row of float32, got {sound.dtype} {list(sound.shape)}."
                )
            sound.setflags(write=False)

    def __repr__(self) -> str:
        return f"SpokenDigits({self.name}: {len(self.sounds)} recordings, {len(self.speakers)} speakers)"

    def by(self, speaker: str) -> NDArray[np.int64]:
        """Indices of the recordings by ``speaker``, int64 [M].

        Raises
        ------
        InputError
            There is no such speaker.
        """
        if speaker not in self.speakers:
            raise InputError(f"There is no speaker {speaker!r}. Choose one of: {', '.join(self.speakers)}.")
        return np.flatnonzero(self.speaker == self.speakers.index(speaker))

    def not_by(self, speaker: str) -> NDArray[np.int64]:
        """Indices of the recordings by all others than ``speaker``, int64 [M].

        Raises
        ------
        InputError
            There is no such speaker.
        """
        return np.setdiff1d(np.arange(len(self.sounds)), self.by(speaker))

    @property
    def sha256(self) -> str:
        """Of all samples and labels, 64 hex digits."""
        state = hashlib.sha256()
        for sound in self.sounds:
            state.update(sound.tobytes())
        for labels in (self.digits, self.speaker, self.take):
            state.update(labels.tobytes())
        return state.hexdigest()


def find_fsdd(data_dir: str | Path | None = None) -> tuple[str, Path] | None:
    """The first folder of recordings in the places where data are looked for (`labkit.data.cifar10.places`); None where none is.

    In a place, the folder is ``recordings``, ``fsdd/recordings`` or ``free-spoken-digit-dataset*/recordings``. ``data_dir`` is
    the first place. Nothing is opened or checked here.
    """
    for called, place in places(data_dir):
        if place.name == "recordings" and place.is_dir():
            return called, place
        for pattern in _FOLDERS:
            if found := sorted(path for path in place.glob(pattern) if path.is_dir()):
                return called, found[0]
    return None


def load_fsdd(data_dir: str | Path | None = None) -> SpokenDigits:
    """Read FSDD: 3,000 recordings, 50 of each digit by each of six speakers (version 1.0.10).

    ``data_dir`` is looked into first. Labkit does not download it.

    Raises
    ------
    DataError
        It is in none of the places, a recording is missing, or a file is not what it should be.
    """
    found = find_fsdd(data_dir)
    if found is None:
        looked = ", ".join(f"{folder} ({called})" for called, folder in places(data_dir))
        raise DataError(f"FSDD, the Free Spoken Digit Dataset, is in none of these folders: {looked}. {_ways()}")
    _, folder = found
    names = [
        (digit, speaker, take)
        for speaker in range(len(FSDD_SPEAKERS))
        for digit in range(10)
        for take in range(FSDD_TAKES)
    ]
    paths = [folder / f"{digit}_{FSDD_SPEAKERS[speaker]}_{take}.wav" for digit, speaker, take in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"FSDD in {folder} is not whole: {len(missing)} of its {len(paths)} recordings are missing, the first is "
            f"{missing[0]}. {_ways()}"
        )
    digits, speaker, take = (np.array(column, np.int64) for column in zip(*names, strict=True))
    return SpokenDigits(
        "fsdd",
        f"FSDD, the Free Spoken Digit Dataset ({_WORKS}, CC BY-SA 4.0).",
        FSDD_SPEAKERS,
        tuple(map(_read, paths)),
        digits,
        speaker,
        take,
    )


def _read(path: Path) -> NDArray[np.float32]:
    """The samples of a wav file of one channel in 16 bits at `RATE`, in [-1, 1]."""
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{path} cannot be read as a wav file: {error}. {_ways()}") from error
    if form != (1, 2, RATE) or not content or len(content) % 2:
        raise DataError(
            f"{path}: a recording must have one channel of 16 bits at {RATE} samples a second, got {form[0]} of "
            f"{8 * form[1]} bits at {form[2]}, with {len(content)} bytes of samples. {_ways()}"
        )
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)


def _ways() -> str:
    return (
        f"It is the project {_WORKS} on GitHub (version 1.0.10, CC BY-SA 4.0): get it from there, and name the folder that holds "
        f"its folder recordings with --data-dir or in the environment variable LABKIT_DATA."
    )
