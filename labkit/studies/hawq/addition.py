"""The slides' Int(a + b) != Int(a) + Int(b): how often, and how much it matters, in a residual sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from labkit.data import load as load_data
from labkit.frontends.float_run import run_float
from labkit.graph import int_ops
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.studies.hawq.rounding_sums import (
    add_separately,
    branch_errors,
    errors,
    independent,
    scaled_errors,
    uniform_mismatch,
)
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_NETS = ("resnet20", "mobilenetv2-small")
_DRAWS, _LOOKED_AT, _IMAGES = 1_000_000, 50, 300
_GOLDEN = (math.sqrt(5) - 1) / 2  # as irrational as a ratio can be
_PAIRS = (
    ("1, 1", 1.0, 1.0),
    ("1, 0.618", 1.0, _GOLDEN),
    ("1/2, 1/2", 0.5, 0.5),
    ("1/2, 0.618", 0.5, _GOLDEN),
    ("0.4, 0.4", 0.4, 0.4),
    ("0.707, 0.618", math.sqrt(0.5), _GOLDEN),
    ("0.001, 0.618", 0.001, _GOLDEN),
)


@dataclass(frozen=True)
class _Sum:
    """One residual sum: per cent of elements that differ in float, in integers, if errors were independent, after the clamp."""

    name: str
    in_float: float
    in_integers: float
    expected: float
    clamped: float


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The example, uniform numbers, differing scales, the sums of ResNet-20 and MobileNetV2 (small), and what it does to them.

    ``settings`` say how much of it; ``tell`` is called with (what, parts done, parts).
    """
    nets = () if settings.smoke else _NETS
    steps = 1 + len(nets) * 3 * settings.seeds
    uniform, spread = _uniform(1000 if settings.smoke else _DRAWS)
    scales = _scales()
    tell("numbers", 1, steps)
    done = 1
    sums: dict[tuple[str, str], list[list[_Sum]]] = {}
    whole: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    data = None if settings.smoke else load_data(settings.data, data_dir=settings.data_dir)
    for net in nets:
        for seed in range(settings.seeds):
            lab = open_lab(net, replace(settings, images=min(_IMAGES, settings.images or _IMAGES)), seed, data)
            done += 1
            tell(f"{net}, seed {seed}", done, steps)
            for bits in (8, 4):
                key = (net, f"W{bits}A{bits}")
                integer = IntegerNet(convert(lab.graph, lab.calibration, lab.plan(bits, bits)))
                sums.setdefault(key, []).append(_sums(lab, integer))
                whole.setdefault(key, []).append(_networks(lab, integer))
                done += 1
                tell(f"{net} {key[1]}, seed {seed}", done, steps)
    tables = [_example(), uniform, scales]
    figures = [_ratios()]
    if sums:
        tables += [_mean_sums(sums), _whole(whole)]
        figures += [_by_sum(net, sums) for net in nets]
    return StudyResult(
        tuple(tables),
        _findings(spread, sums, whole),
        tuple(figures),
        (
            "Two parts: for errors e_a, e_b independent and uniform on [-1/2, 1/2) their sum has a triangular density, and "
            "leaves that interval with probability 2 (1/2 * 1/2 * 1/2) = 1/4. For any e_a beside a uniform e_b it is the mean "
            "of |e_a|: 0 where a is on the grid already, w / 4 where e_a is uniform on an interval of length w.",
            "In an engine a and b are integers times a ratio of scales S_a / S_y. If the ratio is no simple fraction the errors "
            "are spread evenly (Weyl), and 1/4 holds. *Expected* counts all pairs of the two branches' own errors, as if they "
            "were independent; zeros after a ReLU have no error and lower it.",
            "labkit's engine adds first and rounds once (docs/arithmetic.md, eq. 19), with an error of at most 1/2 step and "
            "variance 1/12. HAWQ-V3 rounds each branch to the output's scale and adds the integers: at most 1 step, variance "
            "1/6. *Two roundings* is that sum, put into the engine in place of labkit's.",
            "Weights and activations are rounded to nearest on min-max ranges, calibration images drawn anew for each seed.",
        ),
    )


