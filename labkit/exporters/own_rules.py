"""A network as exporters take it: its scales, weights and bounds say what is computed, its rounding rules do not matter."""

from __future__ import annotations

from labkit.graph.ir import IntGraph
from labkit.runtimes.rules import as_run_by

__all__ = ["under_own_rules"]


def under_own_rules(graph: IntGraph) -> IntGraph:
    """``graph`` under labkit's own rules; one that has them already, as it is.

    A file has no room for rounding rules: the runtime that reads it has its own.

    Raises
    ------
    UnsupportedOperation
        Another runtime's rules cannot be told from its operations.
    """
    return graph if graph.notes.get("like", "labkit") == "labkit" else as_run_by(graph, "labkit")
