"""The judges by name, and a judge from its description in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.course.judges.allocation import BestPlanWithin, GreedyTrap
from labkit.course.judges.base import Judge
from labkit.course.judges.structural import BestPlan, RoundingChoice
from labkit.course.judges.values import Close, Exact, Fields, Items
from labkit.errors import InputError

__all__ = ["judge_of"]

_JUDGES: dict[str, type[Any]] = {
    judge.kind: judge for judge in (Exact, Close, Items, Fields, RoundingChoice, BestPlan, BestPlanWithin, GreedyTrap)
}


def judge_of(description: Mapping[str, Any]) -> Judge:
    """The judge that `labkit.course.judges.base.described` described.

    Raises
    ------
    InputError
        There is no such judge.
    """
    values = dict(description)
    kind = values.pop("judge", None)
    if kind not in _JUDGES:
        raise InputError(f"There is no judge {kind!r}; there are {', '.join(_JUDGES)}.")
    judge: Judge = _JUDGES[kind](**{name: _value(value) for name, value in values.items()})
    return judge


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(item) for item in value)
    return judge_of(value) if isinstance(value, dict) and "judge" in value else value
