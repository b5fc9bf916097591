"""Finding, reading and refusing FSDD, on a folder of its form with few and short recordings; and the stand-in made in code."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from labkit.data import spoken_digits
from labkit.data.spoken_digits import FSDD_SPEAKERS, SpokenDigits, find_fsdd, load_fsdd
from labkit.data.spoken_tones import spoken_tones
from labkit.errors import DataError, InputError

TAKES = 2


@pytest.fixture(autouse=True)
def empty_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no LABKIT_DATA, and two takes of each digit instead of fifty."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    monkeypatch.setattr(spoken_digits, "FSDD_TAKES", TAKES)


def write_wav(path: Path, samples: list[int], channels: int = 1, width: int = 2, rate: int = 8000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}{'h' if width == 2 else 'B'}", *samples))


def samples_of(digit: int, speaker: int, take: int) -> list[int]:
    return [1000 * speaker + 100 * digit + take, -32768, 32767, *range(digit)]


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for speaker, name in enumerate(FSDD_SPEAKERS):
        for digit in range(10):
            for take in range(TAKES):
                write_wav(folder / f"{digit}_{name}_{take}.wav", samples_of(digit, speaker, take))
    return folder


def test_recordings_are_read_as_they_lie(tmp_path: Path) -> None:
    make(tmp_path / "recordings")
    data = load_fsdd(tmp_path)
    assert (len(data.sounds), data.name, data.speakers) == (120, "fsdd", FSDD_SPEAKERS)
    for sound, digit, speaker, take in zip(data.sounds, data.digits, data.speaker, data.take, strict=True):
        assert sound.dtype == np.float32
        assert (sound * 32768).tolist() == samples_of(int(digit), int(speaker), int(take))
    labels = {*zip(data.digits.tolist(), data.speaker.tolist(), data.take.tolist(), strict=True)}
    assert len(labels) == 120


@pytest.mark.parametrize(
    "inside",
    [
        "recordings",
        "fsdd/recordings",
        "free-spoken-digit-dataset/recordings",
        "free-spoken-digit-dataset-1.0.10/recordings",
    ],
)
def test_it_is_found_where_it_is_put(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "data" / inside)
    assert find_fsdd() is None
    assert find_fsdd(tmp_path / "data") == ("--data-dir", folder)
    assert find_fsdd(folder) == ("--data-dir", folder)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))
    assert find_fsdd() == ("LABKIT_DATA", folder)
    assert find_fsdd(tmp_path) == ("LABKIT_DATA", folder)
    (tmp_path / "cache").mkdir()
    (tmp_path / "data").rename(tmp_path / "cache" / "data")
    found = find_fsdd()
    assert found is not None
    assert found[0] == "the cache"


def test_where_it_is_not_the_ways_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"in none of these folders: .*\(--data-dir\).*Jakobovski/free-spoken-digit-dataset on GitHub"
    ):
        load_fsdd(tmp_path)


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "recordings")
    (folder / "3_lucas_1.wav").unlink()
    (folder / "4_theo_0.wav").unlink()
    with pytest.raises(DataError, match=r"not whole: 2 of its 120 recordings are missing, the first is 3_lucas_1\.wav"):
        load_fsdd(tmp_path)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"channels": 2}, "got 2 of 16 bits at 8000"),
        ({"width": 1}, "got 1 of 8 bits at 8000"),
        ({"rate": 16000}, "got 1 of 16 bits at 16000"),
    ],
)
def test_another_form_is_refused(form: dict[str, int], said: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "recordings")
    write_wav(folder / "0_george_0.wav", [1, 2, 3, 4], **form)
    with pytest.raises(DataError, match=said):
        load_fsdd(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x04\x00\x00\x00WAVE"])
def test_what_is_no_wav_file_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = make(tmp_path / "recordings")
    (folder / "9_yweweler_1.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"9_yweweler_1\.wav cannot be read as a wav file"):
        load_fsdd(tmp_path)


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "recordings")
    write_wav(folder / "0_george_0.wav", [])
    with pytest.raises(DataError, match="got 1 of 16 bits at 8000, with 0 bytes"):
        load_fsdd(tmp_path)


# ---- the stand-in


def test_the_stand_in_depends_on_its_seed_alone() -> None:
    one, same, other = spoken_tones(2, 2), spoken_tones(2, 2), spoken_tones(2, 2, seed=1)
    assert one.sha256 == same.sha256 != other.sha256
    assert (len(one.sounds), one.speakers) == (40, ("voice-0", "voice-1"))
    for index, sound in enumerate(spoken_tones(3, 2).sounds[:40]):  # more voices change none of the others
        np.testing.assert_array_equal(sound, one.sounds[index])
    assert len({sound.tobytes() for sound in one.sounds}) == 40
    for sound in one.sounds:
        assert 0.2 < len(sound) / 8000 < 0.6
        assert 0.15 < np.abs(sound).max() <= 1
    with pytest.raises(InputError, match="got 0 and 2"):
        spoken_tones(0, 2)


def test_its_words_can_be_told_apart() -> None:
    """By the nearest mean of the other takes' spectra, first and second half: chance would be right once in ten."""
    from labkit.data.log_mel import LogMel

    front, data, right = LogMel(), spoken_tones(1, 4), 0
    halves = [np.array_split(np.log(front.power(sound)[:, 4:-4]), 2, axis=1) for sound in data.sounds]
    spectra = np.stack([np.concatenate([half.mean(1) for half in pair]) for pair in halves])
    for index in range(len(spectra)):
        others = np.arange(len(spectra)) != index
        means = np.stack([spectra[others & (data.digits == digit)].mean(0) for digit in range(10)])
        right += int(np.square(means - spectra[index]).sum(1).argmin() == data.digits[index])
    assert right / len(spectra) > 0.8


