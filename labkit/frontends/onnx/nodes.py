"""The table of all ONNX operators that labkit can evaluate: one small function each, in the modules ``nodes_*``."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.frontends.onnx.nodes_call import Operator
from labkit.frontends.onnx.nodes_elementwise import ELEMENTWISE
from labkit.frontends.onnx.nodes_layout import LAYOUT
from labkit.frontends.onnx.nodes_microsoft import MICROSOFT_NODES
from labkit.frontends.onnx.nodes_quantized import QUANTIZED
from labkit.frontends.onnx.nodes_sums import SUMS
from labkit.frontends.onnx.nodes_windows import WINDOWS
from labkit.frontends.onnx.reading import MICROSOFT

__all__ = ["OPERATORS"]

OPERATORS: Mapping[tuple[str, str], Operator] = {
    **{
        ("", kind): operator
        for part in (ELEMENTWISE, LAYOUT, QUANTIZED, SUMS, WINDOWS)
        for kind, operator in part.items()
    },
    **{(MICROSOFT, kind): operator for kind, operator in MICROSOFT_NODES.items()},
}
