"""``labkit init`` and ``labkit lab``: a folder of notebooks, and JupyterLab in it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init", "lab"]

_DEFAULT = Path("labkit-lab")


def init(folder: Annotated[Path, typer.Argument(help="The folder to make.")] = _DEFAULT) -> None:
    """Make a folder with the notebooks; notebooks that are already there are left alone."""
    _fill(folder)
    typer.echo(f"Open it with: {shlex.join(['labkit', 'lab', str(folder)])}")


def lab(
    folder: Annotated[Path, typer.Argument(help="The folder to open; made where it is not there.")] = _DEFAULT,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTIONS", help="Options for JupyterLab, such as: -- --no-browser --port 8899"),
    ] = None,
) -> None:
    r"""Open JupyterLab in a folder of notebooks.

    It needs JupyterLab: pip install ".\[lab]" in a clone of labkit, pip install jupyterlab ipywidgets anywhere else.
    """
    from labkit.course.workspace import need_jupyter, open_jupyter

    more = list(options or ())
    if str(folder).startswith("-"):  # `labkit lab -- --no-browser` names no folder
        folder, more = _DEFAULT, [str(folder), *more]
    need_jupyter()  # before a folder is made for nothing
    _fill(folder)
    if _is_root() and "--allow-root" not in more:
        typer.echo("You are root, as in a container, so JupyterLab is started with --allow-root.")
        more.append("--allow-root")
    raise typer.Exit(open_jupyter(folder, more))


def _is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def _fill(folder: Path) -> None:
    from labkit.course.workspace import make_workspace

    made, kept = make_workspace(folder)
    for path in made:
        typer.echo(f"made {path}")
    for path in kept:
        typer.echo(f"kept {path} as it is")
