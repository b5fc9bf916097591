"""``labkit check`` and ``labkit course``: what they print, their exit status, and errors without a traceback."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import labkit
from labkit.course.build import answered_notebook
from labkit.course.entries import make_entry
from labkit.course.loading import find_course

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A course of m01 alone, away from the clone."""
    for folder in ("solutions", "exercises"):
        (tmp_path / folder).mkdir()
        for path in (ROOT / folder).glob("m01_*.py"):
            shutil.copy(path, tmp_path / folder)
    return tmp_path


def test_check_a_blank_notebook(labkit_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    code, out, _ = labkit_command("check", "m01.q1")
    assert code == 1
    assert "m01.q1" in out
    assert "not attempted yet" in out


def test_check_an_answered_notebook(labkit_command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.ipynb"
    path.write_text(answered_notebook(find_course(ROOT), "m01_weights"))
    code, out, _ = labkit_command("check", "m01", path)
    assert code == 0
    assert "public cases pass" in out
    assert "✗" not in out
    code, out, _ = labkit_command("check", "m01.e1", path)
    assert code == 0
    assert "a person will read" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("m77",), "no module 'm77'"),
        (("m01.q99", "a.py"), "no task 'm01.q99'"),
        (("m01", "missing.ipynb"), "Cannot read missing.ipynb"),
        (("m01",), "Cannot read m01_weights.ipynb"),
    ],
)
def test_check_tells_what_is_wrong(
    labkit_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    code, _, err = labkit_command("check", *words)
    assert code == 2
    assert says in " ".join(err.split())
    assert "Traceback" not in err


def test_build_and_build_again(labkit_command: Command, copied: Path) -> None:
    code, out, _ = labkit_command("course", "build", "--course", copied, "--check")
    assert code == 1
    assert "m01_weights.ipynb is not up to date" in out
    assert not (copied / "notebooks").exists()
    code, out, _ = labkit_command("course", "build", "--course", copied)
    assert code == 0
    assert "wrote notebooks/m01_weights.ipynb" in out.replace("\\", "/")
    assert labkit_command("course", "build", "m01", "--course", copied, "--check")[0] == 0


def test_verify_prints_a_table_and_fails_with_reasons(labkit_command: Command, copied: Path) -> None:
    labkit_command("course", "build", "--course", copied)
    code, out, _ = labkit_command("course", "verify", "--course", copied, "--no-mutants", "--no-notebooks")
    assert code == 0
    assert "8 of 8 proofs hold" in out
    assert "left out" in out
    assert "Everything holds." in out
    exercises = copied / "exercises" / "m01_weights.py"
    text = exercises.read_text()
    other = copied / "other"
    for name in ("solutions", "exercises", "notebooks", "labkit-cases"):
        shutil.copytree(copied / name, other / name)
    (other / "exercises" / "m01_weights.py").write_text(text.replace("points=", "points=1 + ", 1))
    code, out, _ = labkit_command("course", "verify", "m01", "--course", other, "--no-mutants", "--no-notebooks")
    assert code == 1
    assert "m01, built: m01_weights.ipynb is not what its source gives" in " ".join(out.split())


def test_release(labkit_command: Command, copied: Path, tmp_path: Path) -> None:
    code, out, _ = labkit_command("course", "release", "--course", copied, "-o", tmp_path / "course.zip")
    assert code == 0
    assert "3 files" in out
    assert "m01_weights.ipynb" in zipfile.ZipFile(tmp_path / "course.zip").namelist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("build", "m99"), "no module 'm99'; there are m01"),
        (("verify", "--data", "imagenet", "--no-mutants"), "mnist5k or cifar10"),
        (("release", "-o", "missing/folder/course.zip"), "missing"),
    ],
)
def test_course_tells_what_is_wrong(labkit_command: Command, copied: Path, words: tuple[str, ...], says: str) -> None:
    code, _, err = labkit_command("course", words[0], *words[1:], "--course", copied)
    assert code == 2
    assert says in " ".join(err.split())
    assert "Traceback" not in err


def test_no_course_here(labkit_command: Command, tmp_path: Path) -> None:
    code, _, err = labkit_command("course", "build", "--course", tmp_path / "nowhere")
    assert code == 2
    assert "name the clone with --course" in " ".join(err.split())


def test_the_leaderboard_runs_every_entry_again(labkit_command: Command, tmp_path: Path) -> None:
    data = labkit.data.load("mnist5k")
    module = labkit.models.load("lenet", data="mnist5k")
    net = labkit.quantize(module, data.calibration(32), weights=2, activations=4)
    entry = make_entry(net, "Team A", data, tmp_path / "entries" / "a")
    liar = tmp_path / "entries" / "b"
    shutil.copytree(tmp_path / "entries" / "a", liar)
    claim = json.loads((liar / "entry.json").read_text())
    claim["right"] += 1
    (liar / "entry.json").write_text(json.dumps(claim))
    code, out, _ = labkit_command(
        "course", "leaderboard", tmp_path / "entries", "--no-timed", "-o", tmp_path / "board.json"
    )
    assert code == 0
    assert "Team A" in out
    board = json.loads((tmp_path / "board.json").read_text())
    assert [place["entry"]["right"] for place in board["places"]] == [entry.right]
    assert [refusal["folder"] for refusal in board["refused"]] == ["b"]
    code, _, err = labkit_command("course", "leaderboard", tmp_path / "nowhere")
    assert code == 2
    assert "There is no folder" in " ".join(err.split())
