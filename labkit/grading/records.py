"""Verdicts as files: JSON that resumes a run, Gradescope's results.json, the table of grades, receipts."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Iterable, Mapping
from fractions import Fraction
from importlib import metadata
from typing import Any

from labkit import __version__
from labkit.course.tasks import Module
from labkit.errors import InputError
from labkit.grading.outcomes import CaseVerdict, Outcome, QuestionVerdict, SubmissionVerdict, TaskVerdict

__all__ = [
    "as_json",
    "grades_csv",
    "gradescope_results",
    "points_text",
    "receipt",
    "verdict_from",
    "verdict_record",
    "versions",
]


def points_text(points: Fraction | None) -> str:
    """Points with two decimals at most, '' for none."""
    if points is None:
        return ""
    return f"{float(round(points, 2)):g}"


def verdict_record(verdict: SubmissionVerdict) -> dict[str, Any]:
    """``verdict`` as plain data, exactly."""

    def plainly(value: Any) -> Any:
        if isinstance(value, Fraction):
            return {"points": str(value)}
        if isinstance(value, Outcome):
            return value.value
        if isinstance(value, tuple):
            return [plainly(item) for item in value]
        if isinstance(value, TaskVerdict | CaseVerdict | QuestionVerdict | SubmissionVerdict):
            return {name: plainly(item) for name, item in vars(value).items()}
        return dict(value) if isinstance(value, Mapping) else value

    found: dict[str, Any] = plainly(verdict)
    return found


def verdict_from(record: Mapping[str, Any]) -> SubmissionVerdict:
    """What `verdict_record` was given.

    Raises
    ------
    InputError
        ``record`` is damaged.
    """
    try:
        tasks = tuple(
            TaskVerdict(**{**task, "cases": tuple(_case(case) for case in task["cases"])}) for task in record["tasks"]
        )
        questions = tuple(
            QuestionVerdict(**{**q, "given": None if q["given"] is None else Fraction(q["given"]["points"])})
            for q in record["questions"]
        )
        shapes = {name: (str(digest), int(nodes)) for name, (digest, nodes) in record["shapes"].items()}
        rest = {"tasks": tasks, "questions": questions, "notes": tuple(record["notes"]), "shapes": shapes}
        return SubmissionVerdict(**{**record, **rest})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"A record of a verdict is damaged: {error!r}. Grade that submission again with --regrade."
        ) from error


def _case(record: Mapping[str, Any]) -> CaseVerdict:
    inputs = tuple((name, value) for name, value in record["inputs"])
    return CaseVerdict(**{**record, "outcome": Outcome(record["outcome"]), "inputs": inputs})


def grades_csv(module: Module, verdicts: Iterable[SubmissionVerdict], missing: Iterable[str]) -> str:
    """The table of grades: one row a student, sorted; the columns are described in docs/grading.md.

    ``module`` gives the columns and ``verdicts`` the rows; ``missing`` are students of the roster without a submission.
    """
    names = [item.name for item in module.items]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", "module", "status", "points", "of", "percent", *names, "notes"])
    rows = []
    for verdict in verdicts:
        by_name = {t.task: points_text(t.earned) for t in verdict.tasks}
        for q in verdict.questions:
            by_name[q.question] = "pending" if q.is_pending else points_text(q.given or Fraction(0))
        earned = verdict.earned
        percent = "" if earned is None else points_text(100 * earned / verdict.points)
        row = [verdict.student, verdict.module, _status(verdict), points_text(earned), str(verdict.points), percent]
        rows.append([*row, *(by_name[name] for name in names), _one_line("; ".join(_told(verdict)))])
    for student in missing:
        rows.append([student, module.name, "missing", "0", str(module.points), "0", *["" for _ in names], ""])
    for row in sorted(rows):
        writer.writerow([_harmless(cell) for cell in row])
    return out.getvalue()


def _told(verdict: SubmissionVerdict) -> list[str]:
    return [*verdict.notes, *([verdict.fault] if verdict.fault else [])]


def _status(verdict: SubmissionVerdict) -> str:
    if verdict.is_ungraded:
        return "ungraded"
    if verdict.is_pending:
        return "pending"
    return "unreadable" if verdict.fault else "graded"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def gradescope_results(verdict: SubmissionVerdict) -> dict[str, Any]:
    """``verdict`` in the form of Gradescope's results.json."""
    tests: list[dict[str, Any]] = []
    for task in verdict.tasks:
        failure = task.first_failure
        said = "All cases pass." if failure is None else f"{task.outcome.value}: {failure.message}"
        if failure is not None and (failure.expected or failure.got):
            said += f"\nexpected {failure.place}: {failure.expected}\ngot {failure.place}: {failure.got}"
        if task.hint:
            said += f"\nHint: {task.hint}"
        test = {
            "name": f"{task.task} {task.title}",
            "number": task.task,
            "max_score": 0 if task.is_bonus else task.points,
        }
        if task.earned is not None:
            test |= {
                "score": float(round(task.earned, 2)),
                "status": "passed" if task.outcome is Outcome.PASS else "failed",
            }
        else:
            said = f"Not graded yet, by no fault of yours: {failure.message if failure else ''}"
        tests.append(test | {"output": said, "output_format": "text", "visibility": "visible"})
    for q in verdict.questions:
        said = "A person will read it." if q.is_pending else ("No answer." if q.given is None else "Read by a person.")
        score = {} if q.is_pending else {"score": float(q.given or 0)}
        name = f"{q.question} {q.title}"
        tests.append({"name": name, "number": q.question, "max_score": q.points, "output": said} | score)
    total = {} if verdict.earned is None else {"score": float(round(verdict.earned, 2))}
    head = "\n".join([f"labkit {__version__}, module {verdict.module}", *_told(verdict)])
    return total | {"output": head, "output_format": "text", "visibility": "visible", "tests": tests}


def versions() -> dict[str, str]:
    """What computed a mark: labkit, Python, and the libraries that a value may depend on."""
    found = {"labkit": __version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "scipy", "numba"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def receipt(verdict: SubmissionVerdict, seed: str, cases: str) -> dict[str, Any]:
    """What reproduces the mark of ``verdict``: the private ``seed``, versions, hashes of the submission and of all ``cases``."""
    return {
        "student": verdict.student,
        "module": verdict.module,
        "points": None if verdict.earned is None else str(verdict.earned),
        "tasks": {task.task: None if task.earned is None else str(task.earned) for task in verdict.tasks},
        "seed": seed,
        "cases_sha256": cases,
        "submission": verdict.facts.get("file", ""),
        "submission_sha256": verdict.facts.get("sha256", ""),
        "isolation": verdict.facts.get("isolation", ""),
        "versions": versions(),
    }


def as_json(data: Any) -> str:
    """``data`` as the text of a JSON file."""
    return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
