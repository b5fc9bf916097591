"""What a check found, shown as a coloured box in a notebook and as text anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

__all__ = ["CaseReport", "Feedback", "ModuleFeedback", "Status"]

Status = Literal["passed", "wrong", "error", "not attempted", "for a person"]

_SIGNS = {"passed": "✓", "wrong": "✗", "error": "✗", "not attempted": "○", "for a person": "●"}
_COLOURS = {
    "passed": "#15803d",
    "wrong": "#c2410c",
    "error": "#c2410c",
    "not attempted": "#64748b",
    "for a person": "#1d6fd1",
}


@dataclass(frozen=True)
class CaseReport:
    """One public case that did not pass: its kind, the call, and what was wrong with the result.

    ``inputs`` are (name, shortened value). ``place`` is where in the result, '' for the whole of it; ``line`` is the student's
    own line for an error, '' otherwise.
    """

    kind: str
    about: str
    inputs: tuple[tuple[str, str], ...]
    message: str
    place: str = ""
    expected: str = ""
    got: str = ""
    line: str = ""


@dataclass(frozen=True)
class Feedback:
    """What the public cases of one task say about one function. It displays itself; `passed` is the short of it.

    ``kinds`` are (name, passed, cases) of each kind of public case, ``hidden`` the (name, about) of kinds without one.
    """

    task: str
    title: str
    status: Status
    points: int
    is_bonus: bool
    kinds: tuple[tuple[str, int, int], ...] = ()
    hidden: tuple[tuple[str, str], ...] = ()
    failure: CaseReport | None = None
    hint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every public case passed."""
        return self.status == "passed"

    @property
    def counts(self) -> tuple[int, int]:
        """Public cases that passed, and all of them."""
        return sum(passed for _, passed, _ in self.kinds), sum(cases for _, _, cases in self.kinds)

    @property
    def headline(self) -> str:
        """One line: the task and what is to be said of it."""
        passed, cases = self.counts
        said = {
            "passed": f"all {cases} public cases pass",
            "wrong": f"{passed} of {cases} public cases pass",
            "error": f"{passed} of {cases} public cases pass, and your function raised an error",
            "not attempted": "not attempted yet",
            "for a person": self.notes[0] if self.notes else "an answer for a person to read",
        }[self.status]
        return f"{self.task} {self.title}: {said}"

    @property
    def worth(self) -> str:
        """The points, and who gives them."""
        bonus = "bonus " if self.is_bonus else ""
        points = f"{self.points} {bonus}point{'s' if self.points != 1 else ''}"
        if self.status == "for a person":
            return f"Worth {points}, given by a person who reads it."
        return f"Worth {points}. The mark comes from other cases of the same kinds, which are drawn anew for grading."

    @property
    def sign(self) -> str:
        """A tick, a cross or a ring."""
        return _SIGNS[self.status]

    @property
    def colour(self) -> str:
        """The colour of the box, as in CSS."""
        return _COLOURS[self.status]

    def __str__(self) -> str:
        lines = [f"{self.sign} {self.headline}"]
        if failure := self.failure:
            lines.append(f"  First failing case ({failure.kind}: {failure.about}):")
            lines += [f"    {name} = {value}" for name, value in failure.inputs]
            lines.append(f"  {failure.message}")
            if failure.line:
                lines.append(f"    {failure.line}")
            if failure.expected or failure.got:
                at = f" at {failure.place}" if failure.place else ""
                lines += [f"    expected{at}: {failure.expected}", f"    got{at}:      {failure.got}"]
        if self.hint:
            lines.append(f"  Hint: {self.hint}")
        if self.hidden and self.status != "for a person":
            lines.append(f"  The mark also counts cases that are not shown: {self._hidden}.")
        lines += [f"  Note: {note}" for note in self.notes if self.status != "for a person"]
        lines.append(f"  {self.worth}")
        return "\n".join(lines)

    @property
    def _hidden(self) -> str:
        return "; ".join(f"{name} ({about})" for name, about in self.hidden)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _template("feedback.html", f=self)


@dataclass(frozen=True)
class ModuleFeedback:
    """What the public cases of a whole module say, one `Feedback` for each task and question."""

    module: str
    title: str
    items: tuple[Feedback, ...]

    @property
    def passed(self) -> bool:
        """Whether every task that is no challenge passed its public cases."""
        return all(item.passed for item in self.items if item.status != "for a person" and not item.is_bonus)

    def __str__(self) -> str:
        details = [str(item) for item in self.items if item.status in ("wrong", "error")]
        overview = [f"{item.sign} {item.headline}" for item in self.items]
        return "\n".join([f"{self.module} {self.title}", *overview, *(["", *details] if details else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _template("module_feedback.html", m=self)


def _template(name: str, **values: Any) -> str:
    return str(_environment().get_template(name).render(**values))


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("labkit.course", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
