"""A net as far as a runtime's rules go: without the nodes that it is refused for, and what rests on them."""

from __future__ import annotations

from labkit.errors import LabkitError, UnsupportedOperation
from labkit.graph.ir import IntGraph, IntNode
from labkit.runtimes.rules import prepared_for, rule_set

__all__ = ["as_far_as"]


def as_far_as(graph: IntGraph, runtime: str) -> tuple[IntGraph, tuple[str, ...]]:
    """The part of ``graph`` that ``runtime`` computes by known rules, under labkit's, and why each other node was left out.

    Raises
    ------
    UnsupportedOperation
        Nothing is left but inputs.
    """
    rules, plain = rule_set(runtime), prepared_for(graph, runtime)
    kept: dict[str, IntNode] = {}
    refusals: list[str] = []
    for node in plain:
        if not set(node.inputs) <= set(kept):
            continue
        try:
            rules.remade(node, plain.inputs_of(node))
        except LabkitError as error:
            refusals.append(str(error))
            continue
        kept[node.name] = node
    if not any(node.inputs for node in kept.values()):
        raise UnsupportedOperation(refusals[0] if refusals else f"The net has no node that {runtime} computes.")
    if not refusals:
        return graph, ()
    read = {name for node in kept.values() for name in node.inputs}
    outputs = tuple(name for name in kept if name not in read)
    return IntGraph(tuple(kept.values()), outputs, plain.notes), tuple(refusals)
