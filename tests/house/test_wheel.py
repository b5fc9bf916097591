"""What a user installs is the wheel: it holds all it needs and nothing else, and works away from this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from house.repository import plain_environment, project_files
from house.source import LIBRARY, ROOT

# Put into a copy of the project before it is built, so that "is not in the wheel" can fail.
PLANTED = {
    "solutions/m00_start.py": "answer = 42\n",
    "exercises/m00_start.py": "judge = 42\n",
    "notebooks/m00_start.py": "answer = 42\n",
    "notebooks/m00_start.ipynb": "{}\n",
    "labkit/__pycache__/stale.cpython-311.pyc": "",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `python -m build` makes, which goes by way of the source archive and so proves that one too."""
    if not project_files():
        pytest.skip("not a git checkout, so the project's files cannot be told from others")
    copy = tmp_path_factory.mktemp("project")
    for path in project_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name, text in PLANTED.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    out = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy])
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(ROOT).as_posix() for path in project_files() if path.is_relative_to(LIBRARY)}
    notebooks = {
        f"labkit/course/{path.relative_to(ROOT).as_posix()}"
        for path in [*project_files(), ROOT / "notebooks" / "m00_start.ipynb"]
        if path.is_relative_to(ROOT / "notebooks") and path.suffix == ".ipynb"
    }
    assert held == package | notebooks
    assert not [name for name in held if "solutions" in PurePosixPath(name).parts]


def test_wheel_carries_the_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    venv.create(place)
    python = place / "bin" / "python"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel])
    _lend_this_environment(python)
    origin = "import importlib.util as u; print(u.find_spec('labkit.errors').origin)"
    assert Path(_run([python, "-c", origin], elsewhere).strip()).is_relative_to(place)
    assert "demo" in _run([place / "bin" / "labkit", "--help"], elsewhere)
    use = (
        "import labkit\n"
        "data = labkit.data.load('mnist5k')\n"
        "module = labkit.models.load('lenet', data='mnist5k')\n"
        "print(labkit.__version__, len(data.test_images), type(module).__name__)\n"
    )
    version, images, _ = _run([python, "-c", use], elsewhere).split()
    assert wheel.name.startswith(f"labkit-{version}-")
    assert images == "1000"


def _lend_this_environment(python: Path) -> None:
    """Let ``python`` find the packages of the environment that runs this, after its own.

    The folder is named in a .pth file, and .pth files inside a folder so named are not read: the editable labkit of
    this environment, which is one such file, stays unseen.
    """
    home = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (home / "lent.pth").write_text("".join(f"{folder}\n" for folder in folders))


def _run(command: list[str | Path], cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, env=plain_environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout
