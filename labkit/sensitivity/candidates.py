"""The weights that each layer would have at each number of bits: what sensitivities compare the float weights with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.convert import quantize_weight
from labkit.quantization.differentiable import layer_names, layer_op
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.quantization.weight_rounding.problem import choose_grid, weight_rows
from labkit.sensitivity.axes import checked_axes

__all__ = ["BITS", "RANGES", "Candidates", "nearest_candidates", "rounded_candidates"]

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
RANGES = ("minmax", "3sigma", "mse")

Weights = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Weights by layer and bits.

    weights : float32 [O, ...], real values of the quantized weights, by layer and then by bits; all layers the same bits.
    rounding : how they were made, in words.

    Raises
    ------
    InputError
        Layers differ in their bits.
    QuantizationError
        There are no layers, or the bits are not ascending integers in 1..8.
    """

    weights: Mapping[str, Mapping[int, Weights]]
    rounding: str = "given"

    def __post_init__(self) -> None:
        frozen = {
            name: MappingProxyType({int(b): frozen_array(w, np.float32) for b, w in by_bits.items()})
            for name, by_bits in self.weights.items()
        }
        object.__setattr__(self, "weights", MappingProxyType(frozen))
        bits = {tuple(by_bits) for by_bits in frozen.values()}
        checked_axes("The candidate weights", tuple(frozen), next(iter(bits), ()))
        if len(bits) > 1:
            raise InputError(f"All layers must have weights for the same bits, got {sorted(bits)}.")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in the order given."""
        return tuple(self.weights)

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits, ascending."""
        return tuple(next(iter(self.weights.values())))

    def changes(self, graph: FloatGraph, layer: str) -> NDArray[np.float64]:
        """``Q_b(w) - w`` of ``layer`` in the float network ``graph`` for each of B bits: float64 [B, O, ...].

        Raises
        ------
        InputError
            The weights' shape is not the layer's.
        """
        weight = np.asarray(layer_op(graph, layer).weight, np.float64)
        if wrong := [w.shape for w in self.weights[layer].values() if w.shape != weight.shape]:
            raise InputError(f"{layer}: the candidate weights have shape {wrong[0]}, the layer's have {weight.shape}.")
        return np.stack([w.astype(np.float64) - weight for w in self.weights[layer].values()])


def nearest_candidates(
    graph: FloatGraph,
    bits: Sequence[int] = BITS,
    ranges: str = "minmax",
    per_channel: bool = True,
    layers: Sequence[str] | None = None,
) -> Candidates:
    """Weights rounded to nearest.

    Parameters
    ----------
    graph : after `passes.simplify`
    bits : each in 1..8
    ranges : "minmax" or "3sigma" as in a `BitPlan`, or "mse", the scale with the least squared error
    per_channel : one scale for each output channel, or one for the layer
    layers : names; None for all

    Raises
    ------
    InputError
        There are no such ranges.
    QuantizationError
        A scale cannot be chosen, or bits are out of range.
    """
    if ranges not in RANGES:
        raise InputError(f"ranges must be one of {', '.join(RANGES)}, got {ranges!r}.")
    names = layer_names(graph) if layers is None else tuple(layers)
    widths = tuple(sorted({int(b) for b in bits}))
    plans = {b: BitPlan.uniform(graph, b, 8, per_channel=per_channel) for b in widths}
    found: dict[str, dict[int, Weights]] = {name: {} for name in names}
    for name in names:
        op = layer_op(graph, name)
        for b, plan in plans.items():
            if ranges == "mse":
                grid = choose_grid(graph[name], plan, RoundingOptions(grid="mse"))
                rows = weight_rows(op)
                found[name][b] = grid.values(grid.nearest(rows)).reshape(op.weight.shape).astype(np.float32)
            else:
                weight = op.weight.astype(np.float32)
                tensor = quantize_weight(name, weight, plan.weight_spec(name), ranges, op.vanished)
                found[name][b] = tensor.dequantized()
    scales = "one scale a channel" if per_channel else "one scale a layer"
    return Candidates(found, f"nearest, {ranges}, {scales}")


def rounded_candidates(
    graph: FloatGraph,
    calibration: Calibration,
    images: Any,
    bits: Sequence[int] = BITS,
    method: str = "gptq+descent",
    options: RoundingOptions | None = None,
    per_channel: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Weights as one of `round_weights`' methods rounds them, all layers at the same bits, once for each number of bits.

    By default each layer is fitted to the float network's activations and does not make up for errors of layers before it:
    in an allocation these may have other bits.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : ranges of it
    images : float32 [N, ...] calibration images
    bits : each in 1..8
    method : of `round_weights`
    options : of the rounding; None for those said above
    per_channel : one scale for each output channel, or one for the layer
    seed : of all that is random
    progress : called with how many nodes are done and how many there are, for all bits together

    Raises
    ------
    QuantizationError
        There is no such method, or a scale cannot be chosen.
    """
    options = options or RoundingOptions(asymmetric=False, through_adds=False, correct_bias=False)
    widths = tuple(sorted({int(b) for b in bits}))
    found: dict[str, dict[int, Weights]] = {name: {} for name in layer_names(graph)}
    for index, b in enumerate(widths):
        plan = BitPlan.uniform(graph, b, 8, per_channel=per_channel)
        tell = None
        if progress is not None:
            tell = _shifted(progress, index, len(widths))
        rounded = round_weights(graph, calibration, plan, images, method, options, seed, progress=tell)
        for name, tensor in rounded.weights.items():
            found[name][b] = tensor.dequantized()
    return Candidates(found, f"{method}, seed {seed}")


def _shifted(progress: Callable[[int, int], None], index: int, runs: int) -> Callable[[int, int], None]:
    return lambda done, most: progress(index * most + done, runs * most)
