"""One submission: values cross, verdicts do not; honest ones get what they earn, and every case has an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from labkit.course.cases import draw_cases
from labkit.grading.grade import Plan, grade_submission, seed_number
from labkit.grading.outcomes import Outcome, SubmissionVerdict
from labkit.grading.run import prepared
from labkit.grading.submissions import find_submissions
from labkit.grading.worker import Worker, WorkerFault

Graded = Callable[[str], SubmissionVerdict]


@pytest.fixture(scope="module")
def plan(course: Path, sandbox: str) -> Iterator[Plan]:
    with prepared(course, "m90", "a secret of the tests", {("s", "m90.e1"): Fraction(3, 2)}) as made:
        yield made


@pytest.fixture
def graded(plan: Plan, hand_in: Callable[..., Path]) -> Graded:
    def grade(text: str) -> SubmissionVerdict:
        (submission,) = find_submissions(hand_in(s=text)).submissions
        return grade_submission(plan, submission)

    return grade


def points(verdict: SubmissionVerdict) -> list[float]:
    return [float(task.earned) for task in verdict.tasks if task.earned is not None]


def outcomes(verdict: SubmissionVerdict) -> list[str]:
    return [task.outcome.value for task in verdict.tasks]


def test_a_right_answer_gets_all(graded: Graded, right: str) -> None:
    verdict = graded(right)
    assert outcomes(verdict) == ["pass", "pass"]
    assert verdict.earned == 10 + Fraction(3, 2)
    assert not verdict.is_pending
    assert verdict.points == 12


HONEST = {
    "prints and warnings": (
        "def to_steps(x, step):",
        "import sys, warnings\ndef to_steps(x, step):\n    print('x' * 10000); warnings.warn('w'); sys.stderr.write('e')",
    ),
    "a helper, a constant and a class": (
        "    return np.rint(x / step).astype(np.int64)",
        "    return Rounder.apply(scaled(x, step))\n\nEVEN = 'rint'\n\ndef scaled(x, step):\n    return x / step\n\n"
        "class Rounder:\n"
        "    @staticmethod\n    def apply(x):\n        return getattr(np, EVEN)(x).astype(int)",
    ),
    "a list": (".astype(np.int64)", ".astype(np.int64).tolist()"),
    "narrow integers": (".astype(np.int64)", ".astype(np.int8)"),
    "a tensor": (
        "    return np.rint(x / step).astype(np.int64)",
        "    import torch\n    return torch.from_numpy(np.rint(x / step).astype(np.int64))",
    ),
    "the plot cell breaks": (
        "import numpy as np",
        "import numpy as np\nimport nothing_like_this\nplot = 1 / 0\nraise ValueError('x')",
    ),
    "the setup of the notebook": (
        "import numpy as np",
        "import numpy as np\nimport labkit\nfrom labkit.course import check\nfrom labkit.course.look import use_look\nuse_look()",
    ),
    "an older definition": ("import numpy as np", "import numpy as np\ndef to_steps(x, step):\n    return 0"),
    "what is given": (
        "    return np.rint",
        "    from labkit.arithmetic.affine import QuantSpec\n    assert QuantSpec(8).qmax == 127\n    return np.rint",
    ),
    "inputs overwritten": ("    return v @ product(v)", "    e = v @ product(v)\n    v[:] = 0\n    return e"),
    "a magic": ("import numpy as np", "%matplotlib inline\nimport numpy as np"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_work_is_not_undermarked(graded: Graded, right: str, name: str) -> None:
    old, new = HONEST[name]
    assert old in right
    verdict = graded(right.replace(old, new))
    assert points(verdict) == [6, 4], verdict.tasks


WRONG = {
    "one kind of two": ("np.rint(x / step)", "np.floor(x / step + 0.5)", [4, 4], ["wrong", "pass"]),
    "truncates": ("np.rint", "np.trunc", [0, 4], ["wrong", "pass"]),
    "raises": ("return np.rint", "return undefined + np.rint", [0, 4], ["error", "pass"]),
    "blank": (
        "    return np.rint",
        "    raise NotImplementedError('m90.q1: replace')\n    return np.rint",
        [0, 4],
        ["not attempted", "pass"],
    ),
    "missing": ("def to_steps", "def steps", [0, 4], ["not attempted", "pass"]),
    "never ends": ("    return np.rint", "    while True: pass\n    return np.rint", [0, 4], ["timeout", "pass"]),
    "exits": ("    return np.rint", "    import os; os._exit(0)\n    return np.rint", [0, 4], ["killed", "pass"]),
    "stops": ("    return np.rint", "    raise SystemExit\n    return np.rint", [0, 4], ["error", "pass"]),
    "eats memory": (
        "    return np.rint",
        "    np.ones(1 << 40)\n    return np.rint",
        [0, 4],
        ["out of memory", "pass"],
    ),
    "returns too much": (
        "    return np.rint",
        "    return np.ones(1 << 23)\n    return np.rint",
        [0, 4],
        ["error", "pass"],
    ),
    "a function": ("    return np.rint", "    return print\n    return np.rint", [0, 4], ["error", "pass"]),
    "recursion": ("    return np.rint", "    return to_steps(x, step)\n    return np.rint", [0, 4], ["error", "pass"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_outcome_costs_its_own_task_only(graded: Graded, right: str, name: str) -> None:
    old, new, earned, what = WRONG[name]
    assert old in right
    verdict = graded(right.replace(old, new))
    assert outcomes(verdict) == what
    assert points(verdict) == earned


def test_a_recognised_mistake_gets_its_hint(graded: Graded, right: str) -> None:
    verdict = graded(right.replace("np.rint", "np.trunc"))
    assert verdict.tasks[0].mistake == "truncates"
    assert verdict.tasks[0].hint == "You cut the fraction off."
    assert graded(right.replace("np.rint(x / step)", "np.rint(x)")).tasks[0].hint == ""


def test_one_slow_case_costs_that_case_only(graded: Graded, right: str) -> None:
    verdict = graded(right.replace("    return np.rint", "    while len(x) == 7: pass\n    return np.rint"))
    (task, _) = verdict.tasks
    assert [case.outcome.value for case in task.cases].count("timeout") == 1
    assert [case.outcome.value for case in task.cases].count("pass") == 7
    assert task.earned == 2, "the ties"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("from labkit.arithmetic.affine import quantize", "m90.q1 may use labkit.arithmetic.affine.QuantSpec"),
        ("import labkit.quantization", "m90.q1 may use"),
        ("import labkit; labkit.quantize", "labkit.quantize is not among it"),
    ],
)
def test_what_is_not_given_is_refused_by_name(graded: Graded, right: str, line: str, says: str) -> None:
    verdict = graded(right.replace("    return np.rint", f"    {line}\n    return np.rint"))
    failure = verdict.tasks[0].first_failure
    assert failure is not None
    assert failure.outcome is Outcome.ERROR
    assert says in failure.message


def test_an_import_at_the_top_that_is_not_given_is_told_when_it_is_used(graded: Graded, right: str) -> None:
    text = right.replace("import numpy as np", "import numpy as np\nfrom labkit.arithmetic.affine import quantize")
    assert points(graded(text)) == [6, 4], "unused"
    failure = graded(text.replace("    return np.rint", "    quantize(x)\n    return np.rint")).tasks[0].first_failure
    assert failure is not None
    assert "quantize is not there" in failure.message
    assert failure.line == "in to_steps: quantize(x)"


def test_an_unreadable_submission_is_told(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "s.ipynb").write_text("{")
    (submission,) = find_submissions(tmp_path).submissions
    verdict = grade_submission(plan, submission)
    assert "is no notebook" in verdict.fault
    assert points(verdict) == [0, 0]
    assert not verdict.is_ungraded


def test_a_fault_of_the_grader_is_never_a_zero(
    plan: Plan, hand_in: Callable[..., Path], right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (submission,) = find_submissions(hand_in(s=right)).submissions

    def broken(*_: object) -> None:
        raise WorkerFault("no more processes")

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_start", broken)
        verdict = grade_submission(plan, submission)
    assert verdict.is_ungraded
    assert verdict.earned is None
    assert [task.earned for task in verdict.tasks] == [None, None]
    with monkeypatch.context() as patched:
        patched.setattr("labkit.grading.grade.read_submission", lambda *_: 1 / 0)
        assert grade_submission(plan, submission).earned is None
    assert grade_submission(plan, submission).earned == Fraction(23, 2)


def test_a_judge_that_fails_is_the_graders_fault(
    plan: Plan, hand_in: Callable[..., Path], right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.course.judges.values.Close.compare", lambda *_: 1 / 0)
    (submission,) = find_submissions(hand_in(s=right)).submissions
    verdict = grade_submission(plan, submission)
    assert [task.earned for task in verdict.tasks] == [6, None]


def test_seeds_differ_by_secret_and_module(plan: Plan) -> None:
    seeds = {seed_number("a" * 16, "m01"), seed_number("b" * 16, "m01"), seed_number("a" * 16, "m02")}
    assert len(seeds) == 3
    (first, _) = plan.module.tasks
    public = [case.inputs["x"].tolist() for case in draw_cases(first, 0)]
    private = [case.inputs["x"].tolist() for case in plan.cases[first.name]]
    assert not [x for x in private if x in public]


def test_a_constant_that_never_ends_costs_only_the_task_that_uses_it(graded: Graded, right: str) -> None:
    verdict = graded(right.replace("    return np.rint", "    return BIG + np.rint") + "\nBIG = 9 ** 9 ** 9\n")
    assert points(verdict) == [0, 4]


def test_a_computed_constant_comes_along(graded: Graded, right: str) -> None:
    text = (
        right.replace("    return np.rint(x / step)", "    return np.rint(x * ONE[0] / step)") + "\nONE = np.ones(3)\n"
    )
    assert points(graded(text)) == [6, 4]
