"""The project's files, and how its command is called."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from house.source import ROOT

# What the installed `labkit` script does, without asking whether it is installed.
LABKIT = [sys.executable, "-c", "from labkit.cli import main; main()"]


@cache
def project_files() -> tuple[Path, ...]:
    """What belongs to the project: tracked, or new and not ignored. Without git (an unpacked archive), nothing."""
    if not (ROOT / ".git").exists():
        return ()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in sorted(set(filter(None, listed.stdout.split("\0")))))
    return tuple(path for path in paths if path.is_file())


def plain_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would let a child find this checkout, and with plain, wide output."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "FORCE_COLOR", "PY_COLORS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", **more}
