"""Pairs are timed in turns, each sample after an untimed call, and the ratio is taken turn by turn."""

from __future__ import annotations

import hashlib
import threading

import pytest

from labkit.benchmark import timing

MILLISECOND = 1_000_000


class Clock:
    """A clock that only moves when a contestant works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.order: list[str] = []
        monkeypatch.setitem(timing._CLOCKS, timing.CPU, lambda: self.now)

    def contestant(self, name: str, *costs: float) -> timing.Call:
        """Takes ``costs`` milliseconds call after call; the last one for ever."""
        left = list(costs)

        def call() -> None:
            self.order.append(name)
            cost = left.pop(0) if len(left) > 1 else left[0]
            self.now += round(cost * MILLISECOND)

        return call


def test_ratio_is_theirs_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ours, theirs = clock.contestant("ours", 4.0), clock.contestant("theirs", 10.0)
    paired = timing.time_pair(ours, theirs, timing.CPU, 6, 60.0)
    assert (paired.ours_ms, paired.theirs_ms, paired.ratio, paired.p10, paired.p90) == (4.0, 10.0, 2.5, 2.5, 2.5)
    assert paired.rounds == 6
    assert paired.clock == timing.CPU


def test_median_and_spread_are_of_the_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    warm_up = [4.0] * 4  # three calls, and one that says how many make a sample
    ours = clock.contestant("ours", *warm_up, *[4.0] * 5 * 2)
    turns = [
        cost for ratio in (1, 2, 3, 4, 5) for cost in (99.0, 4.0 * ratio)
    ]  # the untimed call may cost what it likes
    paired = timing.time_pair(ours, clock.contestant("theirs", *warm_up, *turns), timing.CPU, 5, 60.0)
    assert paired.ratio == pytest.approx(3.0)
    assert (paired.p10, paired.p90) == pytest.approx((1.4, 4.6))


def test_turns_alternate_and_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timing.time_pair(clock.contestant("a", 1.0), clock.contestant("b", 30.0), timing.CPU, 3, 60.0)
    sample_a, sample_b = ["a"] * 4, ["b"] * 2  # three calls of 1 ms make a sample, and one goes before
    assert clock.order[8:] == sample_a + sample_b + sample_b + sample_a + sample_a + sample_b


def test_time_limit_leaves_five_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    paired = timing.time_pair(clock.contestant("a", 4.0), clock.contestant("b", 4.0), timing.CPU, 1000, 0.0)
    assert paired.rounds == 5


def test_work_in_other_threads_is_timed_by_the_wall() -> None:
    block = bytes(4_000_000)  # some milliseconds, without the interpreter's lock

    def elsewhere() -> None:
        worker = threading.Thread(target=lambda: hashlib.sha256(block).digest())
        worker.start()
        worker.join()

    def here() -> None:
        hashlib.sha256(block).digest()

    assert timing.clock_for([here], 1) == timing.CPU
    assert timing.clock_for([here, elsewhere], 1) == timing.WALL
    assert timing.clock_for([here], 2) == timing.WALL
