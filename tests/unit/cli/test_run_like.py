"""`labkit run --like`: a net under a runtime's rules, from each kind of file, in the file's own types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity.small_net import images, small_net
from unit.cli.conftest import Command

import labkit
from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.runtimes import labkit_rules
from labkit.runtimes.rules import RUNTIMES


@pytest.fixture
def net_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_net().save("net.lab")
    np.save("x.npy", images(3))
    return Path("net.lab")


@pytest.mark.parametrize("runtime", ["labkit", "fbgemm", "qnnpack", "onnxruntime", "xnnpack"])
def test_a_lab_file(labkit_command: Command, net_file: Path, runtime: str) -> None:
    code, _, err = labkit_command("run", net_file, "--input", "x.npy", "--output", "y.npy", "--like", runtime)
    assert code == 0, err
    expected = small_net().like(runtime).run(images(3), kernels="reference")
    np.testing.assert_array_equal(np.load("y.npy"), expected)


def test_rules_change_integers(net_file: Path) -> None:
    """Else the test before could not fail."""
    traces = {name: small_net().like(name).trace(images(64), kernels="reference") for name in ("labkit", "qnnpack")}
    assert any(np.any(traces["labkit"][name] != traces["qnnpack"][name]) for name in ("x", "conv1", "add", "pool"))


def test_load_and_like_are_the_same(net_file: Path) -> None:
    loaded = labkit.load(net_file, like="qnnpack")
    assert loaded.graph.notes["like"] == "qnnpack"
    np.testing.assert_array_equal(
        loaded.run(images(3)), labkit.load(net_file).like("qnnpack").run(images(3), kernels="reference")
    )


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_a_file_of_another_kind(labkit_command: Command, net_file: Path, suffix: str) -> None:
    pytest.importorskip({".tflite": "tflite", ".onnx": "onnx"}[suffix])
    name = f"net{suffix}"
    net = small_net()
    (net.to_tflite if suffix == ".tflite" else net.to_onnx)(name)
    loaded = labkit.load(name)
    assert loaded.graph.notes["like"] == {".tflite": "litert", ".onnx": "onnxruntime"}[suffix]
    (entry,) = loaded.graph.inputs
    x = images(2)
    x = x if loaded.graph[entry].output.source_shape == x.shape[1:] else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    np.save("x2.npy", x)
    code, _, err = labkit_command("run", name, "--input", "x2.npy", "--output", "y.npy", "--trace", "t")
    assert code == 0, err
    np.testing.assert_array_equal(np.load("y.npy"), loaded.run(x, kernels="reference"))
    traced = loaded.trace(x, kernels="reference")
    assert {path.stem for path in Path("t").iterdir()} == set(traced)
    for other, array in traced.items():
        np.testing.assert_array_equal(np.load(f"t/{other}.npy"), array)


def test_no_such_runtime(labkit_command: Command, net_file: Path) -> None:
    code, _, err = labkit_command("run", net_file, "--input", "x.npy", "--output", "y.npy", "--like", "cuda")
    assert code != 0
    assert all(name in err for name in (*RUNTIMES, "'cuda'"))
    assert "Traceback" not in err
    assert not Path("y.npy").exists()
    with pytest.raises(InputError, match="cuda"):
        small_net().like("cuda")


def sum_of_two() -> labkit.net.IntegerNet:
    """A net that adds two inputs of integers."""
    spec, params = QuantSpec(8), QParams(np.float32(0.5), np.int32(0))
    here = Tensor((3,), spec, params)
    total = labkit_rules.add((here, here), here)
    nodes = (
        IntNode("a", int_ops.Input((3,)), (), here),
        IntNode("b", int_ops.Input((3,)), (), here),
        IntNode("sum", total, ("a", "b"), here),
    )
    return labkit.net.IntegerNet(IntGraph(nodes, ("sum",)))


def test_several_inputs_come_by_name(labkit_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sum_of_two().save("sum.lab")
    np.savez("x.npz", a=np.array([[1, 2, 3]], np.int8), b=np.array([[10, 20, 30]], np.int8))
    code, out, err = labkit_command("run", "sum.lab", "--input", "x.npz", "--output", "y.npy")
    assert code == 0, err
    assert "1 images" in out
    assert np.load("y.npy").tolist() == [[11, 22, 33]]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip"])
def test_a_damaged_npz_is_refused(
    labkit_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    sum_of_two().save("sum.lab")
    Path("x.npz").write_bytes(content)
    code, _, err = labkit_command("run", "sum.lab", "--input", "x.npz", "--output", "y.npy")
    assert code == 2
    assert "Cannot read x.npz" in err
