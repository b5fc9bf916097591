"""How long a submission may run into its limits: one slow case costs that case, and loops everywhere end soon."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from labkit.grading import collecting
from labkit.grading.collecting import Parcel, collected
from labkit.grading.isolation import Isolation
from labkit.grading.kit import Kit
from labkit.grading.outcomes import Outcome
from labkit.grading.worker import Asked, Reply


class Clock:
    """Stands for a worker: cases numbered in ``slow`` take all the time that they get, the others none."""

    slow: frozenset[int] = frozenset()
    spent: ClassVar[list[float]] = []

    def __init__(self, *_: object) -> None:
        type(self).spent = []

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, asked: Asked, number: int, seconds: float) -> Reply:
        if number not in self.slow:
            return Reply(None, number)
        self.spent.append(seconds)
        return Reply(Outcome.TIMEOUT)


def run(monkeypatch: pytest.MonkeyPatch, slow: set[int], tasks: int = 10, cases: int = 12) -> dict[str, list[Reply]]:
    monkeypatch.setattr(collecting, "Worker", Clock)
    monkeypatch.setattr(Clock, "slow", frozenset(slow))
    asked = tuple(Asked(f"m90.q{n}", "f", (), 2.0, ({},) * cases) for n in range(tasks))
    replies = collected(Parcel("", asked), Isolation("none", ""), Kit(Path(), ()))
    return {task: list(of_task) for task, of_task in replies.items()}


def test_one_slow_case_costs_that_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for replies in run(monkeypatch, {3}).values():
        assert [reply.outcome for reply in replies].count(Outcome.TIMEOUT) == 1
        assert replies[3].outcome is Outcome.TIMEOUT
        assert len(replies) == 12


def test_loops_in_every_task_end_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = run(monkeypatch, set(range(12)))
    assert sum(Clock.spent) <= 10 + 1e-9
    assert {reply.outcome for of_task in replies.values() for reply in of_task} == {Outcome.TIMEOUT}
    assert {len(of_task) for of_task in replies.values()} == {12}, "every case has an outcome"
    assert "Not tried" in replies["m90.q9"][-1].message
