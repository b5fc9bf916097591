"""Any number of threads gives the integers of one, and no thread that gets no processor holds up another."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref

import numba
import numpy as np
import pytest

from labkit.engine import team as team_module
from labkit.engine.team import Team
from labkit.errors import InputError
from labkit.kernels.fast.shares import share
from labkit.kernels.program import Call, make_program, walk

compiled = numba.njit(nogil=True, error_model="numpy")
SOON = 60.0  # seconds in which what must happen at some time is expected to happen on a loaded machine


@compiled
def mix(part, parts, images, x, y, scratch, seed, work):
    """Every element of ``y`` needs elements of ``x`` that other parts have written; ``scratch`` is used by one thread."""
    size = x.shape[0]
    first, end = share(size, part, parts)
    for i in range(first, end):
        value = x[size - 1 - i] * 3 + x[i * 7 % size] * 5 + seed + images
        for _ in range(work):
            value = value * 6364136223846793005 + 1442695040888963407
        scratch[i - first] = value
    for i in range(first, end):
        y[i] = scratch[i - first] ^ (x[i] >> 3)
    return 0


def expected_mix(x, seed, images, work):
    size = x.shape[0]
    value = x[::-1] * 3 + x[np.arange(size) * 7 % size] * 5 + seed + images
    for _ in range(work):
        value = value * 6364136223846793005 + 1442695040888963407
    return value ^ (x >> 3)


@compiled
def complain(part, parts, images, log, broken, raised):
    """Break a bound at element ``broken``, raise an exception at element ``raised``."""
    first, end = share(log.shape[0], part, parts)
    found = 0
    for i in range(first, end):
        log[i] += 1
        if i == raised:
            raise ValueError("planted")
        found += 7 * (i == broken)
    return found


@compiled
def dawdle(part, parts, images, spins):
    """Take ten times as long in the second part as in the first."""
    value = 1
    for i in range(spins * (1 + 9 * part)):
        value = (value * 6364136223846793005 + i) ^ (value >> 7)
    return 0 if value != 0 else -1


def mixing_program(rng, threads, size, parts, work=0):
    """A program of as many calls as there are ``parts``, its input, its output and what `expected_mix` wants."""
    x, seeds = [np.zeros(size, np.int64) for _ in range(3)], rng.integers(0, 2**40, len(parts)).tolist()
    x[0][:] = rng.integers(-(2**62), 2**62, size)
    scratch = [np.zeros(size, np.int64) for _ in range(threads)]
    calls = [
        Call(f"call {i}", mix, tuple((x[i and 1 + i % 2], x[1 + (i + 1) % 2], own, seed, work) for own in scratch), of)
        for i, (seed, of) in enumerate(zip(seeds, parts, strict=True))
    ]
    return make_program(calls), x[0], x[1 + len(parts) % 2], seeds, work


def assert_right(program, x, y, seeds, work, run, images):
    y[:] = 0
    assert run(program, images) == -1
    for seed in seeds:
        x = expected_mix(x, seed, images, work)
    assert np.array_equal(x, y)


def heavy_program(threads=2):
    """Some 30 calls of 100 us, which any helper that has a processor takes part in."""
    return mixing_program(np.random.default_rng(1), threads, 256, [8] * 30, work=400)[0]


def wait_until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def parts_done(team):
    """By each helper."""
    return [int(team._crew.words_of(helper)[team_module._COUNT // 8]) for helper in range(team.threads - 1)]


def sleepers(team):
    return int(team._crew.words[team_module._SLEEPERS // 8])


def help_was_had(team, program):
    before = sum(parts_done(team)) if team._crew else 0
    team.run(program, 1)
    return sum(parts_done(team)) > before


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_random_programs_give_the_integers_of_one_thread(threads, count):
    team, rng = Team(threads), np.random.default_rng(threads)
    for images in range(count):
        parts = rng.integers(1, 9, rng.integers(1, 12)).tolist()
        program, *rest = mixing_program(rng, threads, int(rng.integers(1, 40)), parts)
        for run in (team.run, walk, team.run):
            assert_right(program, *rest, run, images)


@pytest.mark.parametrize("threads", [2, 4])
def test_the_same_program_many_times(threads):
    """Back to back, so that helpers come late to most calls, and at intervals after which they sleep."""
    team, rng = Team(threads), np.random.default_rng(threads)
    program, *rest = mixing_program(rng, threads, 64, [2, 3, 1, 4095, 4, 1, 5, 64], work=5)
    for images in range(300):
        assert_right(program, *rest, team.run, images)
        if images % 100 == 50:
            wait_until(lambda: sleepers(team) == threads - 1)


def test_helpers_take_part_again_after_they_slept():
    team, program = Team(2), heavy_program()
    for _ in range(3):
        wait_until(lambda: help_was_had(team, program))
        wait_until(lambda: sleepers(team) == 1)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("at", [0, 3])
def test_the_call_that_broke_a_bound_is_told_and_is_the_last(threads, parts, at):
    team, logs = Team(threads), np.zeros((6, 9), np.int64)
    for broken in range(9):
        logs[...] = 0
        arguments = [(logs[i], broken if i == at else -1, -1) for i in range(6)]
        program = make_program([Call("", complain, (a,) * threads, parts) for a in arguments])
        assert team.run(program, 1) == at
        assert logs[: at + 1].tolist() == [[1] * 9] * (at + 1)
        assert logs[at + 1 :].sum() == 0


@pytest.mark.parametrize("raised", range(5))
def test_an_exception_in_any_thread_is_told(raised):
    """Also where another part breaks a bound, so that what is told does not depend on who was first."""
    team, log = Team(3), np.zeros(5, np.int64)
    arguments = (log, (raised + 1) % 5, raised)
    program = make_program([Call("conv3", complain, (arguments,) * 3, 5)])
    for _ in range(50):
        with pytest.raises(RuntimeError, match="conv3: its compiled kernel raised an exception"):
            team.run(program, 1)
    assert_right(*mixing_program(np.random.default_rng(0), 3, 30, [5, 5]), team.run, 1)


def test_a_program_for_too_few_threads_is_refused():
    with pytest.raises(InputError, match="arguments for 2 threads and the team has 3"):
        Team(3).run(heavy_program(threads=2), 1)
    with pytest.raises(InputError, match="threads: got 0"):
        Team(0)


# Helpers that get no processor


def test_helpers_that_never_start_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(team_module._Crew, "start", lambda crew: None)
    team, rng = Team(4), np.random.default_rng(0)
    for images in range(50):
        assert_right(*mixing_program(rng, 4, 100, [8, 1, 3, 8]), team.run, images)


def test_a_helper_that_never_wakes_is_not_waited_for():
    team, rng = Team(2), np.random.default_rng(0)
    team.run(heavy_program(), 1)
    wait_until(lambda: sleepers(team) == 1)
    team._crew.words_of(0)[team_module._ASLEEP // 8] = 0  # so that everybody takes it to be awake
    team._crew.words[team_module._SLEEPERS // 8] = 0
    before = parts_done(team)
    for images in range(50):
        assert_right(*mixing_program(rng, 2, 100, [8, 1, 3, 8]), team.run, images)
    assert parts_done(team) == before


def test_threads_that_cannot_be_had_are_done_without(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    team = Team(3)
    with pytest.warns(RuntimeWarning, match="1 threads run instead of 3: can't start new thread"):
        assert_right(*mixing_program(np.random.default_rng(0), 3, 100, [8, 3]), team.run, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(*mixing_program(np.random.default_rng(0), 3, 100, [8, 3]), team.run, 1)


def test_a_caller_who_was_kept_waiting_works_alone_for_a_while():
    team, program = Team(2), make_program([Call("", dawdle, ((300_000,),) * 2, 2)])
    alone_until = team_module._ALONE_UNTIL // 8

    def was_kept_waiting():
        team.run(program, 1)
        return team._crew.words[alone_until] != 0

    wait_until(was_kept_waiting)
    before = parts_done(team)
    assert_right(*mixing_program(np.random.default_rng(0), 2, 100, [8] * 20, work=10), team.run, 1)
    assert parts_done(team) == before
    team._crew.words[alone_until] = 1  # a time long past
    wait_until(lambda: help_was_had(team, heavy_program()))
    assert parts_done(team) > before


# Callers and processes


@pytest.mark.parametrize("has_own_teams", [True, False])
def test_several_threads_may_run_programs(has_own_teams):
    shared, failures = Team(2), []

    def call(number):
        try:
            team, rng = Team(2) if has_own_teams else shared, np.random.default_rng(number)
            for images in range(100):
                assert_right(*mixing_program(rng, 2, 50, [4, 1, 3, 8], work=20), team.run, images)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_team_that_is_taken_is_not_waited_for():
    team, rng = Team(2), np.random.default_rng(0)
    program, *rest = mixing_program(rng, 2, 50, [4, 3])
    caller = threading.Thread(target=team.run, args=(program, 1), daemon=True)
    with team._is_taken:
        caller.start()
        caller.join(SOON)
        assert not caller.is_alive()
    assert team._crew is None
    assert_right(program, *rest, team.run, 1)
    assert team._crew is not None


def test_no_helpers_are_made_where_nothing_is_divided():
    team = Team(4)
    assert_right(*mixing_program(np.random.default_rng(0), 4, 50, [1, 1]), team.run, 1)
    assert team._crew is None


def test_helpers_leave_with_their_team():
    team = Team(4)
    team.run(heavy_program(threads=4), 1)
    threads, crew = team._crew.threads, weakref.ref(team._crew)
    assert len(threads) == 3 and all(thread.is_alive() for thread in threads)
    del team
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    wait_until(lambda: gc.collect() is not None and crew() is None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_helpers_of_its_own():
    team, rng = Team(2), np.random.default_rng(0)
    program, *rest = mixing_program(rng, 2, 256, [8] * 30, work=400)
    wait_until(lambda: help_was_had(team, program))
    team._is_taken.acquire()  # as another thread may have done at the moment of the fork
    child = os.fork()
    if child == 0:
        code = 1
        try:
            wait_until(lambda: help_was_had(team, program))
            assert_right(program, *rest, team.run, 1)
            code = 0
        finally:
            os._exit(code)
    team._is_taken.release()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    wait_until(lambda: help_was_had(team, program))


EXIT = """
import atexit, sys, threading, time
atexit.register(lambda: print(sum(thread.name.startswith("labkit") for thread in threading.enumerate())))  # the last thing
sys.path[:0] = {path!r}
from unit.engine.test_team import heavy_program
from labkit.engine.team import Team

teams, program = [Team(3) for _ in range(3)], heavy_program(3)
for team in teams:
    team.run(program, 1)
print(sum(thread.name.startswith("labkit") for thread in threading.enumerate()))
{end}
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "time.sleep(0.05)",  # helpers are asleep
        "teams = None",
        "teams = team = None",  # told to leave, and not yet gone
        "threading.Thread(target=lambda: [teams[0].run(program, 1) for _ in range(10**9)], daemon=True).start()",
        "atexit.register(teams[0].run, program, 1)",
    ],
)
def test_the_process_ends(end):
    tests = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = EXIT.format(path=[os.path.dirname(tests), tests], end=end)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["6", "0"]
