"""Mutants: every small change is made, once, within the answer alone, and leaves the tree as it was."""

from __future__ import annotations

import ast

import pytest

from labkit.course.verify.mutants import mutants


def changed(body: str) -> set[str]:
    """The mutated statements of a function with ``body``; line 1 is its head."""
    lines = body.split("\n")
    text = "def f(x, y):\n" + "\n".join(f"    {line}" for line in lines) + "\n"
    found = list(mutants(text, "f", [(2, 1 + len(lines))]))
    for mutant in found:
        ast.parse(mutant.source)
    return {mutant.after for mutant in found}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x + y", {"return x - y"}),
        ("return x * y / x", {"return x / y / x", "return x * y * x"}),
        ("return -x", {"return x"}),
        ("return x < y", {"return x <= y", "return x >= y"}),
        ("return x == y", {"return x != y"}),
        ("return x and y", {"return x or y"}),
        ("return not x", {"return x"}),
        ("return x.sum(axis=1)", {"return x.mean(axis=1)", "return x.sum(axis=2)", "return x.sum(axis=0)"}),
        ("return np.floor(x)", {"return np.ceil(x)"}),
        ("return np.minimum(x, y)", {"return np.maximum(x, y)"}),
        ("return min(x, y)", {"return max(x, y)"}),
        ("return np.abs(x)", {"return x"}),
        ("return x.reshape(y, keepdims=True)", {"return x.reshape(y, keepdims=False)"}),
        ("return 0.5 * x", {"return 0.5 / x", "return 1.0 * x"}),
        ("return x[1:]", {"return x[2:]", "return x[0:]"}),
        ("return 'text'", set()),
        ("raise ValueError(f'{x + 1}')", set()),
        ("x += y\nreturn x", {"x -= y", "(dropped)"}),
        ("x.sort()\nreturn x", {"(dropped)"}),
        ("if x:\n    return y\nreturn x", {"if not x:"}),
        (
            "while x > 1:\n    x -= y\nreturn x",
            {"while x >= 1:", "while x <= 1:", "while x > 2:", "while x > 0:", "x += y", "(dropped)"},
        ),
        ("for i in range(1):\n    pass", {"for i in range(2):", "for i in range(0):"}),
        ("x: int = 3", {"x: int = 4", "x: int = 2"}),
    ],
)
def test_each_statement_has_its_mutants(body: str, expected: set[str]) -> None:
    assert changed(body) == expected


def test_only_the_answer_is_mutated() -> None:
    text = 'def f(x):\n    """Doc 1 + 1."""\n    y = x + 1\n    z = y * 2\n    return z\n'
    found = list(mutants(text, "f", [(4, 4)]))
    assert {m.before for m in found} == {"z = y * 2"}
    assert {m.line for m in found} == {4}
    for m in found:
        assert "y = x + 1" in m.source
        assert m.source.count("Doc 1 + 1.") == 1


def test_mutants_are_made_one_at_a_time() -> None:
    text = "def f(x):\n    return (x + 1) * (x - 2)\n"
    original = ast.unparse(ast.parse(text))
    for mutant in mutants(text, "f", [(2, 2)]):
        assert mutant.before == "return (x + 1) * (x - 2)"
        assert mutant.after != mutant.before
        assert ast.unparse(ast.parse(mutant.source)) != original
    sources = [mutant.source for mutant in mutants(text, "f", [(2, 2)])]
    assert len(set(sources)) == len(sources) == 7
