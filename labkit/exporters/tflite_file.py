"""A TFLite file from a list of tensors and a list of operators: the flatbuffer and nothing that knows of networks.

    tensors = [FileTensor("x", (1, 4), "int8", scales=0.5, zero_points=3), ...]
    operators = [FileOperator("FULLY_CONNECTED", ("x", "w", "b"), ("y",), {"FusedActivationFunction": "RELU"})]
    data = tflite_bytes(tensors, operators, inputs=("x",), outputs=("y",))

Shapes and orders of axes are those of the file: NHWC, the batch axis first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.arithmetic.packing import pack_int4
from labkit.errors import ModelError, UnsupportedOperation

__all__ = ["KINDS", "OPTIONS", "FileOperator", "FileTensor", "tflite_bytes"]

KINDS: Mapping[str, Any] = {
    "float32": np.float32,
    "int32": np.int32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": np.int8,
}
"""What a tensor may hold, and the NumPy type of its ``data``; int4 is packed two numbers to a byte when it is written."""

OPTIONS: Mapping[str, str | None] = {
    "ADD": "AddOptions",
    "ARG_MAX": "ArgMaxOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": None,
    "EXPAND_DIMS": None,
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GELU": "GeluOptions",
    "LOGISTIC": None,
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": None,
    "RELU": None,
    "RELU6": None,
    "RELU_N1_TO_1": None,
    "RESHAPE": "ReshapeOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SQUEEZE": "SqueezeOptions",
    "SUB": "SubOptions",
    "TANH": None,
    "TRANSPOSE": "TransposeOptions",
}
"""The operators that can be written, each with the schema's table of its options (None: it has none)."""

