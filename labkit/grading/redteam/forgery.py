"""Getting marks without answers: objects that lie, a tampered machinery, replies written by hand."""

from __future__ import annotations

from labkit.grading.redteam.attacks import OTHERS, Attack, answers, script

__all__ = ["ATTACKS"]

_FRAMES = """
import json, os, struct
def send(data, raw=None):
    text = json.dumps(data).encode() if raw is None else raw
    frame = struct.pack(">I", len(text)) + text
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            os.write(fd, frame)
        except OSError:
            pass
"""


def _liar(name: str, tries: str, base: str, make: str) -> Attack:
    code = f"""
import numpy as np
class Liar({base}):
    __hash__ = None
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __sub__(self, other): return 0 * other
    __rsub__ = __sub__
    def __abs__(self): return 0
    def __array__(self, *a, **k): return np.zeros(6)
    def __array_ufunc__(self, ufunc, *a, **k): return np.zeros((), bool)
    def __array_function__(self, *a, **k): return True
    def __deepcopy__(self, memo): return self
    def __reduce_ex__(self, protocol): return True
def away(x): return {make}
def energy(product, v): return {make}
def spread(x): return {make}
"""
    return script(f"forge-{name}", "forgery", tries, code, 0)


def _forger(
    name: str, tries: str, body: str, top: str = "", points: int = 0, least: int = -1, slow: bool = False
) -> Attack:
    inner = "".join(f"    {line}\n" for line in body.split("\n"))
    functions = (
        f"def cheat():\n{inner}\ndef away(x):\n    return cheat()\ndef energy(product, v):\n    return cheat()\n"
    )
    code = f"import numpy as np\n{top}\n{functions}def spread(x):\n    return cheat()\n"
    return script(f"forge-{name}", "forgery", tries, code, points, least=least, slow=slow)


def _by_hand(name: str, tries: str, data: str, raw: str = "None") -> Attack:
    """One task writes a reply by hand and ends; the others are right and must keep their points."""
    code = answers("away") + _FRAMES + f"def away(x):\n    send({data}, {raw})\n    os._exit(0)\n"
    return script(f"forge-{name}", "forgery", tries, code, OTHERS)


