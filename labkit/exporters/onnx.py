"""An `IntGraph` as an ONNX file that onnxruntime computes in integers."""

from __future__ import annotations

from pathlib import Path

from labkit.errors import InputError, UnsupportedOperation
from labkit.exporters.onnx_nodes import OnnxNodes
from labkit.exporters.onnx_values import QDQ, QOPERATOR
from labkit.exporters.own_rules import under_own_rules
from labkit.files import write_atomically
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode

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
    for node in held:
        _check_tensor(node)
    nodes = OnnxNodes(held, style)
    for node in held:
        nodes.write(node)
    notes = {"labkit_style": style, "labkit_like": str(graph.notes.get("like", "labkit"))}
    return nodes.finish(__version__, notes)


def _check_tensor(node: IntNode) -> None:
    """Refuse what would be written as something else: a tensor of 16 bits as one of 8, indices as numbers with a scale."""
    if node.output.spec is not None and node.output.spec.is_wide:
        raise UnsupportedOperation(
            f"{node.name}: activations of 16 bits cannot be exported to ONNX: the integer operators of onnxruntime that labkit "
            f"knows take 8. Save the net as .lab and run it with labkit."
        )
    if isinstance(node.op, int_ops.Input) and node.output.is_index:
        raise UnsupportedOperation(
            f"{node.name}: indices cannot be exported to ONNX: no operator of onnxruntime that labkit knows looks rows up and "
            f"rescales them in integers. Save the net as .lab and run it with labkit."
        )
