"""What a rounding method may be told, and what comes out: frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.errors import QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.rounded import RoundedLayer
from labkit.quantization.weight_rounding.grids import LEVELS

__all__ = ["COOLINGS", "GRIDS", "RANGE_CHOICES", "LayerHistory", "RoundedWeights", "RoundingOptions"]

COOLINGS = ("geometric", "linear")
GRIDS = ("minmax", "3sigma", "mse", "output-mse")
RANGE_CHOICES = ("calibration", "omse")


@dataclass(frozen=True)
class RoundingOptions:
    """Everything a rounding run can be told.

    The problem of each layer:

    images : calibration images to use, at most.
    samples : windows of each layer that its quadratic form is gathered from, about.
    asymmetric : inputs from the quantized network, so that a layer makes up for errors before it; else from the float
        one.
    through_adds : a layer whose result is added to a branch already fixed makes up for that branch's error too.
    correct_bias : the bias that goes with the rounded weights (closed form); else the bias stays. None: corrected, but for
        methods that look at outputs after an activation function, which have fitted the weights to the bias as it was.
    ridge : what holds weights near their original values, as a share of the mean of the diagonal of G.
    scarce_ridge : the same for layers with fewer than ``scarce_below`` samples for each weight of a row.
    scarce_below : see above.

    Grids:

    grid : "minmax", "3sigma" (both from the weights' range), "mse" or "output-mse".
    levels : "narrow", "full" or "mirrored", of weights with at most ``wide_up_to`` bits; narrow above that.
    wide_up_to : bits.
    refits : how often the scale is chosen again for the levels found, and descent run again.
    activation_ranges : "calibration", or "omse" for tensors of at most ``omse_up_to`` bits.
    omse_up_to : bits.

    The search:

    restricted : coordinate descent goes to the levels next below and above a weight only.
    iterations, learning_rate : of methods that follow a gradient; None for the method's own.
    regularization, warm_up : of AdaRound, lambda and the share of iterations without it.
    last_temperature, cooling : of "hopfield": what its temperature falls to from 1, and how ("geometric" or "linear").
    batch_size : images a step of the methods that look at images.
    with_activation : AdaRound by images compares outputs after the activation function.
    drop_share : of activations that QDrop leaves unrounded.
    fisher : BRECQ weighs output errors by the squared gradient of the loss.
    history : iterations after which AdaRound's decisions are kept, for plots.

    Raises
    ------
    QuantizationError
        An unknown name, or a number outside its range.
    """

    images: int = 1024
    samples: int = 32768
    asymmetric: bool = True
    through_adds: bool = True
    correct_bias: bool | None = None
    ridge: float = 0.01
    scarce_ridge: float = 0.5
    scarce_below: float = 1.0
    grid: str = "mse"
    levels: str = "narrow"
    wide_up_to: int = 8
    refits: int = 0
    activation_ranges: str = "calibration"
    omse_up_to: int = 4
    restricted: bool = False
    iterations: int | None = None
    learning_rate: float | None = None
    regularization: float = 0.01
    warm_up: float = 0.2
    last_temperature: float = 0.05
    cooling: str = "geometric"
    batch_size: int = 32
    with_activation: bool = False
    drop_share: float = 0.5
    fisher: bool = False
    history: tuple[int, ...] = ()

    def corrects_bias(self, after_activation: bool) -> bool:
        """Whether biases are corrected by a method that compares outputs ``after_activation`` or before it."""
        return not after_activation if self.correct_bias is None else self.correct_bias

    def __post_init__(self) -> None:
        for what, got, allowed in (
            ("grid", self.grid, GRIDS),
            ("levels", self.levels, LEVELS),
            ("activation_ranges", self.activation_ranges, RANGE_CHOICES),
            ("cooling", self.cooling, COOLINGS),
        ):
            if got not in allowed:
                raise QuantizationError(f"{what} must be one of {', '.join(allowed)}, got {got!r}.")
        for what, lowest in (
            ("images", 1),
            ("samples", 1),
            ("refits", 0),
            ("batch_size", 1),
            ("ridge", 0),
            ("scarce_ridge", 0),
        ):
            if getattr(self, what) < lowest:
                raise QuantizationError(f"{what} must be at least {lowest}, got {getattr(self, what)}.")
        if not 0 < self.last_temperature <= 1:
            raise QuantizationError(f"last_temperature must be above 0 and at most 1, got {self.last_temperature}.")
        for what in ("warm_up", "drop_share"):
            if not 0 <= getattr(self, what) <= 1:
                raise QuantizationError(f"{what} must be in 0..1, got {getattr(self, what)}.")


@dataclass(frozen=True, eq=False)
class LayerHistory:
    """How a search went: ``losses`` float64 [T] and, by iteration, the soft decisions h float32 [O, K].

    variables : V float32 [O, K] at the end, of which the integers were decided; None for a method that has no such.
    """

    losses: NDArray[np.float64]
    decisions: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    variables: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """Integer weights of a whole network, and what goes with them.

    method, seed : what was asked for.
    weights : by layer name.
    graph : the float network with its original weights and the biases that go with the integers.
    calibration : the ranges of activations that the integers were chosen under.
    error_before, error_after : by layer, squared error of its output as a share of the output's variance: rounded to nearest
        on the grid of the weights' range, and as chosen; both from the same quantized prefix.
    seconds : of the whole run.
    search_seconds : of choosing grids and integers alone, all else having been measured.
    history : by layer, where it was asked for.
    """

    method: str
    seed: int
    weights: Mapping[str, QTensor]
    graph: FloatGraph
    calibration: Calibration
    error_before: Mapping[str, float]
    error_after: Mapping[str, float]
    seconds: float
    search_seconds: float = 0.0
    history: Mapping[str, LayerHistory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weights", "error_before", "error_after", "history"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def layers(self) -> dict[str, RoundedLayer]:
        """Integers and biases by layer, as `labkit.quantization.convert` takes them."""
        found = {}
        for name, weight in self.weights.items():
            bias = self.graph[name].op.bias  # type: ignore[union-attr]
            found[name] = RoundedLayer(weight, np.zeros(len(weight.values), np.float32) if bias is None else bias)
        return found

    def simulated(self) -> FloatGraph:
        """The float network with the weights that the integers stand for, and the biases that go with them."""
        nodes = []
        for node in self.graph:
            if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
                node = replace(node, op=replace(node.op, weight=self.weights[node.name].dequantized()))
            nodes.append(node)
        return FloatGraph(tuple(nodes), self.graph.outputs)

    def __str__(self) -> str:
        width = max(len(name) for name in self.weights)
        lines = [
            f"Weights rounded by {self.method}, seed {self.seed}, {self.seconds:.1f} s; error as a share of the output"
        ]
        for name, weight in self.weights.items():
            before, after = self.error_before[name], self.error_after[name]
            lines.append(f"  {name:<{width}}  {weight.spec}  nearest {before:.6f}  chosen {after:.6f}")
        return "\n".join(lines)
