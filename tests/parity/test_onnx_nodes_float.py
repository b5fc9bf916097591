"""Float operators of the evaluator, and whole float networks as they are read, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from unit.frontends.onnx_float_files import OPERATORS, real, small_model, write_graph  # noqa: E402

import labkit  # noqa: E402
from labkit.frontends.float_run import run_float  # noqa: E402
from labkit.frontends.onnx.evaluate import OnnxNet  # noqa: E402
from labkit.frontends.onnx.float_graph import read_float_onnx  # noqa: E402
from labkit.frontends.torch_fx import from_torch  # noqa: E402

NEAR = 1e-5  # of the largest number: float32 sums in another order


def by_onnxruntime(path: Path, x: np.ndarray) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, _ = OPERATORS[name]
    path = tmp_path / "model.onnx"
    onnx.save(small_model(nodes, constants, (2 if name == "resize by sizes" else "N", *shape)), path)
    x = real(2, *shape, seed=5)
    expected, got = by_onnxruntime(path, x), OnnxNet.load(path).run(x)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert np.abs(got - expected).max() <= NEAR * np.abs(expected).max()


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_network(name: str, tmp_path: Path) -> None:
    graph = from_torch(labkit.models.load(name, data="mnist5k"), (3, 32, 32))
    path = write_graph(graph, tmp_path / "net.onnx")
    x = real(4, 3, 32, 32, seed=6)
    expected = by_onnxruntime(path, x)
    read = read_float_onnx(path)
    (translated,) = run_float(read, {read.inputs[0]: x}, only_outputs=True).values()
    for got in (translated, OnnxNet.load(path).run(x)):
        assert np.abs(got - expected).max() <= 10 * NEAR * np.abs(expected).max()
