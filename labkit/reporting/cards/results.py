"""`NetworkCard`: what is known of a network and of its bit plans, as frozen data with a JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import median
from types import MappingProxyType
from typing import Any

from labkit.errors import InputError

__all__ = ["SCHEMA", "Certificate", "LayerFacts", "NetworkCard", "PlanResult"]

SCHEMA = "labkit.card/1"
_FLOAT_BITS = 32
_SPELLED = {"exact": math.inf, "lost": -math.inf}  # ratios that JSON has no number for

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerFacts:
    """One node of the simplified float network: batch norm folded, activation fused.

    name : of the node; the module's own dotted name where it has one.
    kind : of the operation ("Conv2d").
    activation : "none", "relu" or "relu6", applied to the result.
    inputs, output : shapes without the batch axis.
    kernel, stride, dilation : (height, width) of a window, else None.
    groups : of a convolution, else None.
    parameters : weights and, where there is one, the bias, after folding.
    macs : multiply-accumulates for one image.
    """

    name: str
    kind: str
    activation: str
    inputs: tuple[Shape, ...]
    output: Shape
    kernel: Shape | None = None
    stride: Shape | None = None
    dilation: Shape | None = None
    groups: int | None = None
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Certificate:
    """What `labkit.verify` found.

    images : how many were run.
    comparisons : parameters and tensors that were compared.
    elements, differing : numbers in them, and how many of these are not PyTorch's.
    first : the first that differs, in words; "" where there is none.
    """

    images: int
    comparisons: int
    elements: int
    differing: int
    first: str = ""


@dataclass(frozen=True)
class PlanResult:
    """What one bit plan costs and keeps.

    name, rule : of the plan ("W4A8"), and what it does, in words.
    weight_bits : by layer.
    weight_bytes : integer weights, four bits or fewer packed two to a byte.
    size_bytes : these and the int32 biases.
    file_bytes : the whole ``.lab`` file: also scales, multipliers, the graph and the notes.
    bops : MACs x weight bits x input bits, for one image.
    accuracy, change, change_error : per cent of the test images, points against the float network, and one standard
        error of that (`labkit.reporting.paired`); None without labels.
    sqnr_db : by tensor, in running order: 10 log10(sum of r^2 / sum of (r - r^)^2) against the float network; infinite where
        nothing differs.
    certificate : of the comparison with PyTorch.
    """

    name: str
    rule: str
    weight_bits: Mapping[str, int]
    weight_bytes: int
    size_bytes: int
    file_bytes: int
    bops: int
    accuracy: float | None
    change: float | None
    change_error: float | None
    sqnr_db: Mapping[str, float]
    certificate: Certificate

    def __post_init__(self) -> None:
        for name in ("weight_bits", "sqnr_db"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def median_sqnr_db(self) -> float:
        """The median over all tensors."""
        return float(median(self.sqnr_db.values()))

    @property
    def lowest_sqnr(self) -> tuple[str, float]:
        """The first tensor with the lowest ratio, and that ratio."""
        return min(self.sqnr_db.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class NetworkCard:
    """All that a card shows.

    name : of the card.
    weights, data : where the network's weights and the images come from, in words.
    module_parameters : as the module counts them, before folding, with parts that only serve training.
    calibration_images, sqnr_images : how many images chose the ranges, and on how many `PlanResult.sqnr_db` was taken.
    accuracy_images : test images with labels, 0 where there are none.
    accuracy : of the float network over them in per cent, else None.
    no_accuracy : why there is none, in words.
    activation_bytes : the most that is alive at once for one image, a byte a number (`costs.peak_activation_bytes`).
    layers : all nodes in running order.
    plans : one entry for each bit plan.
    versions : of the programs.
    command : that measured the network, "" where it was no command.
    """

    name: str
    weights: str
    data: str
    module_parameters: int
    calibration_images: int
    sqnr_images: int
    accuracy_images: int
    accuracy: float | None
    no_accuracy: str
    activation_bytes: int
    layers: tuple[LayerFacts, ...]
    plans: tuple[PlanResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))

    @property
    def parameters(self) -> int:
        """Weights and biases after folding: what the integer network keeps."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def float_bytes(self) -> int:
        """The parameters at four bytes each."""
        return 4 * self.parameters

    @property
    def float_bops(self) -> int:
        """Bit operations of 32-bit weights and activations, counted as for integers."""
        return self.macs * _FLOAT_BITS * _FLOAT_BITS

    def compression(self, plan: PlanResult) -> float:
        """How many times larger the float network's parameters are than the weights and biases of ``plan``."""
        return self.float_bytes / plan.size_bytes

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values under a ``schema``; an infinite ratio is the word "exact"."""
        return {"schema": SCHEMA, **_plain(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkCard:
        """The card that `to_json` made ``values`` of.

        Raises
        ------
        InputError
            ``values`` is not such a card.
        """
        try:
            if values["schema"] != SCHEMA:
                raise InputError(f"This card has the schema {values['schema']!r}, this labkit reads {SCHEMA!r}.")
            given = {key: value for key, value in values.items() if key != "schema"}
            layers = tuple(LayerFacts(**_tuples(layer)) for layer in given["layers"])
            plans = tuple(_plan(plan) for plan in given["plans"])
            return cls(**{**given, "layers": layers, "plans": plans})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"This is not a network's card ({type(error).__name__}: {error}). Measure the network again."
            ) from error


def _plan(values: Mapping[str, Any]) -> PlanResult:
    ratios = {name: _SPELLED.get(ratio, ratio) for name, ratio in values["sqnr_db"].items()}
    return PlanResult(**{**values, "sqnr_db": ratios, "certificate": Certificate(**values["certificate"])})


def _tuples(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _tuples(value) for key, value in values.items()}
    return tuple(_tuples(value) for value in values) if isinstance(values, list) else values


def _plain(value: Any) -> Any:
    if isinstance(value, LayerFacts | Certificate | PlanResult | NetworkCard):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return next(word for word, spelled in _SPELLED.items() if spelled == value)
    return value
