"""A student's folder: copies of the notebooks, which the student owns from then on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path

from labkit.errors import LabkitError, OutputError
from labkit.files import make_folder, written_atomically

__all__ = ["make_workspace", "need_jupyter", "notebook_folder", "open_jupyter"]


def notebook_folder() -> Path:
    """Where the notebooks lie: inside the installed package, or at the top of a clone.

    Raises
    ------
    LabkitError
        They are nowhere: the installation is not whole.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "course" / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise LabkitError("This installation of labkit holds no notebooks. Install labkit again.")


def make_workspace(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Copy the notebooks into ``folder``; a notebook that is already there is never overwritten.

    Returns
    -------
    the paths that were made, and those that were there before

    Raises
    ------
    LabkitError
        There are no notebooks to copy.
    OutputError
        The folder cannot be made or written to.
    """
    sources = sorted(notebook_folder().glob("*.ipynb"))
    target = make_folder(folder)
    if target.resolve() == notebook_folder().resolve():
        raise OutputError(
            f"{target} is where labkit keeps its own notebooks, and running one would change it. "
            f"Choose another folder for your copies."
        )
    made, kept = [], []
    for source in sources:
        path = target / source.name
        if path.exists():
            kept.append(path)
            continue
        with written_atomically(path) as part:
            shutil.copyfile(source, part)
        made.append(path)
    return made, kept


def need_jupyter() -> None:
    """Make sure that JupyterLab can be started.

    Raises
    ------
    LabkitError
        JupyterLab is not installed beside labkit.
    """
    if util.find_spec("jupyterlab") is None:
        raise LabkitError(
            'JupyterLab is not installed beside labkit. Install it with `pip install "labkit[lab]"` and try again, or '
            "make a folder of notebooks with `labkit init` and open it in the notebook editor that you have."
        )


def open_jupyter(folder: str | Path, options: Sequence[str] = ()) -> int:
    """Run JupyterLab in ``folder`` until the user ends it; its exit status.

    ``options`` go to JupyterLab as they are.

    Raises
    ------
    LabkitError
        JupyterLab is not installed beside labkit.
    """
    need_jupyter()
    place = str(Path(folder).resolve())
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--notebook-dir", place, *options])
    while True:
        try:
            return server.wait()
        except KeyboardInterrupt:
            pass  # JupyterLab got the same signal and asks whether to shut down
