"""Runs inside the sandbox, as a program: has imported everything, and forks a process for each student that has yet to be read.

Importing PyTorch takes longer than everything else together, so it is done once for many. This process holds what every worker
may see and nothing else: the interpreter, libraries, the kit. It never reads a submission, and nothing leads back to it: a
student's process is another user (where the grader is root), has namespaces of its own, or lockdown's borders, and inherits the
two pipes of its own worker alone. Where it cannot be set apart it says so and ends, and the grader starts a sandbox for it.

On the control socket it is told ``{"setup"}``, a frame, and answers one byte; then, for each student, a user and two descriptors,
and answers one byte with a descriptor of the process that it has forked, or with the reason why there is none.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from contextlib import suppress
from typing import Any

from labkit.grading import apart, lockdown, nursery
from labkit.grading.frames import FORK, GOOD, read_frame

__all__ = ["main"]

_MOST_FDS = 1 << 20
_MOST_SAID = 200


def main(kit: str, packages: str, control: int, lock: str) -> None:
    """Prepare, and fork until the other end closes.

    Parameters
    ----------
    kit, packages : folders that modules are imported from
    control : the socket, an open file descriptor
    lock : as in `labkit.grading.nursery.main`
    """
    nursery.forbid_debuggers()
    setup = read_frame(control)["setup"]
    limits, borders = setup["limits"], json.loads(lock) if lock else None
    os.chdir("/")
    nursery.prepare(setup)
    if borders is not None:
        nursery.read_ahead(packages, borders)
        borders["root"] = os.path.join(kit, "root")
    signal.signal(signal.SIGCHLD, _bury)
    with socket.socket(fileno=control) as channel:
        channel.sendall(_complaint() or GOOD)
        while True:
            asked, fds, _, _ = socket.recv_fds(channel, FORK.size, 2)
            if len(asked) != FORK.size:
                return
            uid, is_trial = FORK.unpack(asked)
            if os.fork() == 0:
                _begin(channel, fds, uid, is_trial, limits, borders)
            for fd in fds:
                os.close(fd)


def _bury(number: int, frame: object) -> None:
    """Wait for those that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _complaint() -> bytes:
    """Nothing where nothing of this process is shared with those that it forks, else what is."""
    if len(os.listdir("/proc/self/task")) != 1:
        return b"a library has started a thread"
    with open("/proc/self/maps") as file:
        shared = apart.shared_mappings(file.read())
    return f"memory is shared: {shared[0]}".encode() if shared else b""


def _begin(
    channel: socket.socket,
    fds: list[int],
    uid: int,
    is_trial: bool,
    limits: dict[str, Any],
    borders: dict[str, Any] | None,
) -> None:
    """In the forked process: shut it in, say which one it is, and serve. Never returns."""
    try:
        requests, replies = fds
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _close_all_but(channel.fileno(), requests, replies)
        try:
            if borders is None:
                _begin_apart(channel, uid, is_trial, limits)
            else:
                _begin_locked(channel, uid, limits, borders)
        except BaseException as error:
            channel.sendall(_said(error))
            return
        channel.close()
        if not is_trial:
            nursery.serve(requests, replies, True)
    finally:
        os._exit(0)


def _begin_apart(channel: socket.socket, uid: int, is_trial: bool, limits: dict[str, Any]) -> None:
    """Go on as the first process of a process namespace; this one tells who that is, and ends."""
    folders = apart.folders()
    apart.leave(uid)
    nursery.limit(limits)
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        channel.close()
        try:
            apart.seal()
            said = apart.complaint(folders).encode() if is_trial else b""
        except BaseException as error:
            said = _said(error)
        os.write(there, said or GOOD)
        os.close(there)
        if said:
            os._exit(1)
        return
    os.close(there)
    said = os.read(here, _MOST_SAID) or b"it ended while it was shut in"
    if said == GOOD:
        socket.send_fds(channel, [GOOD], [os.pidfd_open(pid)])
    else:
        channel.sendall(said)
    os._exit(0)


def _begin_locked(channel: socket.socket, uid: int, limits: dict[str, Any], borders: dict[str, Any]) -> None:
    """Go on behind the borders of lockdown."""
    apart.be_killed_first()
    apart.own_session()
    self = os.pidfd_open(os.getpid())
    nursery.limit(limits)
    lockdown.enter(uid, **borders)
    socket.send_fds(channel, [GOOD], [self])
    os.close(self)


def _said(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:_MOST_SAID]


def _close_all_but(*kept: int) -> None:
    """Close every descriptor above those of standard input and output, but those ``kept``."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, most if 0 < most < _MOST_FDS else _MOST_FDS)
