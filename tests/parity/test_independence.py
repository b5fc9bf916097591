"""A judge must not ask the accused: what the emulation may not import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import labkit

PARITY = Path(labkit.__file__).parent / "parity"
ACCUSED = ("arithmetic", "kernels", "engine", "quantization.convert", "quantization.pipeline", "graph.passes", "net")


def imported(tree: ast.AST, package: str = "labkit.parity") -> set[str]:
    """Dotted names of all that ``tree`` imports anywhere, `from a import b` as ``a.b``; a call of an importer as ``?``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found |= {"?"} if name in ("__import__", "import_module", "eval", "exec", "modules") else set()
    return found


def forbidden(names: set[str]) -> set[str]:
    accused = tuple(f"labkit.{name}" for name in ACCUSED)
    return {
        name
        for name in names
        if name in ("?", "labkit", "labkit.*") or any(f"{name}.".startswith(f"{part}.") for part in accused)
    }


PURE = ("torch_arithmetic", "torch_rules", "torch_runtimes", "torch_sequences")
STEPS = ("torch_kinds", "torch_steps", "torch_deriving", "torch_executing", "emulate_torch", "emulate_sequences")


@pytest.mark.parametrize("name", [*PURE, *STEPS])
def test_emulation_imports_nothing_that_it_judges(name: str) -> None:
    assert not forbidden(imported(ast.parse((PARITY / f"{name}.py").read_text("utf-8"))))


@pytest.mark.parametrize("name", PURE)
def test_arithmetic_of_the_emulation_imports_nothing_of_labkit(name: str) -> None:
    names = imported(ast.parse((PARITY / f"{name}.py").read_text("utf-8")))
    assert "torch" in names
    assert not {name for name in names if name.startswith("labkit") and "labkit.parity.torch_rules" not in name}


@pytest.mark.parametrize(
    "statement",
    [
        "from labkit.arithmetic.fixedpoint import FixedPointMultiplier",
        "from labkit import arithmetic",
        "import labkit.kernels.reference as r",
        "from labkit.engine import run",
        "def f():\n    from labkit.quantization import convert",
        "from labkit.quantization.convert import quantize_weight",
        "from labkit.graph.passes import fold_into",
        "from ..arithmetic import affine",
        "from .. import kernels",
        "import labkit",
        "import importlib\nimportlib.import_module('lab' + 'kit.arithmetic')",
        "__import__('labkit.net')",
    ],
)
def test_the_rule_sees_every_way_of_importing(statement: str) -> None:
    assert forbidden(imported(ast.parse(statement)))


def test_the_rule_lets_the_rest_through() -> None:
    fine = "import torch\nfrom labkit.frontends.torch_fx import trace_module\nfrom . import torch_arithmetic"
    assert not forbidden(imported(ast.parse(fine)))
