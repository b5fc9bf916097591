"""Run a study and write its folder: result.json, one SVG a figure, and the page README.md."""

from __future__ import annotations

import importlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from labkit import __version__
from labkit.errors import InputError
from labkit.files import folder_for, write_atomically
from labkit.studies.figures import svg
from labkit.studies.page import page
from labkit.studies.study import Settings, Study, StudyResult, Tell

__all__ = ["read_study", "run_study", "write_study"]


def run_study(study: Study, settings: Settings, command: str, tell: Tell | None = None) -> dict[str, Any]:
    """Run ``study`` and return what its result.json holds.

    Parameters
    ----------
    study, settings
        What to run, and how much of it.
    command
        Kept in the result, so that the reader can repeat it.
    tell
        Called with (step, done, total).

    Raises
    ------
    LabkitError
        Data or weights cannot be had.
    """
    start = time.perf_counter()
    run = importlib.import_module(study.module).run
    result: StudyResult = run(settings, tell or (lambda step, done, total: None))
    import torch

    return {
        **result.to_json(),
        "study": study.name,
        "command": command,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": {**asdict(settings), "data_dir": None},
        "versions": {
            "labkit": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": str(torch.__version__),
        },
    }


def write_study(study: Study, content: dict[str, Any], folder: Path) -> None:
    """Write result.json, the figures and the page of ``study`` into ``folder``, which is made.

    ``content`` is what `run_study` returned.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    result = StudyResult.from_json({key: content[key] for key in ("schema", "tables", "findings", "figures", "notes")})
    with folder_for(folder) as path:
        for figure in result.figures:
            write_atomically(path / f"{figure.name}.svg", svg(figure))
        write_atomically(path / "README.md", page(study, result, content))
        write_atomically(path / "result.json", json.dumps(content, indent=1) + "\n")


def read_study(folder: Path) -> dict[str, Any]:
    """What result.json in ``folder`` holds.

    Raises
    ------
    InputError
        It is missing, or no result of a study.
    """
    try:
        content: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {folder / 'result.json'}: {error}. Run the study first.") from error
    return content
