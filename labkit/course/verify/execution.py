"""Runs a module's notebook from top to bottom with its answers filled in, as a student who knows everything would."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.course.build import answered_notebook, cases_folder
from labkit.errors import InputError, LabkitError

__all__ = ["Execution", "executed"]

_CELL_SECONDS = 150
"""A cell takes 40 s at most (the last section, on a busy machine). A kernel's answer now and then goes unnoticed by the asynchronous
client until this time is over, and is then found; so it must not be long."""


@dataclass(frozen=True)
class Execution:
    """One run of an answered notebook.

    ``error`` is where and why it stopped, '' where it did not; ``warned`` what came on stderr; ``checks`` the headlines of all
    checks; ``figures`` the number of pictures; ``notebook`` the executed notebook as text.
    """

    stem: str
    seconds: float
    error: str
    warned: str
    checks: tuple[str, ...]
    figures: int
    notebook: str


def executed(course: Path, stem: str, *, data: str = "mnist5k", showcase_seconds: float = 3.0) -> Execution:
    """Run the notebook ``stem`` of ``course`` with answers.

    Parameters
    ----------
    course : a folder with ``solutions/`` and ``exercises/``
    stem : the name of the module's files, such as ``m02_activations``
    data : ``mnist5k``, or ``cifar10`` where it is found (as by ``--data auto``)
    showcase_seconds : the time of the last section

    Raises
    ------
    InputError
        CIFAR-10 is asked for and not there.
    LabkitError
        nbclient and nbformat are not installed.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    except ImportError as error:
        raise LabkitError(
            'Notebooks are run with nbclient and nbformat, which are not installed. Install them with: pip install ".[lab]"'
        ) from error
    environment = dict(os.environ) | {"LABKIT_COURSE_SECONDS": f"{showcase_seconds:g}"}
    environment.pop("MPLBACKEND", None)
    notebook = nbformat.reads(answered_notebook(course, stem), as_version=4)  # type: ignore[no-untyped-call]
    with TemporaryDirectory() as place:
        if cases_folder(course).is_dir():  # this course's own, whatever labkit brings
            shutil.copytree(cases_folder(course), Path(place) / "labkit-cases")
        if data == "mnist5k":
            empty = Path(place) / "no-data"
            empty.mkdir()
            environment |= {"LABKIT_DATA": str(empty)}
        elif data == "cifar10":
            import labkit.data

            labkit.data.load("cifar10", download=False)
        else:
            raise InputError(f"A course runs on mnist5k or cifar10, got {data!r}.")
        client = NotebookClient(
            notebook, timeout=_CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": place}}
        )
        begun = time.perf_counter()
        stopped = ""
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            stopped = str(error).strip()
        seconds = time.perf_counter() - begun
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    warned = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
    texts = [o.data.get("text/plain", "") for o in outputs if o.output_type == "execute_result"]
    checks = tuple(text.split("\n")[0] for text in texts if text[:1] in "✓✗○●" and text)
    figures = sum("image/png" in o.get("data", {}) for o in outputs)
    text = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return Execution(stem, seconds, stopped, warned, checks, figures, text)
