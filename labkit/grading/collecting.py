"""Runs one student's source on the cases of a module and brings back values; knows neither what is right nor what it is worth.

This is the part of grading that may happen on another machine.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from labkit.grading.isolation import Isolation
from labkit.grading.kit import Kit, library_for
from labkit.grading.outcomes import Outcome
from labkit.grading.pool import Pool
from labkit.grading.worker import Asked, Reply, Worker

__all__ = ["Parcel", "collected"]


@dataclass(frozen=True)
class Parcel:
    """What a worker needs for one submission: plain data.

    Parameters
    ----------
    source : the student's definitions
    asked : the tasks whose functions it defines, with their cases
    patience : seconds of the wall clock for one case, or None for the usual
    """

    source: str
    asked: tuple[Asked, ...]
    patience: float | None = None


def collected(parcel: Parcel, level: Isolation, kit: Kit, pool: Pool | None = None) -> dict[str, Sequence[Reply]]:
    """The replies to every case of ``parcel`` by task, from a worker in ``level`` with ``kit``; forked, where ``pool`` can."""
    found: dict[str, Sequence[Reply]] = {}
    late = 0
    with Worker(level, kit, parcel.source, _imports(parcel, kit), parcel.patience, pool) as worker:
        for asked in parcel.asked:
            found[asked.task] = _replies(worker, asked, late)
            late += sum(reply.outcome is Outcome.TIMEOUT and not reply.message for reply in found[asked.task])
    return found


_PATIENT = 3
"""Cases of a submission that may run into their limit before it gets shorter."""
_SHORT = 0.1
"""The share of its time that a case gets after that: still many times what a right answer needs.

With two seconds a case, a loop in each of ten tasks ends within 10 s.
"""


def _replies(worker: Worker, asked: Asked, late: int) -> list[Reply]:
    """The replies to one task, when ``late`` cases of the submission have run into their limit before.

    One slow case costs that case. After the second one of a task its others are not tried.
    """
    replies: list[Reply] = []
    here = 0
    for number in range(len(asked.inputs)):
        patient = late + here < _PATIENT
        if here >= 2:
            replies.append(Reply(Outcome.TIMEOUT, message="Not tried: other cases of this task took too long."))
            continue
        reply = worker.ask(asked, number, asked.seconds if patient else _SHORT * asked.seconds)
        if number == 0 and reply.outcome is Outcome.NOT_ATTEMPTED:  # a blank stays one
            return [reply] * len(asked.inputs)
        here += reply.outcome is Outcome.TIMEOUT
        replies.append(reply)
    return replies


def _imports(parcel: Parcel, kit: Kit) -> set[str]:
    """The libraries that the source of ``parcel`` imports, and what its tasks are given and handed, wherever it does."""
    given = {text for asked in parcel.asked for text, _ in library_for(asked.given, asked.inputs, kit.files).values()}
    return {name for text in (parcel.source, *given) for name in _imported(text)}


@lru_cache(256)
def _imported(source: str) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return frozenset(found)
