"""The pages that people read: one of feedback for each student, one summary for the instructor. Self-contained HTML."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

from labkit.course.tasks import Module
from labkit.grading.likeness import likenesses
from labkit.grading.outcomes import Outcome, SubmissionVerdict
from labkit.grading.records import points_text

__all__ = ["feedback_page", "summary_page"]

_COLOURS = {Outcome.PASS: "#15803d", Outcome.NOT_ATTEMPTED: "#64748b", Outcome.UNGRADED: "#7c3aed"}


def feedback_page(module: Module, verdict: SubmissionVerdict) -> str:
    """What ``verdict`` on a student's ``module`` means, for the student: kind, exact, and no more than is true."""
    rubrics = {question.name: question for question in module.questions}
    return str(
        _page("feedback.html").render(module=module, v=verdict, rubrics=rubrics, points=points_text, colour=_colour)
    )


def summary_page(module: Module, verdicts: Sequence[SubmissionVerdict], missing: Sequence[str], isolation: str) -> str:
    """What ``verdicts`` on ``module`` say together: how points are spread, hard tasks, common mistakes, who is ``missing``.

    ``isolation`` is how the submissions were shut in.
    """
    known = [v for v in verdicts if v.earned is not None]
    shares = [float(100 * (v.earned or Fraction(0)) / v.points) for v in known]
    bins = [0] * 10
    for share in shares:
        bins[min(9, max(0, int(share // 10)))] += 1
    tasks = [_task_row(module, verdicts, index) for index in range(len(module.tasks))]
    mistakes = Counter((t.task, t.mistake, t.hint) for v in verdicts for t in v.tasks if t.mistake)
    return str(
        _page("summary.html").render(
            module=module,
            verdicts=verdicts,
            missing=missing,
            isolation=isolation,
            bins=bins,
            most=max([*bins, 1]),
            median=statistics.median(shares) if shares else None,
            tasks=tasks,
            alike=likenesses({v.student: v.shapes for v in verdicts}),
            mistakes=[(*key, count) for key, count in sorted(mistakes.items(), key=lambda kv: (-kv[1], kv[0]))[:15]],
            points=points_text,
            ungraded=[v.student for v in verdicts if v.is_ungraded],
            pending=sum(v.is_pending for v in verdicts),
        )
    )


def _task_row(module: Module, verdicts: Sequence[SubmissionVerdict], index: int) -> dict[str, Any]:
    task = module.tasks[index]
    found = [v.tasks[index] for v in verdicts]
    earned = [t.earned for t in found if t.earned is not None]
    share = float(100 * sum(earned, Fraction(0)) / (task.points * len(earned))) if earned else 0.0
    outcomes = Counter(t.outcome.value for t in found)
    return {"task": task, "share": share, "outcomes": outcomes.most_common()}


def _colour(outcome: Outcome) -> str:
    return _COLOURS.get(outcome, "#c2410c")


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("labkit.grading", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(name: str) -> Any:
    return _environment().get_template(name)
