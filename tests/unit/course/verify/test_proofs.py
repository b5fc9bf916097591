"""The proofs of a course, each tried on a course that breaks it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.course.build import write_built
from labkit.course.loading import load_modules
from labkit.course.release import write_release
from labkit.course.verify.execution import Execution, executed
from labkit.course.verify.leaks import leaks_in_archive, leaks_in_notebook
from labkit.course.verify.mutation import mutation_of
from labkit.course.verify.proofs import of_execution, of_mutation, static_proofs
from labkit.errors import InputError, OutputError


def faults(course: Path) -> dict[str, tuple[str, ...]]:
    return {proof.name: proof.faults for proof in static_proofs(course, "m90") if not proof.holds}


def test_a_good_course_lacks_only_its_length(course: Path) -> None:
    write_built(course)
    assert faults(course).keys() == {"form"}
    assert len(faults(course)["form"]) == 3, "one task, one question, six points are too few"


def test_a_file_that_is_not_up_to_date_is_named(course: Path) -> None:
    assert any("m90_tiny.json is missing" in fault for fault in faults(course)["built"])
    write_built(course)
    path = course / "notebooks" / "m90_tiny.ipynb"
    path.write_text(path.read_text().replace("A tiny module", "A tiny thing"))
    assert any("m90_tiny.ipynb is not what its source gives" in fault for fault in faults(course)["built"])
    write_built(course)
    cases = course / "labkit-cases" / "m90_tiny.json"
    cases.write_text(cases.read_text().replace('"minutes": 5', '"minutes": 6'))
    assert any("is not what exercises/ gives" in fault for fault in faults(course)["built"])
    write_built(course)
    text = cases.read_text()
    place = text.index('"values"', text.index('"expected"'))
    cases.write_text(text[:place] + text[place:].replace("[", "[1", 1))
    assert any("an expected value is another one by now" in fault for fault in faults(course)["built"])


@pytest.mark.parametrize(
    ("changes", "proof", "says"),
    [
        (
            [("return np.rint(x / step).astype", "return np.floor(x / step).astype")],
            "solutions",
            "does not pass its public cases",
        ),
        (
            # right on public cases, wrong for the fourth private one
            [
                (
                    "return np.rint(x / step).astype(np.int64)",
                    "return np.rint(x / step).astype(np.int64) + (len(x) == 7)",
                )
            ],
            "solutions",
            "solution and oracle differ",
        ),
        (
            [("lambda x, step: np.ceil(x / step)", "lambda x, step: np.rint(x / step)")],
            "mistakes",
            "'up' passes the public cases",
        ),
        (
            [("lambda x, step: np.ceil(x / step)", "lambda x, step: np.trunc(x / step)")],
            "mistakes",
            "in place of its own",
        ),
        ([("lambda x, step: np.ceil(x / step)", "lambda x, y: np.ceil(x / y)")], "mistakes", "is reported as 'error'"),
        (
            [('given=("labkit.arithmetic.affine.quantize",)', 'given=("labkit.arithmetic.affine.quantise",)')],
            "library",
            "has no labkit",
        ),
        ([("judge=Close(1e-9)", "judge=Close(0.5)")], "library", "lets almost anything pass"),
        ([('check("m90.q1")', 'check("m90.c1")')], "notebook", "m90.q1 is checked 0 times"),
        (
            [('"""The mean."""', '"""The mean."""\n    return np.rint(x / step).astype(np.int64)')],
            "no leaks",
            "np.rint(x / step)",
        ),
        (
            [('    """The mean."""', '    """The mean."""\n    if len(x): return 5.0')],
            "blanks",
            "is reported as 'wrong'",
        ),
    ],
)
def test_each_fault_is_found(
    changed_course: Callable[..., Path], changes: list[tuple[str, str]], proof: str, says: str
) -> None:
    course = changed_course(*changes)
    write_built(course)
    assert any(says in fault for fault in faults(course)[proof])


def test_all_mutants_of_a_well_tested_solution_are_caught(course: Path) -> None:
    told: list[tuple[int, int]] = []
    found = mutation_of(course, "m90", lambda done, total: told.append((done, total)))
    assert found.mutants == len(told) == told[-1][1] >= 6
    assert found.caught == found.mutants
    assert of_mutation(found).holds
    assert found.score == 100.0


def test_survivors_equivalents_and_stale_entries_are_told(changed_course: Callable[..., Path]) -> None:
    listed = 'equivalent=(Equivalent("total += value", "total -= value", ""), Equivalent("a", "b", "c")),\n    judge=Close(1e-9)'
    course = changed_course(
        ("import Kind, Mistake", "import Equivalent, Kind, Mistake"),
        ("judge=Close(1e-9)", listed.replace("1e-9", "10.0")),  # so loose that little is caught
    )
    found = mutation_of(course, "m90")
    proof = of_mutation(found)
    said = "\n".join(proof.faults)
    assert "survived: total += value  ->  (dropped)" in said
    assert "listed as equivalent, but caught or gone: a  ->  b" in said
    assert "95 % are wanted" in said
    assert [m.after for m in found.tasks[1].equivalent] == ["total -= value"]


def test_a_mutant_that_never_ends_is_caught(changed_course: Callable[..., Path]) -> None:
    loop = "    left = len(x)\n    while left > 0:\n        left -= 1\n        total += x[left]\n"
    course = changed_course(("    for value in x:\n        total += value\n", loop))
    found = mutation_of(course, "m90")
    assert found.tasks[1].survivors == ()  # left += 1 and a dropped left -= 1 among them


def test_a_notebook_runs_with_its_answers(course: Path) -> None:
    write_built(course)
    run = executed(course, "m90_tiny")
    assert of_execution(run, load_modules(course)["m90"]).holds
    assert [line[0] for line in run.checks] == ["✓", "✓", "●"]
    assert "all 3 public cases pass" in run.notebook


def test_a_notebook_that_stops_is_told(changed_course: Callable[..., Path]) -> None:
    course = changed_course(("# %%\nimport numpy", "# %%\nprint(undefined)\nimport numpy"))
    write_built(course)
    (fault, *_) = of_execution(executed(course, "m90_tiny"), load_modules(course)["m90"]).faults
    assert "it stopped" in fault
    assert "name 'undefined' is not defined" in fault


def test_the_release_holds_no_answer(course: Path, tmp_path: Path) -> None:
    archive = tmp_path / "course.zip"
    assert write_release(course, archive) == ["README.txt", "labkit-cases/m90_tiny.json", "m90_tiny.ipynb"]
    assert leaks_in_archive(course, archive) == []
    again = tmp_path / "again.zip"
    write_release(course, again)
    assert again.read_bytes() == archive.read_bytes()


def test_an_archive_with_an_answer_is_found_out(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "leaky.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("notes.txt", "remember:\n    return total / len(x)\n")
    assert leaks_in_archive(course, archive) == ["notes.txt: return total / len(x)"]
    monkeypatch.setattr("labkit.course.release._README", "    return total / len(x)\n{version}")
    with pytest.raises(OutputError, match="would give answers away"):
        write_release(course, tmp_path / "refused.zip")
    assert not (tmp_path / "refused.zip").exists()


def test_leaks_of_one_module_into_another_are_found(course: Path) -> None:
    (course / "solutions" / "tour.py").write_text(
        "# %%\ndef q(x, step):\n    return np.rint(x / step).astype(np.int64)\n"
    )
    assert leaks_in_notebook(course, "tour") == ["return np.rint(x / step).astype(np.int64)"]
    assert leaks_in_notebook(course, "m90_tiny") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"error": "NameError: x"}, "it stopped: NameError"),
        ({"warned": "careful"}, "it said on stderr: careful"),
        ({"checks": ("✓ a", "✗ b: 1 of 3 pass", "● c")}, "a check did not pass: ✗ b"),
        ({"checks": ("✓ a",)}, "1 checks showed a result; 3 are wanted"),
        ({"processor": 16.0}, "it took 16.0 s of processor time; 15 are allowed"),
    ],
)
def test_a_bad_run_is_told(course: Path, change: dict[str, object], says: str) -> None:
    good = {
        "stem": "m90_tiny",
        "seconds": 30.0,
        "processor": 3.0,
        "error": "",
        "warned": "",
        "checks": ("✓", "✓", "●"),
        "figures": 1,
        "notebook": "",
    }
    module = load_modules(course)["m90"]
    assert of_execution(Execution(**good), module, 15).holds  # type: ignore[arg-type]
    assert any(says in fault for fault in of_execution(Execution(**(good | change)), module, 15).faults)  # type: ignore[arg-type]


def test_other_data_are_refused(course: Path) -> None:
    with pytest.raises(InputError, match="mnist5k or cifar10, got 'imagenet'"):
        executed(course, "m90_tiny", data="imagenet")
