"""`quantize`: a trained module and some images in, an `IntegerNet` out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan

if TYPE_CHECKING:
    from torch import nn

__all__ = ["METHODS", "ROUNDINGS", "quantize"]

ROUNDINGS = ("nearest",)
METHODS: dict[str, dict[str, Any]] = {"minmax": {"ranges": "minmax"}, "3sigma": {"ranges": "3sigma"}}


def quantize(
    module: nn.Module,
    batches: Any,
    weights: int = 8,
    activations: int = 8,
    ranges: str = "minmax",
    rounding: str = "nearest",
    method: str | None = None,
    plan: BitPlan | None = None,
    per_channel: bool = True,
    activation_scheme: str = "affine",
) -> IntegerNet:
    """Quantize a trained network after training: fold, calibrate, convert.

    Parameters
    ----------
    module : torch.nn.Module
        Any network of the supported operations (docs/support.md); it is not changed.
    batches : array or tensor [N, ...], or any iterable of them
        A few hundred images like those of training, in the module's own float32 input layout. No labels are needed.
    weights, activations : int
        Bits: 1..8 and 2..8. The network's input and output keep 8 bits; a ``plan`` can say otherwise.
    ranges : "minmax" or "3sigma"
        How activation ranges are chosen.
    rounding : "nearest"
        How weights are rounded.
    method : str, optional
        A preset that fills the rest: "minmax" or "3sigma".
    plan : BitPlan, optional
        Bits layer by layer; replaces ``weights``, ``activations``, ``per_channel`` and ``activation_scheme``.
    per_channel : bool
        One weight scale for each output channel (True) or each layer.
    activation_scheme : "affine" or "symmetric"
        Unsigned with a zero point, or signed without.

    Returns
    -------
    IntegerNet
        Takes the module's float32 input and returns its float32 output; all between is integer.

    Raises
    ------
    QuantizationError
        Bits, ranges or calibration data make no sense.
    ModelError
        The module holds something that cannot be quantized.
    InputError
        The images do not fit the module.
    """
    if method is not None:
        if method not in METHODS:
            raise QuantizationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        preset = METHODS[method]["ranges"]
        if ranges not in ("minmax", preset):
            raise QuantizationError(
                f"method={method!r} means ranges={preset!r}, but ranges={ranges!r} is given: drop one."
            )
        ranges = preset
    if rounding not in ROUNDINGS:
        raise QuantizationError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}.")
    if plan is not None and not isinstance(plan, BitPlan):
        raise QuantizationError(f"plan must be a BitPlan (BitPlan.load reads one), got {type(plan).__name__}.")
    given = (weights, activations, per_channel, activation_scheme)
    if plan is not None and given != (8, 8, True, "affine"):
        raise QuantizationError(
            "A plan says all about bits and grids: give either plan, or weights, activations, per_channel and "
            "activation_scheme."
        )
    images, shape = _peek(batches)
    graph = simplify(from_torch(module, shape))
    if plan is None:
        plan = BitPlan.uniform(
            graph, weights, activations, per_channel=per_channel, activation_scheme=activation_scheme
        )
    calibration = calibrate(graph, images, ranges)
    notes = {"rounding": rounding, "source": type(module).__name__, "parameters_sha256": parameters_digest(module)}
    return IntegerNet(convert(graph, calibration, plan, notes))


def _peek(batches: Any) -> tuple[Iterable[Any], tuple[int, ...]]:
    """All of the images again, and the shape of one of them."""
    stream = image_batches(batches)
    first = next(stream, None)
    if first is None:
        raise QuantizationError(
            "The calibration set is empty, so no ranges can be found. Hand in a few hundred images like those of training, "
            "for example labkit.data.load('auto').calibration(512)."
        )
    return chain([first], stream), first.shape[1:]
