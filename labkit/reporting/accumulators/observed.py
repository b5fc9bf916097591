"""The sums that real images make: the readable kernels run as they are, and each requantizer notes what passes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import Requantizer
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.net import IntegerNet
from labkit.reporting.accumulators.ledger import SUM
from labkit.reporting.accumulators.results import Landing, Span, Step
from labkit.reporting.accumulators.steps import SCALED, gelu_steps, layer_norm_steps, scaled, softmax_steps

__all__ = ["Watch", "joined"]

_SIX = 6.0
_Sum = int_ops.Add | int_ops.AddAwayFromZero | int_ops.LayerNorm
_WithSteps = int_ops.SoftmaxPolynomial | int_ops.GeluPolynomial | int_ops.LayerNorm


@dataclass
class _Tally:
    """Extremes and counts so far."""

    low: int = 0
    high: int = 0
    outputs: int = 0
    at_low: int = 0
    at_high: int = 0
    cut_low: int = 0
    cut_high: int = 0
    scaled: Span | None = None

    def note(self, sums: NDArray[np.integer], before_clamp: NDArray[np.int64], clamp: tuple[int, int]) -> None:
        if not sums.size:
            return
        low, high = int(sums.min()), int(sums.max())
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.outputs else (low, high)
        self.outputs += sums.size
        cut_low, cut_high = np.count_nonzero(before_clamp < clamp[0]), np.count_nonzero(before_clamp > clamp[1])
        self.cut_low += int(cut_low)
        self.cut_high += int(cut_high)
        self.at_low += int(cut_low + np.count_nonzero(before_clamp == clamp[0]))
        self.at_high += int(cut_high + np.count_nonzero(before_clamp == clamp[1]))
        if clamp[0] == clamp[1]:  # all outputs are both ends
            self.at_low = self.at_high = self.outputs


@dataclass(frozen=True, eq=False)
class _Watched(Requantizer):
    """The same requantizer; every sum that it is handed is noted."""

    tally: _Tally = field(default_factory=_Tally)

    def before_clamp(self, accumulator: NDArray[np.integer], axis: int = 1) -> NDArray[np.int64]:
        result = super().before_clamp(accumulator, axis)
        self.tally.note(accumulator, result, self.clamp)
        products = scaled(self, accumulator, axis)
        if products is not None:
            self.tally.scaled = joined(self.tally.scaled, products)
        return result


class Watch:
    """Runs images through a network and keeps, of all its sums, extremes and counts only.

    graph : the integer network. A copy of it is run in which the requantizers are watched; sums are those of
    `labkit.kernels.reference`, int32 (int64 for an Add). Sums inside an operation of another runtime that has no
    requantizer (a fixed-point sum, a mean) are not seen.
    """

    def __init__(self, graph: IntGraph) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._steps: dict[tuple[str, str], Span] = {}
        self._net = IntegerNet(replace(graph, nodes=tuple(self._watched(node) for node in graph)))

    def run(self, images: Mapping[str, NDArray[Any]]) -> None:
        """Add ``images``, [N, ...] by input name as `IntegerNet.run` takes them (float32, or integers), to what was seen.

        Raises
        ------
        InputError, QuantizationError
            The images do not fit the network, or hold a NaN; as `IntegerNet.trace`.
        """
        results = self._net.trace(images, kernels="reference")
        for node in self._adds():
            sums, before_clamp = _add_sums(self._net.graph, node, [results[name] for name in node.inputs])
            assert isinstance(node.op, _Sum)
            self._tallies[node.name].note(sums, before_clamp, node.op.clamp)
        for node in self._net.graph:
            if isinstance(node.op, _WithSteps):
                for step, values in _steps_of(self._net.graph, node, [results[name] for name in node.inputs]).items():
                    span = joined(self._steps.get((node.name, step)), values)
                    if span is not None:
                        self._steps[node.name, step] = span

    def seen_step(self, step: Step) -> Span | None:
        """What the intermediate of ``step`` was so far, or None where it is not seen or no image came."""
        tally = self._tallies.get(step.name)
        if (step.name, step.step) in self._steps:
            return self._steps[step.name, step.step]
        if tally is None or not tally.outputs or step.step not in (SUM, SCALED):
            return None
        if step.step == SCALED:
            return tally.scaled
        op = self._net.graph[step.name].op
        half = 1 << (op.shift - 1) if isinstance(op, int_ops.Add) else 0
        return Span(tally.low + half, tally.high + half)

    def seen(self, name: str) -> tuple[Span, Landing] | None:
        """The sums and the outputs of node ``name`` so far, or None where it has no sums or no image came."""
        tally = self._tallies.get(name)
        if tally is None or not tally.outputs:
            return None
        node = self._net.graph[name]
        low, high = _clamp(node)
        spec, params = node.output.quantized
        zero_point, scale = int(params.zero_point), np.float32(params.scale)
        above = high - zero_point
        # The grid of a ReLU6 whose calibrated range ends at 6 has its last integer there too (eq. 5 gives its scale)
        ends_at_six = low == zero_point and above > 0 and scale == np.float32(_SIX / above)
        landing = Landing(
            tally.outputs,
            tally.at_low,
            tally.at_high,
            tally.cut_low,
            tally.cut_high,
            low_is_activation=low == zero_point,
            high_is_activation=high < spec.qmax or bool(ends_at_six),
        )
        return Span(tally.low, tally.high), landing

    def _watched(self, node: IntNode) -> IntNode:
        """``node`` with each of its requantizers, if it has any, replaced by one that notes what passes."""
        op = node.op
        if isinstance(op, _Sum):
            self._tallies[node.name] = _Tally()
            return node
        tally = _Tally()
        changed: dict[str, Any] = {}
        for entry in fields(op):
            value = getattr(op, entry.name)
            if isinstance(value, Requantizer):
                changed[entry.name] = _watched(value, tally)
            elif isinstance(value, tuple) and value and all(isinstance(item, Requantizer) for item in value):
                changed[entry.name] = tuple(_watched(item, tally) for item in value)
        if not changed:
            return node
        self._tallies[node.name] = tally
        return replace(node, op=replace(op, **changed))

    def _adds(self) -> Iterator[IntNode]:
        return (node for node in self._net.graph if isinstance(node.op, _Sum))


def joined(span: Span | None, values: NDArray[np.integer]) -> Span | None:
    """``span`` widened to hold ``values``, integers of any shape; None for no integers at all."""
    if not values.size:
        return span
    low, high = int(values.min()), int(values.max())
    return Span(low, high) if span is None else Span(min(span.low, low), max(span.high, high))


def _steps_of(graph: IntGraph, node: IntNode, parts: list[NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """The intermediates of ``node`` on its inputs ``parts``, [N, ...]."""
    op, x = node.op, parts[0]
    if isinstance(op, int_ops.SoftmaxPolynomial):
        mask = None
        if len(parts) == 2:
            present = parts[1] != int(graph.inputs_of(node)[1].quantized[1].zero_point)
            mask = present.reshape(len(present), *(1,) * (x.ndim - 2), present.shape[-1])
        return softmax_steps(op, x, mask)
    if isinstance(op, int_ops.GeluPolynomial):
        return gelu_steps(op, x)
    assert isinstance(op, int_ops.LayerNorm)
    return layer_norm_steps(op, x.swapaxes(1, -1))


def _watched(requantizer: Requantizer, tally: _Tally) -> _Watched:
    return _Watched(**{f.name: getattr(requantizer, f.name) for f in fields(Requantizer)}, tally=tally)


def _clamp(node: IntNode) -> tuple[int, int]:
    """The clamp of a node that was watched; the parts of a Concat share theirs, which is the output's."""
    op = node.op
    if isinstance(op, _Sum):
        return op.clamp
    if isinstance(op, int_ops.Concat):
        return min(r.clamp[0] for r in op.requantizers), max(r.clamp[1] for r in op.requantizers)
    clamp: tuple[int, int] = op.requantizer.clamp  # type: ignore[union-attr]
    return clamp


def _add_sums(
    graph: IntGraph, node: IntNode, parts: list[NDArray[np.generic]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sum of eq. 19, 38 or 50 before its rounding, and its result before its clamp; the sums without a requantizer."""
    op = node.op
    assert isinstance(op, _Sum)
    if isinstance(op, int_ops.LayerNorm):
        half = 1 << (op.shift - 1)
        sums = layer_norm_steps(op, parts[0].swapaxes(1, -1))["times gamma, and beta"].swapaxes(1, -1)
        return sums - half, sums >> op.shift
    sums = np.zeros((len(parts[0]), *node.output.shape), np.int64)
    for part, source, multiplier in zip(parts, graph.inputs_of(node), op.multipliers, strict=True):
        first = np.moveaxis(part, -1, 1) if source.channels_last else part
        sums += (first.astype(np.int64) - int(source.quantized[1].zero_point)) * int(multiplier)
    if isinstance(op, int_ops.AddAwayFromZero):
        return sums, np.sign(sums) * ((np.abs(sums) + (1 << (op.shift - 1))) >> op.shift) + op.zero_point
    return sums, ((sums + (1 << (op.shift - 1))) >> op.shift) + op.zero_point
