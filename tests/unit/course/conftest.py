"""A course of one module with two tasks, small enough to be read at once and broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

EXERCISES = """
import numpy as np

from labkit.course.judges.values import Close, Exact
from labkit.course.tasks import Kind, Mistake, Module, Question, Task


def _whole(rng, number):
    return {"x": rng.normal(0, 3, 4 + number).astype(np.float32), "step": 0.5}


def _ties(rng, number):
    return {"x": (rng.integers(-6, 6, 5) + 0.5).astype(np.float32), "step": 1.0}


ROUND = Task(
    name="m90.q1",
    title="Round",
    function="to_steps",
    points=4,
    minutes=5,
    source="nowhere",
    kinds=(Kind("typical", "numbers", _whole, public=2), Kind("ties", "exact halves", _ties, public=1)),
    oracle=lambda x, step: np.array([round(float(v) / step) for v in x], np.int64),
    judge=Exact(),
    mistakes=(
        Mistake("truncates", "You cut the fraction off.", lambda x, step: np.trunc(x / step).astype(int)),
        Mistake("up", "You round up.", lambda x, step: np.ceil(x / step).astype(int)),
        Mistake("half up", "A half goes to the even neighbour.", lambda x, step: np.floor(x / step + 0.5).astype(int)),
    ),
    given=("labkit.arithmetic.affine.quantize",),
)

MEAN = Task(
    name="m90.c1",
    title="Mean",
    function="middle",
    points=2,
    minutes=5,
    source="nowhere",
    kinds=(
        Kind("typical", "numbers", lambda rng, n: {"x": rng.normal(0, 1, 5 + n)}),
        Kind("single", "one number", lambda rng, n: {"x": rng.normal(0, 1, 1)}, public=0),
    ),
    oracle=lambda x: float(np.mean(x)),
    judge=Close(1e-9),
    mistakes=(
        Mistake("sum", "You forgot to divide.", lambda x: x.sum()),
        Mistake("median", "That is the median.", lambda x: np.median(x)),
        Mistake("n - 1", "Divide by n.", lambda x: x.sum() / (x.size - 1)),
    ),
)

MODULE = Module(
    name="m90",
    topic="tiny",
    title="A tiny module",
    minutes=60,
    source="nowhere",
    tasks=(ROUND, MEAN),
    questions=(Question("m90.e1", "Why?", "Why at all?", 2, ((2, "a reason"),)),),
)
"""

SOLUTION = '''\
# %% [markdown]
# # {{m90}}
#
# ### {{m90.q1}}

# %%
import numpy as np

from labkit.course import check


# %%
def to_steps(x, step):
    """Numbers in steps: float32 [n] -> integers [n], ties to even."""
    ### BEGIN SOLUTION
    return np.rint(x / step).astype(np.int64)
    ### END SOLUTION


# %%
check("m90.q1")

# %% [markdown]
# ### {{m90.c1}}


# %%
def middle(x):
    """The mean."""
    ### BEGIN SOLUTION
    total = 0.0
    for value in x:
        total += value
    return total / len(x)
    ### END SOLUTION


# %%
check("m90.c1")

# %% [markdown]
# ### {{m90.e1}}

# %%
m90_e1 = """
### BEGIN SOLUTION
Because a notebook without a reason is a long one.
### END SOLUTION
"""

# %%
check("m90.e1")
'''


def write_course(folder: Path, exercises: str = EXERCISES, solution: str = SOLUTION) -> Path:
    for name in ("exercises", "solutions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "exercises" / "m90_tiny.py").write_text(exercises)
    (folder / "solutions" / "m90_tiny.py").write_text(solution)
    return folder


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return write_course(tmp_path / "course")


@pytest.fixture
def changed_course(tmp_path: Path) -> Callable[..., Path]:
    """A course whose texts were changed: each pair (old, new) is replaced in the exercises and in the solution."""

    def make(*changes: tuple[str, str]) -> Path:
        exercises, solution = EXERCISES, SOLUTION
        for old, new in changes:
            assert old in exercises or old in solution, old
            exercises, solution = exercises.replace(old, new), solution.replace(old, new)
        return write_course(tmp_path / "changed", exercises, solution)

    return make
