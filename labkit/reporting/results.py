"""What a report shows, as frozen data: filled by the demo, drawn by the tables, plots and HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from labkit.parity.report import ParityReport

__all__ = ["AccuracyRow", "DemoResult", "Histogram", "LayerRow", "Range", "Sample"]


@dataclass(frozen=True)
class Range:
    """A closed interval of real values."""

    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """``counts`` int64 [B]; ``edges`` float64 [B + 1], in the tensor's real units."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


@dataclass(frozen=True)
class AccuracyRow:
    """One row of the main table.

    ``section`` groups rows ("float", "simulated", "bias", "integer engine"). ``accuracy`` is in per cent of ``images``.
    ``size_bytes`` counts weights and biases as stored; ``macs`` and ``bops`` (MACs x weight bits x activation bits) are
    for one image; ``ms_per_image`` is the engine's wall time in one thread, which takes the images in batches of up to
    32. ``change_error`` is one standard error of the row's change against its reference, in percentage points, paired by
    image (:mod:`labkit.reporting.paired`). None: not applicable.
    """

    section: str
    label: str
    weight_bits: int
    activation_bits: int
    accuracy: float
    images: int
    size_bytes: int | None = None
    macs: int | None = None
    bops: int | None = None
    ms_per_image: float | None = None
    note: str = ""
    change_error: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """One tensor of the network: a layer's weights or the activation that a node puts out.

    ``kind`` is "weight" or "activation"; ``actual`` the observed range, ``three_sigma`` mean -+ 3 standard deviations,
    ``chosen`` the real values at the ends of the 8-bit grid, of the widest channel where weights have a grid for each
    channel. ``sqnr_db`` maps a configuration ("W8A8") to the signal-to-
    quantization-noise ratio 10 log10(E[r^2] / E[(r - r^)^2]) in dB of that tensor in the integer net against the float net.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    histogram: Histogram
    actual: Range
    three_sigma: Range
    chosen: Range
    sqnr_db: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One test image with predictions. ``pixels`` uint8 [H, W, 3]; probabilities in 0..1 (softmax of the logits)."""

    pixels: NDArray[np.uint8]
    label: str
    float_prediction: str
    float_probability: float
    integer_predictions: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found. ``seconds`` maps a step's name to its wall time in s."""

    network: str
    dataset: str
    dataset_reason: str
    calibration_images: int
    rows: tuple[AccuracyRow, ...]
    layers: tuple[LayerRow, ...]
    samples: tuple[Sample, ...]
    certificates: Mapping[str, ParityReport]
    versions: Mapping[str, str]
    command: str
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
