"""The process at the other end of a worker's pipes, however it came to be: its number, and how to end it and all below it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from labkit.grading.isolation import Isolation, worker_environment
from labkit.grading.watching import children_of

__all__ = ["Forked", "Inside", "Started"]

_END_SECONDS = 10.0
_DYING_SECONDS = 0.2  # from the end of the first process of a namespace until bubblewrap has ended, too


class Inside(Protocol):
    """A process inside a sandbox."""

    @property
    def pid(self) -> int:
        """Its number, as seen from here."""

    @property
    def is_orphan(self) -> bool:
        """Whether it ended, if it has, because what it depends on did: not by a student's doing."""

    def end(self) -> None:
        """End it and everything in its sandbox, and wait for that."""


class Started:
    """A program started in a sandbox of its own.

    Parameters
    ----------
    level : how it is shut in
    command : from `labkit.grading.isolation`
    kept : the descriptors that it inherits

    Raises
    ------
    OSError
        It could not be started.
    """

    is_orphan = False

    def __init__(self, level: Isolation, command: Sequence[str], kept: Sequence[int]) -> None:
        self._has_outer_half = bool(level.bwrap)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=kept,
            env=worker_environment(level),
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended, or does within ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def end(self) -> None:
        """End it and everything in its sandbox, and wait for that."""
        process = self._process
        if self._has_outer_half:
            # The first process of the namespace takes all others with it, and is waited for by bubblewrap: when that has
            # ended, the namespace is empty, and the user has no process left that counts against the next one's limit.
            for inner in children_of(process.pid):
                with suppress(OSError):
                    os.kill(inner, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


class Forked:
    """A process that one of `Started` has forked for one student.

    Parameters
    ----------
    pidfd : a descriptor that stands for it, whatever becomes of its number; closed in the end
    forker : what it was forked from
    """

    def __init__(self, pidfd: int, forker: Started) -> None:
        self._pidfd, self._forker = pidfd, forker
        self.pid = _number_of(pidfd)

    @property
    def is_orphan(self) -> bool:
        """Whether what it was forked from has ended, and has taken this one with it."""
        return self._forker.ends_within(_DYING_SECONDS)

    def end(self) -> None:
        """End it, and wait until it has ended: in a process namespace it is the first, and waits for all others."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(_END_SECONDS * 1000)
        os.close(self._pidfd)


def _number_of(pidfd: int) -> int:
    """The number of the process of ``pidfd``, as seen from here; -1 where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    return int(facts.get("Pid", "-1"))
