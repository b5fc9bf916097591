"""What a module of the course asks, and how an answer is judged: frozen data, written in ``exercises/``.

A `Module` holds tasks (a function to write, judged by its values) and questions (a few sentences, judged by a person). Each
`Task` draws its inputs from seeded generators, one `Kind` of case after another, knows the right value of each (its oracle), and
knows mistakes that people make (`Mistake`), so that feedback can name them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labkit.course.judges.base import Judge
from labkit.errors import InputError

__all__ = ["Equivalent", "Inputs", "Kind", "Mistake", "Module", "Question", "Task"]

Inputs = Mapping[str, Any]
"""The arguments of one case by parameter name: numbers, strings, None, lists, tuples, dicts, NumPy arrays and `Made`."""

_TASK_NAME = re.compile(r"m\d\d\.[qc]\d")


@dataclass(frozen=True)
class Kind:
    """One kind of case, such as ties or an empty channel.

    Parameters
    ----------
    name : one or two words
    about : what is special, as a student reads it after "cases with ..."
    make : draws the inputs of one case from a seeded generator; its second argument counts the cases from 0, so that shapes
        can be swept
    count : how many cases are drawn for a mark
    public : how many of them a student sees in ``check``; 0 hides the kind but for its name
    weight : its share of the task's points; a kind counts when all of its cases pass

    Raises
    ------
    InputError
        The counts or the weight make no sense.
    """

    name: str
    about: str
    make: Callable[[np.random.Generator, int], Inputs]
    count: int = 4
    public: int = 1
    weight: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.public <= self.count or self.count < 1 or self.weight < 1:
            raise InputError(
                f"Kind {self.name!r}: count and weight must be at least 1 and public within 0..count, got count "
                f"{self.count}, public {self.public}, weight {self.weight}."
            )


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer: a function with the task's signature, and the hint for whoever wrote the same.

    ``hint`` says what went wrong in one or two kind sentences, and points the way without giving the line of code.
    """

    name: str
    hint: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Equivalent:
    """A mutant of the solution that computes the same for every allowed input, so that no case can catch it.

    ``before`` and ``after`` are the statement as `ast.unparse` writes it, without and with the mutation; ``reason`` says why
    both give the same.
    """

    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class Task:
    """One function that a student writes.

    Parameters
    ----------
    name : ``m02.q1``; a challenge, whose points are a bonus, is ``m02.c1``
    title : a few words
    function : the name that the notebook gives the function
    points : whole points of the mark
    minutes : what a student may need
    source : section of the source document and equation of docs/arithmetic.md
    kinds : the kinds of cases, at least two
    oracle : the right value, from the library or by another way than the solution's
    judge : compares a value with the right one
    mistakes : at least three known wrong answers
    given : dotted names of labkit that the function may use; nothing else of labkit is there when it is graded
    library : the function of labkit that does the same, or None where labkit has none
    equivalent : mutants of the solution that are no mistakes
    seconds : processor time that one case may take

    Raises
    ------
    InputError
        A name is of another form, or something is missing.
    """

    name: str
    title: str
    function: str
    points: int
    minutes: int
    source: str
    kinds: tuple[Kind, ...]
    oracle: Callable[..., Any]
    judge: Judge
    mistakes: tuple[Mistake, ...]
    given: tuple[str, ...] = ()
    library: str | None = None
    equivalent: tuple[Equivalent, ...] = field(default=(), repr=False)
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not _TASK_NAME.fullmatch(self.name):
            raise InputError(f"A task is named like m02.q1, or m02.c1 for a challenge; got {self.name!r}.")
        if not self.function.isidentifier():
            raise InputError(f"{self.name}: {self.function!r} cannot be the name of a function.")
        if self.points < 1 or len(self.kinds) < 2 or len(self.mistakes) < 3:
            raise InputError(
                f"{self.name}: a task needs at least 1 point, 2 kinds of cases and 3 known mistakes; got {self.points}, "
                f"{len(self.kinds)} and {len(self.mistakes)}."
            )
        for what, names in (("kinds", [k.name for k in self.kinds]), ("mistakes", [m.name for m in self.mistakes])):
            if len(set(names)) < len(names):
                raise InputError(f"{self.name}: the {what} need names of their own, got {', '.join(names)}.")
        if not any(kind.public for kind in self.kinds):
            raise InputError(f"{self.name}: at least one kind of case must be public.")

    @property
    def is_bonus(self) -> bool:
        """Whether this is a challenge: its points come on top."""
        return ".c" in self.name

    @property
    def variable(self) -> str:
        """The name that a notebook must define."""
        return self.function


@dataclass(frozen=True)
class Question:
    """An open question, answered in a few sentences and marked by a person.

    Parameters
    ----------
    name : ``m02.e1``
    title : a few words
    text : the question, in Markdown
    points : whole points of the mark
    rubric : what earns how many points, each (points, what); they add up to ``points``
    minutes : what a student may need

    Raises
    ------
    InputError
        The name is of another form, or the rubric does not add up.
    """

    name: str
    title: str
    text: str
    points: int
    rubric: tuple[tuple[int, str], ...]
    minutes: int = 5

    def __post_init__(self) -> None:
        if not re.fullmatch(r"m\d\d\.e\d", self.name):
            raise InputError(f"A question is named like m02.e1; got {self.name!r}.")
        if sum(points for points, _ in self.rubric) != self.points:
            raise InputError(f"{self.name}: the points of the rubric must add up to {self.points}.")

    @property
    def variable(self) -> str:
        """The name of the string in which the notebook keeps the answer: ``m02_e1``."""
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Module:
    """One notebook of the course: ``name`` is ``m02``, ``topic`` the rest of its file's name.

    Raises
    ------
    InputError
        It holds a task of another module, or two that ask for the same name.
    """

    name: str
    topic: str
    title: str
    minutes: int
    source: str
    tasks: tuple[Task, ...]
    questions: tuple[Question, ...]

    def __post_init__(self) -> None:
        for item in self.items:
            if item.name.split(".")[0] != self.name:
                raise InputError(f"Module {self.name} cannot hold {item.name}.")
        names = [item.variable for item in self.items]
        if len(set(names)) < len(names):
            raise InputError(f"Module {self.name}: two tasks ask for the same name, among {', '.join(names)}.")

    @property
    def items(self) -> tuple[Task | Question, ...]:
        """All tasks, then all questions."""
        return (*self.tasks, *self.questions)

    @property
    def stem(self) -> str:
        """The name of its files without their ending: ``m02_activations``."""
        return f"{self.name}_{self.topic}"

    @property
    def points(self) -> int:
        """The points of all tasks and questions, without challenges."""
        return sum(t.points for t in self.tasks if not t.is_bonus) + sum(q.points for q in self.questions)
