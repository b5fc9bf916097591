"""Training QuartzNet: seeded, to the byte, also after being killed; on tones that stand in for digits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit.data.spoken_tones import spoken_tones
from labkit.errors import DataError, InputError, ModelError
from labkit.models import speech_training
from labkit.models.speech_training import SpeechRecipe, main, score, split, test_strings, train_speech

TONES = spoken_tones(2, 6)
SHORT = SpeechRecipe("voice-1", steps=6, batch_size=2, test_strings=3)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress file every second step."""
    monkeypatch.setattr(speech_training, "_KEPT", 2)


def weights(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def test_the_same_bytes_again_and_after_being_killed(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    whole = train_speech(SHORT, TONES, tmp_path / "a", tell=lambda done, steps, loss: told.append((done, steps)))
    assert told == [(2, 6), (4, 6), (6, 6)]
    assert train_speech(SHORT, TONES, tmp_path / "b", stop_after=2) is None
    assert [path.suffixes for path in (tmp_path / "b").iterdir()] == [[".progress", ".safetensors"]]
    assert train_speech(SHORT, TONES, tmp_path / "b", stop_after=4) is None
    torch.manual_seed(99)  # no generator of the caller's takes part
    resumed = train_speech(SHORT, TONES, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert whole is not None
    assert resumed is not None
    different = {name for name in whole[1] if whole[1][name] != resumed[1][name]}
    assert different <= {"seconds"}
    other = train_speech(replace(SHORT, seed=1), TONES, tmp_path / "c")
    assert other is not None
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


def test_what_is_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_speech(SHORT, TONES, tmp_path)
    monkeypatch.setattr(speech_training, "_step", None)
    again = train_speech(SHORT, TONES, tmp_path)
    assert first is not None
    assert again is not None
    assert again[1] == first[1]
    for name, tensor in first[0].state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(again[0].state_dict()[name], tensor)


def test_files_of_another_training_are_refused(tmp_path: Path) -> None:
    train_speech(SHORT, TONES, tmp_path / "done", "net")
    with pytest.raises(
        ModelError, match=r"net\.json belongs to another training: recipe was .*Choose another folder, or delete it"
    ):
        train_speech(replace(SHORT, steps=7), TONES, tmp_path / "done", "net")
    with pytest.raises(ModelError, match="another training: data_sha256 was"):
        train_speech(SHORT, spoken_tones(2, 6, seed=1), tmp_path / "done", "net")
    train_speech(SHORT, TONES, tmp_path / "half", "net", stop_after=2)
    with pytest.raises(ModelError, match=r"net\.progress\.safetensors belongs to another training"):
        train_speech(replace(SHORT, seed=5), TONES, tmp_path / "half", "net")
    progress = tmp_path / "half" / "net.progress.safetensors"
    progress.write_bytes(progress.read_bytes()[:-50])
    with pytest.raises(ModelError, match=r"cannot be read: .*Delete it to start anew"):
        train_speech(SHORT, TONES, tmp_path / "half", "net")


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss first falls to where nothing is heard (about 2.9: any word is as likely); to get below, words must be heard."""
    monkeypatch.setattr(speech_training, "_KEPT", 10)
    recipe = SpeechRecipe("voice-1", steps=80, batch_size=8, test_strings=20, precision="float32")
    result = train_speech(recipe, TONES, tmp_path)
    assert result is not None
    losses = result[1]["mean_training_loss"]
    assert 2.7 < losses[1] < 3.2
    assert losses[-1] < 0.7 * losses[1]
    module, strings = result[0], test_strings(TONES, "voice-1", 20)
    with torch.inference_mode():
        rate = score(lambda x: module(torch.from_numpy(x)).argmax(1).numpy(), strings)
    assert rate == pytest.approx(result[1]["word_error_rate"], abs=5e-4)  # three digits are kept
    assert result[1]["words"] == sum(map(len, strings.digits))


def test_the_record_says_how_it_was_made(tmp_path: Path) -> None:
    result = train_speech(SHORT, TONES, tmp_path, "net")
    assert result is not None
    record = json.loads((tmp_path / "net.json").read_text("utf-8"))
    assert record == result[1]
    assert record["command"] == SHORT.command
    assert SpeechRecipe(**record["recipe"]) == SHORT
    assert record["data_sha256"] == TONES.sha256
    assert set(record["versions"]) == {"labkit", "torch", "numpy", "python"}


def test_the_test_part_is_never_trained_on() -> None:
    for held_out in (None, "voice-0", "voice-1"):
        train, test = split(TONES, held_out)
        assert not set(train.tolist()) & set(test.tolist())
        assert len(train) + len(test) == len(TONES.sounds)
        if held_out is None:
            assert set(TONES.take[test].tolist()) == {0, 1, 2, 3, 4}
        else:
            assert {TONES.speakers[s] for s in TONES.speaker[test]} == {held_out}
    with pytest.raises(InputError, match="no speaker 'nobody'"):
        split(TONES, "nobody")


def test_the_rate_rises_and_falls() -> None:
    rates = [speech_training._rate(SpeechRecipe(steps=100, learning_rate=0.01), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[20] == max(rates) == 0.01
    assert rates[99] < 1e-5
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"steps": 0}, "must be at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be in \(0, 1\)"),
        ({"weight_decay": 1.0}, "got 0.008 and 1.0"),
        ({"precision": "float16"}, "must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_recipes_out_of_range_are_refused(numbers: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SpeechRecipe(**numbers)  # type: ignore[arg-type]


def test_a_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_training, "_step", lambda *_: float("nan"))
    with pytest.raises(
        InputError, match="diverged in steps 0 to 2: the loss is nan. Lower the learning rate, which is 0.008"
    ):
        train_speech(SHORT, TONES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speech_training, "load_fsdd", lambda data_dir: TONES)
    words = SHORT.command.split()[3:]
    assert words[0] == "FOLDER"
    main([str(tmp_path), *words[1:]])
    assert "word error rate" in capsys.readouterr().out
    record = json.loads((tmp_path / "quartznet-fsdd-without-voice-1-seed-0.json").read_text("utf-8"))
    assert SpeechRecipe(**record["recipe"]) == SHORT
    monkeypatch.undo()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    with pytest.raises(DataError, match="in none of these folders"):
        main([str(tmp_path / "out"), "--data-dir", str(tmp_path)])
