"""What can become of a case, a task and a submission: frozen data that the judge makes and the reports show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

__all__ = ["CaseVerdict", "Outcome", "QuestionVerdict", "SubmissionVerdict", "TaskVerdict"]


class Outcome(Enum):
    """What became of one case. Only PASS earns points; UNGRADED is a fault of the grader and is never a zero."""

    PASS = "pass"
    WRONG = "wrong"
    NOT_ATTEMPTED = "not attempted"
    ERROR = "error"
    TIMEOUT = "timeout"
    KILLED = "killed"
    MEMORY = "out of memory"
    PROTOCOL = "protocol error"
    UNGRADED = "ungraded"


@dataclass(frozen=True)
class CaseVerdict:
    """One case: its kind, what became of it, and, where it did not pass, what a student should know."""

    kind: str
    outcome: Outcome
    message: str = ""
    place: str = ""
    expected: str = ""
    got: str = ""
    line: str = ""
    inputs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TaskVerdict:
    """One task: its cases, the points that they earn, and the hint of a recognised mistake.

    ``weights`` are the shares of the kinds; a kind earns its share when all of its cases pass.
    """

    task: str
    title: str
    points: int
    is_bonus: bool
    weights: Mapping[str, int]
    cases: tuple[CaseVerdict, ...]
    hint: str = ""
    mistake: str = ""

    @property
    def earned(self) -> Fraction | None:
        """The points, exactly; None where the grader failed."""
        if any(case.outcome is Outcome.UNGRADED for case in self.cases):
            return None
        passed = {name for name in self.weights if all(c.outcome is Outcome.PASS for c in self.cases if c.kind == name)}
        return Fraction(self.points * sum(self.weights[name] for name in passed), sum(self.weights.values()))

    @property
    def outcome(self) -> Outcome:
        """The first outcome that is no pass, or PASS; UNGRADED before all others."""
        outcomes = [case.outcome for case in self.cases]
        if Outcome.UNGRADED in outcomes:
            return Outcome.UNGRADED
        return next((outcome for outcome in outcomes if outcome is not Outcome.PASS), Outcome.PASS)

    @property
    def first_failure(self) -> CaseVerdict | None:
        """The first case that did not pass."""
        return next((case for case in self.cases if case.outcome is not Outcome.PASS), None)


@dataclass(frozen=True)
class QuestionVerdict:
    """One open question: what was answered, and the points that a person gave; None while they are pending."""

    question: str
    title: str
    points: int
    answer: str
    given: Fraction | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a person still has to read it. An empty answer is 0, not pending."""
        return self.given is None and bool(self.answer)


@dataclass(frozen=True)
class SubmissionVerdict:
    """All of one student's module. ``notes`` tell what was done to read it; ``fault`` why nothing of it could be.

    ``shapes`` are the fingerprints of its functions (`labkit.grading.likeness`).
    """

    student: str
    module: str
    tasks: tuple[TaskVerdict, ...]
    questions: tuple[QuestionVerdict, ...] = ()
    notes: tuple[str, ...] = ()
    fault: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def is_ungraded(self) -> bool:
        """Whether the grader failed on any part of it."""
        return any(task.outcome is Outcome.UNGRADED for task in self.tasks)

    @property
    def is_pending(self) -> bool:
        """Whether a person still has to read an answer."""
        return any(question.is_pending for question in self.questions)

    @property
    def earned(self) -> Fraction | None:
        """Points of tasks (challenges on top) and of questions marked so far; None where the grader failed."""
        total = Fraction(0)
        for task in self.tasks:
            if task.earned is None:
                return None
            total += task.earned
        return total + sum((q.given or Fraction(0) for q in self.questions), Fraction(0))

    @property
    def points(self) -> int:
        """What can be earned without challenges."""
        return sum(t.points for t in self.tasks if not t.is_bonus) + sum(q.points for q in self.questions)
