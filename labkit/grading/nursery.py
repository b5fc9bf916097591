"""Runs inside the sandbox, as a program: holds one student's source, and forks a process for each task to run it.

It is started with the folder of packages and the folder of the kit (the few files of labkit that a worker may see) and speaks
frames of JSON on two pipes: a 4-byte length, then the text. It imports nothing of labkit but the kit, and is itself as untrusted
as what it runs.

Requests: ``{"setup": {...}}`` once, then ``{"nonce", "task", "function", "given", "inputs", "seconds"}``, one at a time. Each
gets one reply ``{"nonce", "outcome", ...}`` with an outcome of value, error, missing, not attempted, timeout, memory or killed.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
import types
import warnings
from typing import Any

__all__ = ["main"]

_HEAVY = ("numpy", "scipy", "torch", "numba", "matplotlib.pyplot")
_DEFINING = 10.0  # processor seconds for running the definitions, imports among them
_MOST_NUMBERS = 200_000  # of one result; a right one has some dozens


def main(
    packages: str, kit: str, requests: int, replies: int, uid: int, alone: bool, lock: dict[str, Any] | None = None
) -> None:
    """Serve requests until there are no more.

    Parameters
    ----------
    packages, kit : folders to import from
    requests, replies : open file descriptors
    uid : the user to become, for good, before anything of a student is read; -1 to stay
    alone : whether every process that this one may kill is its own, as in a process namespace
    lock : where nothing outside shuts this process in: the arguments of `labkit.grading.lockdown.enter` that are not made here
    """
    if uid >= 0 and lock is None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _forbid_debuggers()
    if alone and lock is None:
        _die_with_parent()
    sys.path[:0] = [kit, packages]
    setup = _read(requests)["setup"]
    for name, (soft, hard) in setup["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
    warnings.simplefilter("ignore")
    source = setup["source"]
    for name in _HEAVY:
        if name == "numpy" or name.split(".")[0] in setup["imports"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    kit_modules = [importlib.import_module(name) for name in setup["kit"]]
    _warm(setup.pop("library"))
    if lock is not None:
        _shut_in(uid, packages, kit, lock)
    elif alone:
        _forbid_calls()
    gc.collect()
    gc.freeze()
    _write(replies, {"ready": len(kit_modules)})
    child: _Child | None = None
    while (request := _read(requests)) is not None:
        if child is None or child.task != request["task"] or not child.alive:
            if child is not None:
                child.end()
            child = _Child(request["source"] or source, request, (requests, replies), alone)
        _write(replies, child.ask(request) | {"nonce": request["nonce"]})
    if child is not None:
        child.end()


class _Library:
    """Imports modules from their texts: what a task is given lies in no file."""

    def __init__(self, sources: dict[str, Any]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.sources:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=self.sources[name][1])  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self.sources[module.__name__][0], f"<{module.__name__}>", "exec"), vars(module))

    def close(self) -> None:
        """Forget the texts, and all modules that were made from them."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in self.sources:
            sys.modules.pop(name, None)
            home, _, last = name.rpartition(".")
            if home in sys.modules:
                vars(sys.modules[home]).pop(last, None)
        self.sources = {}


def _warm(sources: dict[str, Any]) -> None:
    """Import what tasks are given once, for the sake of the libraries behind it, and forget it."""
    library = _Library(sources)
    sys.meta_path.insert(0, library)
    for name in list(sources):
        importlib.import_module(name)
    library.close()
    sources.clear()


def _shut_in(uid: int, packages: str, kit: str, lock: dict[str, Any]) -> None:
    """Become the user ``uid`` behind the borders of the kernel; what cannot be read from there is imported first."""
    lockdown: Any = importlib.import_module("lockdown")  # a file of the kit
    has_files = lock["landlock"] and lockdown.landlock_version() > 0
    packages_too = not (has_files and lockdown.is_open_to_all(packages))
    if packages_too or not lockdown.is_open_to_all(os.path.dirname(os.__file__)):
        lockdown.import_ahead(packages_too)
    lockdown.enter(uid, root=os.path.join(kit, "root"), **lock)


