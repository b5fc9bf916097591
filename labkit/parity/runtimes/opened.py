"""`open_runtime`: a runtime by its name, ready to run a net and to show the tensors of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet
from labkit.runtimes.rules import RUNTIMES

__all__ = ["LITERT", "TORCH", "Opened", "open_runtime"]

Arrays = dict[str, NDArray[Any]]
TORCH = ("fbgemm", "qnnpack", "onednn")
LITERT = ("litert", "litert-opt", "xnnpack")


@dataclass(frozen=True, eq=False)
class Opened:
    """A runtime with a net in it.

    title : what it is, in words
    run : from inputs by name, in the net's own types and layout, to the tensors that the runtime shows, by node
    versions : of the runtime and what it rests on
    remarks : sentences that a certificate shall carry
    """

    title: str
    run: Callable[[Mapping[str, NDArray[Any]]], Arrays]
    versions: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def open_runtime(runtime: str, net: IntegerNet, plain: IntGraph, path: Path | None = None) -> Opened:
    """``runtime``, one of `labkit.runtimes.rules.RUNTIMES`, with ``net``.

    ``plain`` is the graph of ``net`` before its rules were changed (`prepared_for`). ``path`` is the .tflite or .onnx file from
    which the net was read; where the runtime needs a file of another kind, the net is exported to it.

    Raises
    ------
    InputError
        There is no such runtime.
    UnsupportedOperation
        The runtime has no such operation, or the net cannot be exported to it.
    ModelError
        The runtime is not installed.
    """
    if runtime == "labkit":
        return Opened("labkit's readable kernels", lambda x: _readable(net, x), _versions("numpy", "numba"))
    if runtime in TORCH:
        return _torch(runtime, plain)
    if runtime in LITERT:
        return _litert(runtime, net, plain, path)
    if runtime == "onnxruntime":
        return _onnxruntime(net, plain, path)
    raise InputError(f"A net can be verified against torch, {', '.join(RUNTIMES)}; got {runtime!r}.")


def _readable(net: IntegerNet, x: Mapping[str, NDArray[Any]]) -> Arrays:
    found = net.trace(dict(x), kernels="reference")
    return {node.name: found[node.name] for node in net.graph}


def _need(module: str, what: str) -> None:
    """Refuse where ``module``, which is ``what`` in words, is not installed, or not so that it can be imported."""
    try:
        import_module(module)
    except ImportError as error:
        raise ModelError(
            f"{what} is not installed, or cannot be imported ({error}). Install it: pip install 'labkit[parity]'."
        ) from error


def _torch(engine: str, graph: IntGraph) -> Opened:
    _need("torch", "PyTorch")
    from labkit.parity.runtimes.torch_engines import run_torch, versions

    def run(x: Mapping[str, NDArray[Any]]) -> Arrays:
        return _outside(graph, run_torch(graph, _inside(graph, x), engine))

    return Opened(
        f"PyTorch's {engine} engine",
        run,
        versions(),
        ("Each layer is one of PyTorch's own quantized operators, made of this net's weights, scales and biases.",),
    )


def _litert(runtime: str, net: IntegerNet, plain: IntGraph, path: Path | None) -> Opened:
    _need("ai_edge_litert.interpreter", "LiteRT (ai-edge-litert)")
    title, versions = f"LiteRT ({runtime})", _versions("ai-edge-litert")
    if path is not None and path.suffix.lower() == ".tflite":
        return Opened(title, _tflite_file(runtime, net.graph, path.read_bytes()), versions)
    from labkit.exporters.tflite import tflite_content
    from labkit.parity.runtimes.exported import run_tflite

    content = tflite_content(plain)

    def run(x: Mapping[str, NDArray[Any]]) -> Arrays:
        return _outside(net.graph, run_tflite(content, net.graph, _inside(net.graph, x), runtime))

    return Opened(title, run, versions, ("LiteRT ran the net's export to .tflite.",))


def _tflite_file(runtime: str, graph: IntGraph, content: bytes) -> Callable[[Mapping[str, NDArray[Any]]], Arrays]:
    from labkit.frontends.onnx.names import node_names
    from labkit.frontends.tflite.file import read_file
    from labkit.parity.runtimes.litert import run_litert

    carriers = graph.carriers()
    places = {carriers[name]: index for name, index in graph.notes["tflite"]["tensors"].items() if name in carriers}
    file = read_file(content)
    names = node_names(tensor.name for tensor in file.tensors)
    entries = [names[file.tensors[index].name] for index in file.inputs]
    if set(entries) != set(graph.inputs):
        if len(entries) > 1:
            raise UnsupportedOperation(
                "A file with several real inputs cannot be verified here: which QUANTIZE takes which is not noted."
            )
        entries = list(graph.inputs)

    def run(x: Mapping[str, NDArray[Any]]) -> Arrays:
        found = run_litert(content, [np.ascontiguousarray(x[name]) for name in entries], runtime, tensors=True)
        shown = {name: found[index] for name, index in places.items() if index in found}
        return _fitting(graph, shown)

    return run


def _onnxruntime(net: IntegerNet, plain: IntGraph, path: Path | None) -> Opened:
    for module in ("onnxruntime", "onnx"):
        _need(module, module)
    from labkit.frontends.onnx.importing import IN_FLOAT
    from labkit.parity.runtimes.onnxruntime import versions

    found = {**versions(), **_versions("onnx")}
    if path is not None and path.suffix.lower() == ".onnx":
        in_float = net.graph.notes.get(IN_FLOAT, ())
        remark = f"ONNX Runtime computes these in float32, where rounding may differ: {', '.join(in_float)}."
        return Opened("ONNX Runtime", _onnx_file(net.graph, path), found, (remark,) if in_float else ())
    from labkit.exporters.onnx import onnx_bytes
    from labkit.parity.runtimes.exported import run_onnx

    signed = any(node.output.spec is not None and node.output.spec.signed for node in plain)
    style = "qoperator" if signed else "qdq"  # which would raise int8 to uint8, and so change some float32 sums
    content = onnx_bytes(plain, style)

    def run(x: Mapping[str, NDArray[Any]]) -> Arrays:
        return _outside(net.graph, run_onnx(content, net.graph, x))

    return Opened("ONNX Runtime", run, found, (f"ONNX Runtime ran the net's export to .onnx, style {style}.",))


def _onnx_file(graph: IntGraph, path: Path) -> Callable[[Mapping[str, NDArray[Any]]], Arrays]:
    from labkit.frontends.onnx.reading import read_file
    from labkit.parity.runtimes.onnxruntime import run_onnxruntime

    file = read_file(path)
    nodes = {node.name for node in graph}
    entries = [value.name for value in file.inputs if value.name not in file.constants]
    borders = graph.inputs if len(entries) == 1 else ()

    def run(x: Mapping[str, NDArray[Any]]) -> Arrays:
        given = {name: x[file.names[name]] for name in entries if file.names[name] in x}
        if len(entries) == 1 and borders:  # a real input, whose node has the name of its integers
            given = {entries[0]: x[borders[0]]}
        found = run_onnxruntime(path, given)
        return _fitting(graph, {file.names[name]: array for name, array in found.items() if file.names[name] in nodes})

    return run


def _fitting(graph: IntGraph, shown: Mapping[str, NDArray[Any]]) -> Arrays:
    """Those of the tensors ``shown`` that have the shape and type of their node."""
    return {
        name: array
        for name, array in shown.items()
        if array.shape[1:] == graph[name].output.source_shape and array.dtype == graph[name].output.dtype
    }


def _inside(graph: IntGraph, x: Mapping[str, NDArray[Any]]) -> Arrays:
    """``x`` in the layout (N, C, H, W)."""
    return {
        name: np.ascontiguousarray(np.moveaxis(array, -1, 1)) if graph[name].output.channels_last else array
        for name, array in x.items()
    }


def _outside(graph: IntGraph, results: Mapping[str, NDArray[Any]]) -> Arrays:
    """Those of ``results`` that are nodes of ``graph``, in the layout of the net's source."""
    last = {node.name: node.output.channels_last for node in graph}
    return {
        name: np.ascontiguousarray(np.moveaxis(array, 1, -1)) if last[name] else array
        for name, array in results.items()
        if name in last
    }


def _versions(*packages: str) -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in packages}
