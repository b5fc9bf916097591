"""`IntGraph.validate` and `FloatGraph.validate`: what they let pass and what they name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.graph.builders import (
    biased,
    changed,
    every_operation,
    float_conv,
    float_input,
    operations_of_runtimes,
    requantizer,
    tensor,
    weights,
)
from unit.graph.transformer_block import block

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule
from labkit.arithmetic.windows import common_area
from labkit.errors import BoundError, ModelError
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph, IntNode, Tensor

RULES = RoundingRule
GRAPH = every_operation()
OTHERS = operations_of_runtimes()


def test_a_sound_graph_passes_and_finds_its_nodes() -> None:
    assert {type(node.op) for node in (*GRAPH, *OTHERS, *block())} == {
        getattr(int_ops, name) for name in int_ops.__all__ if name != "IntOp"
    }
    assert GRAPH.inputs == ("x",)
    assert OTHERS.inputs == ("x", "r", "border")
    assert [t.shape for t in GRAPH.inputs_of(GRAPH["cat"])] == [(4, 3, 3), (4, 3, 3)]
    assert GRAPH.carriers()["relu"] == GRAPH.carriers()["bn"] == GRAPH.carriers()["conv"] == "conv"
    with pytest.raises(ModelError, match=r"no node 'missing'; it has x, conv, pool,"):
        GRAPH["missing"]


# Names and order, of both kinds of graph

X, FLAT = float_input(3, 2, 2), FloatNode("flat", float_ops.Flatten(), ("x",))


@pytest.mark.parametrize(
    ("nodes", "outputs", "words"),
    [
        ((X, X), ("x",), "Two nodes are called 'x'"),
        ((FLAT, X), ("flat",), "flat takes 'x', which no earlier node puts out"),
        ((X, FLAT), (), r"outputs must be nodes of it, got \[\]"),
        ((X, FLAT), ("y",), r"outputs must be nodes of it, got \['y'\]"),
    ],
)
def test_names_and_order_of_float_nodes(nodes: tuple[FloatNode, ...], outputs: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        FloatGraph(nodes, outputs)


def test_names_and_order_of_integer_nodes() -> None:
    nodes = GRAPH.nodes
    with pytest.raises(ModelError, match="Two nodes are called 'x'"):
        IntGraph((nodes[0], *nodes), ("output",))
    with pytest.raises(ModelError, match="conv takes 'x', which no earlier node puts out"):
        IntGraph((nodes[1], nodes[0], *nodes[2:]), ("output",))
    with pytest.raises(ModelError, match="outputs must be nodes"):
        IntGraph(nodes, ("logits",))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("label", ["weight", "bias"])
def test_a_parameter_that_is_not_finite_is_named(value: float, label: str) -> None:
    weight, bias = np.ones((2, 3, 1, 1), np.float32), np.ones(2, np.float32)
    (weight if label == "weight" else bias).reshape(-1)[1] = value
    nodes = (X, FloatNode("conv1", float_conv(weight, bias), ("x",)))
    with pytest.raises(ModelError, match=rf"conv1: {label} holds {value} at index"):
        FloatGraph(nodes, ("conv1",))


# One wrong thing at a time


def _output(name: str) -> Tensor:
    return GRAPH[name].output


def _quantizer(name: str) -> Any:
    return GRAPH[name].op.requantizer  # type: ignore[union-attr]


def _moved(name: str, zero_point: int) -> Tensor:
    """The output of ``name`` with another zero point."""
    spec, params = _output(name).quantized
    return Tensor(_output(name).shape, spec, QParams(params.scale, np.int32(zero_point)))


SHAPES = [(n.name, (*n.output.shape[:-1], n.output.shape[-1] + 1)) for n in GRAPH]

WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"output": replace(_output(name), shape=shape)}, "is declared") for name, shape in SHAPES),
    ("add", {"inputs": ("pool",)}, "Add takes 2 inputs, got 1"),
    ("cat", {"inputs": ()}, "Concat takes some inputs, got 0"),
    ("fc", {"inputs": ("flat", "flat")}, "Linear takes 1 inputs, got 2"),
    ("pool", {"op_kernel": (9, 9)}, "is declared"),
    ("conv", {"inputs": ("x",), "op_groups": 1}, r"weights \(4, 1, 3, 3\) in 1 groups do not fit an input of 2"),
    ("conv", {"op_groups": 0}, "in 0 groups"),
    ("point", {"op_weight": weights((4, 3, 1, 1))}, "do not fit an input of 4"),
    ("fc", {"op_weight": weights((3, 7))}, "do not fit an input of 8"),
    ("fc", {"op_bias": np.zeros(3, np.int64)}, r"bias must be int32 \[3\], got int64"),
    ("fc", {"op_bias": np.zeros(2, np.int32)}, r"bias must be int32 \[3\], got int32 \[2\]"),
    ("conv", {"output": _moved("conv", 256)}, r"zero point 256 is outside 0\.\.255"),
    ("x", {"output": _moved("x", -1)}, r"zero point -1 is outside 0\.\.255"),
    ("conv", {"output": _moved("conv", 11)}, "requantizer's zero point 10 .* output's zero point 11"),
    ("mean", {"op_requantizer": replace(_quantizer("mean"), clamp=(0, 255), zero_point=4)}, "zero point 4"),
    ("act", {"op_requantizer": replace(_quantizer("act"), clamp=(-1, 255))}, r"clamp -1\.\.255 does not fit"),
    ("fc", {"op_requantizer": replace(_quantizer("fc"), clamp=(-128, 127))}, r"grid -127\.\.127"),
    ("conv", {"op_requantizer": requantizer([0.1, 0.2], _output("conv"))}, "2 multipliers for 4 channels"),
    ("mean", {"op_requantizer": requantizer([0.1] * 8, _output("mean"))}, "8 multipliers for None channels"),
    ("add", {"op_shift": 0}, r"shift of 1\.\.62, got shift 0"),
    ("add", {"op_shift": 63}, "got shift 63"),
    ("add", {"op_multipliers": np.array([1, 2])}, "two int32 multipliers"),
    ("add", {"op_multipliers": np.array([1], np.int32)}, "two int32 multipliers"),
    ("add", {"op_zero_point": 8}, "zero point or clamp"),
    ("add", {"op_clamp": (0, 256)}, "zero point or clamp"),
    ("add", {"inputs": ("pool", "conv")}, r"both inputs must have one shape|is declared"),
    ("cat", {"op_requantizers": GRAPH["cat"].op.requantizers[:1]}, "each input needs a requantizer"),  # type: ignore[union-attr]
    ("pool", {"output": replace(_output("pool"), params=_output("point").params)}, "keeps the scale of its input"),
    ("flat", {"output": _moved("flat", 4)}, "Flatten keeps the scale of its input"),
    ("output", {"output": tensor((3,))}, "puts out real numbers"),
    ("conv", {"output": Tensor((4, 6, 6), None, None)}, "takes the result of a real one"),
    ("mean", {"inputs": ("flat",)}, r"takes \(channels, height, width\), got|no earlier node"),
    ("scaled", {"inputs": ("act",)}, "Multiply takes 2 inputs, got 1"),
    ("scaled", {"inputs": ("act", "pool")}, r"two tensors of one shape, or .* got \(8, 3, 3\) and \(4, 3, 3\)"),
    ("scaled", {"inputs": ("act", "flat")}, r"got \(8, 3, 3\) and \(8,\)"),
    ("scaled", {"inputs": ("mean", "mean")}, "is declared"),
    ("scaled", {"op_requantizer": requantizer([0.1] * 8, _output("scaled"))}, "8 multipliers for None channels"),
    ("scaled", {"op_requantizer": replace(_quantizer("scaled"), zero_point=6)}, "zero point 6"),
    ("padded", {"op_padding": ((-1, 2), (0, 1))}, "a Pad only adds"),
    ("padded", {"op_padding": ((0, 0), (0, 1))}, "is declared"),
    ("padded", {"output": _moved("padded", 6)}, "Pad keeps the scale"),
    ("larger", {"op_factor": (2, 0)}, r"at least once, got the factor \(2, 0\)"),
    ("larger", {"op_factor": (3, 2)}, "is declared"),
    ("larger", {"inputs": ("flat",)}, "takes .*height"),
    ("larger", {"output": _moved("larger", 6)}, "UpsampleNearest2d keeps the scale"),
    ("moved", {"op_axes": (1, 2, 1)}, "is no order of the 3 axes"),
    ("moved", {"op_axes": (1, 0)}, "is no order of the 3 axes"),
    ("moved", {"op_axes": (0, 1, 3)}, r"Name each of 0\.\.2 once"),
    ("moved", {"output": _moved("moved", 6)}, "Transpose keeps the scale"),
    ("sequence", {"op_shape": (8, 15)}, r"\(4, 4, 8\) cannot become \(8, 15\)"),
    ("sequence", {"op_shape": (-8, -16)}, "cannot become"),
    ("sequence", {"output": _moved("sequence", 6)}, "Reshape keeps the scale"),
    ("uneven", {"op_output_size": (5, 2)}, "make it smaller only"),
    ("uneven", {"op_output_size": (0, 2)}, "make it smaller only"),
    ("uneven", {"inputs": ("flat",)}, "takes .*height"),
    ("shares", {"op_axis": 1}, r"there is no axis 1 in \(3,\)"),
    ("shares", {"op_axis": -1}, "there is no axis -1"),
    ("shares", {"op_bits": 7}, "with 7 bits its scale is 0.0078125"),
    ("shares", {"op_bits": 9}, "1..8 output bits"),
    ("shares", {"op_zero_point": 1}, "zero point or clamp"),
    ("shares", {"op_clamp": (0, 256)}, "zero point or clamp"),
    ("shares", {"op_table": np.ones(255, np.int32)}, r"int32 \[256\] exponentials"),
    ("shares", {"op_table": np.ones(256, np.int64)}, r"got int64 \[256\]"),
    ("class", {"op_axis": 1}, "there is no axis 1"),
    ("class", {"op_keepdims": False}, "is declared"),
    ("class", {"output": tensor((1,))}, "an ArgMax node puts out an index"),
    ("class", {"output": Tensor((1,), None, None)}, "an ArgMax node puts out an index"),
    ("output", {"output": Tensor((3,), None, None, is_index=True)}, "puts out real numbers"),
]


@pytest.mark.parametrize(("name", "fields", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_one_wrong_thing_is_found(name: str, fields: dict[str, Any], words: str) -> None:
    nodes = changed(GRAPH, name, **fields)
    assert nodes != GRAPH.nodes
    with pytest.raises(ModelError, match=words):
        IntGraph(nodes, ("output",))


def _fixed(*values: float) -> FixedPointMultiplier:
    return FixedPointMultiplier.from_real(np.array(values if len(values) > 1 else values[0]))


TABLE = OTHERS["looked"].op.table  # type: ignore[union-attr]
WRONG_OTHERS: list[tuple[str, dict[str, Any], str]] = [
    *((n.name, {"output": replace(n.output, shape=(*n.output.shape[:-1], 9))}, "is declared") for n in OTHERS),
    ("x", {"inputs": ("x",)}, "no earlier node|takes"),
    ("even", {"op_requantizer": biased(0.1, [1, 2, 3], OTHERS["even"].output, RULES.FLOAT32_EVEN)}, "3 .* 2 channels"),
    ("fixed", {"inputs": ("valid",)}, "AddFixedPoint takes 2 inputs, got 1"),
    ("fixed", {"inputs": ("valid", "even")}, r"one shape, got \(2, 3, 3\), \(2, 6, 6\)"),
    ("fixed", {"op_rule": RULES.SINGLE}, "under GEMMLOWP or GEMMLOWP_UP, got 20 bits under SINGLE"),
    ("fixed", {"op_left_shift": 23}, "got 23 bits"),
    ("fixed", {"op_left_shift": -1}, "got -1 bits"),
    ("fixed", {"op_inputs": _fixed(0.5, 1.5)}, "two multipliers up to 1"),
    ("fixed", {"op_inputs": _fixed(0.5)}, "two multipliers up to 1"),
    ("fixed", {"op_output": _fixed(0.5, 0.5)}, "one for the result"),
    ("fixed", {"op_output": _fixed(64.0)}, "shifts its sum, up to .* out of int32"),
    ("fixed", {"op_zero_point": 6}, "its zero point is 6, but 7 is declared"),
    ("fixed", {"op_clamp": (-129, 0)}, r"the clamp -129\.\.0 does not fit the grid -128\.\.127"),
    ("float", {"inputs": ("valid", "twice")}, "must have one shape"),
    ("float", {"op_multipliers": np.array([0.5], np.float32)}, "two multipliers and one addend"),
    ("float", {"op_multipliers": np.array([0.5, 0.5])}, "two multipliers and one addend"),
    ("float", {"op_multipliers": np.array([0.5, 0], np.float32)}, "must be positive and finite"),
    ("float", {"op_multipliers": np.array([0.5, 1e30], np.float32)}, "must be positive and .*below"),
    ("float", {"op_addend": np.array(np.nan, np.float32)}, "must be positive and finite|finite"),
    ("float", {"op_clamp": (0, 128)}, r"the clamp 0\.\.128 does not fit"),
    ("valid", {"output": replace(OTHERS["valid"].output, params=OTHERS["real"].output.params)}, "keeps the scale"),
    ("valid", {"op_clamp": (5, 4)}, r"the clamp 5\.\.4 does not fit"),
    ("valid", {"op_padding": ((3, 0), (0, 1))}, "is declared"),
    ("real", {"op_kernel": (2, 9)}, "is declared"),
    ("looked", {"op_function": "sine"}, "got 'sine'"),
    ("looked", {"op_table": TABLE[:255]}, r"takes int32 \[256\], got 'tanh', int32 \(255,\)"),
    ("looked", {"op_table": TABLE.astype(np.int64)}, "got 'tanh', int64"),
    ("looked", {"op_table": TABLE + np.int32(1)}, "its table leaves the grid"),
    ("r", {"inputs": ("x",)}, "QuantizeByReciprocal takes 0? ?.*inputs, got 1"),
    ("torch", {"inputs": ("r",)}, "AddDequantized takes 2 inputs, got 1"),
    ("torch", {"inputs": ("r", "x")}, "must have one shape"),
    ("torch", {"op_scales": np.array([1.0], np.float32)}, r"float32 scales \[2\]"),
    ("torch", {"op_scales": np.array([1.0, 0.0], np.float32)}, "must be positive"),
    ("torch", {"op_scales": np.array([1.0, 2.0**60], np.float32)}, r"below 2\*\*60"),
    ("torch", {"op_reciprocal": np.array([1.0], np.float32)}, r"a reciprocal \[\]"),
    ("torch", {"op_reciprocal": np.array(np.inf, np.float32)}, "must be positive"),
    ("torch", {"op_fused": 19}, "at most every element"),
    ("torch", {"op_fused": -1}, "at most every element"),
    ("torch", {"op_zero_point": 6}, "its zero point is 6"),
    ("away", {"inputs": ("r", "x")}, "must have one shape"),
    ("away", {"op_shift": 0}, r"a shift of 1\.\.31"),
    ("away", {"op_shift": 32}, r"a shift of 1\.\.31"),
    ("away", {"op_multipliers": np.array([2**22 + 1, 1], np.int32)}, r"of 0\.\.2\*\*22"),
    ("away", {"op_multipliers": np.array([-1, 1], np.int32)}, r"of 0\.\.2\*\*22"),
    ("away", {"op_multipliers": np.array([1, 1])}, "two int32 multipliers"),
    ("shares", {"op_axis": 3}, "there is no axis 3"),
    ("shares", {"op_multiplier": _fixed(0.3)}, "one multiplier of at least 1/2"),
    ("shares", {"op_multiplier": _fixed(1.0, 2.0)}, "one multiplier of at least 1/2"),
    ("shares", {"op_zero_point": 0}, "its zero point is 0, but -128 is declared"),
    ("shares", {"op_lowest_difference": 1}, "lowest difference"),
    ("shares", {"output": OTHERS["fixed"].output}, "its zero point|scale 1/256"),
]


@pytest.mark.parametrize(
    ("name", "fields", "words"), WRONG_OTHERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_one_wrong_thing_is_found_in_operations_of_runtimes(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises((ModelError, BoundError), match=words):
        IntGraph(changed(OTHERS, name, **fields), OTHERS.outputs)


def test_channels_come_last_where_there_is_another_axis() -> None:
    assert OTHERS["x"].output.source_shape == (6, 6, 2)
    assert OTHERS["x"].output.shape == GRAPH["x"].output.source_shape == (2, 6, 6)
    flat = replace(GRAPH["flat"].output, channels_last=True)
    with pytest.raises(ModelError, match="flat: only a tensor with a channel axis and others"):
        IntGraph(changed(GRAPH, "flat", output=flat), GRAPH.outputs)


def test_every_window_of_these_pools_meets_the_image() -> None:
    """A mean of no elements is no number."""
    for op in (
        int_ops.AveragePoolOfValid((2, 2), (1, 1), ((2, 0), (0, 0)), (0, 255)),
        int_ops.AveragePoolFloat32((2, 2), (2, 2), ((0, 2), (0, 0)), True, (0, 255)),
    ):
        for size in range(1, 9):
            with pytest.raises(ModelError, match=r"wholly in the padding|is declared"):
                _image(op, tensor((4, size, 5 if op.stride == (1, 1) else 3)))


def test_a_sum_of_fixed_point_numbers_stays_inside_int32() -> None:
    """The largest left shift with the largest multipliers; one bit more at the result is too much."""
    most = FixedPointMultiplier(np.full(2, 2**31 - 1, np.int32), np.zeros(2, np.int32))
    one = FixedPointMultiplier(np.array(2**31 - 1, np.int32), np.array(0, np.int32))
    fields: dict[str, Any] = {"op_left_shift": 22, "op_inputs": most, "op_output": one}
    IntGraph(changed(OTHERS, "fixed", **fields), OTHERS.outputs)
    larger = FixedPointMultiplier(one.mantissa, np.array(1, np.int32))
    with pytest.raises(BoundError, match="fixed: .* out of int32"):
        IntGraph(changed(OTHERS, "fixed", **{**fields, "op_output": larger}), OTHERS.outputs)


def _image(op: int_ops.IntOp, output: Tensor, shape: tuple[int, ...] = (4, 6, 6)) -> IntGraph:
    """``op`` alone behind an input of ``shape``."""
    nodes = (IntNode("x", int_ops.Quantize(shape), (), tensor(shape)), IntNode("op", op, ("x",), output))
    return IntGraph(nodes, ("op",))


NONE, ONE = ((0, 0), (0, 0)), (1, 1)


@pytest.mark.parametrize("op", [int_ops.Dequantize(), int_ops.Flatten(), int_ops.ArgMax(0, True)], ids=str)
def test_an_index_can_only_leave_the_network(op: Any) -> None:
    output = Tensor((1,), None, None, is_index=isinstance(op, int_ops.ArgMax))
    nodes = (
        *GRAPH.nodes,
        IntNode("after", op, ("class",), output if not isinstance(op, int_ops.Flatten) else tensor((1,))),
    )
    with pytest.raises(ModelError, match="An index has no scale: only an Embedding can take it"):
        IntGraph(nodes, ("after",))


@pytest.mark.parametrize("entry", [-1, 2**30 + 1])
def test_exponentials_out_of_their_bounds_are_found(entry: int) -> None:
    table = np.array(GRAPH["shares"].op.table)  # type: ignore[union-attr]
    table[7] = entry
    with pytest.raises(BoundError, match="shares: exponentials must be in"):
        IntGraph(changed(GRAPH, "shares", op_table=table), ("output",))
    with pytest.raises(BoundError, match="the first at least 1, got .* the first 0"):
        IntGraph(changed(GRAPH, "shares", op_table=np.zeros(256, np.int32)), ("output",))


@pytest.mark.parametrize(("size", "fits"), [(53, True), (54, False)])  # (k (k + 1))**2 * 255 against 2**31 - 1
def test_uneven_windows_whose_common_area_is_too_large_are_found(size: int, fits: bool) -> None:
    """Three windows over 3 k - 1 rows have k, k + 1 and k rows."""
    rows = 3 * size - 1
    output = tensor((1, 3, 3))
    op = int_ops.AdaptiveAveragePool2d((3, 3), requantizer(1e-6, output))
    nodes = (
        IntNode("x", int_ops.Quantize((1, rows, rows)), (), tensor((1, rows, rows), zero_point=0)),
        IntNode("op", op, ("x",), output),
    )
    assert common_area(rows, rows, (3, 3)) == (size * (size + 1)) ** 2
    if fits:
        IntGraph(nodes, ("op",))
    else:
        with pytest.raises(BoundError, match=r"op: windows .* common multiple 8,820,900.*divides the input size"):
            IntGraph(nodes, ("op",))


def test_windows_on_a_sequence_have_height_one() -> None:
    op = int_ops.MaxPool2d((2, 2), (2, 2), NONE, ONE, False)
    with pytest.raises(ModelError, match="on a sequence .* height 1"):
        _image(op, tensor((4, 3)), (4, 6))
    with pytest.raises(ModelError, match="a sequence .* has no rows to pad"):
        _image(int_ops.Pad(((1, 0), (0, 0))), tensor((4, 6)), (4, 6))
    flat = int_ops.MaxPool2d((1, 2), (1, 2), NONE, ONE, False)
    assert _image(flat, tensor((4, 3)), (4, 6))["op"].output.shape == (4, 3)


@pytest.mark.parametrize(
    "op",
    [
        int_ops.MaxPool2d((2, 2), (0, 1), NONE, ONE, False),
        int_ops.MaxPool2d((2, 2), (-1, -1), NONE, ONE, False),
        int_ops.MaxPool2d((0, 2), ONE, NONE, ONE, False),
        int_ops.MaxPool2d((2, 2), ONE, ((-1, 2), (0, 0)), ONE, False),
        int_ops.MaxPool2d((2, 2), ONE, ((2, 0), (0, 0)), ONE, False),
        int_ops.MaxPool2d((2, 2), ONE, NONE, (1, 0), False),
        int_ops.AveragePool2d((2, 2), (1, 0), NONE, requantizer(0.1, tensor((1,)))),
        int_ops.Conv2d(
            weights((4, 4, 1, 1)), np.zeros(4, np.int32), requantizer(0.1, tensor((1,))), (0, 1), NONE, ONE, 1
        ),
        int_ops.Conv2d(weights((4, 4)), np.zeros(4, np.int32), requantizer(0.1, tensor((1,))), ONE, NONE, ONE, 1),
        int_ops.Linear(weights((6, 6, 1, 1)), np.zeros(6, np.int32), requantizer(0.1, tensor((1,)))),
    ],
    ids=lambda op: type(op).__name__,
)
def test_a_window_that_would_leave_its_input_is_found(op: Any) -> None:
    """Kernels check no bounds, so the graph must: for every output shape that the operation might claim."""
    for height in range(1, 9):
        for width in range(1, 9):
            with pytest.raises(ModelError, match=r"^op: "):
                _image(op, tensor((4, height, width)))


@pytest.mark.parametrize(
    "op",
    [
        int_ops.MaxPool2d((2, 2), (2, 2, 2), NONE, ONE, False),
        int_ops.MaxPool2d((2, 2, 1), ONE, NONE, ONE, False),
        int_ops.MaxPool2d((2, 2), ONE, NONE, (1, 1, 1), False),
        int_ops.AveragePool2d((2, 2), ONE, (*NONE, (0, 0)), requantizer(0.1, tensor((1,)))),  # type: ignore[arg-type]
        int_ops.AdaptiveAveragePool2d((1, 1, 1), requantizer(0.1, tensor((1,)))),  # type: ignore[arg-type]
        int_ops.UpsampleNearest2d((1, 2, 2)),  # type: ignore[arg-type]
    ],
    ids=lambda op: type(op).__name__,
)
def test_a_window_has_two_axes(op: Any) -> None:
    """What zip and indexing would pass over, and a kernel would trip over."""
    for shape in ((4, 5, 5), (4, 6, 6), (4, 2, 2), (4, 12, 12)):
        with pytest.raises(ModelError, match=r"^op: .*two (axes|factors)"):
            _image(op, tensor(shape))


def test_an_activation_has_one_scale() -> None:
    spec = QuantSpec(8, signed=False, symmetric=False, granularity=PerAxis(0))
    many = Tensor((2, 6, 6), spec, QParams(np.ones(2, np.float32), np.zeros(2, np.int32)))
    with pytest.raises(ModelError, match="an activation has one scale"):
        IntGraph((IntNode("x", int_ops.Quantize((2, 6, 6)), (), many),), ("x",))


def test_weights_have_scales_along_the_output_axis() -> None:
    old = GRAPH["fc"].op.weight  # type: ignore[union-attr]
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(1))
    turned = QTensor(old.values, QParams(np.ones(8, np.float32), np.zeros(8, np.int32)), spec)
    with pytest.raises(ModelError, match="scales per output channel"):
        IntGraph(changed(GRAPH, "fc", op_weight=turned), ("output",))


def test_concatenated_images_have_one_size() -> None:
    output = tensor((8, 6, 6))
    parts = int_ops.Concat((requantizer(1.0, output), requantizer(1.0, output)))
    nodes = (*GRAPH.nodes[:3], IntNode("both", parts, ("conv", "pool"), output))
    with pytest.raises(ModelError, match="the same height and width"):
        IntGraph(nodes, ("both",))


# Bounds


def test_a_sum_that_may_leave_int32_is_found() -> None:
    op: Any = GRAPH["fc"].op
    most = 2**31 - 1 - 8 * 252  # eight weights of +-1, inputs 0..255 with zero point 3
    for bias in (most, -most):
        IntGraph(changed(GRAPH, "fc", op_bias=np.array([0, bias, 0], np.int32)), ("output",))
    for bias in (most + 1, -most - 1):
        with pytest.raises(BoundError, match=r"^fc: the accumulator of output channel 1 can reach 2,147,483,648"):
            IntGraph(changed(GRAPH, "fc", op_bias=np.array([0, bias, 0], np.int32)), ("output",))
    assert op.weight.spec.is_binary


def test_the_bound_takes_zero_points_of_weights_away() -> None:
    spec = QuantSpec(8, signed=False, symmetric=False)
    offset = QTensor(np.zeros((3, 8), np.uint8), QParams(np.float32(1), np.int32(255)), spec)
    most = 2**31 - 1 - 8 * 255 * 252
    IntGraph(changed(GRAPH, "fc", op_weight=offset, op_bias=np.full(3, most, np.int32)), ("output",))
    with pytest.raises(BoundError, match="fc"):
        IntGraph(changed(GRAPH, "fc", op_weight=offset, op_bias=np.full(3, most + 1, np.int32)), ("output",))


@pytest.mark.parametrize(("size", "fits"), [(2901, True), (2902, False)])  # size**2 * 255 against 2**31 - 1
def test_a_window_that_may_leave_int32_is_found(size: int, fits: bool) -> None:
    shape = (1, size, size)
    output = tensor((1, 1, 1))
    nodes = (
        IntNode("x", int_ops.Quantize(shape), (), tensor(shape, zero_point=0)),
        IntNode(
            "mean",
            int_ops.AveragePool2d((size, size), (size, size), NONE, requantizer(1 / size**2, output)),
            ("x",),
            output,
        ),
    )
    if fits:
        assert IntGraph(nodes, ("mean",))["mean"].output.shape == (1, 1, 1)
    else:
        with pytest.raises(BoundError, match=r"^mean: a window of \(2902, 2902\)"):
            IntGraph(nodes, ("mean",))


@pytest.mark.parametrize("rule", RoundingRule)
def test_a_graph_may_have_any_rule(rule: RoundingRule) -> None:
    assert str(every_operation(rule)).count(f"{rule.value} clamp") == 9
