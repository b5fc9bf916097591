"""An `IntGraph` as a TFLite file that LiteRT computes in int8."""

from __future__ import annotations

from pathlib import Path

from labkit.exporters.own_rules import under_own_rules
from labkit.exporters.tflite_form import held_by_tflite
from labkit.exporters.tflite_nodes import TfliteNodes
from labkit.files import write_atomically
from labkit.graph.ir import IntGraph

__all__ = ["tflite_content", "write_tflite"]


def write_tflite(graph: IntGraph, path: str | Path) -> None:
    """Write ``graph`` to the TFLite file ``path``, whole or not at all; see `tflite_content`.

    Raises
    ------
    UnsupportedOperation
        TFLite cannot hold one of the operations.
    ModelError
        The packages that write the file are not installed.
    OutputError
        The file cannot be written.
    """
    write_atomically(path, tflite_content(graph))


def tflite_content(graph: IntGraph) -> bytes:
    """The TFLite file of ``graph``: int8, the channel axis last, for one image and resizable.

    The same graph gives the same bytes.

    Raises
    ------
    UnsupportedOperation
        TFLite cannot hold one of the operations.
    ModelError
        The packages that write the file are not installed.
    """
    from labkit import __version__

    held = held_by_tflite(under_own_rules(graph))
    nodes = TfliteNodes(held)
    for node in held:
        nodes.write(node)
    return nodes.finish(f"labkit {__version__}, like {graph.notes.get('like', 'labkit')}")
