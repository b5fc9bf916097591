"""A student's folder: copies of the notebooks, which the student owns from then on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

from labkit.errors import LabkitError, OutputError
from labkit.files import make_folder, written_atomically

__all__ = ["make_workspace", "notebook_folder", "open_jupyter"]


def notebook_folder() -> Path:
    """Where the notebooks lie: inside the installed package, or at the top of a clone.

    Raises
    ------
    OutputError
        They are nowhere: the installation is not whole.
    """
    here = Path(__file__).parent
    for folder in (here / "notebooks", here.parent.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise OutputError("This installation of labkit has no notebooks. Install labkit again.")


def make_workspace(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Copy the notebooks into ``folder``; a notebook that is already there is never overwritten.

    Returns
    -------
    the paths that were made, and those that were there before

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    target = make_folder(folder)
    made, kept = [], []
    for source in sorted(notebook_folder().glob("*.ipynb")):
        path = target / source.name
        if path.exists():
            kept.append(path)
            continue
        with written_atomically(path) as part:
            shutil.copyfile(source, part)
        made.append(path)
    return made, kept


def open_jupyter(folder: str | Path) -> int:
    """Run JupyterLab in ``folder`` until the user ends it; its exit status.

    Raises
    ------
    LabkitError
        JupyterLab is not installed.
    """
    if util.find_spec("jupyterlab") is None:
        raise LabkitError('JupyterLab is not installed. Install it with `pip install "labkit[lab]"`, then try again.')
    return subprocess.call([sys.executable, "-m", "jupyterlab", "--notebook-dir", str(folder)])
