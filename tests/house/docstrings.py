"""The rules that a public docstring is held to. Each function returns what is missing, in words, or nothing.

1. Everything that can be reached through `__all__` has a docstring (a method may inherit one from labkit).
2. Two or more parameters: each is named in the docstring.
3. An array or tensor goes in or comes out: the docstring gives a shape and a dtype, or says whose it has.
4. The body raises one of labkit's errors: a `Raises` section names it.

Rule 2 does not bind the fast kernels: `kernels.reference` has the same names and documents them, and the fast tier says
only what makes it fast.

A command's docstring (labkit.cli) is its help text, read by people who never see a parameter: rules 2 to 4 do not bind.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from house.source import Module, exported

Function = ast.FunctionDef | ast.AsyncFunctionDef

_ARRAY = re.compile(r"\b(NDArray|ndarray|ArrayLike|torch\.Tensor)\b")  # a bare Tensor is one of labkit's own nouns
_DTYPE = re.compile(
    r"\b(u?int(8|16|32|64)|float(16|32|64)|bool(ean)?s?|integers?|floats?|reals?|dtypes?|bytes)\b", re.I
)
_SHAPE = re.compile(
    r"""\[ \s* \w+ (\s* [,:+*/-] \s* [\w\s.+*/()-]+)* \]   # [N, C, H, W], [B + 1]
      | \( \s* (\w+ \s* , [\s\w,]*)? \)                    # (), (C,), (N, C)
      | \b (shape[ds]? | scalar | [1-4]-?D) \b""",
    re.X,
)


@dataclass(frozen=True)
class Item:
    """One public function, method, property or class. ``doc`` is its own docstring or None."""

    where: str
    node: Function | ast.ClassDef
    is_method: bool = False

    @property
    def doc(self) -> str | None:
        return ast.get_docstring(self.node)


def public_items(module: Module) -> Iterator[Item]:
    """Everything in the `__all__` of ``module`` that is defined there, and the public methods of its classes."""
    names = set(exported(module) or ())
    for node in module.tree.body:
        if isinstance(node, Function | ast.ClassDef) and node.name in names:
            yield Item(f"{module.name}.{node.name}", node)
            if isinstance(node, ast.ClassDef):
                yield from (
                    Item(f"{module.name}.{node.name}.{child.name}", child, is_method=True)
                    for child in node.body
                    if isinstance(child, Function) and not child.name.startswith("_") and not _is_overload(child)
                )


def parameters(item: Item) -> list[str]:
    """The names of the parameters of ``item``, without self and cls."""
    if isinstance(item.node, ast.ClassDef):
        return []
    a = item.node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    names += [p.arg for p in (a.vararg, a.kwarg) if p is not None]
    if item.is_method and not _decorated(item.node, "staticmethod"):
        names = names[1:]
    return names


def unnamed_parameters(item: Item) -> list[str]:
    names = parameters(item)
    if len(names) < 2:
        return []
    return [name for name in names if not re.search(rf"\b{re.escape(name)}\b", item.doc or "")]


def lacks_shape_or_dtype(item: Item) -> list[str]:
    """'shape' and 'dtype', whichever the docstring of a function with arrays does not speak of."""
    if isinstance(item.node, ast.ClassDef) or not _has_arrays(item.node):
        return []
    doc = item.doc or ""
    returned = _text(item.node.returns)
    dtype_known = bool(re.search(r"NDArray\[np\.(u?int|float|bool)\w*\d*_?\]", returned)) and not _takes_arrays(
        item.node
    )
    missing = [] if _SHAPE.search(doc) else ["shape"]
    return missing if _DTYPE.search(doc) or dtype_known else [*missing, "dtype"]


def undocumented_errors(item: Item, errors: frozenset[str]) -> list[str]:
    """Names in ``errors`` that the body of ``item`` raises and its `Raises` section does not name.

    For a class the body is ``__init__`` and ``__post_init__``.
    """
    if isinstance(item.node, ast.ClassDef):
        makers = [n for n in item.node.body if isinstance(n, Function) and n.name in ("__init__", "__post_init__")]
        raised = set().union(*(_raised(maker) for maker in makers)) if makers else set()
        documented = " ".join(filter(None, [item.doc, *(ast.get_docstring(maker) for maker in makers)]))
    else:
        raised, documented = _raised(item.node), item.doc or ""
    section = re.search(r"^Raises\n-{3,}\n(.*)", documented, re.S | re.M)
    text = section.group(1) if section else ""
    return sorted(name for name in raised & errors if not re.search(rf"\b{name}\b", text))


def _raised(node: ast.AST) -> set[str]:
    """What is raised in ``node`` itself, not in the functions defined inside it."""
    names: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            called = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            names.add(called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", ""))
        names |= _raised(child)
    return names


def _has_arrays(node: Function) -> bool:
    return _takes_arrays(node) or bool(_ARRAY.search(_text(node.returns)))


def _takes_arrays(node: Function) -> bool:
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
    return any(p is not None and _ARRAY.search(_text(p.annotation)) for p in every)


def _text(node: ast.AST | None) -> str:
    return ast.unparse(node) if node is not None else ""


def _decorated(node: Function, name: str) -> bool:
    return any(_text(decorator).split(".")[-1] == name for decorator in node.decorator_list)


def _is_overload(node: Function) -> bool:
    return _decorated(node, "overload") or _decorated(node, "setter")
