"""What people and other programs read: escaped, exact, and never more than is true."""

from __future__ import annotations

import csv
import io
from fractions import Fraction
from pathlib import Path

import pytest

from labkit.course.loading import load_module
from labkit.course.tasks import Module
from labkit.errors import InputError
from labkit.grading.outcomes import CaseVerdict, Outcome, QuestionVerdict, SubmissionVerdict, TaskVerdict
from labkit.grading.pages import feedback_page, summary_page
from labkit.grading.records import grades_csv, gradescope_results, points_text, verdict_from

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def module(course: Path) -> Module:
    return load_module(course, "m90")


def task(name: str, *outcomes: Outcome, points: int = 6, bonus: bool = False, hint: str = "") -> TaskVerdict:
    cases = tuple(CaseVerdict("typical", outcome, EVIL, "[0]", "1", EVIL, EVIL, (("x", EVIL),)) for outcome in outcomes)
    return TaskVerdict(name, "Round", points, bonus, {"typical": 1}, cases, hint, "m" if hint else "")


def verdict(
    *tasks: TaskVerdict, student: str = "alice", answer: str = EVIL, given: Fraction | None = None
) -> SubmissionVerdict:
    questions = (QuestionVerdict("m90.e1", "Why?", 2, answer, given),)
    return SubmissionVerdict(student, "m90", tasks, questions, (EVIL,), facts={"file": EVIL})


PASS, WRONG, UNGRADED = Outcome.PASS, Outcome.WRONG, Outcome.UNGRADED


def test_a_kind_earns_its_share_when_all_of_its_cases_pass() -> None:
    cases = [("a", PASS), ("a", PASS), ("b", PASS), ("b", WRONG), ("c", PASS)]
    made = TaskVerdict("m90.q1", "", 6, False, {"a": 2, "b": 1, "c": 1}, tuple(CaseVerdict(k, o) for k, o in cases))
    assert made.earned == Fraction(9, 2)
    assert made.outcome is WRONG
    assert made.first_failure == CaseVerdict("b", WRONG)


@pytest.mark.parametrize("page", ["feedback", "summary"])
def test_pages_escape_everything(module: Module, page: str) -> None:
    found = verdict(task("m90.q1", WRONG, hint=EVIL), task("m90.q2", Outcome.ERROR), student=EVIL)
    html = feedback_page(module, found) if page == "feedback" else summary_page(module, [found], [EVIL], EVIL)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "default-src 'none'" in html, "a page that slipped something in still loads and runs nothing"


def test_a_fault_of_the_grader_is_told_and_has_no_score(module: Module) -> None:
    found = verdict(task("m90.q1", PASS), task("m90.q2", PASS, UNGRADED))
    assert found.earned is None
    page = feedback_page(module, found)
    assert "not graded yet" in page
    results = gradescope_results(found)
    assert "score" not in results
    assert [("score" in test) for test in results["tests"]] == [True, False, False]
    (row,) = csv.DictReader(io.StringIO(grades_csv(module, [found], [])))
    assert (row["status"], row["points"], row["m90.q2"]) == ("ungraded", "", "")


def test_gradescope_gets_points_hints_and_bonus() -> None:
    found = verdict(
        task("m90.q1", WRONG, hint="Look again."), task("m90.c1", PASS, points=3, bonus=True), given=Fraction(1, 2)
    )
    results = gradescope_results(found)
    assert results["score"] == 3.5
    wrong, bonus, question = results["tests"]
    assert (wrong["score"], wrong["max_score"], wrong["status"]) == (0.0, 6, "failed")
    assert "Look again." in wrong["output"]
    assert (bonus["score"], bonus["max_score"]) == (3.0, 0), "on top"
    assert (question["score"], question["max_score"]) == (0.5, 2)


def test_spreadsheets_get_no_formulas(module: Module) -> None:
    names = ["=cmd()", "+1", "-1", "@x", "plain"]
    text = grades_csv(
        module, [verdict(task("m90.q1", PASS), task("m90.q2", PASS), student=n, answer="") for n in names], ["=zoe"]
    )
    students = [row["student"] for row in csv.DictReader(io.StringIO(text))]
    assert sorted(students) == sorted(["'=cmd()", "'+1", "'-1", "'@x", "plain", "'=zoe"])


@pytest.mark.parametrize(
    ("points", "text"),
    [(None, ""), (Fraction(6), "6"), (Fraction(1, 3), "0.33"), (Fraction(9, 2), "4.5"), (Fraction(0), "0")],
)
def test_points_are_short(points: Fraction | None, text: str) -> None:
    assert points_text(points) == text


@pytest.mark.parametrize(
    "record", [{}, {"tasks": 5}, {"tasks": [{"cases": []}], "questions": [], "notes": [], "shapes": {}}]
)
def test_damaged_records_are_named(record: dict[str, object]) -> None:
    with pytest.raises(InputError, match="damaged"):
        verdict_from(record)
