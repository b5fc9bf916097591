from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from labkit.reporting.json_file import SCHEMA, to_json
from labkit.reporting.results import DemoResult


def test_round_trip_changes_nothing(result: DemoResult) -> None:
    made = to_json(result)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_holds_the_data(result: DemoResult) -> None:
    made = to_json(result)
    assert made["schema"] == SCHEMA == "labkit.report/1"
    assert [row["accuracy"] for row in made["rows"]] == [row.accuracy for row in result.rows]
    assert made["rows"][-1]["change"] == pytest.approx(62.03 - 70.14) and made["rows"][0]["change"] is None
    assert [row["change_error"] for row in made["rows"]] == [None, 0.09, 0.12, None, 0.31, 0.11, 0.1, 0.35, 0.41]
    assert [layer["name"] for layer in made["layers"]] == [layer.name for layer in result.layers]
    for written, layer in zip(made["layers"], result.layers, strict=True):
        assert np.array_equal(written["histogram"]["counts"], layer.histogram.counts)
        assert np.array_equal(written["histogram"]["edges"], layer.histogram.edges)
    assert made["certificates"]["W4A4"]["passed"] is False and made["certificates"]["W8A8"]["passed"] is True
    assert made["certificates"]["W4A4"]["first"]["index"] == [17, 42]
    assert made["verdict"]["status"] == "failed"


def test_numbers_that_json_cannot_hold_are_null(result: DemoResult) -> None:
    infinite = next(layer for layer in to_json(result)["layers"] if layer["kind"] == "activation")
    assert infinite["name"] == "input" and infinite["sqnr_db"]["W8A8"] is None
    row = dataclasses.replace(result.rows[0], ms_per_image=float("nan"))
    assert to_json(dataclasses.replace(result, rows=(row,)))["rows"][0]["ms_per_image"] is None


def test_numpy_scalars_become_plain_numbers(result: DemoResult) -> None:
    row = dataclasses.replace(result.rows[0], accuracy=np.float64(70.5), size_bytes=np.int64(12))  # type: ignore[arg-type]
    made = to_json(dataclasses.replace(result, rows=(row,)))["rows"][0]
    assert type(made["accuracy"]) is float and type(made["size_bytes"]) is int


def test_pixels_are_left_out_and_predictions_kept(result: DemoResult) -> None:
    sample = to_json(result)["samples"][3]
    assert sample["label"] == "cat" and sample["float"]["prediction"] == "frog"
    assert sample["integer"]["W8A8"]["prediction"] == "frog"
    assert "pixels" not in json.dumps(to_json(result))