# The version of each operator's int8 kernel (tflite/tools/versioning/op_version.cc); 1 where nothing stands here.
_VERSIONS = {
    **{"ARG_MAX": 2, "BATCH_MATMUL": 2, "GELU": 2, "PADV2": 2, "RESIZE_NEAREST_NEIGHBOR": 3},
    **{"ADD": 2, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2},
    **{"FULLY_CONNECTED": 4, "LOGISTIC": 2, "MAX_POOL_2D": 2, "MEAN": 2, "MUL": 2, "PAD": 2, "QUANTIZE": 2},
    **{"RELU": 2, "RELU6": 2, "SOFTMAX": 2, "SUB": 2, "TANH": 2, "TRANSPOSE": 2},
}
_INT4_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 10}
_ENUMS = {
    "OutputType": "TensorType",
    "Padding": "Padding",
    "FusedActivationFunction": "ActivationFunctionType",
}  # options that are names of an enum


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor of the file.

    name : unique in the file.
    shape : every axis in the file's order; the batch axis is 1 for a network that takes any batch.
    kind : one of `KINDS`.
    scales, zero_points : numbers, or one for each index of ``axis``; None for a tensor that is not quantized.
    data : a constant's numbers, of ``shape``; None for what is computed.
    any_batch : the first axis may be resized (the file then says -1 in the tensor's signature).
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    scales: ArrayLike | None = None
    zero_points: ArrayLike = 0
    axis: int = 0
    data: NDArray[Any] | None = None
    any_batch: bool = False


@dataclass(frozen=True, eq=False)
class FileOperator:
    """One operator: its ``code`` in the schema, names of ``inputs`` ("" for one left out) and ``outputs``, and ``options``.

    Options are called as in the schema's generated code ("StrideW", "FusedActivationFunction", "NewShape"), with names for
    enums ("SAME", "RELU"), numbers, booleans, or sequences of int32; what is left out has the schema's default.
    """

    code: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def tflite_bytes(
    tensors: Sequence[FileTensor],
    operators: Sequence[FileOperator],
    inputs: Sequence[str],
    outputs: Sequence[str],
    description: str = "labkit",
) -> bytes:
    """The TFLite file of a network.

    Parameters
    ----------
    tensors : all of them, in any order
    operators : in running order
    inputs, outputs : names of the tensors that enter and leave
    description : a line of text that the file carries

    Raises
    ------
    ModelError
        A tensor's data do not fit its shape and kind, a name stands for two tensors or for none, or the packages that write
        the file are not installed.
    QuantizationError
        A constant of kind int4 holds more than four bits.
    UnsupportedOperation
        An operator is not one of `OPTIONS`.
    """
    return _Writer(tensors).written(operators, inputs, outputs, description)


class _Writer:
    """Holds the flatbuffer that is being built, and the index of each tensor by its name."""

    def __init__(self, tensors: Sequence[FileTensor]) -> None:
        self.tensors = tensors
        self.index = {tensor.name: number for number, tensor in enumerate(tensors)}
        if len(self.index) != len(tensors):
            raise ModelError("Two tensors of a TFLite file have the same name: every tensor needs a name of its own.")
        self.kinds = {tensor.name: tensor.kind for tensor in tensors}
        self.schema, flatbuffers = _packages()
        self.builder: Any = flatbuffers.Builder(1 << 16)

    def written(
        self, operators: Sequence[FileOperator], inputs: Sequence[str], outputs: Sequence[str], description: str
    ) -> bytes:
        codes = list(dict.fromkeys((one.code, self._version(one)) for one in operators))
        buffers = [self._buffer(None)]  # by the schema's custom the first buffer is empty
        places = []
        for tensor in self.tensors:
            places.append(0 if tensor.data is None else len(buffers))
            if tensor.data is not None:
                buffers.append(self._buffer(_stored(tensor)))
        made = [self._tensor(tensor, place) for tensor, place in zip(self.tensors, places, strict=True)]
        steps = [self._operator(one, codes.index((one.code, self._version(one)))) for one in operators]
        graph = self._table(
            "SubGraph",
            Tensors=self._offsets(made),
            Inputs=self._int32s([self._place(name) for name in inputs]),
            Outputs=self._int32s([self._place(name) for name in outputs]),
            Operators=self._offsets(steps),
            Name=self.builder.CreateString("main"),
        )
        model = self._table(
            "Model",
            Version=3,
            OperatorCodes=self._offsets([self._code(code, version) for code, version in codes]),
            Subgraphs=self._offsets([graph]),
            Description=self.builder.CreateString(description),
            Buffers=self._offsets(buffers),
        )
        self.builder.Finish(model, b"TFL3")
        return bytes(self.builder.Output())

    def _place(self, name: str) -> int:
        if name == "":
            return -1
        if name not in self.index:
            raise ModelError(f"The TFLite file has no tensor {name!r}; it has {', '.join(self.index)}.")
        return self.index[name]

    def _version(self, one: FileOperator) -> int:
        if one.code not in OPTIONS:
            raise UnsupportedOperation(f"{one.code} cannot be written to a TFLite file; {', '.join(OPTIONS)} can.")
        if one.code in _INT4_VERSIONS and self.kinds.get(one.inputs[1]) == "int4":
            return _INT4_VERSIONS[one.code]
        if one.code == "QUANTIZE" and self.kinds.get(one.inputs[0]) == "float32":
            return 1
        return _VERSIONS.get(one.code, 1)

    def _table(self, name: str, **fields: Any) -> int:
        """A table of the schema with ``fields``, whose offsets were made before."""
        getattr(self.schema, f"{name}Start")(self.builder)
        for label, value in fields.items():
            getattr(self.schema, f"{name}Add{label}")(self.builder, value)
        return int(getattr(self.schema, f"{name}End")(self.builder))

    def _code(self, code: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, code)
        old = min(number, self.schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
        return self._table("OperatorCode", DeprecatedBuiltinCode=old, Version=version, BuiltinCode=number)

    def _buffer(self, data: NDArray[np.uint8] | None) -> int:
        if data is None:
            return self._table("Buffer")
        size = len(data)
        self.builder.StartVector(1, size, 16)  # the schema aligns data to 16 bytes
        self.builder.head -= size
        self.builder.Bytes[self.builder.head : self.builder.head + size] = data.tobytes()
        return self._table("Buffer", Data=self.builder.EndVector())

    def _tensor(self, tensor: FileTensor, place: int) -> int:
        quantization = None
        if tensor.scales is not None:
            scales = np.atleast_1d(np.asarray(tensor.scales, np.float32))
            zero_points = np.broadcast_to(np.asarray(tensor.zero_points, np.int64), scales.shape)
            quantization = self._table(
                "QuantizationParameters",
                Scale=self.builder.CreateNumpyVector(scales),
                ZeroPoint=self.builder.CreateNumpyVector(np.array(zero_points)),
                QuantizedDimension=tensor.axis,
            )
        fields: dict[str, Any] = {
            "Shape": self._int32s(tensor.shape),
            "Type": getattr(self.schema.TensorType, tensor.kind.upper()),
            "Buffer": place,
            "Name": self.builder.CreateString(tensor.name),
            "HasRank": True,
        }
        if quantization is not None:
            fields["Quantization"] = quantization
        if tensor.any_batch:
            fields["ShapeSignature"] = self._int32s((-1, *tensor.shape[1:]))
        return self._table("Tensor", **fields)

    def _operator(self, one: FileOperator, code: int) -> int:
        fields: dict[str, Any] = {
            "OpcodeIndex": code,
            "Inputs": self._int32s([self._place(name) for name in one.inputs]),
            "Outputs": self._int32s([self._place(name) for name in one.outputs]),
        }
        table = OPTIONS[one.code]
        if table is not None:
            fields["BuiltinOptionsType"] = getattr(self.schema.BuiltinOptions, table)
            values = {label: self._option(label, value) for label, value in one.options.items()}
            fields["BuiltinOptions"] = self._table(table, **values)
        return self._table("Operator", **fields)

    def _option(self, label: str, value: Any) -> Any:
        if label in _ENUMS and isinstance(value, str):
            return getattr(getattr(self.schema, _ENUMS[label]), value)
        return self._int32s(value) if isinstance(value, Sequence | np.ndarray) else value

    def _int32s(self, numbers: Any) -> int:
        return int(self.builder.CreateNumpyVector(np.array(numbers, np.int32).reshape(-1)))

    def _offsets(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())


def _stored(tensor: FileTensor) -> NDArray[np.uint8]:
    """The bytes of a constant ``tensor``."""
    data = np.asarray(tensor.data)
    if tensor.kind not in KINDS or data.dtype != KINDS[tensor.kind] or data.shape != tensor.shape:
        raise ModelError(
            f"{tensor.name}: a constant of kind {tensor.kind!r} and shape {tensor.shape} was given {data.dtype} "
            f"{data.shape}. Kinds are {', '.join(KINDS)}."
        )
    if tensor.kind != "int4":
        return np.frombuffer(np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<")).tobytes(), np.uint8)
    return pack_int4(data)


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import flatbuffers
        import tflite
    except ImportError as error:
        raise ModelError(
            f"To write a TFLite file the packages tflite and flatbuffers are needed ({error}). "
            f"Install them: pip install 'labkit[parity]'."
        ) from error
    return tflite, flatbuffers
