"""``labkit course``: make the course from its sources, prove it, and pack what students get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from labkit.course.verify.proofs import Proof

__all__ = ["app", "build", "leaderboard", "release", "verify"]

app = typer.Typer(
    help="Make the course from its sources, prove it, and pack what students get. For instructors, in a clone of labkit.",
    no_args_is_help=True,
)

_Course = Annotated[
    Path | None, typer.Option("--course", help="The folder with solutions/ and exercises/; this clone where left out.")
]
_Modules = Annotated[list[str] | None, typer.Argument(metavar="[MODULE]...", help="Such as m02; all where left out.")]


@app.command("build")
def build(
    modules: _Modules = None,
    course: _Course = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where something is not up to date.")
    ] = False,
) -> None:
    """Make notebooks/ from solutions/, and the public cases from exercises/."""
    from labkit.course.build import built, write_built

    folder, names = _chosen(course, modules)
    stale = 0
    chosen: list[str | None] = [*names] if names else [None]
    for name in chosen:
        if check:
            for made in (made for made in built(folder, name) if not made.is_there):
                stale += 1
                typer.echo(f"{made.path.relative_to(folder)} is not up to date: run labkit course build")
        else:
            for path in write_built(folder, name):
                typer.echo(f"wrote {path.relative_to(folder)}")
    if stale:
        raise typer.Exit(1)


@app.command("verify")
def verify(
    modules: _Modules = None,
    course: _Course = None,
    data: Annotated[str, typer.Option(help="What the notebooks run on: mnist5k or cifar10.")] = "mnist5k",
    mutants: Annotated[
        bool, typer.Option(help="Change every solution in small ways and see each change caught.")
    ] = True,
    notebooks: Annotated[bool, typer.Option(help="Run every notebook with its answers.")] = True,
    seconds: Annotated[float, typer.Option(help="The time for the last section of each notebook.")] = 3.0,
    limit: Annotated[
        float | None, typer.Option(help="Fail where a notebook takes more seconds of processor time.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="A folder for the executed notebooks.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Modules at a time.")] = 1,
) -> None:
    """Prove the course: blanks fail, solutions pass, mistakes get hints, mutants are caught, notebooks run, nothing leaks."""
    from labkit.course.loading import load_modules

    folder, names = _chosen(course, modules)
    console = Console()
    every = names or list(load_modules(folder))
    faults = 0
    from labkit.cli.progress import progress_bars

    with progress_bars(Console(stderr=True)) as tell, ThreadPoolExecutor(jobs) as pool:
        futures: dict[str, Future[list[Proof]]] = {
            name: pool.submit(_proofs, folder, name, data, mutants, notebooks, seconds, limit, keep, tell)
            for name in every
        }
        found = {name: future.result() for name, future in futures.items()}
    _print(console, found)
    for name, proofs in found.items():
        for proof in proofs:
            for fault in proof.faults:
                faults += 1
                console.print(f"{name}, {proof.name}: {fault}", style="red", markup=False, highlight=False)
    if faults:
        typer.echo(f"{faults} fault{'s' if faults != 1 else ''} found.")
        raise typer.Exit(1)
    typer.echo("Everything holds.")


def _proofs(
    course: Path,
    name: str,
    data: str,
    mutants: bool,
    notebooks: bool,
    seconds: float,
    limit: float | None,
    keep: Path | None,
    tell: Callable[[str, int, int], None],
) -> list[Proof]:
    from labkit.course.loading import load_module
    from labkit.course.verify.execution import executed
    from labkit.course.verify.mutation import mutation_of
    from labkit.course.verify.proofs import of_execution, of_mutation, static_proofs
    from labkit.files import make_folder, write_atomically

    module = load_module(course, name)
    tell(f"{name} cases", 0, 1)
    proofs = list(static_proofs(course, name))
    tell(f"{name} cases", 1, 1)
    if mutants:
        proofs.append(of_mutation(mutation_of(course, name, lambda done, total: tell(f"{name} mutants", done, total))))
    if notebooks:
        tell(f"{name} notebook", 0, 1)
        run = executed(course, module.stem, data=data, showcase_seconds=seconds)
        if keep is not None:
            write_atomically(make_folder(keep) / f"{module.stem}.ipynb", run.notebook)
        proofs.append(of_execution(run, module, limit))
        tell(f"{name} notebook", 1, 1)
    return proofs


def _print(console: Console, found: dict[str, list[Proof]]) -> None:
    from rich.table import Table

    table = Table(title="The course, proved")
    for column in ("module", "cases and files", "mutants", "notebook with answers"):
        table.add_column(column)
    for module, proofs in found.items():
        by_name = {proof.name: proof for proof in proofs}
        still = [proof for name, proof in by_name.items() if name not in ("mutants", "runs")]
        held = sum(proof.holds for proof in still)
        sign = "[green]✓[/]" if held == len(still) else "[red]✗[/]"
        table.add_row(
            module,
            f"{sign} {held} of {len(still)} proofs hold",
            _cell(by_name.get("mutants")),
            _cell(by_name.get("runs")),
        )
    console.print(table)


def _cell(proof: Proof | None) -> str:
    if proof is None:
        return "left out"
    return f"{'[green]✓[/]' if proof.holds else '[red]✗[/]'} {proof.note}"


@app.command("release")
def release(
    output: Annotated[Path, typer.Option("-o", "--output", help="The zip archive to write.")],
    course: _Course = None,
) -> None:
    """Pack what students get: notebooks and public cases; refused where an answer would be in it."""
    from labkit.course.release import write_release

    folder, _ = _chosen(course, None)
    names = write_release(folder, output)
    typer.echo(f"wrote {output}: {len(names)} files, and no line of an answer in them")


@app.command("leaderboard")
def leaderboard(
    folder: Annotated[Path, typer.Argument(help="Holds a folder for each entry, with net.lab and entry.json.")],
    data: Annotated[str | None, typer.Option(help="mnist5k or cifar10; what most entries name where left out.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the leaderboard as JSON, too.")] = None,
    timed: Annotated[bool, typer.Option(help="Measure each network beside LeNet at 8 bits.")] = True,
) -> None:
    """Run every entry of the capstone again, refuse those that are not what they claim, and order the rest."""
    import labkit.data
    from labkit.course.leaderboard import read_leaderboard

    board = read_leaderboard(folder, None if data is None else labkit.data.load(data, download=False), timed=timed)
    typer.echo(str(board))
    if output is not None:
        board.save(output)
        typer.echo(f"wrote {output}")


def _chosen(course: Path | None, modules: Iterable[str] | None) -> tuple[Path, list[str]]:
    from labkit.course.loading import find_course, load_module

    folder = find_course(course)
    names = list(modules or ())
    for name in names:
        load_module(folder, name)
    return folder, names
