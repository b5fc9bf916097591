"""`RoundedLayer`: the integer weights of a layer as some rounding method decided them, and the bias that goes with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QTensor
from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError

__all__ = ["RoundedLayer"]


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
