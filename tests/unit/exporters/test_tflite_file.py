"""The writer of TFLite files: what it writes is read back, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from labkit.errors import ModelError, QuantizationError, UnsupportedOperation
from labkit.exporters.tflite_file import KINDS, OPTIONS, FileOperator, FileTensor, tflite_bytes
from labkit.frontends.tflite import schema
from labkit.frontends.tflite.file import read_file

tflite = pytest.importorskip("tflite")

X, Y = (
    FileTensor("x", (1, 4), "int8", 0.5, 3, any_batch=True),
    FileTensor("y", (1, 4), "int8", 0.25, -7, any_batch=True),
)


@pytest.mark.parametrize("kind", KINDS)
def test_constants_come_back_as_they_were(kind: str) -> None:
    low, high = (-8, 8) if kind == "int4" else (0, 100) if kind == "uint8" else (-100, 100)
    data = np.random.default_rng(1).integers(low, high, (3, 5)).astype(KINDS[kind])
    scales = np.array([0.5, 0.25, 0.1], np.float32)
    constant = FileTensor("c", (3, 5), kind, scales, 0, 0, data)
    file = read_file(tflite_bytes([X, Y, constant], [FileOperator("ADD", ("x", "c"), ("y",))], ("x",), ("y",)))
    tensor = file.tensors[2]
    np.testing.assert_array_equal(tensor.values(file.work), data)
    np.testing.assert_array_equal(tensor.scales, scales)
    assert (tensor.kind, tensor.shape, tensor.axis) == (kind, (3, 5), 0)
    assert (file.tensors[0].scales.tolist(), file.tensors[0].zero_points.tolist()) == ([0.5], [3])
    assert (file.inputs, file.outputs, file.operators[0].inputs) == ((0,), (1,), (0, 2))


@pytest.mark.parametrize("code", sorted(set(OPTIONS) & set(schema.OPTIONS)))
def test_each_table_of_options_has_the_number_of_the_package(code: str) -> None:
    table = OPTIONS[code]
    assert table is not None
    assert schema.OPTIONS[code][0] == getattr(tflite.BuiltinOptions, table)


def test_a_window_is_read_as_it_was_written() -> None:
    options = {
        "Padding": "VALID",
        "StrideW": 2,
        "StrideH": 3,
        "FilterWidth": 4,
        "FilterHeight": 5,
        "FusedActivationFunction": "RELU6",
    }
    op = read_file(
        tflite_bytes([X, Y], [FileOperator("MAX_POOL_2D", ("x",), ("y",), options)], ("x",), ("y",))
    ).operators[0]
    assert dict(op.options) == {
        "padding": schema.PADDINGS.index("VALID"),
        "stride_w": 2,
        "stride_h": 3,
        "filter_w": 4,
        "filter_h": 5,
        "activation": schema.ACTIVATIONS.index("RELU6"),
    }


@pytest.mark.parametrize(
    ("code", "options", "name", "value"),
    [
        ("CONV_2D", {"DilationWFactor": 5}, "dilation_w", 5),
        ("CONV_2D", {"DilationHFactor": 6}, "dilation_h", 6),
        ("CONV_2D", {}, "dilation_h", 1),
        ("DEPTHWISE_CONV_2D", {"DepthMultiplier": 7}, "depth_multiplier", 7),
        ("DEPTHWISE_CONV_2D", {"DilationHFactor": 2}, "dilation_h", 2),
        ("DEPTHWISE_CONV_2D", {"DilationWFactor": 3}, "dilation_w", 3),
        ("FULLY_CONNECTED", {"WeightsFormat": 1}, "weights_format", 1),
        ("FULLY_CONNECTED", {"KeepNumDims": True}, "keep_dims", True),
        ("CONCATENATION", {"Axis": -2}, "axis", -2),
        ("MEAN", {"KeepDims": True}, "keep_dims", True),
        ("SOFTMAX", {"Beta": 0.75}, "beta", 0.75),
        ("SUB", {"FusedActivationFunction": "RELU_N1_TO_1"}, "activation", 2),
    ],
)
def test_an_option_is_read_as_it_was_written(code: str, options: Any, name: str, value: Any) -> None:
    data = tflite_bytes([X, Y], [FileOperator(code, ("x", "x"), ("y",), options)], ("x",), ("y",))
    assert read_file(data).operators[0].options[name] == value


def test_numbers_of_the_schema_are_those_of_the_package() -> None:
    assert all(getattr(tflite.BuiltinOperator, name) == number for number, name in enumerate(schema.OPERATORS))
    assert all(getattr(tflite.TensorType, name.upper()) == number for number, name in schema.TYPES.items())
    assert all(getattr(tflite.ActivationFunctionType, name) == i for i, name in enumerate(schema.ACTIVATIONS))
    assert all(getattr(tflite.Padding, name) == i for i, name in enumerate(schema.PADDINGS))


@pytest.mark.parametrize(
    ("error", "words", "tensors", "op"),
    [
        (ModelError, "Two tensors .* same name", [X, X], FileOperator("RELU", ("x",), ("y",))),
        (ModelError, "has no tensor 'z'; it has x, y", [X, Y], FileOperator("RELU", ("z",), ("y",))),
        (UnsupportedOperation, "LSTM cannot be written", [X, Y], FileOperator("LSTM", ("x",), ("y",))),
        (
            ModelError,
            r"c: a constant of kind 'int8' and shape \(3,\) was given int32 \(2,\)",
            [X, Y, FileTensor("c", (3,), "int8", 1.0, data=np.zeros(2, np.int32))],
            FileOperator("RELU", ("x",), ("y",)),
        ),
        (
            QuantizationError,
            "Four bits hold",
            [X, Y, FileTensor("c", (2,), "int4", 1.0, data=np.array([9, -9], np.int8))],
            FileOperator("RELU", ("x",), ("y",)),
        ),
    ],
)
def test_what_does_not_fit_is_refused(error: type[Exception], words: str, tensors: Any, op: FileOperator) -> None:
    with pytest.raises(error, match=words):
        tflite_bytes(tensors, [op], ("x",), ("y",))
