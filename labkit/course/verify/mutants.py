"""Small changes to a solution, each of which the cases of its task should notice.

Operators, comparisons, constants (one more, one less, doubled), axes, and/or, minimum and maximum, floor and ceiling, dropped
calls and dropped statements. Text, messages of errors, annotations and decorators are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]

_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_NAMES = {
    "floor": "ceil",
    "ceil": "floor",
    "rint": "floor",
    "round": "floor",
    "trunc": "rint",
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "argmin": "argmax",
    "argmax": "argmin",
    "amin": "amax",
    "amax": "amin",
    "sum": "mean",
    "mean": "sum",
    "any": "all",
    "all": "any",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "cumsum": "cumprod",
}
_UNWRAPPED = {
    "abs",
    "absolute",
    "sqrt",
    "exp",
    "log",
    "log2",
    "sign",
    "clip",
    "clamp",
    "sort",
    "sorted",
    "reversed",
    "square",
}


@dataclass(frozen=True)
class Mutant:
    """One changed solution. ``before`` and ``after`` are the statement as `ast.unparse` writes it, ``line`` where it stands.

    ``source`` is the whole changed function.
    """

    line: int
    before: str
    after: str
    source: str


def mutants(text: str, function: str, ranges: list[tuple[int, int]]) -> Iterator[Mutant]:
    """Every mutant of the top-level ``function`` in the Python ``text``, changed within the lines ``ranges`` (counted from 1)."""
    (tree,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == function]
    seen: set[tuple[int, str]] = set()
    for statement in _statements(tree):
        if not any(first <= statement.lineno <= last for first, last in ranges):
            continue
        before = _header(statement)
        for change in _changes(tree, statement):
            undo = change()
            after = "(dropped)" if _is_pass_for(statement, tree) else _header(statement)
            source = ast.unparse(tree)
            undo()
            if after != before and (statement.lineno, after) not in seen:
                seen.add((statement.lineno, after))
                yield Mutant(statement.lineno, before, after, source)


_Change = Callable[[], Callable[[], None]]


def _statements(tree: ast.FunctionDef) -> list[ast.stmt]:
    docstring = (
        tree.body[0] if isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant) else None
    )
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node is not tree and node is not docstring
    ]


def _header(statement: ast.stmt) -> str:
    """The statement without the statements inside it."""
    if not hasattr(statement, "body"):
        return ast.unparse(statement)
    bare = copy.copy(statement)
    bare.body = [ast.Pass()]
    for name in ("orelse", "finalbody", "handlers"):
        if hasattr(bare, name):
            setattr(bare, name, [])
    return ast.unparse(bare).split("\n")[0]


def _is_pass_for(statement: ast.stmt, tree: ast.FunctionDef) -> bool:
    return all(node is not statement for node in ast.walk(tree))


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of ``statement`` itself, without those of statements inside it, of messages and of annotations."""
    if isinstance(statement, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
        return
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if node is not statement:
            yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.stmt | ast.JoinedStr):
                    waiting.append(child)


def _changes(tree: ast.FunctionDef, statement: ast.stmt) -> Iterator[_Change]:
    if isinstance(statement, ast.AugAssign | ast.Expr):
        yield _dropped(tree, statement)
    if isinstance(statement, ast.AugAssign) and type(statement.op) in _BINARY:
        yield _set(statement, "op", _BINARY[type(statement.op)]())
    if isinstance(statement, ast.If | ast.While) and not isinstance(statement.test, ast.Compare | ast.BoolOp):
        yield _set(statement, "test", ast.UnaryOp(ast.Not(), statement.test))
    for node in _expressions(statement):
        yield from _of_expression(tree, node)


def _of_expression(tree: ast.AST, node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield _set(node, "op", _BINARY[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        yield _replaced(tree, node, node.operand)
    elif isinstance(node, ast.BoolOp):
        yield _set(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in _COMPARE[type(op)]:
                yield _set(node, "ops", [*node.ops[:place], other(), *node.ops[place + 1 :]])
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield _set(node, "value", not value)
        elif isinstance(value, int):
            yield _set(node, "value", value + 1)
            yield _set(node, "value", value - 1)
        elif isinstance(value, float):
            yield _set(node, "value", 2 * value if value else 1.0)
    elif isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name in _NAMES and isinstance(called, ast.Attribute):
            yield _set(called, "attr", _NAMES[name])
        elif name in _NAMES and isinstance(called, ast.Name) and name in ("min", "max", "any", "all"):
            yield _set(called, "id", _NAMES[name])
        if name in _UNWRAPPED and node.args:
            yield _replaced(tree, node, node.args[0])


def _set(node: ast.AST, name: str, value: object) -> _Change:
    def change() -> Callable[[], None]:
        old = getattr(node, name)
        setattr(node, name, value)
        return lambda: setattr(node, name, old)

    return change


def _replaced(tree: ast.AST, node: ast.AST, other: ast.AST) -> _Change:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is node:
                return _set(parent, name, other)
            if isinstance(value, list) and any(item is node for item in value):
                return _set(parent, name, [other if item is node else item for item in value])
    raise AssertionError("the node is not in the tree")


def _dropped(tree: ast.AST, statement: ast.stmt) -> _Change:
    return _replaced(tree, statement, ast.Pass())
