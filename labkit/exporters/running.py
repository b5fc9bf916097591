"""What onnxruntime and LiteRT make of an exported file: the tensors of the network's nodes, in the network's own numbers.

A file holds some integers shifted by 128, and TFLite has the channel axis last: both are undone here, so that the results
can be compared with those of `IntegerNet.trace` as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, ModelError
from labkit.exporters.onnx_file import onnx_package
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, Tensor

__all__ = ["RESOLVERS", "run_onnx", "run_tflite"]

Arrays = Mapping[str, NDArray[Any]]
RESOLVERS = {"litert": "BUILTIN_REF", "xnnpack": "AUTO", "litert-opt": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
"""The runtimes of LiteRT by the names of `labkit.runtimes.rules.RUNTIMES`, and what each is called there."""


def run_onnx(content: bytes, graph: IntGraph, inputs: Arrays, optimised: bool = True) -> dict[str, NDArray[Any]]:
    """The result of each node of ``graph`` that onnxruntime shows.

    Parameters
    ----------
    content : the ONNX file of ``graph``
    graph : the network
    inputs : [N, ...] by input name, as `IntegerNet.run` takes them
    optimised : as onnxruntime runs a file when it is told nothing; False: each operator as it stands there

    Returns
    -------
    arrays by the names of nodes, in the layout (N, C, H, W) and the dtype of the node's tensor

    Raises
    ------
    ModelError
        onnx or onnxruntime is not installed.
    """
    onnx = onnx_package()
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"onnxruntime is needed to run an ONNX file ({error}). Install it: pip install 'labkit[parity]'."
        ) from error
    model = onnx.load_from_string(content)
    values = {value for node in model.graph.node for value in node.output}
    shown = {value.name for value in model.graph.output}
    names = {node.name: name for node in graph if (name := _onnx_value(graph, node.name)) in values}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values() if name not in shown)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in session.get_inputs()}
    given = {name: _entering(graph[name].output, x, kinds[name] == "tensor(int8)") for name, x in inputs.items()}
    results = session.run(list(names.values()), given)
    return {name: _leaving(graph[name].output, result) for name, result in zip(names, results, strict=True)}


def _onnx_value(graph: IntGraph, name: str) -> str:
    """The value of the file that holds the node's integers: those of a border have a name of their own."""
    borders = int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero
    return f"{name}:integers" if isinstance(graph[name].op, borders) else name


def run_tflite(content: bytes, graph: IntGraph, inputs: Arrays, runtime: str = "litert") -> dict[str, NDArray[Any]]:
    """The result of each node of ``graph`` that LiteRT shows.

    Parameters
    ----------
    content : the TFLite file of ``graph``
    graph : the network
    inputs : [N, C, H, W] or [N, ...] by input name: real numbers or integers, as the network takes them
    runtime : one of `RESOLVERS`; XNNPACK keeps to itself what is between its operators, so that only some tensors are right

    Returns
    -------
    arrays by the names of nodes, in the layout (N, C, H, W) and the dtype of the node's tensor; of XNNPACK only the outputs

    Raises
    ------
    InputError
        There is no such runtime.
    ModelError
        LiteRT is not installed.
    """
    if runtime not in RESOLVERS:
        raise InputError(f"LiteRT runs a file as one of {', '.join(RESOLVERS)}, got {runtime!r}.")
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ModelError(
            f"LiteRT is needed to run a TFLite file ({error}). Install it: pip install 'labkit[parity]'."
        ) from error
    shows_all = runtime == "litert"
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=getattr(OpResolverType, RESOLVERS[runtime]),
        experimental_preserve_all_tensors=shows_all,
        num_threads=1,
    )
    images = len(next(iter(inputs.values())))
    for given in interpreter.get_input_details():
        interpreter.resize_tensor_input(given["index"], (images, *given["shape"][1:]))
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        tensor = graph[given["name"]].output
        array = _entering(tensor, inputs[given["name"]], given["dtype"] == np.int8)
        interpreter.set_tensor(given["index"], np.ascontiguousarray(np.moveaxis(array, 1, -1)))
    interpreter.invoke()
    places = {value["name"]: value["index"] for value in interpreter.get_output_details()}
    if shows_all:
        places |= {value["name"]: value["index"] for value in interpreter.get_tensor_details() if value["name"]}
    results = {}
    for node in graph:
        names = (f"{node.name}:integers", f"{node.name}:image", f"{node.name}:last", node.name)
        found = next((name for name in names if name in places), None)
        if found is None or (found == node.name and isinstance(node.op, int_ops.Quantize)):
            continue
        if isinstance(node.op, int_ops.Flatten) and node.name not in graph.outputs:
            continue  # the file may flatten in another order
        array = interpreter.get_tensor(places[found])
        if not node.output.is_index:
            array = _channels_first(node.output, array)
        results[node.name] = _leaving(node.output, array)
    return results


def _channels_first(tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2 + len(tensor.shape):  # a sequence with its row
        array = array[:, 0]
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def _entering(tensor: Tensor, array: NDArray[Any], signed: bool) -> NDArray[Any]:
    """``array`` as the file takes it: integers as int8 (``signed``) or uint8."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    wanted = np.dtype(np.int8 if signed else np.uint8)
    shift = int(np.iinfo(wanted).min) - int(np.iinfo(tensor.dtype).min)
    return (array.astype(np.int16) + shift).astype(wanted)


def _leaving(tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """``array`` of the file in the dtype of ``tensor``."""
    if tensor.spec is None:
        return array
    shift = int(np.iinfo(tensor.dtype).min) - int(np.iinfo(array.dtype).min)
    return (array.astype(np.int16) + shift).astype(tensor.dtype)
