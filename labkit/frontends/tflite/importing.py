"""`read_tflite`: from a TFLite file to an integer network under labkit's own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from labkit.errors import LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.onnx.tensors import read_regular_file
from labkit.frontends.tflite import elementwise, layers, layout, products
from labkit.frontends.tflite.file import LARGEST_FILE, FileOperator, read_file
from labkit.frontends.tflite.network import Network
from labkit.graph.ir import IntGraph

__all__ = ["SUPPORTED", "read_tflite", "read_tflite_bytes"]

SUPPORTED: Mapping[str, Callable[[Network, FileOperator], None]] = MappingProxyType(
    {
        "ADD": elementwise.sum_or_difference,
        "ARG_MAX": elementwise.arg_max,
        "AVERAGE_POOL_2D": layers.average_pool,
        "BATCH_MATMUL": products.batch_matmul,
        "CONCATENATION": layout.concatenate,
        "CONV_2D": layers.convolution,
        "DEPTHWISE_CONV_2D": layers.depthwise,
        "DEQUANTIZE": elementwise.dequantize,
        "EXPAND_DIMS": layout.reshape,
        "FULLY_CONNECTED": layers.fully_connected,
        "GELU": elementwise.function,
        "LOGISTIC": elementwise.function,
        "MAX_POOL_2D": layers.max_pool,
        "MEAN": layers.mean,
        "MUL": elementwise.multiply,
        "PAD": layout.pad,
        "PADV2": layout.pad_with_lowest,
        "QUANTIZE": elementwise.quantize,
        "RELU": elementwise.function,
        "RELU6": elementwise.function,
        "RELU_N1_TO_1": elementwise.function,
        "RESHAPE": layout.reshape,
        "RESIZE_NEAREST_NEIGHBOR": layout.resize,
        "SOFTMAX": elementwise.shares,
        "SQUEEZE": layout.reshape,
        "SUB": elementwise.sum_or_difference,
        "TANH": elementwise.function,
        "TRANSPOSE": layout.transpose,
    }
)
"""The operators that are read, each with the function that makes its nodes."""


def read_tflite(path: str | Path) -> IntGraph:
    """The integer network in the ``.tflite`` file at ``path``, under labkit's own rules.

    Its tensors have the names of the file's, with a point for a slash and an underscore for what else no file name may have.
    ``notes["tflite"]["tensors"]`` says by node which tensor of the file it is. Images come last to first: (N, H, W, C).

    Raises
    ------
    ModelError
        There is no such file, or it is damaged, of another kind, or its parts do not fit.
    UnsupportedOperation
        The file holds real numbers, or an operator that is not one of `SUPPORTED`, or one in a form that is not.
    """
    data = read_regular_file(Path(path), str(path), limit=LARGEST_FILE, suffix=".tflite")
    return read_tflite_bytes(data, str(path))


def read_tflite_bytes(data: bytes, name: str = "the data") -> IntGraph:
    """The integer network in ``data``, the bytes of a TFLite file called ``name`` in errors.

    Raises
    ------
    ModelError, UnsupportedOperation
        As `read_tflite`.
    """
    try:
        file = read_file(data)
        net = Network(file)
        for op in file.operators:
            if op.code not in SUPPORTED:
                raise UnsupportedOperation(
                    f"{op.code} for {net.title(op)} is not supported. Supported are {', '.join(SUPPORTED)}."
                )
            SUPPORTED[op.code](net, op)
        return net.graph()
    except UnsupportedOperation as error:
        raise UnsupportedOperation(f"{name}: {error}") from error
    except LabkitError as error:
        raise ModelError(f"{name} does not hold a sound TFLite network. {error}") from error
    except Exception as error:  # whatever a hostile file provokes, the file is at fault
        raise ModelError(
            f"{name} does not hold a sound TFLite network ({type(error).__name__}: {error}). Convert the network again."
        ) from error
