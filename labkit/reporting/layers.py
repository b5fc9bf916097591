"""The parts of a `DemoResult` that look inside the network: histograms, errors by layer, sample images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import dequantize
from labkit.data import DataSet
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration
from labkit.quantization.inputs import only_input
from labkit.reporting.results import Histogram, LayerRow, Range, Sample

__all__ = ["layer_rows", "sample_rows", "sqnr"]

_BINS = 80
_SAMPLES = 12
_DISAGREEMENTS = 4


def sqnr(signal: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """``10 log10(sum s^2 / sum (s - a)^2)`` in dB, for ``signal`` s and its ``approximation`` a, float arrays of one shape."""
    power = float(np.square(signal, dtype=np.float64).sum())
    noise = float(np.square(signal.astype(np.float64) - approximation).sum())
    if noise == 0 or power == 0:
        return float("inf") if noise == 0 else float("-inf")
    return 10 * float(np.log10(power / noise))


def layer_rows(
    graph: FloatGraph,
    calibration: Calibration,
    nets: Mapping[str, IntegerNet],
    seen: NDArray[np.float32],
    x: NDArray[np.float32],
) -> tuple[LayerRow, ...]:
    """One row for each layer's weights and one for each activation with a scale of its own, in running order.

    Parameters
    ----------
    graph, calibration : the float network, simplified, and what was observed on the images ``seen`` (float32 [N, ...])
    nets : integer nets by configuration; the first one's thresholds are shown
    x : float32 [N, ...]
        Images on which the error of each tensor is measured.

    Raises
    ------
    InputError
        The network takes several inputs.
    """
    shown = next(iter(nets.values())).graph
    inputs = only_input(graph, "Rows of layers are")
    observed, expected = run_float(graph, {inputs: seen}), run_float(graph, {inputs: x})
    traces = {name: net.trace(x) for name, net in nets.items()}
    rows: list[LayerRow] = []
    for node in graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            weights = node.op.weight
            errors = {name: sqnr(weights, _weights(net.graph, node.name)) for name, net in nets.items()}
            spread = _weight_thresholds(shown, node.name)
            rows.append(_row(node.name, "weight", weights.shape, weights, spread, errors))
        if node.name in calibration.ranges:
            errors = {
                name: sqnr(expected[node.name], _real(nets[name].graph, node.name, trace[node.name]))
                for name, trace in traces.items()
            }
            values = observed[node.name]
            rows.append(_row(node.name, "activation", values.shape[1:], values, _thresholds(shown, node.name), errors))
    return tuple(rows)


def sample_rows(
    dataset: DataSet,
    graph: FloatGraph,
    nets: Mapping[str, IntegerNet],
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> tuple[Sample, ...]:
    """Twelve test images: first up to four on which the nets disagree, then the first ones of the test set.

    Parameters
    ----------
    dataset : gives pixels and class names
    graph : the float network, simplified
    nets : integer nets by configuration
    x, labels : float32 [N, ...] and int64 [N]
        The test images in the order of ``dataset``. Disagreements with the float net are looked for in the first 1000.

    Raises
    ------
    InputError
        The network takes several inputs.
    """
    pool = slice(0, 1000)
    real = run_float(graph, {only_input(graph, "Samples of images are"): x[pool]})[graph.outputs[0]]
    integer = {name: net.run(x[pool]) for name, net in nets.items()}
    differs = np.any([logits.argmax(1) != real.argmax(1) for logits in integer.values()], axis=0)
    chosen = list(np.flatnonzero(differs)[:_DISAGREEMENTS])
    chosen += [i for i in range(len(real)) if i not in chosen][: _SAMPLES - len(chosen)]

    def prediction(logits: NDArray[np.float32]) -> tuple[str, float]:
        powers = np.exp(logits.astype(np.float64) - logits.max())
        return dataset.class_names[int(logits.argmax())], float(powers.max() / powers.sum())

    return tuple(
        Sample(
            dataset.test_images[i].transpose(1, 2, 0),
            dataset.class_names[int(labels[i])],
            *prediction(real[i]),
            {name: prediction(logits[i]) for name, logits in integer.items()},
        )
        for i in chosen
    )


def _row(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    values: NDArray[np.floating],
    chosen: Range,
    errors: Mapping[str, float],
) -> LayerRow:
    counts, edges = np.histogram(values, bins=_BINS)
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return LayerRow(
        name,
        kind,
        tuple(shape),
        Histogram(counts.astype(np.int64), edges.astype(np.float64)),
        Range(float(values.min()), float(values.max())),
        Range(mean - 3 * deviation, mean + 3 * deviation),
        chosen,
        errors,
    )


def _weights(graph: IntGraph, name: str) -> NDArray[np.float32]:
    op = graph[name].op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    return op.weight.dequantized()


def _weight_thresholds(graph: IntGraph, name: str) -> Range:
    op = graph[name].op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    largest = float(op.weight.params.scale.max())
    return Range(largest * op.weight.spec.qmin, largest * op.weight.spec.qmax)


def _real(graph: IntGraph, name: str, values: NDArray[np.generic]) -> NDArray[np.float32]:
    spec, params = graph[name].output.quantized
    return dequantize(values.astype(np.int32), params, spec)


def _thresholds(graph: IntGraph, name: str) -> Range:
    spec, params = graph[name].output.quantized
    scale, zero_point = float(params.scale), int(params.zero_point)
    return Range(scale * (spec.qmin - zero_point), scale * (spec.qmax - zero_point))
