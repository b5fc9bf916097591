"""EE219 lab, section V.E (a): the KL threshold, by the report's example, on real histograms, and in the integer engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.data import load as load_data
from labkit.quantization.calibration import choose_ranges
from labkit.quantization.clipping.divergence import KLCurve, kl_divergence, merge_and_expand
from labkit.quantization.clipping.kl import VARIANTS, kl_curve, kl_range
from labkit.quantization.histogram import Histogram
from labkit.studies.ee219.kl_example import EXAMPLE, EXPANDED, LEVELS, example_table
from labkit.studies.evidence import contrast, redrawn, right_answers, spread
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run", "thinned"]

_POINTS = 150  # of a curve in a figure
_BITS = (8, 6, 4)
_WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "min-max": ("minmax", {}),
    **{f"KL, {variant}": ("kl", {"variant": variant}) for variant in VARIANTS},
}
_SHOWN = {"lenet": ("x", "conv1", "conv2", "fc1", "fc2", "fc3"), "resnet20": ("conv1", "add", "add_4", "add_8", "pool")}
_ONE = "conv2"  # LeNet's tensor on which the four variants are shown together
_IMAGES = {"resnet20": 5000}  # of the test images, for time's sake
_EIGHT = QuantSpec(8, narrow=True)  # the lab's grid for activations


@dataclass(frozen=True, eq=False)
class _Measured:
    """A net: its first draw, and by (grid, bits, way) which images it gets right, bool [draws, images]."""

    lab: Lab
    right: Mapping[tuple[str, int, str], NDArray[np.bool_]]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The example step by step, curves and thresholds of four KL searches, and what networks get right with them.

    ``settings`` say how much of it; ``tell`` is called with (net, ranges done, ranges).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    names = ("lenet",) if settings.smoke else ("lenet", "resnet20")
    nets = []
    for name in names:
        images = min(settings.images or len(data.test_labels), _IMAGES.get(name, len(data.test_labels)))
        lab = open_lab(name, replace(settings, images=images), 0, data)
        nets.append(_measure(lab, settings, tell))
    tables = [example_table()]
    tables += [_threshold_table(net.lab) for net in nets] + [_accuracy_table(net, settings) for net in nets]
    figures = [_curves(net.lab) for net in nets] + [_four(nets[0].lab)]
    return StudyResult(tuple(tables), _findings(nets), tuple(figures), _notes(settings, nets))


def thinned(curve: KLCurve, points: int = _POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds and divergences of ``curve`` for a figure: the finite ones, the least of each of ``points`` stretches.

    Returns two float64 arrays [K], K at most ``points``. The least divergence of the curve is among them.
    """
    reach = np.maximum(np.abs(curve.low), np.abs(curve.high))
    finite = np.flatnonzero(np.isfinite(curve.divergence))
    stretches = [part for part in np.array_split(finite, min(points, max(1, len(finite)))) if len(part)]
    chosen = np.array([part[np.argmin(curve.divergence[part])] for part in stretches], np.int64)
    return reach[chosen], curve.divergence[chosen]


def _reach(ends: tuple[float, float]) -> float:
    return max(abs(ends[0]), abs(ends[1]))


def _largest(histogram: Histogram) -> float:
    return _reach((histogram.statistics.minimum, histogram.statistics.maximum))


def _cut_off(histogram: Histogram, limit: float) -> float:
    """The share of values that are not 0 whose magnitude is beyond ``limit``."""
    points, counts = histogram.points()
    return float(counts[np.abs(points) > limit].sum() / max(1, counts.sum()))


def _without_zeros(histogram: Histogram) -> float:
    """The threshold of the slides' loop on the values of ``histogram`` that are not 0."""
    return min(_reach(kl_curve(replace(histogram, zeros=0), _EIGHT, "tensorrt").chosen), _largest(histogram))


def _threshold_table(lab: Lab) -> Table:
    rows = []
    for name, histogram in lab.calibration.histograms.items():
        largest = _largest(histogram)
        cells: list[str] = [name, f"{largest:.3f}"]
        for variant in VARIANTS:
            own = _reach(kl_curve(histogram, _EIGHT, variant).chosen)
            taken = _reach(kl_range(histogram, _EIGHT, variant))
            mark = "" if min(own, largest) == taken else f" (labkit: {taken:.2f})"
            cells.append(f"{min(own, largest):.2f}, {min(own / largest, 1):.0%}{mark}")
        cells.append(f"{_without_zeros(histogram):.2f}, {_without_zeros(histogram) / largest:.0%}")
        cells.append(f"{_cut_off(histogram, _reach(kl_range(histogram, _EIGHT, 'tensorrt'))):.1%}")
        rows.append(tuple(cells))
    return Table(
        f"{lab.net}: thresholds for 8 bits, symmetric, and their share of the largest magnitude",
        ("tensor", "largest magnitude", *VARIANTS, "tensorrt, zeros left out", "values but zeros beyond tensorrt's"),
        tuple(rows),
    )


