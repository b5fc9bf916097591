"""Which submissions look alike once names, comments and layout are taken away: for a person to look at, no verdict."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

__all__ = ["Likeness", "fingerprints", "likenesses"]

_TELLING = 40
"""Nodes of syntax from which on a function says something about who wrote it; two honest one-liners are often the same."""


@dataclass(frozen=True)
class Likeness:
    """Two students whose functions have the same shape. ``share`` is the part of the smaller one's telling code, 0 to 1."""

    first: str
    second: str
    share: float
    functions: tuple[str, ...]


def fingerprints(source: str, functions: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The shape of each of the ``functions`` that the Python ``source`` defines: a hash, and how many nodes it has."""
    wanted = set(functions)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            try:
                shape = _shape(node)
            except (RecursionError, ValueError):  # too deep, or a number too long to be written
                continue
            found[node.name] = (hashlib.sha256("\n".join(shape).encode()).hexdigest(), len(shape))
    return found


def likenesses(
    prints: Mapping[str, Mapping[str, tuple[str, int]]], common: float = 0.2, least: float = 0.8
) -> list[Likeness]:
    """The pairs of students whose telling functions have mostly the same shape, the most alike first.

    Parameters
    ----------
    prints : `fingerprints` by student
    common : a shape that this share of all students (three at least) have is what the task asks for, and tells nothing
    least : the share of telling code from which on a pair is named
    """
    counts: dict[tuple[str, str], int] = {}
    for shapes in prints.values():
        for name, (digest, _) in shapes.items():
            counts[name, digest] = counts.get((name, digest), 0) + 1
    limit = max(3, common * len(prints))
    telling = {
        student: {name: (d, n) for name, (d, n) in shapes.items() if n >= _TELLING and counts[name, d] < limit}
        for student, shapes in prints.items()
    }
    found = []
    for first, second in combinations(sorted(telling), 2):
        a, b = telling[first], telling[second]
        same = [name for name in a if name in b and a[name][0] == b[name][0]]
        smaller = min(sum(n for _, n in a.values()), sum(n for _, n in b.values()))
        if same and smaller:
            share = sum(a[name][1] for name in same) / smaller
            if share >= least:
                found.append(Likeness(first, second, min(1.0, share), tuple(sorted(same))))
    return sorted(found, key=lambda pair: (-pair.share, pair.first, pair.second))


def _shape(function: ast.FunctionDef) -> list[str]:
    """The nodes of ``function`` in order: kinds, attributes, numbers, and names as the order of their first use."""
    names: dict[str, int] = {}
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    shape = []
    for node in (node for statement in body for node in _in_order(statement)):
        text = type(node).__name__
        if isinstance(node, ast.Name):
            text += f" {names.setdefault(node.id, len(names))}"
        elif isinstance(node, ast.Attribute):
            text += f" {node.attr}"
        elif isinstance(node, ast.Constant) and not isinstance(node.value, str):
            text += f" {node.value!r}"
        elif isinstance(node, ast.keyword):
            text += f" {node.arg}"
        shape.append(text)
    return shape


def _in_order(node: ast.AST) -> Iterable[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr_context):
            yield from _in_order(child)
