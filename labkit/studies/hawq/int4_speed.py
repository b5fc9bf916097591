"""The slides' "up to 1.5x speed up with INT4/INT8": plans of 4 and 8 bits against W8A8 in this engine, timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from labkit.benchmark.machine import machine
from labkit.benchmark.own import linear_pairs, pairs_without_vnni
from labkit.benchmark.timing import CPU, Paired, time_pair
from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.errors import ModelError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.costs import costs
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["half_of_the_weights", "run"]

_NETS = ("lenet", "resnet20", "mobilenetv2-small")
_BATCHES = (1, 32)
_ROUNDS, _SECONDS = 60, 4.0
_CLAIM = 1.5


@dataclass(frozen=True)
class _Timed:
    """A plan against W8A8 (or another contestant): bytes of weights and bit operations as shares of its, and the times."""

    net: str
    plan: str
    batch: int
    size: float
    bops: float
    time: Paired


def half_of_the_weights(graph: FloatGraph) -> BitPlan:
    """4 bits for the largest layers of a simplified ``graph`` until they hold half of all weights, 8 for the others.

    A layer of 4 bits has an input of 4 bits too, unless that is the network's own input or another layer of 8 bits reads it.
    """
    plan = BitPlan.uniform(graph, 8, 8)
    layers = {n.name: n.op.weight.size for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)}
    low: set[str] = set()
    for name in sorted(layers, key=lambda name: -layers[name]):
        if sum(layers[chosen] for chosen in low) < sum(layers.values()) / 2:
            low.add(name)
    read: dict[str, set[str]] = {}
    for name in layers:
        read.setdefault(graph[name].inputs[0], set()).add(name)
    narrow = {source for source, readers in read.items() if readers <= low and source in plan.activations}
    narrow -= {*graph.inputs, *graph.outputs}
    return replace(
        plan,
        weights={**plan.weights, **dict.fromkeys(low, 4)},
        activations={**plan.activations, **dict.fromkeys(narrow, 4)},
    )


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Time W4A8, W4A4 and a mixed plan against W8A8, batch 1 and 32, then layers alone and other instructions.

    ``settings`` say which images, and whether properly; ``tell`` is called with (what, pairs done, pairs).
    """
    nets, batches = (_NETS[:1], _BATCHES[:1]) if settings.smoke else (_NETS, _BATCHES)
    rounds, seconds = (3, 0.1) if settings.smoke else (_ROUNDS, _SECONDS)
    data = load_data(settings.data, data_dir=settings.data_dir)
    total = len(nets) + (0 if settings.smoke else 1)
    timed: list[_Timed] = []
    other: list[tuple[str, str, Paired]] = []
    for done, net in enumerate(nets):
        graph = simplify(from_torch(load_model(net, data.name), (3, 32, 32)))
        timed += _net(net, graph, data, settings, batches, rounds, seconds)
        if not settings.smoke and net != _NETS[0]:
            other += _other_instructions(net, graph, data, settings, rounds, seconds)
        tell(net, done + 1, total)
    if not settings.smoke:
        other += [(p.what, p.rival, p.time) for p in linear_pairs(rounds, seconds) if _is_sound(p.time)]
        tell("linear layers", total, total)
    facts = machine()
    tables = [_plans(timed)]
    if other:
        tables.append(_others(other))
    return StudyResult(
        tuple(tables),
        _findings(timed, other, facts["processor"]),
        (_figure(timed),),
        (
            f"Processor: {facts['processor']}; {facts['architecture']}; {facts['instructions']}. One thread. Another processor "
            "gives other ratios.",
            f"Both nets of a pair are called in turns, up to {rounds} rounds or {seconds:g} s, and each round gives one ratio of "
            "CPU times; the median, and the 10th and 90th percentile. Images go in and logits come out as float32. Each net's "
            "integers are compared with the reference kernels first. Pairs that cannot be timed by CPU time are left out.",
            "With VNNI one instruction (vpdpbusd) multiplies and adds bytes, whatever their values; there is none for nibbles. "
            "So the engine unpacks weights of 4 bits to bytes when it prepares a net, and multiplies as many numbers as at 8 "
            "bits. What can gain is a layer that waits for its weights: a linear layer of one image, which keeps them packed.",
            'Rows "without VNNI" forbid those instructions: then activations of 4 bits allow vpmaddubsw, whose 16-bit sums '
            "cannot overflow, where 8 bits need vpmaddwd. That is the kind of hardware for which fewer bits are fewer "
            "instructions, as INT4 tensor cores are on the T4 for which HAWQ-V3 reports its latency.",
            "Mixed: 4 bits for the largest layers that together hold half of the weights, and for what only they read. See also "
            "[benchmarks.md](../../benchmarks.md).",
        ),
    )


