from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console, RenderableType

from labkit.reporting.results import AccuracyRow, DemoResult
from labkit.reporting.summary import (
    change,
    headline_row,
    is_clear,
    reference_row,
    short_count,
    short_milliseconds,
    short_size,
    signed_points,
    verdict,
)
from labkit.reporting.tables import accuracy_table, certificate_panel


def printed(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [100, 110, 120])
def test_wide_table_holds_every_number_of_every_row(result: DemoResult, width: int) -> None:
    lines = printed(accuracy_table(result, width), width)
    for row in result.rows:
        expected = [*row.label.split(), f"{row.weight_bits}/{row.activation_bits}", f"{row.accuracy:.2f}"]
        points = change(result.rows, row)
        expected += ["ref." if points is None else signed_points(points)]
        expected += [] if row.change_error is None else [f"{row.change_error:.2f}"]
        expected += short_size(row.size_bytes).split() + (short_count(row.macs).split() if width >= 110 else [])
        expected += short_count(row.bops).split()
        expected += [f"{row.ms_per_image:.3g}"] if row.ms_per_image else []
        assert expected in [line.split() for line in lines], row.label


def test_narrow_table_keeps_each_row_in_80_columns_and_names_the_macs_below(result: DemoResult) -> None:
    lines = printed(accuracy_table(result, 80), 80)
    assert max(map(len, lines)) <= 80
    assert "MACs" not in lines[2] and "BOPS" in lines[2]
    assert "MACs an image: 1.52 M." in lines
    assert [f"{row.accuracy:.2f}" for row in result.rows] == [
        word for line in lines for word in line.split() if word.count(".") == 1 and len(word) == 5 and word[0] in "567"
    ]
    assert not any("…" in line for line in lines), "a cell was cut"
    assert not any("s.e." in line or "0.35" in line for line in lines), "the errors need the room of a wide terminal"


def test_only_changes_of_more_than_two_errors_are_coloured(result: DemoResult) -> None:
    reference, w4a8 = result.rows[0], result.rows[-2]
    assert change(result.rows, w4a8) == pytest.approx(-0.67)
    for error, points, clear, colour in [
        (0.35, -0.67, False, ""),
        (0.25, -0.67, True, "red"),
        (0.25, 0.67, True, "green"),
        (None, -20.0, False, ""),
        (0.0, 0.0, False, ""),
    ]:
        row = dataclasses.replace(w4a8, accuracy=reference.accuracy + points, change_error=error)
        assert is_clear((reference, row), row) is clear
        table = accuracy_table(dataclasses.replace(result, rows=(reference, row)), 120)
        assert list(table.columns[3].cells)[-1].style == colour  # type: ignore[union-attr]


def test_sections_follow_each_other_under_their_names(result: DemoResult) -> None:
    lines = [line.strip() for line in printed(accuracy_table(result, 120), 120)]
    places = [lines.index(section) for section in ("float", "simulated", "bias", "integer engine")]
    assert places == sorted(places)


def test_labels_are_not_read_as_markup(result: DemoResult) -> None:
    row = dataclasses.replace(result.rows[0], label="[red]x[/red]", section="[bold]y")
    text = "\n".join(printed(accuracy_table(dataclasses.replace(result, rows=(row,)), 120), 120))
    assert "[red]x[/red]" in text and "[bold]y" in text


def test_change_is_measured_against_the_section_or_the_first_float_row(result: DemoResult) -> None:
    by_label = {row.label: row for row in result.rows}
    assert reference_row(result.rows, by_label["W4A4"]) is by_label["float32, trained"]
    assert change(result.rows, by_label["W4A4"]) == pytest.approx(62.03 - 70.14)
    assert change(result.rows, by_label["weights quantized, bias left unscaled"]) == pytest.approx(57.07 - 60.88)
    assert change(result.rows, by_label["float32, fc3 with bias"]) is None
    alone = AccuracyRow("integer engine", "W4A4", 4, 4, 50.0, 10)
    assert reference_row((alone,), alone) is None and change((alone,), alone) is None


def test_headline_is_w8a8_of_the_engine(result: DemoResult) -> None:
    row = headline_row(result.rows)
    assert row is not None and (row.section, row.label) == ("integer engine", "W8A8")
    assert headline_row(result.rows[:3]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1_515_200, "1.52 M"), (999_999, "1.00 M"), (96_972_800, "97.0 M")],
)
def test_counts_have_three_digits(value: int, text: str) -> None:
    assert short_count(value) == text


def test_numbers_in_words() -> None:
    assert short_size(316_292) == "316 kB" and short_size(None) == "" and short_count(None) == ""
    assert short_size(12) == "12 B"
    assert short_milliseconds(0.0832) == "0.0832" and short_milliseconds(12.3456) == "12.3"
    assert short_milliseconds(float("nan")) == "" and short_milliseconds(None) == "" and short_milliseconds(0.0) == "0"
    assert signed_points(-0.001) == "0.00" and signed_points(0.05) == "+0.05" and signed_points(-8.114) == "-8.11"


@pytest.mark.parametrize("width", [80, 120])
def test_panel_says_what_passed_and_where_the_first_difference_lies(result: DemoResult, width: int) -> None:
    lines = printed(certificate_panel(result.certificates), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert text.count("passes") == 2 and text.count("FAILS") == 1
    assert "Not equal: 2,408 of 523,491,120 elements differ (W4A4)." in text
    assert "fc2, index [17, 42]: expected -3, labkit has -4" in text


def test_panel_of_passing_certificates_and_of_none(passing: DemoResult) -> None:
    text = "\n".join(printed(certificate_panel(passing.certificates), 80))
    assert "Bit for bit equal: 0 of 523,491,120 elements differ." in text and "FAILS" not in text
    assert "Nothing was compared." in "\n".join(printed(certificate_panel({}), 80))
    assert verdict({})[0] == "none"
