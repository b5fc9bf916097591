"""`RoundedLayer`: the integer weights of a layer as some rounding method decided them, and the bias that goes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QTensor
from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError
from labkit.graph import int_ops
from labkit.graph.ir import IntNode

__all__ = ["RoundedLayer", "rounded_digest"]


@dataclass(frozen=True, eq=False)
class RoundedLayer:
    """What `labkit.quantization.convert` takes in place of weights that it would round itself.

    weight : integers [O, ...] with one scale and zero point, or one of each for each output channel.
    bias : float32 [O], in real units; zeros where the layer has none.

    Raises
    ------
    QuantizationError
        The shapes do not fit, or a bias is not finite.
    """

    weight: QTensor
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        outputs, granularity = self.weight.values.shape[0], self.weight.spec.granularity
        if isinstance(granularity, PerAxis) and granularity.axis != 0:
            raise QuantizationError(
                f"Rounded weights must have one scale or one for each output channel (axis 0), got axis {granularity.axis}."
            )
        bias = np.asarray(self.bias, np.float32)
        if bias.shape != (outputs,):
            raise QuantizationError(f"There must be one bias for each of {outputs} outputs, got shape {bias.shape}.")
        if not np.all(np.isfinite(bias)):
            at = int(np.argmin(np.isfinite(bias)))
            raise QuantizationError(f"The bias of channel {at} is {bias[at]}. Look for it in the layer's weights.")
        object.__setattr__(self, "bias", frozen_array(bias))


def rounded_digest(nodes: Iterable[IntNode], biases: Mapping[str, Sequence[float]]) -> str:
    """sha256 of the integers, scales and zero points of the layers among ``nodes`` that ``biases`` names, and of these.

    It tells whether a net still has the weights that a rounding method gave it, which cannot be derived again.
    """
    found = hashlib.sha256()
    for node in nodes:
        if node.name in biases and isinstance(node.op, int_ops.Conv2d | int_ops.Linear):
            weight = node.op.weight
            found.update(f"{node.name} {weight.spec} {weight.values.shape}".encode())
            for array in (
                weight.values,
                weight.params.scale,
                weight.params.zero_point,
                np.asarray(biases[node.name], np.float32),
            ):
                found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
