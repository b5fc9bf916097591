"""An .onnx file run by onnxruntime, with every tensor that it can show without computing otherwise.

To show a tensor it must be made an output of the file. Integers may be shown anywhere. A real number between a
DequantizeLinear and a QuantizeLinear may not: onnxruntime would no longer fuse the operation and compute it in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, ModelError
from labkit.frontends.onnx.reading import OnnxFile, read_file

__all__ = ["INT8_OPTION", "run_onnxruntime", "session_of", "shown_tensors", "versions"]

INT8_OPTION = "session.qdqisint8allowed"
"""The session option that keeps int8 activations of a QDQ file as they are; else they may become uint8, raised by 128."""

_INTEGER_RESULTS = {"QuantizeLinear", "QGemm"}  # and QLinear...
_FOLLOW_INPUT = {
    *("Clip", "Concat", "Dropout", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "Relu"),
    *("Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"),
}  # put out integers if they take integers


def versions() -> dict[str, str]:
    """The version of onnxruntime, and whether this processor multiplies 8-bit integers without saturating at 16 bits."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, "processor with VNNI": "yes" if _has_vnni() else "no"}


def shown_tensors(file: OnnxFile) -> tuple[str, ...]:
    """Names of the tensors of ``file`` that `run_onnxruntime` gives: its outputs, and all that hold 8-bit integers."""
    integer_inputs = {value.name for value in file.inputs if value.dtype in (np.dtype(np.int8), np.dtype(np.uint8))}
    found: dict[str, None] = {}
    for node in file.nodes:
        source = node.inputs[0] if node.inputs else ""
        follows = node.kind in _FOLLOW_INPUT and (source in found or source in integer_inputs)
        if follows or node.kind in _INTEGER_RESULTS or node.kind.startswith("QLinear"):
            found[node.outputs[0]] = None
    constant = set(file.constants)
    return tuple(
        name for name in dict.fromkeys((*found, *(value.name for value in file.outputs))) if name not in constant
    )


def run_onnxruntime(
    path: str | Path, inputs: Mapping[str, NDArray[Any]], every_tensor: bool = True, optimized: bool = True
) -> dict[str, NDArray[Any]]:
    """What onnxruntime makes of ``inputs`` with the file at ``path``, on one thread of the processor.

    Parameters
    ----------
    path : the ``.onnx`` file
    inputs : [N, ...] by the file's input names, float32 or integers as declared
    every_tensor : give all tensors of `shown_tensors`, else the file's outputs only
    optimized : let onnxruntime fuse operations, as it does by default; else each node of the file runs by itself

    Returns
    -------
    arrays by the file's tensor names, in its own layout: integers in each tensor's dtype, float32 where it is real

    Raises
    ------
    ModelError
        The file cannot be read, or onnxruntime refuses it.
    InputError
        onnxruntime refuses the inputs.
    """
    import onnx

    file = read_file(path)
    names = shown_tensors(file) if every_tensor else tuple(value.name for value in file.outputs)
    model = onnx.load(str(path))
    declared = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    session = session_of(model.SerializeToString(), str(path), optimized, keeps_int8=True)
    try:
        results = session.run(list(names), dict(inputs))
    except Exception as error:
        raise InputError(f"onnxruntime cannot run {path}: {_one_line(error)}") from error
    return dict(zip(names, results, strict=True))


def session_of(content: bytes, name: str, optimized: bool = True, keeps_int8: bool = False) -> Any:
    """A session of onnxruntime with an ONNX file, on one thread of the processor.

    Parameters
    ----------
    content : the file's bytes
    name : what to call it in errors
    optimized : let onnxruntime fuse operations, as it does by default
    keeps_int8 : set `INT8_OPTION`

    Raises
    ------
    ModelError
        onnxruntime is not installed, or it refuses the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"onnxruntime is needed to run an ONNX file ({error}). Install it: pip install 'labkit[parity]'."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if keeps_int8:
        options.add_session_config_entry(INT8_OPTION, "1")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base that it exports
        raise ModelError(f"onnxruntime cannot load {name}: {_one_line(error)}") from error


def _has_vnni() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx_vnni" in flags or "avx512_vnni" in flags


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
