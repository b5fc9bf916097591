"""An `IntGraph` as an ONNX file that onnxruntime computes in integers."""

from __future__ import annotations

from pathlib import Path

from labkit.errors import InputError
from labkit.exporters.onnx_nodes import OnnxNodes
from labkit.exporters.onnx_values import QDQ, QOPERATOR
from labkit.exporters.own_rules import under_own_rules
from labkit.files import write_atomically
from labkit.graph.ir import IntGraph

__all__ = ["STYLES", "onnx_bytes", "write_onnx"]

STYLES = (QDQ, QOPERATOR)


def write_onnx(graph: IntGraph, path: str | Path, style: str = QDQ) -> None:
    """Write ``graph`` to the ONNX file ``path`` in one of `STYLES`, whole or not at all; see `onnx_bytes`.

    Raises
    ------
    InputError
        There is no such style.
    UnsupportedOperation
        ONNX cannot hold one of the operations.
    ModelError
        The package onnx is not installed, or the network is too large for one file.
    OutputError
        The file cannot be written.
    """
    write_atomically(path, onnx_bytes(graph, style))


def onnx_bytes(graph: IntGraph, style: str = QDQ) -> bytes:
    """The ONNX file of ``graph``, whose batch axis is free; the same graph gives the same bytes.

    style : "qdq" holds real operators between DequantizeLinear and QuantizeLinear, which onnxruntime fuses to integer operators
        and every other reader understands; int8 activations are held as uint8. "qoperator" holds onnxruntime's integer
        operators themselves.

    Raises
    ------
    InputError
        There is no such style.
    UnsupportedOperation
        ONNX cannot hold one of the operations.
    ModelError
        The package onnx is not installed, or the network is too large for one file.
    """
    if style not in STYLES:
        raise InputError(f"style must be one of {', '.join(STYLES)}, got {style!r}.")
    from labkit import __version__

    held = under_own_rules(graph)
    nodes = OnnxNodes(held, style)
    for node in held:
        nodes.write(node)
    notes = {"labkit_style": style, "labkit_like": str(graph.notes.get("like", "labkit"))}
    return nodes.finish(__version__, notes)
