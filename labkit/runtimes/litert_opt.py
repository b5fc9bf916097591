"""The rules of LiteRT's optimised built-in kernels, without XNNPACK (docs/arithmetic.md, section 10).

They hold for x86-64. Depthwise convolution, QUANTIZE, DEQUANTIZE and a MEAN that keeps its axes are computed some elements
at a time and round those that are left over in another way, so that no one rule holds for a tensor: they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntNode, Tensor
from labkit.runtimes.bounds import real_bounds
from labkit.runtimes.labkit_rules import NO_BOUNDS, scale_of
from labkit.runtimes.litert import (
    BUILT_IN,
    batch_matmul,
    concat,
    fixed_point,
    float32_scale,
    layer_multiplier,
    multiply,
    prepared,
    softmax_by_reciprocal,
    sum_or_difference,
)
from labkit.runtimes.litert import (
    rescale as litert_rescale,
)
from labkit.runtimes.rules import RuleSet

__all__ = ["RULE_SETS", "convolution", "fully_connected", "rescale"]


def convolution(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """CONV_2D: one group with two roundings, ties up, several by the reference kernel, for ``node`` on ``inputs``.

    Raises
    ------
    UnsupportedOperation
        It is a depthwise convolution, or has one input channel and could be one (int4 is taken for CONV_2D).
    """
    op = node.op
    assert isinstance(op, int_ops.Conv2d)
    if op.groups == inputs[0].shape[0] and (op.groups > 1 or op.weight.spec.bits > 4):
        what = "a convolution of one channel can be depthwise, and LiteRT's" if op.groups == 1 else "LiteRT's"
        raise UnsupportedOperation(
            f"{node.name}: {what} optimised depthwise convolution rounds some numbers in another way than others, by their "
            f"place. Choose litert or xnnpack."
        )
    rule = RoundingRule.GEMMLOWP_UP if op.groups == 1 else RoundingRule.GEMMLOWP
    multiplier = layer_multiplier(op, inputs[0], node.output)
    return replace(op, requantizer=fixed_point(multiplier, node.output, op.requantizer.clamp, rule))


def fully_connected(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """FULLY_CONNECTED: two roundings, ties up; for one scale the product of scales is in float32, for ``node`` on ``inputs``."""
    op = node.op
    assert isinstance(op, int_ops.Linear)
    multiplier = layer_multiplier(op, inputs[0], node.output)
    if multiplier.ndim == 0:
        product = float32_scale(inputs[0]) * op.weight.params.scale
        multiplier = np.asarray(np.float64(product) / scale_of(node.output))
    made = fixed_point(multiplier, node.output, op.requantizer.clamp, RoundingRule.GEMMLOWP_UP)
    return replace(op, requantizer=made)


def rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    """RELU and its kin, and a QUANTIZE that keeps the scale, as the reference kernels compute them, for ``node`` on ``inputs``.

    Raises
    ------
    UnsupportedOperation
        It is a QUANTIZE to another scale.
    """
    assert isinstance(node.op, int_ops.Requantize)
    if real_bounds(node.op.requantizer.clamp, node.output) == NO_BOUNDS and scale_of(inputs[0]) != scale_of(
        node.output
    ):
        raise UnsupportedOperation(
            f"{node.name}: it cannot be run like litert-opt: {_QUANTIZE} Choose litert or xnnpack."
        )
    return litert_rescale(node, inputs)


def _concat(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    if any(scale_of(tensor) != scale_of(node.output) for tensor in inputs):
        raise UnsupportedOperation(
            f"{node.name}: tensors of unequal scales cannot be joined like litert-opt: {_QUANTIZE} Choose litert or xnnpack."
        )
    return concat(node, inputs)


def _refused(node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
    kind = type(node.op)
    raise UnsupportedOperation(
        f"{node.name}: {kind.__name__} cannot be run like litert-opt: {_REFUSALS[kind]} Choose litert or xnnpack."
    )


_QUANTIZE = "its optimised QUANTIZE rounds the last elements of a tensor in another way than the others."
_REFUSALS: Mapping[type[Any], str] = MappingProxyType(
    {
        int_ops.Quantize: _QUANTIZE,
        int_ops.Dequantize: "its optimised DEQUANTIZE rounds the last elements of a tensor in another way than the others.",
        int_ops.AdaptiveAveragePool2d: "it has two kernels for MEAN, one for a result that keeps its axes and one for others.",
    }
)

RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "litert-opt": RuleSet(
            "litert-opt",
            {
                **BUILT_IN,
                int_ops.Dequantize: _refused,
                int_ops.Conv2d: convolution,
                int_ops.Linear: fully_connected,
                int_ops.Add: sum_or_difference,
                int_ops.AddFixedPoint: sum_or_difference,
                int_ops.AddFloat32: sum_or_difference,
                int_ops.Multiply: multiply,
                int_ops.MatMul: batch_matmul,
                int_ops.Concat: _concat,
                int_ops.Requantize: rescale,
                int_ops.Softmax: softmax_by_reciprocal,
            },
            _REFUSALS,
            prepared=prepared,
        )
    }
)
