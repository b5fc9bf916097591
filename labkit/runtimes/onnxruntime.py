"""The rules of ONNX Runtime 1.31 on x86-64: sums in integers, one float32 product each, ties to even.

Every rule was compared with onnxruntime element for element (tests/parity/onnxruntime). What they hold for:

- files in the format QOperator (QLinearConv and its like), with uint8 or int8 activations;
- files in the format QDQ, where onnxruntime fuses an operation with the DequantizeLinear and QuantizeLinear nodes around
  it. It does so for Conv, Gemm, MatMul, Add, Mul, AveragePool, GlobalAveragePool, Concat, Softmax and what only moves
  numbers, if nothing but a Relu or Clip that the grid does anyway stands before the QuantizeLinear. int8 activations are
  kept as they are with the session option ``session.qdqisint8allowed`` = 1; else it may raise them by 128 to uint8, and
  sums and pools of float32 numbers with other zero points round differently in rare cases;
- processors with AVX2, whose kernel of QLinearAdd has fused multiply-adds;
- processors with VNNI, or weights of magnitude 64 or less: without VNNI, onnxruntime's products of uint8 activations and
  int8 weights saturate at 16 bits, which no rule here imitates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import dequantize, quantize
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import ModelError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.reference_torch import fused_multiply_add
from labkit.runtimes.bounds import clamp_even
from labkit.runtimes.labkit_rules import clamp_of, factor_of
from labkit.runtimes.lookups import RELU_BOUNDS
from labkit.runtimes.rules import RuleSet

__all__ = ["RULE_SETS", "softmax_float32"]

_RESERVED = 5  # in the exponent of the largest exponential, so that their sum stays finite


def softmax_float32(axis: int, source: Tensor, output: Tensor) -> int_ops.SoftmaxFloat32:
    """QLinearSoftmax of ``source`` along ``axis`` (eq. 40), for an ``output`` of any scale up to 1.

    Raises
    ------
    ModelError
        The output's scale is above 1 or far below any use.
    """
    spec, params = output.quantized
    scale = np.float64(source.quantized[1].scale)
    numbers = np.float32(source.shape[axis])
    with np.errstate(over="ignore"):
        factor = np.floor(np.float32(1) / params.scale)
    if not 1 <= factor <= 2**16:
        raise ModelError(f"A softmax needs an output scale of 1/65536 to 1, got {float(params.scale):g}.")
    highest = np.log(np.float64(np.finfo(np.float32).max / numbers)) - _RESERVED
    table = np.exp((highest / scale - np.arange(256)) * scale).astype(np.float32)
    return int_ops.SoftmaxFloat32(axis, table, factor, int(params.zero_point), (spec.qmin, spec.qmax))


def _float32(tensor: Tensor) -> np.float32:
    return np.float32(tensor.quantized[1].scale)


def _even(multiplier: Any, clamp: tuple[int, int], output: Tensor, inside: bool = False) -> Requantizer:
    """One product in float32, ties to even (eq. 17); the zero point is added before the rounding if ``inside``."""
    factor: NDArray[np.float32] = np.asarray(multiplier, np.float32)
    zero_point = int(output.quantized[1].zero_point)
    return Requantizer(RoundingRule.FLOAT32_EVEN, factor, zero_point, clamp_of(clamp, output), inside)


def _layer(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearConv, QLinearMatMul, QGemm: S_x S_w and then the quotient by S_y, each rounded to float32."""
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    multiplier = (_float32(inputs[0]) * op.weight.params.scale) / _float32(node.output)
    return replace(op, requantizer=_even(multiplier, op.requantizer.clamp, node.output))


