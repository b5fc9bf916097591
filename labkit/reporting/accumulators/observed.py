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
from labkit.reporting.accumulators.results import Landing, Span

__all__ = ["Watch"]

_SIX = 6.0
_Sum = int_ops.Add | int_ops.AddAwayFromZero


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
        return result


class Watch:
    """Runs images through a network and keeps, of all its sums, extremes and counts only.

    graph : the integer network. A copy of it is run in which the requantizers are watched; sums are those of
    `labkit.kernels.reference`, int32 (int64 for an Add). Sums inside an operation of another runtime that has no
    requantizer (a fixed-point sum, a mean) are not seen.
    """

    def __init__(self, graph: IntGraph) -> None:
        self._tallies: dict[str, _Tally] = {}
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
    """The sum of eq. 19 or 38 before its rounding, and its result before its clamp; the sums without a requantizer."""
    op = node.op
    assert isinstance(op, _Sum)
    sums = np.zeros((len(parts[0]), *node.output.shape), np.int64)
    for part, source, multiplier in zip(parts, graph.inputs_of(node), op.multipliers, strict=True):
        first = np.moveaxis(part, -1, 1) if source.channels_last else part
        sums += (first.astype(np.int64) - int(source.quantized[1].zero_point)) * int(multiplier)
    if isinstance(op, int_ops.AddAwayFromZero):
        return sums, np.sign(sums) * ((np.abs(sums) + (1 << (op.shift - 1))) >> op.shift) + op.zero_point
    return sums, ((sums + (1 << (op.shift - 1))) >> op.shift) + op.zero_point
