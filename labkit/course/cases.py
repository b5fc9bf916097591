"""The cases of a task: drawn from seeds on the instructor's side, read from a file on the student's."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.course.ingredients import build
from labkit.course.judges.base import Judge, described, plain
from labkit.course.judges.registry import judge_of
from labkit.course.tasks import Kind, Module, Task
from labkit.course.values import decode, encode
from labkit.errors import InputError

__all__ = [
    "PUBLIC_SEED",
    "Case",
    "PublicModule",
    "PublicQuestion",
    "PublicTask",
    "cases_text",
    "draw_cases",
    "public_cases",
    "read_public",
    "result_of",
]

PUBLIC_SEED = 0
"""The seed of the cases that students see. Marks are drawn from other seeds."""

_FORMAT = 1


@dataclass(frozen=True)
class Case:
    """One call of a student's function. ``kind`` names its `Kind`; ``inputs`` are plain, or `Made`.

    ``expected`` is the plain right value; ``mistakes`` holds what each known mistake returns, by name, where that is wrong here.
    """

    kind: str
    inputs: Mapping[str, Any]
    expected: Any
    mistakes: Mapping[str, Any]


def draw_cases(task: Task, seed: int, *, public: bool = False, mistakes: bool = True) -> Iterator[Case]:
    """The cases of ``task`` for ``seed``; the ``public`` ones alone; with or without what known ``mistakes`` return.

    The inputs depend on the task's name, the kind's, the number of the case and the seed, and on nothing else.
    """
    for kind in task.kinds:
        for number in range(kind.public if public else kind.count):
            yield _case(task, kind, number, seed, mistakes)


def _case(task: Task, kind: Kind, number: int, seed: int, mistakes: bool) -> Case:
    rng = np.random.default_rng([zlib.crc32(f"{task.name} {kind.name}".encode()), number, seed])
    inputs = {
        name: value if not isinstance(value, np.generic) else value.item()
        for name, value in kind.make(rng, number).items()
    }
    expected = result_of(task.oracle, inputs)
    wrong: dict[str, Any] = {}
    for mistake in task.mistakes if mistakes else ():
        try:
            value = result_of(mistake.function, inputs)
        except Exception:  # a mistake that crashes here is seen by its error, not by its value
            continue
        if task.judge.compare(value, expected, inputs) is not None:
            wrong[mistake.name] = value
    return Case(kind.name, inputs, expected, wrong)


def result_of(function: Any, inputs: Mapping[str, Any]) -> Any:
    """What ``function`` returns for ``inputs``, of which it gets a copy, as a plain value.

    Raises
    ------
    InputError
        It returned something that is no plain value.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain(function(**build(deepcopy(dict(inputs)))))


@dataclass(frozen=True)
class PublicTask:
    """What a student's computer knows of a task: no oracle, no answer. ``hidden`` are kinds without a public case."""

    name: str
    title: str
    function: str
    signature: str
    points: int
    minutes: int
    seconds: float
    given: tuple[str, ...]
    judge: Judge
    kinds: Mapping[str, str]
    hidden: tuple[str, ...]
    hints: Mapping[str, str]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class PublicQuestion:
    """What a student's computer knows of an open question."""

    name: str
    title: str
    variable: str
    points: int


@dataclass(frozen=True)
class PublicModule:
    """What a student's computer knows of a module."""

    name: str
    title: str
    stem: str
    tasks: tuple[PublicTask, ...]
    questions: tuple[PublicQuestion, ...]

    @property
    def items(self) -> tuple[PublicTask | PublicQuestion, ...]:
        """All tasks, then all questions."""
        return (*self.tasks, *self.questions)