# ---- what both are


def test_speakers_are_told_apart() -> None:
    data = spoken_tones(3, 2)
    assert set(data.speaker[data.by("voice-1")].tolist()) == {1}
    assert set(data.speaker[data.not_by("voice-1")].tolist()) == {0, 2}
    assert len(data.by("voice-1")) + len(data.not_by("voice-1")) == len(data.sounds)
    with pytest.raises(InputError, match="no speaker 'nobody'. Choose one of: voice-0, voice-1, voice-2"):
        data.by("nobody")


def test_nothing_of_it_can_be_changed_and_all_of_it_is_hashed() -> None:
    data = spoken_tones(1, 1)
    for array in (*data.sounds, data.digits, data.speaker, data.take):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    sounds = (data.sounds[0] * np.float32(0.5), *data.sounds[1:])
    other = SpokenDigits("x", "", data.speakers, sounds, data.digits, data.speaker, data.take)
    assert other.sha256 != data.sha256
    swapped = SpokenDigits("x", "", data.speakers, data.sounds, data.digits[::-1].copy(), data.speaker, data.take)
    assert swapped.sha256 != data.sha256


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"digits": np.array([0, 10])}, r"digits must be in 0\.\.9, got 0\.\.10"),
        ({"speaker": np.array([0, 1])}, r"speaker must be in 0\.\.0, got 0\.\.1"),
        ({"take": np.array([0, -1])}, r"take must be at least 0, got -1\.\.0"),
        ({"take": np.array([0])}, r"take must be int64 \[2\], got int64 \[1\]"),
        ({"digits": np.array([0.0, 1.0])}, r"digits must be int64 \[2\], got float64"),
        ({"sounds": (np.ones(3, np.float32), np.ones(3))}, r"a row of float32, got float64 \[3\]"),
        ({"sounds": (np.ones(3, np.float32), np.ones(0, np.float32))}, r"got float32 \[0\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: dict[str, object], said: str) -> None:
    whole = {
        "sounds": (np.ones(3, np.float32),) * 2,
        "digits": np.array([0, 1]),
        "speaker": np.array([0, 0]),
        "take": np.array([0, 1]),
    }
    with pytest.raises(InputError, match=said):
        SpokenDigits("x", "", ("one",), **{**whole, **labels})  # type: ignore[arg-type]
