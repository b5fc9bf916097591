from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from labkit.reporting import plots
from labkit.reporting.results import DemoResult, Histogram, LayerRow, Range

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def layer(result: DemoResult, kind: str, name: str) -> LayerRow:
    return next(row for row in result.layers if (row.kind, row.name) == (kind, name))


def of_kind(result: DemoResult, kind: str) -> list[LayerRow]:
    return [row for row in result.layers if row.kind == kind]


def test_same_data_same_bytes_whatever_the_users_settings(result: DemoResult) -> None:
    row = layer(result, "weight", "conv1")
    first = plots.histogram(row, "w0")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "text.usetex": False}):
        assert plots.histogram(row, "w0") == first
        assert matplotlib.rcParams["font.size"] == 30, "the user's settings are left as they were"


def test_ids_start_with_the_key_and_references_meet_them(result: DemoResult) -> None:
    svg = plots.error_curve(of_kind(result, "activation"), "error")
    ids = re.findall(r'\sid="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) > 10 and all(i == "error" or i.startswith("error-") for i in ids)
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
    assert references and {a or b for a, b in references} <= set(ids)


def test_root_names_the_figure_and_nothing_leaks_into_the_page(result: DemoResult) -> None:
    svg = plots.histogram(layer(result, "weight", "fc1"), "w2")
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and "fc1" in root.get("aria-label", "") and root.get("viewBox")
    for unwanted in ("<style", "<metadata", "xlink", "<!DOCTYPE", "DejaVu Sans'; "):
        assert unwanted not in svg
    assert not any(stand_in in svg for stand_in in plots.COLOURS)


def test_histogram_has_title_units_and_the_three_ranges(result: DemoResult) -> None:
    found = texts(plots.histogram(layer(result, "weight", "conv1"), "w0"))
    assert {"conv1: weights", "value (real units)", "count", "observed", "3σ", "chosen"} <= set(found)


def test_a_dominating_bin_turns_the_count_axis_to_a_log_scale(result: DemoResult) -> None:
    assert "count, log scale" in texts(plots.histogram(layer(result, "activation", "conv1"), "a1"))
    assert "count" in texts(plots.histogram(layer(result, "weight", "conv1"), "w0"))


def test_bins_beyond_the_chosen_range_have_their_own_colour(result: DemoResult) -> None:
    assert "--fig-cut" in plots.histogram(layer(result, "activation", "conv1"), "a1")
    assert "--fig-cut" not in plots.histogram(layer(result, "weight", "conv1"), "w0")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_constant_tensor_can_be_drawn(value: float) -> None:
    edges = np.linspace(value - 0.5, value + 0.5, 3)
    point = Range(value, value)
    row = LayerRow("fc", "weight", (4,), Histogram(np.array([0, 4]), edges), point, point, point)
    assert "fc: weights" in texts(plots.histogram(row, "k"))
    empty = dataclasses.replace(row, histogram=Histogram(np.array([0, 0]), edges))
    assert "fc: weights" in texts(plots.histogram(empty, "k"))


def test_bars_name_every_layer_configuration_and_value(result: DemoResult) -> None:
    rows = of_kind(result, "activation")
    found = texts(plots.sqnr_bars(rows, "s", "SQNR of the activations"))
    assert {row.name for row in rows} <= set(found) and {"W8A8", "W4A8", "W4A4"} <= set(found)
    assert "SQNR in dB (longer is better)" in found
    assert found.count("exact") == 1, "the input's infinite ratio"
    for row in rows:
        for value in row.sqnr_db.values():
            assert not np.isfinite(value) or f"{value:.1f}" in found


def test_curve_writes_the_relative_error_of_each_layer_into_its_description(result: DemoResult) -> None:
    label = ET.fromstring(plots.error_curve(of_kind(result, "activation"), "e")).get("aria-label", "")
    assert "conv1: W8A8 0.832 %" in label  # 10 ** (-41.6 / 20)
    assert "input: W8A8 exact" in label


@pytest.mark.filterwarnings("error")
def test_missing_and_absent_ratios_leave_gaps(result: DemoResult) -> None:
    rows = of_kind(result, "activation")
    rows[1] = dataclasses.replace(rows[1], sqnr_db={"W8A8": float("nan"), "W4A8": -3.0})
    assert "W4A4" in texts(plots.error_curve(rows, "e"))
    assert "−3.0" in texts(plots.sqnr_bars(rows, "s", "t"))
    bare = [dataclasses.replace(row, sqnr_db={}) for row in rows]
    assert plots.configurations(bare) == []
    assert ET.fromstring(plots.error_curve(bare, "e")) is not None
    assert ET.fromstring(plots.sqnr_bars(bare, "s", "t")) is not None


def test_hostile_names_stay_text(result: DemoResult) -> None:
    name = '<b>$x^2$ & "y"'
    row = dataclasses.replace(layer(result, "weight", "conv1"), name=name)
    svg = plots.histogram(row, "w0")
    assert f"{name}: weights" in texts(svg) and "<b>" not in svg


def test_a_deep_network_keeps_its_names_apart(result: DemoResult) -> None:
    row = layer(result, "activation", "conv1")
    rows = [dataclasses.replace(row, name=f"features.stage{n}.block.conv") for n in range(40)]
    found = texts(plots.error_curve(rows, "e"))
    assert 10 <= sum("conv" in text for text in found) <= 16
    assert max(len(text) for text in found if "conv" in text) <= 16
