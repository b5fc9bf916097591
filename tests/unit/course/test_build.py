"""Building: the same bytes every time, clean notebooks, ids that stay, public cases without oracle or answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from labkit.course.build import answered_notebook, built, write_built
from labkit.course.cases import draw_cases, public_cases, read_public
from labkit.course.loading import load_modules
from labkit.course.notebook import notebook_text, setup_cells
from labkit.errors import InputError


def test_a_rebuild_writes_nothing(course: Path) -> None:
    written = write_built(course)
    assert sorted(path.name for path in written) == ["m90_tiny.ipynb", "m90_tiny.json"]
    assert write_built(course) == []
    assert all(made.is_there for made in built(course))


def cells(course: Path) -> list[dict[str, Any]]:
    write_built(course)
    text = (course / "notebooks" / "m90_tiny.ipynb").read_text()
    nbformat.validate(nbformat.reads(text, as_version=4))
    found: list[dict[str, Any]] = json.loads(text)["cells"]
    return found


def test_a_notebook_is_clean_and_its_tasks_have_ids(course: Path) -> None:
    made = cells(course)
    code = [cell for cell in made if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    ids = [cell["id"] for cell in made]
    assert len(set(ids)) == len(ids)
    for name in ("m90-q1", "m90-q1-check", "m90-c1", "m90-c1-check", "m90-e1", "m90-e1-check"):
        assert name in ids


def test_an_edit_leaves_the_ids_of_other_cells() -> None:
    def ids(text: str) -> list[str]:
        return [cell["id"] for cell in json.loads(notebook_text(text))["cells"]]

    before = ids("# %% [markdown]\n# Title\n\n# %%\na = 1\n\n# %%\na = 1\n")
    after = ids("# %% [markdown]\n# Title\n\n# %%\nb = 2\n\n# %%\na = 1\n\n# %%\na = 1\n")
    assert len(set(before)) == 3, "two cells of one text need two ids"
    assert after[:1] + after[2:] == before


@pytest.mark.parametrize("repository", ["", "https://github.com/somebody/labkit", "https://example.org/labkit.git"])
def test_the_first_cells(repository: str) -> None:
    kinds = [kind for kind, _ in setup_cells("m90_tiny", repository, ("numpy>=2.0", "torch>=2.8", "torchvision>=0.23"))]
    texts = "\n".join(text for _, text in setup_cells("m90_tiny", repository, ("numpy>=2.0", "torch>=2.8")))
    assert kinds[-1] == "code"
    assert kinds.count("code") == 1, "one install cell"
    if "github" in repository:
        assert "colab.research.google.com/github/somebody/labkit/blob/main/notebooks/m90_tiny.ipynb" in texts
    else:
        assert kinds == ["code"]
    if repository:
        assert f'--no-deps "labkit @ git+{repository}"' in texts
        assert '"numpy>=2.0"' in texts
        assert '"torch' not in texts, "Colab's own torch stays"


def test_the_badge_appears_when_the_address_is_set(course: Path) -> None:
    assert "Open in Colab" not in json.dumps(cells(course))
    (course / "exercises" / "course.toml").write_text('repository = "https://github.com/somebody/labkit"\n')
    assert "Open in Colab" in json.dumps(cells(course))


def test_the_answered_notebook_holds_answers(course: Path) -> None:
    text = answered_notebook(course, "m90_tiny")
    assert "np.rint(x / step)" in text
    assert "NotImplementedError" not in text


def test_public_cases_are_data_and_hold_no_oracle(course: Path) -> None:
    write_built(course)
    task, challenge = read_public("m90", course / "labkit-cases").tasks
    assert [case.kind for case in task.cases] == ["typical", "typical", "ties"]
    assert challenge.hidden == ("single",)
    assert task.signature == "to_steps(x, step)"
    assert task.given == ("labkit.arithmetic.affine.quantize",)
    text = (course / "labkit-cases" / "m90_tiny.json").read_text()
    assert "lambda" not in text
    assert "rint" not in text
    for case in task.cases:
        assert np.array_equal(case.expected, [round(float(v) / case.inputs["step"]) for v in case.inputs["x"]])


def test_a_file_gives_back_what_was_public(course: Path) -> None:
    write_built(course)
    module = load_modules(course)["m90"]
    fresh = public_cases(module, {"to_steps": "to_steps(x, step)", "middle": "middle(x)"})
    back = read_public("m90", course / "labkit-cases")
    assert repr(back) == repr(fresh)


def test_cases_depend_on_the_seed_and_on_nothing_else(course: Path) -> None:
    task = load_modules(course)["m90"].tasks[0]

    def inputs(seed: int) -> list[list[float]]:
        return [case.inputs["x"].tolist() for case in draw_cases(task, seed)]

    assert inputs(5) == inputs(5)
    assert inputs(5) != inputs(6)
    assert len({tuple(x) for x in inputs(5)}) == 8, "two kinds of four cases, none twice"
    public = [case.inputs["x"].tolist() for case in draw_cases(task, 5, public=True)]
    assert public == [inputs(5)[0], inputs(5)[1], inputs(5)[4]]


def test_mistakes_are_kept_where_they_are_wrong(course: Path) -> None:
    task = load_modules(course)["m90"].tasks[0]
    for case in draw_cases(task, 0):
        for value in case.mistakes.values():
            assert not np.array_equal(value, case.expected)


def test_a_module_that_is_not_there_is_named(course: Path) -> None:
    write_built(course)
    with pytest.raises(InputError, match="no module 'm91' in the course; there are m90"):
        read_public("m91", course / "labkit-cases")
    (course / "labkit-cases" / "m90_tiny.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="damaged"):
        read_public("m90", course / "labkit-cases")


def test_exercises_without_a_source_are_named(course: Path) -> None:
    (course / "solutions" / "m90_tiny.py").unlink()
    with pytest.raises(InputError, match="solutions/ has no such script"):
        built(course)


def test_a_changed_point_reaches_heading_and_cases(changed_course: Callable[..., Path]) -> None:
    made = {m.path.suffix: m.text for m in built(changed_course(("points=4", "points=9")))}
    assert "Round (9 points" in made[".ipynb"]
    assert '"points": 9' in made[".json"]
