"""What an attack is: a name, what it tries, how its submission is made, and the points that it may end with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CATEGORIES",
    "FULL",
    "OTHERS",
    "Attack",
    "Bait",
    "answers",
    "cells_of",
    "made",
    "notebook",
    "script",
    "stored",
]

CATEGORIES = ("honest", "crash", "exhaustion", "forgery", "theft", "siblings", "host", "notebook")
"""Odd but right; crashing; using things up; inventing marks; taking what is not theirs; other students of the run;
archives, names, pages; damaged files."""

FULL = 12
"""The points of the target's three tasks, 4 each."""
OTHERS = 8
"""What is left when one task is lost."""

_WORD = re.compile(r"@(\w+)@")

_ANSWERS = {
    "away": """
def away(x):
    x = np.asarray(x, np.float64)
    return (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int64)
""",
    "energy": """
def energy(product, v):
    return float(v @ product(v))
""",
    "spread": """
def spread(x):
    return float(np.mean(x)), int(np.floor(x.max() - x.min() + 0.5))
""",
}


@dataclass(frozen=True)
class Bait:
    """What lies about to be stolen, by name: each ``@name@`` of a submission becomes it, written as Python."""

    words: Mapping[str, object]

    def filled(self, text: str) -> str:
        """``text`` with every ``@name@`` replaced."""
        return _WORD.sub(lambda match: repr(self.words[match[1]]), text)


@dataclass(frozen=True)
class Attack:
    """One submission.

    Parameters
    ----------
    name : its own, also the student's
    category : one of `CATEGORIES`
    tries : what it tries, in a few words
    build : puts the submission into a folder, where the name of the file or folder must begin with ``name`` unless ``file`` says
    least, most : the points that it must and may end with; -1 for both where it must not be taken for a submission
    file : the name of its file or folder
    is_slow : it runs into limits of the wall clock, which are set low for it
    """

    name: str
    category: str
    tries: str
    build: Callable[[Path, Bait], None]
    least: int
    most: int
    file: str
    is_slow: bool = False


def answers(*but: str) -> str:
    """Right answers to all tasks of the target, as Python text, ``but`` those named."""
    return "import numpy as np\n" + "".join(text for name, text in _ANSWERS.items() if name not in but)


def script(
    name: str, category: str, tries: str, code: str, points: int = 0, *, least: int = -1, slow: bool = False
) -> Attack:
    """An attack that is a Python file.

    Parameters
    ----------
    name, category, tries : as in `Attack`
    code : its text, with ``@words@`` of the `Bait`
    points : what it may earn at most
    least : what it must earn, ``points`` where left out
    slow : whether it waits
    """

    def build(folder: Path, bait: Bait) -> None:
        (folder / f"{name}.py").write_text(bait.filled(code), "utf-8")

    return Attack(name, category, tries, build, points if least < 0 else least, points, f"{name}.py", slow)


def notebook(name: str, category: str, tries: str, cells: Sequence[object], points: int = FULL) -> Attack:
    """An attack that is a notebook.

    Parameters
    ----------
    name, category, tries : as in `Attack`
    cells : code, or whole cells as they stand in the file
    points : what it earns
    """

    def build(folder: Path, bait: Bait) -> None:
        (folder / f"{name}.ipynb").write_text(bait.filled(cells_of(cells)), "utf-8")

    return Attack(name, category, tries, build, points, points, f"{name}.ipynb")


def cells_of(cells: Sequence[object]) -> str:
    """The text of a notebook with ``cells``."""
    whole = [
        cell
        if not isinstance(cell, str)
        else {"cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
        for cell in cells
    ]
    return json.dumps({"cells": whole, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def stored(
    name: str, category: str, tries: str, data: bytes | Callable[[], bytes], points: int = 0, ending: str = ".ipynb"
) -> Attack:
    """An attack that is a file of certain bytes.

    Parameters
    ----------
    name, category, tries : as in `Attack`
    data : the bytes, or what makes them
    points : what it earns
    ending : of the file's name
    """

    def build(folder: Path, bait: Bait) -> None:
        (folder / f"{name}{ending}").write_bytes(data() if callable(data) else data)

    return Attack(name, category, tries, build, points, points, f"{name}{ending}")


def made(
    name: str,
    category: str,
    tries: str,
    build: Callable[[Path, Bait], None],
    points: int = 0,
    file: str = "",
    least: int = -1,
) -> Attack:
    """An attack that is put together by ``build``.

    Parameters
    ----------
    name, category, tries : as in `Attack`
    build : puts it into a folder
    points : what it may earn
    file : its file or folder, ``name`` where left out
    least : what it must earn, ``points`` where left out
    """
    return Attack(name, category, tries, build, points if least < 0 else least, points, file or name)
