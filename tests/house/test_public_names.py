"""What labkit offers is said in `__all__`, nothing else is, and the front door stays small."""

from __future__ import annotations

import ast
import importlib

import pytest
from house.source import LIBRARY, ROOT, Module, exported, imports, layer_of, modules

# labkit's front door: what a user types after `labkit.`. A new name is a promise; think before adding one.
FRONT_DOOR = {
    "BitPlan",
    "Calibration",
    "FloatGraph",
    "IntGraph",
    "IntegerNet",
    "KernelSet",
    "LabkitError",
    "ParityReport",
    "data",
    "load",
    "models",
    "quantize",
    "verify",
}
FRONT_DOOR_SIZE = 14

WITH_NAMES = [module for module in modules() if module.tree.body[1:] and not module.name.endswith("__main__")]


def defined(module: Module) -> set[str]:
    """Functions and classes at the top level of ``module``."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in module.tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("module", WITH_NAMES, ids=lambda module: module.name)
def test_all_is_explicit_and_true(module: Module) -> None:
    names = exported(module)
    assert names is not None, f"{module.path.relative_to(ROOT)} needs a literal __all__"
    assert len(names) == len(set(names)), "a name stands twice in __all__"
    loaded = importlib.import_module(module.name)
    assert not [name for name in names if not hasattr(loaded, name)]


@pytest.mark.parametrize("module", WITH_NAMES, ids=lambda module: module.name)
def test_what_is_not_exported_has_an_underscore(module: Module) -> None:
    public = {name for name in defined(module) if not name.startswith("_")}
    loose = sorted(public - set(exported(module) or ()))
    assert not loose, f"export them in __all__ or begin their names with _: {loose}"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_no_part_reaches_into_anothers_private_names(module: Module) -> None:
    reached = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("labkit."):
            if layer_of(node.module) == module.layer:
                continue
            private = [part for part in node.module.split(".") if part.startswith("_")]
            private += [alias.name for alias in node.names if alias.name.startswith("_")]
            reached += [f"line {node.lineno}: {name}" for name in private if not name.startswith("__")]
    assert not reached


def test_front_door_is_small_and_known() -> None:
    names = set(exported(next(module for module in modules() if module.name == "labkit")) or ())
    assert names == FRONT_DOOR
    assert len(names) <= FRONT_DOOR_SIZE


def test_types_are_shipped() -> None:
    assert (LIBRARY / "py.typed").exists(), "without labkit/py.typed a user's type checker sees no types"


def test_nothing_is_imported_by_star() -> None:
    stars = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars


def test_underscore_modules_stay_inside_their_part() -> None:
    reached = [
        str(found)
        for module in modules()
        for found in imports(module)
        if found.target.startswith("labkit.")
        and layer_of(found.target) != module.layer
        and any(part.startswith("_") and not part.startswith("__") for part in found.target.split("."))
    ]
    assert not reached
