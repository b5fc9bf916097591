"""Shuts the calling process in for good, without namespaces and without starting another program. Linux, as root.

Three borders of the kernel's, one behind the other, each inherited by every later child and none to be taken off again:

* another user, who owns nothing, has no group and no capability, and may start few processes;
* Landlock: a few folders can be read and nothing can be written; no TCP; no signals to anybody outside. Where the kernel has no
  Landlock the process gets an empty folder as its root instead, in which it can make nothing;
* a seccomp filter: no sockets, no other program, no debugging, no new namespaces, no shared memory, no keys, and none of the
  calls that only an administrator or an attacker needs. They fail with EPERM.

It is copied next to `labkit.grading.nursery` and imported there by itself, so it needs the standard library alone. The numbers
are those of the kernel's headers: linux/landlock.h, linux/seccomp.h, linux/filter.h, linux/audit.h, asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import platform
import stat
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress

__all__ = [
    "DENIED",
    "enter",
    "forbid_calls",
    "import_ahead",
    "is_open_to_all",
    "landlock_version",
    "seccomp_program",
    "trees_without",
]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
# By version of Landlock: all rights on files, on TCP ports, and scopes. What is handled and not allowed by a rule is denied.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_TCP_RIGHTS = {4: 2}
_SCOPES = {6: 2}

_SET_DUMPABLE, _SET_SECCOMP, _DROP_BOUND, _ADOPT_ORPHANS, _NO_NEW_PRIVILEGES = 4, 22, 24, 36, 38
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # a second set of numbers for the same calls, on x86_64
_NEW_NAMESPACES = 0x7E020000  # the flags of clone
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# Calls that are denied, as (x86_64, aarch64); None where a machine has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # the network, and other programs
    "socket": (41, 198),
    "socketpair": (53, 199),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    # namespaces, roots and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    # files that Landlock does not see, or that are no files
    "truncate": (76, 45),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # memory and messages that outlive a process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # wide doors into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "vmsplice": (278, 75),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    # the machine
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_CLONE = (56, 220)
_CLONE3 = 435

_DEVICES = {"/dev/null": _READ_FILE | _WRITE_FILE, "/dev/urandom": _READ_FILE, "/dev/zero": _READ_FILE}
_SMALL_FILES = ("/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo")
_LIBRARIES = ("/usr", "/lib", "/lib64", "/sys/devices/system/cpu")

# What a notebook's functions may import, where it cannot be read once the user has changed.
_STANDARD = """abc argparse array ast asyncio base64 bisect builtins bz2 calendar cmath cmd code codecs codeop
 collections.abc colorsys concurrent.futures.process concurrent.futures.thread configparser contextlib contextvars copy
 copyreg cProfile csv ctypes.util ctypes.wintypes dataclasses datetime decimal difflib dis doctest email.mime.text enum
 errno faulthandler fcntl filecmp fileinput fnmatch fractions functools gc getpass glob graphlib grp gzip hashlib heapq
 hmac html.parser http.server importlib.metadata importlib.resources importlib.util inspect io itertools json keyword
 linecache locale logging.config logging.handlers lzma marshal math mimetypes mmap multiprocessing.pool
 multiprocessing.resource_sharer multiprocessing.resource_tracker multiprocessing.shared_memory multiprocessing.spawn
 multiprocessing.synchronize netrc numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform
 plistlib pprint profile pstats pwd pydoc queue quopri random re reprlib resource runpy sched secrets select selectors
 shelve shlex shutil signal socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable
 sysconfig tarfile tempfile termios textwrap threading time timeit token tokenize tomllib trace traceback tracemalloc
 types typing unicodedata unittest.mock urllib.request uuid warnings wave weakref xml.dom.minidom xml.etree.ElementTree
 xml.parsers.expat zipfile zipimport zlib zoneinfo _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr
 _codecs_tw _multibytecodec _posixshmem _pydecimal _statistics _strptime""".split()
_ENCODINGS = """ascii charmap cp1252 cp437 idna latin_1 punycode raw_unicode_escape unicode_escape utf_16 utf_16_be utf_16_le
 utf_32 utf_7 utf_8 utf_8_sig""".split()
_PARTS = {
    "numpy": "numpy.ma numpy.polynomial numpy.testing numpy.random numpy.fft numpy.linalg numpy.ctypeslib".split(),
    "scipy": """scipy.cluster.vq scipy.constants scipy.fft scipy.integrate scipy.interpolate scipy.io scipy.linalg scipy.ndimage
 scipy.optimize scipy.signal scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial.distance scipy.special scipy.stats""".split(),
    "torch": "torch._dynamo torch.fx torch.nn.utils.parametrize torch.optim.lr_scheduler torch.utils.data".split(),
    "numba": "numba.typed numba.experimental numba.np.ufunc.parallel numba.core.typing.templates".split(),
}


def landlock_version() -> int:
    """The version of Landlock that this kernel speaks; 0 where it has none, or has it switched off."""
    return max(0, _call(_CREATE_RULESET, None, 0, 1))


def is_open_to_all(folder: str) -> bool:
    """Whether a user who owns nothing may read in ``folder``, by the modes of it and of all folders above it."""
    path = os.path.realpath(folder)
    with suppress(OSError):
        if not os.stat(path).st_mode & stat.S_IROTH:
            return False
        while os.stat(path).st_mode & stat.S_IXOTH:
            if path == "/":
                return True
            path = os.path.dirname(path)
    return False


def trees_without(folder: str, hidden: Iterable[str]) -> tuple[list[str], list[str]]:
    """What to allow so that all below ``folder`` can be read but not what is ``hidden``.

    Landlock knows no exceptions, so a folder with something hidden in it is allowed entry by entry.

    Returns
    -------
    tuple
        Files and folders to read with all that they hold, and folders whose names can be listed.
    """
    folder = os.path.realpath(folder)
    secrets = [os.path.realpath(path) for path in hidden]
    if folder in secrets:
        return [], []
    within = [path for path in secrets if path.startswith(folder.rstrip("/") + "/")]
    if not within:
        return [folder], []
    trees, listed = [], [folder]
    for entry in os.scandir(folder):
        if entry.is_symlink():  # what it leads to is allowed where that lies
            continue
        more, names = trees_without(entry.path, within)
        trees += more
        listed += names
    return trees, listed


def import_ahead(packages_too: bool) -> None:
    """Import what could be wanted later, while it can still be read.

    That is the standard library, and, with ``packages_too``, parts of libraries that are imported already; without, those can
    be read later, too, and are left for when they are asked for.
    """
    names = [*_STANDARD, *(f"encodings.{name}" for name in _ENCODINGS)]
    if packages_too:
        for library, parts in _PARTS.items():
            names += parts if library in sys.modules else []
    for name in names:
        with suppress(Exception):  # not built on this machine
            importlib.import_module(name)
    if not packages_too:
        return
    for module in [sys.modules[library] for library in _PARTS if library in sys.modules]:
        for name in getattr(module, "__all__", ()):  # what comes when it is asked for, as by `from numpy import *`
            with suppress(Exception):
                getattr(module, name)
    if "numba" in sys.modules:
        with suppress(Exception):  # its compiler fetches the rest of itself at the first use
            sys.modules["numba"].njit(_nothing)()


def _nothing() -> None:
    return None


def enter(uid: int, folders: Sequence[str], hidden: Sequence[str], root: str, landlock: bool = True) -> str:
    """Become the user ``uid``, behind all borders, for good.

    Parameters
    ----------
    uid : a user that owns nothing and has no other process
    folders : what may be read, besides the system's libraries; a user who owns nothing must be able to
    hidden : what lies in ``folders`` and may not be read
    root : where there is no Landlock: an empty folder that only root can write to, made where missing
    landlock : False for the empty root folder even where there is Landlock

    Returns
    -------
    str
        What keeps files out of reach: ``Landlock 7``, or ``an empty root folder``.

    Raises
    ------
    OSError
        Something is not to be had here. The process may be shut in halfway, and must end.
    """
    if uid <= 0 or os.geteuid() != 0:
        raise OSError(errno.EPERM, "only root can become another user, and a spare one is wanted")
    if len(os.listdir("/proc/self/task")) != 1:
        raise OSError(errno.EBUSY, "a library has started a thread, which would stay outside")
    program = seccomp_program(platform.machine())
    version = landlock_version() if landlock else 0
    os.chdir("/")
    tempfile.gettempdir()  # looked for once; libraries ask for it though they write nothing
    ruleset = _ruleset(version, folders, hidden) if version else -1
    if not version:
        _take_root(root)
    for capability in range(64):
        if _call_prctl(_DROP_BOUND, capability):
            break
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _drop_capabilities()
    _must(_call_prctl(_NO_NEW_PRIVILEGES, 1), "no_new_privs")
    _must(_call_prctl(_SET_DUMPABLE, 0), "dumpable")
    _must(
        _call_prctl(_ADOPT_ORPHANS, 1), "child_subreaper"
    )  # so that whoever looks from outside finds them below this one
    if version:
        _must(_call(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
        os.close(ruleset)
    forbid_calls(program)
    return f"Landlock {version}" if version else "an empty root folder"


def forbid_calls(program: bytes) -> None:
    """Put this process and its later children behind the filter ``program``; privileges must have been given up for good.

    Raises
    ------
    OSError
        The kernel takes no filter.
    """
    steps = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(steps))
    _must(_call_prctl(_SET_SECCOMP, 2, ctypes.c_char_p(filter_)), "seccomp")


def seccomp_program(machine: str) -> bytes:
    """The filter for ``machine`` (``x86_64`` or ``aarch64``), 8 bytes an instruction.

    Raises
    ------
    OSError
        Its numbers are not known.
    """
    if machine not in _AUDIT:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}, only for {', '.join(_AUDIT)}")
    column = list(_AUDIT).index(machine)
    denied = sorted({numbers[column] for numbers in DENIED.values()} - {None}, key=lambda number: number or 0)
    deny, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    # Another machine's calls have other numbers: none of them is wanted. struct seccomp_data: number, machine, ..., arguments.
    steps = [_step(_LOAD, 4), _step(_IF_EQUAL, _AUDIT[machine], 1), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    steps += [_step(_IF_AT_LEAST, _X32, 0, 1), _step(_RETURN, deny)]
    for number in denied:
        steps += [_step(_IF_EQUAL, number or 0, 0, 1), _step(_RETURN, deny)]
    # The flags of clone3 lie in memory, where a filter cannot look; C libraries then go back to clone.
    steps += [_step(_IF_EQUAL, _CLONE3, 0, 1), _step(_RETURN, unknown)]
    steps += [_step(_IF_EQUAL, _CLONE[column], 0, 3), _step(_LOAD, 16), _step(_IF_ANY_BIT, _NEW_NAMESPACES, 0, 1)]
    steps += [_step(_RETURN, deny), _step(_RETURN, _ALLOW)]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _ruleset(version: int, folders: Sequence[str], hidden: Sequence[str]) -> int:
    bits = [_of(table, version) for table in (_FILE_RIGHTS, _TCP_RIGHTS, _SCOPES)]
    handled = [(1 << count) - 1 for count in bits]
    size = 8 if version < 4 else 16 if version < 6 else 24  # an older kernel refuses fields that it does not know
    attributes = struct.pack("QQQ", *handled)
    ruleset = _must(_call(_CREATE_RULESET, ctypes.c_char_p(attributes), size, 0), "landlock_create_ruleset")
    for folder in (*_LIBRARIES, *folders):
        if not os.path.exists(folder):
            continue
        trees, listed = trees_without(folder, hidden)
        for path in trees:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in listed:
            _allow(ruleset, path, _READ_DIR)
    for path in _SMALL_FILES:
        _allow(ruleset, path, _READ_FILE)
    for path, rights in _DEVICES.items():
        _allow(ruleset, path, rights)
    return ruleset


def _of(table: dict[int, int], version: int) -> int:
    return max((count for since, count in table.items() if since <= version), default=0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow ``rights`` on ``path`` and below; a path that is not there allows nothing."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ~_READ_DIR
        if rights:
            rule = struct.pack("=Qi", rights, fd)
            _must(_call(_ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0), f"landlock_add_rule {path}")
    finally:
        os.close(fd)


def _take_root(folder: str) -> None:
    """Make the empty ``folder``, which only root can write to, the root of all paths."""
    os.makedirs(folder, 0o755, exist_ok=True)
    os.chmod(folder, 0o755)
    if os.listdir(folder) or os.stat(folder).st_uid != 0:
        raise OSError(errno.ENOTEMPTY, f"{folder} is no empty folder of root's own")
    os.chroot(folder)
    os.chdir("/")


def _drop_capabilities() -> None:
    """Changing the user has emptied all sets but the inheritable one."""
    header = ctypes.c_char_p(struct.pack("Ii", 0x20080522, 0))
    nothing = ctypes.c_char_p(bytes(24))
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.capset(header, nothing), "capset")


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *map(_wide, arguments)))


def _call_prctl(option: int, value: int, pointer: object = None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(
        libc.prctl(option, ctypes.c_ulong(value), pointer or ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    )


def _wide(argument: object) -> object:
    """An integer as wide as a register, which a variadic function of C reads."""
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _must(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
