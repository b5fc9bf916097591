"""Time two functions in turns and look at the ratio of each turn.

A machine is never quite still: a neighbour takes a core, the clock rate moves. Both functions of a pair meet the same
disturbance, so the ratio of two samples taken one after the other moves far less than either time. Each sample comes
after one untimed call, so that nobody pays for the caches that the other has filled.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["CPU", "WALL", "Paired", "clock_for", "time_pair"]

CPU = "CPU time of the calling thread"
WALL = "wall time"
_CLOCKS: dict[str, Callable[[], int]] = {CPU: time.thread_time_ns, WALL: time.perf_counter_ns}

_SAMPLE_NS = 3_000_000  # short calls are repeated until a sample lasts about this long
_FEWEST_ROUNDS = 5
_TRIES = 3  # a progress bar that is drawn meanwhile must not look like a contestant's second thread
_ELSEWHERE = 1.1  # a process that uses more CPU than the calling thread by this factor works in other threads too

Call = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """One pair: medians of both times in milliseconds, and the ratio theirs / ours with its 10th and 90th percentile.

    busy : wall time over CPU time of our samples; well above 1 says that others were using the machine.
    """

    ours_ms: float
    theirs_ms: float
    ratio: float
    p10: float
    p90: float
    rounds: int
    clock: str
    busy: float


def clock_for(calls: list[Call], threads: int) -> str:
    """CPU time, if ``threads`` is 1 and each of ``calls`` does all its work on the thread that calls it; else wall time."""
    if threads != 1:
        return WALL
    if any(min(_elsewhere(call) for _ in range(_TRIES)) > _ELSEWHERE for call in calls):
        return WALL
    return CPU


def _elsewhere(call: Call) -> float:
    """CPU time of the whole process over that of this thread while ``call`` is called for a few milliseconds."""
    call()
    here, everywhere = time.thread_time_ns(), time.process_time_ns()
    while time.thread_time_ns() - here < _SAMPLE_NS:
        call()
    return (time.process_time_ns() - everywhere) / max(time.thread_time_ns() - here, 1)


def time_pair(ours: Call, theirs: Call, clock: str, rounds: int, seconds: float) -> Paired:
    """Call ``ours`` and ``theirs`` in turns.

    ``clock`` is `CPU` or `WALL`. There are ``rounds`` rounds, fewer where they would take more than ``seconds``, but five
    at the least (or ``rounds``, if that is fewer); who comes first alternates.
    """
    now = _CLOCKS[clock]
    repeats = {call: _repeats(call, now) for call in (ours, theirs)}
    samples: dict[Call, list[float]] = {ours: [], theirs: []}
    busy = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.monotonic()
        for index in range(rounds):
            if index >= _FEWEST_ROUNDS and time.monotonic() - started > seconds:
                break
            for call in (ours, theirs) if index % 2 == 0 else (theirs, ours):
                call()
                wall, thread, begun = time.perf_counter_ns(), time.thread_time_ns(), now()
                for _ in range(repeats[call]):
                    call()
                samples[call].append((now() - begun) / repeats[call] / 1e6)
                if call is ours:
                    thread_used = max(time.thread_time_ns() - thread, 1)
                    busy.append((time.perf_counter_ns() - wall) / thread_used)
    finally:
        if collecting:
            gc.enable()
    mine, other = np.array(samples[ours]), np.array(samples[theirs])
    ratios = other / mine
    p10, p90 = np.percentile(ratios, [10, 90])
    return Paired(
        float(np.median(mine)),
        float(np.median(other)),
        float(np.median(ratios)),
        float(p10),
        float(p90),
        len(ratios),
        clock,
        float(np.median(busy)),
    )


def _repeats(call: Call, now: Callable[[], int]) -> int:
    """How many calls make a sample; this is the warm-up too."""
    for _ in range(3):
        call()
    begun = now()
    call()
    return max(1, round(_SAMPLE_NS / max(now() - begun, 1)))
