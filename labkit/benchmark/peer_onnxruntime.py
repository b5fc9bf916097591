"""onnxruntime as a peer: static int8 with unsigned or signed activations, and float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from labkit.benchmark.onnx_models import float_model, integer_model
from labkit.benchmark.peers import Peer
from labkit.graph.ir import IntGraph

if TYPE_CHECKING:
    from labkit.benchmark.nets import Subject

__all__ = ["MAKERS", "float32", "int8_signed", "int8_unsigned"]


def int8_unsigned(subject: Subject, graph: IntGraph, threads: int) -> Peer:
    """``graph`` with uint8 activations and int8 weights ("u8s8") on ``threads`` threads; ``subject`` is not looked at.

    Raises
    ------
    UnsupportedOperation
        From `integer_model`.
    """
    return _integer_peer("onnxruntime int8", "QOperator, u8s8, from labkit's integers", graph, False, threads)


def int8_signed(subject: Subject, graph: IntGraph, threads: int) -> Peer:
    """``graph`` with int8 activations ("s8s8") on ``threads`` threads, which never saturates; ``subject`` as above.

    Raises
    ------
    UnsupportedOperation
        From `integer_model`.
    """
    return _integer_peer("onnxruntime int8 s8s8", "QOperator, s8s8, from labkit's integers", graph, True, threads)


def float32(subject: Subject, graph: IntGraph, threads: int) -> Peer:
    """The float network of ``subject``, batch norm folded, on ``threads`` threads; of ``graph`` only the shape is used.

    Raises
    ------
    UnsupportedOperation
        From `float_model`.
    """
    from labkit.frontends.torch_fx import from_torch
    from labkit.graph.passes import simplify

    model = float_model(simplify(from_torch(subject.module, graph[graph.inputs[0]].output.shape)))
    return Peer("onnxruntime fp32", "batch norm folded", _runner(_session(model, threads)))


MAKERS: tuple[Callable[..., Peer], ...] = (int8_unsigned, int8_signed, float32)


def _integer_peer(name: str, what: str, graph: IntGraph, signed: bool, threads: int) -> Peer:
    model = integer_model(graph, signed)
    session = _session(model, threads)
    return Peer(name, what, _runner(session), lambda x: _trace(model, graph, signed, x), is_best=not signed)


def _session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _runner(session: onnxruntime.InferenceSession) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    (taken,) = (value.name for value in session.get_inputs())
    (given,) = (value.name for value in session.get_outputs())

    def run(x: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run([given], {taken: x})[0]
        return result

    return run


def _trace(model: onnx.ModelProto, graph: IntGraph, signed: bool, x: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
    """Every node's integers, in the numbers of ``graph``: a second session hands out what is otherwise inside."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [node.name for node in graph if node.output.spec is not None]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = _session(shown, 1)
    results = session.run(names, {session.get_inputs()[0].name: x})
    integers = {}
    for name, result in zip(names, results, strict=True):
        spec, _ = graph[name].output.quantized
        shift = 128 if signed and not spec.signed else 0
        integers[name] = (result.astype(np.int16) + shift).astype(spec.dtype)
    return integers
