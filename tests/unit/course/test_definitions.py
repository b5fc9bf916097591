"""Definitions are taken out of a notebook whatever happened to its cells, and nothing of it is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.course.definitions import definitions_of, reachable, read_cells, read_definitions
from labkit.course.loading import module_of_text
from labkit.errors import InputError


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["def f(x):\n    return x", "f(3)\nprint(1)"], ("f",)),
        (["a = 1\nb, c = 2, 3\nd = [1, {'x': (2, -3)}]\ne = open('x')\ng = a + 1"], ("a", "b", "c", "d", "e", "g")),
        (["x.y = 1\nx[0] = 2\nx += 1"], ()),
        (["n: int = 5\nm: int\nk = 2**31 - 1"], ("k", "n")),
        (["if True:\n    def hidden(): pass\nfor i in range(3):\n    z = 1"], ()),
        (["class A:\n    pass\n\nasync def g(): pass"], ("A", "g")),
        (["from os import *\nimport numpy as np\nx = 1"], ("x",)),
        (["%matplotlib inline\n!ls\ndef f():\n    return 5 % 3"], ("f",)),
        (["%%time\ndef f(): return 1"], ("f",)),
        (["%%bash\nls\ndef f(): return 1"], ()),
        (["np.round?\ndef f(): return 1"], ("f",)),
        (["def f(:\n    return", "def g(): return 1"], ("g",)),
        (["f = lambda x: x"], ("f",)),
        ([""], ()),
    ],
)
def test_what_counts_as_a_definition(cells: list[str], names: tuple[str, ...]) -> None:
    assert definitions_of(cells).names == names


def test_the_last_definition_wins_and_is_told() -> None:
    found = definitions_of(["def f(): return 1", "def f(): return 2"])
    assert module_of_text(found.source, "twice").f() == 2
    assert any("f is defined twice (cells 1 and 2)" in note for note in found.notes)


def test_a_broken_cell_is_told_and_costs_no_other() -> None:
    found = definitions_of(["def f(x)\n    return x", "def g(): return 1"])
    assert any("Code cell 1 is no valid Python" in note and "line 1" in note for note in found.notes)
    assert found.names == ("g",)


def test_open_answers_are_strings_by_name() -> None:
    found = definitions_of(['m01_e1 = """\nBecause.\n"""', "m01_e2 = 5", "m01_e1 = 'other'"])
    assert found.strings == {"m01_e1": "other"}


def test_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    found = definitions_of([f"open({str(trap)!r}, 'w')\n\ndef f(x):\n    return x\n\nvalue = print(1)"])
    module_of_text(found.source, "trapless")
    assert not trap.exists()


def notebook(cells: list[object]) -> str:
    return json.dumps({"cells": cells, "nbformat": 4})


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([{"cell_type": "code", "source": ["a = 1\n", "b = 2"]}], ["a = 1\nb = 2"]),
        ([{"cell_type": "code", "source": "a = 1"}], ["a = 1"]),
        ([{"cell_type": "markdown", "source": "a = 1"}], []),
        (["nonsense", {"cell_type": "code"}, {"cell_type": "code", "source": 5}, None], [""]),
        ([{"cell_type": "code", "source": ["a = 1", 5]}], ["a = 1"]),
    ],
)
def test_cells_are_read_from_whatever_is_there(tmp_path: Path, cells: list[object], expected: list[str]) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(notebook(cells))
    assert read_cells(path) == expected


def test_encodings_and_scripts(tmp_path: Path) -> None:
    script = tmp_path / "a.py"
    script.write_bytes("\ufeffdef f(): return 'ü'".encode())
    assert read_definitions(script).names == ("f",)
    script.write_bytes(b"# \xff\xfe\ndef g(): return 1")
    assert read_definitions(script).names == ("g",)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is no notebook"), ("[]", "no list of cells"), ('{"cells": 5}', "no list of cells")]
)
def test_what_is_no_notebook_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_cells(path)
    with pytest.raises(InputError, match="Cannot read"):
        read_cells(tmp_path / "missing.ipynb")
    with pytest.raises(InputError, match="Cannot read"):
        read_cells(tmp_path)


def test_a_traceback_shows_the_own_line() -> None:
    module = module_of_text("def f(x):\n    return x / 0\n", "divides")
    with pytest.raises(ZeroDivisionError) as caught:
        module.f(1)
    assert "return x / 0" in str(caught.traceback[-1].statement)


NOTEBOOK = """
import numpy as np
import torch
from math import *
LEVELS = np.arange(16)
low, high = -1, 1
data = load_everything()
scale = measure(data)

def helper(x):
    return x * LEVELS[high]

class Unused:
    field = data

def wanted(scale, values=low):
    total = [helper(data) for data in values]
    def inner():
        return ceil(scale)
    return total
"""


def test_what_a_function_can_come_to_use_stays() -> None:
    kept = reachable(definitions_of([NOTEBOOK]).source, ["wanted"])
    for line in (
        "import numpy as np",
        "LEVELS = np.arange(16)",
        "low, high = (-1, 1)",
        "def helper",
        "def wanted",
        "from math import *",
    ):
        assert line in kept
    for line in ("import torch", "load_everything", "measure", "Unused"):
        assert line not in kept, "a parameter or a local of that name is another thing"


def test_a_name_that_is_bound_twice_keeps_both_in_order() -> None:
    kept = reachable("k = 1\nk = k + 1\ndef f():\n    return k\n", ["f"])
    assert module_of_text(kept, "twice_bound").f() == 2


def test_what_nobody_asks_for_is_not_there() -> None:
    assert reachable(definitions_of([NOTEBOOK]).source, ["missing"]).strip() == "from math import *"
