"""ONNX's own tests of its operators, run by ONNX's own runner on labkit's evaluator."""

from __future__ import annotations

import re
import unittest
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from onnx.backend.test import BackendTest  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402

from labkit.errors import LabkitError, ModelError, UnsupportedOperation  # noqa: E402
from labkit.frontends.onnx.backend import LabkitBackend  # noqa: E402

QUANTIZING = {
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
}
NARROW = {TensorProto.INT2, TensorProto.UINT2, TensorProto.INT4, TensorProto.UINT4}

# Quantization to floats of 8 and 4 bits, which labkit does not have: by name, so that a new test is seen.
SMALL_FLOATS = {
    "test_dequantizelinear_e4m3fn",
    "test_dequantizelinear_e4m3fn_float16",
    "test_dequantizelinear_e4m3fn_zero_point",
    "test_dequantizelinear_e5m2",
    "test_dequantizelinear_float4e2m1",
    "test_quantizelinear_e4m3fn",
    "test_quantizelinear_e5m2",
    "test_quantizelinear_float4e2m1",
}

# Tests of operators that labkit has, of something that it does not do; patterns as the runner takes them.
REFUSED = {
    "training": r"^test_(batchnorm_\w+_training_mode|training_dropout\w*)_cpu$",
    "interpolation": r"^test_resize_\w*(linear|cubic|tf_crop_and_resize|not_larger|not_smaller)\w*_cpu$",
    "reduction of nothing": r"^test_reduce_(max|min)_empty_set(_bool)?_cpu$",
}


