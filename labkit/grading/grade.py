"""Grades one submission, or a folder of them: the trusted side, step by step."""

from __future__ import annotations

import hashlib
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from labkit.course.cases import Case, draw_cases
from labkit.course.definitions import Definitions, reachable
from labkit.course.source import BLANK_ANSWER
from labkit.course.tasks import Module
from labkit.course.values import encode
from labkit.errors import InputError, OutputError
from labkit.files import write_atomically
from labkit.grading.collecting import Parcel, collected
from labkit.grading.isolation import Isolation
from labkit.grading.judging import judged
from labkit.grading.kit import Kit, ingredients_of
from labkit.grading.likeness import fingerprints
from labkit.grading.outcomes import Outcome, QuestionVerdict, SubmissionVerdict, TaskVerdict
from labkit.grading.pool import Pool
from labkit.grading.submissions import Submission, files_within, read_submission
from labkit.grading.worker import Asked, Reply, WorkerFault

__all__ = [
    "Plan",
    "Read",
    "drawn",
    "grade_submission",
    "judged_replies",
    "kit_modules",
    "parcel_of",
    "read_for",
    "read_or_make_seed",
    "seed_number",
    "sha256_of",
    "ungraded",
    "verdict_on",
]


_MOST_HASHED = 1 << 30  # bytes; no more than some ten million are ever graded
_MOST_NOTES = 20


@dataclass(frozen=True)
class Plan:
    """Everything that grading a module needs, the same for every submission.

    ``cases`` holds each task's cases by its name; ``manual`` the points for open questions by (student, question),
    ``pool`` what workers are forked from, where it is not None.
    """

    module: Module
    cases: Mapping[str, tuple[Case, ...]]
    seed: int
    level: Isolation
    kit: Kit
    manual: Mapping[tuple[str, str], Fraction]
    patience: float | None = None
    pool: Pool | None = None


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


@dataclass(frozen=True)
class Read:
    """A submission as it was read: its definitions, notes on how, and ``fault`` where nothing could be read.

    ``is_ours`` says that the fault is the grader's.
    """

    submission: Submission
    definitions: Definitions
    notes: tuple[str, ...]
    fault: str = ""
    is_ours: bool = False


def read_for(plan: Plan, submission: Submission) -> Read:
    """``submission`` read for the module of ``plan``; whatever it is, there is a result."""
    nothing = Definitions("", (), {}, ())
    try:
        definitions, notes = read_submission(submission, plan.module.stem)
    except InputError as error:
        return Read(submission, nothing, submission.notes, str(error))
    except Exception as error:  # a fault of ours, not the student's
        return Read(submission, nothing, submission.notes, f"The submission could not be read: {error!r}", is_ours=True)
    if len(notes) > _MOST_NOTES:
        notes = (*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} more notes of this kind")
    return Read(submission, definitions, notes)


def grade_submission(plan: Plan, submission: Submission) -> SubmissionVerdict:
    """The verdict on one ``submission`` by ``plan``.

    Whatever the submission is, there is a verdict. A fault of the grader gives tasks that are UNGRADED.
    """
    try:
        return _graded(plan, submission)
    except Exception as error:  # whatever we did not think of costs this submission its verdict, and no other
        read = Read(
            submission, Definitions("", (), {}, ()), submission.notes, f"The grader failed: {error!r}", is_ours=True
        )
        return verdict_on(plan, read, ungraded(plan, read.fault))


def _graded(plan: Plan, submission: Submission) -> SubmissionVerdict:
    read = read_for(plan, submission)
    if read.is_ours:
        return verdict_on(plan, read, ungraded(plan, read.fault))
    parcel = parcel_of(plan, read.definitions)
    try:
        replies = {} if parcel is None else collected(parcel, plan.level, plan.kit, plan.pool)
    except WorkerFault as error:
        return verdict_on(plan, read, ungraded(plan, str(error)))
    return verdict_on(plan, read, judged_replies(plan, replies))


def parcel_of(plan: Plan, definitions: Definitions) -> Parcel | None:
    """What a worker needs by ``plan`` for a submission with these ``definitions``; None where there is nothing to run."""
    functions = {task.function for task in plan.module.tasks} & set(definitions.names)
    if not functions:
        return None
    source = reachable(definitions.source, functions)
    asked = tuple(
        Asked(
            task.name,
            task.function,
            task.given,
            task.seconds,
            tuple({name: encode(value) for name, value in case.inputs.items()} for case in plan.cases[task.name]),
            reachable(definitions.source, [task.function]),
        )
        for task in plan.module.tasks
        if task.function in functions
    )
    return Parcel(source, asked, plan.patience)


def judged_replies(plan: Plan, replies: Mapping[str, Sequence[Reply]]) -> tuple[TaskVerdict, ...]:
    """The verdict on each task of ``plan``, from the ``replies`` by its name; a task without any was not attempted."""
    found = []
    for task in plan.module.tasks:
        cases = plan.cases[task.name]
        found.append(judged(task, cases, replies.get(task.name, [Reply(Outcome.NOT_ATTEMPTED)] * len(cases))))
    return tuple(found)


def ungraded(plan: Plan, why: str) -> tuple[TaskVerdict, ...]:
    """The tasks of ``plan`` where the grader failed, with ``why``."""
    reply = Reply(Outcome.UNGRADED, message=why)
    return tuple(judged(t, plan.cases[t.name], [reply] * len(plan.cases[t.name])) for t in plan.module.tasks)


def verdict_on(plan: Plan, read: Read, tasks: tuple[TaskVerdict, ...], isolation: str = "") -> SubmissionVerdict:
    """The verdict on what was ``read``: its ``tasks``, its open answers with the points of ``plan``, and the facts of it.

    ``isolation`` is how it was shut in, where not as ``plan`` says.
    """
    questions = []
    for question in plan.module.questions:
        answer = read.definitions.strings.get(question.variable, "").strip()
        answer = "" if answer == BLANK_ANSWER else answer
        given = plan.manual.get((read.submission.student, question.name))
        questions.append(QuestionVerdict(question.name, question.title, question.points, answer, given))
    shapes = fingerprints(read.definitions.source, [task.function for task in plan.module.tasks])
    path = read.submission.path
    facts = {"file": path.name, "isolation": isolation or plan.level.says, "sha256": sha256_of(path)}
    return SubmissionVerdict(
        read.submission.student, plan.module.name, tasks, tuple(questions), read.notes, read.fault, facts, shapes
    )


def sha256_of(path: Path) -> str:
    """The hash of the file ``path``, or of the regular files of a folder; of what is too much to be graded, only of a part."""
    digest = hashlib.sha256()
    room = _MOST_HASHED
    try:
        for file in files_within(path) if path.is_dir() else [path]:
            if stat.S_ISREG(file.lstat().st_mode):
                with file.open("rb") as stream:
                    while room > 0 and (block := stream.read(1 << 20)):
                        digest.update(block)
                        room -= len(block)
    except (InputError, OSError) as error:  # it cannot be graded either
        digest.update(type(error).__name__.encode())
    return digest.hexdigest()
