"""The rules of onnxruntime by hand-made numbers; that onnxruntime itself computes so: tests/parity/onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from labkit.arithmetic.affine import QParams, QTensor, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import ModelError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.runtimes.labkit_rules import add, requantizer, softmax
from labkit.runtimes.onnxruntime import softmax_float32
from labkit.runtimes.rules import as_run_by

U8 = QuantSpec(8, signed=False, symmetric=False)


def tensor(shape: tuple[int, ...], scale: float, zero_point: int = 0, spec: QuantSpec = U8) -> Tensor:
    return Tensor(shape, spec, QParams(np.array(scale, np.float32), np.array(zero_point, np.int32)))


def graph(op: Any, output: Tensor, *inputs: Tensor) -> IntGraph:
    """One operation ``y`` on integer inputs x0, x1, ..."""
    names = [f"x{i}" for i in range(len(inputs))]
    nodes = [IntNode(name, int_ops.Input(x.shape), (), x) for name, x in zip(names, inputs, strict=True)]
    return IntGraph((*nodes, IntNode("y", op, tuple(names), output)), ("y",))


def run(made: IntGraph, *arrays: list[int]) -> list[int]:
    inputs = {f"x{i}": np.array(array).reshape(1, *made[f"x{i}"].output.shape) for i, array in enumerate(arrays)}
    result = IntegerNet(made).run(inputs, kernels="reference")
    return [int(value) for value in result.reshape(-1)]


def test_layers_round_ties_to_even() -> None:
    weight = QTensor(np.eye(4, dtype=np.int8), QParams(np.float32(0.5), np.int32(0)), QuantSpec(8))  # type: ignore[arg-type]
    x, y = tensor((4,), 1.0), tensor((4,), 1.0, 3)
    own = graph(int_ops.Linear(weight, np.zeros(4, np.int32), requantizer(0.5, y)), y, x)
    theirs = as_run_by(own, "onnxruntime")
    assert run(own, [1, 2, 3, 5]) == [4, 4, 5, 6]
    assert run(theirs, [1, 2, 3, 5]) == [3, 4, 5, 5]
    assert theirs.notes["like"] == "onnxruntime"


def test_sums_and_products_round_with_the_zero_point_inside() -> None:
    a, y = tensor((3,), 0.5), tensor((3,), 1.0, 3)
    theirs = as_run_by(graph(add((a, a), y), y, a, a), "onnxruntime")
    assert run(theirs, [1, 3, 5], [0, 0, 0]) == [4, 4, 6]  # 3.5, 4.5, 5.5
    theirs = as_run_by(graph(int_ops.Multiply(requantizer(0.25, y)), y, a, a), "onnxruntime")
    assert run(theirs, [2, 6, 10], [1, 1, 1]) == [4, 4, 6]


def test_pool_over_the_whole_image_has_other_ties_than_a_window() -> None:
    x, y = tensor((1, 1, 2), 1.0), tensor((1, 1, 1), 1.0, 3)
    whole = graph(int_ops.AveragePool2d((1, 2), (1, 1), ((0, 0), (0, 0)), requantizer(0.5, y)), y, x)
    theirs = as_run_by(whole, "onnxruntime")
    assert isinstance(theirs["y"].op, int_ops.AveragePool2d)
    assert run(theirs, [0, 1]) == [3]  # 0.5 to 0, and the zero point
    x = tensor((1, 1, 3), 1.0)
    part = graph(int_ops.AveragePool2d((1, 2), (1, 2), ((0, 0), (0, 0)), requantizer(0.5, y)), y, x)
    theirs = as_run_by(part, "onnxruntime")
    assert isinstance(theirs["y"].op, int_ops.AveragePoolFloat32)
    assert run(theirs, [0, 1, 9]) == [4]  # 3.5 to 4


def test_adaptive_pool_is_a_window_or_refused() -> None:
    x, y = tensor((1, 4, 6), 1.0), tensor((1, 2, 3), 1.0)
    even = graph(int_ops.AdaptiveAveragePool2d((2, 3), requantizer(0.25, y)), y, x)
    op = as_run_by(even, "onnxruntime")["y"].op
    assert isinstance(op, int_ops.AveragePoolFloat32)
    assert (op.kernel, op.stride) == ((2, 2), (2, 2))
    y = tensor((1, 3, 3), 1.0)
    uneven = graph(int_ops.AdaptiveAveragePool2d((3, 3), requantizer(1 / 8, y)), y, x)
    with pytest.raises(UnsupportedOperation, match="y.*two sizes"):
        as_run_by(uneven, "onnxruntime")


def test_concat_changes_scales_by_tables_before_it() -> None:
    a, b, y = tensor((1, 2), 0.1), tensor((1, 2), 1.0), tensor((2, 2), 1.0)
    joined = graph(int_ops.Concat((requantizer(0.1, y), requantizer(1.0, y))), y, a, b)
    theirs = as_run_by(joined, "onnxruntime")
    assert [node.name for node in theirs] == ["x0", "x1", "y.part0", "y"]
    # 5 and 15 tenths: float32 makes the ties 0.5 and 1.5 of them, or not, and rounds to even
    expected = [int(np.rint(np.float32(q) * np.float32(0.1) / np.float32(1))) for q in (5, 15)]
    assert run(theirs, [5, 15], [7, 8]) == [*expected, 7, 8]


def test_clamps_stay_with_the_operation() -> None:
    x, y = tensor((1,), 1.0), tensor((1,), 0.5)
    clamped = graph(int_ops.Requantize(replace(requantizer(2.0, y), clamp=(3, 9))), y, x)
    theirs = as_run_by(clamped, "onnxruntime")
    assert [run(theirs, [q]) for q in (0, 2, 200)] == [[3], [4], [9]]
    again = as_run_by(theirs, "labkit")
    assert [run(again, [q]) for q in (0, 2, 200)] == [[3], [4], [9]]


def test_softmax_of_equal_numbers_and_of_one_that_stands_out() -> None:
    x, y = tensor((4,), 0.5), tensor((4,), 1 / 256)
    theirs = as_run_by(graph(softmax(0, x, y), y, x), "onnxruntime")
    assert isinstance(theirs["y"].op, int_ops.SoftmaxFloat32)
    assert run(theirs, [7, 7, 7, 7]) == [64, 64, 64, 64]
    assert run(theirs, [255, 0, 0, 0]) == [255, 0, 0, 0]
    with pytest.raises(ModelError, match="1/65536 to 1"):
        softmax_float32(0, x, tensor((4,), 2.0))


def test_what_onnxruntime_has_not() -> None:
    x, y = tensor((3,), 0.5), tensor((3,), 1.0, 128)
    with pytest.raises(UnsupportedOperation, match="y.*no subtraction"):
        as_run_by(graph(add((x, x), y, subtracts=True), y, x, x), "onnxruntime")
    logistic = int_ops.Lookup("logistic", np.zeros(256, np.int32))
    with pytest.raises(UnsupportedOperation, match="y.*logistic"):
        as_run_by(graph(logistic, y, x), "onnxruntime")


def test_rules_are_made_from_scales_alone() -> None:
    """Whatever rules a graph had before, those of onnxruntime come out the same."""
    weight = QTensor(np.eye(4, dtype=np.int8), QParams(np.float32(0.3), np.int32(0)), QuantSpec(8))  # type: ignore[arg-type]
    x, y = tensor((4,), 0.1), tensor((4,), 0.7, 3)
    multiplier = float(np.float32(0.1)) * float(np.float32(0.3)) / float(np.float32(0.7))
    own = graph(int_ops.Linear(weight, np.arange(4, dtype=np.int32), requantizer(multiplier, y)), y, x)
    once = as_run_by(own, "onnxruntime")
    twice = as_run_by(as_run_by(once, "labkit"), "onnxruntime")
    for made in (once, twice):
        op = made["y"].op
        assert isinstance(op, int_ops.Linear)
        assert op.requantizer.rule is RoundingRule.FLOAT32_EVEN
        assert op.requantizer.multiplier == np.float32(0.1) * np.float32(0.3) / np.float32(0.7)
        assert op.bias.tolist() == [0, 1, 2, 3]
