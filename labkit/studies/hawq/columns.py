"""The slides' columns Size (MB) and BOPS (G), counted again from the shapes of the layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labkit.models.brought import bring
from labkit.studies.hawq.counting import Counted, a_plan, all_plans, bops, count, megabytes, stride_first
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_PIXELS = {"resnet50": 224, "mobilenet_v2": 224, "inception_v3": 299}


@dataclass(frozen=True)
class _Row:
    """A row of the slides: network, method, bits of weights and activations, first and last layer's, size and BOPS."""

    net: str
    method: str
    weights: int
    activations: int
    size: float
    bops: float
    ends: tuple[int, int] | None = None  # bits of weights and activations there


_PRINTED = (
    _Row("resnet50", "baseline", 32, 32, 97.8, 3951),
    _Row("resnet50", "HAWQ-V3, Jacob, RVQuant W8A8", 8, 8, 24.5, 247),
    _Row("resnet50", "PACT, RVQuant W5A5", 5, 5, 16.0, 101, (8, 8)),
    _Row("resnet50", "LQ-Nets W4A32", 4, 32, 13.1, 486, (8, 8)),
    _Row("resnet50", "OneBitwidth W1*A8, as W4A32", 4, 32, 12.3, 494),
    _Row("mobilenet_v2", "baseline", 32, 32, 13.2, 322),
    _Row("mobilenet_v2", "W8A8", 8, 8, 3.3, 20),
    _Row("inception_v3", "baseline", 32, 32, 90.9, 5850),
    _Row("inception_v3", "W8A8", 8, 8, 22.7, 366),
)
_MIXED = (18.7, 154.0)
# Compression and size in the slides' table on HAQ and HAWQ-V2; and sizes before and after in that on Q-ASR.
_RATIOS = (
    ("ResNet50, HAQ", 97.8, 9.22, 10.57),
    ("ResNet50, HAWQ-V2", 97.8, 7.99, 12.24),
    ("InceptionV3, HAQ", 91.2, 9.12, 10.00),
    ("InceptionV3, HAWQ-V2", 91.2, 7.57, 12.04),
    ("SqueezeNext, HAQ", 10.1, 1.01, 10.00),
    ("SqueezeNext, HAWQ-V2", 10.1, 1.07, 9.40),
    ("QuartzNet, size W8A8", 73.81, 18.45, 4.0),
    ("QuartzNet, BOPS W8A8", 1890, 118, 16.0),
    ("Jasper, size W8A8", 1208, 302.0, 4.0),
    ("Jasper, BOPS W8A8", 33.3, 2.08, 16.0),
)


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Count ResNet-50, MobileNetV2 and InceptionV3 of torchvision, with random weights: shapes are all that matters.

    ``settings`` only say whether all of them; ``tell`` is called with (what, parts done, parts).
    """
    names = ("mobilenet_v2",) if settings.smoke else tuple(_PIXELS)
    nets: dict[str, Counted] = {}
    for done, name in enumerate(names):
        module = bring(f"torchvision.models:{name}")
        pixels = 64 if settings.smoke else _PIXELS[name]
        if name == "resnet50":
            nets["resnet50 as in torchvision"] = count(module, (3, pixels, pixels))
            stride_first(module)
        nets[name] = count(module, (3, pixels, pixels))
        tell(name, done + 1, len(names))
    tables = [_columns(nets), _conventions(nets), _consistency()]
    figures, findings = [], list(_findings(nets))
    if "resnet50" in nets:
        table, figure, found = _mixed(nets["resnet50"])
        tables.insert(2, table)
        figures.append(figure)
        findings.append(found)
    return StudyResult(
        tuple(tables),
        tuple(findings),
        tuple(figures),
        (
            "Counted: weights of convolutions and linear layers in units of 2^20 bytes, without biases and batch norms, and "
            "MACs x weight bits x input bits in units of 10^9. One image of 224 x 224 pixels, 299 x 299 for InceptionV3.",
            "ResNet-50 has the stride of a stage in its first 1x1 convolution here (He et al. 2015), which gives 3.86 GMACs. "
            "In torchvision it is in the 3x3 convolution: 4.09 GMACs and 4,187 G, which the slides do not print.",
            "MobileNetV2's 322 G are its MACs and two operations for each element that leaves a batch norm; no convention that "
            "counts them agrees with the other two networks. W5A5 and W4A32 agree if the first and last layer have 8 bits, "
            "weights and inputs.",
            "18.7 MB and 154 G are for bits that the authors' search chose and the slides do not list. Every plan that gives "
            "each layer 4 or 8 bits was counted, weights and the inputs that they meet alike, 8 bits in the first and last "
            "layer; so many have both figures that these do not tell which was meant. [networks.md](../../networks.md) counts "
            "two plans of the authors' repository: bops_0.5 with 18.4 MB and 157 G, modelsize_0.5 with 18.7 MB and 201 G.",
            "OneBitwidth's row says W1*A8; 494 G are 3,951 / 8, as of weights of 4 bits with activations of 32. HAQ's 9.62 MB "
            "and 520 G (WMPA32) are of bits that differ by layer and cannot be counted without them.",
        ),
    )


def _counted(row: _Row, net: Counted) -> tuple[float, float]:
    if row.ends is None:
        return megabytes(net, row.weights), bops(net, row.weights, row.activations)
    weights, inputs = (
        {layer.name: row.ends[i] if layer.name in net.ends else bits for layer in net.layers}
        for i, bits in enumerate((row.weights, row.activations))
    )
    return megabytes(net, weights), bops(net, weights, inputs)


def _columns(nets: dict[str, Counted]) -> Table:
    rows = []
    for row in _PRINTED:
        if row.net in nets:
            size, operations = _counted(row, nets[row.net])
            ends = "8 bits" if row.ends else "as the others"
            rows.append(
                (
                    row.net,
                    row.method,
                    ends,
                    f"{row.size:.1f}",
                    f"{size:.1f}",
                    f"{row.bops:,.0f}",
                    f"{operations:,.0f}",
                    f"{100 * (operations / row.bops - 1):+.1f}",
                )
            )
    heads = (
        "net",
        "row",
        "first and last layer",
        "size: slides, MB",
        "counted",
        "BOPS: slides, G",
        "counted",
        "BOPS apart, %",
    )
    return Table("The columns", heads, tuple(rows))


def _conventions(nets: dict[str, Counted]) -> Table:
    """What else could be counted, in float32, beside what is printed."""
    rows = []
    for row in _PRINTED:
        if row.method != "baseline" or row.net not in nets:
            continue
        net = nets[row.net]
        sizes = [4 * n / 2**20 for n in (net.weights, net.parameters, net.parameters + net.buffers)]
        operations = [1.024 * n / 1e6 for n in (net.macs, net.macs + net.normed, net.macs + 2 * net.normed)]
        rows.append(
            (
                row.net,
                f"{row.size:.1f}",
                *(f"{size:.2f}" for size in sizes),
                f"{row.bops:,.0f}",
                *(f"{g:,.1f}" for g in operations),
            )
        )
    heads = (
        "net",
        "size: slides, MB",
        "weights",
        "all parameters",
        "with running statistics",
        "BOPS: slides, G",
        "MACs",
        "MACs + 1 a normed element",
        "MACs + 2 a normed element",
    )
    return Table("Float32: what the printed figures may have counted", heads, tuple(rows))


def _mixed(net: Counted) -> tuple[Table, Figure, Finding]:
    plans = all_plans(net)
    of_size = np.abs(plans.sizes - _MIXED[0]) <= 0.05
    of_bops = np.abs(plans.bops - _MIXED[1]) <= 0.5
    both = int(plans.counts[np.ix_(of_size, of_bops)].sum())
    some_bops, some_sizes = plans.counts[of_size].sum(0) > 0, plans.counts[:, of_bops].sum(1) > 0
    low, high = plans.bops[some_bops].min(), plans.bops[some_bops].max()
    chosen = a_plan(net, *_MIXED)
    bits = {layer.name: 4 if layer.name in chosen else 8 for layer in net.layers}
    rows = [
        ("plans in all", f"2^{len(net.layers) - 2}"),
        ("plans of 18.7 MB", f"{int(plans.counts[of_size].sum()):.2e}, with {low:.0f} to {high:.0f} G"),
        (
            "plans of 154 G",
            f"{int(plans.counts[:, of_bops].sum()):.2e}, with {plans.sizes[some_sizes].min():.1f} to "
            f"{plans.sizes[some_sizes].max():.1f} MB",
        ),
        ("plans of both", f"{both:.2e}"),
        (
            f"one of them: {len(chosen)} layers of 4 bits",
            f"{megabytes(net, bits):.2f} MB, {bops(net, bits, bits):.1f} G: "
            + ", ".join(layer.name for layer in net.layers if layer.name in chosen),
        ),
    ]
    edges = []
    for start in range(0, len(plans.sizes), 60):  # a smooth edge: the extremes of a few neighbouring sizes
        reached = np.flatnonzero(plans.counts[start : start + 60].sum(0))
        edges.append((plans.sizes[start], plans.bops[reached[-1]], plans.bops[reached[0]]))
    size, least, most = (tuple(map(float, values)) for values in zip(*edges, strict=True))
    figure = Figure(
        "mixed-plans",
        "ResNet-50: what plans of 4 and 8 bits can have",
        "line",
        "size of the weights, MB",
        "BOPS, G",
        (
            Series("most", size, most),
            Series("fewest", size, least),
            Series("slides, mixed", (_MIXED[0],), (_MIXED[1],)),
            Series("slides, W8A8", (24.5,), (247.0,)),
            Series("bops_0.5", (18.4,), (157.0,)),
            Series("modelsize_0.5", (18.7,), (201.0,)),
        ),
    )
    found = Finding(
        "HAWQ-V3 W4/8A4/8: there is a plan of 4 and 8 bits with 18.7 MB and 154 G",
        f"{both:.1e} of the 2^{len(net.layers) - 2} plans by layer have both; those of 18.7 MB have {low:.0f} to {high:.0f} G",
        "yes" if both else "no",
    )
    return (
        Table("ResNet-50 with 4 or 8 bits by layer, 8 in the first and the last", ("", "counted"), tuple(rows)),
        figure,
        found,
    )


def _consistency() -> Table:
    rows = [
        (name, a, b, f"{a / b:.2f}", f"{ratio:.2f}", f"{100 * (a / b / ratio - 1):+.1f}")
        for name, a, b, ratio in _RATIOS
    ]
    return Table(
        "Ratios that the slides print, or that the bits give",
        ("row", "float32", "quantized", "ratio", "printed or expected", "apart, %"),
        tuple(rows),
    )


def _findings(nets: dict[str, Counted]) -> tuple[Finding, ...]:
    found = []
    for name in nets:
        rows = [row for row in _PRINTED if row.net == name]
        if not rows:
            continue
        apart = [max(abs(got / want - 1) for got, want in _pairs(row, nets[name])) for row in rows]
        sizes, operations = zip(*(_counted(row, nets[name]) for row in rows), strict=True)
        found.append(
            Finding(
                f"{name}: sizes {', '.join(f'{row.size:.1f}' for row in rows)} MB, "
                f"BOPS {', '.join(f'{row.bops:,.0f}' for row in rows)} G",
                f"{', '.join(f'{s:.1f}' for s in sizes)} MB, {', '.join(f'{o:,.0f}' for o in operations)} G; at most "
                f"{100 * max(apart):.1f} % apart",
                "yes" if max(apart) < 0.01 else "partly" if max(apart) < 0.05 or min(apart) < 0.01 else "no",
            )
        )
    worst = max(abs(a / b / ratio - 1) for _, a, b, ratio in _RATIOS)
    found.append(
        Finding(
            "The ratios of sizes and BOPS in the tables on HAQ and HAWQ-V2 and on Q-ASR",
            f"at most {100 * worst:.1f} % apart",
            "yes" if worst < 0.01 else "partly" if worst < 0.05 else "no",
        )
    )
    return tuple(found)


def _pairs(row: _Row, net: Counted) -> tuple[tuple[float, float], ...]:
    size, operations = _counted(row, net)
    return (size, row.size), (operations, row.bops)
