"""``labkit init`` and ``labkit lab``: a folder of notebooks, and JupyterLab in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["init", "lab"]

_DEFAULT = Path("labkit-lab")


def init(folder: Annotated[Path, typer.Argument(help="The folder to make.")] = _DEFAULT) -> None:
    """Make a folder with the notebooks; notebooks that are already there are left alone."""
    from labkit.course.workspace import make_workspace

    made, kept = make_workspace(folder)
    for path in made:
        typer.echo(f"made {path}")
    for path in kept:
        typer.echo(f"kept {path}, which was there")


def lab(
    folder: Annotated[Path, typer.Argument(help="The folder to open; made where it is not there.")] = _DEFAULT,
) -> None:
    """Open JupyterLab in a folder of notebooks (needs ``pip install "labkit[lab]"``)."""
    from labkit.course.workspace import make_workspace, open_jupyter

    make_workspace(folder)
    raise typer.Exit(open_jupyter(folder))
