"""Using up processor, memory, processes, files and patience. Bounded, so that a machine without a sandbox survives them."""

from __future__ import annotations

from labkit.grading.redteam.attacks import OTHERS, Attack, answers, script

__all__ = ["ATTACKS"]


def _greedy(name: str, tries: str, body: str, *, least: int = -1, slow: bool = False, top: str = "") -> Attack:
    inner = "".join(f"    {line}\n" for line in body.split("\n"))
    code = f"import os, sys, time\n{answers('away')}{top}\ndef away(x):\n{inner}"
    return script(f"exhaust-{name}", "exhaustion", tries, code, OTHERS, least=least, slow=slow)


_FORK = """
def forked(count, then):
    for _ in range(count):
        try:
            if os.fork() == 0:
                try:
                    then()
                finally:
                    os._exit(0)
        except OSError:
            break
"""

ATTACKS = (
    _greedy("loop", "a loop without end", "while True:\n    pass"),
    _greedy("loop-in-c", "a loop without end inside of C", "return sum(range(10**13))"),
    _greedy("regex", "a regular expression that goes back and forth", "import re\nreturn re.match('(a*)*b', 'a' * 40)"),
    _greedy(
        "loop-deaf",
        "a loop deaf to every signal",
        """\
import signal
for s in range(1, 32):
    if s not in (9, 19):
        signal.signal(s, signal.SIG_IGN)
while True:
    pass""",
        slow=True,
    ),
    _greedy(
        "loop-caught",
        "a loop that catches everything",
        """\
while True:
    try:
        time.sleep(0.01)
        away(x)
    except BaseException:
        pass""",
        slow=True,
    ),
    _greedy("sleep", "sleeps", "time.sleep(10_000)", slow=True),
    _greedy("wait", "waits for what never comes", "import threading\nthreading.Event().wait()", slow=True),
    _greedy(
        "stops-parent",
        "stops its parent and runs on",
        """\
import signal
os.kill(os.getppid(), signal.SIGSTOP)
return x""",
        least=0,
        slow=True,
    ),
    _greedy(
        "kills-parent",
        "kills its parent",
        """\
import signal
os.kill(os.getppid(), signal.SIGKILL)
return x""",
        least=0,
    ),
    _greedy("kills-all", "kills all that it may", "os.kill(-1, 9)\nreturn x", least=0),
    _greedy(
        "memory",
        "a list of 6 GB",
        """\
a = []
for _ in range(6000):
    a.append(bytes(1 << 20))
return x""",
    ),
    _greedy("memory-array", "an array of 80 GB", "return np.ones(10**10)"),
    _greedy(
        "memory-together",
        "memory in six processes",
        """\
def grab():
    a = [b'x' * (1 << 20) for _ in range(250)]
    time.sleep(2)
    os._exit(len(a) % 2)
forked(6, grab)
return x""",
        top=_FORK,
    ),
    _greedy(
        "shared-memory",
        "shared memory that stays",
        """\
import ctypes
libc = ctypes.CDLL(None)
for _ in range(8):
    i = libc.shmget(0, 64 << 20, 0o1600)
    if i < 0:
        raise OSError
raise RuntimeError(''.join(MARK) + ' has shared memory')""",
        top="MARK = @mark@\n",
    ),
    _greedy("forks", "200 processes that stay", "forked(200, lambda: time.sleep(600))\nreturn x", top=_FORK),
    _greedy(
        "forks-forking",
        "processes that make processes",
        """\
def more(n=3):
    forked(3, lambda: more(n - 1)) if n else time.sleep(60)
more()
return x""",
        top=_FORK,
    ),
    _greedy(
        "daemon",
        "a daemon in a session of its own, of nobody's",
        """\
def away_from_here():
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.chdir('/')
        time.sleep(600)
forked(3, away_from_here)
return x""",
        top=_FORK,
    ),
    _greedy(
        "threads",
        "500 threads",
        """\
import threading
for _ in range(500):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
return x""",
    ),
    _greedy(
        "threads-stay",
        "threads that keep the process from ending",
        """\
import threading
for _ in range(4):
    threading.Thread(target=time.sleep, args=(600,)).start()
raise SystemExit""",
    ),
    _greedy(
        "many-files",
        "20,000 files",
        """\
import tempfile
for place in (tempfile.gettempdir(), '/dev/shm', '/var/tmp'):
    for n in range(6000):
        open(place + '/' + @planted@ + str(n), 'w').close()
return x""",
    ),
    _greedy(
        "big-file",
        "files of 200 MB",
        """\
import tempfile
for place in (tempfile.gettempdir(), '/dev/shm', '/var/tmp'):
    for n in range(20):
        with open(place + '/' + @planted@ + str(n), 'wb') as f:
            f.write(bytes(10 << 20))
return x""",
    ),
    _greedy(
        "output",
        "60 MB on every stream",
        """\
for n in range(60):
    for fd in (1, 2):
        os.write(fd, b'x' * (1 << 20))
return x""",
    ),
    _greedy("huge-list", "returns two million numbers", "return list(range(2_000_000))"),
    _greedy("huge-array", "returns an array of 80 MB", "return np.zeros(10_000_000, np.int64)"),
    _greedy("huge-text", "returns a string of 30 MB", "return 'x' * 30_000_000"),
    _greedy("huge-number", "returns a number of 100,000 digits", "return 1 << 330_000"),
    _greedy("odd-number", "returns 10**40", "return 10**40"),
    _greedy("many-keys", "returns a dict of long names", "return {str(n) * 50: n for n in range(8000)}"),
    _greedy(
        "endless",
        "returns what goes on for ever",
        """\
def for_ever():
    while True:
        yield 1
return for_ever()""",
    ),
    _greedy(
        "definitions",
        "a class whose body never ends",
        "return Slow",
        slow=True,
        top="""\
class Slow:
    while True:
        pass
""",
    ),
    _greedy(
        "descriptors",
        "opens all it may",
        """\
a = []
while True:
    a.append(open('/dev/null'))""",
    ),
)
