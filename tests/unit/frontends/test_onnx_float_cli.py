"""`labkit quantize MODEL.onnx` and what can be done with the net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from unit.frontends.onnx_float_files import node, real, small_model, write_graph  # noqa: E402

import labkit  # noqa: E402
from labkit.cli import main  # noqa: E402
from labkit.errors import ModelError  # noqa: E402
from labkit.frontends.onnx import float_graph  # noqa: E402
from labkit.frontends.torch_fx import from_torch  # noqa: E402
from labkit.graph import float_ops  # noqa: E402
from labkit.graph.float_ops import Activation  # noqa: E402


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["labkit", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    write_graph(from_torch(labkit.models.load("lenet", data="mnist5k"), (3, 32, 32)), tmp_path / "net.onnx")
    np.save("x.npy", real(40, 3, 32, 32))
    return tmp_path


def test_quantize_verify_and_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "quantize", "net.onnx", "--data", "x.npy", "-w", "4", "-o", "net.lab", "--verify") == 0
    assert "derived from the float module" in " ".join(capsys.readouterr().out.split())
    net = labkit.load("net.lab")
    expected = labkit.quantize(labkit.models.load("lenet", data="mnist5k"), np.load("x.npy"), 4, 8)
    x = real(7, 3, 32, 32, seed=1)
    assert np.array_equal(net.run(x), expected.run(x))
    assert net.graph.notes["source"] == "net.onnx"
    assert "model" not in net.graph.notes  # only names of shipped nets are noted
    assert call(monkeypatch, "verify", "net.lab", "--model", "net.onnx", "--input", "x.npy") == 0
    assert "derived from the float module" in " ".join(capsys.readouterr().out.split())
    assert call(monkeypatch, "verify", "net.lab", "--input", "x.npy") == 0
    assert "from the net's own integers" in " ".join(capsys.readouterr().out.split())


def test_bits_under_a_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--data", "x.npy", "--average-bits", "4", "--sensitivity", "sqnr", "-o", "net.lab", "--no-verify")
    assert call(monkeypatch, "quantize", "net.onnx", *arguments) == 0
    plan = labkit.load("net.lab").graph.notes["plan"]
    assert "conv1" in str(plan)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("net.onnx", "--weights", "x.npy"), "holds its own weights"),
        (("missing.onnx",), "missing.onnx"),
        (("quantized.onnx",), "quantized already"),
        (("broken.onnx",), "broken.onnx"),
    ],
)
def test_refused_in_one_line(
    folder: Path,
    arguments: tuple[str, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = [node("QuantizeLinear", "x,s", "q"), node("DequantizeLinear", "q,s")]
    onnx.save(small_model(nodes, {"s": np.float32(1)}), "quantized.onnx")
    Path("broken.onnx").write_bytes(b"\x80\x04no model")
    assert call(monkeypatch, "quantize", *arguments, "--data", "x.npy", "-o", "out.lab") != 0
    told = capsys.readouterr().err
    assert reason in told
    assert "Traceback" not in told
    assert not Path("out.lab").exists()


def test_wrong_translation_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**float_graph.FLOAT_OPERATORS, "Relu": lambda call: float_ops.Relu(Activation.RELU6)}
    onnx.save(small_model([node("Mul", "x,c", "m"), node("Relu", "m")], {"c": np.float32(9)}), "relu.onnx")
    float_graph.read_float_onnx("relu.onnx")
    monkeypatch.setattr(float_graph, "FLOAT_OPERATORS", wrong)
    with pytest.raises(ModelError, match="the_Relu"):
        float_graph.read_float_onnx("relu.onnx")
