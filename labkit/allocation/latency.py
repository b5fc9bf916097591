"""Latency by layer and bit-width, measured with labkit's own kernels on this processor.

One integer network is made for each candidate, all its weights at those bits. They are timed in turns: in each round each
network runs a few times as a whole and then kernel call by kernel call, after an untimed run that fills the caches, and
the shortest of the few counts, which was disturbed least. An entry is the median over the rounds. The fixed part is what
a whole run takes beyond its layers: borders, pooling, additions, less the cost of timing each call by itself. So the
entries of a uniform plan and the fixed part add up to what that plan was measured to take; for a mixed plan the sum is a
prediction, as a layer meets other storage and caches than in the uniform network. `measured_latency` checks it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import ALL_BITS, weight_layers
from labkit.engine.arena import arena_for
from labkit.engine.plan import Prepared, Purpose
from labkit.engine.prepare import prepare
from labkit.engine.run import run
from labkit.errors import InputError, QuantizationError
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import Calibration
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan

__all__ = ["ROUNDS", "latency", "measured_latency"]

ROUNDS = 31
_STEPS_IN_MICROSECOND = 1024  # a power of two, so that sums of entries have no rounding error
_SAMPLE = 500.0  # microseconds; a short run is repeated
_FEWEST_RUNS = 3

Images = NDArray[np.float32]


def latency(
    graph: FloatGraph,
    calibration: Calibration,
    images: Images,
    bits: Sequence[int] = ALL_BITS,
    *,
    activations: int | Mapping[str, int] | BitPlan = 8,
    per_channel: bool = True,
    purpose: Purpose = Purpose.SPEED,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] | None = None,
) -> CostTable:
    """Microseconds that a batch takes on one thread, by layer and weight bits, in steps of 1/1024.

    Parameters
    ----------
    graph : after `passes.simplify`
    calibration : a range for each of its tensors
    images : float32 [N, ...], the batch; no more than run together in the engine are used
    bits : candidates, ascending
    activations : bits of all activations (8 at input and output), bits by tensor, or a plan that says them
    per_channel : one weight scale for each output channel, or one a layer
    purpose : what the engine is prepared for
    rounds : of which the median is taken, 1 or more
    progress : called with (rounds done, of how many)

    Raises
    ------
    QuantizationError
        Bits are out of range, or the network cannot be quantized to them.
    InputError
        There are no images, or they do not fit the network.
    """
    started = time.perf_counter()
    table = activations if isinstance(activations, Mapping) else None
    if isinstance(activations, BitPlan):
        table = activations.activations
    elif table is None:
        table = BitPlan.uniform(graph, activations=activations).activations  # type: ignore[arg-type]
    layers = weight_layers(graph)
    plans = [BitPlan(dict.fromkeys(layers, b), table, per_channel=per_channel) for b in bits]
    nets = _prepared(graph, calibration, plans, purpose)
    batch = _batch(graph, nets, images)
    whole, calls = _timed(nets, batch, rounds, by_call=True, progress=progress)
    values = np.array([[np.median(spent[layer]) for spent in calls] for layer in layers])
    values = np.round(values * _STEPS_IN_MICROSECOND) / _STEPS_IN_MICROSECOND
    rest = max(0.0, float(np.median(np.median(whole, axis=1) - values.sum(0))))
    fixed = round(rest * _STEPS_IN_MICROSECOND) / _STEPS_IN_MICROSECOND
    notes = {"images": len(batch), "rounds": rounds, "seconds": round(time.perf_counter() - started, 3)}
    return CostTable(layers, tuple(bits), values, "microseconds", "latency", fixed, notes)


def measured_latency(
    graph: FloatGraph,
    calibration: Calibration,
    images: Images,
    plans: Sequence[BitPlan],
    *,
    purpose: Purpose = Purpose.SPEED,
    rounds: int = ROUNDS,
) -> tuple[float, ...]:
    """Microseconds that a batch takes on one thread with each of ``plans``: medians of rounds in turns.

    Parameters
    ----------
    graph, calibration : as for `latency`
    images : float32 [N, ...], the batch; no more than run together in the engine are used
    plans : bits for all weights and activations
    purpose : what the engine is prepared for
    rounds : of which the median is taken, 1 or more

    Raises
    ------
    QuantizationError
        A plan does not fit the network.
    InputError
        There are no images, or they do not fit the network.
    """
    nets = _prepared(graph, calibration, plans, purpose)
    whole, _ = _timed(nets, _batch(graph, nets, images), rounds, by_call=False)
    return tuple(float(m) for m in np.median(whole, axis=1))


def _prepared(
    graph: FloatGraph, calibration: Calibration, plans: Sequence[BitPlan], purpose: Purpose
) -> list[Prepared]:
    if not plans:
        raise QuantizationError("There is nothing to measure: give at least one bit-width or plan.")
    return [prepare(convert(graph, calibration, plan), purpose=purpose) for plan in plans]


def _batch(graph: FloatGraph, nets: Sequence[Prepared], images: Images) -> Images:
    if len(graph.inputs) != 1:
        raise InputError(f"Latency is measured for one input, this network has {', '.join(graph.inputs)}.")
    wanted = nets[0].graph[graph.inputs[0]].output.shape
    array = np.ascontiguousarray(images, np.float32)
    if array.ndim < 1 or len(array) == 0 or array.shape[1:] != wanted:
        raise InputError(
            f"The images must have shape (N, {', '.join(map(str, wanted))}), N 1 or more, got {array.shape}."
        )
    return array[: min(net.chunk for net in nets)]


def _timed(
    nets: Sequence[Prepared],
    batch: Images,
    rounds: int,
    *,
    by_call: bool,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], list[dict[str, list[float]]]]:
    """Microseconds: of whole runs, float64 [nets, rounds], and for each net a list by node of what its calls took."""
    if rounds < 1:
        raise QuantizationError(f"rounds must be 1 or more, got {rounds}.")
    inputs = {nets[0].graph.inputs[0]: batch}
    whole = np.zeros((len(nets), rounds))
    calls: list[dict[str, list[float]]] = [{} for _ in nets]
    repeats = [_repeats(net, inputs) for net in nets]
    for index in range(rounds):
        for turn in range(len(nets)):
            at = (turn + index) % len(nets)  # nobody always comes after the same one
            net, times = nets[at], repeats[at]
            run(net, inputs)
            whole[at, index] = min(_run_time(net, inputs) for _ in range(times))
            if by_call:
                for node, spent in _calls(net, len(batch), times).items():
                    calls[at].setdefault(node, []).append(spent)
        if progress is not None:
            progress(index + 1, rounds)
    return whole, calls


def _calls(net: Prepared, count: int, times: int) -> dict[str, float]:
    """Microseconds of each node's kernel calls, the least of ``times`` runs, in the order in which they run."""
    steps = arena_for(net, count).calls
    found: dict[str, float] = {}
    for _ in range(times):
        spent: dict[str, int] = {}
        for node, kernel, part, arguments in steps:
            begun = time.perf_counter_ns()
            kernel(*part, count, *arguments)
            spent[node] = spent.get(node, 0) + time.perf_counter_ns() - begun
        for node, nanoseconds in spent.items():
            found[node] = min(found.get(node, np.inf), nanoseconds / 1e3)
    return found


def _run_time(net: Prepared, inputs: Mapping[str, Images]) -> float:
    begun = time.perf_counter_ns()
    run(net, inputs)
    return (time.perf_counter_ns() - begun) / 1e3


def _repeats(net: Prepared, inputs: Mapping[str, Images]) -> int:
    shortest = min(_run_time(net, inputs) for _ in range(_FEWEST_RUNS))
    return max(_FEWEST_RUNS, round(_SAMPLE / shortest))
