from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labkit.data import torchvision_shim

ROOT = Path(__file__).parents[3]


def test_data_sets_and_models_of_torchvision_are_there() -> None:
    torchvision = torchvision_shim.import_torchvision()
    assert torchvision.datasets.CIFAR10.base_folder == "cifar-10-batches-py"
    assert callable(torchvision.models.resnet18)
    assert torchvision_shim.import_torchvision() is torchvision


def test_nothing_is_declared_where_torchvision_imports_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", sys)  # any module that is there already
    monkeypatch.setattr(torchvision_shim, "_declare_operators", lambda: pytest.fail("there is no need"))
    assert torchvision_shim.import_torchvision() is sys


def test_other_failures_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')")
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
from labkit.data.torchvision_shim import import_torchvision
import_torchvision()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the disk is on fire" in done.stderr
