"""labkit starts quickly: what it must not import, and how long a whole process takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from house.repository import LABKIT, plain_environment
from house.source import ROOT

IMPORT = [sys.executable, "-c", "import labkit"]
HEAVY = ("torch", "torchvision", "numba", "llvmlite", "scipy", "matplotlib", "jinja2")


def best_of(runs: int, limit: float, command: list[str]) -> float:
    """The least processor time in s of a whole process, start of Python included; stops early once within ``limit``.

    Time on the clock would measure what else the machine does: beside six busy programs it was twice the limit.
    """
    least = float("inf")
    for _ in range(runs):
        began = _children()
        subprocess.run(command, cwd=ROOT, env=plain_environment(), capture_output=True, check=True)
        least = min(least, _children() - began)
        if least < limit:
            break
    return least


def _children() -> float:
    """Processor seconds of all child processes that have ended, user's and system's."""
    times = os.times()
    return times.children_user + times.children_system


def heavy_after(statement: str) -> list[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=plain_environment(), capture_output=True, text=True, check=True
    )
    return list(json.loads(ran.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy() -> None:
    assert heavy_after("import labkit") == []


def test_import_is_quick() -> None:
    assert best_of(5, 0.6, IMPORT) < 0.6


def test_help_loads_nothing_heavy() -> None:
    ask = "from labkit.cli import main\nsys.argv = ['labkit', '--help']\ntry:\n    main()\nexcept SystemExit:\n    pass"
    assert heavy_after(ask) == []


def test_help_is_quick() -> None:
    assert best_of(5, 0.5, [*LABKIT, "--help"]) < 0.5


def test_heavy_import_is_noticed() -> None:
    assert heavy_after("import jinja2") == ["jinja2"]
