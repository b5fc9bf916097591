"""The tables, the JSON and the figure of an analysis."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from labkit.reporting.accumulators.plot import bits_figure
from labkit.reporting.accumulators.results import SCHEMA, Analysis, Landing, LayerSums, PairRule, Span
from labkit.reporting.accumulators.tables import analysis_tables

ANALYSIS = Analysis(
    (
        LayerSums(
            "layer4.1.conv2",
            "Conv2d",
            4608,
            Span(-49_123_456, 40_000_000),
            50_000_000,
            Span(-1_234_567, 987_654),
            Landing(10_000, 5_123, 1, 5_000, 0, True, False),
            PairRule(1000, 23),
            ("F2",),
        ),
        LayerSums(
            "features.17.conv.very_long_name_of_a_layer.0",
            "AveragePool2d",
            49,
            Span(-6_223, 6_272),
            6_272,
            Span(0, 6_272),
            Landing(1_000, 10, 990, 0, 980, False, False),
        ),
        LayerSums(
            "add",
            "Add",
            2,
            Span(-(2**38), 2**38 - 1),
            2**38,
            Span(-5, 5),
            Landing(1_000_000, 0, 20, 0, 20, True, True),
            winograd=(),
        ),
    ),
    1_000,
    "test images of mnist5k",
)


def printed(analysis: Analysis, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(analysis_tables(analysis))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [100, 120, 160])
def test_every_figure_stands_in_the_tables(width: int) -> None:
    lines = printed(ANALYSIS, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    rows = [line.split() for line in lines if line.startswith((" layer4.1.conv2", " add"))]
    assert rows == [
        ["layer4.1.conv2", "4,608", "49,123,456", "27", "5", "-1,234,567", "987,654", "22", "2.51"],
        ["add", "2", "2.75e+11", "39", "-7", "-5", "5", "4", "<0.01"],
        ["layer4.1.conv2", "Conv2d", "51.23", "-", "0.01", "0", "no", "2.30", "F2"],
        ["add", "Add", "<0.01", "-", "-", "-", "no", "-", "no"],
    ]
    assert "features.17" in text  # folded where it does not fit, but whole
    pool = next(line.split() for line in lines if "AveragePool2d" in line)
    assert pool[pool.index("AveragePool2d") + 1 :] == ["-", "1.00", "99.00", "98.00", "yes", "-", "-"]
    assert "1,000 images (test images of mnist5k)" in text


def test_columns_that_need_images_are_empty_without_any() -> None:
    bare = Analysis((LayerSums("fc", "Linear", 4, Span(-8, 7), 8),))
    rows = [line.split() for line in printed(bare, 100) if line.startswith(" fc")]
    assert rows == [
        ["fc", "4", "8", "4", "28", "-", "-", "-", "-"],
        ["fc", "Linear", "-", "-", "-", "-", "yes", "-", "-"],
    ]


def test_names_are_not_taken_for_markup() -> None:
    odd = Analysis((LayerSums("[red]fc[/]", "Linear", 4, Span(-8, 7), 8),))
    assert any(line.startswith(" [red]fc[/]") for line in printed(odd, 100))


def test_json_holds_the_counts_and_what_follows_from_them() -> None:
    whole = json.loads(json.dumps(ANALYSIS.to_json(), allow_nan=False))
    assert (whole["schema"], whole["images"], whole["source"]) == (SCHEMA, 1_000, "test images of mnist5k")
    conv, pool, add = whole["layers"]
    assert conv["worst"] == {"low": -49_123_456, "high": 40_000_000, "bits": 27}
    assert conv["observed"] == {"low": -1_234_567, "high": 987_654, "bits": 22}
    assert (conv["spare_bits"], conv["fits_int16"], conv["bound"]) == (5, False, 50_000_000)
    assert conv["landing"]["cut"] == 0 and conv["landing"]["cut_low"] == 5_000
    assert conv["pairs"] == {"pairs": 1000, "saturating": 23, "share": 0.023}
    assert (conv["winograd"], pool["winograd"], add["winograd"]) == (["F2"], None, [])
    assert (pool["pairs"], pool["fits_int16"]) == (None, True)
    assert (pool["landing"]["saturated_low"], pool["landing"]["saturated_high"], pool["landing"]["cut"]) == (
        0.01,
        0.99,
        0.98,
    )
    assert Analysis((LayerSums("fc", "Linear", 4, Span(0, 0), 0),)).to_json()["layers"][0]["used"] is None


def test_the_figure_names_every_layer_and_is_the_same_each_time() -> None:
    drawn = bits_figure(ANALYSIS)
    assert drawn == bits_figure(ANALYSIS)
    words = {
        "".join(element.itertext()).strip() for element in ET.fromstring(drawn).iter() if element.tag.endswith("text")
    }
    assert {layer.name for layer in ANALYSIS.layers} | {"int16", "int32", "27", "22", "39"} <= words
    assert bits_figure(ANALYSIS, "png").startswith(b"\x89PNG")
    assert bits_figure(Analysis(ANALYSIS.layers), "svg") != drawn