def _example() -> Table:
    rows = []
    for a, b in ((2.4, 1.3), (2.5, 1.3), (2.4, 1.0)):
        parts, both = (int(np.floor(v + 0.5)) for v in (a, b)), int(np.floor(a + b + 0.5))
        first, second = parts
        rows.append((f"{a} + {b}", both, f"{first} + {second} = {first + second}", first + second - both))
    return Table(
        "The slides' example, and two more", ("a + b", "Int(a + b)", "Int(a) + Int(b)", "difference"), tuple(rows)
    )


def _uniform(draws: int) -> tuple[Table, float]:
    """Measured against the formula for 2 to 5 parts, and how many standard errors they are apart at most."""
    generator, rows, apart = np.random.default_rng(0), [], 0.0
    for parts in (2, 3, 4, 5):
        values = generator.uniform(-100, 100, (parts, draws))
        difference = np.floor(values + 0.5).sum(0) - np.floor(values.sum(0) + 0.5)
        share, exact = float((difference != 0).mean()), uniform_mismatch(parts)
        apart = max(apart, abs(share - exact) / math.sqrt(exact * (1 - exact) / draws))
        left = float(np.var(np.floor(values + 0.5).sum(0) - values.sum(0)))
        rows.append(
            (
                parts,
                f"{100 * share:.2f}",
                f"{100 * exact:.2f}",
                int(np.abs(difference).max()),
                f"{left:.4f}",
                f"{parts / 12:.4f}",
            )
        )
    heads = (
        "parts",
        "mismatch, %",
        "by formula, %",
        "largest, steps",
        "variance of the sum of rounded parts",
        "parts / 12",
    )
    return Table(f"Sums of uniform numbers, {draws:,} draws", heads, tuple(rows)), apart


def _scales() -> Table:
    rows = []
    for label, one, other in _PAIRS:
        a, b = scaled_errors(one), scaled_errors(other)
        rows.append((label, f"{100 * independent(a, b):.2f}", f"{100 * np.abs(a).mean():.2f}"))
    return Table(
        "Integers 0 to 255 at two scales: all 65,536 pairs",
        ("S_a / S_y, S_b / S_y", "mismatch, %", "mean of e_a without sign, %"),
        tuple(rows),
    )


def _ratios() -> Figure:
    ratios = np.sort(np.concatenate([np.geomspace(5e-4, 1.5, 120), [1 / 3, 1 / 2, 1.0]]))
    other = scaled_errors(_GOLDEN)
    counted = tuple(100 * independent(scaled_errors(float(r)), other) for r in ratios)
    return Figure(
        "ratios",
        "How often two roundings are not one, by the scale of a branch",
        "line",
        "S_a / S_y (the other branch: 0.618)",
        "mismatch, % of all pairs of integers",
        (Series("integers 0 to 255", tuple(float(r) for r in ratios), counted),),
        {"same scale": 1.0},
        log_x=True,
    )


def _sums(lab: Lab, integer: IntegerNet) -> list[_Sum]:
    """Each residual sum on the engine's own integers, and on the float network's numbers."""
    graph, images = integer.graph, lab.x[:_LOOKED_AT]
    trace, floats = integer.trace(images), run_float(lab.graph, {lab.graph.inputs[0]: images})
    found = []
    for node in graph:
        if not isinstance(node.op, int_ops.Add):
            continue
        centred = [trace[n].astype(np.int64) - int(graph[n].output.quantized[1].zero_point) for n in node.inputs]
        first, second, differs = branch_errors(node.op, *centred)
        low, high = node.op.clamp
        apart = add_separately(
            centred[0],
            centred[1],
            zero_points=(0, 0),
            multipliers=node.op.multipliers,
            shift=node.op.shift,
            output_zero_point=node.op.zero_point,
            clamp=(low, high),
        )
        step = float(node.output.quantized[1].scale)
        real = [floats[n].astype(np.float64) / step for n in node.inputs]
        outside = errors(real[0]) + errors(real[1])
        found.append(
            _Sum(
                node.name,
                100 * float(((outside < -0.5) | (outside >= 0.5)).mean()),
                100 * float(differs.mean()),
                100 * independent(first.reshape(-1), second.reshape(-1)),
                100 * float((apart != trace[node.name]).mean()),
            )
        )
    return found


