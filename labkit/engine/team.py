"""`Team`: persistent threads that help with the calls of a program which are divided into parts.

The caller walks the program. It *offers* the parts of a divided call by writing one word: the range of parts not yet
taken. The caller takes the lowest of them, a helper the highest, each by an atomic compare-and-swap of that word. So
each thread mostly meets the rows of an image that it wrote in the call before.

The caller does not go on before every part that was taken is done, and a helper looks at nothing but the offer until it
has taken a part: then the rest of what it reads belongs to the call on offer, however late it came. Two things follow.
No helper ever looks at a program whose run is over. And the caller never waits for a helper that has taken nothing: if
the helpers get no processor, it does everything itself.

A helper that finds nothing to take for a while sleeps until the next offer.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
import weakref
from functools import cache

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.kernels.atomics import (
    add_word,
    drop_gate,
    load_word,
    nanoseconds,
    new_gate,
    open_gate,
    open_gate_from_python,
    or_word,
    pause,
    replace_word,
    sleep_at_gate,
    store_word,
    wait_at_gate,
    yield_processor,
)
from labkit.kernels.jit import entry_point, jit
from labkit.kernels.program import PARTS_IN_ROW, PARTS_MOST, ROW_BYTES, Program, call_row, walk, without_outcome

__all__ = ["Team", "team_of"]

PATIENCE = 100e-6  # seconds for which a helper looks for a part before it sleeps; to wake it takes a few microseconds
_LOOKS_PER_YIELD = 256  # some 10 us; the caller may be waiting for the very processor on which a helper looks

# A helper that has lost its processor in the middle of a part keeps the caller waiting for milliseconds. He knows it by
# the time: a part should not take much longer than his own. He then sleeps, which frees his processor for the helper,
# and works alone for some time after, so that little is lost where helpers often lose their processor.
_GRACE = 50_000  # nanoseconds, beside twice the time of one of his parts
_LOOKS_PER_TIME = 64
_NAP = 50  # microseconds
_REST = 10  # times as long as he was kept waiting: so he loses at most a tenth

_LAST_WAIT = 1.0  # seconds that the end of the process may be held up by a helper that gets no processor

# Byte offsets of the words of a team. Two cache lines for what different threads write: processors fetch lines in pairs.
_OFFER = 0  # first part not taken << _PART_BITS | end of those not taken
_STOP = 8  # 1: helpers leave
_SLEEPERS = 128  # how many helpers sleep
_DONE = 256  # how many parts helpers have finished
_TROUBLE = 264  # _BROKEN, _RAISED or both, of the parts that helpers have done
_ROW = 384  # address of the row of the caller's table
_STRIDE = 392  # bytes from one thread's table to the next
_IMAGES = 400
_ALONE_UNTIL = 408  # nanoseconds; 0 if the caller is not working alone
_CALLERS_GATE = 416
_HELPERS = 512  # words of the first helper, then of the second, ...
_HELPER_BYTES = 128
_ASLEEP, _GATE, _COUNT = 0, 8, 16  # of each helper: 1 while it sleeps, its gate, the parts that it has done

_BROKEN, _RAISED = 1, 2

_PART_BITS = 30
_PART_MASK = PARTS_MOST
_ONE_TAKEN = 1 << _PART_BITS  # what taking the first part adds to an offer; taking the last subtracts 1


@jit
def _lead(team: int, helpers: int, table: int, length: int, images: int) -> int:
    """The caller's walk over a program: -1, the index i of a call that broke a bound, or -2 - i if it raised."""
    for call in range(length):
        row = table + ROW_BYTES * call
        parts = load_word(row + PARTS_IN_ROW)
        if parts > 1 and load_word(team + _ALONE_UNTIL) != 0:
            if nanoseconds() < load_word(team + _ALONE_UNTIL):
                parts = 1
            else:
                store_word(team + _ALONE_UNTIL, 0)
        if parts > 1:
            store_word(team + _ROW, row)
            store_word(team + _STRIDE, ROW_BYTES * length)
            store_word(team + _IMAGES, images)
            store_word(team + _DONE, 0)
            store_word(team + _TROUBLE, 0)
            store_word(team + _OFFER, _ONE_TAKEN + parts)  # part 0 is taken already
            if load_word(team + _SLEEPERS) != 0:
                wanted = parts - 1
                for words in range(team + _HELPERS, team + _HELPERS + _HELPER_BYTES * helpers, _HELPER_BYTES):
                    if wanted > 0 and load_word(words + _ASLEEP) == 1 and replace_word(words + _ASLEEP, 1, 0):
                        add_word(team + _SLEEPERS, -1)
                        open_gate(load_word(words + _GATE))
                        wanted -= 1
            start = nanoseconds()
        else:
            start = 0
        part, mine, trouble = 0, 0, 0
        while part < parts:
            outcome = call_row(row, part, parts, images)
            if outcome != 0:
                trouble |= _BROKEN if outcome > 0 else _RAISED
            mine += 1
            part = parts
            while parts > 1:
                offer = load_word(team + _OFFER)
                if offer >> _PART_BITS >= offer & _PART_MASK:
                    break
                if replace_word(team + _OFFER, offer, offer + _ONE_TAKEN):
                    part = offer >> _PART_BITS
                    break
        if mine < parts:
            now = end = nanoseconds()
            latest = end + _GRACE + 2 * (end - start) // mine
            looks = 0
            while load_word(team + _DONE) != parts - mine:
                looks += 1
                if now > latest:
                    sleep_at_gate(load_word(team + _CALLERS_GATE), _NAP)
                elif looks % _LOOKS_PER_TIME == 0:
                    now = nanoseconds()
                else:
                    pause()
            if now > latest:
                now = nanoseconds()
                store_word(team + _ALONE_UNTIL, now + _REST * (now - end))
            trouble |= load_word(team + _TROUBLE)
        if trouble != 0:
            return -2 - call if trouble & _RAISED else call
    return -1


