"""``labkit grade`` and ``labkit replay``: marks for a folder of submissions, and one mark computed again."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["grade", "replay"]

_Course = Annotated[
    Path | None, typer.Option("--course", help="The folder with solutions/ and exercises/; this clone where left out.")
]


def grade(
    submissions: Annotated[Path, typer.Argument(help="A folder with one notebook, script, zip or folder a student.")],
    module: Annotated[str, typer.Option("--module", help="Such as m02.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for grades, feedback and receipts.")],
    course: _Course = None,
    roster: Annotated[Path | None, typer.Option(help="A CSV file with a column student; tells who is missing.")] = None,
    manual: Annotated[Path | None, typer.Option(help="A CSV file student,question,points for open questions.")] = None,
    seed_file: Annotated[
        Path | None, typer.Option(help="The private seed, made where missing; else OUT/seed.txt.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds of the wall clock for one case; processor time is limited by the task."),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="A Dask scheduler whose workers run the submissions: tcp://HOST:8786.")
    ] = "",
    only: Annotated[list[str] | None, typer.Option(help="Grade this student alone; may be given again.")] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="Grade again what was graded before.")] = False,
    isolation: Annotated[
        str, typer.Option(help="bubblewrap or lockdown; the best that works on this machine where left out.")
    ] = "",
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Go on where nothing shuts submissions in: your own only.")
    ] = False,
) -> None:
    """Grade a folder of submissions, each in a sandbox; stopped and started again, it goes on where it was."""
    from rich.table import Table

    from labkit.cli.progress import progress_bars
    from labkit.course.loading import find_course, load_module
    from labkit.grading.run import grade_folder
    from labkit.grading.submissions import read_roster

    console = Console()
    folder = find_course(course)
    names = [item.name for item in load_module(folder, module).questions]
    with progress_bars(Console(stderr=True)) as tell:
        graded = grade_folder(
            submissions,
            folder,
            module,
            out,
            roster=tuple(read_roster(roster)) if roster else (),
            manual=_manual(manual, names) if manual else None,
            seed_file=seed_file,
            jobs=jobs,
            only=tuple(only or ()),
            regrade=regrade,
            unsafe=unsafe,
            isolation=isolation,
            patience=timeout,
            cluster=cluster,
            tell=lambda done, total, student: tell("submissions", done, total),
        )
    table = Table(title=f"{module} {graded.module.title}: {len(graded.verdicts)} submissions")
    table.add_column("outcome")
    table.add_column("students", justify="right")
    known = [v for v in graded.verdicts if not v.is_ungraded]
    table.add_row("graded", str(sum(not v.is_pending and not v.fault for v in known)))
    table.add_row("graded, open answers pending", str(sum(v.is_pending for v in known)))
    table.add_row("unreadable", str(sum(bool(v.fault) for v in known)))
    table.add_row("missing", str(len(graded.missing)))
    table.add_row("ungraded (a fault of the grader)", str(len(graded.ungraded)))
    console.print(table)
    if graded.resumed:
        typer.echo(f"{graded.resumed} were graded before and kept; --regrade grades them again.")
    typer.echo(f"Isolation: {graded.level.says}")
    if graded.why_fresh:
        typer.echo(
            f"Submissions got fresh sandboxes, which take seconds longer where they need PyTorch: {graded.why_fresh}"
        )
    typer.echo(f"wrote {out / 'grades.csv'}, {out / 'summary.html'} and a folder for each student")
    if graded.ungraded:
        typer.echo(f"The grader failed on {', '.join(graded.ungraded)}: grade them again with --only.", err=True)
        raise typer.Exit(1)


def _manual(path: Path, questions: list[str]) -> dict[tuple[str, str], Fraction]:
    from labkit.errors import InputError

    found = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                student, question, points = (
                    str(row.get(name) or "").strip() for name in ("student", "question", "points")
                )
                if question not in questions:
                    raise InputError(
                        f"{path}, line {number}: no question {question!r}; there are {', '.join(questions)}."
                    )
                if points:  # an empty cell is still pending
                    found[student, question] = Fraction(points)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"Cannot read {path}: {error}. A CSV file with columns student,question,points is wanted."
        ) from error
    return found


def replay(
    receipt: Annotated[Path, typer.Argument(help="A student's receipt.json.")],
    submission: Annotated[Path, typer.Argument(help="The file or folder that was handed in.")],
    course: _Course = None,
    isolation: Annotated[
        str, typer.Option(help="bubblewrap or lockdown; the best that works on this machine where left out.")
    ] = "",
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Go on where nothing shuts submissions in: your own only.")
    ] = False,
) -> None:
    """Compute a mark again from its receipt; exit 1 where it is another one."""
    from labkit.course.loading import find_course
    from labkit.errors import InputError
    from labkit.grading.grade import grade_submission, sha256_of
    from labkit.grading.records import versions
    from labkit.grading.run import cases_hash, prepared
    from labkit.grading.submissions import Submission

    try:
        known = json.loads(receipt.read_text("utf-8"))
        secret, module, student = str(known["seed"]), str(known["module"]), str(known["student"])
        tasks = dict(known["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{receipt} is no receipt: {error}. Name the receipt.json in a student's folder of results."
        ) from error
    if not submission.exists():
        raise InputError(f"There is no {submission}. Name the file or folder that {student} handed in.")
    differences = []
    if sha256_of(submission) != known.get("submission_sha256"):
        differences.append("the submission is another one than was graded")
    with prepared(find_course(course), module, secret, unsafe=unsafe, isolation=isolation) as plan:
        if cases_hash(plan) != known.get("cases_sha256"):
            differences.append("the course draws other cases than it did")
        verdict = grade_submission(plan, Submission(student, submission))
    for task in verdict.tasks:
        now = None if task.earned is None else str(task.earned)
        if now != tasks.get(task.task):
            differences.append(f"{task.task}: {tasks.get(task.task)} points then, {now} now ({task.outcome.value})")
    for name, version in versions().items():
        if known.get("versions", {}).get(name) != version:
            differences.append(f"{name} is {version} now and was {known.get('versions', {}).get(name)}")
    for difference in differences:
        typer.echo(difference)
    same = all((None if t.earned is None else str(t.earned)) == tasks.get(t.task) for t in verdict.tasks)
    typer.echo("The same marks." if same else "Other marks.")
    if not same:
        raise typer.Exit(1)