@cache
def cases() -> dict[str, Any]:
    """ONNX's node tests by name; they are made with numbers that overflow on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {case.name: case for case in load_model_tests(kind="node")}


def operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


def element_types(model: Any) -> set[int]:
    return {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}


def is_about_quantization(case: Any) -> bool:
    """Whether it quantizes, or converts integers of 2 or 4 bits."""
    return bool(operators(case.model) & QUANTIZING or element_types(case.model) & NARROW)


def run(
    names: set[str], excluded: tuple[str, ...] = (), exact: bool = False
) -> tuple[set[str], dict[str, str], list[Any]]:
    """Run the tests ``names`` on the processor: names that passed, reasons by name that was left out, failures."""
    options = {name: {"rtol": 0, "atol": 0} for name in names} if exact else None
    runner = BackendTest(LabkitBackend, __name__, test_kwargs=options)
    for name in names:
        runner.include(f"^{re.escape(name)}_cpu$")
    for pattern in excluded:
        runner.exclude(pattern)
    result = unittest.TestResult()
    runner.test_suite.run(result)
    skipped = {test.id().rpartition(".")[2]: reason for test, reason in result.skipped}
    left_out = {name.removesuffix("_cpu"): why for name, why in skipped.items() if "exclude" in why}
    wrong = [*result.failures, *result.errors]
    failed = {test.id().rpartition(".")[2].removesuffix("_cpu") for test, _ in wrong}
    ran = {name for name in names if f"{name}_cpu" not in skipped}
    return ran - failed, left_out, wrong


def test_every_quantization_test_over_integers_passes(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {name for name, case in cases().items() if is_about_quantization(case)}
    passed, left_out, wrong = run(wanted, tuple(f"^{name}_cpu$" for name in sorted(SMALL_FLOATS)), exact=True)
    assert not wrong, wrong[0][1]
    assert set(left_out) == SMALL_FLOATS & set(cases())
    assert passed == wanted - SMALL_FLOATS
    assert len(passed) >= 80  # of onnx 1.23; a runner that finds nothing to run must not pass
    for kind in QUANTIZING:
        assert any(kind in operators(cases()[name].model) for name in passed), kind
    with capsys.disabled():
        print(
            f" [{len(passed)} passed exactly; left out, floats of 8 and 4 bits: {', '.join(sorted(left_out))}] ", end=""
        )


def test_the_document_counts_the_tests_that_pass() -> None:
    text = " ".join((Path(__file__).parents[3] / "docs" / "runtimes.md").read_text("utf-8").split())
    said = re.search(
        r"of the node tests of ONNX (\d+\.\d+) itself, all (\d+) on quantization .* pass; the (\d+) on float8", text
    )
    assert said is not None
    if not onnx.__version__.startswith(f"{said[1]}."):
        pytest.skip(f"the document counts the tests of ONNX {said[1]}, and {onnx.__version__} is installed")
    about = {name for name, case in cases().items() if is_about_quantization(case)}
    assert (len(about - SMALL_FLOATS), len(about & SMALL_FLOATS)) == (int(said[2]), int(said[3]))


def test_what_is_left_out_are_small_floats() -> None:
    for name in SMALL_FLOATS & set(cases()):
        names = {TensorProto.DataType.Name(kind) for kind in element_types(cases()[name].model)}
        assert any(kind.startswith(("FLOAT8", "FLOAT4")) for kind in names), name
        with pytest.raises(UnsupportedOperation, match="is declared as float"):
            LabkitBackend.prepare(cases()[name].model)


@pytest.mark.slow
def test_every_other_test_of_its_operators_passes(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {name for name, case in cases().items() if LabkitBackend.is_compatible(case.model)}
    passed, left_out, wrong = run(wanted, tuple(REFUSED.values()))
    assert not wrong, wrong[0][1]
    assert passed | set(left_out) == wanted
    assert len(passed) >= 700
    with capsys.disabled():
        print(f" [{len(passed)} passed, {len(left_out)} left out: {', '.join(REFUSED)}] ", end="")


def test_refused_tests_are_refused_and_not_computed_wrongly() -> None:
    for name, case in cases().items():
        matched = any(re.match(pattern, f"{name}_cpu") for pattern in REFUSED.values())
        if matched and LabkitBackend.is_compatible(case.model):
            inputs = [onnx.numpy_helper.to_array(x) if isinstance(x, TensorProto) else x for x in case.data_sets[0][0]]
            with pytest.raises(LabkitError):
                LabkitBackend.run_model(case.model, inputs)


def test_runner_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.frontends.onnx import nodes_quantized

    monkeypatch.setattr(nodes_quantized.np, "rint", np.floor)
    passed, _, wrong = run({"test_qlinearconv", "test_convinteger_without_padding"}, exact=True)
    assert passed == {"test_convinteger_without_padding"}
    assert len(wrong) == 1


def test_one_node() -> None:
    node = helper.make_node("MatMulInteger", ["a", "b", "za"], ["y"])
    a, b = np.array([[7, 255]], np.uint8), np.array([[-128], [127]], np.int8)
    (y,) = LabkitBackend.run_node(node, [a, b, np.uint8(1)])
    assert y.dtype == np.int32
    assert y.tolist() == [[6 * -128 + 254 * 127]]


def test_one_node_of_onnxruntime() -> None:
    node = helper.make_node("QLinearMul", [*"asz", *"btw", *"ru"], ["y"], domain="com.microsoft")
    scales = np.float32(0.5), np.float32(0.25), np.float32(1)
    a, b, zero = np.array([3, 5], np.uint8), np.array([4, 4], np.uint8), np.uint8(0)
    (y,) = LabkitBackend.run_node(node, [a, scales[0], zero, b, scales[1], zero, scales[2], zero])
    assert y.tolist() == [2, 2]  # 1.5 and 2.5: half to even


def test_only_the_processor() -> None:
    model = cases()["test_relu"].model
    assert LabkitBackend.supports_device("CPU")
    assert not LabkitBackend.supports_device("CUDA")
    assert LabkitBackend.is_compatible(model)
    assert not LabkitBackend.is_compatible(model, "CUDA")
    with pytest.raises(ModelError, match="device must be CPU"):
        LabkitBackend.prepare(model, "CUDA")
