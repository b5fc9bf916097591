"""The process of one task: runs a student's definitions, then answers case after case.

Runs inside the sandbox. It is as untrusted as what it runs.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import resource
import signal
import sys
import time
import traceback
import types
from typing import Any

from labkit.course.ingredients import build
from labkit.course.judges.base import plain
from labkit.course.values import decode, encode
from labkit.grading.frames import read_frame, write_frame
from labkit.grading.givens import Library, hide_labkit

__all__ = ["answer"]

_DEFINING = 10.0  # processor seconds for running the definitions, imports among them
_MOST_NUMBERS = 200_000  # of one result; a right one has some dozens
_INGREDIENTS = "labkit.course.ingredients."


def answer(source: str, request: dict[str, Any], down: int, up: int) -> None:
    """Define everything in ``source``, then answer the requests of ``down`` on ``up``.

    ``request`` is the first of them, to which no answer is wanted yet: it says which task this is, and what that is given.
    """
    library = Library(request.pop("library"))
    sys.meta_path.insert(0, library)
    makers = [name for name in library.sources if name.startswith(_INGREDIENTS)]
    ingredients = {name.removeprefix(_INGREDIENTS): importlib.import_module(name) for name in makers}
    with contextlib.suppress(FileNotFoundError):  # behind an empty root folder they lead to nothing already
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    for by in (signal.SIGXCPU, signal.SIGPROF):
        signal.signal(by, signal.SIG_DFL)
    space: dict[str, Any] | None = None
    while (asked := read_frame(down)) is not None:
        _allow(asked["seconds"] if space is not None else _DEFINING)
        try:
            inputs = build({name: decode(value) for name, value in asked["inputs"].items()}, ingredients)
            if space is None:
                space = _defined(source, request["task"], request["given"], library)
                _allow(asked["seconds"])
            function = space.get(asked["function"])
            if function is None:
                reply: dict[str, Any] = {"outcome": "missing", "message": "\n".join(space["__failed__"])}
            else:
                result = plain(function(**inputs))
                if _numbers(result) > _MOST_NUMBERS:
                    raise ValueError(f"the result has more than {_MOST_NUMBERS} numbers")
                reply = {"outcome": "value", "value": encode(result)}
        except NotImplementedError:
            reply = {"outcome": "not attempted"}
        except MemoryError:
            reply = {"outcome": "memory"}
        except BaseException as error:  # SystemExit, KeyboardInterrupt and errors of a student's own
            reply = {"outcome": "error", "message": _said(error), "line": _line(error, source)}
        try:
            write_frame(up, reply)
        except ValueError:  # larger than a frame may be
            write_frame(up, {"outcome": "error", "message": "The result is too large.", "line": ""})


def _numbers(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_numbers, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_numbers, value))
    return int(getattr(value, "size", 1))


def _allow(seconds: float) -> None:
    used = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)  # exact; who turns it off meets the limit in whole seconds below
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _defined(source: str, task: str, given: list[str], library: Library) -> dict[str, Any]:
    """The student's names; what cannot be defined is left out and told under ``__failed__``."""
    hide_labkit(task, given, library)
    module = types.ModuleType("submission")
    sys.modules["submission"] = module
    space = vars(module)
    space["__failed__"] = []
    for statement in ast.parse(source).body:
        code = compile(ast.Module([statement], []), "<submission>", "exec")
        try:
            exec(code, space)
        except Exception as error:
            space["__failed__"].append(f"line {statement.lineno}: {_said(error)}")
            for name in _bound(statement):
                space.setdefault(name, _NotThere(name, _said(error)))
    return space


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    return []


class _NotThere:
    """Stands for a name whose import failed; any use of it says why."""

    def __init__(self, name: str, why: str) -> None:
        self.__dict__["_why"] = f"{name} is not there: {why}"

    def __getattr__(self, name: str) -> Any:
        raise ImportError(self.__dict__["_why"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(self.__dict__["_why"])


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # an error whose own text raises
        return type(error).__name__[:100]


def _line(error: BaseException, source: str) -> str:
    """The innermost line of the student's own source."""
    found = ""
    lines = source.split("\n")
    with contextlib.suppress(BaseException):
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == "<submission>" and frame.lineno and frame.lineno <= len(lines):
                found = f"in {frame.name}: {lines[frame.lineno - 1].strip()}"[:300]
    return found
