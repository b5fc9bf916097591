"""Damaged and hostile files: each loads or is refused, soon, with little memory, and touches nothing else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "fuzz_files.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is judged in a forked process")


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


fuzz = load_tool()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return list(fuzz.sound_samples(tmp_path_factory.mktemp("samples")))


def test_every_kind_of_file_has_a_sample(samples: list[Path]) -> None:
    assert {path.suffix for path in samples} == {".lab", ".onnx", ".tflite"}
    for path in samples:
        assert fuzz.judge(path, is_run=True).kind == "loaded"


def fuzzed(files: int, seed: int) -> str:
    run = subprocess.run(
        [sys.executable, str(TOOL), "--files", str(files), "--seed", str(seed)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


def test_four_hundred_damaged_files() -> None:
    assert "0 of 400 files did something else." in fuzzed(400, 1)


@pytest.mark.slow
def test_twenty_thousand_damaged_files() -> None:
    assert "0 of 20,000 files did something else." in fuzzed(20_000, 0)


def test_the_judge_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import labkit.net

    path = tmp_path / "net.lab"
    path.write_bytes(b"not looked at")

    def judged(load: object) -> str:
        monkeypatch.setattr(labkit.net, "load", load)
        return str(fuzz.judge(path).kind)

    def is_hungry(_: Path) -> None:
        np.ones(600 * 2**20, np.uint8)

    def is_slow(_: Path) -> None:
        while True:
            pass

    assert judged(lambda _: None) == "loaded"
    assert judged(lambda _: os.abort()) == "crashed"
    assert judged(lambda _: os._exit(0)) == "crashed"
    assert judged(lambda _: 1 / 0) == "another error"
    assert judged(lambda _: (tmp_path.parent / "elsewhere").write_text("x")) == "touched"
    assert judged(lambda _: Path("/etc/passwd").read_text()) == "touched"
    monkeypatch.setattr(fuzz, "_ran", lambda _: "\nthe two tiers differ")
    monkeypatch.setattr(labkit.net, "load", lambda _: None)
    assert (fuzz.judge(path, is_run=True).kind, fuzz.judge(path, is_run=True).is_sound) == ("wrong when run", False)
    assert judged(is_hungry) == "large"
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    assert judged(is_slow) == "hung"
