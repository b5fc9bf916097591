"""labkit computes single operators as LiteRT does: every element of hundreds of random files an operator and runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from parity.litert_models import MAKERS, attention, make

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.exporters.tflite_file import FileOperator, FileTensor, tflite_bytes
from labkit.frontends.tflite import read_tflite_bytes
from labkit.graph import int_ops
from labkit.net import IntegerNet
from labkit.parity.runtimes.litert import run_litert
from labkit.runtimes.rules import as_run_by

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert.interpreter")

CASES = 500
RUNTIMES = ("litert", "xnnpack", "litert-opt")
# What is refused in part or as a whole, because LiteRT's own rounding then depends on where an element stands.
REFUSED = {
    ("xnnpack", "DEPTHWISE_CONV_2D int4"),
    *(
        ("litert-opt", name)
        for name in (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "DEPTHWISE_CONV_2D int4",
            "DEQUANTIZE",
            "MEAN",
            "MEAN of a sequence",
            "QUANTIZE",
            "QUANTIZE float32",
        )
    ),
}
TOLD_APART = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "QUANTIZE", "QUANTIZE float32"), "xnnpack"),
    **dict.fromkeys(("MEAN", "MEAN of a sequence", "SOFTMAX", "SOFTMAX attention", "LOGISTIC"), "xnnpack"),
    **dict.fromkeys(("BATCH_MATMUL", "BATCH_MATMUL constant"), "xnnpack"),
    **dict.fromkeys(("FULLY_CONNECTED", "RELU", "SOFTMAX", "GELU"), "labkit"),
}  # by operator, rules under which some element of the cases differs from those of LiteRT's reference kernels


def differing(name: str, seeds: range, runtime: str, rules: str) -> Counter[str]:
    """What became of the cases of ``name`` in ``runtime``, labkit under ``rules``: compared, refused, elements that differ."""
    found: Counter[str] = Counter(unequal=0)
    for seed in seeds:
        case = make(name, seed)
        try:
            net = IntegerNet(as_run_by(read_tflite_bytes(case.data), rules))
        except UnsupportedOperation as error:
            found["unreadable" if "cannot be told" in str(error) or "cannot tell" in str(error) else "refused"] += 1
            continue
        ours = net.run(dict(zip(net.graph.inputs, case.inputs, strict=True)), kernels="reference")
        (theirs,) = run_litert(case.data, case.inputs, runtime).values()
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        found["compared"] += 1
        found["elements"] += ours.size
        found["unequal"] += int(np.count_nonzero(ours != theirs))
    return found


def check(name: str, seeds: range) -> None:
    for runtime in RUNTIMES:
        found = differing(name, seeds, runtime, runtime)
        assert found["unequal"] == 0, f"{name} like {runtime}: {found}"
        if (runtime, name) not in REFUSED:
            assert found["refused"] == 0, f"{name} like {runtime}: {found}"
            assert found["compared"] >= 0.8 * len(seeds)


@pytest.mark.parametrize("name", MAKERS)
def test_a_tenth_of_the_cases_agree(name: str) -> None:
    check(name, range(0, CASES, 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_all_cases_agree(name: str) -> None:
    check(name, range(CASES))


@pytest.mark.parametrize("name", TOLD_APART)
def test_the_cases_tell_one_rule_from_another(name: str) -> None:
    assert differing(name, range(0, CASES, 2), "litert", TOLD_APART[name])["unequal"] > 0


def test_a_file_tells_its_tensors_apart() -> None:
    case = make("MEAN", 1)
    graph = read_tflite_bytes(case.data)
    for runtime in ("litert", "xnnpack"):
        theirs = run_litert(case.data, case.inputs, runtime, tensors=True)
        trace = IntegerNet(as_run_by(graph, runtime)).trace(case.inputs[0], kernels="reference")
        assert {graph.notes["tflite"]["tensors"]["y"]} == set(theirs)
        for name, index in graph.notes["tflite"]["tensors"].items():
            if index in theirs:
                np.testing.assert_array_equal(trace[name], theirs[index])


def vectors(total: int, length: int) -> tuple[Any, Any]:
    """Two int8 vectors [length] whose product is ``total``, at least 0."""
    a, b = np.zeros(length, np.int64), np.full(length, 127, np.int64)
    whole, a[-1], b[-1] = total // 127, total % 127, 1
    a[: whole // 127] = 127
    a[whole // 127] = whole % 127
    assert a @ b == total
    return a.astype(np.int8), b.astype(np.int8)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scales_of_a_product_are_multiplied_in_float32(runtime: str) -> None:
    """Sums so near to a tie that the last bits of the multiplier decide, which random cases hardly ever meet."""
    rng, length, told = np.random.default_rng(5), 150, 0
    totals = np.arange(0, 127 * 127 * length // 2)
    for _ in range(60):
        a, b = np.float32(0.05 * 2.0 ** rng.uniform(-1, 1, 2))
        y = np.float32(float(a * b) * 1.5e4 * 2.0 ** rng.uniform(-1, 1))
        tensors = [
            FileTensor(name, shape, "int8", scale, 0)
            for name, shape, scale in (("a", (1, 1, length), a), ("b", (1, length, 1), b), ("y", (1, 1, 1), y))
        ]
        data = tflite_bytes(tensors, [FileOperator("BATCH_MATMUL", ("a", "b"), ("y",))], ("a", "b"), ("y",))
        graph = as_run_by(read_tflite_bytes(data), runtime)
        (by,) = [node.op.requantizer for node in graph if isinstance(node.op, int_ops.MatMul)]
        exact = np.float64(a) * np.float64(b) / np.float64(y)
        other = np.asarray(exact, np.float32) if runtime == "xnnpack" else FixedPointMultiplier.from_real(exact)
        differing = np.flatnonzero(by.apply(totals) != replace(by, multiplier=other).apply(totals))
        if not len(differing):
            continue
        inputs = [
            array.reshape(t.shape)
            for array, t in zip(vectors(int(rng.choice(differing)), length), tensors[:2], strict=True)
        ]
        (theirs,) = run_litert(data, inputs, runtime).values()
        np.testing.assert_array_equal(IntegerNet(graph).run(dict(zip("ab", inputs, strict=True))), theirs)
        told += 1
        if told == 8:
            return
    pytest.fail(f"only {told} cases told a float32 product from an exact one")


@pytest.mark.parametrize("runtime", ["litert", "xnnpack"])
def test_attention_agrees_tensor_by_tensor(runtime: str) -> None:
    """Each operator's axes follow from the one before it: heads, tokens and features of a whole attention."""
    for seed in range(60):
        case = attention(seed)
        net = IntegerNet(as_run_by(read_tflite_bytes(case.data), runtime))
        theirs = run_litert(case.data, case.inputs, runtime, tensors=True)
        trace = net.trace(dict(zip("qkv", case.inputs, strict=True)))
        compared = [name for name, index in net.graph.notes["tflite"]["tensors"].items() if index in theirs]
        assert {"scores", "shares", "context", "y"} <= set(compared)
        for name in compared:
            index = net.graph.notes["tflite"]["tensors"][name]
            np.testing.assert_array_equal(trace[name], theirs[index], err_msg=f"{seed}: {name}")


def test_what_litert_cannot_be_asked_is_said() -> None:
    case = make("RELU", 2)
    with pytest.raises(InputError, match="LiteRT runs like litert, litert-opt, xnnpack; got 'onnxruntime'"):
        run_litert(case.data, case.inputs, "onnxruntime")
    with pytest.raises(InputError, match="takes 1 inputs, got 2"):
        run_litert(case.data, case.inputs * 2, "litert")
    with pytest.raises(ModelError, match="LiteRT does not run the file like litert"):
        run_litert(case.data, [case.inputs[0].astype("int32")], "litert")
    with pytest.raises(ModelError, match="LiteRT does not take the file"):
        run_litert(b"nothing", case.inputs, "litert")
