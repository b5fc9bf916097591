"""Names for nodes of a graph, made from the names of tensors in a file."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["node_names"]

_LONGEST = 180  # of the 200 characters that a node's name may have; the rest is for a number


def node_names(tensors: Iterable[str]) -> dict[str, str]:
    """By tensor's name, a name that a node of a graph may have; all differ, and a name that will do is kept.

    A slash becomes a point ("/conv1/Conv_output_0": "conv1.Conv_output_0"), any other character that no file name may
    have an underscore; a name that is taken gets a number.
    """
    given = list(dict.fromkeys(tensors))
    cleaned = {name: _cleaned(name) for name in given}
    taken = {name for name in given if cleaned[name] == name}
    found: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for name in given:
        new = cleaned[name]
        if new != name and new in taken:
            base, number = new, numbers.get(new, 1)
            while new in taken:
                number += 1
                new = f"{base}_{number}"
            numbers[base] = number
        taken.add(new)
        found[name] = new
    return found


def _cleaned(name: str) -> str:
    plain = "".join("." if c in "/\\" else c if c.isprintable() and c not in ':*?"<>|' else "_" for c in name)
    return plain.lstrip(".")[:_LONGEST] or "tensor"