def _forbid_debuggers() -> None:
    """Keep processes of the same user out of our memory and our pipes."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _die_with_parent() -> None:
    """End with the sandbox's outer half, which becoming another user has undone."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _forbid_calls() -> None:
    """In a sandbox too: no new namespaces, no shared memory that outlives its process, no other programs, no debugging."""
    lockdown: Any = importlib.import_module("lockdown")
    with contextlib.suppress(OSError):  # a machine whose numbers are not known, or a kernel without filters
        lockdown.forbid_calls(lockdown.seccomp_program(os.uname().machine))


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
                _serve(source, request, down_read, up_write)
            finally:
                os._exit(0)
        os.close(down_read)
        os.close(up_write)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply of the child, or what became of it."""
        wall = 10 * request["seconds"] + 60  # the backstop; processor time is what counts
        try:
            _write(self.down, {name: value for name, value in request.items() if name != "nonce"})
            reply = _read(self.up, wall)
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
        """Kill the child and everything that it left behind."""
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


def _serve(source: str, request: dict[str, Any], down: int, up: int) -> None:
    """In the child: define everything, then answer case after case."""
    from labkit.course.ingredients import build
    from labkit.course.judges.base import plain
    from labkit.course.values import decode, encode

    home = "labkit.course.ingredients."
    library = _Library(request.pop("library"))
    sys.meta_path.insert(0, library)
    makers = [name for name in library.sources if name.startswith(home)]
    ingredients = {name.removeprefix(home): importlib.import_module(name) for name in makers}
    with contextlib.suppress(FileNotFoundError):  # behind an empty root folder they lead to nothing already
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
    for by in (signal.SIGXCPU, signal.SIGPROF):
        signal.signal(by, signal.SIG_DFL)
    space: dict[str, Any] | None = None
    while (asked := _read(down)) is not None:
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
            _write(up, reply)
        except ValueError:  # larger than a frame may be
            _write(up, {"outcome": "error", "message": "The result is too large.", "line": ""})


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


def _defined(source: str, task: str, given: list[str], library: _Library) -> dict[str, Any]:
    """The student's names; what cannot be defined is left out and told under ``__failed__``."""
    _hide_labkit(task, given, library)
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


def _hide_labkit(task: str, given: list[str], library: _Library) -> None:
    """Leave of labkit what the task is given, and nothing else that can be imported."""
    found = {}
    for dotted in given:
        home, _, name = dotted.rpartition(".")
        found[dotted] = getattr(importlib.import_module(home), name)
    library.close()
    for name in [name for name in sys.modules if name.split(".")[0] == "labkit"]:
        del sys.modules[name]
    listed = ", ".join(given) or "nothing of labkit"
    why = f"{task} may use {listed}, and {{}} is not among it"

    class Stub(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise ImportError(why.format(f"{self.__name__}.{name}"))

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == "labkit":
                raise ImportError(why.format(name))

    homes = {"labkit"}
    for dotted in given:
        parts = dotted.split(".")[:-1]
        homes |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    for home in sorted(homes):
        stub = Stub(home)
        stub.__path__ = []
        sys.modules[home] = stub
        if "." in home:
            parent, _, last = home.rpartition(".")
            setattr(sys.modules[parent], last, stub)
    for dotted, value in found.items():
        home, _, name = dotted.rpartition(".")
        setattr(sys.modules[home], name, value)
    sys.meta_path.insert(0, Finder())
    for entry in [entry for entry in sys.path if _can_be_read(os.path.join(entry, "labkit", "__init__.py"))]:
        sys.path.remove(entry)


def _can_be_read(path: str) -> bool:
    """Whether ``path`` opens: installed packages stay importable where only labkit among them is out of reach."""
    with contextlib.suppress(OSError), open(path, "rb"):
        return True
    return False


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


_MOST = 1 << 22


def _write(fd: int, data: Any) -> None:
    text = json.dumps(data).encode()
    if len(text) > _MOST:
        raise ValueError("frame too large")
    frame = struct.pack(">I", len(text)) + text
    while frame:
        frame = frame[os.write(fd, frame) :]


def _read(fd: int, seconds: float | None = None) -> Any:
    """The next frame; None at the end of the pipe."""
    deadline = None if seconds is None else time.monotonic() + seconds
    head = _exactly(fd, 4, deadline)
    if head is None:
        return None
    (length,) = struct.unpack(">I", head)
    if length > _MOST:
        raise ValueError("frame too large")
    text = _exactly(fd, length, deadline)
    return None if text is None else json.loads(text)


def _exactly(fd: int, count: int, deadline: float | None) -> bytes | None:
    parts = b""
    while len(parts) < count:
        if deadline is not None:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        part = os.read(fd, count - len(parts))
        if not part:
            return None
        parts += part
    return parts


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
        sys.argv[6] == "alone",
        json.loads(sys.argv[7]) if len(sys.argv) > 7 else None,
    )
