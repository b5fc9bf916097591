"""check(): finds the function, says what is wrong and where, knows mistakes, and never says more than is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.arithmetic.affine import QuantSpec, quantize
from labkit.course import check
from labkit.course.build import write_built
from labkit.course.feedback import Feedback
from labkit.errors import InputError


@pytest.fixture(autouse=True)
def beside_the_cases(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_built(course)
    monkeypatch.chdir(course)


def right(x: Any, step: Any) -> Any:
    return np.rint(x / step).astype(int)


def one(answer: Any, name: str = "m90.q1") -> Feedback:
    found = check(name, answer)
    assert isinstance(found, Feedback)
    return found


def test_a_right_answer_passes() -> None:
    found = one(right)
    assert found.passed
    assert found.counts == (3, 3)
    assert found.hint == ""
    assert found.notes == ()
    assert "all 3 public cases pass" in str(found)
    assert "Worth 4 points" in str(found)
    assert "drawn anew" in str(found), "a pass here is no mark"


@pytest.mark.parametrize("form", [np.asarray, list, lambda q: q.astype(np.int16)])
def test_lossless_forms_pass(form: Any) -> None:
    assert one(lambda x, step: form(right(x, step))).passed


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (lambda x, step: np.trunc(x / step).astype(int), "You cut the fraction off."),
        (lambda x, step: np.ceil(x / step).astype(int), "You round up."),
        (lambda x, step: np.floor(x / step + 0.5).astype(int), "A half goes to the even neighbour."),
        (lambda x, step: np.rint(x * step).astype(int), ""),
        (lambda x, step: right(x, step) + 1, ""),
    ],
)
def test_known_mistakes_get_their_hint_and_others_none(function: Any, hint: str) -> None:
    found = one(function)
    assert found.status == "wrong"
    assert found.hint == hint
    assert found.failure is not None
    assert found.failure.expected
    assert found.failure.got
    assert found.failure.place.startswith("[")
    assert ("Hint:" in str(found)) is bool(hint)


def test_a_mistake_that_only_ties_show_fails_only_there() -> None:
    found = one(lambda x, step: np.floor(x / step + 0.5).astype(int))
    assert {name: passed for name, passed, _ in found.kinds} == {"typical": 2, "ties": 0}
    assert found.failure is not None
    assert found.failure.kind == "ties"


def blank(x: Any, step: Any) -> Any:
    raise NotImplementedError("m90.q1: replace this line with your answer")


def test_a_blank_is_not_attempted() -> None:
    assert one(blank).status == "not attempted"
    assert check("m90.q1", {}).status == "not attempted"  # type: ignore[union-attr]
    assert "Run the cell" in str(check("m90.q1", {}))


def test_an_error_shows_the_own_line() -> None:
    def breaks(x: Any, step: Any) -> Any:
        inner = np.zeros(3)
        return inner.reshape(7)

    found = one(breaks)
    assert found.status == "error"
    assert found.failure is not None
    assert "ValueError: cannot reshape" in found.failure.message
    assert found.failure.line.endswith("of breaks: return inner.reshape(7)")
    assert "labkit" not in found.failure.line


def test_wrong_parameters_show_the_wanted_call() -> None:
    def other(x: Any) -> Any:
        return x

    found = one(other)
    assert found.status == "error"
    assert found.failure is not None
    assert "The call was to_steps(x, step)" in found.failure.message


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, step: None, "Is a return missing?"),
        (lambda x, step: object(), "A object was returned"),
        (lambda x, step: right(x, step).astype(float), "right, but they are real numbers"),
        (lambda x, step: right(x, step)[:-1], "shape"),
    ],
)
def test_results_of_another_form_are_explained(function: Any, says: str) -> None:
    assert says in str(one(function))


def test_what_is_no_function_is_told() -> None:
    found = check("m90.q1", {"to_steps": 5})
    assert "to_steps is a int" in str(found)


def test_inputs_are_copies() -> None:
    def greedy(x: Any, step: Any) -> Any:
        q = right(x, step)
        x[:] = 0
        return q

    assert one(greedy).passed
    assert one(right).passed


def helper_of_labkit(x: Any, step: Any) -> Any:
    return quantize(x, None, QuantSpec(8))  # type: ignore[arg-type]


def uses_labkit(x: Any, step: Any) -> Any:
    if step < 0:
        return helper_of_labkit(x, step)
    return right(x, step)


def test_names_that_grading_does_not_give_are_noted() -> None:
    found = one(uses_labkit)
    assert found.passed
    (note,) = found.notes
    assert "labkit.arithmetic.affine.QuantSpec" in note
    assert "quantize, which" not in note, "quantize is given"
    assert "given are labkit.arithmetic.affine.quantize" in note


def test_the_callers_own_names_are_found() -> None:
    space: dict[str, Any] = {"check": check, "np": np}
    code = "def to_steps(x, step):\n    return np.rint(x / step).astype(int)\nfound = check('m90.q1')\n"
    exec(compile(code, "cell", "exec"), space)
    assert space["found"].passed


def test_files_modules_and_whole_modules(course: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import numpy as np\ndef to_steps(x, step):\n    return np.rint(x / step).astype(int)\nm90_e1 = 'so'\n"
    )
    found = check("m90", script)
    assert [item.status for item in found.items] == ["passed", "not attempted", "for a person"]  # type: ignore[union-attr]
    assert found.passed, "a challenge is no duty"
    assert "1 word in m90_e1; a person will read" in str(found)
    untouched = check("m90", course / "notebooks" / "m90_tiny.ipynb")
    assert {item.status for item in untouched.items} == {"not attempted"}  # type: ignore[union-attr]
    assert not untouched.passed


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import a_library_that_is_not_there\nWIDTH = a_library_that_is_not_there.width\n"
        "def to_steps(x, step):\n    return WIDTH\n"
    )
    with pytest.raises(InputError, match="a_library_that_is_not_there"):
        check("m90.q1", script)


def test_unknown_names_are_told() -> None:
    with pytest.raises(InputError, match=r"no task 'm90.q9'; m90 has m90.q1, m90.c1, m90.e1"):
        check("m90.q9")
    with pytest.raises(InputError, match="no module 'm77'"):
        check("m77.q1")
    with pytest.raises(InputError, match="Name one task"):
        check("m90", right)


def test_hidden_kinds_are_named_and_not_shown() -> None:
    found = one(np.mean, "m90.c1")
    assert found.status == "error", "np.mean has another parameter name"
    found = one(lambda x: np.median(x), "m90.c1")
    assert found.hint == "That is the median."
    assert "cases that are not shown: single (one number)" in str(found)
    assert "bonus" in str(found)


def test_the_box_escapes_what_students_write() -> None:
    def angry(x: Any, step: Any) -> Any:
        raise ValueError("<script>alert(1)</script>")

    html = one(angry)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    whole = check("m90", {"to_steps": angry})._repr_html_()
    assert "<script>" not in whole
    assert "✗" in whole


def test_slow_answers_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 6))
    monkeypatch.setattr("labkit.course.checking.time.process_time", lambda: float(next(clock)))
    assert any("the grader allows 2 s" in note for note in one(right).notes)
