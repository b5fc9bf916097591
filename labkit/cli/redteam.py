"""``labkit redteam``: our own hostile submissions against the grader of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["redteam"]


def redteam(
    only: Annotated[
        list[str] | None, typer.Option(help="An attack or a category, by its name; may be given again.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what happened to this file.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time.")] = 2,
) -> None:
    """Grade hostile, broken and odd submissions here, and say what each came to; exit 1 where the grader did not hold."""
    import json

    from rich.table import Table

    from labkit.cli.progress import progress_bars
    from labkit.errors import InputError
    from labkit.files import folder_of, write_atomically
    from labkit.grading.redteam.attacks import CATEGORIES
    from labkit.grading.redteam.catalogue import ATTACKS
    from labkit.grading.redteam.runner import run

    wanted = set(only or ())
    attacks = [attack for attack in ATTACKS if not wanted or {attack.name, attack.category} & wanted]
    if unknown := sorted(wanted - {attack.name for attack in attacks} - {attack.category for attack in attacks}):
        raise InputError(f"There is no attack {', '.join(unknown)}. The categories are {', '.join(CATEGORIES)}.")
    with progress_bars(Console(stderr=True)) as tell:
        report = run(attacks, jobs=jobs, tell=lambda done, total: tell("attacks", done, total))
    table = Table(title=f"{len(attacks)} attacks in {report.seconds:.0f} s")
    for column in ("category", "attack", "tries", "what happened", "verdict"):
        table.add_column(column, overflow="fold")
    for result in report.results:
        verdict = "[red]" + escape("; ".join(result.faults)) + "[/red]" if result.faults else "held"
        attack = result.attack
        table.add_row(attack.category, attack.name, attack.tries, escape(_printable(result.happened)), verdict)
    console = Console()
    console.print(table)
    for fault in report.faults:
        typer.echo(fault)
    typer.echo(f"Isolation: {report.isolation}")
    broken = sum(bool(result.faults) for result in report.results)
    typer.echo(f"The grader held against {len(attacks) - broken} of {len(attacks)} attacks.")
    if json_file is not None:
        with folder_of(json_file):
            write_atomically(json_file, json.dumps(report.record(), indent=1) + "\n")
        typer.echo(f"wrote {json_file}")
    if not report.held:
        raise typer.Exit(1)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
