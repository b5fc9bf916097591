"""Runs inside the sandbox: holds one student's source, and forks a process for each task to run it.

It speaks frames of JSON on two pipes (`labkit.grading.frames`). It imports nothing of labkit but the kit, and is itself as
untrusted as what it runs. It begins as a program in a sandbox of its own (`main`), or is forked by a process that has imported
everything already (`labkit.grading.forker`); either way all borders stand before it reads the submission.

Requests: ``{"source"}`` once, then ``{"nonce", "task", "function", "given", "inputs", "seconds"}``, one at a time. Each of these
gets one reply ``{"nonce", "outcome", ...}`` with an outcome of value, error, missing, not attempted, timeout, memory or killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import warnings
from typing import Any

from labkit.grading import lockdown
from labkit.grading.answering import answer
from labkit.grading.frames import read_frame, write_frame

__all__ = ["forbid_debuggers", "limit", "main", "prepare", "read_ahead", "serve"]

_HEAVY = ("numpy", "scipy", "torch", "numba", "matplotlib.pyplot")


def main(kit: str, packages: str, requests: int, replies: int, uid: int, alone: bool, lock: str) -> None:
    """As a program: prepare, shut this process in, and serve.

    Parameters
    ----------
    kit, packages : folders that modules are imported from
    requests, replies : open file descriptors; the first frame of ``requests`` is ``{"setup"}``
    uid : the user to become, for good; -1 to stay
    alone : whether every process that this one may kill is its own, as in a process namespace
    lock : where nothing outside shuts this process in: the arguments of `labkit.grading.lockdown.enter` that are not made here,
        as JSON
    """
    if uid >= 0 and not lock:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    forbid_debuggers()
    if alone and not lock:
        _die_with_parent()
    setup = read_frame(requests)["setup"]
    limit(setup["limits"])
    prepare(setup)
    if lock:
        read_ahead(packages, json.loads(lock))
        lockdown.enter(uid, root=os.path.join(kit, "root"), **json.loads(lock))
    elif alone:
        with contextlib.suppress(OSError):  # a machine whose numbers are not known, or a kernel without filters
            lockdown.forbid_calls(lockdown.seccomp_program(os.uname().machine))
    serve(requests, replies, alone)


def limit(limits: dict[str, list[int]]) -> None:
    """Set ``limits``, soft and hard by their names without RLIMIT_."""
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def prepare(setup: dict[str, Any]) -> None:
    """Import what ``setup`` names: libraries (``imports``), the ``kit``, and what stands ``behind`` what tasks get."""
    warnings.simplefilter("ignore")
    for name in _HEAVY:
        if name == "numpy" or name.split(".")[0] in setup["imports"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    for name in setup["behind"]:
        with contextlib.suppress(Exception):  # what is no module is a name in one
            importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for name in setup["kit"]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def read_ahead(packages: str, lock: dict[str, Any]) -> None:
    """Import what could not be read from behind the borders of ``lock``, with libraries in the folder ``packages``."""
    has_files = lock["landlock"] and lockdown.landlock_version() > 0
    packages_too = not (has_files and lockdown.is_open_to_all(packages))
    if packages_too or not lockdown.is_open_to_all(os.path.dirname(os.__file__)):
        lockdown.import_ahead(packages_too)


def forbid_debuggers() -> None:
    """Keep processes of the same user out of our memory and our pipes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _die_with_parent() -> None:
    """End with the sandbox's outer half, which becoming another user has undone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def serve(requests: int, replies: int, alone: bool) -> None:
    """Answer the ``requests`` of one student on ``replies`` until there are no more.

    Parameters
    ----------
    requests, replies : open file descriptors
    alone : whether every process that this one may kill is its own
    """
    first = read_frame(requests)
    if first is None:
        return
    write_frame(replies, {"ready": True})
    child: _Child | None = None
    while (request := read_frame(requests)) is not None:
        if child is None or child.task != request["task"] or not child.alive:
            if child is not None:
                child.end()
            child = _Child(request["source"] or first["source"], request, (requests, replies), alone)
        write_frame(replies, child.ask(request) | {"nonce": request["nonce"]})
    if child is not None:
        child.end()


class _Child:
    """One forked process that runs one task's function."""

    def __init__(self, source: str, request: dict[str, Any], closed: tuple[int, int], alone: bool) -> None:
        self.alone = alone
        self.task = request["task"]
        self.alive = True
        down_read, self.down = os.pipe()
        self.up, up_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for fd in (*closed, self.down, self.up):
                    os.close(fd)
                os.setsid()
                answer(source, request, down_read, up_write)
            finally:
                os._exit(0)
        os.close(down_read)
        os.close(up_write)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply of the child to ``request``, or what became of it."""
        wall = 10 * request["seconds"] + 60  # the backstop; processor time is what counts
        try:
            write_frame(self.down, {name: value for name, value in request.items() if name != "nonce"})
            reply = read_frame(self.up, wall)
        except (OSError, ValueError, TimeoutError, RecursionError, MemoryError):
            reply = None
        if isinstance(reply, dict) and isinstance(reply.get("outcome"), str):
            return reply
        return {"outcome": self._ended()}

    def _ended(self) -> str:
        """Why there is no reply: the child is dead, or is killed now."""
        deadline = time.monotonic() + 0.2
        status = None
        while time.monotonic() < deadline and status is None:
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            status = found if pid else None
            if status is None:
                time.sleep(0.005)
        self.end(status is not None)
        if status is None:
            return "timeout"
        if os.WIFSIGNALED(status):
            by = os.WTERMSIG(status)
            return "timeout" if by in (signal.SIGXCPU, signal.SIGPROF) else "killed"
        return "killed"

    def end(self, reaped: bool = False) -> None:
        """Kill the child, unless it is ``reaped`` already, and everything that it left behind."""
        if not self.alive:
            return
        self.alive = False
        for fd in (self.down, self.up):
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        if self.alone:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)  # whoever left the group; never ourselves
        if not reaped:
            with contextlib.suppress(OSError):
                os.waitpid(self.pid, 0)
        if self.alone:
            with contextlib.suppress(ChildProcessError):
                while True:  # orphans that were left to this process; all are killed by now
                    os.waitpid(-1, 0)
