"""Each ONNX operator, evaluated by labkit, against onnxruntime: not one element may differ."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from parity import onnx_nodes


def differing(operator: str, seed: int) -> int:
    case = onnx_nodes.case_of(operator, seed)
    model = case.model()
    expected, got = onnx_nodes.by_onnxruntime(model), onnx_nodes.by_labkit(model)
    assert len(got) == len(expected) == case.outputs
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return sum(int(np.count_nonzero(a != b)) for a, b in zip(got, expected, strict=True))


def check(operator: str, seeds: range) -> None:
    wrong = {seed: count for seed in seeds if (count := differing(operator, seed))}
    assert not wrong, f"{operator}: elements that differ by seed: {wrong}"


@pytest.mark.parametrize("operator", sorted(onnx_nodes.OPERATORS))
def test_operator_as_onnxruntime(operator: str) -> None:
    check(operator, range(onnx_nodes.CASES // 10))


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(onnx_nodes.OPERATORS))
def test_operator_as_onnxruntime_all_cases(operator: str) -> None:
    check(operator, range(onnx_nodes.CASES // 10, onnx_nodes.CASES))


@pytest.mark.parametrize("operator", ["QuantizeLinear", "QLinearConv", "QLinearAdd", "QLinearMul", "QGemm"])
def test_cases_tell_roundings_apart(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half up in place of half to even must show: else the cases hold no ties."""
    monkeypatch.setattr(np, "rint", lambda x: np.floor(x + np.float32(0.5)))
    assert sum(differing(operator, seed) for seed in range(0, 60, 3)) > 0
