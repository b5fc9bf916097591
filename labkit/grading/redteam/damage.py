"""Notebooks that are damaged, or are none."""

from __future__ import annotations

import json

from labkit.grading.redteam.attacks import FULL, OTHERS, Attack, answers, cells_of, notebook, script, stored

__all__ = ["ATTACKS"]

_RIGHT = answers()


def _text(name: str, tries: str, text: str, points: int = 0) -> Attack:
    return stored(f"damage-{name}", "notebook", tries, text.encode("utf-8", "surrogatepass"), points)


def _around(cells: object) -> str:
    return json.dumps({"cells": cells, "nbformat": 4})


ATTACKS = (
    _text("empty", "an empty file", ""),
    _text("truncated", "half a notebook", cells_of([_RIGHT])[:200]),
    _text("deep", "brackets nested 100,000 deep", "[" * 100_000),
    _text("deep-cells", "cells nested 50,000 deep", '{"cells": ' + "[" * 50_000 + "]" * 50_000 + "}"),
    _text("no-cells", "no cells at all", '{"nbformat": 4}'),
    _text("list", "a list", "[1, 2, 3]"),
    _text("number", "a number", "7"),
    _text("nan", "NaN for cells", '{"cells": NaN}'),
    _text("huge-int", "a number of 100,000 digits", '{"cells": [], "x": ' + "9" * 100_000 + "}"),
    _text(
        "wrong-types",
        "everything of another type",
        _around(
            [
                None,
                1,
                "x",
                [],
                {"cell_type": "code", "source": 5},
                {"cell_type": ["code"], "source": {}},
                {"cell_type": "code", "source": [1, None, ["x"]]},
            ]
        ),
    ),
    _text(
        "mixed-types",
        "answers among things of another type",
        _around([None, {"cell_type": "code", "source": [_RIGHT, 5, None]}]),
        FULL,
    ),
    _text(
        "null-bytes",
        "null bytes in the code",
        _around([{"cell_type": "code", "source": "x = 1\0\n"}, {"cell_type": "code", "source": _RIGHT}]),
        FULL,
    ),
    _text(
        "half-characters",
        "half a character in the code",
        _around([{"cell_type": "code", "source": "y = '\ud800'"}, {"cell_type": "code", "source": _RIGHT}]),
        FULL,
    ),
    stored("damage-bytes", "notebook", "bytes that are no text", bytes(range(256)) * 40),
    stored(
        "damage-not-utf8",
        "notebook",
        "Latin-1 where UTF-8 is meant",
        cells_of(["# gruesse", _RIGHT]).encode().replace(b"ue", b"\xfc"),
        FULL,
    ),
    stored("damage-script-bytes", "notebook", "a script of bytes", bytes(range(256)) * 40, 0, ".py"),
    notebook("damage-many-cells", "notebook", "10,000 cells", [*(f"a{n} = {n}" for n in range(10_000)), _RIGHT]),
    notebook(
        "damage-same-ids",
        "notebook",
        "all cells with one id",
        [{"cell_type": "code", "id": "x", "source": _RIGHT}] * 50,
    ),
    notebook(
        "damage-outputs",
        "notebook",
        "tests and marks already in it",
        [
            {
                "cell_type": "code",
                "source": "check('m99.q1')",
                "outputs": [{"output_type": "stream", "text": "12 of 12 points"}],
                "metadata": {"grade": 12, "nbgrader": {"grade": True, "points": 12}},
            }
        ],
        0,
    ),
    notebook("damage-big-code", "notebook", "a cell of 3 MB", [_RIGHT, "data = [" + "1," * 1_500_000 + "]"]),
    script(
        "damage-deep-code",
        "notebook",
        "brackets in brackets in the code",
        _RIGHT + "a = " + "(" * 150 + "1" + ")" * 150 + "\nb = " + "(" * 5000 + "1" + ")" * 5000 + "\n",
        0,
    ),
    script(
        "damage-long-sum",
        "notebook",
        "a sum of 3,000 numbers",
        _RIGHT + "a = " + "+".join(["1"] * 3000) + "\n",
        0,
        least=0,
    ),
    script(
        "damage-long-sum-used",
        "notebook",
        "a sum of 900 numbers in a function",
        answers("away") + "def away(x):\n    return " + "+".join(["x"] * 900) + "\n",
        OTHERS,
    ),
    script("damage-hex", "notebook", "a number of 10,000 hexadecimal digits", _RIGHT + f"a = 0x{'f' * 10_000}\n", FULL),
    script(
        "damage-power",
        "notebook",
        "powers of powers as a constant",
        _RIGHT
        + """\
a = 9 ** 9 ** 9 ** 9
b = 'x' * 10 ** 10
c = [0] * 10 ** 10
""",
        FULL,
    ),
    script(
        "damage-power-used",
        "notebook",
        "a power of powers that a function uses",
        answers("away")
        + """\
b = 2 ** 1000 ** 9
def away(x):
    return b
""",
        OTHERS,
    ),
    script("damage-many-brackets", "notebook", "code that is slow to parse", "a = " + "{" * 60 + "\n", 0),
    script("damage-many-lambdas", "notebook", "lambdas in lambdas", _RIGHT + "a = " + "lambda: " * 90 + "1\n", FULL),
    script(
        "damage-names",
        "notebook",
        "names that Python itself uses",
        answers("away")
        + """\
def away(x):
    return x
__name__ = '__main__'
__builtins__ = {}
__failed__ = 5
""",
        OTHERS,
        least=0,
    ),
    script(
        "damage-async",
        "notebook",
        "functions that are no functions",
        """\
import numpy as np
async def away(x):
    return x
class energy:
    pass
spread = 'a string'
""",
        0,
    ),
)
