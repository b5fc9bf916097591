"""The example in docs/runtimes.md, section Export, runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
for package in ("onnx", "onnxruntime", "tflite", "flatbuffers"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'labkit[parity]')")


def test_the_example_runs(tmp_path):
    text = (ROOT / "docs" / "runtimes.md").read_text("utf-8")
    section = text.partition("\n## Export\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    ran = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[-2] == "(100, 10)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lenet.onnx", "lenet.tflite"]
