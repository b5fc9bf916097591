"""Functions that crash in every way there is: each costs its own task, and nothing else."""

from __future__ import annotations

from labkit.grading.redteam.attacks import OTHERS, Attack, answers, script

__all__ = ["ATTACKS"]


def _crash(name: str, tries: str, body: str, top: str = "") -> Attack:
    inner = "".join(f"    {line}\n" for line in body.split("\n"))
    return script(f"crash-{name}", "crash", tries, f"{answers('away')}{top}\ndef away(x):\n{inner}", OTHERS)


ATTACKS = (
    _crash("exception", "an ordinary exception", "return x[1000]"),
    _crash("sys-exit", "sys.exit", "import sys\nsys.exit(0)"),
    _crash("os-exit", "os._exit with success", "import os\nos._exit(0)"),
    _crash("system-exit", "SystemExit with a text", "raise SystemExit('12 of 12 points')"),
    _crash("interrupt", "KeyboardInterrupt", "raise KeyboardInterrupt"),
    _crash("segfault", "reads address 0 through ctypes", "import ctypes\nreturn ctypes.string_at(0)"),
    _crash("abort", "aborts the process", "import os\nos.abort()"),
    _crash("kill-self", "kills itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    _crash(
        "stop-self",
        "stops itself through all signals at once",
        """\
import os, signal
for s in range(1, 32):
    if s not in (9, 17, 18, 19, 20, 21, 22, 23, 28):
        os.kill(os.getpid(), s)""",
    ),
    _crash("recursion", "recursion without end", "return away(x)"),
    _crash(
        "deep-recursion",
        "recursion with the limit lifted",
        """\
import sys
sys.setrecursionlimit(10**9)
return away(x)""",
    ),
    _crash(
        "evil-error",
        "an exception whose text, name and class raise",
        "raise Evil",
        """
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
class Evil(Exception, metaclass=Meta):
    def __str__(self):
        raise SystemExit
    __repr__ = __str__
""",
    ),
    _crash("half-character", "an exception with half a character", "raise ValueError('\\ud800 \\x00 \\x1b[31m')"),
    _crash("long-error", "an exception of ten million letters", "raise ValueError('x' * 10_000_000)"),
    _crash(
        "closes-all",
        "closes every descriptor",
        """\
import os
os.closerange(0, 256)
return x""",
    ),
    _crash(
        "class-body",
        "a class whose body ends the program",
        "return Early",
        """\
import os
class Early:
    os._exit(0)
""",
    ),
    _crash(
        "default",
        "a default argument that raises SystemExit",
        "return f(x)",
        """\
def f(x, a=(_ for _ in ()).throw(SystemExit)):
    return x
""",
    ),
    _crash("returns-nothing", "returns None", "return None"),
    _crash("returns-odd", "returns an object, a generator, itself", "return [x, iter(x), away, object()]"),
    _crash(
        "returns-circle",
        "returns a list that holds itself",
        """\
a = []
a.append(a)
return a""",
    ),
    _crash(
        "returns-deep",
        "returns a list nested 100,000 deep",
        """\
a = []
for _ in range(100_000):
    a = [a]
return a""",
    ),
    _crash(
        "returns-strange",
        "strings, complex numbers, dates",
        "import numpy as np\nreturn np.array([1j, 2]), np.array(['1']), np.datetime64(0, 's')",
    ),
    script(
        "crash-wrong-signature",
        "crash",
        "no parameters at all",
        answers("away")
        + """\
def away():
    return 1
""",
        OTHERS,
    ),
    script("crash-no-function", "crash", "a number where a function is meant", answers("away") + "away = 7\n", OTHERS),
)
