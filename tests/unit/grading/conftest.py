"""A course of one module, and notebooks that answer it in many ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.grading.isolation import probe

EXERCISES = """
import numpy as np

from labkit.course.ingredients import Made
from labkit.course.judges.values import Close, Exact
from labkit.course.tasks import Kind, Mistake, Module, Question, Task

ROUND = Task(
    name="m90.q1",
    title="Round",
    function="to_steps",
    points=6,
    minutes=5,
    source="nowhere",
    kinds=(
        Kind("typical", "numbers", lambda rng, n: {"x": rng.normal(0, 3, 4 + n).astype(np.float32), "step": 0.5}, weight=2),
        Kind("ties", "halves", lambda rng, n: {"x": (rng.integers(-6, 6, 5) + 0.5).astype(np.float32), "step": 1.0}),
    ),
    oracle=lambda x, step: np.array([round(float(v) / step) for v in x], np.int64),
    judge=Exact(),
    mistakes=(
        Mistake("truncates", "You cut the fraction off.", lambda x, step: np.trunc(x / step).astype(int)),
        Mistake("half up", "A half goes to the even neighbour.", lambda x, step: np.floor(x / step + 0.5).astype(int)),
        Mistake("up", "You round up.", lambda x, step: np.ceil(x / step).astype(int)),
    ),
    given=("labkit.arithmetic.affine.QuantSpec",),
    seconds=1.0,
)


def _vectors(rng, number):
    return {"product": Made("numbers.product_with", {"matrix": np.diag(rng.uniform(1, 2, 3))}), "v": rng.normal(0, 1, 3)}


ENERGY = Task(
    name="m90.q2",
    title="Energy",
    function="energy",
    points=4,
    minutes=5,
    source="nowhere",
    kinds=(
        Kind("typical", "vectors", _vectors),
        Kind("zero", "zeros", lambda rng, n: _vectors(rng, n) | {"v": np.zeros(3)}, count=1),
    ),
    oracle=lambda product, v: float(v @ product(v)),
    judge=Close(1e-9),
    mistakes=(
        Mistake("sum", "Multiply by v again.", lambda product, v: float(product(v).sum())),
        Mistake("half", "There is no half here.", lambda product, v: 0.5 * float(v @ product(v))),
        Mistake("square", "Multiply once.", lambda product, v: float(product(v) @ product(v))),
    ),
    seconds=1.0,
)

MODULE = Module(
    name="m90",
    topic="tiny",
    title="A tiny module",
    minutes=60,
    source="nowhere",
    tasks=(ROUND, ENERGY),
    questions=(Question("m90.e1", "Why?", "Why at all?", 2, ((2, "a reason"),)),),
)
"""

RIGHT = """\
import numpy as np


def to_steps(x, step):
    return np.rint(x / step).astype(np.int64)


def energy(product, v):
    return v @ product(v)


m90_e1 = "Because."
"""


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    for name in ("exercises", "solutions"):
        (folder / name).mkdir()
    (folder / "exercises" / "m90_tiny.py").write_text(EXERCISES)
    (folder / "solutions" / "m90_tiny.py").write_text(RIGHT)
    return folder


@pytest.fixture(scope="session")
def right() -> str:
    return RIGHT


@pytest.fixture(scope="session")
def sandbox() -> str:
    """What shuts submissions in here; a test that needs it is skipped where nothing does."""
    try:
        return probe().name
    except LabkitError as error:
        pytest.skip(f"no sandbox: {str(error)[:120]}")


@pytest.fixture
def hand_in(tmp_path: Path) -> Callable[..., Path]:
    """Write submissions, text by student, as notebooks of one cell, into one folder."""

    def write(**texts: str) -> Path:
        folder = tmp_path / "submissions"
        folder.mkdir(exist_ok=True)
        for student, text in texts.items():
            cells = [{"cell_type": "code", "source": text}]
            (folder / f"{student}.ipynb").write_text(json.dumps({"cells": cells}))
        return folder

    return write