def _measure(lab: Lab, settings: Settings, tell: Tell) -> _Measured:
    grids = ("symmetric", "affine") if lab.net == "lenet" and not settings.smoke else ("symmetric",)
    found: dict[tuple[str, int, str], list[NDArray[np.bool_]]] = {}
    total, done, first = settings.seeds * len(grids) * len(_BITS) * len(_WAYS), 0, lab
    for seed in range(settings.seeds):
        drawn = redrawn(lab, settings, seed)
        first = drawn if seed == 0 else first
        for grid in grids:
            for bits in _BITS:
                plan = replace(drawn.plan(8, bits, per_channel=grid == "affine"), activation_scheme=grid)
                for way, (method, options) in _WAYS.items():
                    ranges = choose_ranges(drawn.calibration, drawn.graph, plan, method, **options)
                    found.setdefault((grid, bits, way), []).append(right_answers(drawn, plan, ranges))
                    done += 1
                    tell(lab.net, done, total)
    return _Measured(first, {key: np.stack(draws) for key, draws in found.items()})


def _accuracy_table(net: _Measured, settings: Settings) -> Table:
    grids = list(dict.fromkeys(grid for grid, _, _ in net.right))
    rows = tuple(
        (grid, way, *(spread(net.right[grid, bits, way]) for bits in _BITS)) for grid in grids for way in _WAYS
    )
    return Table(
        f"{net.lab.net}: accuracy, % (float {net.lab.accuracy:.2f} %), weights in 8 bits, {len(net.lab.labels):,} "
        "test images",
        ("grid of activations", "ranges", *(f"activations in {bits} bits" for bits in _BITS)),
        rows,
    )


def _curves(lab: Lab) -> Figure:
    shown = [name for name in _SHOWN[lab.net] if name in lab.calibration.histograms]
    panels = []
    for name in shown:
        histogram = lab.calibration.histograms[name]
        series = []
        for variant in ("toolkit", "tensorrt"):
            at, divergence = thinned(kl_curve(histogram, _EIGHT, variant))
            if len(at):
                series.append(Series(variant, tuple(map(float, at)), tuple(np.maximum(divergence, 1e-7))))
        marks = {
            "toolkit's threshold": _reach(kl_curve(histogram, _EIGHT, "toolkit").chosen),
            "tensorrt's threshold": _reach(kl_curve(histogram, _EIGHT, "tensorrt").chosen),
            "largest magnitude": _largest(histogram),
        }
        title = "input" if name in lab.graph.inputs else name
        panels.append(Figure(name, title, "line", "threshold", "KL divergence, nats", tuple(series), marks, log_y=True))
    title = f"{lab.net}: divergence against threshold, 8 bits"
    return Figure(f"{lab.net}-kl-curves", title, "line", "", "", (), panels=tuple(panels))


def _four(lab: Lab) -> Figure:
    """The four variants on one histogram, each by its own divergence, in nats."""
    histogram = lab.calibration.histograms[_ONE]
    series, marks = [], {}
    for variant in VARIANTS:
        curve = kl_curve(histogram, _EIGHT, variant)
        at, divergence = thinned(curve)
        unit = np.log(10) if variant == "ppq" else 1.0  # PPQ's logarithm is to base 10
        label = f"{variant}, best {_reach(curve.chosen):.2f}"
        series.append(Series(label, tuple(map(float, at)), tuple(np.maximum(unit * divergence, 1e-7))))
    marks["largest magnitude"] = _largest(histogram)
    return Figure(
        f"{lab.net}-{_ONE}-variants",
        f"{lab.net}, {_ONE}: four searches on one histogram, 8 bits",
        "line",
        "threshold",
        "KL divergence, nats",
        tuple(series),
        marks,
        log_y=True,
    )


