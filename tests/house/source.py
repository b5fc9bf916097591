"""The library as syntax trees: which modules there are, what each imports and from where in its text."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "labkit"


@dataclass(frozen=True)
class Module:
    """One file of the library: ``name`` is dotted, a package has the name of its folder."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def layer(self) -> str:
        """The part below labkit that it belongs to (``kernels`` for ``labkit.kernels.fast.gemm``); '' for labkit."""
        return layer_of(self.name)


@dataclass(frozen=True)
class Import:
    """One imported module or name. ``lazy``: not at import time (in a function, or only for the type checker)."""

    importer: Module
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer.name}, line {self.line}: imports {self.target}"


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def modules(root: Path = LIBRARY) -> tuple[Module, ...]:
    """Every module under ``root``, named as if ``root`` were the package labkit."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = ["labkit", *path.relative_to(root).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found.append(Module(".".join(parts), path, ast.parse(path.read_text("utf-8"), str(path))))
    return tuple(found)


def imports(module: Module) -> Iterator[Import]:
    """Every import statement of ``module``, relative ones resolved.

    ``from a import b`` is the module ``a.b`` where labkit has one of that name, else the module ``a`` (for labkit
    itself ``labkit.b``: what the front door offers). A call of ``import_module`` with a literal name counts too.
    """
    yield from _walk(module, module.tree, lazy=False)


def _walk(module: Module, node: ast.AST, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom):
            base = _base(module, child)
            for alias in child.names:
                name = f"{base}.{alias.name}"
                inside = name in _names() or base == "labkit"
                yield Import(module, name if inside else base, child.lineno, lazy)
        elif isinstance(child, ast.Call) and (target := _imported_by_call(module, child)):
            yield Import(module, target, child.lineno, lazy)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _walk(module, ast.Module([part], []), lazy=True)
            for part in child.orelse:
                yield from _walk(module, ast.Module([part], []), lazy)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(module, child, lazy or in_function)


def _base(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - statement.level + module.is_package]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _imported_by_call(module: Module, call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name not in ("import_module", "__import__") or not call.args or not isinstance(call.args[0], ast.Constant):
        return None
    target = str(call.args[0].value)
    if not target.startswith("."):
        return target
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    return package + target


@cache
def _names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def exported(module: Module) -> list[str] | None:
    """The names in the literal ``__all__`` of ``module``; None where it has none or it is not a literal."""
    for statement in module.tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            try:
                value = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
            except ValueError:
                return None
            return [str(name) for name in value]
    return None


def is_standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names
