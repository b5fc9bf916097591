"""A made-up result of the right shape and plausible size: no network was run for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.parity.report import Comparison, Difference, ParityReport
from labkit.reporting.results import AccuracyRow, DemoResult, Histogram, LayerRow, Range, Sample

__all__ = ["example_result"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CONFIGURATIONS = ("W8A8", "W4A8", "W4A4")
WEIGHTS = {"conv1": (12, 3, 5, 5), "conv2": (32, 12, 3, 3), "fc1": (256, 1152), "fc2": (64, 256), "fc3": (10, 64)}
ACTIVATIONS = {"input": (3, 32, 32), "conv1": (12, 28, 28), "conv2": (32, 12, 12), "fc1": (256,), "fc2": (64,),
               "fc3": (10,)}  # fmt: skip
MACS = 1_515_200
PARAMETERS = 316_292


def _layer(name: str, kind: str, shape: tuple[int, ...], values: NDArray[np.float64], sqnr: list[float]) -> LayerRow:
    counts, edges = np.histogram(values, bins=96)
    mean, sigma = float(values.mean()), float(values.std())
    low, high = float(values.min()), float(values.max())
    chosen = Range(-max(-low, high), max(-low, high)) if kind == "weight" else Range(min(low, 0.0), 0.7 * high)
    return LayerRow(
        name,
        kind,
        shape,
        Histogram(counts, edges),
        Range(low, high),
        Range(mean - 3 * sigma, mean + 3 * sigma),
        chosen,
        dict(zip(CONFIGURATIONS, sqnr, strict=True)),
    )


def _layers(random: np.random.Generator) -> tuple[LayerRow, ...]:
    rows = []
    for depth, (name, shape) in enumerate(WEIGHTS.items()):
        values = random.standard_t(8, size=int(np.prod(shape))) * 0.25 / (depth + 1)
        rows.append(_layer(name, "weight", shape, values, [42.3 - depth, 18.2 - depth, 18.2 - depth]))
    for depth, (name, shape) in enumerate(ACTIVATIONS.items()):
        values = random.normal(size=60_000) * (1 + depth)
        if name == "input":
            values = np.clip(values * 0.5, -1, 1)
        elif name != "fc3":
            values = np.maximum(values, 0)
        sqnr = [float("inf"), 45.0, 24.0] if name == "input" else [43.0 - 1.4 * depth, 21.5 - depth, 15.5 - 1.2 * depth]
        rows.append(_layer(name, "activation", shape, values, sqnr))
    return tuple(rows)


def _samples(random: np.random.Generator) -> tuple[Sample, ...]:
    samples = []
    for number in range(10):
        label, other = CLASSES[number], CLASSES[(number + 3) % 10]
        ramp = np.linspace(0, 255, 32)
        pixels = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], (1, 32)), np.full((32, 32), 25.0 * number)])
        noisy = np.clip(pixels + random.normal(scale=20, size=pixels.shape), 0, 255).astype(np.uint8)
        guess = other if number in (3, 7) else label
        integer = {
            "W8A8": (guess, 0.81 - 0.03 * number),
            "W4A8": (guess, 0.78 - 0.03 * number),
            "W4A4": (other if number == 5 else guess, 0.64 - 0.03 * number),
        }
        samples.append(Sample(noisy.transpose(1, 2, 0).copy(), label, guess, 0.82 - 0.03 * number, integer))
    return tuple(samples)


def _certificate(name: str, fails: bool) -> ParityReport:
    comparisons = []
    for layer, shape in WEIGHTS.items():
        comparisons += [
            Comparison(f"{layer}.weight", "parameter", int(np.prod(shape)), 0),
            Comparison(f"{layer}.bias", "parameter", shape[0], 0),
            Comparison(f"{layer}.multiplier", "parameter", shape[0], 0),
        ]
    for layer, shape in ACTIVATIONS.items():
        wrong = 1_204 if fails and layer in ("fc2", "fc3") else 0
        comparisons.append(Comparison(layer, "tensor", 10_000 * int(np.prod(shape)), wrong))
    first = Difference("fc2", (17, 42), "-3", "-4") if fails else None
    against = "an integer emulation in PyTorch, derived from the module and its calibration"
    return ParityReport(f"lenet {name}", against, 10_000, tuple(comparisons), first, {"torch": "2.13.0"})


def example_result(failing: bool = True) -> DemoResult:
    """A whole result; the W4A4 certificate fails where ``failing``."""
    random = np.random.default_rng(7)

    def engine(weights: int, activations: int, accuracy: float, milliseconds: float, error: float) -> AccuracyRow:
        return AccuracyRow(
            "integer engine", f"W{weights}A{activations}", weights, activations, accuracy, 10_000,
            PARAMETERS * weights // 8, MACS, MACS * weights * activations, milliseconds, change_error=error,
        )  # fmt: skip

    floats = (PARAMETERS * 4, MACS, MACS * 32 * 32)
    size = PARAMETERS + 40
    biased = ((PARAMETERS + 10) * 4, MACS, MACS * 32 * 32)
    rows = (
        AccuracyRow("float", "float32, trained", 32, 32, 70.14, 10_000, *floats, 0.412),
        AccuracyRow("simulated", "weights only", 8, 32, 70.11, 10_000, PARAMETERS, MACS, MACS * 8 * 32, change_error=0.09),
        AccuracyRow("simulated", "weights and activations", 8, 8, 70.16, 10_000, PARAMETERS, MACS, MACS * 64, change_error=0.12),
        AccuracyRow("bias", "float32, fc3 with bias", 32, 32, 60.88, 10_000, *biased, note="short schedule"),
        AccuracyRow("bias", "weights quantized, bias left unscaled", 8, 8, 57.07, 10_000, size, MACS, MACS * 64,
                    change_error=0.31),
        AccuracyRow("bias", "weights and bias quantized", 8, 8, 60.90, 10_000, size, MACS, MACS * 64, change_error=0.11),
        engine(8, 8, 70.15, 0.0832, 0.1),
        engine(4, 8, 69.47, 0.0851, 0.35),
        engine(4, 4, 62.03, 0.0849, 0.41),
    )  # fmt: skip
    return DemoResult(
        network="lenet",
        dataset="CIFAR-10",
        dataset_reason="CIFAR-10 was found in the user cache.",
        calibration_images=512,
        rows=rows,
        layers=_layers(random),
        samples=_samples(random),
        certificates={name: _certificate(name, failing and name == "W4A4") for name in CONFIGURATIONS},
        versions={"labkit": "0.1.0", "python": "3.11.2", "numpy": "2.3.1", "numba": "0.68.0", "torch": "2.13.0"},
        command="labkit demo --data cifar10 --out report",
        seconds={"load": 1.2, "calibrate": 0.9, "quantize": 0.3, "run": 6.8, "verify": 14.9, "report": 1.7},
        notes=("W4A8 keeps one scale per output channel.",),
    )
