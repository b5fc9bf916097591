"""Imports run one way, torch stays off the engine's path, and nothing goes round in a circle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from house.source import LIBRARY, Import, Module, imports, is_standard, layer_of, modules

# From the bottom up. A module may import what stands in a lower row, and its own part of its own row;
# in the row of siblings any order will do as long as it stays an order (test_siblings_form_no_circle).
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "files"}),
    frozenset({"arithmetic"}),
    frozenset({"kernels"}),
    frozenset({"graph"}),
    frozenset({"engine"}),
    frozenset({"net"}),
    frozenset(
        "runtimes frontends exporters quantization sensitivity allocation models data parity reporting benchmark".split()
    ),
    frozenset({"course", "grading", "studies"}),
    frozenset({"cli", "__main__"}),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
OPEN_ROWS = {0, RANK["models"], RANK["course"], RANK["cli"]}  # rows in which one part may import another

ENGINE_PATH = ("errors", "files", "arithmetic", "kernels", "graph", "engine")
ALLOWED_OUTSIDE = {
    "errors": set(),
    "files": set(),
    "arithmetic": {"numpy", "numba"},
    "kernels": {"numpy", "numba", "llvmlite"},
    "graph": {"numpy", "safetensors"},
    "engine": {"numpy", "numba"},
}
NEVER_AT_IMPORT = ("torch", "torchvision", "matplotlib", "scipy", "rich", "typer", "jinja2")


def upward(module: Module) -> list[Import]:
    """The imports of ``module`` that run against the direction."""
    return [found for found in imports(module) if not _allowed(module, found)]


def _allowed(module: Module, found: Import) -> bool:
    parts = found.target.split(".")
    if parts[0] != "labkit" or found.target == "labkit.__version__":
        return True
    here, there = module.layer, layer_of(found.target)
    if there == "cli":
        return here in ("cli", "__main__")
    if here == there and here:
        return True
    if here == "":  # the front door: names are fetched on first use, so `import labkit` stays quick
        return found.lazy or there in ("errors", "")
    if here == "net" and found.lazy:
        return True
    if there not in RANK:  # labkit itself, or a name that only the front door has
        return RANK[here] >= RANK["course"]
    return RANK[there] < RANK[here] or (RANK[there] == RANK[here] and RANK[here] in OPEN_ROWS)


def circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """One circle in a directed graph as the names along it, or [] where there is none."""
    following: dict[str, set[str]] = {}
    for a, b in edges:
        following.setdefault(a, set()).add(b)
    done: set[str] = set()

    def search(at: str, way: list[str]) -> list[str]:
        if at in way:
            return [*way[way.index(at) :], at]
        if at in done:
            return []
        for after in sorted(following.get(at, ())):
            if found := search(after, [*way, at]):
                return found
        done.add(at)
        return []

    return next((found for start in sorted(following) if (found := search(start, []))), [])


def test_every_part_has_a_row() -> None:
    homeless = {module.layer for module in modules()} - set(RANK) - {""}
    assert not homeless, f"labkit/ has new parts: give them a row in ROWS, in this file: {sorted(homeless)}"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_imports_run_one_way(module: Module) -> None:
    assert not [str(found) for found in upward(module)]


def test_siblings_form_no_circle() -> None:
    edges = {
        (module.layer, layer_of(found.target))
        for module in modules()
        for found in imports(module)
        if RANK.get(module.layer) == RANK.get(layer_of(found.target), -1) and module.layer != layer_of(found.target)
    }
    assert not circle(edges)


def test_modules_form_no_circle_at_import_time() -> None:
    names = {module.name for module in modules()}
    edges = {
        (module.name, found.target)
        for module in modules()
        for found in imports(module)
        if found.target in names and not found.lazy and found.target != module.name
    }
    assert not circle(edges)


@pytest.mark.parametrize(
    "module", [module for module in modules() if module.layer in ENGINE_PATH], ids=lambda module: module.name
)
def test_engine_path_needs_little_from_outside(module: Module) -> None:
    outside = [found for found in imports(module) if not found.target.startswith("labkit") and found.target]
    allowed = ALLOWED_OUTSIDE[module.layer]
    assert not [str(f) for f in outside if not is_standard(f.target) and f.target.split(".")[0] not in allowed]


@pytest.mark.parametrize(
    "module",
    [module for module in modules() if module.layer in ("", "net", "cli", "__main__")],
    ids=lambda module: module.name,
)
def test_doors_open_without_the_heavy_libraries(module: Module) -> None:
    heavy = {"torch", "torchvision", "matplotlib", "scipy", "jinja2", "numba"}
    assert not [str(found) for found in imports(module) if not found.lazy and found.target.split(".")[0] in heavy]


_BLOCKED_IMPORTS = """
import importlib, json, sys

