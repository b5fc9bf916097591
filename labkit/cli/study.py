"""``labkit study``: a table or figure of the literature, at lab scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["study"]


def study(
    name: Annotated[str | None, typer.Argument(help="Which one; --list shows all.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List all studies.")] = False,
    data: Annotated[
        str | None, typer.Option(help="cifar10 or mnist5k, or what --list says of the study; its first where left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions of what depends on chance.", min=1)] = 3,
    images: Annotated[int | None, typer.Option(help="Test images; all where it is left out.", min=1)] = None,
    calibration: Annotated[int, typer.Option(help="Training images, without labels.", min=1)] = 1024,
    smoke: Annotated[bool, typer.Option("--smoke", help="A short run on digits, to see that it works.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; else docs/studies/NAME here.")] = None,
    pages: Annotated[bool, typer.Option("--pages", help="Only draw and write again from result.json.")] = False,
    show_index: Annotated[bool, typer.Option("--index", help="Write the overview of all results there.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which the data lie.")] = None,
) -> None:
    """Reproduce the table or figure NAME of the literature and write its page."""
    from rich.console import Console
    from rich.table import Table

    from labkit.cli.progress import progress_bars
    from labkit.errors import InputError
    from labkit.files import write_atomically
    from labkit.studies.index import index
    from labkit.studies.registry import STUDIES, find
    from labkit.studies.run import read_study, run_study, write_study
    from labkit.studies.study import Settings

    console = Console()
    if show_index:
        overview = (out or Path("docs") / "studies") / "README.md"
        write_atomically(overview, index(STUDIES, overview.parent))
        console.print(f"Overview: {overview}", highlight=False, soft_wrap=True, markup=False)
        return
    if show_list or name is None:
        table = Table(title="Studies", title_justify="left", box=None, pad_edge=False)
        for heading in ("name", "what", "source", "data", "minutes"):
            table.add_column(heading, justify="right" if heading == "minutes" else "left")
        for one in STUDIES:
            table.add_row(one.name, one.title, one.source, " or ".join(one.data), f"{one.minutes:g}")
        console.print(table)
        if name is None and not show_list:
            raise InputError("Name one of these studies.")
        return
    chosen = find(name)
    folder = out or Path("docs") / "studies" / chosen.name
    if pages:
        write_study(chosen, read_study(folder), folder)
    else:
        if smoke:
            settings = Settings.short()
            words = f"labkit study {chosen.name} --smoke"
        else:
            settings = Settings(chosen.data_called(data), data_dir, seeds, images, calibration)
            words = f"labkit study {chosen.name} --data {settings.data} --seeds {seeds} --calibration {calibration}"
            words += "" if images is None else f" --images {images}"
        with progress_bars(console) as tell:
            content = run_study(chosen, settings, words, tell)
        write_study(chosen, content, folder)
    console.print(f"{chosen.title}: {folder / 'README.md'}", highlight=False, soft_wrap=True, markup=False)
