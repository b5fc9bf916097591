"""Compares what came back with what is right, and says what it is worth. Pure: no process, no file."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.course.cases import Case
from labkit.course.judges.values import shortened
from labkit.course.tasks import Task
from labkit.grading.outcomes import CaseVerdict, Outcome, TaskVerdict
from labkit.grading.worker import Reply

__all__ = ["judged"]

_MOST = 2000  # characters of one text in a verdict, whatever came back


def judged(task: Task, cases: Sequence[Case], replies: Sequence[Reply]) -> TaskVerdict:
    """The verdict on ``task``: each of its ``cases`` with the reply to it in ``replies``."""
    verdicts = tuple(_case(task, case, reply) for case, reply in zip(cases, replies, strict=True))
    hint = mistake = ""
    if any(verdict.outcome is Outcome.WRONG for verdict in verdicts):
        mistake = _recognised(task, cases, replies, verdicts)
        hint = next((m.hint for m in task.mistakes if m.name == mistake), "")
    weights = {kind.name: kind.weight for kind in task.kinds}
    return TaskVerdict(task.name, task.title, task.points, task.is_bonus, weights, verdicts, hint, mistake)


def _case(task: Task, case: Case, reply: Reply) -> CaseVerdict:
    inputs = tuple((name, shortened(value)) for name, value in case.inputs.items())
    if reply.outcome is not None:
        message = reply.message
        if reply.outcome is Outcome.NOT_ATTEMPTED and not message:
            message = f"There is no function {task.function}, or it is still blank."
        if reply.outcome is Outcome.TIMEOUT and not message:
            message = f"It took longer than {task.seconds:g} s of processor time."
        return CaseVerdict(case.kind, reply.outcome, message, line=reply.line, inputs=inputs)
    try:
        found = task.judge.compare(reply.value, case.expected, case.inputs)
    except Exception as error:
        return CaseVerdict(case.kind, Outcome.UNGRADED, f"The judge failed: {error!r}", inputs=inputs)
    if found is None:
        return CaseVerdict(case.kind, Outcome.PASS)
    message, place, expected, got = (
        text if len(text) <= _MOST else f"{text[:_MOST]}..."
        for text in (found.message, found.place, found.expected, found.got)
    )
    return CaseVerdict(case.kind, Outcome.WRONG, message, place, expected, got, inputs=inputs)


def _recognised(task: Task, cases: Sequence[Case], replies: Sequence[Reply], verdicts: Sequence[CaseVerdict]) -> str:
    """The first known mistake that gave what came back, on every case where it shows."""
    for mistake in task.mistakes:
        shows = [mistake.name in case.mistakes for case in cases]
        same = [
            task.judge.same(reply.value, case.mistakes[mistake.name]) if shown else verdict.outcome is Outcome.PASS
            for case, reply, verdict, shown in zip(cases, replies, verdicts, shows, strict=True)
            if reply.outcome is None
        ]
        if any(shows) and same and all(same):
            return mistake.name
    return ""
