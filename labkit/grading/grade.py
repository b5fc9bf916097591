"""Grades one submission, or a folder of them: the trusted side, step by step."""

from __future__ import annotations

import ast
import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from labkit.course.cases import Case, draw_cases
from labkit.course.definitions import Definitions, reachable
from labkit.course.source import BLANK_ANSWER
from labkit.course.tasks import Module, Task
from labkit.errors import InputError, OutputError
from labkit.files import write_atomically
from labkit.grading.isolation import Isolation
from labkit.grading.judging import judged
from labkit.grading.kit import Kit, ingredients_of
from labkit.grading.outcomes import Outcome, QuestionVerdict, SubmissionVerdict, TaskVerdict
from labkit.grading.submissions import Submission, read_submission
from labkit.grading.worker import Reply, Worker, WorkerFault

__all__ = ["Plan", "drawn", "grade_submission", "kit_modules", "read_or_make_seed", "seed_number", "sha256_of"]


@dataclass(frozen=True)
class Plan:
    """Everything that grading a module needs, the same for every submission.

    ``cases`` holds each task's cases by its name; ``manual`` the points for open questions by (student, question).
    """

    module: Module
    cases: Mapping[str, tuple[Case, ...]]
    seed: int
    level: Isolation
    kit: Kit
    manual: Mapping[tuple[str, str], Fraction]
    patience: float | None = None


def read_or_make_seed(path: Path) -> str:
    """The private seed in the file ``path``, which is made where it is missing, readable by its owner alone.

    Raises
    ------
    InputError
        The file holds no seed.
    OutputError
        It cannot be written.
    """
    if path.exists():
        text = path.read_text("utf-8").strip()
        if len(text) < 16:
            raise InputError(f"{path} holds no seed: 16 characters at least are wanted. Delete it to have one made.")
        return text
    path.parent.mkdir(parents=True, exist_ok=True)
    text = secrets.token_hex(16)
    write_atomically(path, text + "\n")
    try:
        path.chmod(0o600)
    except OSError as error:
        raise OutputError(f"{path} cannot be kept private: {error.strerror}. Choose another place for it.") from error
    return text


def seed_number(secret: str, module: str) -> int:
    """The seed of the cases of ``module`` for a private ``secret``."""
    return int.from_bytes(hashlib.sha256(f"{module} {secret}".encode()).digest()[:8], "big")


def drawn(module: Module, seed: int) -> dict[str, tuple[Case, ...]]:
    """The cases of every task of ``module`` by its name, drawn from ``seed``."""
    return {task.name: tuple(draw_cases(task, seed)) for task in module.tasks}


def kit_modules(module: Module, cases: Mapping[str, Sequence[Case]]) -> set[str]:
    """The modules of labkit that workers need: what the tasks of ``module`` are given, and what makes the inputs of ``cases``."""
    given = {dotted.rpartition(".")[0] for task in module.tasks for dotted in task.given}
    made = {name for several in cases.values() for case in several for name in ingredients_of(dict(case.inputs))}
    return given | made


def grade_submission(plan: Plan, submission: Submission, slot: int = 0) -> SubmissionVerdict:
    """The verdict on one ``submission``; ``slot`` is a small number that no other has at the same time.

    Whatever the submission is, there is a verdict. A fault of the grader gives tasks that are UNGRADED.
    """
    try:
        definitions, notes = read_submission(submission, plan.module.stem)
    except InputError as error:
        empty = Definitions("", (), {}, ())
        return _verdict(plan, submission, empty, (*submission.notes, str(error)), _untried(plan), str(error))
    except Exception as error:  # a fault of ours, not the student's
        tasks = _ungraded(plan, f"the submission could not be read: {error!r}")
        return _verdict(plan, submission, Definitions("", (), {}, ()), submission.notes, tasks, repr(error))
    try:
        tasks = tuple(_graded_tasks(plan, definitions, slot))
    except WorkerFault as error:
        tasks = _ungraded(plan, str(error))
    return _verdict(plan, submission, definitions, notes, tasks)


def _graded_tasks(plan: Plan, definitions: Definitions, slot: int) -> Iterator[TaskVerdict]:
    wanted = {task.function for task in plan.module.tasks}
    if not wanted & set(definitions.names):
        yield from _untried(plan)  # nothing to run, so nothing is started
        return
    source = reachable(definitions.source, wanted)
    with Worker(plan.level, plan.kit, source, _imports(source), slot, plan.patience) as worker:
        for task in plan.module.tasks:
            cases = plan.cases[task.name]
            if task.function not in definitions.names:
                replies = [Reply(Outcome.NOT_ATTEMPTED)] * len(cases)
            else:
                replies = _asked(worker, task, cases)
            yield judged(task, cases, replies)


def _asked(worker: Worker, task: Task, cases: Sequence[Case]) -> list[Reply]:
    replies: list[Reply] = []
    for case in cases:
        reply = worker.ask(task, case)
        replies.append(reply)
        if reply.outcome is Outcome.NOT_ATTEMPTED:  # a blank stays one
            return [reply] * len(cases)
    return replies


def _imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def _untried(plan: Plan) -> tuple[TaskVerdict, ...]:
    reply = Reply(Outcome.NOT_ATTEMPTED)
    return tuple(judged(t, plan.cases[t.name], [reply] * len(plan.cases[t.name])) for t in plan.module.tasks)


def _ungraded(plan: Plan, why: str) -> tuple[TaskVerdict, ...]:
    reply = Reply(Outcome.UNGRADED, message=why)
    return tuple(judged(t, plan.cases[t.name], [reply] * len(plan.cases[t.name])) for t in plan.module.tasks)


def _verdict(
    plan: Plan,
    submission: Submission,
    definitions: Definitions,
    notes: tuple[str, ...],
    tasks: tuple[TaskVerdict, ...],
    fault: str = "",
) -> SubmissionVerdict:
    questions = []
    for question in plan.module.questions:
        answer = definitions.strings.get(question.variable, "").strip()
        answer = "" if answer == BLANK_ANSWER else answer
        given = plan.manual.get((submission.student, question.name))
        questions.append(QuestionVerdict(question.name, question.title, question.points, answer, given))
    facts = {"file": submission.path.name, "isolation": plan.level.says, "sha256": sha256_of(submission.path)}
    return SubmissionVerdict(submission.student, plan.module.name, tasks, tuple(questions), notes, fault, facts)


def sha256_of(path: Path) -> str:
    """The hash of the file ``path``, or of all regular files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()
