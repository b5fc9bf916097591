"""`SensitivityTable`: a table that checks itself, prints aligned columns and survives JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import OutputError, QuantizationError
from labkit.sensitivity.table import SensitivityTable

VALUES = np.array([[0.5, 0.25, 1e-7], [-0.125, 2.0, 3.0]])
ERRORS = np.array([[0.01, 0.0, 0.0], [0.0, 0.0, 0.5]])


def table(**changes: Any) -> SensitivityTable:
    fields: dict[str, Any] = {
        "layers": ("conv1", "fc"),
        "bits": (2, 4, 8),
        "values": VALUES,
        "errors": ERRORS,
        "method": "fisher",
        "unit": "nats an image",
        "notes": {"images": 512, "seed": 3},
    }
    return SensitivityTable(**(fields | changes))


@pytest.mark.parametrize(("row", "layer"), list(enumerate(["conv1", "fc"])))
@pytest.mark.parametrize(("column", "bits"), list(enumerate([2, 4, 8])))
def test_a_value_is_found_by_layer_and_bits(row: int, layer: str, column: int, bits: int) -> None:
    assert table().value(layer, bits) == VALUES[row, column]


def test_an_unknown_layer_or_width_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"has no layer 'fc9'; it has conv1, fc"):
        table().value("fc9", 2)
    with pytest.raises(QuantizationError, match=r"has no column for 3 bits; it has 2, 4, 8"):
        table().value("fc", 3)


def test_the_prediction_of_a_plan_is_a_sum() -> None:
    assert table().predicted({"conv1": 4, "fc": 2}) == 0.25 - 0.125
    with pytest.raises(QuantizationError, match=r"no weight bits for 'fc'"):
        table().predicted({"conv1": 4})


def test_it_prints_aligned_columns() -> None:
    head, bits, first, second = str(table()).splitlines()
    assert head == "Loss increase by fisher, in nats an image (images=512, seed=3)"
    assert bits.split() == ["2", "bits", "4", "bits", "8", "bits"]
    assert len(bits) == len(first) == len(second)
    assert first.split() == ["conv1", "0.5", "±", "0.01", "0.25", "1e-07"]
    assert second.split() == ["fc", "-0.125", "2", "3", "±", "0.5"]
    assert "1 bit " in str(table(bits=(1, 2, 3)))


def test_it_is_frozen_and_owns_its_numbers() -> None:
    values = VALUES.copy()
    made = table(values=values)
    values[0, 0] = 7
    assert made.value("conv1", 2) == 0.5
    with pytest.raises(ValueError, match="read-only"):
        made.values[0, 0] = 7
    with pytest.raises(TypeError):
        made.notes["seed"] = 4  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": ()}, r"layers must be one or more names"),
        ({"layers": "ab"}, r"layers must be one or more names, got 'ab'"),
        ({"layers": ("conv1", "")}, r"layers must be one or more names"),
        ({"layers": ("fc", "fc")}, r"the layer 'fc' occurs twice"),
        ({"layers": ("a", "b", "c")}, r"must have shape \(3, 3\), .*got \(2, 3\)"),
        ({"bits": (2, 8, 4)}, r"ascending integers in 1\.\.8, such as \(2, 4, 8\), got \(2, 8, 4\)"),
        ({"bits": (2, 2, 4)}, r"ascending"),
        ({"bits": (0, 2, 4)}, r"1\.\.8"),
        ({"bits": (2, 4, 9)}, r"1\.\.8"),
        ({"bits": (2.0, 4, 8)}, r"1\.\.8"),
        ({"bits": ()}, r"1\.\.8"),
        ({"bits": (2, 4)}, r"must have shape \(2, 2\)"),
        ({"values": VALUES[0]}, r"The values .*must have shape \(2, 3\), one row a layer .*got \(3,\)"),
        ({"values": "many"}, r"The values of the sensitivity table must be numbers"),
        ({"values": VALUES * [[1, 1, np.nan], [1, 1, 1]]}, r"must be finite, got nan for conv1 at 8 bits"),
        ({"values": VALUES * [[1, 1, 1], [1, np.inf, 1]]}, r"must be finite, got inf for fc at 4 bits"),
        ({"errors": -ERRORS}, r"The errors .*finite and not negative, got -0\.01 for conv1 at 2 bits"),
        ({"errors": ERRORS[:1]}, r"The errors .*must have shape \(2, 3\)"),
        ({"method": ""}, r"needs a method in words, got ''"),
        ({"unit": 3}, r"needs a unit in words, got 3"),
    ],
)
def test_what_is_no_table_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        table(**changes)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
    st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
)
def test_json_keeps_every_bit(values: list[float], errors: list[float]) -> None:
    made = table(values=np.reshape(values, (2, 3)), errors=np.reshape(errors, (2, 3)))
    again = SensitivityTable.from_json(json.loads(json.dumps(made.to_json())))
    assert again.values.tobytes() == made.values.tobytes() and again.errors.tobytes() == made.errors.tobytes()
    assert again.to_json() == made.to_json()


def test_it_is_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    table().save(path)
    assert SensitivityTable.load(path).to_json() == table().to_json()
    with pytest.raises(OutputError):
        table().save(tmp_path / "missing" / "sensitivity.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Cannot read the sensitivity table"),
        ("[1]", "does not hold a sensitivity table but a list"),
        ("{}", r"it has no layers\. A table has layers, bits, values, errors, method, unit, notes"),
        (json.dumps(table().to_json() | {"more": 1}), "A sensitivity table has no key 'more'"),
        (json.dumps(table().to_json() | {"layers": 5}), "layers must be one or more names, got 5"),
        (json.dumps(table().to_json() | {"notes": 5}), "This is not a sensitivity table"),
        (json.dumps(table().to_json()).replace("0.25", "NaN"), "must be finite, got nan for conv1 at 4 bits"),
    ],
)
def test_files_that_hold_no_table_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(text)
    with pytest.raises(QuantizationError, match=words):
        SensitivityTable.load(path)
    with pytest.raises(QuantizationError, match=r"Cannot read the sensitivity table.*none\.json"):
        SensitivityTable.load(tmp_path / "none.json")
