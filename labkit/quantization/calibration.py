"""`Calibration`: what the activations of a float network looked like on real images, and the ranges chosen from that."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from labkit.errors import QuantizationError
from labkit.files import write_atomically
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.clipping.lapq import lapq
from labkit.quantization.clipping.methods import CLIPPING, check_options
from labkit.quantization.histogram import Histogram, StreamingHistogram
from labkit.quantization.inputs import GraphOfInputs, named_batches
from labkit.quantization.observers import MOMENTUM, Observer, TensorStatistics
from labkit.quantization.plan import BitPlan, observed_names, scale_owner
from labkit.quantization.ranges import ALL_RANGES, RANGES, choose_from, choose_range

__all__ = ["Calibration", "calibrate", "choose_ranges"]

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Calibration:
    """Statistics and chosen ranges by tensor name, for a simplified `FloatGraph`.

    statistics : what was observed.
    ranges : (low, high) in real units, chosen by ``method``.
    images : how many images were seen.
    options : of the method, plain JSON values.
    averages : moving averages (low, high) of the batches' extremes. Neither saved nor compared.
    histograms : where they were asked for. Neither saved nor compared.
    """

    statistics: Mapping[str, TensorStatistics]
    ranges: Mapping[str, tuple[float, float]]
    method: str
    images: int
    options: Mapping[str, Any] = field(default_factory=dict)
    averages: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)
    histograms: Mapping[str, Histogram] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("statistics", "ranges", "options", "averages", "histograms"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __str__(self) -> str:
        width = max(len(name) for name in self.ranges)
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        lines = [f"Calibration on {self.images:,} images, ranges by {self.method}{f' ({options})' if options else ''}"]
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
        return replace(self, ranges=chosen, method=method, options={})

    def to_json(self) -> dict[str, Any]:
        """The calibration as plain JSON values; numbers survive to the last bit, averages and histograms do not."""
        return {
            "method": self.method,
            **({} if self.method in RANGES else {"options": dict(self.options)}),
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
                dict(values.get("options", {})),
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


def calibrate(
    graph: FloatGraph,
    batches: Any,
    ranges: str = "minmax",
    *,
    histograms: bool = False,
    momentum: float = MOMENTUM,
    progress: Progress | None = None,
) -> Calibration:
    """Run the simplified ``graph`` on ``batches`` once and observe every tensor that needs a scale.

    Parameters
    ----------
    graph : a FloatGraph, after `passes.simplify`
    batches : one float array or tensor [N, ...], or any iterable of them (a pair's first item is taken as the images); for
        several inputs dicts of arrays by name, whose lengths may differ from batch to batch (`inputs.named_batches`)
    ranges : "minmax" or "3sigma"; `choose_ranges` applies the methods that depend on the bits
    histograms : collect one of each tensor, which those methods look at (64 kB each, however many images there are)
    momentum : of the moving averages of the batches' extremes; a batch has at most 128 images
    progress : called after each batch with the number of images so far

    Raises
    ------
    QuantizationError
        There are no images, one holds a NaN, or the method is unknown.
    InputError
        An image has the wrong shape, or inputs have other names.
    ModelError
        Inputs of another length than the graph's, which is no network of sequences.
    """
    if ranges not in RANGES:
        raise QuantizationError(f"ranges must be one of {', '.join(RANGES)}, got {ranges!r}.")
    collectors: dict[str, Observer | StreamingHistogram] = {
        tensor: StreamingHistogram(tensor, momentum=momentum) if histograms else Observer(tensor, momentum)
        for tensor in observed_names(graph)
    }

    def observe(tensor: str, value: torch.Tensor) -> torch.Tensor:
        if tensor in collectors:
            collectors[tensor].update(value.numpy())
        return value

    images, graph_of = 0, GraphOfInputs(graph)
    for given in named_batches(graph, batches):
        run_float(graph_of(given), given, observe, only_outputs=True)
        images += len(next(iter(given.values())))
        if progress is not None:
            progress(images)
    if images == 0:
        raise QuantizationError(
            "The calibration set is empty, so no ranges can be found. Hand in a few hundred images like those of training, "
            "for example labkit.data.load('auto').calibration(512)."
        )
    counted = {tensor: c.result() for tensor, c in collectors.items() if isinstance(c, StreamingHistogram)}
    observers = {tensor: c.observer if isinstance(c, StreamingHistogram) else c for tensor, c in collectors.items()}
    statistics = {tensor: observer.result() for tensor, observer in observers.items()}
    averages = {tensor: observer.average() for tensor, observer in observers.items()}
    nothing = dict.fromkeys(statistics, (0.0, 0.0))
    found = Calibration(statistics, nothing, ranges, images, {}, averages, counted).with_ranges(ranges)
    return replace(found, ranges=_with_room_for_gelu(graph, found.ranges))


def choose_ranges(
    calibration: Calibration, graph: FloatGraph, plan: BitPlan, method: str, **options: Any
) -> Calibration:
    """The same observations with the ranges that ``method`` chooses for the grids of ``plan``.

    "kl" keeps the whole range of the network's outputs: the tools that it comes from leave outputs in float, and clipped
    logits change the probabilities. Methods that clip keep the whole range of tensors of 16 bits: with so many integers there is
    no precision to be won by clipping.

    Parameters
    ----------
    calibration : of ``graph``; made with ``histograms=True`` unless the method is "minmax", "3sigma" or "ema"
    graph : the simplified FloatGraph
    plan : bits and grids of its activations
    method : one of `ranges.ALL_RANGES`
    options : of the method: percentile=; steps= ("mse", "l2.4"); variant= ("kl"); distribution= ("aciq"); for "lapq" a
        function loss=, called with (low, high) by tensor, and the other parameters of `clipping.lapq.lapq`

    Raises
    ------
    QuantizationError
        The method or an option is unknown, the calibration is of another network or lacks what the method looks at, or
        a tensor was always 0.
    """
    if method not in ALL_RANGES:
        raise QuantizationError(f"ranges must be one of {', '.join(ALL_RANGES)}, got {method!r}.")
    names = observed_names(graph)
    if missing := [name for name in names if name not in calibration.statistics]:
        raise QuantizationError(
            f"The calibration knows no tensor {missing[0]!r}; it has {', '.join(calibration.statistics)}. "
            f"Calibrate this network."
        )
    if method == "lapq":
        return _lapq_ranges(calibration, names, plan, options)
    if method in CLIPPING:
        check_options(method, options)
    whole = {scale_owner(graph, name) for name in graph.outputs} if method == "kl" else set()
    if method in CLIPPING:
        whole |= {name for name in names if plan.activation_spec(name).is_wide}
    chosen = {
        name: choose_range("minmax", calibration.statistics[name], name)
        if name in whole
        else choose_from(
            method,
            name,
            calibration.statistics[name],
            calibration.averages.get(name),
            calibration.histograms.get(name),
            plan.activation_spec(name),
            **options,
        )
        for name in names
    }
    wide = {
        name: ends for name, ends in chosen.items() if plan.activation_spec(name).is_wide
    }  # 8 bits take a table instead
    chosen |= _with_room_for_gelu(graph, wide)
    return replace(calibration, ranges=chosen, method=method, options=options)


GELU_RANGE = 8.2  # of i-GELU's input at least. Its product needs 3.75 (eq. 48); 16 bits have room for the tails as well
SCORES_RANGE = 1.1  # of i-softmax's: with 16 bits its scale is then 3.3e-5, as its parabola needs (eq. 46)


def _with_room_for_gelu(graph: FloatGraph, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """``ranges`` by tensor, what a GELU of ``graph`` takes at least -8.2..8.2, what a masked softmax takes -1.1..1.1."""
    room: dict[str, float] = {}
    for kind, least in ((float_ops.MaskedSoftmax, SCORES_RANGE), (float_ops.Gelu, GELU_RANGE)):
        room |= {scale_owner(graph, node.inputs[0]): least for node in graph if isinstance(node.op, kind)}
    return {
        name: (min(low, -room[name]), max(high, room[name])) if name in room else (low, high)
        for name, (low, high) in ranges.items()
    }


def _lapq_ranges(
    calibration: Calibration, names: tuple[str, ...], plan: BitPlan, options: dict[str, Any]
) -> Calibration:
    kept = {key: value for key, value in options.items() if key != "loss"}
    if "loss" not in options or not set(kept) <= {"exponents", "iterations", "max_evaluations"}:
        raise QuantizationError(
            f"Ranges by 'lapq' need a function loss= and take the options exponents, iterations and max_evaluations, "
            f"got {', '.join(options) or 'none'}. quantization.quantized_loss makes such a function."
        )
    for name in names:  # for the errors that every method raises
        choose_from("percentile", name, calibration.statistics[name], None, calibration.histograms.get(name),
                    plan.activation_spec(name))  # fmt: skip
    specs = {name: plan.activation_spec(name) for name in names}
    found = lapq({name: calibration.histograms[name] for name in names}, specs, **options)
    return replace(calibration, ranges=found.ranges, method="lapq", options={**kept, "exponent": found.exponent})