blocked, wanted = json.loads(sys.argv[1])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} has no place on the engine path", name=name)

sys.meta_path.insert(0, Refuse())
for name in wanted:
    importlib.import_module(name)
print(json.dumps([name for name in blocked if name in sys.modules]))
"""


def _import_with_blocked(wanted: list[str], path: Path = LIBRARY.parent) -> subprocess.CompletedProcess[str]:
    argument = json.dumps([NEVER_AT_IMPORT, wanted])
    return subprocess.run(
        [sys.executable, "-c", _BLOCKED_IMPORTS, argument], cwd=path, capture_output=True, text=True, check=False
    )


def test_engine_path_imports_without_torch_and_the_rest() -> None:
    wanted = [module.name for module in modules() if module.layer in (*ENGINE_PATH, "net", "")]
    done = _import_with_blocked(wanted)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# The rules themselves, tried on a library that breaks them.


@pytest.mark.parametrize(
    ("file", "text", "caught"),
    [
        ("engine/run.py", "from labkit.frontends import torch_fx", True),
        ("engine/run.py", "def f():\n    import labkit.models", True),
        ("engine/run.py", "from ..models import x", True),
        ("engine/run.py", "from .. import models", True),
        ("engine/run.py", "import importlib\nimportlib.import_module('labkit.models')", True),
        ("engine/run.py", "if TYPE_CHECKING:\n    from labkit.models import x", True),
        ("engine/run.py", "import labkit", True),
        ("engine/run.py", "from labkit import quantize", True),
        ("engine/run.py", "from labkit.engine.prepare import x\nfrom . import prepare\nimport labkit.graph.ir", False),
        ("kernels/fast/gemm.py", "from ...engine import run", True),
        ("kernels/fast/gemm.py", "from ..reference import fc", False),
        ("net.py", "from labkit.quantization import convert", True),
        ("net.py", "def f():\n    from labkit.quantization import convert", False),
        ("net.py", "if TYPE_CHECKING:\n    import labkit.models\nelse:\n    import labkit.data", True),
        ("net.py", "def f():\n    import labkit.cli", True),
        ("models/zoo.py", "from labkit.data import load\nfrom labkit.net import IntegerNet", False),
        ("models/zoo.py", "from labkit.course import build", True),
        ("course/build.py", "import labkit\nfrom labkit import quantize", False),
        ("__init__.py", "from labkit.quantization import quantize", True),
        ("__init__.py", "def __getattr__(name):\n    from labkit.quantization import quantize", False),
        ("cli/run.py", "import labkit.cli.show, labkit.models, labkit", False),
    ],
)
def test_direction_rule_sees_every_form_of_import(tmp_path: Path, file: str, text: str, caught: bool) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (module,) = modules(tmp_path)
    assert bool(upward(module)) is caught


def test_circle_is_found() -> None:
    assert circle([("a", "b"), ("b", "c"), ("c", "b"), ("a", "d")]) == ["b", "c", "b"]
    assert circle([("a", "b"), ("b", "c"), ("a", "c")]) == []


def test_blocked_library_is_really_blocked(tmp_path: Path) -> None:
    (tmp_path / "wants_torch.py").write_text("import torch")
    done = _import_with_blocked(["wants_torch"], tmp_path)
    assert done.returncode != 0
    assert "torch has no place on the engine path" in done.stderr
