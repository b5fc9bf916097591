"""The trusted end of a worker's pipes: starts one in its sandbox, asks case after case, and believes nothing that comes back."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from labkit.course.cases import Case
from labkit.course.ingredients import Made
from labkit.course.judges.base import plain
from labkit.course.tasks import Task
from labkit.course.values import decode, encode
from labkit.errors import InputError, LabkitError
from labkit.grading.isolation import Isolation, worker_command
from labkit.grading.kit import Kit
from labkit.grading.outcomes import Outcome

__all__ = ["Reply", "Worker", "WorkerFault"]

_MOST = 1 << 22  # bytes of one reply; a case's value has some hundred
_START_SECONDS = 120.0  # a cold import of torch on a loaded machine
_MEMORY = 4 << 30  # bytes of address space
_FILE_BYTES = 16 << 20

_OUTCOMES = {
    "error": Outcome.ERROR,
    "missing": Outcome.NOT_ATTEMPTED,
    "not attempted": Outcome.NOT_ATTEMPTED,
    "timeout": Outcome.TIMEOUT,
    "memory": Outcome.MEMORY,
    "killed": Outcome.KILLED,
}


class WorkerFault(LabkitError):
    """A worker could not be started or kept: a fault of the grader or its machine, never of a student."""


@dataclass(frozen=True)
class Reply:
    """What came back for one case: a plain value where ``outcome`` is None, else what happened instead."""

    outcome: Outcome | None
    value: Any = None
    message: str = ""
    line: str = ""


class Worker:
    """One sandbox with one student's source; use it in a ``with`` statement.

    Parameters
    ----------
    level, kit : from `labkit.grading.isolation` and `labkit.grading.kit`
    source : the student's definitions
    imports : names of libraries that the source imports, loaded before any time is counted
    slot : a small number that no other worker has at the same time
    patience : seconds of the wall clock for one case, after which the worker is gone whatever it says

    Raises
    ------
    WorkerFault
        It could not be started.
    """

    def __init__(
        self, level: Isolation, kit: Kit, source: str, imports: Iterable[str], slot: int, patience: float | None = None
    ) -> None:
        self._level, self._kit, self._source, self._slot = level, kit, source, slot
        self._imports = sorted(set(imports))
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._down = self._up = -1
        self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        theirs_in, self._down = os.pipe()
        self._up, theirs_out = os.pipe()
        command = worker_command(self._level, self._kit, self._slot, theirs_in, theirs_out)
        environment = {} if self._level.bwrap else {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs_in, theirs_out),
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerFault(f"A worker could not be started: {error}.") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        limits = {"AS": _MEMORY, "FSIZE": _FILE_BYTES, "NOFILE": 256, "CORE": 0}
        if self._level.is_root:
            limits["NPROC"] = 64  # of its own user, who has no other processes
        setup = {
            "source": self._source,
            "imports": self._imports,
            "kit": list(self._kit.modules),
            "limits": {name: [value, value] for name, value in limits.items()},
        }
        try:
            self._send({"setup": setup})
            reply = self._receive(_START_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            self.close()
            raise WorkerFault(f"A worker did not start: {type(error).__name__} {error}.") from error
        if not isinstance(reply, dict) or "ready" not in reply:
            self.close()
            raise WorkerFault("A worker ended before it was ready.")

    def ask(self, task: Task, case: Case) -> Reply:
        """What the student's function returns for one ``case`` of ``task``.

        Raises
        ------
        WorkerFault
            The worker could not be started again after it was lost.
        """
        if self._process is None:
            self._start()
        nonce = secrets.token_hex(8)
        request = {
            "nonce": nonce,
            "task": task.name,
            "function": task.function,
            "given": list(task.given),
            "seconds": task.seconds,
            "inputs": {name: encode(value) for name, value in case.inputs.items()},
        }
        wall = self._patience if self._patience is not None else 10 * task.seconds + 90
        try:
            self._send(request)
            reply = self._receive(wall)
        except TimeoutError:
            self.close()
            return Reply(Outcome.TIMEOUT, message=f"no answer within {wall:g} s")
        except (OSError, ValueError, RecursionError):
            self.close()
            return Reply(Outcome.PROTOCOL, message="the answer was damaged")
        if reply is None:
            self.close()
            return Reply(Outcome.KILLED, message="the worker was gone")
        if not isinstance(reply, dict) or reply.get("nonce") != nonce:
            self.close()
            return Reply(Outcome.PROTOCOL, message="the answer was not to this question")
        return _reply(reply)

    def _send(self, data: Any) -> None:
        text = json.dumps(data).encode()
        frame = struct.pack(">I", len(text)) + text
        while frame:
            frame = frame[os.write(self._down, frame) :]

    def _receive(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        head = self._exactly(4, deadline)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        if length > _MOST:
            raise ValueError("an answer beyond the cap")
        text = self._exactly(length, deadline)
        return None if text is None else json.loads(text)

    def _exactly(self, count: int, deadline: float) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            ready, _, _ = select.select([self._up], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("no answer in time")
            part = os.read(self._up, count - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """End the worker and everything in its sandbox."""
        process, self._process = self._process, None
        if process is None:
            return
        for fd in (self._down, self._up):
            with suppress(OSError):
                os.close(fd)
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _reply(reply: dict[str, Any]) -> Reply:
    """``reply`` as far as it can be believed: texts are texts, and a value is plain data."""
    outcome = reply.get("outcome")
    message, line = (str(reply.get(name, ""))[:500] for name in ("message", "line"))
    if outcome == "value":
        try:
            value = decode(reply.get("value"))
            if _has_ingredient(value):
                raise InputError("an ingredient came back")
            return Reply(None, plain(value))
        except (InputError, ValueError, TypeError, KeyError, RecursionError, MemoryError, OverflowError):
            return Reply(Outcome.PROTOCOL, message="the value was damaged")
    if isinstance(outcome, str) and outcome in _OUTCOMES:
        return Reply(_OUTCOMES[outcome], message=message, line=line)
    return Reply(Outcome.PROTOCOL, message="the answer had no known form")


def _has_ingredient(value: Any) -> bool:
    if isinstance(value, Made):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_has_ingredient(item) for item in items)
