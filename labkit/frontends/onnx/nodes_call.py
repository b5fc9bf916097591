"""One call of an ONNX operator as the evaluator hands it to the function that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError, UnsupportedOperation

__all__ = ["LARGEST_RESULT", "Array", "Call", "Operator", "Operators", "integer_ends"]

LARGEST_RESULT = 2**28  # elements: 1 GB of float32

Array = NDArray[Any]
Operator = Callable[..., "Array | tuple[Array, ...]"]
Operators = Mapping[str, Operator]


@dataclass(frozen=True, eq=False)
class Call:
    """A node of an ONNX graph without its tensors.

    kind : the operator, "QuantizeLinear".
    name : of the node, for messages.
    domain : "" for ONNX's own operators, else for example "com.microsoft".
    opset : version of the operator set of that domain which the file declares.
    attributes : by name; as `reading.OnnxNode` has them.
    outputs : how many results are wanted.
    """

    kind: str
    name: str
    domain: str = ""
    opset: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of ``attribute``, or ``default`` where the file does not give it."""
        return self.attributes.get(attribute, default)

    def unsupported(self, what: str) -> UnsupportedOperation:
        """The error to raise where ``what`` about this call cannot be computed."""
        return UnsupportedOperation(
            f"{self.name}: {self.kind} with {what} is not computed by labkit. Run this model with onnxruntime, or write this "
            f"node in another way."
        )

    def bounded(self, shape: Sequence[int]) -> None:
        """Refuse a result of ``shape`` that no network needs, before memory is taken for it.

        Raises
        ------
        ModelError
            It has more than `LARGEST_RESULT` elements.
        """
        if math.prod(max(0, int(size)) for size in shape) > LARGEST_RESULT:
            raise ModelError(
                f"{self.name}: {self.kind} would put out a tensor of shape {list(shape)}; {LARGEST_RESULT:,} elements are "
                f"allowed. Run fewer images at a time."
            )

    def wrong(self, what: str) -> ModelError:
        """The error to raise where ``what`` contradicts the specification of the operator."""
        return ModelError(
            f"{self.name}: {self.kind}: {what}. The file is damaged or was written wrongly: export it again."
        )


def integer_ends(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The lowest and highest integer of ``dtype``, one of NumPy's or ml_dtypes' integer types (int2, uint2, int4, uint4)."""
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    bits, signed = int(dtype.name[-1]), dtype.name.startswith("int")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
