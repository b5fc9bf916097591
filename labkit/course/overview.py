"""The tables of the instructors' guide, made from what ``exercises/`` says."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.course.tasks import Module, Question
from labkit.errors import InputError

__all__ = ["overview", "with_overview"]

_BEGIN, _END = "<!-- table: labkit course build -->", "<!-- end of table -->"


def overview(modules: Sequence[Module]) -> str:
    """Markdown: a table of the ``modules``, then one of every task and question."""
    lines = ["| module | title | tasks | points | bonus | minutes | source |", "|---|---|---|---|---|---|---|"]
    for m in modules:
        tasks = [task for task in m.tasks if not task.is_bonus]
        bonus = sum(task.points for task in m.tasks if task.is_bonus)
        count = f"{len(tasks)} and {len(m.questions)} open questions"
        lines.append(
            f"| {m.name} | {_cell(m.title)} | {count} | {m.points} | {bonus} | {m.minutes} | {_cell(m.source)} |"
        )
    items, points, minutes = (sum(x) for x in zip(*((len(m.items), m.points, m.minutes) for m in modules), strict=True))
    lines.append(f"| all | | {items} | {points} | | {minutes} | |")
    lines += [
        "",
        "| task | what | points | minutes | kinds of cases | given of labkit | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in modules:
        for item in m.items:
            if isinstance(item, Question):
                lines.append(
                    f"| {item.name} | {_cell(item.title)} | {item.points} | {item.minutes} | read by a person | | |"
                )
                continue
            kinds = ", ".join(f"{kind.name}{'' if kind.public else ' (hidden)'}" for kind in item.kinds)
            given = ", ".join(f"`{name.rsplit('.', 1)[-1]}`" for name in item.given)
            points = f"+{item.points}" if item.is_bonus else str(item.points)
            what = f"{_cell(item.title)}: `{item.function}`"
            lines.append(
                f"| {item.name} | {what} | {points} | {item.minutes} | {kinds} | {given} | {_cell(item.source)} |"
            )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def with_overview(page: str, modules: Sequence[Module]) -> str:
    """``page`` with what stands between the marks of its table replaced by the `overview` of ``modules``.

    Raises
    ------
    InputError
        The page has no such marks.
    """
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise InputError(f"docs/course.md has lost the marks of its table; put {_BEGIN} and {_END} back.")
    return f"{head}{_BEGIN}\n{overview(modules)}\n{_END}{tail}"
