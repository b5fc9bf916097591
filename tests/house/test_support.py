"""docs/support.md is what the code says of itself today."""

from __future__ import annotations

import subprocess
import sys

from house.repository import plain_environment
from house.source import ROOT


def test_support_page_is_what_the_code_says() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "make_support.py"), "--check"]
    ran = subprocess.run(tool, env=plain_environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
