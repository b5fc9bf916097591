"""Every module in the real grader: its solution earns every point, its blank none, and neither says a word too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.course.build import answered_notebook, built
from labkit.course.cases import Case, result_of
from labkit.course.loading import find_course, load_modules
from labkit.course.tasks import Mistake
from labkit.errors import LabkitError
from labkit.grading.grade import drawn, seed_number
from labkit.grading.isolation import probe
from labkit.grading.judging import judged
from labkit.grading.outcomes import Outcome
from labkit.grading.run import grade_folder
from labkit.grading.worker import Reply

COURSE = find_course(Path(__file__).parents[2])
MODULES = load_modules(COURSE)


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> None:
    try:
        probe()
    except LabkitError as error:
        pytest.skip(f"no sandbox: {str(error)[:120]}")


@pytest.mark.parametrize("name", MODULES)
def test_the_solution_earns_all_and_the_blank_nothing(name: str, tmp_path: Path) -> None:
    module = MODULES[name]
    folder = tmp_path / "submissions"
    folder.mkdir()
    (folder / "solution.ipynb").write_text(answered_notebook(COURSE, module.stem))
    (blank,) = [made.text for made in built(COURSE, name) if made.path.suffix == ".ipynb"]
    (folder / "blank.ipynb").write_text(blank)
    found = grade_folder(folder, COURSE, name, tmp_path / "out")
    nothing, everything = found.verdicts
    assert [(t.task, t.outcome.value) for t in everything.tasks] == [(t.name, "pass") for t in module.tasks]
    assert everything.earned == sum(task.points for task in module.tasks)
    assert all(question.is_pending for question in everything.questions)
    assert nothing.earned == 0
    assert {task.outcome for task in nothing.tasks} == {Outcome.NOT_ATTEMPTED}
    assert not any(question.is_pending for question in nothing.questions)
    page = (tmp_path / "out" / "blank" / "feedback.html").read_text()
    assert "Traceback" not in page
    assert "not attempted" in page


@pytest.mark.parametrize("name", MODULES)
def test_each_known_mistake_costs_points_and_gets_its_hint(name: str) -> None:
    module = MODULES[name]
    cases = drawn(module, seed_number("the secret of a test", name))
    faults = []
    for task in module.tasks:
        for mistake in task.mistakes:
            replies = [_reply(mistake, case) for case in cases[task.name]]
            verdict = judged(task, cases[task.name], replies)
            assert verdict.earned is not None
            if verdict.earned >= task.points or verdict.hint != mistake.hint:
                faults.append((task.name, mistake.name, str(verdict.earned), verdict.mistake))
    assert not faults


def _reply(mistake: Mistake, case: Case) -> Reply:
    try:
        return Reply(None, result_of(mistake.function, case.inputs))
    except Exception as error:
        return Reply(Outcome.ERROR, message=str(error))
