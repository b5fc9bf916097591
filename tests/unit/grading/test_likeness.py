"""Alike is what has the same shape under other names; what everybody writes tells nothing."""

from __future__ import annotations

import pytest

from labkit.grading.likeness import fingerprints, likenesses

LONG = '''
def f(x, bits):
    """Doc."""
    largest = 2 ** (bits - 1) - 1
    total = 0
    for value in x:
        scaled = value / largest
        if scaled > 0.5:
            total += round(scaled * 3)
        else:
            total -= round(scaled)
    return total + len(x)
'''
RENAMED = LONG.replace("largest", "m").replace("total", "s").replace("Doc.", "Mine, all mine.").replace("value", "v")
OTHER = LONG.replace("scaled * 3", "scaled * 4")
SHORT = "def f(x, bits):\n    return x / bits\n"


def shape(source: str) -> str:
    return fingerprints(source, ["f"])["f"][0]


@pytest.mark.parametrize(
    ("other", "same"), [(RENAMED, True), (OTHER, False), (LONG + "\nx = 1\n", True), (SHORT, False)]
)
def test_names_and_text_do_not_matter(other: str, same: bool) -> None:
    assert (shape(LONG) == shape(other)) is same


def test_swapped_names_are_another_shape() -> None:
    assert shape("def f(a, b):\n    return a - b") == shape("def f(b, a):\n    return b - a")
    assert shape("def f(a, b):\n    return a - b - a") != shape("def f(a, b):\n    return a - b - b")


def test_pairs_are_named_with_their_share() -> None:
    prints = {
        name: fingerprints(text, ["f"]) for name, text in {"a": LONG, "b": RENAMED, "c": OTHER, "d": SHORT}.items()
    }
    (pair,) = likenesses(prints)
    assert (pair.first, pair.second, pair.share, pair.functions) == ("a", "b", 1.0, ("f",))


def test_what_everybody_writes_tells_nothing() -> None:
    assert likenesses({f"s{i}": fingerprints(LONG, ["f"]) for i in range(10)}) == []
    assert likenesses({f"s{i}": fingerprints(SHORT, ["f"]) for i in range(2)}) == []
