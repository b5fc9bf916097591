"""From a simplified `FloatGraph`, a `Calibration` and a `BitPlan` to an `IntGraph`. Everything here runs once, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import (
    PerTensor,
    QParams,
    QTensor,
    QuantSpec,
    params_from_range,
    params_from_values,
    quantize,
    quantize_tensor,
)
from labkit.arithmetic.windows import common_area
from labkit.errors import BoundError, LabkitError, QuantizationError
from labkit.graph import float_ops, int_ops
from labkit.graph.float_ops import Activation, InputKind
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph, IntNode, Tensor
from labkit.quantization import convert_sequences
from labkit.quantization.calibration import Calibration
from labkit.quantization.clipping.weights import DERIVED, weight_ends
from labkit.quantization.plan import BitPlan, tensor_names
from labkit.quantization.rounded import RoundedLayer, rounded_digest
from labkit.quantization.tensors import output_tensor
from labkit.runtimes.bounds import RealBounds
from labkit.runtimes.labkit_rules import add, requantizer, scale_of, softmax
from labkit.runtimes.lookups import labkit_lookup

__all__ = ["check_plan", "convert", "quantize_bias", "quantize_table", "quantize_weight"]

Ends = tuple[NDArray[np.float64], NDArray[np.float64]]

BIAS_LIMIT = 2**30  # half of int32: the other half is left to the products
_BOUNDS: dict[Activation, RealBounds] = {
    Activation.NONE: (None, None),
    Activation.RELU: (0.0, None),
    Activation.RELU6: (0.0, 6.0),
}
_SMALLEST_SCALE = np.finfo(np.float32).tiny


def convert(
    graph: FloatGraph,
    calibration: Calibration,
    plan: BitPlan,
    notes: Mapping[str, Any] | None = None,
    rounded: Mapping[str, RoundedLayer] | None = None,
) -> IntGraph:
    """The integer network.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : a range for each tensor of the graph
    plan : bits and grids
    notes : plain JSON values to keep with the result; calibration, plan, ends that a search chose for weights, and the biases
        of ``rounded`` are added
    rounded : by layer, weights that were rounded elsewhere and the bias that goes with them; other layers are rounded here

    Raises
    ------
    QuantizationError
        A scale cannot be chosen (an all-zero channel, a NaN), or plan and graph do not fit.
    BoundError
        A bias, multiplier or accumulator does not fit 32 bits.
    """
    check_plan(graph, plan)
    rounded = dict(rounded or {})
    for name, layer in rounded.items():
        _check_rounded(name, layer, graph, plan)
    tensors: dict[str, Tensor] = {}
    nodes: list[IntNode] = []
    chosen = _chosen_ends(graph, plan, rounded)
    for node in graph:
        inputs = [tensors[name] for name in node.inputs]
        tensors[node.name] = output_tensor(node, inputs, calibration, plan)
        op = _operation(node, inputs, tensors[node.name], plan, rounded.get(node.name), chosen.get(node.name))
        nodes.append(IntNode(node.name, op, node.inputs, tensors[node.name], node.carries))
    taken = {*tensors, *(carried for node in graph for carried in node.carries)}
    outputs = []
    for index, name in enumerate(graph.outputs):
        if tensors[name].is_index:  # it leaves as it is
            outputs.append(name)
            continue
        border = "output" if len(graph.outputs) == 1 else f"output_{index}"
        while border in taken:
            border += "_"
        outputs.append(border)
        tensors[border] = Tensor(tensors[name].shape, None, None)
        nodes.append(IntNode(border, int_ops.Dequantize(), (name,), tensors[border]))
    kept = {**(notes or {}), "calibration": calibration.to_json(), "plan": plan.to_json()}
    if chosen:
        kept["weight_ends"] = {
            name: [np.asarray(end).reshape(-1).tolist() for end in ends] for name, ends in chosen.items()
        }
    if rounded:
        kept["rounded_biases"] = {name: [float(b) for b in layer.bias] for name, layer in rounded.items()}
        kept["rounded_sha256"] = rounded_digest(nodes, kept["rounded_biases"])
    return IntGraph(tuple(nodes), tuple(outputs), kept)


def quantize_weight(
    name: str,
    weight: NDArray[np.float32],
    spec: QuantSpec,
    ranges: str = "minmax",
    vanished: Sequence[int] = (),
    ends: Ends | None = None,
) -> QTensor:
    """Integers of the weights of the layer ``name``, rounded to nearest (eqs. 2 and 4; one bit: eq. 6).

    Parameters
    ----------
    name : of the layer, for errors
    weight : float32 [O, ...]
    spec : the grid, per tensor or per channel (axis 0)
    ranges : one of `clipping.weights.WEIGHT_METHODS`; weights beyond the interval are clipped. One bit has no range
    vanished : channels that are zeros on purpose: per channel they get the smallest scale, which their bias then enlarges
        (eq. 8a)
    ends : what `weight_ends` chose by ``ranges``, if that is known already

    Raises
    ------
    QuantizationError
        A weight is not finite, a whole channel (or tensor) is zero, or the ranges cannot be chosen; the message names the layer.
    """
    per_tensor = isinstance(spec.granularity, PerTensor)
    ranged = weight
    if vanished and not per_tensor:
        ranged = weight.copy()
        ranged[list(vanished)] = _SMALLEST_SCALE * spec.qmax
    try:
        if ranges == "minmax" or spec.is_binary:
            return quantize_tensor(weight, params_from_values(ranged, spec), spec)
        ends = weight_ends(weight, spec, ranges, vanished) if ends is None else ends
        return quantize_tensor(weight, params_from_range(*ends, spec), spec)
    except QuantizationError as error:
        raise QuantizationError(f"{name}, weights: {error}") from error


def quantize_table(
    name: str, table: NDArray[np.float32], spec: QuantSpec, ranges: str = "minmax", ends: Ends | None = None
) -> QTensor:
    """Integers of the embedding ``name``, its ``table`` float32 [V, D] rounded to nearest by `quantize_weight`.

    Rows of tokens that were never trained are zeros; per row, they get the smallest scale. ``spec`` is the grid and ``ranges``
    one of `clipping.weights.WEIGHT_METHODS`; ``ends`` are what `weight_ends` chose by it, if that is known already.

    Raises
    ------
    QuantizationError
        As `quantize_weight`.
    """
    return quantize_weight(name, table, spec, ranges, _empty_rows(table), ends)


def _empty_rows(table: NDArray[np.float32]) -> tuple[int, ...]:
    return tuple(int(row) for row in np.flatnonzero(~table.any(axis=1)))


def quantize_bias(
    name: str,
    bias: NDArray[np.float32] | None,
    weight: NDArray[np.float32],
    quantized: QTensor,
    input_scale: np.float32,
) -> tuple[QTensor, NDArray[np.int32]]:
    """The int32 bias at scale S_w S_x, zero point 0 (eq. 8), and the weights, requantized if the bias needs a larger scale.

    A channel with tiny weights and an ordinary bias would need a bias beyond int32. Its weight scale is then enlarged until
    the bias is at most 2**30 (eq. 8a), at the cost of weight precision that such a channel can spare.

    Parameters
    ----------
    name : of the layer, for errors
    bias : float32 [O] or None for zeros
    weight : float32 [O, ...], from which ``quantized`` was made
    quantized : the weights as integers
    input_scale : of the layer's input

    Raises
    ------
    BoundError
        Even the enlarged scale does not help (the bias is not finite).
    """
    outputs = weight.shape[0]
    if bias is None:
        return quantized, np.zeros(outputs, np.int32)
    reals, x_scale = bias.astype(np.float64), np.float64(input_scale)
    scale = quantized.params.scale.astype(np.float64)
    needed = np.abs(reals) / (x_scale * BIAS_LIMIT)
    if scale.ndim == 0:
        needed = needed.max()
    if np.any(needed > scale):
        enlarged = np.maximum(quantized.params.scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)))
        params = QParams(np.where(needed > scale, enlarged, quantized.params.scale), quantized.params.zero_point)
        quantized = quantize_tensor(weight, params, quantized.spec)
        scale = quantized.params.scale.astype(np.float64)
    values = np.rint(reals / (scale * x_scale))
    if not np.all(np.abs(values) <= BIAS_LIMIT):
        raise BoundError(
            f"{name}: a bias does not fit int32 at scale S_w S_x. Check the layer's bias for infinite values."
        )
    return quantized, values.astype(np.int32)


def check_plan(graph: FloatGraph, plan: BitPlan) -> None:
    """Refuse a ``plan`` that names what the simplified ``graph`` does not have, or leaves out what it has.

    Raises
    ------
    QuantizationError
        It would be obeyed only in part, or not at all.
    """
    weighted = float_ops.Conv2d | float_ops.Linear | float_ops.Embedding
    layers = [node.name for node in graph if isinstance(node.op, weighted)]
    for kind, table, known in (
        ("weights", plan.weights, layers),
        ("activations", plan.activations, tensor_names(graph)),
    ):
        if extra := [name for name in table if name not in known]:
            raise QuantizationError(
                f"The bit plan gives {kind} bits for {extra[0]!r}, which this network does not have; "
                f"it has {', '.join(known)}."
            )
        if left_out := [name for name in known if name not in table]:
            raise QuantizationError(
                f"The bit plan gives no {kind[:-1]} bits for {left_out[0]!r}; it names {', '.join(table) or 'nothing'}. "
                f"Every layer and tensor needs its bits: {', '.join(known)}."
            )


def _check_rounded(name: str, layer: RoundedLayer, graph: FloatGraph, plan: BitPlan) -> None:
    op = graph[name].op if name in {node.name for node in graph} else None
    if not isinstance(op, float_ops.Conv2d | float_ops.Linear):
        raise QuantizationError(f"Rounded weights are given for {name!r}, which is no layer of this network.")
    if layer.weight.values.shape != op.weight.shape:
        raise QuantizationError(
            f"{name}: the rounded weights have shape {layer.weight.values.shape}, the layer's have {op.weight.shape}. "
            f"Round the weights of this network."
        )
    wanted, got = plan.weight_spec(name).bits, layer.weight.spec.bits
    if got != wanted:
        raise QuantizationError(
            f"{name}: the weights were rounded to {got} bits, the plan gives {wanted}. Hand in the plan they were rounded by."
        )


def _chosen_ends(graph: FloatGraph, plan: BitPlan, rounded: Mapping[str, RoundedLayer]) -> dict[str, Ends]:
    """By layer, the ends that a search chooses for weights that are rounded here; none where they can be derived anew."""
    if plan.weight_ranges in DERIVED:
        return {}
    found = {}
    for node in graph:
        if not isinstance(node.op, float_ops.Conv2d | float_ops.Linear | float_ops.Embedding) or node.name in rounded:
            continue
        spec = plan.weight_spec(node.name)
        if spec.is_binary:
            continue
        try:
            gone = _empty_rows(node.op.weight) if isinstance(node.op, float_ops.Embedding) else node.op.vanished
            found[node.name] = weight_ends(node.op.weight, spec, plan.weight_ranges, gone)
        except QuantizationError as error:
            raise QuantizationError(f"{node.name}, weights: {error}") from error
    return found


def _operation(
    node: FloatNode,
    inputs: list[Tensor],
    output: Tensor,
    plan: BitPlan,
    rounded: RoundedLayer | None,
    ends: Ends | None,
) -> IntOp:
    op = node.op
    if isinstance(op, float_ops.Input):
        return (int_ops.Quantize if op.kind is InputKind.REAL else int_ops.Input)(tuple(op.shape))
    if isinstance(op, float_ops.Flatten):
        return int_ops.Flatten()
    if isinstance(op, float_ops.MaxPool2d):
        return int_ops.MaxPool2d(op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
    if isinstance(op, float_ops.Pad):
        return int_ops.Pad(op.padding)
    if isinstance(op, float_ops.Reshape):
        return int_ops.Reshape(op.shape)
    if isinstance(op, float_ops.Transpose):
        return int_ops.Transpose(op.axes)
    if isinstance(op, float_ops.UpsampleNearest2d):
        return int_ops.UpsampleNearest2d(op.factor)
    if isinstance(op, float_ops.ArgMax):
        return int_ops.ArgMax(op.axis, op.keepdims)
    try:
        return _computing(node, inputs, output, plan, rounded, ends)
    except LabkitError as error:
        is_named = str(error).startswith((f"{node.name}:", f"{node.name},"))
        raise error if is_named else type(error)(f"{node.name}: {error}") from error


def _computing(
    node: FloatNode,
    inputs: list[Tensor],
    output: Tensor,
    plan: BitPlan,
    rounded: RoundedLayer | None,
    ends: Ends | None,
) -> IntOp:
    op, bounds = node.op, _BOUNDS[node.activation]
    if isinstance(op, float_ops.Constant):
        spec, params = output.quantized
        return int_ops.Constant(quantize(op.values, params, spec))
    if isinstance(op, float_ops.Embedding):
        weight = quantize_table(node.name, op.weight, plan.weight_spec(node.name), plan.weight_ranges, ends)
        return convert_sequences.embedding(weight, output)
    if isinstance(op, float_ops.MaskedSoftmax):
        return convert_sequences.masked_softmax(inputs[0], output)
    if isinstance(op, float_ops.Softmax):
        return softmax(op.axis, inputs[0], output)
    if isinstance(op, float_ops.Gelu):
        wide = inputs[0].quantized[0].is_wide  # else a table of 256 entries, exact to half a step
        return convert_sequences.gelu(inputs[0], output) if wide else labkit_lookup("gelu", inputs[0], output)
    if isinstance(op, float_ops.LayerNorm):
        return convert_sequences.layer_norm(op, inputs[0], output)
    if isinstance(op, float_ops.MatMul):
        return convert_sequences.matmul(op, inputs, output)
    scales, target = [scale_of(tensor) for tensor in inputs], scale_of(output)
    if isinstance(op, float_ops.Conv2d | float_ops.Linear):
        if rounded is None:
            spec = plan.weight_spec(node.name)
            weight = quantize_weight(node.name, op.weight, spec, plan.weight_ranges, op.vanished, ends)
            reals, real_bias = op.weight, op.bias
        else:
            weight, reals, real_bias = rounded.weight, rounded.weight.dequantized(), rounded.bias
        weight, bias = quantize_bias(node.name, real_bias, reals, weight, np.float32(inputs[0].quantized[1].scale))
        to_output = requantizer(weight.params.scale.astype(np.float64) * scales[0] / target, output, bounds)
        if isinstance(op, float_ops.Linear):
            return int_ops.Linear(weight, bias, to_output)
        return int_ops.Conv2d(weight, bias, to_output, op.stride, op.padding, op.dilation, op.groups)
    if isinstance(op, float_ops.AveragePool2d):
        multiplier = scales[0] / (target * (op.kernel[0] * op.kernel[1]))
        return int_ops.AveragePool2d(op.kernel, op.stride, op.padding, requantizer(multiplier, output, bounds))
    if isinstance(op, float_ops.AdaptiveAveragePool2d):
        height, width = (*(1, 1), *inputs[0].shape[1:])[-2:]
        multiplier = scales[0] / (target * common_area(height, width, op.output_size))
        return int_ops.AdaptiveAveragePool2d(op.output_size, requantizer(multiplier, output, bounds))
    if isinstance(op, float_ops.Add):
        return add((inputs[0], inputs[1]), output, bounds)
    if isinstance(op, float_ops.Multiply):
        return int_ops.Multiply(requantizer(scales[0] * scales[1] / target, output, bounds))
    if isinstance(op, float_ops.Concat):
        return int_ops.Concat(tuple(requantizer(scale / target, output, bounds) for scale in scales))
    if isinstance(op, float_ops.Rescale):
        return int_ops.Requantize(requantizer(scales[0] / target, output, bounds))
    assert isinstance(op, float_ops.Relu)
    return int_ops.Requantize(requantizer(scales[0] / target, output, _BOUNDS[op.kind]))
