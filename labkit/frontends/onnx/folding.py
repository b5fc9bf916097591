"""Nodes whose result does not depend on the input: weights that a file quantizes, dequantizes, transposes."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.errors import ModelError
from labkit.frontends.onnx.building import Building
from labkit.frontends.onnx.reading import OnnxNode
from labkit.frontends.onnx.tensors import widened
from labkit.frontends.onnx.values import Weights
from labkit.frontends.onnx.weights import make_weights, quantized_constant

__all__ = ["folded"]

_CASTS = {2: np.dtype(np.uint8), 3: np.dtype(np.int8)}  # by ONNX's number of the type


def folded(state: Building, node: OnnxNode) -> bool:
    """Whether ``node`` has a constant result, which is then kept in ``state``.

    Raises
    ------
    UnsupportedOperation
        It quantizes or dequantizes a constant in a way that labkit's weights cannot be.
    ModelError
        Its inputs do not fit together.
    """
    name = state.name(node, 0)
    constant, known = state.constants.get(name), state.values.get(name)
    if constant is None and not isinstance(known, Weights):
        return False
    result = node.outputs[0]
    if constant is not None and node.kind in ("Cast", "DequantizeLinear", "QuantizeLinear"):  # others copy nothing
        state.work.spend(constant.size)
    if node.kind == "Identity":
        if constant is not None:
            state.constants[result] = constant
        else:
            state.values[result] = state.values[name]
    elif node.kind == "Transpose":
        held: Any = (
            constant if isinstance(constant, np.ndarray) else known.values if isinstance(known, Weights) else None
        )
        axes = node.attributes.get("perm") or tuple(reversed(range(held.ndim)))
        if sorted(axes) != list(range(held.ndim)):
            raise ModelError(f"{node}: {axes} is no order of {held.ndim} axes.")
        if isinstance(known, Weights):
            state.values[result] = known.moved(held.transpose(axes), axes.index(known.axis) if known.scale.ndim else 0)
        else:
            state.constants[result] = held.transpose(axes)
    elif (
        node.kind == "Cast"
        and constant is not None
        and widened(constant).dtype == _CASTS.get(node.attributes.get("to", 0))
    ):
        state.constants[result] = widened(
            constant
        )  # integers of four bits, as a file holds those of eight that need no more
    elif node.kind == "QuantizeLinear" and constant is not None:
        scale, zero_point = state.grid_arrays(node, 1, np.dtype(np.uint8))
        state.constants[result] = quantized_constant(
            node, constant, scale, zero_point, int(node.attributes.get("axis", 1))
        )
    elif node.kind == "DequantizeLinear" and constant is not None:
        scale, zero_point = state.grid_arrays(node, 1, constant.dtype)
        state.values[result] = make_weights(node, constant, scale, zero_point, int(node.attributes.get("axis", 1)))
    else:
        return False
    return True
