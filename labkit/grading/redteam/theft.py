"""Reading or reaching what is not theirs: secrets, other people's work, right answers, other processes, the network."""

from __future__ import annotations

from labkit.grading.redteam.attacks import OTHERS, Attack, answers, script

__all__ = ["ATTACKS"]

_TOP = """
import os, sys
MARK = @mark@
def reached(what):
    raise RuntimeError("".join(MARK) + " " + str(what)[:200])
def look(paths):
    for path in paths:
        try:
            with open(path, "rb") as file:
                text = file.read(1 << 16)
        except OSError:
            continue
        reached([path, text[:120]])
def pids():
    try:
        found = [int(p) for p in os.listdir("/proc") if p.isdigit()]
    except OSError:
        found = [os.getppid(), 1, 2, 3]
    return [p for p in {*found, *@pids@} if p != os.getpid()]
"""


def _thief(name: str, tries: str, body: str) -> Attack:
    inner = "".join(f"    {line}\n" for line in body.split("\n"))
    code = f"{answers('away')}{_TOP}\ndef away(x):\n{inner}    return x\n"
    return script(f"steal-{name}", "theft", tries, code, OTHERS)


_WHOLE = """\
try:
    reached([path, os.listdir(path)])
except OSError:
    pass"""

ATTACKS = (
    _thief(
        "environment",
        "the environment of its own process",
        """\
for name, value in os.environ.items():
    if @prefix@ in name or @prefix@ in value:
        reached([name, value])""",
    ),
    _thief(
        "environments",
        "the environment of every process",
        """\
for pid in [*pids(), 'self']:
    try:
        text = open(f'/proc/{pid}/environ').read()
    except OSError:
        continue
    if @prefix@ in text:
        reached(text)""",
    ),
    _thief(
        "commands",
        "the command line of the grader",
        """\
for pid in pids():
    try:
        text = open(f'/proc/{pid}/cmdline').read()
    except OSError:
        continue
    if 'labkit.grading.redteam.child' in text:
        reached(text)""",
    ),
    _thief("secret", "a file that everybody may read", "look([@secret_file@])"),
    _thief(
        "secret-links",
        "the same through links",
        """\
import tempfile
place = tempfile.gettempdir() + '/link'
try:
    os.symlink(@secret_file@, place)
    look([place])
    os.remove(place)
    os.link(@secret_file@, place)
except OSError:
    pass
look([place, '/proc/self/root' + @secret_file@, '/proc/self/cwd/../../../..' + @secret_file@, '/proc/1/root' + @secret_file@])""",
    ),
    _thief("seed", "the private seed", "look([@seed_file@])"),
    _thief(
        "receipts",
        "receipts, marks and feedback of others",
        """\
for name in ('receipt.json', 'verdict.json', 'feedback.html'):
    look([os.path.join(@out@, 'a-neighbour', name), os.path.join(@out@, 'grades.csv')])
for path in (@out@,):
    try:
        reached(os.listdir(path))
    except OSError:
        pass""",
    ),
    _thief(
        "neighbour",
        "another submission",
        """\
look([@neighbour@])
import glob
look(glob.glob(os.path.dirname(@neighbour@) + '/*'))""",
    ),
    _thief(
        "solutions",
        "the solutions",
        """\
look([@solutions@])
for path in ('/solutions', '/course/solutions', '/packages/solutions'):
    """
        + _WHOLE.replace("\n", "\n    "),
    ),
    _thief(
        "exercises",
        "the exercises, where the right values come from",
        """\
look([@exercises@])
import glob
look(glob.glob('/*/exercises/*.py') + glob.glob('/*/*/exercises/*.py'))""",
    ),
    _thief(
        "library-files",
        "labkit's own function from its file",
        """\
import glob
for root in [@library@, '/packages/labkit', '/kit/labkit', *[p + '/labkit' for p in sys.path]]:
    for file in [root + '/arithmetic/requantize.py', *glob.glob(root + '/**/*.py', recursive=True)]:
        try:
            text = open(file).read()
        except OSError:
            continue
        if 'def round_half_away' in text:
            reached(file)""",
    ),
    _thief(
        "library-import",
        "labkit's own function by its name",
        """\
import importlib
for name in ('labkit.arithmetic.requantize', 'labkit.arithmetic', 'labkit'):
    try:
        m = importlib.import_module(name)
        reached(getattr(m, 'round_half_away'))
    except (ImportError, AttributeError):
        pass""",
    ),
    _thief(
        "library-objects",
        "labkit's own function among all objects",
        """\
import gc
for o in gc.get_objects():
    if callable(o) and getattr(o, '__name__', '') == 'round_half_away':
        reached(o)
    if isinstance(o, dict) and 'round_half_away' in o:
        reached(list(o))""",
    ),
    _thief(
        "library-unhidden",
        "what forbids imports, taken away",
        """\
sys.meta_path[:] = [f for f in sys.meta_path if type(f) is type]
for name in [n for n in sys.modules if n.startswith('labkit')]:
    del sys.modules[name]
sys.path[:0] = ['/kit', os.path.dirname(@library@), *sys.path]
sys.path_importer_cache.clear()
try:
    from labkit.arithmetic.requantize import round_half_away
except ImportError:
    return x
reached(round_half_away)""",
    ),
    _thief(
        "home",
        "everybody's files",
        "for path in ('/root', '/home', '/work', '/Users', '/mnt', '/srv', '/var/lib', @home@, @cwd@):\n    "
        + _WHOLE.replace("\n", "\n    "),
    ),
    _thief(
        "accounts", "accounts and passwords", "look(['/etc/passwd', '/etc/shadow', '/etc/hosts', '/etc/resolv.conf'])"
    ),
    _thief(
        "tcp",
        "TCP to this machine",
        """\
import socket
for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    try:
        s = socket.socket(family)
        s.settimeout(0.2)
        s.connect((host, @tcp@))
        s.sendall(b'steal-tcp')
    except OSError:
        continue
    reached(host)""",
    ),
    _thief(
        "udp",
        "UDP to this machine",
        """\
import socket
for _ in range(3):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'steal-udp', ('127.0.0.1', @udp@))
    except OSError:
        pass""",
    ),
    _thief(
        "unix",
        "a Unix socket",
        """\
import socket
try:
    s = socket.socket(socket.AF_UNIX)
    s.connect(@unix@)
    s.sendall(b'steal-unix')
except OSError:
    return x
reached(@unix@)""",
    ),
    _thief(
        "abstract",
        "a Unix socket without a file",
        """\
import socket
try:
    s = socket.socket(socket.AF_UNIX)
    s.connect(@abstract@)
    s.sendall(b'steal-abstract')
except OSError:
    return x
reached(@abstract@)""",
    ),
    _thief(
        "web",
        "the web",
        """\
import socket, urllib.request
for host in (('192.0.2.1', 80), ('1.1.1.1', 53)):
    try:
        s = socket.create_connection(host, 0.2)
    except OSError:
        continue
    reached(host)
try:
    reached(urllib.request.urlopen('http://127.0.0.1:%d/steal-web' % @tcp@, timeout=0.3).status)
except OSError:
    pass""",
    ),
    _thief(
        "dns",
        "a name server",
        """\
import socket
socket.setdefaulttimeout(0.2)
try:
    servers = [line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')]
except OSError:
    servers = []
for host, port in [(s, 53) for s in servers] + [('127.0.0.1', @udp@)]:
    try:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.sendto(b'steal-dns' + bytes(30), (host, port))
    except OSError:
        continue
    try:
        s.recv(1)
    except OSError:
        continue
    reached(host)""",
    ),
    _thief(
        "raw-socket",
        "raw and netlink sockets",
        """\
import socket
for arguments in ((socket.AF_INET, socket.SOCK_RAW, 1), (17, socket.SOCK_RAW, 3)):
    try:
        socket.socket(*arguments)
    except OSError:
        continue
    reached(arguments)""",
    ),
    _thief(
        "memory",
        "the memory of other processes",
        """\
for pid in pids():
    for name in ('mem', 'maps', 'smaps', 'stack', 'auxv'):
        look([f'/proc/{pid}/{name}'])
    try:
        os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR))
    except OSError:
        continue
    reached(pid)""",
    ),
    _thief(
        "ptrace",
        "debugging other processes",
        """\
import ctypes
libc = ctypes.CDLL(None)
for pid in pids():
    if libc.ptrace(16, pid, 0, 0) == 0:
        reached(pid)
    one = (ctypes.c_size_t * 2)(0, 1)
    if libc.process_vm_readv(pid, one, 1, one, 1, 0) > 0:
        reached(pid)""",
    ),
    _thief(
        "signals",
        "signals to the grader",
        """\
for pid in @pids@:
    for group in (os.kill, os.killpg):
        try:
            group(pid, 0)
        except OSError:
            continue
        if pid > 400:
            reached(pid)""",
    ),
    _thief(
        "namespaces",
        "a namespace of its own in which it is root",
        """\
import ctypes
libc = ctypes.CDLL(None)
for flags in (0x10000000, 0x50000000, 0x10020000, 0x20000, 0x40000000):
    if libc.unshare(flags) == 0:
        reached(hex(flags))""",
    ),
    _thief(
        "root",
        "being root",
        """\
for call in (os.setuid, os.setgid, os.seteuid):
    try:
        call(0)
    except OSError:
        continue
    if os.getuid() == 0 and @is_root@:
        reached(call)""",
    ),
    _thief(
        "write-packages",
        "NumPy for the next student, with a hole",
        """\
import numpy, tempfile
places = [os.path.dirname(numpy.__file__), os.path.dirname(os.__file__), '/kit', '/packages', '/python', '/usr/lib', '/']
for place in [*places, @library@, @out@, os.path.dirname(@neighbour@)]:
    try:
        open(place + '/' + @planted@ + '.py', 'w').close()
    except OSError:
        continue
    reached(place)""",
    ),
    _thief(
        "leave-files",
        "files left for the next student",
        """\
import tempfile
for place in (tempfile.gettempdir(), '/dev/shm', '/var/tmp', '/run', '/dev/mqueue', @cwd@, @home@):
    try:
        with open(place + '/' + @planted@, 'a') as file:
            file.write('hello')
    except OSError:
        pass""",
    ),
    _thief(
        "find-files",
        "files left by the student before",
        """\
import glob, tempfile
found = []
for place in (tempfile.gettempdir(), '/dev/shm', '/var/tmp'):
    found += glob.glob(place + '/' + @planted@ + '*')
if found:
    reached(found)""",
    ),
    _thief(
        "descriptors",
        "what its descriptors lead to",
        """\
import stat
for fd in range(3, 256):
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            reached(os.listdir(fd))
        if stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
            reached(os.readlink(f'/proc/self/fd/{fd}'))
    except OSError:
        pass""",
    ),
    _thief(
        "programs",
        "other programs, as they are found in the system",
        """\
import subprocess
for command in (['cat', @secret_file@], ['mount'], ['curl', 'http://127.0.0.1:%d' % @tcp@]):
    try:
        out = subprocess.run(command, capture_output=True, timeout=1).stdout
    except (OSError, subprocess.SubprocessError):
        continue
    if @prefix@.encode() in out:
        reached(out)""",
    ),
    _thief(
        "tells",
        "passes a secret on in every field of a reply",
        """\
text = ''
for path in (@secret_file@, @seed_file@):
    try:
        text += open(path).read()
    except OSError:
        pass
if text:
    reached(text)
raise ValueError(text + 'nothing found')""",
    ),
)
