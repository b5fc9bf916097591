"""The few files of labkit that a worker may see: how values travel, the ingredients, and what the tasks of a module are given."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.course.ingredients import Made

__all__ = ["Kit", "ingredients_of", "write_kit"]

_ALWAYS = ("labkit.course.values", "labkit.course.judges.base", "labkit.course.ingredients")
_LIBRARY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kit:
    """A folder with a part of labkit, and the modules that a worker imports before it reads a submission."""

    folder: Path
    modules: tuple[str, ...]


def ingredients_of(value: Any) -> set[str]:
    """The modules that make the ingredients in ``value``, a case's inputs."""
    if isinstance(value, Made):
        inner = ingredients_of(dict(value.data))
        return inner | {f"labkit.course.ingredients.{value.maker.split('.')[0]}"}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    found: set[str] = set()
    for item in items:
        found |= ingredients_of(item)
    return found


def write_kit(folder: Path, wanted: Iterable[str]) -> Kit:
    """Copy the modules ``wanted`` and all that they import into ``folder``; packages' own files are left empty."""
    roots = tuple(dict.fromkeys((*_ALWAYS, *wanted)))
    waiting, seen = list(roots), set()
    while waiting:
        name = waiting.pop()
        source = _file_of(name)
        if name in seen or source is None:
            continue
        seen.add(name)
        target = folder / "labkit" / source.relative_to(_LIBRARY)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_plain_package = source.name == "__init__.py" and name not in roots
        target.write_text("" if is_plain_package else source.read_text("utf-8"), "utf-8")
        parts = name.split(".")
        waiting += [".".join(parts[:i]) for i in range(1, len(parts))]
        if not is_plain_package:
            waiting += _imports(source)
    for name in ("nursery.py", "lockdown.py"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    return Kit(folder, roots)


def _file_of(name: str) -> Path | None:
    parts = name.split(".")[1:]
    if name.split(".")[0] != "labkit":
        return None
    module = _LIBRARY.joinpath(*parts).with_suffix(".py") if parts else None
    if module is not None and module.is_file():
        return module
    package = _LIBRARY.joinpath(*parts, "__init__.py")
    return package if package.is_file() else None


def _imports(source: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.split(".")[0] == "labkit"]