def _findings(nets: Sequence[_Measured]) -> tuple[Finding, ...]:
    expanded = merge_and_expand(EXAMPLE, LEVELS).tolist()
    found = [
        Finding(
            f"figure 5: {list(EXAMPLE)} becomes {EXPANDED}",
            f"{[int(v) if v == int(v) else v for v in expanded]}, divergence "
            f"{kl_divergence(EXAMPLE, expanded):.4f} nats",
            "yes" if expanded == EXPANDED else "no",
        )
    ]
    for net in nets:
        name, grid = net.lab.net, "symmetric"
        narrower = {
            variant: sum(
                _reach(kl_range(h, _EIGHT, variant)) < 0.999 * _largest(h)
                for h in net.lab.calibration.histograms.values()
            )
            for variant in VARIANTS
        }
        tensors = len(net.lab.calibration.histograms)
        found.append(
            Finding(
                f"{name}: KL finds a threshold below the largest magnitude",
                ", ".join(f"{variant} for {count}" for variant, count in narrower.items()) + f" of {tensors} tensors",
                "yes" if min(narrower.values()) > tensors / 2 else "partly" if max(narrower.values()) else "no",
            )
        )
        for bits in (8, 4):
            base = net.right[grid, bits, "min-max"]
            changes = {v: contrast(net.right[grid, bits, f"KL, {v}"], base) for v in VARIANTS}
            better, worse = [v for v in VARIANTS if changes[v].is_better], [v for v in VARIANTS if changes[v].is_worse]
            found.append(
                Finding(
                    f"{name}: with activations in {bits} bits a KL threshold makes better use of them than the "
                    "actual range",
                    ", ".join(f"{v} {changes[v]}" for v in VARIANTS),
                    "yes" if len(better) == len(VARIANTS) else "partly" if better else "no",
                )
            )
            if bits == 8:
                found.append(
                    Finding(
                        f"{name}: a proper threshold does not affect the precision (8 bits)",
                        f"clearly worse than min-max: {', '.join(worse) or 'none'}",
                        "yes" if not worse else "partly" if len(worse) < len(VARIANTS) else "no",
                    )
                )
        losses = {
            bits: contrast(net.right[grid, bits, "KL, tensorrt"], net.right[grid, bits, "KL, toolkit"])
            for bits in _BITS
        }
        found.append(
            Finding(
                f"{name}: the loop of figure 5, as it stands, is the one to take",
                "it counts the zeros of a ReLU like any value; against the toolkit's, which does not: "
                + ", ".join(f"{bits} bits {change}" for bits, change in losses.items()),
                "no"
                if all(c.is_worse for c in losses.values())
                else "partly"
                if any(c.is_worse for c in losses.values())
                else "yes",
            )
        )
    return tuple(found)


def _notes(settings: Settings, nets: Sequence[_Measured]) -> tuple[str, ...]:
    few = [net.lab for net in nets if len(net.lab.labels) < max(len(n.lab.labels) for n in nets)]
    return (
        f"Histograms of {settings.calibration} training images (draw 0 in thresholds and figures; accuracies are "
        f"means and sample deviations over {settings.seeds} draws). One histogram a tensor, bins a power of two "
        "wide; each variant merges it to the number of bins its source takes.",
        "`tensorrt` is the loop of the slides that the report quotes; `toolkit` NVIDIA's pytorch-quantization, "
        "labkit's default; `onnxruntime` and `ppq` as their sources have them. How they differ stands in "
        "labkit/quantization/clipping/kl_*.py.",
        "The symmetric grid with one weight scale a layer is the lab's; the affine one, with a weight scale a "
        "channel, labkit's default. Logits and input: the range of the logits stays the actual one (a saturated "
        "logit changes the answer, not its precision), input and logits keep 8 bits.",
        "In accuracies labkit passes over a threshold that cuts off more than half of the values that are not 0 "
        "(`kl_range`); where that changed a variant's own choice at 8 bits, the table of thresholds says so.",
        "Why the slides' loop cuts so deep: after a ReLU the zeros share the first bin with the smallest values, "
        "and a level of two bins or more mixes that bin with its neighbors, which costs more divergence than all "
        "outliers do. A level has i // 128 bins, so that the least divergence stands just below a multiple of "
        "128 bins, where levels are as narrow as can be. With the zeros left out of the count (a column of the "
        "thresholds) the same loop takes thresholds close to the toolkit's. At fewer bits levels are wider still.",
        *(f"{lab.net} was tested on the first {len(lab.labels):,} test images, for time's sake." for lab in few),
    )
