"""From AdaRound's V to the logits of the engine: every link again in plain whole numbers, with tolerance 0."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

import labkit
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions

Integers = dict[str, NDArray[np.int64]]
CASES = [(4, "narrow", "adaround"), (2, "narrow", "adaround"), (4, "mirrored", "adaround"), (2, "mirrored", "adaround")]
CASES += [(2, "narrow", "adaround-images")]


@pytest.fixture(scope="module")
def bench() -> tuple[FloatGraph, Calibration, NDArray[np.float32], NDArray[np.float32]]:
    data = labkit.data.load("mnist5k")
    graph = simplify(from_torch(labkit.models.load("lenet", data="mnist5k"), (3, 32, 32)))
    images = data.calibration(64)
    return graph, calibrate(graph, images), images, data.test(20)[0]


def decided(graph: FloatGraph, rounded: RoundedWeights, variables: dict[str, NDArray[np.float32]]) -> Integers:
    """The integers that V says, by exact fractions."""
    found = {}
    for name, tensor in rounded.weights.items():
        weight, spec = graph[name].op.weight, tensor.spec  # type: ignore[union-attr]
        integers = np.empty(weight.shape, np.int64)
        rows, out = weight.reshape(len(weight), -1), integers.reshape(len(weight), -1)
        for row in range(len(rows)):
            at = row if tensor.params.scale.ndim else 0
            scale = Fraction(float(tensor.params.scale.reshape(-1)[at]))
            zero_point = int(tensor.params.zero_point.reshape(-1)[at])
            low, high = spec.qmin - zero_point, spec.qmax - zero_point
            for k, (value, v) in enumerate(zip(rows[row].tolist(), variables[name][row].tolist(), strict=True)):
                level = floor(Fraction(value) / scale) + (v >= 0)
                out[row, k] = max(low, min(high, level)) + zero_point
        found[name] = integers
    return found


def logits(graph: IntGraph, integers: Integers, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """LeNet by NumPy in int64, with the weights ``integers`` in place of the graph's own."""
    spec, params = graph["x"].output.quantized
    q = np.clip(np.rint(x / params.scale) + int(params.zero_point), spec.qmin, spec.qmax).astype(np.int64)

    def layer(name: str, q: NDArray[np.int64]) -> NDArray[np.int64]:
        node = graph[name]
        op = node.op
        wide = (1,) * (integers[name].ndim - 1)
        weight = integers[name] - op.weight.params.zero_point.astype(np.int64).reshape(-1, *wide)  # type: ignore[union-attr]
        q = q - int(graph.inputs_of(node)[0].quantized[1].zero_point)
        bias, requantizer = op.bias.astype(np.int64), op.requantizer  # type: ignore[union-attr]
        if weight.ndim == 4:
            sums = np.einsum("nchwij,ocij->nohw", sliding_window_view(q, weight.shape[2:], (2, 3)), weight)
            wide = (1, 1)
        else:
            sums, wide = q @ weight.T, ()
        mantissa, exponent = (
            part.astype(np.int64).reshape(-1, *wide)
            for part in (requantizer.multiplier.mantissa, requantizer.multiplier.exponent)
        )
        product = (sums + bias.reshape(-1, *wide)) * mantissa
        shift = 31 - exponent
        rounded = ((product + (1 << (shift - 1))) >> shift) + requantizer.zero_point
        return np.clip(rounded, *requantizer.clamp)

    for name in ("conv1", "conv2"):
        q = layer(name, q)
        n, c, h, w = q.shape
        q = q.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
    q = q.reshape(len(q), -1)
    for name in ("fc1", "fc2", "fc3"):
        q = layer(name, q)
    _, params = graph["fc3"].output.quantized
    return ((q - int(params.zero_point)).astype(np.float32) * params.scale).astype(np.float32)


def differing(one: Integers, other: Integers) -> int:
    return sum(int(np.sum(one[name] != other[name])) for name in one)


def in_bytes(integers: Integers) -> Integers:
    """Two to a byte, the first in the low half; LeNet's layers all have an even number of weights."""
    return {
        name: (values.reshape(-1)[::2] & 15) | ((values.reshape(-1)[1::2] & 15) << 4)
        for name, values in integers.items()
    }


@pytest.mark.parametrize(("bits", "levels", "method"), CASES)
def test_every_link_from_the_variables_to_the_logits(  # type: ignore[no-untyped-def]
    bench, tmp_path: Path, bits: int, levels: str, method: str
) -> None:
    graph, calibration, images, x = bench
    options = RoundingOptions(iterations=10, learning_rate=0.1, levels=levels, samples=4096, history=(10,))
    plan = BitPlan.uniform(graph, bits, 8, per_channel=levels != "narrow")
    rounded = round_weights(graph, calibration, plan, images, method, options)
    variables = {name: history.variables for name, history in rounded.history.items()}
    assert tuple(variables) == ("conv1", "conv2", "fc1", "fc2", "fc3")
    integers = decided(graph, rounded, variables)  # type: ignore[arg-type]
    assert differing(integers, {name: tensor.values for name, tensor in rounded.weights.items()}) == 0

    net = IntegerNet(convert(graph, rounded.calibration, plan, {"rounding": method}, rounded.layers))
    net.save(tmp_path / "net.lab")
    data = (tmp_path / "net.lab").read_bytes()
    body = load_tensors(data[52 + int.from_bytes(data[12:20], "little") :])
    stored = {name: body[f"{name}.op.weight.values"] for name in integers}
    assert all(array.dtype == np.uint8 and array.size * 2 == integers[name].size for name, array in stored.items())
    assert differing(in_bytes(integers), stored) == 0  # type: ignore[arg-type]

    again = labkit.load(tmp_path / "net.lab")
    assert differing(integers, {name: again.graph[name].op.weight.values for name in integers}) == 0  # type: ignore[union-attr]
    expected = logits(again.graph, integers, x)
    assert len(np.unique(expected)) > 20
    for how in ({"purpose": "speed"}, {"purpose": "memory"}, {"kernels": "reference"}):
        assert int(np.sum(again.run(x, **how) != expected)) == 0, how

    # one decision the other way, at a weight that has a choice
    rows, scale = graph["conv1"].op.weight[0].reshape(-1), float(rounded.weights["conv1"].params.scale.reshape(-1)[0])  # type: ignore[union-attr]
    k = int(np.argmin(np.abs(rows / scale)))
    planted = {name: np.array(v) for name, v in variables.items()}
    planted["conv1"][0, k] = -1.0 if planted["conv1"][0, k] >= 0 else 1.0
    wrong = decided(graph, rounded, planted)
    assert differing(wrong, integers) == 1
    assert differing(in_bytes(wrong), stored) == 1  # type: ignore[arg-type]
    assert np.sum(logits(again.graph, wrong, x) != again.run(x)) > 0
