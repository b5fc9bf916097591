"""Blocks: layers whose rounding is chosen together because an addition joins their results (Li et al. 2021, BRECQ)."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import UnsupportedOperation
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph

__all__ = ["Block", "find_blocks"]


@dataclass(frozen=True)
class Block:
    """Part of a graph that is reconstructed as one: the names of its ``nodes`` in running order, the last one its output."""

    nodes: tuple[str, ...]

    @property
    def output(self) -> str:
        """The node whose result is compared with the float network's."""
        return self.nodes[-1]


def find_blocks(graph: FloatGraph) -> tuple[Block, ...]:
    """The residual blocks of ``graph``, in running order, and each other layer as a block of its own.

    A residual block ends in an addition and holds all from the last node that every way to it passes through.
    Blocks that share a node become one.

    Raises
    ------
    UnsupportedOperation
        What an addition takes has no tensor in common.
    """
    found: list[set[str]] = []
    gates = _gates(graph)
    for node in graph:
        if not isinstance(node.op, float_ops.Add):
            continue
        if len(gates[node.name]) < 2:
            raise UnsupportedOperation(
                f"{node.name}: what it adds up has no tensor in common, so that it ends no residual block: it takes a constant, "
                f"or comes from several inputs. Choose a rounding that goes layer by layer, such as 'descent'."
            )
        nodes = _between(graph, gates[node.name][-2], node.name)
        for other in [known for known in found if known & nodes]:
            found.remove(other)
            nodes |= other
        found.append(nodes)
    taken = set().union(*found) if found else set()
    found += [
        {node.name}
        for node in graph
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear) and node.name not in taken
    ]
    order = {node.name: index for index, node in enumerate(graph)}
    blocks = [Block(tuple(sorted(nodes, key=order.__getitem__))) for nodes in found]
    return tuple(sorted(blocks, key=lambda block: order[block.nodes[0]]))


def _gates(graph: FloatGraph) -> dict[str, list[str]]:
    """For each node those that every way from the input to it passes through, in order, itself last (its dominators)."""
    gates: dict[str, list[str]] = {}
    for node in graph:
        ways = [gates[name] for name in node.inputs]
        shared = [name for name in ways[0] if all(name in way for way in ways)] if ways else []
        gates[node.name] = [*shared, node.name]
    return gates


def _between(graph: FloatGraph, start: str, end: str) -> set[str]:
    """The nodes after ``start`` that ``end`` depends on, with ``end`` itself."""
    needed, todo = set(), [end]
    while todo:
        name = todo.pop()
        if name != start and name not in needed:
            needed.add(name)
            todo += graph[name].inputs
    return needed
