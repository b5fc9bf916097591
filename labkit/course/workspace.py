"""A student's folder: copies of the notebooks, which the student owns from then on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
            'JupyterLab is not installed beside labkit. Install it (`pip install ".[lab]"` in the folder of a clone, '
            "`pip install jupyterlab ipywidgets` anywhere else) and try again, or make a folder of notebooks with "
            "`labkit init` and open it in the notebook editor that you have."
        )


def open_jupyter(folder: str | Path, options: Sequence[str] = ()) -> int:
    """Run JupyterLab in ``folder`` until the user ends it; its exit status.

    ``options`` go to JupyterLab as they are. Where this process is asked to end (SIGTERM), JupyterLab is, too.

    Raises
    ------
    LabkitError
        JupyterLab is not installed beside labkit.
    """
    need_jupyter()
    place = str(Path(folder).resolve())
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--notebook-dir", place, *options])
    with _passing_on_sigterm(server):
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:
                pass  # JupyterLab got the same signal and asks whether to shut down


@contextmanager
def _passing_on_sigterm(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """A terminal sends its signals to both; SIGTERM comes to this process alone and would leave ``server`` behind."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield  # there is no such signal, or no handler can be set
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: server.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
