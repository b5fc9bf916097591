"""The figures of bit allocation: complete, the same each time, and fit for a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from unit.allocation.problems import problem

from labkit.allocation.pareto import exact_front, hull_front
from labkit.errors import InputError
from labkit.reporting import plots
from labkit.reporting.allocation_plots import pareto_fronts, sensitivity_map
from labkit.sensitivity.table import SensitivityTable

SVG = "{http://www.w3.org/2000/svg}"
VALUES = np.array([[0.25, 1e-7, 0.0], [123.0, 0.5, -0.0125]])
TABLE = SensitivityTable(("conv1", "a.very.long.name.of.a.layer"), (2, 4, 8), VALUES, VALUES * 0, "fisher", "nats")


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_every_cell_has_its_number_and_every_axis_its_name() -> None:
    svg = sensitivity_map(TABLE, "m", "LeNet: loss", {"conv1": 4})
    found = texts(svg)
    assert {"0.25", "1e\N{MINUS SIGN}7", "0", "1.2e+02", "0.5", "\N{MINUS SIGN}0.013"} <= {
        t.replace("1.2e2", "1.2e+02") for t in found
    }
    assert {"LeNet: loss", "conv1", "2", "4", "8", "weight bits (framed: chosen)"} <= set(found)
    assert "nats, by fisher; colour: log scale" in found
    assert "conv1: 2 bits 0.25" in ET.fromstring(svg).get("aria-label", "")
    assert svg == sensitivity_map(TABLE, "m", "LeNet: loss", {"conv1": 4})
    assert "weight bits" in texts(sensitivity_map(TABLE, "m", "LeNet: loss"))


def test_a_darker_cell_means_more_loss_and_none_means_no_loss() -> None:
    svg = sensitivity_map(TABLE, "m", "t")
    shades = [float(s) for s in re.findall(r"opacity: ([0-9.]+)", svg)]
    positive = VALUES[VALUES > 0]
    assert len(shades) == len(positive)
    assert np.array_equal(np.argsort(shades), np.argsort(positive))


@pytest.mark.parametrize(
    "values", [np.full((2, 3), 0.5), np.zeros((2, 3)), -np.ones((2, 3))], ids=["equal", "zero", "negative"]
)
def test_tables_without_a_range_are_drawn(values: np.ndarray) -> None:
    table = SensitivityTable(TABLE.layers, TABLE.bits, values, VALUES * 0, "fisher", "nats")
    assert len(texts(sensitivity_map(table, "m", "t"))) > 9


def test_a_choice_that_the_table_lacks_is_refused() -> None:
    for wrong in ({"fc": 4}, {"conv1": 3}):
        with pytest.raises(InputError, match="The table has no cell for"):
            sensitivity_map(TABLE, "m", "t", wrong)


@pytest.mark.parametrize("kind", ["net", "signed"])
def test_fronts_and_points(kind: str) -> None:
    given = problem(kind, 6, 4, 1, 1.0, names=("size",), units=("bytes",))
    fronts = {"exact": exact_front(given), "greedy": hull_front(given)}
    points = {"random": [(float(fronts["exact"].costs[3]), float(fronts["exact"].values[2]))]}
    svg = pareto_fronts(fronts, "p", "What a size buys", points)
    found = texts(svg)
    log = ", log scale" if kind == "net" else ""
    assert {"What a size buys", "size (bytes)", f"predicted loss{log}", "exact", "greedy", "random"} <= set(found)
    assert svg == pareto_fronts(fronts, "p", "What a size buys", points)
    for wrong in ({}, dict.fromkeys("abcde", fronts["exact"])):
        with pytest.raises(InputError, match="has room for 1 to 4"):
            pareto_fronts(wrong, "p", "t")
    for key, figure in (("p", svg), ("m", sensitivity_map(TABLE, "m", "t", {"conv1": 4}))):
        ids = re.findall(r'\sid="([^"]+)"', figure)
        assert len(ids) == len(set(ids)) and all(i == key or i.startswith(f"{key}-") for i in ids)
        assert ET.fromstring(figure).get("role") == "img" and "$" not in "".join(texts(figure))
        assert not any(stand_in in figure for stand_in in plots.COLOURS)