def _networks(lab: Lab, integer: IntegerNet) -> tuple[float, float, float]:
    """Accuracy of one rounding and of two, and how many images change class, per cent."""
    once = integer.run(lab.x)
    twice = integer.run(lab.x, kernels=REFERENCE.with_override("add", add_separately))
    return lab.score(once), lab.score(twice), 100 * float((once.argmax(1) != twice.argmax(1)).mean())


def _mean_sums(sums: dict[tuple[str, str], list[list[_Sum]]]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for (net, bits), runs in sums.items():
        flat = [[float(np.mean([getattr(s, part) for s in run])) for run in runs] for part in _PARTS]
        rows.append((net, bits, len(runs[0]), *(mean_and_spread(values, 1) for values in flat)))
    return Table(
        "Residual sums: elements where Int(a) + Int(b) is not Int(a + b), % (mean over the sums)",
        ("net", "bits", "sums", "float a, b", "integer a, b", "expected of integers", "integers, after the clamp"),
        tuple(rows),
    )


_PARTS = ("in_float", "in_integers", "expected", "clamped")


def _whole(whole: dict[tuple[str, str], list[tuple[float, float, float]]]) -> Table:
    rows: list[tuple[str, ...]] = [
        (net, bits, *(mean_and_spread([run[part] for run in runs]) for part in range(3)))
        for (net, bits), runs in whole.items()
    ]
    heads = ("net", "bits", "one rounding: accuracy, %", "two roundings: accuracy, %", "other class, % of images")
    return Table("All residual sums of a network with two roundings in place of one", heads, tuple(rows))


def _by_sum(net: str, sums: dict[tuple[str, str], list[list[_Sum]]]) -> Figure:
    series = []
    for (name, bits), runs in sums.items():
        if name == net:
            x = tuple(float(i + 1) for i in range(len(runs[0])))
            for part, label in (("in_integers", "measured"), ("expected", "expected")):
                means = tuple(float(np.mean([getattr(run[i], part) for run in runs])) for i in range(len(x)))
                series.append(Series(f"{bits}, {label}", x, means))
    return Figure(
        f"{net}-sums",
        f"{net}: residual sums that two roundings change, before the clamp",
        "line",
        "residual sum, from input to output",
        "elements that differ, %",
        tuple(series),
    )


def _findings(
    apart: float,
    sums: dict[tuple[str, str], list[list[_Sum]]],
    whole: dict[tuple[str, str], list[tuple[float, float, float]]],
) -> tuple[Finding, ...]:
    once, parts = int(np.floor(2.4 + 1.3 + 0.5)), int(np.floor(2.4 + 0.5)) + int(np.floor(1.3 + 0.5))
    found = [
        Finding(
            "Int(2.4 + 1.3) = 4, Int(2.4) + Int(1.3) = 3",
            f"{once} and {parts}",
            "yes" if (once, parts) == (4, 3) else "no",
        ),
        Finding(
            "(derived) two parts with uniform errors differ in 1/4 of all cases, more parts more often",
            f"2 to 5 parts: at most {apart:.1f} standard errors from the formula",
            "yes" if apart < 4 else "no",
        ),
    ]
    for (net, bits), runs in sums.items():
        measured = [s.in_integers for run in runs for s in run]
        gaps = [abs(s.in_integers - s.expected) for run in runs for s in run]
        found.append(
            Finding(
                f"{net} {bits}: residual sums differ as independent errors do",
                f"{min(measured):.1f} to {max(measured):.1f} % by sum; at most {max(gaps):.1f} points from expected",
                "yes" if max(gaps) < 3 else "partly" if float(np.mean(gaps)) < 3 else "no",
            )
        )
    for (net, bits), results in whole.items():
        other = [r[2] for r in results]
        drops = [r[1] - r[0] for r in results]
        found.append(
            Finding(
                f"{net} {bits}: the difference is O(1) and propagates through the network",
                f"{mean_and_spread(other)} % of images change class; accuracy {mean_and_spread(drops)} points",
                "yes" if min(other) > 1 else "partly" if max(other) > 0 else "no",
            )
        )
    return tuple(found)
