"""Runs a module's notebook from top to bottom with its answers filled in, as a student who knows everything would."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit.course.build import answered_notebook, cases_folder
from labkit.errors import InputError, LabkitError

__all__ = ["Execution", "executed"]

_CELL_SECONDS = 150
"""A cell takes 40 s at most: the last section, on a busy machine."""


@dataclass(frozen=True)
class Execution:
    """One run of an answered notebook.

    ``seconds`` are of the wall clock, ``processor`` of the processor, for the kernel alone where nothing else ran beside it.
    ``error`` is where and why it stopped, '' where it did not; ``warned`` what came on stderr; ``checks`` the headlines of all
    checks; ``figures`` the number of pictures; ``notebook`` the executed notebook as text.
    """

    stem: str
    seconds: float
    processor: float
    error: str
    warned: str
    checks: tuple[str, ...]
    figures: int
    notebook: str


class _Awake:
    """Looks at the client's sockets once a second while a notebook runs.

    The sockets tell the event loop of a new message once. Where that was missed, the client would wait until its time is over,
    although the kernel answered long ago.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.is_over = False
        client.on_notebook_start = self._begin

    def _begin(self, notebook: Any) -> None:
        self._look(asyncio.get_running_loop())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.is_over or self.client.kc is None:
            return
        for channel in (self.client.kc.shell_channel, self.client.kc.iopub_channel):
            with suppress(AttributeError):  # another version of pyzmq, which may not need it
                channel.socket._handle_events()
        loop.call_later(1.0, self._look, loop)


def _of_children() -> float:
    """Processor seconds of all processes that this one has started and seen the end of."""
    times = os.times()
    return times.children_user + times.children_system


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
    environment["OMP_NUM_THREADS"] = "1"  # as on a cheap laptop, and so that processor time means something
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
        awake = _Awake(client)
        begun, spent = time.perf_counter(), _of_children()
        stopped = ""
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            stopped = str(error).strip()
        finally:
            awake.is_over = True
        seconds, processor = time.perf_counter() - begun, _of_children() - spent
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    warned = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
    texts = [o.data.get("text/plain", "") for o in outputs if o.output_type == "execute_result"]
    checks = tuple(text.split("\n")[0] for text in texts if text[:1] in "✓✗○●" and text)
    figures = sum("image/png" in o.get("data", {}) for o in outputs)
    text = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return Execution(stem, seconds, processor, stopped, warned, checks, figures, text)