def public_cases(module: Module, signatures: Mapping[str, str]) -> PublicModule:
    """The public side of ``module``; ``signatures`` are the first lines of the functions by their names."""
    tasks = []
    for task in module.tasks:
        cases = tuple(draw_cases(task, PUBLIC_SEED, public=True))
        named = {name for case in cases for name in case.mistakes}
        tasks.append(
            PublicTask(
                name=task.name,
                title=task.title,
                function=task.function,
                signature=signatures.get(task.function, f"{task.function}(...)"),
                points=task.points,
                minutes=task.minutes,
                seconds=task.seconds,
                given=task.given,
                judge=task.judge,
                kinds={kind.name: kind.about for kind in task.kinds},
                hidden=tuple(kind.name for kind in task.kinds if not kind.public),
                hints={mistake.name: mistake.hint for mistake in task.mistakes if mistake.name in named},
                cases=cases,
            )
        )
    questions = tuple(PublicQuestion(q.name, q.title, q.variable, q.points) for q in module.questions)
    return PublicModule(module.name, module.title, module.stem, tuple(tasks), questions)


def cases_text(module: PublicModule) -> str:
    """``module`` as the text of a file."""
    tasks = [
        {
            "name": task.name,
            "title": task.title,
            "function": task.function,
            "signature": task.signature,
            "points": task.points,
            "minutes": task.minutes,
            "seconds": task.seconds,
            "given": list(task.given),
            "judge": described(task.judge),
            "kinds": dict(task.kinds),
            "hidden": list(task.hidden),
            "hints": dict(task.hints),
            "cases": [
                {
                    "kind": case.kind,
                    "inputs": {name: encode(value) for name, value in case.inputs.items()},
                    "expected": encode(case.expected),
                    "mistakes": {name: encode(value) for name, value in case.mistakes.items()},
                }
                for case in task.cases
            ],
        }
        for task in module.tasks
    ]
    questions = [vars(question) for question in module.questions]
    head = {"format": _FORMAT, "name": module.name, "title": module.title, "stem": module.stem}
    return _lines(head | {"questions": questions, "tasks": tasks}) + "\n"


def _lines(value: Any, indent: str = "") -> str:
    """JSON with a line for each member, down to where a line is short: readable, and small in a version history."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + " "
    if len(flat) <= 110 or not isinstance(value, dict | list) or (isinstance(value, dict) and "array" in value):
        return flat
    if isinstance(value, dict):
        members = [
            f"{inner}{json.dumps(name, ensure_ascii=False)}: {_lines(item, inner)}" for name, item in value.items()
        ]
        return "{\n" + ",\n".join(members) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{inner}{_lines(item, inner)}" for item in value) + f"\n{indent}]"


def read_public(name: str, folder: Path | None = None) -> PublicModule:
    """The public side of the module ``name`` (``m02``), from ``folder`` or from the installed package.

    Raises
    ------
    InputError
        There is no such module, or its file is damaged.
    """
    place = folder or Path(__file__).with_name("cases")
    found = sorted(place.glob(f"{name}_*.json"))
    if len(found) != 1:
        known = ", ".join(sorted(path.stem.split("_")[0] for path in place.glob("m*_*.json"))) or "none"
        raise InputError(f"There is no module {name!r} in the course; there are {known}.")
    try:
        return _public(json.loads(found[0].read_text("utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The cases of {name} are damaged ({error}). Install labkit again.") from error


def _public(data: Any) -> PublicModule:
    if data["format"] != _FORMAT:
        raise ValueError(f"format {data['format']}, and this labkit reads {_FORMAT}")
    tasks = tuple(
        PublicTask(
            name=t["name"],
            title=t["title"],
            function=t["function"],
            signature=t["signature"],
            points=t["points"],
            minutes=t["minutes"],
            seconds=t["seconds"],
            given=tuple(t["given"]),
            judge=judge_of(t["judge"]),
            kinds=t["kinds"],
            hidden=tuple(t["hidden"]),
            hints=t["hints"],
            cases=tuple(
                Case(
                    c["kind"],
                    {name: decode(value) for name, value in c["inputs"].items()},
                    decode(c["expected"]),
                    {name: decode(value) for name, value in c["mistakes"].items()},
                )
                for c in t["cases"]
            ),
        )
        for t in data["tasks"]
    )
    questions = tuple(PublicQuestion(**question) for question in data["questions"])
    return PublicModule(data["name"], data["title"], data["stem"], tasks, questions)
