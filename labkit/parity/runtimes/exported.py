"""What onnxruntime and LiteRT make of an exported file: the tensors of the network's nodes, in the network's own numbers.

A file holds some integers shifted by 128, and TFLite has the channel axis last: both are undone here, so that the results
can be compared with those of `IntegerNet.trace` as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.exporters.onnx_file import onnx_package
from labkit.frontends.tflite.file import with_every_output
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, Tensor
from labkit.parity.runtimes.litert import interpreter_of
from labkit.parity.runtimes.onnxruntime import session_of

__all__ = ["run_onnx", "run_tflite"]

Arrays = Mapping[str, NDArray[Any]]


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
    model = onnx.load_from_string(content)
    values = {value for node in model.graph.node for value in node.output}
    shown = {value.name for value in model.graph.output}
    names = {node.name: name for node in graph if (name := _onnx_value(graph, node.name)) in values}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values() if name not in shown)
    session = session_of(model.SerializeToString(), "the exported file", optimised)
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

    What the file puts out comes from the file itself; everything between from one in which every tensor is an output, since
    LiteRT shows no others.

    Parameters
    ----------
    content : the TFLite file of ``graph``
    graph : the network
    inputs : [N, C, H, W] or [N, ...] by input name: real numbers or integers, as the network takes them
    runtime : one of `labkit.parity.runtimes.litert.RESOLVERS`

    Returns
    -------
    arrays by the names of nodes, in the layout (N, C, H, W) and the dtype of the node's tensor

    Raises
    ------
    InputError
        There is no such runtime.
    ModelError
        LiteRT is not installed.
    """
    return {
        **_outputs_of_tflite(with_every_output(content), graph, inputs, runtime),
        **_outputs_of_tflite(content, graph, inputs, runtime),
    }


def _outputs_of_tflite(content: bytes, graph: IntGraph, inputs: Arrays, runtime: str) -> dict[str, NDArray[Any]]:
    interpreter = interpreter_of(content, runtime)
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
