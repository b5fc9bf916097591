"""The main job from end to end: a trained net is quantized, run in integers, proven, and described in a `DemoResult`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.costs import costs
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.net import IntegerNet
from labkit.parity.compare import verify
from labkit.parity.report import ParityReport
from labkit.quantization.batches import in_threads
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import run_simulated, simulate_weights
from labkit.reporting.layers import layer_rows, sample_rows
from labkit.reporting.paired import Graded, with_change_errors
from labkit.reporting.results import AccuracyRow, DemoResult
from labkit.reporting.summary import change, is_clear

__all__ = ["CONFIGURATIONS", "NETS", "run_demo"]

NETS = ("lenet", "lenet-short")
CONFIGURATIONS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
_BATCH = 100  # small enough for the tensors of a batch to stay in the cache
_READABLE_IMAGES = 100  # the readable tier takes milliseconds an image
_FLOAT_BITS = 32

_UNSCALED = "8 bits, bias left unscaled"

_TITLES = {"cifar10": "CIFAR-10", "mnist5k": "MNIST digits"}

Progress = Callable[[str, int, int], None]


@dataclass
class _Clock:
    """Wall time by step, and where progress is told."""

    tell: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        """Time what happens inside; call the given function with how much of ``total`` is done."""
        self.tell(name, 0, total)
        start = time.perf_counter()
        yield lambda done: self.tell(name, done, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.tell(name, total, total)


def run_demo(
    data: str = "auto",
    net: str = "lenet",
    data_dir: str | Path | None = None,
    calibration_images: int = 512,
    images: int | None = None,
    command: str = "labkit demo",
    progress: Progress | None = None,
) -> tuple[DemoResult, dict[str, IntegerNet]]:
    """Quantize the shipped EE219 LeNet, run it in integers on test images and prove it bit for bit.

    Parameters
    ----------
    data : "auto", "cifar10" or "mnist5k"
    net : "lenet", or "lenet-short" (CIFAR-10 only: trained as briefly as the EE219 report's net)
    data_dir : where CIFAR-10 may lie
    calibration_images : how many training images choose the ranges
    images : how many test images; None for all
    command : kept in the result, so that the reader can repeat it
    progress : called with (step, done, total)

    Returns
    -------
    the DemoResult, and the integer nets by configuration

    Raises
    ------
    DataError, ModelError
        The data or the checkpoint cannot be had.
    InputError
        There is no such net, or a number of images is out of range.
    """
    if net not in NETS:
        raise InputError(f"The demo knows the nets {', '.join(NETS)}, got {net!r}.")
    clock = _Clock(progress or (lambda step, done, total: None))
    with clock.step("Load data and networks"):
        dataset = load_data(data, data_dir=data_dir)
        module = load_model(net, data=dataset.name)
        biased = load_model(net.replace("lenet", "lenet-bias"), data=dataset.name)
        x, labels = dataset.test(images)
    if len(x) < 1:
        raise InputError(f"The demo needs at least one test image, got {images}.")

    with clock.step("Calibrate", calibration_images):
        seen = dataset.calibration(calibration_images)
        graph, biased_graph = simplify(from_torch(module, x.shape[1:])), simplify(from_torch(biased, x.shape[1:]))
        calibration, biased_calibration = calibrate(graph, seen), calibrate(biased_graph, seen)

    lab = _LabRows(x, labels, clock)
    graded = lab.weights_then_activations(graph, calibration) + lab.bias(biased_graph, biased_calibration)

    nets: dict[str, IntegerNet] = {}
    with clock.step("Convert to integers", len(CONFIGURATIONS)) as done:
        for i, (name, bits) in enumerate(CONFIGURATIONS.items()):
            plan = BitPlan.uniform(graph, *bits)
            nets[name] = IntegerNet(
                convert(graph, calibration, plan, {"model": net, "trained_on": dataset.name, "data": dataset.name})
            )
            nets[name].run(x[:1])  # compiles what is not in the cache yet
            nets[name].run(x[:64])
            done(i + 1)
    graded += [_engine_row(name, nets[name], x, labels, clock) for name in nets]
    rows = with_change_errors(graded)

    certificates: dict[str, ParityReport] = {}
    for name, integer_net in nets.items():
        with clock.step(f"Verify {name} against PyTorch", len(x)) as done:
            certificates[name] = verify(integer_net, module, x, progress=done)
    few = x[:_READABLE_IMAGES]
    with clock.step("Verify the readable kernels", len(few)) as done:
        certificates["W8A8, readable kernels"] = verify(nets["W8A8"], module, few, kernels="reference", progress=done)

    with clock.step("Draw what happened"):
        layers = layer_rows(graph, calibration, nets, seen, x[:calibration_images])
        samples = sample_rows(dataset, graph, nets, x, labels)
    result = DemoResult(
        network="LeNet" if net == "lenet" else "LeNet, trained briefly,",
        dataset=_TITLES[dataset.name],
        dataset_reason=dataset.reason,
        calibration_images=len(seen),
        rows=tuple(rows),
        layers=layers,
        samples=samples,
        certificates=certificates,
        versions=certificates["W8A8"].versions,
        command=command,
        seconds=dict(clock.seconds),
        notes=(
            "Simulated rows follow the EE219 lab: 8 bits, one symmetric scale a tensor, float arithmetic on rounded values.",
            "Engine rows: per-channel weights, affine activations, min-max ranges; the network's input and output keep 8 bits.",
            *_bias_notes(rows, dataset.name),
        ),
    )
    return result, nets


@dataclass(frozen=True)
class _LabRows:
    """The EE219 lab's table: each step of quantization simulated on the test images."""

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    clock: _Clock

    def weights_then_activations(self, graph: FloatGraph, calibration: Calibration) -> list[Graded]:
        lab = self._lab_net(graph, calibration)
        rounded = simulate_weights(graph, lab.graph)
        float_row = self._row("float", "Float network", graph, None, _float_costs(lab))
        return [
            float_row,
            self._row("simulated", "Weights in 8 bits", rounded, None, {}, bits=(8, _FLOAT_BITS)),
            self._row("simulated", "Weights and activations in 8 bits", rounded, lab, {}, bits=(8, 8)),
        ]

    def bias(self, graph: FloatGraph, calibration: Calibration) -> list[Graded]:
        lab = self._lab_net(graph, calibration)
        without, with_bias = (simulate_weights(graph, lab.graph, bias) for bias in ("unscaled", "quantized"))
        return [
            self._row("bias", "Float network with a bias in fc3", graph, None, _float_costs(lab)),
            self._row("bias", _UNSCALED, without, lab, {}, bits=(8, 8)),
            self._row("bias", "8 bits, bias at S_w S_x", with_bias, lab, {}, bits=(8, 8)),
        ]

    def _lab_net(self, graph: FloatGraph, calibration: Calibration) -> IntegerNet:
        plan = BitPlan.uniform(graph, 8, 8, per_channel=False, activation_scheme="symmetric")
        return IntegerNet(convert(graph, calibration, plan))

    def _row(
        self,
        section: str,
        label: str,
        graph: FloatGraph,
        net: IntegerNet | None,
        sizes: dict[str, Any],
        bits: tuple[int, int] = (_FLOAT_BITS, _FLOAT_BITS),
    ) -> Graded:
        def grade(part: slice) -> NDArray[np.bool_]:
            if net is None:
                logits = run_float(graph, {graph.inputs[0]: self.x[part]}, only_outputs=True)[graph.outputs[0]]
            else:
                logits = run_simulated(graph, net.graph, self.x[part])
            return np.asarray(logits.argmax(1) == self.labels[part])

        right = np.empty(len(self.x), np.bool_)
        parts = [slice(start, start + _BATCH) for start in range(0, len(self.x), _BATCH)]
        with self.clock.step("Simulate the lab's steps", len(self.x)) as done:
            for part, graded in zip(parts, in_threads(grade, parts), strict=True):
                right[part] = graded
                done(min(part.stop, len(self.x)))
        return AccuracyRow(section, label, *bits, 100 * int(right.sum()) / len(right), len(right), **sizes), right


def _float_costs(net: IntegerNet) -> dict[str, Any]:
    """The same network at 4 bytes a parameter and 32 x 32 bits a multiplication."""
    found = costs(net.graph)
    parameters = sum(found.weight_bytes.values()) + sum(found.bias_bytes.values()) // 4
    return {
        "size_bytes": 4 * parameters,
        "macs": found.total_macs,
        "bops": found.total_macs * _FLOAT_BITS * _FLOAT_BITS,
    }


def _engine_row(name: str, net: IntegerNet, x: NDArray[np.float32], labels: NDArray[np.int64], clock: _Clock) -> Graded:
    with clock.step("Run the integer engine"):
        start = time.perf_counter()
        logits = net.run(x)
        seconds = time.perf_counter() - start
    found = costs(net.graph)
    right = logits.argmax(1) == labels
    row = AccuracyRow(
        "integer engine",
        name,
        *CONFIGURATIONS[name],
        accuracy=100 * float(right.mean()),
        images=len(x),
        size_bytes=found.size_bytes,
        macs=found.total_macs,
        bops=found.total_bops,
        ms_per_image=1e3 * seconds / len(x),
    )
    return row, right


def _bias_notes(rows: Sequence[AccuracyRow], data: str) -> list[str]:
    """Why the row with the unscaled bias shows no drop, where it shows none."""
    row = next(row for row in rows if row.label == _UNSCALED)
    points = change(rows, row) or 0.0
    if points < 0 and is_clear(rows, row):
        return []
    if data == "cifar10":
        why = f"{row.images:,} images are too few to tell such a drop from chance; over all 10,000 it shows"
    else:
        why = "this network leans too little on that one bias for the drop to show; on CIFAR-10 it does"
    return [f"A bias left unscaled can cost accuracy, and here no drop is seen: {why} (docs/studies/lenet-cifar10)."]
