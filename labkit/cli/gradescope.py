"""``labkit gradescope``: the zip that grades a module on Gradescope."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["gradescope"]


def gradescope(
    module: Annotated[str, typer.Argument(help="Such as m02.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The zip to write.")] = Path("autograder.zip"),
    course: Annotated[
        Path | None,
        typer.Option("--course", help="The folder with solutions/ and exercises/; this clone where left out."),
    ] = None,
    seed_file: Annotated[
        Path | None, typer.Option(help="The private seed, made where missing; else a file beside the zip.")
    ] = None,
    wheel: Annotated[Path | None, typer.Option(help="labkit's wheel; else one is built from this clone.")] = None,
    torch_index: Annotated[
        str,
        typer.Option(help="The package index that torch comes from; labkit's README names PyTorch's for processors."),
    ] = "",
) -> None:
    """Pack a module for Gradescope: upload the zip as the assignment's autograder. Keep it to yourself."""
    from labkit.course.loading import find_course
    from labkit.grading.autograder import write_autograder

    folder = find_course(course)
    written = write_autograder(folder, module, output, seed_file=seed_file, wheel=wheel, torch_index=torch_index)
    typer.echo(f"wrote {output}: {len(written.names)} files; its README.md says how to upload it")
    typer.echo(f"The private seed of its cases is in {written.seed_file}.")
    if not torch_index:
        typer.echo("torch will come from pip's usual index, with some gigabytes for graphics cards: see --torch-index.")
