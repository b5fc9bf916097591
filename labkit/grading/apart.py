"""Sets a process apart from those that were forked from the same one: namespaces, folders and a user of its own.

Runs inside the sandbox, which has shut out the network and the machine already, and shuts out the siblings too: own processes,
own messages and shared memory, own network (without anything in it), and own empty folders where anything can be written. Only
ever called by `labkit.grading.forker`, in a process that has read nothing of a student yet. The numbers are those of the
kernel's headers linux/sched.h, linux/mount.h, linux/prctl.h and linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from labkit.grading.lockdown import forbid_calls, seccomp_program

__all__ = ["be_killed_first", "complaint", "folders", "leave", "own_session", "seal", "shared_mappings"]

_NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x08000000 | 0x40000000  # users, mounts, processes, messages, network
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _ALL_BELOW, _PRIVATE = 1 << 12, 1 << 14, 1 << 18
_SET_DUMPABLE, _READ_BOUND, _DROP_BOUND, _NO_NEW_PRIVILEGES = 4, 23, 24, 38
_CAPABILITIES, _CAPABILITY_VERSION = 64, 0x20080522
_ROOM = "size=64m,nr_inodes=16k,mode=1777"
_OWN = ("/tmp", "/dev/shm", "/dev/pts", "/proc")
_SHOWN = ("cpuinfo", "meminfo")  # of /proc; libraries ask for them
_FIRST_KILLED = 500  # of at most 1000


def leave(uid: int) -> None:
    """Become the user ``uid`` (-1 to stay) in new namespaces, of which the process namespace is for later children only.

    Raises
    ------
    OSError
        Something is not to be had here; the process must end.
    """
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    uid, gid = os.getuid(), os.getgid()
    _control(_SET_DUMPABLE, 1)  # or its own entry in /proc would be another's
    be_killed_first()
    before = _namespaces()
    _must("unshare", _NEW)
    if shared := [name for name, number in _namespaces().items() if number == before[name]]:
        raise OSError(f"namespaces are shared: {', '.join(shared)}")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _control(_SET_DUMPABLE, 0)
    _mount(None, "/", None, _PRIVATE | _ALL_BELOW)
    _mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, _ROOM)
    _mount("tmpfs", "/dev/shm", "tmpfs", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS, _ROOM)
    _mount(
        "tmpfs", "/dev/pts", "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_PROGRAMS, "size=4k,nr_inodes=1,mode=555"
    )
    _cover_proc()
    os.chdir("/tmp")  # or it would still be in the folder that has just been covered


def _namespaces() -> dict[str, int]:
    """Numbers of its namespaces but the one of processes, which only its children enter."""
    return {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in ("user", "mnt", "ipc", "net")}


def _cover_proc() -> None:
    """Put an empty folder with a few files in the place of /proc, which shows other processes."""
    new, bare = f"{_OWN[0]}/proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS
    os.mkdir(new)
    _mount("tmpfs", new, "tmpfs", bare, "size=4k,nr_inodes=8,mode=555")
    for name in _SHOWN:
        with open(f"{new}/{name}", "x"):
            pass
        _mount(f"/proc/{name}", f"{new}/{name}", None, _BIND)
    _mount(new, "/proc", None, _BIND | _ALL_BELOW)
    _must("umount2", new.encode(), 2)  # what is below goes with it
    os.rmdir(new)
    _mount(None, "/proc", None, _REMOUNT | _BIND | _READ_ONLY | bare)


def be_killed_first() -> None:
    """Where the machine has no memory left, go before the grader and before the process that this one was forked from."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _FIRST_KILLED:
            file.seek(0)
            file.write(str(_FIRST_KILLED))


def own_session() -> None:
    """A session of its own, and standard input and output that lead to nothing and are nobody else's, as inherited ones are."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def seal() -> None:
    """Give up what `leave` has won, for good, and forbid the calls that could win it again.

    Raises
    ------
    OSError
        The kernel takes no filter, or the numbers of this machine's calls are not known; the process must end.
    """
    own_session()
    for capability in range(_CAPABILITIES):
        if _control(_DROP_BOUND, capability):
            break
    _must("capset", struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24))
    if _control(_NO_NEW_PRIVILEGES, 1):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    forbid_calls(seccomp_program(os.uname().machine))


def folders() -> dict[str, int]:
    """What is mounted, as a number of the kernel's, at each folder that is to be a process's own."""
    return {path: os.stat(path).st_dev for path in _OWN}


def complaint(before: dict[str, int]) -> str:
    """'' where this process is set apart and sealed as it should be, else what it can do: tried out, not assumed.

    ``before`` are the `folders` of the process that it was forked from.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def calls(name: str, *arguments: object) -> Callable[[], bool]:
        return lambda: getattr(libc, name)(*arguments) >= 0

    def makes_a_socket() -> bool:
        socket.socket(socket.AF_UNIX).close()
        return True

    def reads(path: str) -> Callable[[], bool]:
        return lambda: os.open(path, os.O_RDONLY) >= 0

    def has_capabilities() -> bool:
        sets = (ctypes.c_uint32 * 6)()
        _must("capget", struct.pack("Ii", _CAPABILITY_VERSION, 0), sets)
        return any(sets) or any(_control(_READ_BOUND, number) == 1 for number in range(_CAPABILITIES))

    possible: dict[str, Callable[[], bool]] = {
        "it is not the first process": lambda: os.getpid() != 1 or os.getppid() != 0,
        "it sees processes": lambda: set(os.listdir("/proc")) != set(_SHOWN),
        "it shares a folder": lambda: any(folders()[path] == before[path] for path in _OWN),
        "it finds files": lambda: bool(os.listdir("/tmp") or os.listdir("/dev/shm") or os.listdir("/dev/pts")),
        "it is elsewhere": lambda: not os.path.samefile(".", "/tmp"),
        "it has capabilities": has_capabilities,
        "it can signal others": calls("kill", -1, 0),
        "it can become another": calls("setuid", 0 if os.getuid() else 1),
        "it can read its parent": reads("/proc/1/environ"),
        "it can write into /proc": lambda: os.open("/proc/new", os.O_CREAT | os.O_WRONLY) >= 0,
        "it can open a terminal": lambda: os.open("/dev/ptmx", os.O_RDWR) >= 0,
        "it can uncover /proc": calls("umount2", b"/proc", 2),
        "it can uncover /tmp": calls("umount2", b"/tmp", 2),
        "it can mount": calls("mount", b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None),
        "it can make namespaces": calls("unshare", 0x10000000),
        "it can open a socket": makes_a_socket,
    }
    found = []
    for said, can in possible.items():
        try:
            if can():
                found.append(said)
        except OSError:
            continue
    return "; ".join(found)


def shared_mappings(maps: str) -> list[str]:
    """The lines of ``maps``, as /proc has them, of memory that is written to by all who are forked: a way from one to another."""
    return [
        line for line in maps.splitlines() if len(fields := line.split()) > 1 and "w" in fields[1] and "s" in fields[1]
    ]


def _mount(what: str | None, where: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (what, where, kind, data)]
    _must("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _control(option: int, value: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def _must(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {arguments[1] if len(arguments) > 1 else ''}: {os.strerror(number)}")
