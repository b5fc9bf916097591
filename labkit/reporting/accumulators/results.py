"""What `analyse` finds: frozen data, in plain Python numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SCHEMA", "Analysis", "Landing", "LayerSums", "PairRule", "Span", "Step"]

SCHEMA = "labkit.accumulators/1"
_INT32_BITS, _INT16_BITS = 32, 16


@dataclass(frozen=True)
class Span:
    """The ``low`` est and the ``high`` est of some integers."""

    low: int
    high: int

    @property
    def magnitude(self) -> int:
        """The larger of the two ends' magnitudes."""
        return max(abs(self.low), abs(self.high))

    @property
    def bits(self) -> int:
        """Bits of the narrowest two's complement integer that holds both ends: -128 needs 8, 128 needs 9, 0 needs 1."""
        return 1 + max((end if end >= 0 else ~end).bit_length() for end in (self.low, self.high))


@dataclass(frozen=True)
class Landing:
    """Where the outputs of one operation landed, counted over all elements of all images.

    outputs : how many there were.
    at_low, at_high : those that equal the lower and the upper end of the clamp.
    cut_low, cut_high : those among them that the clamp changed, because they lay beyond its end.
    low_is_activation : the lower end is real 0, where a ReLU puts it. A grid that begins at real 0 (affine, of a range without
        negative numbers) has its end at the same integer, and is counted as the ReLU's too.
    high_is_activation : the upper end is a ReLU6's real 6.
    """

    outputs: int
    at_low: int
    at_high: int
    cut_low: int
    cut_high: int
    low_is_activation: bool
    high_is_activation: bool

    @property
    def by_activation(self) -> float:
        """Share of outputs at an end that an activation sets, 0 to 1."""
        return (self.at_low * self.low_is_activation + self.at_high * self.high_is_activation) / self.outputs

    @property
    def saturated_low(self) -> float:
        """Share of outputs at the lower end of the grid, 0 to 1; 0 where that end is an activation's."""
        return 0.0 if self.low_is_activation else self.at_low / self.outputs

    @property
    def saturated_high(self) -> float:
        """Share of outputs at the upper end of the grid, 0 to 1; 0 where that end is an activation's."""
        return 0.0 if self.high_is_activation else self.at_high / self.outputs

    @property
    def cut(self) -> float:
        """Share of outputs that lay beyond an end of the grid and lost something there, 0 to 1."""
        return (
            self.cut_low * (not self.low_is_activation) + self.cut_high * (not self.high_is_activation)
        ) / self.outputs


@dataclass(frozen=True)
class PairRule:
    """Pairs of neighbouring weights that a kernel would multiply and add in 16 bits.

    pairs : how many there are, in all output channels.
    saturating : those with which some inputs leave int16.
    """

    pairs: int
    saturating: int

    @property
    def share(self) -> float:
        """``saturating`` over ``pairs``, 0 to 1."""
        return self.saturating / self.pairs


@dataclass(frozen=True)
class LayerSums:
    """The accumulator of one operation and what becomes of it.

    name, operation : of the node, and of its class ("Conv2d").
    products : terms of one sum, K: products of a convolution, elements of a window, 2 of an Add, 1 of a Requantize.
    worst : what any finished or partial sum, added in any order, can be for some input in the input's grid; exact.
    bound : the largest magnitude by eq. 9, which knows only the farther end of the input's grid; never below `worst`.
    observed : finished sums on the images, bias included; None without images.
    landing : of the outputs on the images; None without images.
    pairs : the u8 x s8 rule (docs/analyse.md); None where there are no weights, or weights of nine bits.
    winograd : names of the transforms that are exact ("F4", "F2"); None where the operation is no 3x3 convolution of stride 1.
    """

    name: str
    operation: str
    products: int
    worst: Span
    bound: int
    observed: Span | None = None
    landing: Landing | None = None
    pairs: PairRule | None = None
    winograd: tuple[str, ...] | None = None

    @property
    def spare_bits(self) -> int:
        """Bits that an int32 accumulator has more than the worst case needs; negative for the wide sum of an Add."""
        return _INT32_BITS - self.worst.bits

    @property
    def fits_int16(self) -> bool:
        """Whether int16 would hold every finished and partial sum of every input."""
        return self.worst.bits <= _INT16_BITS

    @property
    def used(self) -> float | None:
        """The largest observed magnitude over the largest possible, 0 to 1; None without images."""
        return None if self.observed is None else self.observed.magnitude / max(1, self.worst.magnitude)


@dataclass(frozen=True)
class Step:
    """One intermediate integer of an operation: a line of the ledger of bit widths.

    name, operation : of the node, and of its class ("LayerNorm").
    step : which number this is, in words.
    equation : its equation in docs/arithmetic.md.
    worst : what it can be for any input in the input's grid, by bounds.
    observed : what it was on the images; None without images.
    """

    name: str
    operation: str
    step: str
    equation: int
    worst: Span
    observed: Span | None = None

    @property
    def register(self) -> str:
        """The narrower of "int32" and "int64" that holds the worst."""
        return "int32" if self.worst.bits <= _INT32_BITS else "int64"


@dataclass(frozen=True)
class Analysis:
    """All operations of a network that sum or requantize, in running order.

    layers : one entry each.
    images : how many were run; 0 for none.
    source : which images these were, in words.
    ledger : the intermediates of all operations, with the bits that each needs.
    """

    layers: tuple[LayerSums, ...]
    images: int = 0
    source: str = ""
    ledger: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under a ``schema``; all counts, and the bits and shares that follow from them."""
        return {
            "schema": SCHEMA,
            "images": self.images,
            "source": self.source,
            "layers": [_layer_json(layer) for layer in self.layers],
            "ledger": [_step_json(step) for step in self.ledger],
        }


def _step_json(step: Step) -> dict[str, Any]:
    plain = asdict(step) | {"register": step.register}
    for key, span in (("worst", step.worst), ("observed", step.observed)):
        if span is not None:
            plain[key] |= {"bits": span.bits}
    return plain


def _layer_json(layer: LayerSums) -> dict[str, Any]:
    plain = asdict(layer)
    plain |= {"spare_bits": layer.spare_bits, "fits_int16": layer.fits_int16, "used": layer.used}
    for key, span in (("worst", layer.worst), ("observed", layer.observed)):
        if span is not None:
            plain[key] |= {"bits": span.bits}
    if layer.landing is not None:
        shares = ("by_activation", "saturated_low", "saturated_high", "cut")
        plain["landing"] |= {share: getattr(layer.landing, share) for share in shares}
    if layer.pairs is not None:
        plain["pairs"] |= {"share": layer.pairs.share}
    if layer.winograd is not None:
        plain["winograd"] = list(layer.winograd)
    return plain
