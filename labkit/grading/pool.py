"""Processes that have imported everything, kept for one run, from which workers are forked: the trusted end of their sockets.

There is one for each set of large libraries that submissions import, so that what a student's process finds loaded depends on
that student's own imports alone. Where a process cannot be set apart from its siblings, which is tried out at first, none is
forked, and every worker gets a sandbox of its own.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from labkit.grading.frames import FORK, GOOD
from labkit.grading.isolation import Isolation, forker_command
from labkit.grading.kit import Kit
from labkit.grading.limits import LARGE, START_SECONDS, worker_limits
from labkit.grading.processes import Forked, Started

__all__ = ["Pool"]

_MOST = 4
"""Sets of libraries that are kept at a time; a submission with yet another one gets a sandbox of its own."""
_MOST_SAID = 300


class Pool:
    """What workers of one run are forked from; use it in a ``with`` statement. Threads may share it.

    Parameters
    ----------
    level, kit : from `labkit.grading.isolation` and `labkit.grading.kit`
    """

    def __init__(self, level: Isolation, kit: Kit) -> None:
        self._level, self._kit = level, kit
        self._forkers: dict[frozenset[str], _Forker] = {}
        self._lock = threading.Lock()
        # A program of bubblewrap's ends with the thread that started it, so that is one which stays.
        self._starter = ThreadPoolExecutor(1)
        self.why = "" if level.bwrap or level.lock else "nothing shuts workers in"
        """Why nothing is forked; '' while it is."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fork(self, imports: Iterable[str], uid: int, requests: int, replies: int) -> Forked | None:
        """A worker's process, which waits for a submission; None where it must have a sandbox of its own.

        Parameters
        ----------
        imports : names of libraries; the large ones among them, and NumPy, are loaded in it
        uid : the user that it becomes, from `labkit.grading.isolation.spare_of`; -1 to stay
        requests, replies : the file descriptors that it gets
        """
        large = frozenset(imports) & LARGE
        with self._lock:
            if self.why or (large not in self._forkers and len(self._forkers) == _MOST):
                return None
            try:
                if large not in self._forkers:
                    forker = self._starter.submit(_Forker, self._level, self._kit, large).result()
                    self._forkers[large] = forker  # closed in the end, whatever comes next
                    forker.try_out(uid)
                return self._forkers[large].fork(uid, requests, replies)
            except OSError as error:
                self.why = str(error) or repr(error)  # whoever was forked before goes on
                return None

    def close(self) -> None:
        """End everything."""
        with self._lock:
            self.why = "it is closed"
            for forker in self._forkers.values():
                forker.close()
            self._forkers.clear()
            self._starter.shutdown()


class _Forker:
    """One process that forks, with the ``large`` libraries loaded.

    Raises
    ------
    OSError
        It could not be started, or shares something with what it forks.
    """

    def __init__(self, level: Isolation, kit: Kit, large: frozenset[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(START_SECONDS)
        setup = {
            "imports": sorted(large),
            "kit": list(kit.modules),
            "behind": kit.behind,
            "limits": worker_limits(own_user=True),  # and be it for its own namespace
        }
        text = json.dumps({"setup": setup}).encode()
        try:
            self._process = Started(level, forker_command(level, kit, theirs.fileno()), [theirs.fileno()])
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        try:
            self._socket.sendall(struct.pack(">I", len(text)) + text)
            if (said := self._socket.recv(_MOST_SAID)) != GOOD:
                raise OSError(said.decode("utf-8", "replace") or "it has ended")
        except OSError:
            self.close()
            raise

    def try_out(self, uid: int) -> None:
        """Fork once for nothing, to see that a process of the user ``uid`` is set apart.

        Raises
        ------
        OSError
            It is not.
        """
        here, there = os.pipe()
        try:
            self._forked(uid, True, here, there).end()
        finally:
            os.close(here)
            os.close(there)

    def fork(self, uid: int, requests: int, replies: int) -> Forked:
        """As `Pool.fork`.

        Raises
        ------
        OSError
            It could not be forked or set apart.
        """
        return self._forked(uid, False, requests, replies)

    def _forked(self, uid: int, is_trial: bool, requests: int, replies: int) -> Forked:
        socket.send_fds(self._socket, [FORK.pack(uid, is_trial)], [requests, replies])
        said, fds, _, _ = socket.recv_fds(self._socket, _MOST_SAID, 1)
        if said != GOOD or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise OSError(said.decode("utf-8", "replace") or "it has ended")
        return Forked(fds[0], self._process)

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._socket.close()
        self._process.end()
