"""The slides' "Simulated/Fake Quantization Error": the same quantized network in integers and in float32, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Literal

import numpy as np

from labkit.data import load as load_data
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.studies.hawq.differences import Depth, compare
from labkit.studies.hawq.fake import KINDS, Kind, branches
from labkit.studies.hawq.ties import LayerTies, layer_ties
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_NETS = ("resnet20", "mobilenetv2-small", "lenet")
_BITS = ((8, 8), (4, 4))
_IMAGES, _EXPLAINED = 200, 20
_DRAWN: tuple[Kind, ...] = ("all", "tensors", "layers")  # "sums" is close to "layers"


def run(settings: Settings, tell: Tell) -> StudyResult:
    """W8A8 and W4A4 of ResNet-20, MobileNetV2 (small) and LeNet: the engine against four simulations.

    ``settings`` say how much of it; ``tell`` is called with (what, parts done, parts).
    """
    shown = min(_IMAGES, settings.images or _IMAGES)
    data = load_data(settings.data, data_dir=settings.data_dir)
    nets = _NETS[-1:] if settings.smoke else _NETS
    total, done = len(nets) * settings.seeds * len(_BITS), 0
    depths: dict[tuple[str, str, Kind], list[Depth]] = defaultdict(list)
    ties: dict[tuple[str, str], list[LayerTies]] = defaultdict(list)
    floats: dict[str, FloatGraph] = {}
    for net in nets:
        lab = open_lab(net, replace(settings, images=shown), 0, data)
        for seed in range(settings.seeds):
            if seed:
                images = data.calibration(settings.calibration, seed)
                lab = replace(lab, images=images, calibration=calibrate(lab.graph, images), seed=seed)
            floats[net] = lab.graph
            kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "sums" or branches(lab.graph))
            for weights, activations in _BITS:
                bits = f"W{weights}A{activations}"
                integer = _integer(lab, weights, activations)
                for kind, depth in compare(lab.graph, integer, lab.x, kinds).items():
                    depths[net, bits, kind].append(depth)
                few = lab.x[: 10 if settings.smoke else _EXPLAINED]
                ties[net, bits] += layer_ties(lab.graph, integer.graph, integer.trace(few))
                done += 1
                tell(f"{net} {bits}, seed {seed}", done, total)
    first = nets[0]
    return StudyResult(
        (_explained(ties), _ends(depths, floats), _by_layer(first, depths, floats[first])),
        _findings(depths, ties, floats),
        tuple(_figure(net, depths, floats[net]) for net in nets if branches(floats[net]) or settings.smoke),
        (
            f"Each network is quantized to nearest from {settings.calibration:,} calibration images (drawn with "
            f"{settings.seeds} seeds) and runs on {shown:,} test images: in the engine, and in float32 with the same integer "
            "weights and the same grids. Differences are measured on the grid of each tensor, after rounding to it.",
            "Four simulations. *Every tensor and bias rounded*: only the arithmetic is float32. *Every tensor rounded*: biases "
            "are float too, as in most frameworks. *Branches of sums in float*: besides, the convolution before a residual sum "
            "is not rounded, so that the sum rounds once what integers round twice. *Only layer inputs rounded*: shortcuts, "
            "sums and pooling are float32, and values are rounded (and clipped to their range) only where a convolution or a "
            "linear layer reads them. LeNet has neither sums nor biases.",
            "The slides show a ResNet-50 on ImageNet that was trained in simulation. Here nothing is trained, so the difference "
            "says how far the deployed network is from the simulated one, and not what accuracy that costs.",
            "The bound of an element: the rounded bias moves a result by at most S_w S_x / (2 S_y) steps, the multiplier by "
            "2^-31 of it, and float32 by (products + 6) 2^-24 of the sum of magnitudes. An element may differ only where its "
            "real result, known in float64 from the engine's own input, is nearer to a tie than the larger of the integers' "
            "error and float32's. The expected number takes the fractions of a layer's results as evenly spread, which a channel "
            "that is nearly constant is not.",
            "Why rounded biases matter most at 4 bits: a bias is rounded to multiples of S_w S_x, which are 18 * 17 times "
            "coarser there; sums of products of 4 bits are small integers, of which hardly any is near enough to a tie for "
            "float32 to miss it. A simulation that rounds biases to int32 at the scale S_w S_x is then the deployed network.",
        ),
    )


def _integer(lab: Lab, weights: int, activations: int) -> IntegerNet:
    return IntegerNet(convert(lab.graph, lab.calibration, lab.plan(weights, activations)))


def _explained(ties: dict[tuple[str, str], list[LayerTies]]) -> Table:
    rows = []
    for (net, bits), layers in ties.items():
        differing = sum(layer.differing for layer in layers)
        rows.append(
            (
                net,
                bits,
                f"{sum(layer.elements for layer in layers):,}",
                f"{differing:,}",
                f"{sum(layer.predicted for layer in layers):,.0f}",
                max(layer.largest for layer in layers),
                f"{max(layer.farthest for layer in layers):.2f}",
                sum(layer.unexplained for layer in layers),
            )
        )
    return Table(
        "One layer at a time, float32 against integers on the engine's own input",
        (
            "net",
            "bits",
            "elements",
            "differ",
            "expected from rounded biases",
            "largest, steps",
            "farthest from a tie, of its bound",
            "not explained",
        ),
        tuple(rows),
    )


def _ends(depths: dict[tuple[str, str, Kind], list[Depth]], floats: dict[str, FloatGraph]) -> Table:
    rows = []
    for (net, bits, kind), found in depths.items():
        if kind != "all" and not branches(floats[net]):
            continue  # without sums and biases all simulations are the same
        last = floats[net].outputs[0]
        rows.append(
            (
                net,
                bits,
                KINDS[kind],
                mean_and_spread([100 * depth.normalised(last) for depth in found]),
                mean_and_spread([depth.share(last) for depth in found], 1),
                max(depth.largest[last] for depth in found),
                max(max(depth.largest.values()) for depth in found),
                mean_and_spread([100 * depth.flipped for depth in found]),
            )
        )
    return Table(
        "At the end of the network: logits and classes",
        (
            "net",
            "bits",
            "simulation",
            "difference of logits, %",
            "logits that differ, %",
            "largest, steps",
            "largest anywhere, steps",
            "other class, % of images",
        ),
        tuple(rows),
    )


def _by_layer(net: str, depths: dict[tuple[str, str, Kind], list[Depth]], graph: FloatGraph) -> Table:
    """The residual sums (or all layers, where there are none), and the first and last layer."""
    names = _shown(graph)
    sums = [name for name in names if isinstance(graph[name].op, float_ops.Add)]
    chosen = [names[0], *sums, names[-1]] if sums else names
    columns = [(bits, kind) for (found, bits, kind) in depths if found == net and kind in _DRAWN]
    rows = []
    for name in chosen:
        cells = []
        for bits, kind in columns:
            found = depths[net, bits, kind]
            mean = 100 * float(np.mean([depth.normalised(name) for depth in found]))
            cells.append(f"{mean:.2g} ({max(depth.largest[name] for depth in found)})")
        rows.append((name, *cells))
    heads = tuple(f"{bits}, {KINDS[kind]}" for bits, kind in columns)
    return Table(f"{net}: normalised difference in % (largest, in steps) by depth", ("tensor", *heads), tuple(rows))


def _figure(net: str, depths: dict[tuple[str, str, Kind], list[Depth]], graph: FloatGraph) -> Figure:
    names = _shown(graph)
    series = []
    for (found, bits, kind), runs in depths.items():
        if found == net and kind in _DRAWN:
            points = [(i + 1, 100 * np.mean([d.normalised(n) for d in runs])) for i, n in enumerate(names)]
            kept = [(x, y) for x, y in points if y > 0]  # nothing to draw on a logarithmic axis
            series.append(
                Series(
                    f"{bits}, {KINDS[kind]}{'' if kept else ' (0)'}",
                    tuple(float(x) for x, _ in kept),
                    tuple(float(y) for _, y in kept),
                )
            )
    return Figure(
        f"{net}-depth",
        f"{net}: simulated against deployed",
        "line",
        "tensor, from input to output",
        "||simulated - deployed|| / ||deployed||, %",
        tuple(series),
        log_y=True,
    )


def _findings(
    depths: dict[tuple[str, str, Kind], list[Depth]],
    ties: dict[tuple[str, str], list[LayerTies]],
    floats: dict[str, FloatGraph],
) -> tuple[Finding, ...]:
    found = []
    net = next(iter(floats))
    names = _shown(floats[net])
    kind: Kind = "layers"
    early, late = {}, {}
    for bits in ("W8A8", "W4A4"):
        curve = [np.mean([depth.normalised(name) for depth in depths[net, bits, kind]]) for name in names]
        third = max(1, len(curve) // 3)
        early[bits], late[bits] = 100 * float(np.mean(curve[:third])), 100 * float(np.mean(curve[-third:]))
    found.append(
        Finding(
            f"{net}: the difference between fake quantization and what is deployed grows with depth",
            "; ".join(
                f"{bits}: {early[bits]:.2g} % in the first third, {late[bits]:.2g} % in the last" for bits in early
            )
            + f" ({KINDS[kind]})",
            _verdict([late[bits] > 1.5 * early[bits] for bits in early]),
        )
    )
    found.append(
        Finding(
            f"{net}: it becomes significant especially for low precision",
            f"last third: {late['W4A4']:.2g} % at W4A4, {late['W8A8']:.2g} % at W8A8; other class for "
            + ", ".join(
                f"{mean_and_spread([100 * d.flipped for d in depths[net, bits, kind]])} % at {bits}" for bits in late
            ),
            "yes" if late["W4A4"] > 3 * late["W8A8"] else "partly" if late["W4A4"] > late["W8A8"] else "no",
        )
    )
    with_sums = [name for name, graph in floats.items() if branches(graph)]
    for name in with_sums:
        sums = [node.name for node in floats[name] if isinstance(node.op, float_ops.Add)]
        cells, holds = [], []
        for bits in late:
            runs = depths[name, bits, "sums"]
            one = float(np.mean([depth.share(sums[0]) for depth in runs]))
            more = float(np.mean([100 * depth.beyond[sums[0]] / depth.elements[sums[0]] for depth in runs]))
            cells.append(f"{bits}: {one:.1f} % of elements differ, {more:.2g} % by more than one step")
            holds.append(one > 5 and more < 0.1 * one)
        found.append(
            Finding(
                f"{name}: Int(a + b) != Int(a) + Int(b) makes an error of O(1) in a residual sum",
                f"first sum, {KINDS['sums']}: {'; '.join(cells)}",
                _verdict(holds),
            )
        )
    whole = {bits: [depth.flipped for depth in depths[net, bits, "all"]] for bits in late}
    floats_only = {
        bits: 100 * float(np.mean([d.normalised(names[-1]) for d in depths[net, bits, "all"]])) for bits in late
    }
    with_bias = {
        bits: 100 * float(np.mean([d.normalised(names[-1]) for d in depths[net, bits, "tensors"]])) for bits in late
    }
    found.append(
        Finding(
            f"{net}: fake quantization differs from integers because it computes in FP32",
            "; ".join(
                f"{bits}: logits differ by {floats_only[bits]:.2g} % if biases are rounded too, by {with_bias[bits]:.2g} % "
                "if they stay float"
                for bits in late
            )
            + "; other class, biases rounded too: "
            + ", ".join(f"{mean_and_spread([100 * f for f in whole[bits]])} % at {bits}" for bits in late),
            _verdict([floats_only[bits] > 0.5 * with_bias[bits] for bits in late]),
        )
    )
    unexplained = sum(layer.unexplained for layers in ties.values() for layer in layers)
    differing = sum(layer.differing for layers in ties.values() for layer in layers)
    elements = sum(layer.elements for layers in ties.values() for layer in layers)
    expected = sum(layer.predicted for layers in ties.values() for layer in layers)
    found.append(
        Finding(
            "If every tensor is rounded where integers round it, what is left is rounding ties",
            f"{differing:,} of {elements:,} elements differ ({expected:,.0f} expected from rounded biases); {unexplained} of "
            "them lie beyond their bound",
            "yes" if unexplained == 0 else "no",
        )
    )
    return tuple(found)


def _verdict(holds: list[bool]) -> Literal["yes", "no", "partly"]:
    return "yes" if all(holds) else "partly" if any(holds) else "no"


def _shown(graph: FloatGraph) -> list[str]:
    moved = (float_ops.Input, float_ops.Flatten, float_ops.MaxPool2d)
    return [node.name for node in graph if not isinstance(node.op, moved)]