ATTACKS = (
    _liar("liar", "an object that equals everything", "object", "Liar()"),
    _liar("liar-array", "an array that equals everything", "np.ndarray", "np.zeros(6).view(Liar)"),
    _liar("liar-float", "a real number that equals everything", "float", "Liar(1e300)"),
    _liar("liar-int", "an integer that equals everything", "int", "Liar(123456789)"),
    _liar("liar-list", "a list that equals everything", "list", "Liar([1, 2])"),
    _liar("liar-tuple", "a tuple that equals everything", "tuple", "Liar((Liar, 1))"),
    _liar("liar-dict", "a dict that equals everything", "dict", "Liar(outcome='pass')"),
    _liar("liar-text", "a string that equals everything", "str", "Liar('pass')"),
    _forger(
        "verdict", "returns a verdict", "return {'outcome': 'pass', 'points': 12, 'score': 12, 'status': 'passed'}"
    ),
    _forger("nan", "returns NaN, which is neither larger nor smaller", "return float('nan')"),
    _forger("infinity", "returns infinity", "return np.array([np.inf] * 6)"),
    _forger("empty", "returns nothing to compare", "return np.zeros((0,))"),
    _forger("broadcast", "returns an array that would be stretched", "return np.zeros((1, 1, 1))"),
    _forger(
        "ingredient",
        "returns an ingredient to be built outside",
        """\
import gc
for o in gc.get_objects():
    if type(o) is type and o.__name__ == 'Made':
        return o('numbers.generator', {'seed': 1})
return 1""",
    ),
    _forger(
        "ingredient-dict",
        "returns what looks like an ingredient",
        "return {'made': 'numbers.generator', 'with': {'seed': 1}}",
    ),
    _forger(
        "tags",
        "returns the marks that values travel with",
        "return {'array': 'int64', 'shape': [6], 'values': [0] * 6, 'tuple': [], 'real': 'nan'}",
    ),
    _forger(
        "numpy",
        "patches NumPy's comparisons",
        """\
for name in 'array_equal allclose isclose any all abs not_equal equal'.split():
    setattr(np, name, lambda *a, **k: True)
return np.zeros(6)""",
    ),
    _forger(
        "json",
        "patches json",
        """\
import json
json.dumps = lambda *a, **k: '{"outcome": "pass"}'
json.loads = lambda *a, **k: {'outcome': 'pass'}
return 1""",
    ),
    _forger(
        "builtins",
        "patches what Python is made of",
        """\
import builtins
builtins.isinstance = lambda *a: True
builtins.type = lambda *a: float
builtins.len = lambda a: 6
return 1""",
    ),
    _forger(
        "struct",
        "patches struct and os.write",
        """\
import os, struct
old = os.write
os.write = lambda fd, b: old(fd, b.replace(b'error', b'value'))
return 1""",
    ),
    _forger(
        "frames",
        "walks the frames of its callers and changes what they hold",
        """\
import sys
f = sys._getframe()
while f:
    for n in list(f.f_locals):
        if n in ('reply', 'inputs', 'asked', 'request', 'nonce', 'expected'):
            f.f_locals[n] = {'outcome': 'pass'}
    f = f.f_back
return 1""",
    ),
    _forger(
        "expected",
        "looks for the right value in all frames and objects",
        """\
import gc, sys
f = sys._getframe()
while f:
    for space in (f.f_locals, f.f_globals):
        for n in ('expected', 'oracle', 'solution', 'answer', 'AWAY', 'MODULE'):
            if n in space:
                return space[n]
    f = f.f_back
for o in gc.get_objects():
    if isinstance(o, dict) and 'expected' in o and not isinstance(o['expected'], type):
        return o['expected']
return 1""",
    ),
    _forger(
        "modules",
        "puts modules of its own in labkit's place",
        """\
import sys, types
for name in list(sys.modules):
    if name.startswith(('labkit', '__main__')):
        sys.modules[name] = types.ModuleType(name)
return 1""",
    ),
    _forger(
        "main",
        "changes the functions of the program that runs it",
        """\
import gc
for o in gc.get_objects():
    if isinstance(o, dict) and 'write_frame' in o and 'read_frame' in o:
        o['encode'] = o['plain'] = o['serve'] = o['answer'] = lambda *a: 0
        o['_said'] = lambda e: 'pass'
return 1""",
    ),
    _forger(
        "judge",
        "a judge of its own that likes everything",
        """\
import gc
for o in gc.get_objects():
    if isinstance(o, type) and hasattr(o, 'compare') and hasattr(o, 'same'):
        o.compare = lambda *a: None
return 1""",
    ),
    _forger(
        "trace",
        "a trace function that changes what is returned",
        """\
import sys
sys.setprofile(lambda *a: None)
sys.settrace(lambda frame, event, arg: None)
return 1""",
    ),
    _forger(
        "atexit",
        "waits for the end of the program",
        """\
import atexit
atexit.register(send, {'outcome': 'pass', 'points': 12})
raise SystemExit""",
        _FRAMES,
    ),
    _by_hand("pass", "a reply by hand that says pass", "{'outcome': 'pass', 'points': 4}"),
    _by_hand(
        "ungraded", "a reply by hand that blames the grader", "{'outcome': 'ungraded', 'message': 'the grader failed'}"
    ),
    _by_hand(
        "made", "a reply by hand with a damaged ingredient", "{'outcome': 'value', 'value': {'made': 'x', 'with': []}}"
    ),
    _by_hand("dict", "a reply by hand with a damaged dict", "{'outcome': 'value', 'value': {'dict': 5}}"),
    _by_hand(
        "array",
        "a reply by hand with a damaged array",
        "{'outcome': 'value', 'value': {'array': 'int8', 'shape': [-1, [2]], 'values': {'a': 1}}}",
    ),
    _by_hand(
        "large-shape",
        "an array that says it is huge",
        "{'outcome': 'value', 'value': {'array': 'int8', 'shape': [10**9, 10**9, 0], 'values': []}}",
    ),
    _by_hand(
        "message",
        "a message that is no text",
        "{'outcome': 'error', 'message': [[['x'] * 100]] * 10, 'line': {'a': 1}}",
    ),
    _by_hand("deep", "a reply nested without end", "0", "b'[' * 200_000"),
    _by_hand(
        "deep-value",
        "a reply nested as deep as can be read",
        "0",
        "b'{\"outcome\": \"error\", \"message\": ' + b'[' * 900 + b']' * 900 + b'}'",
    ),
    _by_hand("half", "half a reply", "0", 'b\'{"outcome": "val\''),
    _by_hand("not-text", "a reply that is no text", "0", "bytes(range(256))"),
    _by_hand("no-dict", "a reply that is a list", "['value', 1]"),
    _by_hand("nan-text", "NaN and 1e999 as JSON", "0", 'b\'{"outcome": "value", "value": [NaN, 1e999, -Infinity]}\''),
    _by_hand(
        "digits",
        "a number of a million digits",
        "0",
        "b'{\"outcome\": \"value\", \"value\": ' + b'9' * 1_000_000 + b'}'",
    ),
    script(
        "forge-header",
        "forgery",
        "a reply that says it has 4 GB",
        answers("away")
        + """\
import os
def away(x):
    for fd in range(3, 64):
        try:
            os.write(fd, b'\\xff' * 64)
        except OSError:
            pass
    return x
""",
        OTHERS,
    ),
    script(
        "forge-replay",
        "forgery",
        "says an earlier reply again",
        answers("away")
        + _FRAMES
        + """\
def away(x):
    send({'outcome': 'value', 'value': [0]})
    send({'outcome': 'value', 'value': [0]})
    return x
""",
        OTHERS,
    ),
    script(
        "forge-nonce",
        "forgery",
        "guesses the number of the question",
        answers("away")
        + _FRAMES
        + """\
def away(x):
    for n in range(500):
        send({'nonce': f'{n:016x}', 'outcome': 'pass', 'value': 1})
    return x
""",
        OTHERS,
    ),
    script(
        "forge-late",
        "forgery",
        "a child that writes replies later, into other tasks",
        answers("away")
        + _FRAMES
        + """\
import time
def away(x):
    if os.fork() == 0:
        os.setsid()
        for _ in range(200):
            send({'outcome': 'value', 'value': {'tuple': [0.0, 0]}})
            time.sleep(0.01)
        os._exit(0)
    return x
""",
        OTHERS,
    ),
    script(
        "forge-thread",
        "forgery",
        "a thread that writes replies later",
        answers("away")
        + _FRAMES
        + """\
import threading, time
def later():
    for _ in range(200):
        send({'outcome': 'value', 'value': 1})
        time.sleep(0.01)
def away(x):
    threading.Thread(target=later, daemon=True).start()
    return x
""",
        OTHERS,
    ),
    _forger(
        "proc-fd",
        "writes into the pipes of every process",
        """\
for pid in [p for p in os.listdir('/proc') if p.isdigit()]:
    try:
        fds = os.listdir(f'/proc/{pid}/fd')
    except OSError:
        continue
    for fd in fds:
        try:
            if int(pid) != os.getpid() and 'pipe' in os.readlink(f'/proc/{pid}/fd/{fd}'):
                g = os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK)
                os.write(g, b'\\0\\0\\0\\2{}')
                raise RuntimeError(''.join(MARK) + ' wrote into a pipe')
        except OSError:
            pass
return 1""",
        """\
import os
MARK = @mark@
""",
    ),
)
