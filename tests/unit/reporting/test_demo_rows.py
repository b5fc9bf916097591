"""The rows of the demo's table, on nets so small that every prediction is known beforehand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labkit.errors import DataError, InputError, ModelError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.kernels.kernel_set import KernelSet
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import run_simulated, simulate_weights
from labkit.reporting import demo as demo_module
from labkit.reporting.demo import _bias_notes, _Clock, _engine_row, _float_costs, _LabRows, run_demo
from labkit.reporting.paired import with_change_errors
from labkit.reporting.results import AccuracyRow


def array(*values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


class FakeTime:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(demo_module, "time", SimpleNamespace(perf_counter=lambda: self.now))


def silent() -> _Clock:
    return _Clock(lambda step, done, total: None)


# Costs: a conv of two 1x2 kernels on 1x1x4 (three positions), then 6 numbers to 3

RNG = np.random.default_rng(0)
COSTS_X = RNG.normal(size=(8, 1, 1, 4)).astype(np.float32)


def costed(bias: bool, conv_bias: bool = False, weights: int = 8, activations: int = 8) -> IntegerNet:
    conv = float_ops.Conv2d(
        RNG.normal(size=(2, 1, 1, 2)).astype(np.float32),
        array(1, -1) if conv_bias else None,
        (1, 1),
        ((0, 0), (0, 0)),
        (1, 1),
        1,
    )
    fc = float_ops.Linear(RNG.normal(size=(3, 6)).astype(np.float32), array(1, -1, 2) if bias else None)
    graph = FloatGraph(
        (
            FloatNode("x", float_ops.Input((1, 1, 4))),
            FloatNode("conv", conv, ("x",)),
            FloatNode("flatten", float_ops.Flatten(), ("conv",)),
            FloatNode("fc", fc, ("flatten",)),
        ),
        ("fc",),
    )
    return IntegerNet(convert(graph, calibrate(graph, COSTS_X), BitPlan.uniform(graph, weights, activations)))


@pytest.mark.parametrize(
    ("bias", "conv_bias", "parameters"),
    [(False, False, 4 + 18), (True, False, 4 + 18 + 3), (True, True, 4 + 2 + 18 + 3)],
)
def test_a_float_network_costs_four_bytes_a_parameter(bias: bool, conv_bias: bool, parameters: int) -> None:
    macs = 2 * 2 * 3 + 6 * 3
    wanted = {"size_bytes": 4 * parameters, "macs": macs, "bops": macs * 32 * 32}
    assert _float_costs(costed(bias, conv_bias)) == wanted


class SlowNet(IntegerNet):
    """Answers with given logits, and takes ``seconds`` of a fake clock for it."""

    def __init__(self, net: IntegerNet, logits: NDArray[np.float32], time: FakeTime, seconds: float) -> None:
        super().__init__(net.graph)
        self._logits, self._time, self._seconds = logits, time, seconds

    def run(self, x: Any, kernels: str | KernelSet = "numba") -> Any:
        assert len(x) == len(self._logits)
        self._time.now += self._seconds
        return self._logits


@pytest.mark.parametrize(
    ("name", "bits", "size", "bops"),
    [
        ("W8A8", (8, 8), 4 + 18 + 3 * 4, 30 * 64),
        ("W4A8", (4, 8), 2 + 9 + 3 * 4, 30 * 32),
        ("W4A4", (4, 4), 2 + 9 + 3 * 4, 12 * 32 + 18 * 16),  # the conv's input keeps 8 bits
    ],
)
def test_engine_row(name: str, bits: tuple[int, int], size: int, bops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    time = FakeTime(monkeypatch)

    def tell(step: str, done: int, total: int) -> None:
        time.now += 100  # drawing a progress bar is not the engine's time

    clock = _Clock(tell)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
    labels = np.array([0, 1, 2, 0, 1, 1, 1, 2])  # the first five are right
    net = SlowNet(costed(True, weights=bits[0], activations=bits[1]), logits, time, seconds=0.5)
    row, right = _engine_row(name, net, COSTS_X, labels, clock)
    assert right.tolist() == [True] * 5 + [False] * 3
    assert (row.section, row.label, row.weight_bits, row.activation_bits) == ("integer engine", name, *bits)
    assert (row.accuracy, row.images) == (62.5, 8)
    assert (row.size_bytes, row.macs, row.bops) == (size, 30, bops)
    assert row.ms_per_image == pytest.approx(62.5)  # half a second for eight images
    assert clock.seconds == pytest.approx({"Run the integer engine": 0.5})


def test_engine_rows_add_up_in_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    time, clock = FakeTime(monkeypatch), silent()
    labels = np.zeros(8, np.int64)
    for seconds in (0.25, 2.0):
        net = SlowNet(costed(False), np.eye(3, dtype=np.float32)[labels], time, seconds)
        assert _engine_row("W8A8", net, COSTS_X, labels, clock)[0].ms_per_image == pytest.approx(seconds * 125)
    assert clock.seconds == pytest.approx({"Run the integer engine": 2.25})


# The bias: a net whose integers are the input's, x0 against x1, with the bias added to x1
#
# Every scale is a power of two: 1 for x, 1/2 and 1/2 for the first layer's weights and result, 1/8 and 1/32 for the
# last one's, because each range ends at 127 scales. The third input is 0 in every image: it is there so that a weight of
# 127 sets the scale.

FIRST = array([1, 0, 127], [0, 1, 0], [0, 0, 1]) / 2
LAST = array([1, 0, 127], [0, 1, 0]) / 8
BIAS = 1.28  # 20.48 units of S_w S_x = 1/8 * 1/2, so 20 as an integer
TWO_LAYERS = FloatGraph(
    (
        FloatNode("x", float_ops.Input((3,))),
        FloatNode("first", float_ops.Linear(FIRST, None), ("x",)),
        FloatNode("last", float_ops.Linear(LAST, array(0, BIAS)), ("first",)),
    ),
    ("last",),
)
RANGES = {"x": (-127.0, 127.0), "first": (-63.5, 63.5), "last": (-127 / 32, 127 / 32)}
TWO_LAYERS_CALIBRATION = Calibration({}, RANGES, "minmax", 1)
PAIRS = [(10, 20), (10, 10), (11, 10), (12, 10), (13, 10), (20, 10), (29, 10), (30, 10), (31, 10), (35, 5)]
DIFFERENCES = [-10, 0, 1, 2, 3, 10, 19, 20, 21, 30]
PREDICTIONS = {  # class 1 where x1 + b > x0
    "float": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],  # 20.48
    "unscaled": [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],  # 1.28, which the output's grid of half units makes 1.5
    "quantized": [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],  # 20, and a tie goes to class 0
}
# float: wrong in the places 6 and 9; unscaled: in 3, 4, 5, 7, 9; quantized: in 6, 7, 9.
BIAS_LABELS = [1, 1, 1, 1, 1, 1, 0, 1, 0, 1]
RIGHT = {"float": 8, "unscaled": 5, "quantized": 7}
REPEATS = 25  # 250 images: two batches of 100 and one of 50, each of different images


def repeated(values: Any, dtype: Any) -> NDArray[Any]:
    return np.repeat(np.array(values, dtype), REPEATS, axis=0)


def lab_rows(images: Any, labels: list[int], clock: _Clock) -> _LabRows:
    return _LabRows(repeated(images, np.float32), repeated(labels, np.int64), clock)


def lab_net(graph: FloatGraph, calibration: Calibration) -> IntegerNet:
    return lab_rows([[0, 0, 0]], [0], silent())._lab_net(graph, calibration)


def test_the_labs_net_has_one_symmetric_scale_a_tensor() -> None:
    graph = lab_net(TWO_LAYERS, TWO_LAYERS_CALIBRATION).graph
    for name, scale in {"x": 1, "first": 1 / 2, "last": 1 / 32}.items():
        spec, params = graph[name].output.quantized
        assert (spec.bits, spec.qmin, spec.qmax) == (8, -127, 127)
        assert (float(params.scale), int(params.zero_point)) == (scale, 0)
    for name, scale in {"first": 1 / 2, "last": 1 / 8}.items():
        op: Any = graph[name].op
        assert op.weight.params.scale.shape == () and float(op.weight.params.scale) == scale
        assert op.weight.spec.bits == 8


def test_a_bias_left_unscaled_is_added_to_the_integer_sums() -> None:
    weights = [[[1, 0, 127], [0, 1, 0], [0, 0, 1]], [[1, 0, 127], [0, 1, 0]]]

    def by_hand(image: tuple[int, int]) -> list[float]:
        integers: list[int] = [*image, 0]
        hidden = [sum(w * q for w, q in zip(row, integers, strict=True)) for row in weights[0]]  # S_w S_x = S_out
        sums = [sum(w * q for w, q in zip(row, hidden, strict=True)) for row in weights[1]]
        with_bias = [sums[0], sums[1] + BIAS]  # as if 1.28 were an integer
        return [round(value * (1 / 16) / (1 / 32)) / 32 for value in with_bias]  # in units of 1/16, on a grid of 1/32

    net = lab_net(TWO_LAYERS, TWO_LAYERS_CALIBRATION)
    simulated = simulate_weights(TWO_LAYERS, net.graph, "unscaled")
    images = array(*([*pair, 0] for pair in PAIRS))
    got = run_simulated(simulated, net.graph, images)
    assert got.tolist() == [by_hand(pair) for pair in PAIRS]
    assert [a - b for a, b in PAIRS] == DIFFERENCES
    assert got.argmax(1).tolist() == PREDICTIONS["unscaled"]


def test_bias_rows() -> None:
    told: list[tuple[str, int, int]] = []
    clock = _Clock(lambda *what: told.append(what))
    lab = lab_rows([[*pair, 0] for pair in PAIRS], BIAS_LABELS, clock)
    graded = lab.bias(TWO_LAYERS, TWO_LAYERS_CALIBRATION)
    rows = [row for row, _ in graded]
    for name, right in RIGHT.items():
        assert right == sum(p == y for p, y in zip(PREDICTIONS[name], BIAS_LABELS, strict=True))
    accuracies = [100 * RIGHT[name] / len(PAIRS) for name in ("float", "unscaled", "quantized")]
    macs, parameters = 9 + 6, 9 + 6 + 2
    costs = {"size_bytes": 4 * parameters, "macs": macs, "bops": macs * 1024}
    assert rows == [
        AccuracyRow("bias", "Float network with a bias in fc3", 32, 32, accuracies[0], 250, **costs),
        AccuracyRow("bias", "8 bits, bias left unscaled", 8, 8, accuracies[1], 250),
        AccuracyRow("bias", "8 bits, bias at S_w S_x", 8, 8, accuracies[2], 250),
    ]
    for (_, right), name in zip(graded, ("float", "unscaled", "quantized"), strict=True):
        wanted = [p == y for p, y in zip(PREDICTIONS[name], BIAS_LABELS, strict=True)]
        assert right.tolist() == np.repeat(wanted, REPEATS).tolist()
    # Right where float is wrong or the reverse: in the places 3, 4, 5, 6 and 7 of ten, and in 7.
    errors = [row.change_error for row in with_change_errors(graded)]
    assert errors == [None, pytest.approx(100 * math.sqrt(125) / 250), pytest.approx(100 * math.sqrt(25) / 250)]
    assert [done for _, done, _ in told] == [0, 100, 200, 250, 250] * 3
    assert {total for _, _, total in told} == {250}


def test_weights_are_rounded_first_and_activations_next() -> None:
    # Weights 1.4 and 1 of scale 1 become 1 and 1; images are rounded to whole numbers.
    graph = FloatGraph(
        (
            FloatNode("x", float_ops.Input((3,))),
            FloatNode("last", float_ops.Linear(array([1.4, 0, 127], [0, 1, 0]), None), ("x",)),
        ),
        ("last",),
    )
    calibration = Calibration({}, {"x": (-127.0, 127.0), "last": (-127 / 2, 127 / 2)}, "minmax", 1)
    images = [[10, 8, 0], [8, 10, 0], [10.3, 10.4, 0], [5, 10, 0]]
    # Float: 14 8, 11.2 10, 14.4 10.4, 7 10: class 0 0 0 1. Weights rounded: 0 1 1 1. Both: the third is 10 10, a tie: 0.
    graded = lab_rows(images, [0, 1, 1, 1], silent()).weights_then_activations(graph, calibration)
    rows = [row for row, _ in graded]
    costs = {"size_bytes": 4 * 6, "macs": 6, "bops": 6 * 1024}
    assert rows == [
        AccuracyRow("float", "Float network", 32, 32, 50, 100, **costs),
        AccuracyRow("simulated", "Weights in 8 bits", 8, 32, 100, 100),
        AccuracyRow("simulated", "Weights and activations in 8 bits", 8, 8, 75, 100),
    ]


@pytest.mark.parametrize(
    ("accuracy", "error", "data", "note"),
    [
        (69.0, 0.4, "cifar10", None),
        (69.0, 0.4, "mnist5k", None),
        (69.0, 0.5, "mnist5k", "this network leans too little on that one bias"),
        (69.0, 0.6, "cifar10", "500 images are too few"),
        (71.0, 0.1, "mnist5k", "on CIFAR-10 it does (docs/studies/lenet-cifar10)"),
        (70.0, 0.0, "mnist5k", "leans too little"),
    ],
)
def test_a_missing_drop_is_explained(accuracy: float, error: float, data: str, note: str | None) -> None:
    rows = [
        AccuracyRow("bias", "Float network with a bias in fc3", 32, 32, 70.0, 500),
        AccuracyRow("bias", "8 bits, bias left unscaled", 8, 8, accuracy, 500, change_error=error),
    ]
    notes = _bias_notes(rows, data)
    assert len(notes) == (0 if note is None else 1) and (note is None or note in notes[0])


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"net": "resnet"}, InputError, "lenet, lenet-short, got 'resnet'"),
        ({"net": "lenet-bias"}, InputError, "lenet, lenet-short, got 'lenet-bias'"),
        ({"net": "lenet-short"}, ModelError, "lenet-short"),
        ({"data": "imagenet"}, InputError, "imagenet"),
        ({"images": 0}, InputError, "test images must be in 1..1000, got 0"),
        ({"images": -1}, InputError, "got -1"),
        ({"images": 1001}, InputError, "got 1001"),
        ({"images": 1, "calibration_images": 0}, InputError, "calibration images must be in 1..4000, got 0"),
        ({"images": 1, "calibration_images": 4001}, InputError, "got 4001"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_demo(**{"data": "mnist5k", **arguments})


def test_a_damaged_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"not a pickle")
    with pytest.raises(DataError, match=str(folder.name)):
        run_demo(data="cifar10", data_dir=tmp_path)