def _pool(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearAveragePool (eq. 34); a window that is the whole image is QLinearGlobalAveragePool (eq. 17)."""
    op = node.op
    assert isinstance(op, int_ops.AveragePool2d | int_ops.AveragePoolFloat32 | int_ops.AveragePoolOfValid)
    clamp = op.requantizer.clamp if isinstance(op, int_ops.AveragePool2d) else op.clamp
    if op.kernel == _image(inputs[0]) and not np.any(op.padding):
        return _global_pool(op.kernel, clamp, node, inputs)
    if isinstance(op, int_ops.AveragePoolFloat32):
        counts = op.counts_padding
    else:
        counts = isinstance(op, int_ops.AveragePool2d)
    return int_ops.AveragePoolFloat32(op.kernel, op.stride, op.padding, counts, clamp_of(clamp, node.output))


def _global_pool(
    kernel: tuple[int, int], clamp: tuple[int, int], node: IntNode, inputs: tuple[Tensor, ...]
) -> int_ops.AveragePool2d:
    multiplier = _float32(inputs[0]) / (_float32(node.output) * np.float32(kernel[0] * kernel[1]))
    requantizer = _even(multiplier, clamp, node.output)
    return int_ops.AveragePool2d(kernel, (1, 1), ((0, 0), (0, 0)), requantizer)


def _adaptive_pool(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """An average pool with the windows that it comes to, if they all have one size."""
    op = node.op
    assert isinstance(op, int_ops.AdaptiveAveragePool2d)
    height, width = _image(inputs[0])
    if height % op.output_size[0] or width % op.output_size[1]:
        raise UnsupportedOperation(
            f"onnxruntime has no average pool with windows of two sizes, as {height} x {width} to {op.output_size} needs."
        )
    kernel = height // op.output_size[0], width // op.output_size[1]
    if kernel == (height, width):
        return _global_pool(kernel, op.requantizer.clamp, node, inputs)
    clamp = clamp_of(op.requantizer.clamp, node.output)
    return int_ops.AveragePoolFloat32(kernel, kernel, ((0, 0), (0, 0)), True, clamp)


def _image(tensor: Tensor) -> tuple[int, int]:
    height, width = (*(1,) * (3 - len(tensor.shape)), *tensor.shape[1:])
    return height, width


def _add(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearAdd (eq. 32)."""
    op = node.op
    assert isinstance(op, int_ops.Add | int_ops.AddFixedPoint | int_ops.AddFloat32)
    if (isinstance(op, int_ops.AddFixedPoint) and op.subtracts) or (
        isinstance(op, int_ops.Add) and op.multipliers[1] < 0
    ):
        raise UnsupportedOperation("onnxruntime has no subtraction of integers: it computes one in float32.")
    ratios = np.array([_float32(tensor) / _float32(node.output) for tensor in inputs], np.float32)
    zero_points = [np.float32(tensor.quantized[1].zero_point) for tensor in (*inputs, node.output)]
    addend = zero_points[2] - fused_multiply_add(ratios[0], zero_points[0], ratios[1] * zero_points[1])
    return int_ops.AddFloat32(ratios, np.asarray(addend, np.float32), clamp_of(op.clamp, node.output))


def _multiply(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearMul: S_a S_b and then the quotient by S_y, each rounded to float32; the zero point is inside the rounding."""
    op = node.op
    assert isinstance(op, int_ops.Multiply)
    multiplier = (_float32(inputs[0]) * _float32(inputs[1])) / _float32(node.output)
    return int_ops.Multiply(_even(multiplier, op.requantizer.clamp, node.output, inside=True))


def _matmul(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearMatMul of two activations: S_a S_b and then the quotient by S_y, each rounded to float32."""
    op = node.op
    assert isinstance(op, int_ops.MatMul)
    factor = factor_of(op, inputs, node.output)
    if factor != 1:
        raise UnsupportedOperation(
            f"onnxruntime has no constant factor in a product of integers, got {factor:.6g}. Put it into the weights before it, "
            f"or run it like labkit."
        )
    multiplier = (_float32(inputs[0]) * _float32(inputs[1])) / _float32(node.output)
    return replace(op, requantizer=_even(multiplier, op.requantizer.clamp, node.output))


def _table(source: Tensor, output: Tensor, clamp: tuple[int, int]) -> int_ops.Requantize | int_ops.Lookup:
    """DequantizeLinear and QuantizeLinear of each integer of ``source`` (eqs. 1 and 2).

    Division by the scale and multiplication by its reciprocal mostly give the same 256 integers; a table where they do not.
    """
    in_spec, in_params = source.quantized
    out_spec, out_params = output.quantized
    limits = np.iinfo(in_spec.dtype)
    integers = np.arange(limits.min, limits.max + 1)
    moved = quantize(dequantize(integers, in_params, in_spec), out_params, out_spec)
    table = np.clip(moved.astype(np.int32), *clamp_of(clamp, output))
    plain = _even(_float32(source) / _float32(output), clamp, output)
    if np.array_equal(plain.apply(integers - int(in_params.zero_point)), table):
        return int_ops.Requantize(plain)
    return int_ops.Lookup("rescale", table)


def _rescale(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """DequantizeLinear and QuantizeLinear, as a table of 256 integers; a Clip of integers where the scale stays."""
    op = node.op
    assert isinstance(op, int_ops.Requantize)
    if _same_grid(inputs[0], node.output):
        return int_ops.Requantize(replace(_even(1.0, op.requantizer.clamp, node.output), clamp=op.requantizer.clamp))
    return _table(inputs[0], node.output, op.requantizer.clamp)


def _same_grid(source: Tensor, output: Tensor) -> bool:
    (spec, params), (other, others) = source.quantized, output.quantized
    return spec == other and params.scale == others.scale and params.zero_point == others.zero_point


def _lookup(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """A change of scale, or a clamp; the tables of other functions are not known here."""
    op = node.op
    assert isinstance(op, int_ops.Lookup)
    if op.function not in RELU_BOUNDS:
        raise UnsupportedOperation(f"onnxruntime's own table of the {op.function} function is not known here.")
    return _table(inputs[0], node.output, clamp_even(RELU_BOUNDS[op.function], node.output))


def _concat(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearConcat of parts that have the output's scale, as `_with_concats_of_one_scale` makes them."""
    op = node.op
    assert isinstance(op, int_ops.Concat)
    return int_ops.Concat(
        tuple(
            replace(_even(1.0, old.clamp, node.output), clamp=clamp_of(old.clamp, node.output))
            for old in op.requantizers
        )
    )


def _with_concats_of_one_scale(graph: IntGraph) -> IntGraph:
    """``graph`` with a change of scale, NAME.part0 and so on, before each part of a Concat that has a scale of its own.

    QLinearConcat changes scales by tables, which no single multiplier imitates.
    """
    nodes: list[IntNode] = []
    taken = set(graph.carriers())
    for node in graph:
        if not isinstance(node.op, int_ops.Concat):
            nodes.append(node)
            continue
        sources = []
        for i, (name, old) in enumerate(zip(node.inputs, node.op.requantizers, strict=True)):
            source = graph[name].output
            if not _same_grid(source, node.output):
                moved = f"{node.name}.part{i}"
                while moved in taken:
                    moved += "_"
                taken.add(moved)
                output = replace(node.output, shape=source.shape)
                nodes.append(IntNode(moved, int_ops.Requantize(old), (name,), output))
                name = moved
            sources.append(name)
        nodes.append(replace(node, inputs=tuple(sources)))
    return graph if len(nodes) == len(graph.nodes) else IntGraph(tuple(nodes), graph.outputs, graph.notes)


def _softmax(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QLinearSoftmax (eq. 40)."""
    op = node.op
    assert isinstance(
        op, int_ops.Softmax | int_ops.SoftmaxFixedPoint | int_ops.SoftmaxFloat32 | int_ops.SoftmaxByReciprocal
    )
    return replace(softmax_float32(op.axis, inputs[0], node.output), clamp=clamp_of(op.clamp, node.output))


def _quantize(node: IntNode, inputs: tuple[Tensor, ...]) -> int_ops.IntOp:
    """QuantizeLinear (eq. 2)."""
    return int_ops.Quantize(node.output.shape)


RULE_SETS: Mapping[str, RuleSet] = MappingProxyType(
    {
        "onnxruntime": RuleSet(
            "onnxruntime",
            {
                int_ops.Quantize: _quantize,
                int_ops.QuantizeAwayFromZero: _quantize,
                int_ops.Conv2d: _layer,
                int_ops.Linear: _layer,
                int_ops.AveragePool2d: _pool,
                int_ops.AveragePoolOfValid: _pool,
                int_ops.AveragePoolFloat32: _pool,
                int_ops.AdaptiveAveragePool2d: _adaptive_pool,
                int_ops.Add: _add,
                int_ops.AddFixedPoint: _add,
                int_ops.AddFloat32: _add,
                int_ops.Multiply: _multiply,
                int_ops.MatMul: _matmul,
                int_ops.Concat: _concat,
                int_ops.Requantize: _rescale,
                int_ops.Lookup: _lookup,
                int_ops.Softmax: _softmax,
                int_ops.SoftmaxFixedPoint: _softmax,
                int_ops.SoftmaxFloat32: _softmax,
                int_ops.SoftmaxByReciprocal: _softmax,
                int_ops.Constant: lambda node, inputs: node.op,
            },
            prepared=_with_concats_of_one_scale,
        )
    }
)