@jit
def _help(team: int, helper: int, patience: int, sleeps: int) -> None:
    """The life of a helper until it is told to stop, or, if it never ``sleeps``, until it has looked in vain so often."""
    words = team + _HELPERS + _HELPER_BYTES * helper
    idle = 0
    while load_word(team + _STOP) == 0:
        offer = load_word(team + _OFFER)
        part = (offer & _PART_MASK) - 1
        if part >= offer >> _PART_BITS:
            idle = 0
            if replace_word(team + _OFFER, offer, offer - 1):
                row = load_word(team + _ROW) + (helper + 1) * load_word(team + _STRIDE)
                outcome = call_row(row, part, load_word(row + PARTS_IN_ROW), load_word(team + _IMAGES))
                if outcome != 0:
                    or_word(team + _TROUBLE, _BROKEN if outcome > 0 else _RAISED)
                add_word(words + _COUNT, 1)
                add_word(team + _DONE, 1)
        elif idle < patience:
            idle += 1
            if idle % _LOOKS_PER_YIELD == 0:
                yield_processor()
            else:
                pause()
        elif sleeps == 0:
            return
        else:
            idle = 0
            store_word(words + _ASLEEP, 1)
            add_word(team + _SLEEPERS, 1)
            # A caller who has made an offer meanwhile may have looked for sleepers too early. Where he did not, and is
            # about to open the gate, the helper has to pass it.
            if load_word(team + _OFFER) != offer and replace_word(words + _ASLEEP, 1, 0):
                add_word(team + _SLEEPERS, -1)
            else:
                wait_at_gate(load_word(words + _GATE))


