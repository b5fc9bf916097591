"""The tour of fifteen minutes: sound from top to bottom on the data of the package. The modules are in tests/course."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

from labkit.course.build import built
from labkit.course.loading import find_course
from labkit.course.verify.execution import executed

ROOT = Path(__file__).parents[3]


def test_every_notebook_has_a_source() -> None:
    notebooks = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert notebooks == [path.stem for path in sorted((ROOT / "solutions").glob("*.py"))]
    assert "first_steps" in notebooks


def test_the_tour_is_what_its_source_gives() -> None:
    (tour,) = [made for made in built(find_course(ROOT)) if made.path.name == "first_steps.ipynb"]
    assert tour.is_there, "run labkit course build"


def test_the_tour_runs_on_the_embedded_data() -> None:
    run = executed(ROOT, "first_steps")
    assert run.error == ""
    assert run.warned == ""
    assert run.figures == 7
    cells = nbformat.reads(run.notebook, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert re.search(r": 0 of \d+,\d{3},\d{3} elements differ", said)
    assert "First difference: tensor fc1" in said
    assert "the same logits, to the last bit" in said
