"""`labkit init` and `labkit lab`, as a user calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.course import workspace

ROOT = Path(__file__).parents[3]


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
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
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
    assert 'pip install ".[lab]"' in said
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


@pytest.mark.skipif(sys.platform == "win32", reason="there is no root")
@pytest.mark.parametrize("given", [[], ["--allow-root"]])
def test_root_may_open_jupyter(
    given: list[str],
    opened: list[tuple[Path, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert call(monkeypatch, "lab", tmp_path, "--", "--no-browser", *given) == 5
    assert opened == [(tmp_path, ["--no-browser", "--allow-root"])]
    assert ("You are root" in capsys.readouterr().out) == (not given), "what was not asked for is said"


def test_make_lab_passes_options_on(opened: list[tuple[Path, list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    for options, expected in (([], []), (["--no-browser", "--port", "1"], ["--no-browser", "--port", "1"])):
        asked = ["make", "--dry-run", "lab", f"LAB_OPTIONS={' '.join(options)}"]
        # `make test VENV=...` hands its options down to every make that it starts: this one shall see none of them.
        alone = {
            name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "VENV")
        }
        shown = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, env=alone).stdout
        (words,) = [line.split()[1:] for line in shown.splitlines() if line.startswith(".venv/bin/labkit ")]
        opened.clear()
        monkeypatch.setattr("labkit.cli.lab._fill", lambda folder: None)
        assert call(monkeypatch, *words) == 5
        assert opened == [(Path("labkit-lab"), expected)]


def test_help_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "lab", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'pip install ".[lab]"' in said, "square brackets are markup to rich unless they are escaped"
