"""Figures of several panels, marks at several places, and long lines without markers."""

from __future__ import annotations

import json
from dataclasses import replace

from labkit.studies.figures import svg
from labkit.studies.study import Figure, Series, StudyResult

PANELS = tuple(
    Figure(
        name,
        name,
        "step",
        f"{name}, x",
        f"{name}, y",
        (Series("values", (0.0, 1.0, 2.0), (3.0, 1.0, 0.0)),),
        {"ends": (0, 2)},
    )
    for name in ("one", "two", "three", "four")
)
FIGURE = Figure("panels", "All of them", "step", "", "", (), panels=PANELS)


def test_panels_survive_json() -> None:
    result = StudyResult((), (), (FIGURE,))
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_results_from_before_there_were_panels_are_read() -> None:
    values = StudyResult((), (), (PANELS[0],)).to_json()
    for figure in values["figures"]:
        del figure["panels"]
    assert StudyResult.from_json(json.loads(json.dumps(values))).figures == (PANELS[0],)


def test_every_panel_is_drawn_with_one_legend() -> None:
    drawn = svg(FIGURE)
    assert drawn == svg(FIGURE)
    for panel in PANELS:
        for text in (panel.title, panel.x_label, panel.y_label):
            assert f">{text}<" in drawn
    assert drawn.count(">All of them<") == drawn.count(">ends<") == drawn.count(">values<") == 1


def test_a_mark_may_stand_at_several_places() -> None:
    twice, once = svg(PANELS[0]), svg(replace(PANELS[0], marks={"ends": 0.0}))
    assert twice.count("stroke-dasharray") == once.count("stroke-dasharray") + 1
    assert twice.count(">ends<") == 1


def test_long_lines_have_no_markers() -> None:
    def line(points: int) -> str:
        x = tuple(float(i) for i in range(points))
        return svg(Figure("line", "t", "line", "x", "y", (Series("s", x, x),)))

    assert line(60).count("<use") > 60 > line(61).count("<use")
