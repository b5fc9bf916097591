"""`Calibration`: what the activations of a float network looked like on real images, and the ranges chosen from that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from labkit.errors import InputError, QuantizationError
from labkit.files import write_atomically
from labkit.frontends.float_run import run_float
from labkit.graph.ir import FloatGraph
from labkit.quantization.batches import image_batches
from labkit.quantization.observers import Observer, TensorStatistics
from labkit.quantization.plan import observed_names
from labkit.quantization.ranges import RANGES, choose_range

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True)
class Calibration:
    """Statistics and chosen ranges by tensor name, for a simplified `FloatGraph`.

    statistics : what was observed.
    ranges : (low, high) in real units, chosen by ``method``.
    images : how many images were seen.
    """

    statistics: Mapping[str, TensorStatistics]
    ranges: Mapping[str, tuple[float, float]]
    method: str
    images: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "statistics", MappingProxyType(dict(self.statistics)))
        object.__setattr__(self, "ranges", MappingProxyType(dict(self.ranges)))

    def __str__(self) -> str:
        width = max(len(name) for name in self.ranges)
        lines = [f"Calibration on {self.images:,} images, ranges by {self.method}"]
        for name, (low, high) in self.ranges.items():
            seen = self.statistics[name]
            lines.append(
                f"  {name:<{width}}  seen [{seen.minimum:9.4f}, {seen.maximum:9.4f}]  chosen [{low:9.4f}, {high:9.4f}]"
            )
        return "\n".join(lines)

    def with_ranges(self, method: str) -> Calibration:
        """The same observations with the ranges that ``method`` chooses.

        Raises
        ------
        QuantizationError
            The method is unknown, or a tensor was always 0.
        """
        chosen = {name: choose_range(method, seen, name) for name, seen in self.statistics.items()}
        return Calibration(self.statistics, chosen, method, self.images)

    def to_json(self) -> dict[str, Any]:
        """The calibration as plain JSON values; numbers survive to the last bit."""
        return {
            "method": self.method,
            "images": self.images,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "statistics": {name: asdict(seen) for name, seen in self.statistics.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` made ``values`` of.

        Raises
        ------
        QuantizationError
            ``values`` is not such a calibration.
        """
        try:
            return cls(
                {name: TensorStatistics(**seen) for name, seen in values["statistics"].items()},
                {name: (float(ends[0]), float(ends[1])) for name, ends in values["ranges"].items()},
                values["method"],
                values["images"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise QuantizationError(
                f"This is not a calibration ({type(error).__name__}: {error}). Calibrate again."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the calibration to ``path`` as JSON, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")


def calibrate(graph: FloatGraph, batches: Any, ranges: str = "minmax") -> Calibration:
    """Run the simplified ``graph`` on ``batches`` and observe every tensor that needs a scale.

    Parameters
    ----------
    graph : a FloatGraph with one input, after `passes.simplify`
    batches : one float array or tensor [N, ...], or any iterable of them (a pair's first item is taken as the images)
    ranges : "minmax" or "3sigma"

    Raises
    ------
    QuantizationError
        There are no images, one holds a NaN, or the method is unknown.
    InputError
        An image has the wrong shape.
    """
    if ranges not in RANGES:
        raise QuantizationError(f"ranges must be one of {', '.join(RANGES)}, got {ranges!r}.")
    if len(graph.inputs) != 1:
        raise InputError(f"Calibration feeds one input, this network has {', '.join(graph.inputs)}.")
    name = graph.inputs[0]
    shape = graph[name].op.shape  # type: ignore[union-attr]
    observers = {tensor: Observer(tensor) for tensor in observed_names(graph)}

    def observe(tensor: str, value: torch.Tensor) -> torch.Tensor:
        if tensor in observers:
            observers[tensor].update(value.numpy())
        return value

    images = 0
    for batch in image_batches(batches):
        if batch.shape[1:] != shape:
            raise InputError(f"The calibration images have shape {batch.shape[1:]}, the network takes {shape}.")
        run_float(graph, {name: batch}, observe, only_outputs=True)
        images += len(batch)
    if images == 0:
        raise QuantizationError(
            "The calibration set is empty, so no ranges can be found. Hand in a few hundred images like those of training, "
            "for example labkit.data.load('auto').calibration(512)."
        )
    statistics = {tensor: observer.result() for tensor, observer in observers.items()}
    return Calibration(statistics, dict.fromkeys(statistics, (0.0, 0.0)), ranges, images).with_ranges(ranges)
