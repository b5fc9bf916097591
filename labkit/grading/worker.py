"""The trusted end of a worker's pipes: starts one in its sandbox, asks case after case, and believes nothing that comes back."""

from __future__ import annotations

import json
import os
import secrets
import select
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from labkit.course.ingredients import Made
from labkit.course.judges.base import plain
from labkit.course.values import decode
from labkit.errors import InputError, LabkitError
from labkit.grading.isolation import Isolation, spare_of, worker_command
from labkit.grading.kit import Kit, library_for
from labkit.grading.limits import START_SECONDS, worker_limits
from labkit.grading.outcomes import Outcome
from labkit.grading.pool import Pool
from labkit.grading.processes import Inside, Started
from labkit.grading.watching import TICK, Watch

__all__ = ["Asked", "Reply", "Worker", "WorkerFault"]

_MOST = 1 << 22  # bytes of one reply; a case's value has some hundred
_SEND_SECONDS = 30.0
_DEAF = 12.0  # processor seconds over a case's own limit, of which its definitions may take ten

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
class Asked:
    """What a worker is asked about one task, and all that it learns of it: plain data.

    ``inputs`` are those of each case, as `labkit.course.values.encode` writes them. ``source`` is what this task's function can
    come to use, '' for all that the submission defines.
    """

    task: str
    function: str
    given: tuple[str, ...]
    seconds: float
    inputs: tuple[dict[str, Any], ...]
    source: str = ""


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
    patience : seconds of the wall clock for one case, after which the worker is gone whatever it says
    pool : what it is forked from, where that can be; else, or with None, a sandbox of its own is started for it

    Raises
    ------
    WorkerFault
        It could not be started.
    """

    def __init__(
        self,
        level: Isolation,
        kit: Kit,
        source: str,
        imports: Iterable[str],
        patience: float | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._level, self._kit, self._source = level, kit, source
        self._imports = sorted(set(imports))
        self._patience, self._pool = patience, pool
        self._process: Inside | None = None
        self._down = self._up = -1
        self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._spare = spare_of(self._level)
        except LabkitError as error:
            raise WorkerFault(str(error)) from error
        uid = self._spare.uid if self._spare is not None else -1
        theirs_in, self._down = os.pipe()
        self._up, theirs_out = os.pipe()
        try:
            forked = None if self._pool is None else self._pool.fork(self._imports, uid, theirs_in, theirs_out)
            command = worker_command(self._level, self._kit, uid, theirs_in, theirs_out)
            self._process = forked or Started(self._level, command, (theirs_in, theirs_out))
        except OSError as error:
            for fd in (self._down, self._up):
                os.close(fd)
            if self._spare is not None:
                self._spare.close()
            raise WorkerFault(f"A worker could not be started: {error}.") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(self._down, False)
        setup = {
            "imports": self._imports,
            "kit": list(self._kit.modules),
            "behind": self._kit.behind,
            "limits": worker_limits(own_user=self._level.is_root),
        }
        try:
            if forked is None:
                self._send({"setup": setup})
            self._send({"source": self._source})
            reply = self._receive(START_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            self.close()
            raise WorkerFault(f"A worker did not start: {type(error).__name__} {error}.") from error
        if not isinstance(reply, dict) or "ready" not in reply:
            self.close()
            raise WorkerFault("A worker ended before it was ready.")

    def ask(self, asked: Asked, number: int, seconds: float) -> Reply:
        """What the student's function returns for case ``number`` of a task, as ``asked``, within ``seconds`` of processor time.

        Raises
        ------
        WorkerFault
            The worker could not be started again after it was lost, or was lost by no doing of its own.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        nonce = secrets.token_hex(8)
        request = {
            "nonce": nonce,
            "task": asked.task,
            "function": asked.function,
            "given": list(asked.given),
            "library": library_for(asked.given, asked.inputs, self._kit.files),
            "seconds": seconds,
            "inputs": asked.inputs[number],
            "source": asked.source,
        }
        wall = self._patience if self._patience is not None else 10 * seconds + 90
        try:
            self._send(request)
            reply = self._receive(wall, Watch(self._process.pid, seconds + _DEAF))
        except TimeoutError as error:
            return self._lost(Outcome.TIMEOUT, str(error))
        except MemoryError:
            return self._lost(Outcome.MEMORY, "its processes together took too much memory")
        except (OSError, ValueError, RecursionError):
            return self._lost(Outcome.PROTOCOL, "the answer was damaged")
        if reply is None:
            return self._lost(Outcome.KILLED, "the worker was gone")
        if not isinstance(reply, dict) or reply.get("nonce") != nonce:
            return self._lost(Outcome.PROTOCOL, "the answer was not to this question")
        return _reply(reply)

    def _lost(self, outcome: Outcome, message: str) -> Reply:
        """End the worker, and say why, unless it was lost by no doing of its own."""
        is_orphan = self._process is not None and self._process.is_orphan
        self.close()
        if is_orphan:
            raise WorkerFault("What its worker was forked from has ended.")
        return Reply(outcome, message=message)

    def _send(self, data: Any) -> None:
        text = json.dumps(data).encode()
        frame = memoryview(struct.pack(">I", len(text)) + text)
        deadline = time.monotonic() + _SEND_SECONDS
        while frame:
            try:
                frame = frame[os.write(self._down, frame) :]
            except BlockingIOError:  # it does not read; it may have been stopped by what it runs
                _, ready, _ = select.select([], [self._down], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError("it does not read") from None

    def _receive(self, seconds: float, watch: Watch | None = None) -> Any:
        deadline = time.monotonic() + seconds
        head = self._exactly(4, deadline, watch)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        if length > _MOST:
            raise ValueError("an answer beyond the cap")
        text = self._exactly(length, deadline, watch)
        return None if text is None else json.loads(text)

    def _exactly(self, count: int, deadline: float, watch: Watch | None = None) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._up], [], [], left if watch is None else min(left, TICK))
            if not ready and watch is not None and left > TICK:
                watch.look()
                continue
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
        process.end()
        if self._spare is not None:
            self._spare.close()


def _reply(reply: dict[str, Any]) -> Reply:
    """``reply`` as far as it can be believed: texts are texts, and a value is plain data."""
    outcome = reply.get("outcome")
    texts = (reply.get(name, "") for name in ("message", "line"))
    message, line = (text[:500] if isinstance(text, str) else "" for text in texts)
    if outcome == "value":
        try:
            value = decode(reply.get("value"))
            if _has_ingredient(value):
                raise InputError("an ingredient came back")
            return Reply(None, plain(value))
        except Exception:  # it comes from a stranger, and may be of any form at all
            return Reply(Outcome.PROTOCOL, message="the value was damaged")
    if isinstance(outcome, str) and outcome in _OUTCOMES:
        return Reply(_OUTCOMES[outcome], message=message, line=line)
    return Reply(Outcome.PROTOCOL, message="the answer had no known form")


def _has_ingredient(value: Any) -> bool:
    if isinstance(value, Made):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(_has_ingredient(item) for item in items)
