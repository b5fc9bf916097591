"""``labkit check``: the public cases of a task or a module, on a notebook or script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["check"]


def check(
    name: Annotated[str, typer.Argument(metavar="MODULE[.TASK]", help="Such as m02, or m02.q1.")],
    notebook: Annotated[
        Path | None,
        typer.Argument(help="The notebook (.ipynb) or script (.py); the module's own, here, where left out."),
    ] = None,
) -> None:
    """Try a notebook's functions on the public cases, as check("m02.q1") does inside it; exit 1 where one fails.

    It runs what the notebook defines, so check only notebooks that you would run.
    """
    from labkit.course import check as check_answer
    from labkit.course.cases import read_public

    module = read_public(name.split(".")[0])
    path = notebook if notebook is not None else Path(f"{module.stem}.ipynb")
    found = check_answer(name, path)
    typer.echo(str(found))
    attempted = found.passed or getattr(found, "status", "") == "for a person"
    if not attempted:
        raise typer.Exit(1)
