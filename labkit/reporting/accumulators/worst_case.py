"""What a layer's sums can become for any input: from weights, biases and the input's grid alone (docs/analyse.md)."""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.bounds import accumulator_bound
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import NORMALISED_BITS
from labkit.arithmetic.requantize import scale_and_round
from labkit.arithmetic.windows import adaptive_windows, common_area
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.fast import winograd
from labkit.kernels.fast.packing import DENSE_CHANNELS
from labkit.reporting.accumulators.results import LayerSums, PairRule, Span
from labkit.reporting.accumulators.steps import gelu_steps

__all__ = ["channel_ends", "pair_rule", "worst_case"]

_INT8, _INT16 = np.iinfo(np.int8), np.iinfo(np.int16)
_Mean = int_ops.AveragePool2d | int_ops.AveragePoolOfValid
_TRANSFORMS = {"F4": winograd.F4, "F2": winograd.F2}


def worst_case(graph: IntGraph, node: IntNode) -> LayerSums | None:
    """The part of a `LayerSums` that needs no images, or None where the operation sums nothing and clamps nothing.

    Parameters
    ----------
    graph, node : the integer network and a node of it
    """
    return _sums(node.op, graph, node)


def channel_ends(graph: IntGraph, node: IntNode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest finished sum of each channel of ``node``, a layer or an embedding of ``graph``, bias included.

    int64 [O] each, or for an embedding [V], one for each row of its table. Windows that meet padding are taken for whole ones.
    """
    op = node.op
    if isinstance(op, int_ops.Embedding):
        table = op.weight.values.astype(np.int64)
        return table.min(axis=1), table.max(axis=1)
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    lowest, highest = (end.reshape(len(end), -1).sum(axis=1) for end in _ends(_centred(op), *_grid(graph, node)))
    return lowest + op.bias, highest + op.bias


def pair_rule(rows: NDArray[np.integer], reach: int) -> PairRule | None:
    """Count the pairs of neighbouring weights that vpmaddubsw can saturate.

    The instruction multiplies unsigned bytes by signed bytes and adds two neighbouring products in int16, saturating. With
    inputs of 0..``reach``, the largest sum of a pair takes its positive weights at full reach and the others at 0, the lowest
    its negative ones. For 8-bit inputs these fit int16 up to 128: 255 * 128 = 32,640, but 255 * 129 = 32,895.

    Parameters
    ----------
    rows : integers of shape (..., length)
        Weights, zero points subtracted, in the order in which they meet inputs; pairs do not cross rows, and a row of odd
        length is filled up with one 0.
    reach : steps of the input's grid, 255 for 8 bits

    Returns
    -------
    The counts, or None where a weight does not fit a signed byte
    """
    if rows.size == 0 or rows.min() < _INT8.min or rows.max() > _INT8.max:
        return None
    odd = rows.shape[-1] % 2
    filled = np.pad(rows.astype(np.int64), [(0, 0)] * (rows.ndim - 1) + [(0, odd)])
    pairs = filled.reshape(-1, 2)
    highest = np.maximum(pairs, 0).sum(axis=1) * reach
    lowest = np.minimum(pairs, 0).sum(axis=1) * reach
    return PairRule(len(pairs), int(np.count_nonzero((highest > _INT16.max) | (lowest < _INT16.min))))


@singledispatch
def _sums(op: IntOp, graph: IntGraph, node: IntNode) -> LayerSums | None:
    return None  # moves or compares integers, or is a border


@_sums.register
def _(op: int_ops.Conv2d, graph: IntGraph, node: IntNode) -> LayerSums:
    weights = _centred(op)
    low, high = _grid(graph, node)
    rows, columns = (
        _taps_met(_image(graph.inputs_of(node)[0])[a], _image(node.output)[a], weights.shape[2 + a], op, a)
        for a in range(2)
    )
    ends = _ends(weights, low, high)
    lowest, highest = (np.einsum("ochw,rh,kw->ork", end, rows, columns) for end in ends)
    exact = None
    if weights.shape[2:] == (3, 3) and op.stride == op.dilation == (1, 1) and op.groups == 1:
        exact = tuple(name for name, way in _TRANSFORMS.items() if winograd.is_exact(way, weights, low, high))
    return LayerSums(
        node.name,
        "Conv2d",
        weights[0].size,
        _span(lowest.min(axis=(1, 2)), highest.max(axis=(1, 2)), op.bias),
        int(accumulator_bound(weights, low, high, op.bias).max()),
        pairs=pair_rule(_conv_rows(op, weights, graph, node), _reach(graph, node)),
        winograd=exact,
    )


@_sums.register
def _(op: int_ops.Linear, graph: IntGraph, node: IntNode) -> LayerSums:
    weights = _centred(op)
    low, high = _grid(graph, node)
    lowest, highest = (end.sum(axis=1) for end in _ends(weights, low, high))
    source = graph[node.inputs[0]]
    rows = weights
    if isinstance(source.op, int_ops.Flatten):  # the engine keeps (row, column, channel) and moves the weights instead
        shape = graph.inputs_of(source)[0].shape
        if len(shape) == 3:
            rows = weights.reshape(-1, *shape).transpose(0, 2, 3, 1).reshape(len(weights), -1)
    return LayerSums(
        node.name,
        "Linear",
        weights.shape[1],
        _span(lowest, highest, op.bias),
        int(accumulator_bound(weights, low, high, op.bias).max()),
        pairs=pair_rule(rows, _reach(graph, node)),
    )


@_sums.register
def _(op: int_ops.AveragePool2d, graph: IntGraph, node: IntNode) -> LayerSums:
    low, high = _grid(graph, node)
    sizes = list(zip(_image(graph.inputs_of(node)[0]), _image(node.output), strict=True))
    met = [_taps_met(*sizes[a], op.kernel[a], op, a).sum(axis=1).max() for a in range(2)]
    count = int(met[0] * met[1])
    span = Span(count * low, count * high)
    return LayerSums(node.name, "AveragePool2d", op.kernel[0] * op.kernel[1], span, span.magnitude)


@_sums.register
def _(op: int_ops.AdaptiveAveragePool2d, graph: IntGraph, node: IntNode) -> LayerSums:
    """Every sum is multiplied up to the common area of all windows (eq. 27)."""
    height, width = _image(graph.inputs_of(node)[0])
    sizes = zip((height, width), op.output_size, strict=True)
    terms = [max(stop - start for start, stop in adaptive_windows(have, want)) for have, want in sizes]
    low, high = _grid(graph, node)
    area = common_area(height, width, op.output_size)
    span = Span(area * low, area * high)
    return LayerSums(node.name, "AdaptiveAveragePool2d", terms[0] * terms[1], span, span.magnitude)


@_sums.register
def _(op: int_ops.Add, graph: IntGraph, node: IntNode) -> LayerSums:
    ends = [[int(m) * end for end in _grid(graph, node, i)] for i, m in enumerate(op.multipliers)]
    span = Span(sum(min(e) for e in ends), sum(max(e) for e in ends))
    return LayerSums(node.name, "Add", 2, span, sum(max(map(abs, e)) for e in ends))


@_sums.register
def _(op: int_ops.AddAwayFromZero, graph: IntGraph, node: IntNode) -> LayerSums:
    ends = [[int(m) * end for end in _grid(graph, node, i)] for i, m in enumerate(op.multipliers)]
    span = Span(sum(min(e) for e in ends), sum(max(e) for e in ends))
    return LayerSums(node.name, "AddAwayFromZero", 2, span, sum(max(map(abs, e)) for e in ends))


@_sums.register
def _(op: int_ops.AddFixedPoint, graph: IntGraph, node: IntNode) -> LayerSums:
    """What is added is rounded already (eq. 31): the ends of each input are taken through its multiplier."""
    parts = []
    for index, sign in enumerate((1, -1 if op.subtracts else 1)):
        multiplier = FixedPointMultiplier(op.inputs.mantissa[index], op.inputs.exponent[index])
        ends = np.array(_grid(graph, node, index), np.int64) << op.left_shift
        parts.append(sorted(sign * int(end) for end in scale_and_round(ends, multiplier, op.rule)))
    span = Span(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
    return LayerSums(node.name, "AddFixedPoint", 2, span, sum(max(map(abs, part)) for part in parts))


@_sums.register
def _(op: int_ops.AveragePoolOfValid, graph: IntGraph, node: IntNode) -> LayerSums:
    """The integers themselves are summed, less the offset."""
    sizes = list(zip(_image(graph.inputs_of(node)[0]), _image(node.output), strict=True))
    met = [_taps_met(*sizes[a], op.kernel[a], op, a).sum(axis=1).max() for a in range(2)]
    return _raw_sum(node, graph, int(met[0] * met[1]), op.offset)


@_sums.register
def _(op: int_ops.MeanFloat32, graph: IntGraph, node: IntNode) -> LayerSums:
    shape = graph.inputs_of(node)[0].shape
    return _raw_sum(node, graph, math.prod(shape[axis] for axis in op.axes), op.offset)


def _raw_sum(node: IntNode, graph: IntGraph, count: int, offset: int) -> LayerSums:
    spec, _ = graph.inputs_of(node)[0].quantized
    low, high = (count * (end - offset) for end in (spec.qmin, spec.qmax))
    span = Span(min(low, 0), max(high, 0))  # a part of a sum has fewer terms
    return LayerSums(node.name, type(node.op).__name__, count, span, span.magnitude)


@_sums.register
def _(op: int_ops.Multiply, graph: IntGraph, node: IntNode) -> LayerSums:
    products = [a * b for a in _grid(graph, node, 0) for b in _grid(graph, node, 1)]
    span = Span(min(products), max(products))
    return LayerSums(node.name, "Multiply", 1, span, span.magnitude)


@_sums.register
def _(op: int_ops.Embedding, graph: IntGraph, node: IntNode) -> LayerSums:
    """An entry of the table: nothing is summed."""
    span = Span(int(op.weight.values.min()), int(op.weight.values.max()))
    return LayerSums(node.name, "Embedding", 1, span, span.magnitude)


@_sums.register
def _(op: int_ops.MatMul, graph: IntGraph, node: IntNode) -> LayerSums:
    """Both factors can be at any end of their grids for every product of a sum."""
    shape = graph.inputs_of(node)[0].shape
    count = shape[1] if op.transpose_a else shape[2]
    products = [a * b for a in _grid(graph, node, 0) for b in _grid(graph, node, 1)]
    span = Span(count * min(products), count * max(products))
    return LayerSums(node.name, "MatMul", count, span, span.magnitude)


@_sums.register
def _(op: int_ops.GeluPolynomial, graph: IntGraph, node: IntNode) -> LayerSums:
    """The product that is requantized: every integer of the grid is tried."""
    low, high = _grid(graph, node)
    products = gelu_steps(op, np.arange(low, high + 1))["times the input"]
    span = Span(int(products.min()), int(products.max()))
    return LayerSums(node.name, "GeluPolynomial", 1, span, span.magnitude)


@_sums.register
def _(op: int_ops.LayerNorm, graph: IntGraph, node: IntNode) -> LayerSums:
    """The normalised number, at most 2**30 in magnitude, times gamma, and beta (eq. 50)."""
    products = [int(m) << NORMALISED_BITS for m in op.multipliers]
    ends = [sign * product + int(b) for product, b in zip(products, op.addends, strict=True) for sign in (-1, 1)]
    span = Span(min(*ends, 0), max(*ends, 0))
    return LayerSums(node.name, "LayerNorm", 2, span, span.magnitude)


@_sums.register
def _(op: int_ops.Concat, graph: IntGraph, node: IntNode) -> LayerSums:
    grids = [_grid(graph, node, i) for i in range(len(node.inputs))]
    span = Span(min(low for low, _ in grids), max(high for _, high in grids))
    return LayerSums(node.name, "Concat", 1, span, span.magnitude)


@_sums.register
def _(op: int_ops.Requantize, graph: IntGraph, node: IntNode) -> LayerSums:
    span = Span(*_grid(graph, node))
    return LayerSums(node.name, "Requantize", 1, span, span.magnitude)


def _image(tensor: Tensor) -> tuple[int, int]:
    """Height and width; a sequence is an image of height 1."""
    return (1, tensor.shape[1]) if len(tensor.shape) == 2 else (tensor.shape[1], tensor.shape[2])


def _centred(op: int_ops.Conv2d | int_ops.Linear) -> NDArray[np.int64]:
    """The weights less their zero points."""
    zero_point = op.weight.params.zero_point.astype(np.int64).reshape([-1] + [1] * (op.weight.values.ndim - 1))
    return np.asarray(op.weight.values.astype(np.int64) - zero_point)


def _grid(graph: IntGraph, node: IntNode, index: int = 0) -> tuple[int, int]:
    """Lowest and highest integer of an input, zero point subtracted; 0 lies between them."""
    spec, params = graph.inputs_of(node)[index].quantized
    return spec.qmin - int(params.zero_point), spec.qmax - int(params.zero_point)


def _reach(graph: IntGraph, node: IntNode) -> int:
    """The largest unsigned byte that stands for an input: a signed grid is counted from its lowest integer."""
    low, high = _grid(graph, node)
    return high - low


def _ends(weights: NDArray[np.int64], low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and the highest product of each weight with an input of ``low .. high``."""
    return np.minimum(weights * low, weights * high), np.maximum(weights * low, weights * high)


def _span(lowest: NDArray[np.int64], highest: NDArray[np.int64], bias: NDArray[np.int32]) -> Span:
    """From the ends of each channel's sum of products: a partial sum may hold the bias already, or not yet."""
    return Span(
        int((lowest + np.minimum(bias, 0)).min(initial=0)),
        int((highest + np.maximum(bias, 0)).max(initial=0)),
    )


def _taps_met(size: int, outputs: int, kernel: int, op: int_ops.Conv2d | _Mean, axis: int) -> NDArray[np.int64]:
    """Which kernel positions of one axis meet the image and which the padding: [kinds of output positions, kernel] of 0 and 1.

    Kinds that meet no more than another do are left out where one kind meets all: padding adds 0 to a sum.
    """
    dilation = op.dilation[axis] if isinstance(op, int_ops.Conv2d) else 1
    starts = np.arange(outputs) * op.stride[axis] - op.padding[axis][0]
    taps = starts[:, None] + np.arange(kernel) * dilation
    met = np.unique((taps >= 0) & (taps < size), axis=0)
    return np.asarray(met[met.all(axis=1)] if met.all(axis=1).any() else met, np.int64)


def _conv_rows(op: int_ops.Conv2d, weights: NDArray[np.int64], graph: IntGraph, node: IntNode) -> NDArray[np.int64]:
    """The weights in the order in which the engine's kernels take pairs of them (docs/kernels.md): rows [..., length]."""
    outputs, depth, height, width = weights.shape
    if op.groups > 1 and depth == 1 and op.groups == outputs:
        return weights.reshape(outputs, height * width)  # depthwise: neighbouring elements of the kernel
    source = graph[node.inputs[0]]
    is_input = (
        not isinstance(source.op, int_ops.Constant) and not source.inputs and math.prod(_image(source.output)) > 1
    )
    is_dense = op.groups > 1 or (is_input and depth <= DENSE_CHANNELS)
    lanes = depth if is_dense else depth + depth % 2
    filled = np.zeros((outputs, height, width, lanes), np.int64)
    filled[..., :depth] = weights.transpose(0, 2, 3, 1)
    return filled.reshape(outputs, height, width * lanes)