def _net(
    net: str,
    graph: FloatGraph,
    data: DataSet,
    settings: Settings,
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
) -> list[_Timed]:
    calibration = calibrate(graph, data.calibration(settings.calibration))
    plans = {
        "W4A8": BitPlan.uniform(graph, 4, 8),
        "W4A4": BitPlan.uniform(graph, 4, 4),
        "mixed": half_of_the_weights(graph),
    }
    eight = IntegerNet(convert(graph, calibration, BitPlan.uniform(graph, 8, 8)))
    whole = costs(eight.graph)
    found = []
    for name, plan in plans.items():
        low = IntegerNet(convert(graph, calibration, plan))
        counted = costs(low.graph)
        for batch in batches:
            x, _ = data.test(batch)
            for one in (low, eight):
                if not np.array_equal(one.run(x), one.run(x, kernels="reference")):
                    raise ModelError(
                        f"{net} {name}: the fast kernels and the reference kernels disagree, and wrong integers are not timed. "
                        f"Run `labkit verify` on the net."
                    )
            time = time_pair(_caller(low, x), _caller(eight, x), CPU, rounds, seconds)
            size, bops = counted.size_bytes / whole.size_bytes, counted.total_bops / whole.total_bops
            found.append(_Timed(net, name, batch, size, bops, time))
    return found


def _other_instructions(
    net: str, graph: FloatGraph, data: DataSet, settings: Settings, rounds: int, seconds: float
) -> list[tuple[str, str, Paired]]:
    calibration = calibrate(graph, data.calibration(settings.calibration))
    low, eight = (convert(graph, calibration, BitPlan.uniform(graph, *bits)) for bits in ((4, 4), (8, 8)))
    x, _ = data.test(1)
    wanted = [IntegerNet(one).run(x, kernels="reference") for one in (low, eight)]
    pairs = pairs_without_vnni(f"{net} w4a4, batch 1", low, eight, x, wanted, 1, rounds, seconds)
    return [(pair.what, pair.rival, pair.time) for pair in pairs if _is_sound(pair.time)]


def _is_sound(time: Paired | None) -> TypeGuard[Paired]:
    """Right answers, and by CPU time: wall time is that of the neighbours too."""
    return time is not None and time.clock == CPU


def _caller(net: IntegerNet, x: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: net.run(x)


def _ratio(time: Paired) -> str:
    return f"{time.ratio:.2f} [{time.p10:.2f}, {time.p90:.2f}]"


def _plans(timed: list[_Timed]) -> Table:
    rows = [
        (
            one.net,
            one.plan,
            one.batch,
            f"{one.size:.2f}",
            f"{one.bops:.2f}",
            f"{one.time.ours_ms:.3g}",
            f"{one.time.theirs_ms:.3g}",
            _ratio(one.time),
        )
        for one in timed
    ]
    heads = (
        "net",
        "plan",
        "batch",
        "size / W8A8",
        "BOPS / W8A8",
        "ms",
        "W8A8, ms",
        "times as fast as W8A8 [p10, p90]",
    )
    return Table("Fewer bits against W8A8, with the instructions of this processor", heads, tuple(rows))


def _others(other: list[tuple[str, str, Paired]]) -> Table:
    rows = tuple((what, against, f"{t.ours_ms:.3g}", f"{t.theirs_ms:.3g}", _ratio(t)) for what, against, t in other)
    return Table(
        "Where fewer bits can be faster: other instructions, and layers that wait for memory",
        ("4 bits", "against", "ms", "its ms", "times as fast [p10, p90]"),
        rows,
    )


def _figure(timed: list[_Timed]) -> Figure:
    panels = []
    for net in dict.fromkeys(one.net for one in timed):
        series = []
        for batch in dict.fromkeys(one.batch for one in timed):
            chosen = [one for one in timed if (one.net, one.batch) == (net, batch)]
            ratios = tuple(one.time.ratio for one in chosen)
            series.append(Series(f"batch {batch}", tuple(one.plan for one in chosen), ratios))
        panels.append(Figure("", net, "bar", "", "times as fast as W8A8", tuple(series)))
    return Figure("ratios", "Fewer bits against W8A8", "bar", "", "", (), panels=tuple(panels))


def _findings(timed: list[_Timed], other: list[tuple[str, str, Paired]], processor: str) -> tuple[Finding, ...]:
    best = max(timed, key=lambda one: one.time.ratio)
    found = [
        Finding(
            "Up to 1.5x speed up with INT4/INT8 compared to INT8 quantization",
            f"whole networks on {processor}: {min(one.time.ratio for one in timed):.2f} to {best.time.ratio:.2f} times as fast "
            f"(best: {best.net} {best.plan}, batch {best.batch})",
            _verdict(best.time),
        )
    ]
    for label, marked in (("without VNNI", "without VNNI"), ("linear layers of one image", "linear")):
        times = [(what, against, time) for what, against, time in other if marked in what and "direct" not in against]
        if times:
            what, _, time = max(times, key=lambda one: one[2].ratio)
            found.append(
                Finding(
                    f"The same, {label}",
                    f"{min(t.ratio for _, _, t in times):.2f} to {time.ratio:.2f} (best: {what})",
                    _verdict(time),
                )
            )
    return tuple(found)


def _verdict(time: Paired) -> Literal["yes", "no", "partly"]:
    """Whether the median reaches the claim, or at least nine of ten rounds are faster."""
    return "yes" if time.ratio >= _CLAIM else "partly" if time.p10 > 1.05 else "no"
