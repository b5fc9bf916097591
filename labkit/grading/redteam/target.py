"""A course of one small module that the attacks are aimed at: three tasks with short limits, and an open question."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODULE", "write_target"]

MODULE = "m99"

_EXERCISES = """
import numpy as np

from labkit.course.ingredients import Made
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task


def _up(number):
    return int(np.floor(number + 0.5))


AWAY = Task(
    name="m99.q1",
    title="Away from zero",
    function="away",
    points=4,
    minutes=5,
    source="none",
    kinds=(
        Kind("typical", "numbers", lambda rng, n: {"x": rng.normal(0, 30, 6 + n)}),
        Kind("ties", "halves", lambda rng, n: {"x": rng.integers(-9, 9, 6) + 0.5}),
    ),
    oracle=lambda x: np.array([_up(v) if v >= 0 else -_up(-v) for v in x], np.int64),
    judge=Exact(),
    mistakes=(
        Mistake("truncates", "You cut the fraction off.", lambda x: np.trunc(x).astype(int)),
        Mistake("to even", "A half goes away from zero.", lambda x: np.rint(x).astype(int)),
        Mistake("up", "A half goes away from zero, also below it.", lambda x: np.floor(x + 0.5).astype(int)),
    ),
    library="labkit.arithmetic.requantize.round_half_away",
    seconds=1.0,
)


def _vectors(rng, number):
    return {"product": Made("numbers.product_with", {"matrix": np.diag(rng.uniform(1, 2, 3))}), "v": rng.normal(0, 1, 3)}


ENERGY = Task(
    name="m99.q2",
    title="Energy",
    function="energy",
    points=4,
    minutes=5,
    source="none",
    kinds=(
        Kind("typical", "vectors", _vectors),
        Kind("long", "long vectors", lambda rng, n: _vectors(rng, n) | {"v": rng.normal(0, 9, 3)}, public=0),
    ),
    oracle=lambda product, v: float(v @ product(v)),
    judge=Close(1e-9),
    mistakes=(
        Mistake("sum", "Multiply by v again.", lambda product, v: float(product(v).sum())),
        Mistake("half", "There is no half here.", lambda product, v: 0.5 * float(v @ product(v))),
        Mistake("square", "Once is enough.", lambda product, v: float(product(v) @ product(v))),
    ),
    seconds=1.0,
)

SPREAD = Task(
    name="m99.q3",
    title="Spread",
    function="spread",
    points=4,
    minutes=5,
    source="none",
    kinds=(
        Kind("typical", "numbers", lambda rng, n: {"x": rng.normal(0, 30, 6 + n)}),
        Kind("one", "one number", lambda rng, n: {"x": rng.normal(0, 30, 1)}, public=0),
    ),
    oracle=lambda x: (float(np.mean(x)), _up(float(x.max() - x.min()))),
    judge=Items((Close(1e-9), Exact())),
    mistakes=(
        Mistake("swapped", "The mean comes first.", lambda x: (_up(float(x.max() - x.min())), float(np.mean(x)))),
        Mistake("sum", "Divide.", lambda x: (float(np.sum(x)), _up(float(x.max() - x.min())))),
        Mistake("peak", "From the lowest to the highest.", lambda x: (float(np.mean(x)), _up(float(np.abs(x).max())))),
    ),
    given=("labkit.arithmetic.requantize.round_half_away",),
    seconds=1.0,
)

MODULE = Module(
    name="m99",
    topic="target",
    title="A target",
    minutes=60,
    source="none",
    tasks=(AWAY, ENERGY, SPREAD),
    questions=(Question("m99.e1", "Why?", "Why at all?", 2, ((2, "a reason"),)),),
)
"""


def write_target(folder: Path, solution: str) -> Path:
    """The course in ``folder``, whose solutions hold the text ``solution``, for thieves."""
    for name, text in (("exercises", _EXERCISES), ("solutions", solution)):
        (folder / name).mkdir(parents=True)
        (folder / name / "m99_target.py").write_text(text, "utf-8")
    return folder
