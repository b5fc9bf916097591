"""One source, two notebooks: blanks for students, answers for the proof; headings from what exercises/ says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.course import source
from labkit.course.loading import find_course, load_modules
from labkit.course.tasks import Module
from labkit.errors import InputError


def read(course: Path) -> tuple[str, Module]:
    return (course / "solutions" / "m90_tiny.py").read_text(), load_modules(course)["m90"]


def test_a_blank_has_no_answer_and_says_what_to_do(course: Path) -> None:
    text, module = read(course)
    blank = source.blanked(text, module)
    assert "np.rint" not in blank
    assert "Because a notebook" not in blank
    assert source.BEGIN not in blank
    assert '    raise NotImplementedError("m90.q1: replace this line with your answer")' in blank
    assert 'm90_e1 = """\nWrite your answer here.\n"""' in blank
    assert blank.count('check("m90') == 3


def test_answers_stay_without_their_markers(course: Path) -> None:
    text, _ = read(course)
    full = source.answered(text)
    assert "np.rint" in full
    assert "SOLUTION" not in full


def test_headings_hold_points_and_minutes(course: Path) -> None:
    text, module = read(course)
    done = source.with_headings(text, module)
    assert "# # m90 A tiny module" in done
    assert "**About 60 minutes, 6 points.**" in done
    assert "### Task m90.q1: Round (4 points, about 5 minutes)" in done
    assert "### Challenge m90.c1: Mean (2 bonus points, about 5 minutes)" in done
    assert "### Question m90.e1: Why? (2 points, about 5 minutes)\n#\n# Why at all?" in done
    assert "{{" not in done


def test_lines_of_answers_are_found(course: Path) -> None:
    text, _ = read(course)
    assert "return np.rint(x / step).astype(np.int64)" in source.solution_lines(text)
    lines = text.split("\n")
    ((first, last),) = source.solution_ranges(text)["middle"]
    assert [line.strip() for line in lines[first - 1 : last]] == [
        "total = 0.0",
        "for value in x:",
        "total += value",
        "return total / len(x)",
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('    ### END SOLUTION\n\n\n# %%\ncheck("m90.q1")', "", "begins inside a solution"),
        ("    ### BEGIN SOLUTION\n    return np", "    return np", "ends that never began"),
        ("def to_steps(x, step)", "def steps(x, step)", "steps is no task"),
        ('m90_e1 = """\n###', 'text = """\n###', "inside a function, or in the string"),
    ],
)
def test_broken_sources_are_named(changed_course: Callable[..., Path], old: str, new: str, says: str) -> None:
    text, module = read(changed_course((old, new)))
    with pytest.raises(InputError, match=says):
        source.blanked(text, module, "here")


def test_a_task_without_a_solution_is_named(changed_course: Callable[..., Path]) -> None:
    text, module = read(
        changed_course(("    ### BEGIN SOLUTION\n    total", "    total"), ("len(x)\n    ### END SOLUTION", "len(x)"))
    )
    with pytest.raises(InputError, match="no solution for middle"):
        source.blanked(text, module, "here")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("# ### {{m90.q1}}", "# ### Task", "m90.q1 stand in exercises/ but are announced nowhere"),
        ("{{m90.q1}}", "{{m90.q7}}", "is no task"),
    ],
)
def test_headings_and_exercises_agree(changed_course: Callable[..., Path], old: str, new: str, says: str) -> None:
    text, module = read(changed_course((old, new)))
    with pytest.raises(InputError, match=says):
        source.with_headings(text, module, "here")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name="m90.q1"', 'name="q1"', "named like m02.q1"),
        ('name="m90.q1"', 'name="m91.q1"', "cannot hold m91.q1"),
        ("points=4", "points=0", "at least 1 point"),
        ('Mistake("up"', 'Mistake("truncates"', "names of their own"),
        ("public=2", "public=9", "public within 0..count"),
        ("((2, ", "((1, ", "must add up to 2"),
        ('topic="tiny"', 'topic="other"', "named like the file"),
        ('function="middle"', 'function="to_steps"', "two tasks ask for the same name"),
    ],
)
def test_broken_exercises_are_named(changed_course: Callable[..., Path], old: str, new: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_modules(changed_course((old, new)))


def test_a_folder_without_a_course_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no course in"):
        find_course(tmp_path)
