"""What of labkit a worker may see: how values travel, as files; and for each task, in memory, what it is given and no more.

A later task may be given the very function that an earlier one asks for. So the files of labkit that tasks are given lie in no
folder of the sandbox: they are sent with each task, cut down to the functions that are named and what these need.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labkit.course.ingredients import Made

__all__ = ["Kit", "Sources", "ingredients_of", "library_for", "write_kit"]

Sources = dict[str, tuple[str, bool]]
"""Modules by their names: the text of each, and whether it is a package."""

_ALWAYS = ("labkit.course.values", "labkit.course.judges.base", "labkit.course.ingredients")
_PROGRAM = ("answering", "apart", "forker", "frames", "givens", "lockdown", "nursery")
"""The modules of this package that run inside; everything else of it is on the trusted side."""
_INGREDIENTS = "labkit.course.ingredients"
_LIBRARY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kit:
    """A folder with a part of labkit.

    Parameters
    ----------
    folder : what a worker can read
    modules : what it imports from there before it reads a submission
    files : all modules that lie in the folder
    behind : the modules of other libraries that stand behind what tasks are given, to be imported before any time is counted
    """

    folder: Path
    modules: tuple[str, ...]
    files: frozenset[str] = frozenset()
    behind: tuple[str, ...] = ()


def ingredients_of(value: Any) -> set[str]:
    """The modules that make the ingredients in ``value``, a case's inputs."""
    if isinstance(value, Made):
        inner = ingredients_of(dict(value.data))
        return inner | {f"{_INGREDIENTS}.{value.maker.split('.')[0]}"}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    found: set[str] = set()
    for item in items:
        found |= ingredients_of(item)
    return found


def write_kit(folder: Path, wanted: Iterable[str]) -> Kit:
    """Write what every worker needs into ``folder``, and find out what stands behind the modules ``wanted``."""
    always = _closure(dict.fromkeys(_ALWAYS), frozenset(), cut=False)
    for name, (text, is_package) in always.items():
        parts = name.split(".")
        target = folder.joinpath(*parts, "__init__.py") if is_package else folder.joinpath(*parts).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    (folder / "labkit" / "grading").mkdir()
    (folder / "labkit" / "grading" / "__init__.py").touch()
    for name in _PROGRAM:
        shutil.copyfile(Path(__file__).with_name(f"{name}.py"), folder / "labkit" / "grading" / f"{name}.py")
    files = frozenset(always)
    return Kit(folder, _ALWAYS, files, _behind(_closure(dict.fromkeys(wanted), files, cut=False)))


def _behind(sources: Sources) -> tuple[str, ...]:
    """The modules outside of labkit that ``sources`` import when they are imported; some of the names may be no modules."""
    found = set()
    for text, _ in sources.values():
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(name for name in found if name.split(".")[0] not in ("labkit", "__future__")))


def library_for(given: Iterable[str], inputs: Iterable[Any], files: frozenset[str]) -> Sources:
    """What a worker needs for one task besides its ``files``: the ``given`` names and the makers in the encoded ``inputs``."""
    makers = {f"{_INGREDIENTS}.{name}" for value in inputs for name in _makers(value)}
    return _library(frozenset({*given, *makers}), files)


@cache
def _library(names: frozenset[str], files: frozenset[str]) -> Sources:
    wanted: dict[str, frozenset[str] | None] = {}
    for dotted in names:
        home, _, name = dotted.rpartition(".")
        wanted[home] = (wanted.get(home) or frozenset()) | {name}
    return _closure(wanted, files)


def _makers(value: Any) -> set[str]:
    """The ingredients in an encoded ``value``, as module.function."""
    if isinstance(value, list):
        return {name for item in value for name in _makers(item)}
    if not isinstance(value, dict):
        return set()
    own = {value["made"]} if set(value) == {"made", "with"} else set()
    return own | {name for item in value.values() for name in _makers(item)}


def _closure(wanted: Mapping[str, frozenset[str] | None], files: frozenset[str], cut: bool = True) -> Sources:
    """The modules ``wanted``, each for some of its names or, with None, whole, and of all that they import what they need.

    ``files`` are left out: they are there already. What stands in a package's own file counts only where a name of it is wanted.
    Without ``cut`` every other module is taken whole.
    """
    needs: dict[str, frozenset[str] | None] = {}
    waiting = list(wanted.items())
    while waiting:
        name, more = waiting.pop()
        if name in files or _file_of(name) is None:
            continue
        if name in needs:
            before = needs[name]
            if before is None or (more is not None and more <= before):
                continue
            more = None if more is None else before | more
        needs[name] = more
        parts = name.split(".")
        waiting += [(".".join(parts[:i]), frozenset()) for i in range(1, len(parts))]
        imported = _imported(_kept(name, more))
        waiting += imported if cut else [(inner, names if _is_package(inner) else None) for inner, names in imported]
    found = {}
    for name, names in sorted(needs.items()):
        found[name] = (ast.unparse(ast.Module(_kept(name, names), [])) + "\n", _is_package(name))
    return found


def _file_of(name: str) -> Path | None:
    parts = name.split(".")[1:]
    if name.split(".")[0] != "labkit":
        return None
    module = _LIBRARY.joinpath(*parts).with_suffix(".py") if parts else None
    if module is not None and module.is_file():
        return module
    package = _LIBRARY.joinpath(*parts, "__init__.py")
    return package if package.is_file() else None


def _is_package(name: str) -> bool:
    path = _file_of(name)
    return path is not None and path.name == "__init__.py"


@cache
def _statements(name: str) -> tuple[ast.stmt, ...]:
    path = _file_of(name)
    assert path is not None
    return tuple(s for s in ast.parse(path.read_text("utf-8")).body if not _is_for_types(s))


def _is_for_types(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")


def _kept(name: str, names: frozenset[str] | None) -> list[ast.stmt]:
    """The statements of the module ``name`` that its ``names`` come to use, all of them for None and none for no names."""
    statements = _statements(name)
    if names is None:
        return list(statements)
    if not names:
        return []
    binding: dict[str, list[int]] = {}
    kept = set()
    waiting = [*names, "__all__"]
    for place, statement in enumerate(statements):
        bound = _bound(statement)
        for one in bound:
            binding.setdefault(one, []).append(place)
        if not bound:  # it does something, or is "from __future__ import ..."
            kept.add(place)
            waiting += _used(statement)
    seen = set()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for place in binding.get(one, []):
            if place not in kept:
                kept.add(place)
                if not isinstance(statements[place], ast.Import | ast.ImportFrom):
                    waiting += _used(statements[place])
    return [_only(statements[place], seen) for place in sorted(kept)]


def _bound(statement: ast.stmt) -> list[str]:
    """The names that ``statement`` binds, where that is all that it does."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return []
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _used(statement: ast.stmt) -> list[str]:
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]


def _only(statement: ast.stmt, names: set[str]) -> ast.stmt:
    """``statement``, where it imports for ``names`` alone."""
    if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
        aliases = [alias for alias in statement.names if (alias.asname or alias.name) in names]
        return ast.ImportFrom(statement.module, aliases or statement.names, statement.level)
    return statement


def _imported(statements: Iterable[ast.stmt]) -> list[tuple[str, frozenset[str] | None]]:
    """The modules of labkit that ``statements`` import, with the names that they want of each."""
    found: list[tuple[str, frozenset[str] | None]] = []
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = _file_of(inner) is not None
                found.append((inner, None) if is_module else (node.module, frozenset({alias.name})))
    return [(name, names) for name, names in found if name.split(".")[0] == "labkit"]
