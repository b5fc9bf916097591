"""`labkit init` and `labkit lab`, as a user calls them."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.course import workspace


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line with ``words``; its exit status."""
    monkeypatch.setattr(sys, "argv", ["labkit", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[str]]]:
    """What JupyterLab would have been started with, in a list; it ends with status 5."""
    calls: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(workspace, "need_jupyter", lambda: None)
    monkeypatch.setattr(workspace, "open_jupyter", lambda folder, options: calls.append((folder, options)) or 5)
    return calls


def test_init_makes_then_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new folder"
    assert call(monkeypatch, "init", folder) == 0
    said = capsys.readouterr().out
    assert f"made {folder / 'first_steps.ipynb'}" in said
    assert f"labkit lab '{folder}'" in said, "the next command, fit to be copied"
    (folder / "first_steps.ipynb").write_text("my work")
    assert call(monkeypatch, "init", folder) == 0
    assert f"kept {folder / 'first_steps.ipynb'}" in capsys.readouterr().out
    assert (folder / "first_steps.ipynb").read_text() == "my work"


@pytest.mark.parametrize("command", ["init", "lab"])
def test_unwritable_folder(
    command: str,
    opened: list[tuple[Path, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    assert call(monkeypatch, command, tmp_path / "file" / "folder") == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: Cannot write to the folder")
    assert "Choose another folder" in said
    assert said.strip().count("\n") == 0, "one paragraph"
    assert opened == []


def test_lab_without_jupyter_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "jupyterlab" else find(name, *rest))
    assert call(monkeypatch, "lab", tmp_path / "folder") == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: JupyterLab is not installed")
    assert 'pip install "labkit[lab]"' in said
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("words", "folder", "options"),
    [
        ([], "labkit-lab", []),
        (["mine"], "mine", []),
        (["mine", "--", "--no-browser", "--port", "1"], "mine", ["--no-browser", "--port", "1"]),
        (["--", "--no-browser", "--port", "1"], "labkit-lab", ["--no-browser", "--port", "1"]),
    ],
)
def test_lab_opens_the_folder(
    words: list[str],
    folder: str,
    options: list[str],
    opened: list[tuple[Path, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "lab", *words) == 5, "the exit status is JupyterLab's"
    assert opened == [(Path(folder), options)]
    assert (tmp_path / folder / "first_steps.ipynb").exists()


def test_help_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "lab", "--help") == 0
    assert "labkit[lab]" in capsys.readouterr().out, "square brackets are markup to rich unless they are escaped"
