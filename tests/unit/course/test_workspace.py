"""A student's folder: notebooks are copied once and then belong to the student."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from labkit.course import workspace
from labkit.errors import LabkitError, OutputError


def test_a_new_folder_gets_every_notebook(tmp_path: Path) -> None:
    made, kept = workspace.make_workspace(tmp_path / "deep" / "folder")
    sources = sorted(workspace.notebook_folder().glob("*.ipynb"))
    assert [path.name for path in made] == [path.name for path in sources]
    assert kept == []
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in sources]
    assert {path.suffix for path in (tmp_path / "deep" / "folder").iterdir()} == {".ipynb"}, (
        "notebooks and nothing else"
    )


def test_a_notebook_that_is_there_is_left_alone(tmp_path: Path) -> None:
    first = tmp_path / "first_steps.ipynb"
    first.write_text("my work")
    other = tmp_path / "notes.txt"
    other.write_text("my notes")
    _, kept = workspace.make_workspace(tmp_path)
    assert kept == [first]
    assert first.read_text() == "my work"
    assert other.read_text() == "my notes"


def test_a_missing_notebook_comes_back(tmp_path: Path) -> None:
    (made, *_), _ = workspace.make_workspace(tmp_path)
    made.unlink()
    again, _ = workspace.make_workspace(tmp_path)
    assert again == [made]


def test_no_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder"):
        workspace.make_workspace(tmp_path / "file" / "folder")


def test_the_notebooks_own_folder_is_no_workspace() -> None:
    with pytest.raises(OutputError, match="Choose another folder"):
        workspace.make_workspace(workspace.notebook_folder())


def test_an_installation_without_notebooks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "__file__", str(tmp_path / "labkit" / "course" / "workspace.py"))
    with pytest.raises(LabkitError, match="Install labkit again"):
        workspace.make_workspace(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_notebooks_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "labkit" / "course" / "notebooks"
    beside = tmp_path / "notebooks"  # may be anybody's, in a folder of installed packages
    for folder in (inside, beside):
        folder.mkdir(parents=True)
        (folder / "a.ipynb").write_text("{}")
    monkeypatch.setattr(workspace, "__file__", str(tmp_path / "labkit" / "course" / "workspace.py"))
    assert workspace.notebook_folder() == inside


def test_without_jupyter_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "jupyterlab" else find(name, *rest))
    with pytest.raises(LabkitError, match=r"JupyterLab is not installed") as caught:
        workspace.open_jupyter(tmp_path)
    assert '`pip install ".[lab]"` in the folder of a clone' in str(caught.value)
    assert "pip install jupyterlab ipywidgets" in str(caught.value)
    assert "labkit[lab]" not in str(caught.value), "an index may hold something else by that name"


# A stand-in for JupyterLab: says how it was started, takes a first Ctrl-C as a question and SIGTERM as an order to shut
# down in peace, as JupyterLab does.
_STAND_IN = """\
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (print("interrupted", flush=True), time.sleep(0.6), sys.exit(7)))
signal.signal(signal.SIGTERM, lambda *_: (print("ended", flush=True), time.sleep(0.6), sys.exit(9)))
print(*sys.argv[1:], flush=True)
time.sleep(30 if "--stay" in sys.argv else 0)
sys.exit(3)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "packages" / "jupyterlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(_STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def test_jupyter_gets_the_folder_and_the_options(
    stand_in: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = workspace.open_jupyter(tmp_path / "my folder", ["--port", "1"])
    assert status == 3
    assert capfd.readouterr().out == f"--notebook-dir {tmp_path / 'my folder'} --port 1\n"


def start(folder: Path) -> subprocess.Popen[str]:
    """A process of its own that has opened the stand-in, which stays."""
    code = "import sys; from labkit.course.workspace import open_jupyter; sys.exit(open_jupyter('.', ['--stay']))"
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    assert "--stay" in running.stdout.readline()
    return running


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_a_first_interrupt_is_left_to_jupyter(stand_in: Path, tmp_path: Path) -> None:
    running = start(tmp_path)
    os.killpg(running.pid, signal.SIGINT)  # to both, as a terminal does
    assert running.wait(timeout=20) == 7, "JupyterLab was killed while it asked its question"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_jupyter_is_ended_with_us(stand_in: Path, tmp_path: Path) -> None:
    running = start(tmp_path)
    running.terminate()  # to this process alone, as `kill` and a container do
    assert running.wait(timeout=20) == 9, "labkit was ended, and JupyterLab left behind"
    assert running.stdout is not None
    assert running.stdout.read() == "ended\n"


def test_handler_is_put_back(stand_in: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    workspace.open_jupyter(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
