"""The environment behind `make`: made once, kept while it is good, mended when it is not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house.repository import plain_environment
from house.source import ROOT

TOOL = ROOT / "tools" / "environment.py"

# A stand-in for labkit that pip can install in a second without a network: it is its own build backend.
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "stand-in"
version = "1"
dependencies = []

[project.scripts]
stand-in = "stand_in:main"

[project.optional-dependencies]
dev = []
lab = ["a-package-that-is-not-there"]
"""
BACKEND = """\
import os, zipfile

FILES = {
    "stand_in.pth": os.getcwd(),
    "stand_in-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: stand-in\\nVersion: 1\\nProvides-Extra: dev\\n"
    "Provides-Extra: lab\\nRequires-Dist: a-package-that-is-not-there ; extra == 'lab'\\n",
    "stand_in-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "stand_in-1.dist-info/entry_points.txt": "[console_scripts]\\nstand-in = stand_in:main\\n",
    "stand_in-1.dist-info/RECORD": "",
}

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "stand_in-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
"""

SOURCE = "def main(): print('stand-in 1')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    place = tmp_path / "project"
    place.mkdir()
    (place / "pyproject.toml").write_text(PYPROJECT)
    (place / "backend.py").write_text(BACKEND)
    (place / "stand_in.py").write_text(SOURCE)
    return place


def make(project: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--project", project, "--venv", project / ".venv", *more]
    return subprocess.run(
        command, cwd=project, env=plain_environment(PIP_NO_INDEX="1"), capture_output=True, text=True, check=False
    )


def did(done: subprocess.CompletedProcess[str]) -> str:
    """What a call of the tool did, in one word."""
    assert done.returncode == 0, done.stdout + done.stderr
    if "Making the environment" in done.stdout:
        return "made"
    return "installed" if "Installing" in done.stdout else "kept"


def test_environment_is_made_kept_and_mended(project: Path) -> None:
    stamp = project / ".venv" / "labkit-environment.json"
    stamp.parent.joinpath("bin").mkdir(parents=True)
    stamp.parent.joinpath("bin", "python").symlink_to("gone")  # half-made, or made by a Python that is no longer there
    assert did(make(project)) == "made"
    assert did(make(project)) == "kept"

    assert did(make(project, "--extras", "dev")) == "installed"
    assert did(make(project)) == "kept", "what holds more than is asked for is good"

    (project / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert did(make(project)) == "installed"
    assert did(make(project, "--extras", "dev")) == "kept", "an environment only grows"

    for found in project.glob(".venv/lib/python*/site-packages/stand_in-1.dist-info"):
        shutil.rmtree(found)
    assert did(make(project)) == "installed"

    failed = make(project, "--extras", "lab")
    assert failed.returncode == 1
    assert "is not complete" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not stamp.exists()
    assert did(make(project)) == "installed"


def test_environment_whose_command_does_not_start_is_mended(project: Path) -> None:
    script = project / ".venv" / "bin" / "stand-in"
    assert did(make(project)) == "made"
    sound = script.read_text()

    def said() -> str:
        return subprocess.run([script], capture_output=True, text=True, check=True).stdout

    script.unlink()
    assert did(make(project)) == "installed"
    assert said() == "stand-in 1\n"
    for broken in ("", sound.splitlines()[0], "#!/no/such/python\n", "#!/bin/sh\nexit 3\n"):
        script.write_text(broken)
        assert did(make(project)) == "installed", broken
        assert said() == "stand-in 1\n"
    script.chmod(0o644)
    assert did(make(project)) == "installed"

    (project / "stand_in.py").write_text("half an edit(")
    assert did(make(project)) == "kept", "no installation mends what is wrong in the source"


def test_a_folder_with_other_things_is_left_alone(project: Path) -> None:
    mine = project / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    refused = make(project, "--venv", str(mine))
    assert refused.returncode == 1
    assert "is left alone" in refused.stderr
    assert (mine / "letter.txt").read_text() == "dear"


def test_one_oldest_python_in_all_places() -> None:
    (oldest,) = re.findall(r'requires-python = ">=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert set(re.findall(r"Python (\d+\.\d+) or newer", makefile)) == {oldest}
    assert re.findall(r"sys\.version_info < \((\d+), (\d+)\)", makefile) == [tuple(oldest.split("."))]
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("no-such-python", "there is no no-such-python"),
        ("./old", "./old is 3.9.1"),
    ],
)
def test_wrong_python_is_one_clear_line(tmp_path: Path, python: str, words: str) -> None:
    old = tmp_path / "old"
    pretend = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (old)'; exec(sys.argv.pop(1))"
    old.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{pretend}" "$@"\n')
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    asked = subprocess.run(
        ["make", "environment", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.returncode != 0
    said = [line for line in asked.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert words in said[0]
    assert "PYTHON=python3.12" in said[0]
