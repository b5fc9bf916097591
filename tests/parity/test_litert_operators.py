"""labkit computes single operators as LiteRT does: every element of hundreds of random files an operator and runtime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from parity.litert_models import MAKERS, make

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.frontends.tflite import read_tflite_bytes
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
            "QUANTIZE",
            "QUANTIZE float32",
        )
    ),
}
TOLD_APART = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "QUANTIZE", "QUANTIZE float32"), "xnnpack"),
    **dict.fromkeys(("MEAN", "SOFTMAX", "LOGISTIC"), "xnnpack"),
    **dict.fromkeys(("FULLY_CONNECTED", "RELU", "SOFTMAX"), "labkit"),
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
