"""The page beside aimet-torch is made of its committed rows. The comparison itself needs aimet-torch and is not run here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from labkit.studies.adaround.comparison import nearest
from labkit.studies.lab import open_lab
from labkit.studies.study import Settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "studies" / "aimet-pairing"
_SPEC = importlib.util.spec_from_file_location("pair_aimet", ROOT / "tools" / "pair_aimet.py")
assert _SPEC is not None
assert _SPEC.loader is not None
PAIR = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(PAIR)
RESULT = json.loads((FOLDER / "result.json").read_text("utf-8"))


def test_committed_page_is_made_from_the_committed_rows() -> None:
    assert PAIR.page(RESULT) == (FOLDER / "README.md").read_text("utf-8")


@pytest.mark.parametrize("net", RESULT)
def test_rows_say_what_they_measured(net: str) -> None:
    made = RESULT[net]
    assert made["command"].startswith(f"python tools/pair_aimet.py --net {net} ")
    assert made["test_images"] == 10_000
    assert {"labkit", "aimet-torch"} <= {row["who"] for row in made["rows"]}
    for row in made["rows"]:
        assert ("accuracy" in row) != ("extrapolated" in row["method"])


def test_time_is_extrapolated_along_a_line() -> None:
    rows = [{"iterations": n, "processor_seconds": 5 + 0.01 * n, "wall_seconds": 7 + 0.02 * n} for n in (100, 500, 900)]
    found = PAIR._extrapolated(rows)
    assert found["processor_seconds"] == pytest.approx(5 + 0.01 * PAIR.DEFAULT_ITERATIONS)
    assert found["wall_seconds"] == pytest.approx(7 + 0.02 * PAIR.DEFAULT_ITERATIONS)
    assert "extrapolated" in found["method"]


def test_foreign_weights_become_the_integers_that_they_stand_for() -> None:
    lab = open_lab("lenet", Settings.short())
    plan = lab.plan(4, 8, per_channel=False)
    ours = nearest(lab.graph, lab.calibration, plan)
    scales = {name: float(layer.weight.params.scale) for name, layer in ours.layers.items()}
    weights = {name: np.array(layer.weight.dequantized()) for name, layer in ours.layers.items()}
    same, between = PAIR._outcome(lab, plan, weights, scales)
    assert between == 0
    for name, layer in ours.layers.items():
        assert np.array_equal(same.layers[name].weight.values, layer.weight.values)
    weights["fc3"] = weights["fc3"] + np.float32(0.4 * scales["fc3"])  # soft: not there yet
    soft, between = PAIR._outcome(lab, plan, weights, scales)
    count = sum(weight.size for weight in weights.values())
    assert between == pytest.approx(weights["fc3"].size / count)
    assert np.array_equal(soft.layers["fc3"].weight.values, ours.layers["fc3"].weight.values)
