"""The tables, the JSON and the figure of an analysis."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from labkit.reporting.accumulators.plot import bits_figure
from labkit.reporting.accumulators.results import SCHEMA, Analysis, Landing, LayerSums, PairRule, Span, Step
from labkit.reporting.accumulators.tables import analysis_tables, ledger_table

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


LEDGER = (
    Step("norm", "LayerNorm", "sum of squares", 49, Span(0, 2**31 - 1), Span(0, 255)),
    Step("norm", "LayerNorm", "times gamma, and beta", 50, Span(-(2**60), 2**61 - 1)),
    Step("up", "Conv2d", "sum", 7, Span(-(2**31), 5)),
    Step("down", "Conv2d", "sum", 7, Span(-(2**31) - 1, 5)),
)


def test_the_ledger_says_which_numbers_need_int64() -> None:
    assert [step.register for step in LEDGER] == ["int32", "int64", "int32", "int64"]
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(ledger_table(Analysis((), 3, "", LEDGER)))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0] == "Ledger of bit widths: 4 intermediates, 2 of them in int64".split()
    rows = [line for line in lines[1:] if line[-1:] in (["int32"], ["int64"])]
    assert rows == [
        ["norm", "sum", "of", "squares", "49", "2,147,483,647", "32", "9", "int32"],
        ["times", "gamma,", "and", "beta", "50", "2.31e+18", "62", "-", "int64"],
        ["up", "sum", "7", "2,147,483,648", "32", "-", "int32"],
        ["down", "sum", "7", "2.15e+09", "33", "-", "int64"],
    ]


def test_the_ledger_in_json() -> None:
    plain = Analysis((), 3, "", LEDGER).to_json()["ledger"]
    assert plain[0] == {
        "name": "norm",
        "operation": "LayerNorm",
        "step": "sum of squares",
        "equation": 49,
        "worst": {"low": 0, "high": 2**31 - 1, "bits": 32},
        "observed": {"low": 0, "high": 255, "bits": 9},
        "register": "int32",
    }
    assert plain[1]["observed"] is None
    assert json.loads(json.dumps(plain)) == plain
