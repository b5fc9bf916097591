"""What a tensor of an ONNX file is to the import: integers of a node, real numbers that stand for them, or a step between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.tensors import widened
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import Tensor
from labkit.runtimes.bounds import RealBounds

__all__ = [
    "Dequantized",
    "Index",
    "Integers",
    "Pending",
    "Real",
    "Value",
    "Weights",
    "activation_grid",
    "refuse",
    "within",
]

_BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


@dataclass(frozen=True)
class Integers:
    """The result of the integer node called ``node``."""

    node: str
    tensor: Tensor


@dataclass(frozen=True)
class Dequantized:
    """Real numbers that stand for integers: the result of a DequantizeLinear node, or of moving such numbers about."""

    of: Integers


@dataclass(frozen=True)
class Real:
    """A float32 input of the network that nothing has quantized yet; ``shape`` without the batch axis."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """Positions that an ArgMax found: they can only leave the network."""

    node: str


@dataclass(frozen=True)
class Weights:
    """Constant integers with their scales: what a DequantizeLinear node makes of a constant.

    values : int8 or uint8 for weights of up to ``bits`` bits, int32 (``bits`` 32) for biases.
    scale, zero_point : float32 and int32, shape () or (C,) along ``axis``.
    """

    values: NDArray[Any]
    bits: int
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int

    def moved(self, values: NDArray[Any], axis: int) -> Weights:
        """The same weights in another order of axes: ``values``, of their dtype and any shape, with scales along ``axis``."""
        return replace(self, values=values, axis=axis)

    def quantized(self, node: OnnxNode) -> QTensor:
        """As labkit holds weights, whose scales run along their first axis.

        Raises
        ------
        UnsupportedOperation
            They are no integers of up to eight bits, or their scales run along another axis.
        """
        if self.bits > 8:
            raise refuse(node, f"its weights are {self.values.dtype}; integers of up to 8 bits are needed.")
        if self.scale.ndim and self.axis != 0:
            raise refuse(node, f"its weights have scales along axis {self.axis}, not one for each output.")
        spec = QuantSpec(
            self.bits,
            signed=self.values.dtype == np.int8,
            symmetric=not np.any(self.zero_point),
            granularity=PerAxis(0) if self.scale.ndim else PerTensor(),
        )
        return QTensor(np.ascontiguousarray(self.values), QParams(self.scale, self.zero_point), spec)


@dataclass(frozen=True)
class Pending:
    """A float operation on numbers that stand for integers; the QuantizeLinear after it makes it an integer operation.

    node : the operation in the file, for errors.
    inputs : the integers that go in.
    make : from the tensor that it puts out and the bounds of an activation to the operation.
    bounds : of the activations that followed it.
    names : of the tensors in the file that are fused.
    drops_axes : the result loses its axes of length 1 after the channels.
    in_float : onnxruntime computes it in float32 whatever follows.
    is_table : it has one input, so that float32 and a table of 256 integers give the same.
    """

    node: OnnxNode
    inputs: tuple[Integers, ...]
    make: Callable[[Tensor, RealBounds], IntOp]
    bounds: RealBounds = (None, None)
    names: tuple[str, ...] = ()
    drops_axes: bool = False
    in_float: bool = False
    is_table: bool = False


Value = Integers | Dequantized | Real | Index | Weights | Pending


def refuse(node: OnnxNode, why: str) -> UnsupportedOperation:
    """The error for a ``node`` that has no integer form here; ``why`` is a clause that ends with a full stop."""
    return UnsupportedOperation(
        f"{node}: {why} So the file is no network that labkit runs in integers; `labkit run` evaluates it node by node."
    )


def activation_grid(node: OnnxNode, scale: Any, zero_point: Any) -> tuple[QuantSpec, QParams]:
    """Grid and parameters of an activation from the arrays ``scale`` and ``zero_point`` of ``node``.

    Raises
    ------
    UnsupportedOperation
        There is more than one scale, or they are no integers of up to eight bits.
    ModelError
        Scale and zero point do not fit together.
    """
    if scale.size != 1 or zero_point.size != 1:
        raise refuse(node, f"an activation has {scale.size} scales, and labkit's have one.")
    if scale.dtype != np.float32:
        raise refuse(node, f"its scale is {scale.dtype}, not float32.")
    bits = _BITS.get(zero_point.dtype.name)
    if bits is None:
        raise refuse(node, f"its integers are {zero_point.dtype}; labkit's activations have up to 8 bits.")
    plain = widened(zero_point)
    spec = QuantSpec(bits, signed=plain.dtype == np.int8, symmetric=False)
    params = QParams(scale.reshape(()), plain.reshape(()).astype(np.int32))
    if not spec.qmin <= int(params.zero_point) <= spec.qmax:
        raise ModelError(f"{node}: the zero point {int(params.zero_point)} is outside {spec.qmin}..{spec.qmax}.")
    return spec, params


def within(bounds: RealBounds, low: float | None, high: float | None) -> RealBounds:
    """What is left of ``bounds`` after a clamp to ``low`` .. ``high``; None is no bound."""
    infinity = float("inf")
    first = -infinity if low is None else low
    last = infinity if high is None else high
    ends = (-infinity if bounds[0] is None else bounds[0], infinity if bounds[1] is None else bounds[1])
    below, above = (min(max(end, first), last) for end in ends)
    return None if below == -infinity else below, None if above == infinity else above
