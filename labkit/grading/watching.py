"""Looks at the processes of a worker from outside while it is waited for: how much memory they hold, whether they do anything."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

__all__ = ["TICK", "Watch", "children_of", "descendants_of"]

TICK = 0.25
"""Seconds from one look to the next."""

_MEMORY = 4 << 30  # bytes of all processes of a worker together, without what they share with files
_IDLE_SECONDS = 20.0  # without a tick of the processor: asleep, stopped, or waiting for what never comes
_DOING = 0.03  # processor seconds that count as doing something


class Watch:
    """Watches the process ``pid`` and all below it, for one case. Where there is no /proc it sees nothing and allows all.

    ``seconds`` of processor time are allowed to all of them together: those that are deaf to their own limit, too.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._first: float | None = None
        self._used = -1.0
        self._since = time.monotonic()

    def look(self) -> None:
        """Look once.

        Raises
        ------
        MemoryError
            The processes hold too much together.
        TimeoutError
            They have done nothing for long.
        """
        found = [self._pid, *descendants_of(self._pid)] if sys.platform == "linux" else []
        if sum(map(_memory, found)) > _MEMORY:
            raise MemoryError
        used, now = sum(map(_processor, found)), time.monotonic()
        self._first = used if self._first is None else min(self._first, used)
        if used - self._first > self._seconds:
            raise TimeoutError("it ran on beyond its limit")
        if not found or abs(used - self._used) > _DOING:
            self._used, self._since = used, now
        elif now - self._since > _IDLE_SECONDS:
            raise TimeoutError(f"nothing happened for {_IDLE_SECONDS:g} s")


def children_of(pid: int) -> list[int]:
    """The children of the process ``pid``; none where it is gone, or where that cannot be known."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """All processes below ``pid``."""
    found, waiting = [], [pid]
    while waiting:
        below = children_of(waiting.pop())
        found += below
        waiting += below
    return found


def _memory(pid: int) -> int:
    total = 0
    with suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total


def _processor(pid: int) -> float:
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
