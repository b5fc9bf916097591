"""Every module of the course, proved as `labkit course verify` does: cases, mutants, and the notebook with its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.course.build import answered_notebook, built
from labkit.course.cases import draw_cases, result_of
from labkit.course.loading import find_course, load_modules
from labkit.course.release import write_release
from labkit.course.verify.execution import executed
from labkit.course.verify.leaks import leaks_in_archive
from labkit.course.verify.mutation import mutation_of
from labkit.course.verify.proofs import of_execution, of_mutation, static_proofs

COURSE = find_course(Path(__file__).parents[2])
MODULES = load_modules(COURSE)
SECONDS = 30.0
"""Of processor time for a notebook: twice what `labkit course verify --limit 15` allows it, for a machine half as fast."""


def test_the_course_is_whole() -> None:
    assert list(MODULES) == [f"m{number:02d}" for number in range(12)]


@pytest.mark.parametrize("name", MODULES)
def test_cases_blanks_solutions_mistakes(name: str) -> None:
    proofs = list(static_proofs(COURSE, name))
    assert len(proofs) == 8
    assert not [f"{proof.name}: {fault}" for proof in proofs for fault in proof.faults]


@pytest.mark.parametrize("name", MODULES)
def test_mutants_are_caught(name: str) -> None:
    found = mutation_of(COURSE, name)
    assert found.mutants > 50, "so few mutants say nothing"
    assert not of_mutation(found).faults


@pytest.mark.parametrize("name", MODULES)
def test_the_notebook_runs_with_its_answers(name: str) -> None:
    module = MODULES[name]
    run = executed(COURSE, module.stem)
    assert not of_execution(run, module, SECONDS).faults
    assert run.figures >= 2


@pytest.mark.parametrize("name", MODULES)
def test_an_oracle_says_the_same_twice(name: str) -> None:
    for task in MODULES[name].tasks:
        cases = list(draw_cases(task, 3, mistakes=False))
        again = [result_of(task.oracle, case.inputs) for case in cases]
        assert all(task.judge.compare(a, c.expected, c.inputs) is None for a, c in zip(again, cases, strict=True)), (
            task.name
        )


_EVERY_CHECK = """
import json, sys, time
begun = time.process_time()
from labkit.course import check
from labkit.course.checking import checked
from labkit.course.cases import read_public
from labkit.course.definitions import reachable, read_definitions
from labkit.course.loading import module_of_text

module = read_public(sys.argv[1])
definitions = read_definitions(sys.argv[2])
space = vars(module_of_text(reachable(definitions.source, [t.function for t in module.tasks]), "answered"))
spent = []
for task in module.tasks:
    assert checked(module, task.name, space).passed
    spent.append(time.process_time() - begun)
    begun = time.process_time()
print(json.dumps(spent))
"""


@pytest.mark.parametrize("name", MODULES)
def test_a_check_is_quick(name: str, tmp_path: Path) -> None:
    """In a new process: the first one with all imports, which a student has made before; then each by itself."""
    path = tmp_path / "answered.ipynb"
    path.write_text(answered_notebook(COURSE, MODULES[name].stem))
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _EVERY_CHECK, name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    first, *others = json.loads(done.stdout)
    assert first < 6
    by_task = dict(zip([task.name for task in MODULES[name].tasks[1:]], others, strict=True))
    assert not {task: seconds for task, seconds in by_task.items() if seconds >= 2}


def test_public_cases_stay_small() -> None:
    sizes = {made.path.name: len(made.text) for made in built(COURSE) if made.path.suffix == ".json"}
    assert max(sizes.values()) < 200_000, sizes


def test_the_release_holds_no_answer(tmp_path: Path) -> None:
    archive = tmp_path / "course.zip"
    names = write_release(COURSE, archive)
    assert len([name for name in names if name.endswith(".ipynb")]) == len(MODULES) + 1
    assert leaks_in_archive(COURSE, archive) == []


def test_every_notebook_is_clean() -> None:
    for path in sorted((COURSE / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
