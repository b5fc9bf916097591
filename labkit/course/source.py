"""The source of a module: a percent script with prose and answers, and the two notebooks that it gives.

Answers stand between ``### BEGIN SOLUTION`` and ``### END SOLUTION``, inside a function or inside the string of an open answer.
``{{m02}}``, ``{{m02.q1}}`` and ``{{m02.e1}}`` in the prose become headings from what ``exercises/`` says, so that points and
minutes stand in one place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from labkit.course.tasks import Module, Question, Task
from labkit.errors import InputError

__all__ = [
    "BEGIN",
    "BLANK_ANSWER",
    "END",
    "answered",
    "blanked",
    "solution_lines",
    "solution_ranges",
    "task_signatures",
    "with_headings",
]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
BLANK_ANSWER = "Write your answer here."
_PLACEHOLDER = re.compile(r"\{\{(m\d\d(?:\.[qce]\d)?)\}\}")
_DEF = re.compile(r"^(\s*)def (\w+)\(")
_STRING = re.compile(r'^(m\d\d_e\d) = (r?)"""')


@dataclass(frozen=True)
class _Block:
    """One answer: its first and last line (those of the markers), counted from 0, and the name that it defines."""

    first: int
    last: int
    owner: str
    indent: str


def _blocks(text: str, where: str) -> Iterator[_Block]:
    first: int | None = None
    functions: list[tuple[str, str]] = []  # (indentation, name) of the functions that the line is inside
    string = ""
    for number, line in enumerate(text.split("\n")):
        stripped = line.strip()
        if found := _DEF.match(line):
            functions = [f for f in functions if len(f[0]) < len(found[1])] + [(found[1], found[2])]
        if opened := _STRING.match(line):
            string = opened[1]
        if stripped == BEGIN:
            if first is not None:
                raise InputError(f"{where}, line {number + 1}: a solution begins inside a solution.")
            first = number
        elif stripped == END:
            if first is None:
                raise InputError(f"{where}, line {number + 1}: a solution ends that never began.")
            indent = line[: len(line) - len(line.lstrip())]
            inside = [name for depth, name in functions if len(depth) < len(indent)]
            owner = inside[0] if indent and inside else string
            if not owner:
                raise InputError(
                    f"{where}, line {number + 1}: a solution must stand inside a function, or in the string of an open answer."
                )
            yield _Block(first, number, owner, indent)
            first = None
    if first is not None:
        raise InputError(f"{where}, line {first + 1}: a solution begins and never ends.")


def blanked(text: str, module: Module | None, where: str = "the source") -> str:
    """``text`` without its answers: what a student opens. ``where`` names the source in errors.

    Raises
    ------
    InputError
        The markers do not pair, or stand in something that is no task of ``module``.
    """
    tasks: dict[str, Task | Question] = {}
    if module is not None:
        tasks = {item.variable: item for item in module.items}
    lines = text.split("\n")
    blocks = list(_blocks(text, where))
    for block in reversed(blocks):
        item = tasks.get(block.owner)
        if item is None:
            raise InputError(
                f"{where}, line {block.first + 1}: {block.owner} is no task in exercises/. Add one, or rename it."
            )
        if isinstance(item, Question):
            blank = BLANK_ANSWER
        else:
            blank = f'{block.indent}raise NotImplementedError("{item.name}: replace this line with your answer")'
        lines[block.first : block.last + 1] = [blank]
    missing = sorted(set(tasks) - {block.owner for block in blocks})
    if missing:
        raise InputError(f"{where}: no solution for {', '.join(missing)}, which exercises/ asks for.")
    return "\n".join(lines)


def answered(text: str) -> str:
    """``text`` with its answers and without the markers around them."""
    return "\n".join(line for line in text.split("\n") if line.strip() not in (BEGIN, END))


def solution_ranges(text: str, where: str = "the source") -> dict[str, list[tuple[int, int]]]:
    """The lines of ``text`` (counted from 1, both ends included) that answer each function or string; ``where`` is for errors."""
    found: dict[str, list[tuple[int, int]]] = {}
    for block in _blocks(text, where):
        found.setdefault(block.owner, []).append((block.first + 2, block.last))
    return found


def solution_lines(text: str, where: str = "the source") -> set[str]:
    """Every line of every answer in ``text``, without the space around it; ``where`` is for errors."""
    lines = text.split("\n")
    return {
        line.strip() for block in _blocks(text, where) for line in lines[block.first + 1 : block.last] if line.strip()
    }


def with_headings(text: str, module: Module | None, where: str = "the source") -> str:
    """``text`` with each ``{{name}}`` replaced by its heading; ``where`` names the source in errors.

    Raises
    ------
    InputError
        ``module`` has no such task, or a task of it is announced nowhere.
    """
    if module is None:
        return text
    items = {item.name: item for item in module.items}
    used: set[str] = set()

    def heading(match: re.Match[str]) -> str:
        name = match[1]
        used.add(name)
        if name == module.name:
            worth = f"**About {module.minutes} minutes, {module.points} points.**"
            return f"{module.name} {module.title}\n#\n# {worth} Source: {module.source}."
        if name not in items:
            raise InputError(f"{where}: {{{{{name}}}}} is no task in exercises/.")
        item = items[name]
        kind = "Question" if isinstance(item, Question) else "Challenge" if item.is_bonus else "Task"
        bonus = "bonus " if kind == "Challenge" else ""
        points = f"{item.points} {bonus}point{'s' if item.points != 1 else ''}"
        head = f"{kind} {name}: {item.title} ({points}, about {item.minutes} minutes)"
        if isinstance(item, Question):
            body = "\n".join(f"# {line}".rstrip() for line in item.text.strip().splitlines())
            return f"{head}\n#\n{body}"
        return f"{head}\n#\n# <sub>Source: {item.source}.</sub>"

    done = _PLACEHOLDER.sub(heading, text)
    if silent := sorted({*items, module.name} - used):
        raise InputError(
            f"{where}: {', '.join(silent)} stand in exercises/ but are announced nowhere; write {{{{{silent[0]}}}}}."
        )
    return done


def task_signatures(text: str) -> dict[str, str]:
    """The first line of every top-level function of the Python ``text``, such as ``scale(w, bits)``, by its name."""
    return {
        node.name: f"{node.name}({ast.unparse(node.args)})"
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