class _Crew:
    """The words, gates and threads of a team in this process. Its helpers hold it, so that it outlives them.

    words : int64, from a multiple of 128 bytes on
    """

    def __init__(self, helpers: int) -> None:
        self.helpers = helpers
        self.words = _new_words(helpers)
        self.address = int(self.words.ctypes.data)
        self.lead = entry_point(_lead, (0,) * 5)
        self.help = entry_point(_help, (0,) * 4)
        self.gates = [new_gate() for _ in range(helpers)]
        self.threads: list[threading.Thread] = []
        callers_gate = new_gate()
        self.words[_CALLERS_GATE // 8] = callers_gate
        for helper, gate in enumerate(self.gates):
            self.words_of(helper)[_GATE // 8] = gate
        for gate in (callers_gate, *self.gates):
            weakref.finalize(self, drop_gate, gate).atexit = False
        _crews.add(self)

    def words_of(self, helper: int) -> NDArray[np.int64]:
        """The words of ``helper``, int64 [16]: asleep, gate, count, ..."""
        first = (_HELPERS + _HELPER_BYTES * helper) // 8
        return self.words[first : first + _HELPER_BYTES // 8]

    def start(self) -> None:
        """Start the helpers; what cannot be started is done without."""
        patience = _rounds_of(PATIENCE)
        for helper in range(self.helpers):
            thread = threading.Thread(
                target=_serve, args=(self, helper, patience), name=f"labkit helper {helper + 1}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                warnings.warn(
                    f"{helper + 1} threads run instead of {self.helpers + 1}: {error}.", RuntimeWarning, stacklevel=4
                )
                return
            self.threads.append(thread)

    def stop(self) -> None:
        """Tell all helpers to leave, without waiting for them."""
        self.words[_STOP // 8] = 1
        for gate in self.gates:
            open_gate_from_python(gate)


def _new_words(helpers: int) -> NDArray[np.int64]:
    """Zeros for the words of a team, int64."""
    size = _HELPERS + _HELPER_BYTES * helpers
    memory = np.zeros(size + _HELPER_BYTES, np.uint8)
    start = -memory.ctypes.data % _HELPER_BYTES
    return memory[start : start + size].view(np.int64)


def _serve(crew: _Crew, helper: int, patience: int) -> None:
    crew.help(crew.address, helper, patience, 1)


@cache
def _rounds_of(seconds: float) -> int:
    """How many times an idle helper looks for a part in ``seconds``, by the fastest of several tries."""
    words, rounds = _new_words(1), 500
    look = entry_point(_help, (0,) * 4)
    durations = []
    for _ in range(7):
        start = time.perf_counter()
        look(words.ctypes.data, 0, rounds, 0)
        durations.append(time.perf_counter() - start)
    return max(1, int(seconds * rounds / min(durations)))


class Team:
    """``threads`` threads that run a program: the caller, and helpers which start when there is something to share.

    Any number of threads may call `run`. One at a time has the helpers; others do not wait for them and run alone.
    A forked child makes helpers of its own.
    """

    def __init__(self, threads: int) -> None:
        """The calling thread counts as one of ``threads``.

        Raises
        ------
        InputError
            ``threads`` is less than 1.
        """
        if threads < 1:
            raise InputError(f"threads: got {threads}, which must be at least 1.")
        self.threads = threads
        self._crew: _Crew | None = None
        self._is_taken = threading.Lock()
        _teams.add(self)

    def run(self, program: Program, images: int) -> int:
        """Run all calls of ``program`` for ``images`` images; the result is that of `labkit.kernels.program.walk`.

        Returns the index of the call that broke a bound, after which no other was run, or -1.

        Raises
        ------
        InputError
            ``program`` has arguments for fewer threads than the team has.
        RuntimeError
            A kernel raised an exception, in whichever thread.
        """
        if program.threads < self.threads:
            raise InputError(
                f"The program has arguments for {program.threads} threads and the team has {self.threads}. "
                f"Make the program for as many."
            )
        if self.threads == 1 or not program.is_divided or not self._is_taken.acquire(blocking=False):
            return walk(program, images)
        try:
            crew = self._crew or self._new_crew()
            outcome = crew.lead(crew.address, crew.helpers, program.address, program.length, images)
        finally:
            self._is_taken.release()
        return without_outcome(program, outcome)

    def _new_crew(self) -> _Crew:
        crew = self._crew = _Crew(self.threads - 1)
        weakref.finalize(self, crew.stop).atexit = False  # see _leave_at_exit
        crew.start()
        return crew

    def _forget(self) -> None:
        """In a child process, where no thread but the forking one is left."""
        self._crew = None
        self._is_taken = threading.Lock()


_teams: weakref.WeakSet[Team] = weakref.WeakSet()
_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()  # also of teams that are gone, as long as a helper is there


@cache
def team_of(threads: int) -> Team:
    """The team of ``threads`` that all networks of this process share.

    Raises
    ------
    InputError
        ``threads`` is less than 1.
    """
    return Team(threads)


def _forget_all() -> None:
    _crews.clear()
    for team in list(_teams):
        team._forget()


def _leave_at_exit() -> None:
    """Stop all helpers before the interpreter takes away the memory in which their code lies."""
    crews = list(_crews)
    for crew in crews:
        crew.stop()
    end = time.monotonic() + _LAST_WAIT
    for thread in [thread for crew in crews for thread in crew.threads]:
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_leave_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
