"""The report as plain JSON, for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from labkit.reporting.results import AccuracyRow, DemoResult, LayerRow, Sample
from labkit.reporting.summary import change, verdict

__all__ = ["SCHEMA", "to_json"]

SCHEMA = "labkit.report/1"


def to_json(result: DemoResult) -> dict[str, Any]:
    """The result as nested dicts, lists, strings, numbers, booleans and None.

    Parameters
    ----------
    result
        What the demo found.

    Returns
    -------
    dict
        ``schema`` names the layout and its version; a change that breaks a reader raises the number. Units are those of
        :mod:`labkit.reporting.results`: accuracy in per cent, ``change`` and ``change_error`` (one standard error of the
        change) in percentage points, sizes in bytes, times in ms and s, SQNR in dB. A number that JSON cannot hold (NaN,
        infinity) is null. Pixels of the sample images are left out.
    """
    status, sentence = verdict(result.certificates)
    plain: dict[str, Any] = _plain(
        {
            "schema": SCHEMA,
            "network": result.network,
            "dataset": result.dataset,
            "dataset_reason": result.dataset_reason,
            "calibration_images": result.calibration_images,
            "verdict": {"status": status, "sentence": sentence},
            "rows": [_row(result, row) for row in result.rows],
            "layers": [_layer(layer) for layer in result.layers],
            "samples": [_sample(sample) for sample in result.samples],
            "certificates": {name: report.to_json() for name, report in result.certificates.items()},
            "versions": result.versions,
            "command": result.command,
            "seconds": result.seconds,
            "notes": result.notes,
        }
    )
    return plain


def _row(result: DemoResult, row: AccuracyRow) -> dict[str, Any]:
    return {**asdict(row), "change": change(result.rows, row)}


def _layer(layer: LayerRow) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": layer.shape,
        "histogram": {"counts": layer.histogram.counts, "edges": layer.histogram.edges},
        "actual": asdict(layer.actual),
        "three_sigma": asdict(layer.three_sigma),
        "chosen": asdict(layer.chosen),
        "sqnr_db": layer.sqnr_db,
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "label": sample.label,
        "float": {"prediction": sample.float_prediction, "probability": sample.float_probability},
        "integer": {
            name: {"prediction": prediction, "probability": probability}
            for name, (prediction, probability) in sample.integer_predictions.items()
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"report: cannot write a {type(value).__name__} as JSON; add its conversion to {__name__}")
