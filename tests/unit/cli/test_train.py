"""`labkit train`, as a user calls it, on a few digits."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import data
from labkit.cli import main

FILES = ["lenet-mnist5k.json", "lenet-mnist5k.safetensors"]


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images to train with and 100 to test on, so that an epoch takes no time."""
    whole = data.load("mnist5k")
    few = replace(
        whole,
        train_images=whole.train_images[:64],
        train_labels=whole.train_labels[:64],
        test_images=whole.test_images[:100],
        test_labels=whole.test_labels[:100],
    )
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: few)


def train(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: object) -> int:
    """Run `labkit train` for one epoch; its exit status."""
    command = ["labkit", "train", "lenet", "--data", "mnist5k", "--epochs", 1, "--out", folder, *words]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_finished_network_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"

    def state() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}

    assert train(monkeypatch, folder) == 0
    first, said = state(), capsys.readouterr().out
    assert sorted(first) == FILES
    accuracy = f"accuracy {json.loads(first[FILES[0]][0])['test_accuracy']:.2f} %"
    assert f"Test {accuracy}" in said

    assert train(monkeypatch, folder) == 0
    said = capsys.readouterr().out
    assert said.startswith("Already there")
    assert accuracy in said
    assert "--force" in said
    assert state() == first

    assert train(monkeypatch, folder, "--seed", 3) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Error: ")
    assert "seed was 0, is 3. Choose another folder (--out), or replace what is there (--force)." in said
    assert state() == first

    assert train(monkeypatch, folder, "--seed", 3, "--force") == 0
    assert json.loads((folder / FILES[0]).read_text())["recipe"]["seed"] == 3
    second = state()
    assert train(monkeypatch, folder, "--seed", 3, "--force") == 0
    assert state() != second, "asked for in so many words, it is trained again"


def test_interrupted_says_so_and_leaves_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str, data_dir: Path | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupt)
    assert train(monkeypatch, tmp_path / "deep" / "folder") == 130
    assert capsys.readouterr().err == "Stopped.\n"
    assert list(tmp_path.iterdir()) == []
