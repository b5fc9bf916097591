"""``labkit export``: what is written and printed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from unit.exporters.nets import made, real_inputs

import labkit
from labkit.net import IntegerNet

Run = Callable[..., tuple[int, str, str]]

for package in ("onnx", "tflite", "flatbuffers"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'labkit[parity]')")


@pytest.fixture
def net(tmp_path: Path) -> IntegerNet:
    """A small net, saved as net.lab."""
    found = IntegerNet(made("convolutions", 3, weights=(8, 4)))
    found.save(tmp_path / "net.lab")
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path, net: IntegerNet) -> Run:
    """Run ``labkit export`` in the folder of net.lab: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        return labkit_command("export", *arguments)

    return call


def test_both_files_are_written(run: Run, net: IntegerNet, tmp_path: Path) -> None:
    code, out, err = run("net.lab", "--onnx", "made/net.onnx", "--tflite", "made/net.tflite")
    assert (code, err) == (0, "")
    sizes = {name: (tmp_path / "made" / name).stat().st_size for name in ("net.onnx", "net.tflite")}
    assert out == (
        f"made/net.onnx: {sizes['net.onnx']:,} bytes for onnxruntime\nmade/net.tflite: {sizes['net.tflite']:,} bytes for LiteRT\n"
    )
    x = real_inputs(net.graph, 3)["x"]
    mine = {like: labkit.load("net.lab", like=like).run(x) for like in ("onnxruntime", "litert")}
    assert np.array_equal(labkit.load("made/net.onnx").run(x), mine["onnxruntime"])
    assert np.array_equal(labkit.load("made/net.tflite").run(np.moveaxis(x, 1, -1)), mine["litert"])


@pytest.mark.parametrize("style", ["qdq", "qoperator"])
def test_the_style_is_obeyed(run: Run, net: IntegerNet, tmp_path: Path, style: str) -> None:
    assert run("net.lab", "--onnx", "net.onnx", "--style", style)[0] == 0
    net.to_onnx(tmp_path / "again.onnx", style)
    assert (tmp_path / "net.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_a_file_of_one_runtime_becomes_one_of_the_other(run: Run, net: IntegerNet) -> None:
    assert run("net.lab", "--tflite", "net.tflite")[0] == 0
    assert run("net.tflite", "--onnx", "net.onnx")[0] == 0
    x = np.moveaxis(real_inputs(net.graph, 3)["x"], 1, -1)
    given = labkit.load("net.tflite", like="onnxruntime").run(x)
    assert np.array_equal(labkit.load("net.onnx").run(x), given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Name a file to write"),
        (("--tflite", "net.tflite", "--style", "qdq"), "--style qdq is that of an ONNX file"),
        (("--onnx", "net.tflite"), "--onnx writes a file whose name ends in .onnx, got net.tflite"),
        (("--tflite", "net"), "--tflite writes a file whose name ends in .tflite, got net"),
        (("--onnx", "net.onnx", "--style", "float"), "style must be one of qdq, qoperator, got 'float'"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("net.lab", *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["net.lab"]


def test_a_net_is_not_overwritten(run: Run) -> None:
    assert run("net.lab", "--onnx", "net.onnx")[0] == 0
    code, _, err = run("net.onnx", "--onnx", "net.onnx")
    assert code == 2
    assert "would overwrite the net that is read" in " ".join(err.split())


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    IntegerNet(made("convolutions", 3, activations=(4,))).save(tmp_path / "four.lab")
    code, _, err = run("four.lab", "--tflite", "made/four.tflite")
    assert code == 2
    assert "a grid of 4 bits" in " ".join(err.split())
    assert not (tmp_path / "made").exists()
