"""Right answers in odd clothes: each must get full marks."""

from __future__ import annotations

import codecs
import io
import json
import zipfile
from pathlib import Path

from labkit.grading.redteam.attacks import FULL, Attack, Bait, answers, cells_of, made, notebook, script, stored

__all__ = ["ATTACKS"]

_RIGHT = answers()
_NO_AWAY = answers("away")
_AWAY = _RIGHT[_RIGHT.index("def away") : _RIGHT.index("def energy")]


def _odd(name: str, tries: str, code: str, points: int = FULL) -> Attack:
    return script(name, "honest", tries, code, points)


def _zipped(folder: Path, bait: Bait) -> None:
    with zipfile.ZipFile(folder / "honest-zip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("my work/m99_target.ipynb", cells_of([_RIGHT]))
        archive.writestr("__MACOSX/._m99_target.ipynb", b"\0\0\0")
        archive.writestr("data.csv", "1,2")


def _in_folder(folder: Path, bait: Bait) -> None:
    place = folder / "honest-folder" / "deep" / "er"
    place.mkdir(parents=True)
    (place / "m99_target.ipynb").write_text(cells_of([_RIGHT]), "utf-8")
    (place / "notes.txt").write_text("hello", "utf-8")


def _packed_text() -> bytes:
    out = io.StringIO()
    json.dump(json.loads(cells_of([_RIGHT])), out, ensure_ascii=False, indent=1)
    return codecs.BOM_UTF16_LE + out.getvalue().encode("utf-16-le")


ATTACKS = (
    _odd("honest-plain", "nothing", _RIGHT),
    _odd(
        "honest-prints",
        "prints on both streams",
        _NO_AWAY
        + "import sys\n"
        + _AWAY.replace(
            "    x =",
            """\
    print('x is', x, flush=True)
    print('careful', file=sys.stderr)
    sys.stdout.write('.' * 100000)
    x =""",
            1,
        ),
    ),
    _odd(
        "honest-warns",
        "warnings, and divisions by zero on the way",
        _NO_AWAY
        + "import warnings\n"
        + _AWAY.replace(
            "    x =",
            """\
    warnings.warn('deprecated', DeprecationWarning)
    np.float64(1) / np.float64(0)
    x =""",
            1,
        ),
    ),
    _odd(
        "honest-logs",
        "logging at the top and inside",
        _NO_AWAY
        + """\
import logging
logging.basicConfig(level=logging.DEBUG)
"""
        + _AWAY.replace("    x =", "    logging.getLogger(__name__).error('here')\n    x =", 1),
    ),
    _odd(
        "honest-slow-imports",
        "imports all that is heavy",
        """\
import torch
import scipy.optimize
import matplotlib.pyplot as plt
"""
        + _NO_AWAY
        + """\
def away(x):
    t = torch.as_tensor(np.asarray(x, np.float64))
    return (torch.sign(t) * torch.floor(t.abs() + 0.5)).to(torch.int32)
""",
    ),
    _odd(
        "honest-missing-import",
        "an import that is not installed and not needed",
        "import pandas_of_tomorrow as pd\n" + _RIGHT,
    ),
    _odd(
        "honest-helpers",
        "helpers, constants, a class",
        """
from dataclasses import dataclass
import numpy as np
HALF = 0.5
SIGNS = {"up": 1, "down": -1}
@dataclass
class Rounder:
    offset: float = HALF
    def __call__(self, v):
        return SIGNS["up"] * int(v + self.offset) if v >= 0 else SIGNS["down"] * int(-v + self.offset)
def one(v, r=Rounder()):
    return r(v)
def away(x):
    return np.array([one(v) for v in x])
"""
        + _NO_AWAY,
    ),
    _odd(
        "honest-list",
        "a list where an array is meant, a list for a tuple",
        answers("away", "spread")
        + """
def away(x):
    return [int(abs(v) + 0.5) * (1 if v >= 0 else -1) for v in x]
def spread(x):
    return [np.float64(np.mean(x)), np.int8(np.floor(x.max() - x.min() + 0.5)) if x.size == 1 else int(x.max() - x.min() + 0.5)]
""",
    ),
    _odd("honest-int16", "another width of integer", _NO_AWAY + _AWAY.replace("np.int64", "np.int16")),
    _odd(
        "honest-tensor",
        "a tensor that wants gradients, a 0-D array",
        "import torch\n"
        + answers("energy")
        + """\
def energy(product, v):
    return torch.tensor(float(v @ product(v)), dtype=torch.float64, requires_grad=True)
""",
    ),
    _odd(
        "honest-star-import",
        "from numpy import *",
        """\
from numpy import *
import numpy as np
"""
        + answers("away")
        + """\
def away(x):
    return (sign(x) * floor(abs(x) + 0.5)).astype(int64)
""",
    ),
    _odd(
        "honest-given",
        "uses what the task is given",
        answers("spread")
        + """\
from labkit.arithmetic.requantize import round_half_away
def spread(x):
    return float(np.mean(x)), int(round_half_away(np.array([x.max() - x.min()]))[0])
""",
    ),
    _odd(
        "honest-changes-input",
        "changes its arguments in place",
        _NO_AWAY
        + _AWAY.replace(
            "    return (",
            """\
    old = x.copy()
    x[:] = 0
    x = old
    return (""",
            1,
        ),
    ),
    _odd(
        "honest-keeps-state",
        "a cache and a global",
        _NO_AWAY
        + """\
from functools import lru_cache
calls = 0
@lru_cache
def half():
    return 0.5
"""
        + _AWAY.replace(
            "    x =",
            """\
    global calls
    calls += 1
    x =""",
            1,
        ).replace("0.5", "half()"),
    ),
    _odd(
        "honest-threads",
        "computes in threads",
        _NO_AWAY
        + """\
from concurrent.futures import ThreadPoolExecutor
def away(x):
    with ThreadPoolExecutor(4) as pool:
        return np.array(list(pool.map(lambda v: int(abs(v) + 0.5) * (1 if v >= 0 else -1), x)))
""",
    ),
    _odd(
        "honest-numba",
        "compiles with numba",
        _NO_AWAY
        + """\
import numba
@numba.njit('int64(float64)')
def one(v):
    return int(np.floor(abs(v) + 0.5)) * (1 if v >= 0 else -1)
def away(x):
    return np.array([one(v) for v in x])
""",
        FULL,
    ),
    _odd(
        "honest-half-right",
        "one task blank, one half right",
        answers("away", "energy")
        + """\
def away(x):
    if np.any(np.abs(x) % 1 == 0.5):
        raise NotImplementedError('ties are for tomorrow')
    return np.rint(x).astype(int)
def energy(product, v):
    raise NotImplementedError
""",
        6,
    ),
    notebook(
        "honest-magics",
        "honest",
        "magics, shell lines, other languages",
        [
            """\
%matplotlib inline
!pip install everything
import numpy as np
""",
            """\
%%bash
rm -rf nothing
""",
            "%%time\n" + _RIGHT,
            "?np.rint",
            "x = !ls\n",
            """\
for i in range(10):
    print(i)
    %time 1
""",
        ],
    ),
    notebook(
        "honest-twice",
        "honest",
        "every function twice, the wrong one first",
        [
            """\
import numpy as np
def away(x):
    return x
""",
            _RIGHT,
            "assert False, 'left by accident'\n",
        ],
    ),
    notebook(
        "honest-shuffled",
        "honest",
        "cells in another order, checks deleted",
        ["away(np.zeros(3))\n", *[f"def {part}" for part in _RIGHT.split("def ")[:0:-1]], "import numpy as np\n"],
    ),
    notebook(
        "honest-broken-cell",
        "honest",
        "cells that are no Python, code left open, raw cells",
        [
            "this is not Python (\n",
            {"cell_type": "raw", "source": "x"},
            _RIGHT,
            "def away(x\n",
            {"cell_type": "markdown"},
            "\tif",
        ],
    ),
    notebook(
        "honest-lines",
        "honest",
        "source as lists of lines, Windows line ends, tabs",
        [{"cell_type": "code", "source": [line + "\r\n" for line in _RIGHT.replace("    ", "\t").split("\n")]}],
    ),
    notebook(
        "honest-no-metadata",
        "honest",
        "cells without ids, metadata or outputs, and one id twice",
        [{"cell_type": "code", "source": _RIGHT, "id": "a"}, {"cell_type": "code", "source": "1", "id": "a"}],
    ),
    stored("honest-utf16", "honest", "UTF-16, as Windows saves it", _packed_text, FULL),
    stored("honest-bom", "honest", "UTF-8 with a byte-order mark", codecs.BOM_UTF8 + cells_of([_RIGHT]).encode(), FULL),
    stored(
        "honest-latin1",
        "honest",
        "a comment in Latin-1",
        b"# -*- coding: latin-1 -*-\n# gr\xfc\xdfe\n" + _RIGHT.encode(),
        FULL,
        ".py",
    ),
    stored(
        "honest-crlf", "honest", "a script with Windows line ends", _RIGHT.replace("\n", "\r\n").encode(), FULL, ".py"
    ),
    made("honest-zip", "honest", "a zip from a Mac, in a folder with a blank", _zipped, FULL, "honest-zip.zip"),
    made("honest-folder", "honest", "a folder in a folder", _in_folder, FULL),
)
