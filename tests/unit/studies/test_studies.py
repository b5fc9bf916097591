"""Studies: their data survive JSON, their pages and figures are the same each time, and each of them runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from labkit.cli.app import app
from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import load
from labkit.studies.adaround.table_1 import rounded_layer
from labkit.studies.figures import svg
from labkit.studies.index import index
from labkit.studies.page import page
from labkit.studies.registry import STUDIES, find
from labkit.studies.run import read_study, run_study, write_study
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, mean_and_spread

COMMITTED = Path(__file__).parents[3] / "docs" / "studies"
RESULT = StudyResult(
    (Table("A table", ("net", "accuracy, %"), (("a|b", 71.25), ("c", None), ("d", 0.01234))),),
    (Finding("it falls", "it rises", "no"),),
    tuple(
        Figure(
            f"figure-{kind}", "A title", kind, "x, units", "y, units", (Series("s", x, (1.0, 2.0), (0.1, 0.2)),), marks
        )  # type: ignore[arg-type]
        for kind, x, marks in (
            ("line", (1.0, 2.0), {"here": 1.5}),
            ("scatter", (1.0, 2.0), {}),
            ("bar", ("one", "two"), {}),
            ("step", (1.0, 2.0), {"here": 1.5}),
        )
    ),
    ("A note.",),
)


def test_result_survives_json() -> None:
    assert StudyResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT
    with pytest.raises(InputError, match="must be labkit.study/1"):
        StudyResult.from_json({**RESULT.to_json(), "schema": "other"})
    with pytest.raises(InputError, match="not a study's result"):
        StudyResult.from_json({"schema": "labkit.study/1"})


@pytest.mark.parametrize("figure", RESULT.figures, ids=lambda f: f.kind)
def test_figures_are_the_same_each_time_and_say_what_they_show(figure: Figure) -> None:
    drawn = svg(figure)
    assert drawn == svg(figure)
    for text in (figure.title, figure.x_label, figure.y_label, *figure.marks):
        assert f">{text}<" in drawn


def test_page_has_all_of_it() -> None:
    made = {"command": "labkit study x", "seconds": 130.0, "versions": {"torch": "2"}, "settings": {"smoke": True}}
    text = page(STUDIES[0], RESULT, made)
    for part in (
        "a\\|b",
        "71.25",
        "0.01234",
        "it rises",
        "does not agree",
        "figure-bar.svg",
        "A note.",
        "smoke run",
        "2 minutes",
    ):
        assert part in text


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="2 columns, but a row of 1"):
        Table("t", ("a", "b"), (("x",),))
    with pytest.raises(InputError, match="one length, got 1, 2 and 0"):
        Series("s", (1.0,), (1.0, 2.0))
    with pytest.raises(InputError, match="seeds must be at least 1"):
        Settings(seeds=0)
    with pytest.raises(InputError, match=f"no study 'x'. Choose one of: {STUDIES[0].name}"):
        find("x")


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0]) == "1.00"
    assert mean_and_spread([1.0, 3.0], 1) == "2.0 ± 1.4"


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
def test_short_version_runs(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    told: list[tuple[str, int, int]] = []
    content = run_study(study, Settings.short(), "labkit study --smoke", lambda *step: told.append(step))
    assert told and told[-1][1] == told[-1][2]
    write_study(study, content, tmp_path / "out")
    again = read_study(tmp_path / "out")
    assert again["findings"] and again["tables"]
    assert "mean nothing" in (tmp_path / "out" / "README.md").read_text()
    for figure in again["figures"]:
        assert (tmp_path / "out" / f"{figure['name']}.svg").exists()


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
def test_committed_page_is_made_from_the_committed_result(study, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content = read_study(COMMITTED / study.name)
    assert not content["settings"]["smoke"]
    write_study(study, content, tmp_path)
    assert (tmp_path / "README.md").read_text() == (COMMITTED / study.name / "README.md").read_text()
    assert content["command"].startswith(f"labkit study {study.name} ")


def test_command_line(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["study", "--list"])
    assert listed.exit_code == 0
    assert STUDIES[0].name in listed.output
    with pytest.raises(InputError, match="Cannot read"):
        read_study(tmp_path)


@pytest.mark.parametrize("way", ["nearest", "floor", "ceil", "stochastic"])
def test_roundings_of_the_first_table(way: str) -> None:
    graph = simplify(from_torch(load("lenet", "mnist5k"), (3, 32, 32)))
    weight = graph["conv1"].op.weight  # type: ignore[union-attr]
    layer = rounded_layer(graph, "conv1", way, 0)
    scaled = weight / layer.weight.params.scale
    moved = layer.weight.values - scaled
    low, high = {"nearest": (-0.5, 0.5), "floor": (-1, 0), "ceil": (0, 1), "stochastic": (-1, 1)}[way]
    assert np.all(moved >= low - 1e-4)
    assert np.all(moved <= high + 1e-4)
    if way == "stochastic":
        assert abs(moved.mean()) < 0.05
        assert not np.array_equal(layer.weight.values, rounded_layer(graph, "conv1", way, 1).weight.values)


def test_overview_is_made_from_the_committed_results() -> None:
    text = index(STUDIES, COMMITTED)
    assert text == (COMMITTED / "README.md").read_text()
    for study in STUDIES:
        assert f"({study.name}/README.md)" in text


def test_overview_counts_what_agrees(tmp_path: Path) -> None:
    (tmp_path / STUDIES[0].name).mkdir()
    findings = [{"claim": "c", "measured": "m", "agrees": word} for word in ("yes", "no", "yes", "partly")]
    (tmp_path / STUDIES[0].name / "result.json").write_text(json.dumps({"findings": findings}))
    assert "| 2 | 1 | 1 |" in index(STUDIES[:1], tmp_path)
    out = CliRunner().invoke(app, ["study", "--index", "--out", str(tmp_path)])
    assert isinstance(out.exception, InputError)  # the others have no result there
    assert not (tmp_path / "README.md").exists()


def test_what_the_guide_quotes_is_what_the_best_rounding_reached() -> None:
    guide = " ".join((COMMITTED.parent / "calibration-and-rounding.md").read_text("utf-8").split())
    tables = read_study(COMMITTED / "best-rounding")["tables"]
    lenet, resnet = ({row[0]: row[3] for row in table["rows"]} for table in tables)
    bits = ("W8A8", "W4A8", "W3A8", "W2A8")
    for below, four in ((lenet, "W4A4, input at 8 bits"), (resnet, "W4A4, input and those branches at 8 bits")):
        assert " / ".join(below[name] for name in bits) in guide
        assert f"{below[four]} at W4A4" in guide
    assert f"{resnet['W4A4, input at 8 bits']} with the input alone" in guide


def test_what_the_page_on_fine_tuning_quotes_is_what_the_study_found() -> None:
    page = (COMMITTED.parent / "fine-tuning.md").read_text("utf-8")
    rows = read_study(COMMITTED / "fine-tuning")["tables"][0]["rows"]
    quoted = [line for line in page.splitlines() if line.startswith(("| 2.5 on", "| W4A4", "| W2A4"))]
    assert len(quoted) == len(rows)
    for line, row in zip(quoted, rows, strict=True):
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == [row[1], row[2], row[4], str(row[7])]


def test_what_the_guide_quotes_of_plans_is_what_the_study_found() -> None:
    guide = " ".join((COMMITTED.parent / "calibration-and-rounding.md").read_text("utf-8").split())
    rows = next(
        table["rows"] for table in read_study(COMMITTED / "mixed-precision")["tables"] if "resnet20" in table["title"]
    )
    below = {(row[0], row[1], row[2]): row[5] for row in rows}
    assert " / ".join(below["best", bits, "chosen"] for bits in ("4", "3", "2.5")) in guide
