"""Chen et al. 2021, supplement, figure 1: predicted against true loss change of random allocations, and HAWQ-V2's beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.sensitivity.candidates import BITS
from labkit.sensitivity.direct import loss_change
from labkit.sensitivity.hawq import hawq_sensitivity
from labkit.sensitivity.objective import Objective, make_objective
from labkit.sensitivity.perturbation import Projections, project_changes
from labkit.sensitivity.slopes import Directions
from labkit.sensitivity.traces import layer_traces
from labkit.studies.mpqco.allocations import curvature_along, random_allocations
from labkit.studies.mpqco.bench import CANDIDATES, Bench, nets, open_bench
from labkit.studies.mpqco.scores import Interval, line, median_interval, relative_errors
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["Sample", "run"]

Numbers = NDArray[np.float64]

# Which bits the layers may have, and the average: two ways to 8x, one of them without the bits at which nothing is small.
RANGES = (
    ("8x, 1 to 8 bits", BITS, 4.0),
    ("8x, 3 to 5 bits", (3, 4, 5), 4.0),
    ("5.3x, 4 to 8 bits", (4, 5, 6, 7, 8), 6.0),
)
_IMAGES, _ALLOCATIONS, _COMPARED = 256, 100, 50
_CURVED, _CURVED_IMAGES = 30, 128  # allocations for which the whole Hessian is asked, and images
_FIRST = "Gauss-Newton, full, with first order"
_WAYS = ("MPQCO, full", "MPQCO, block", "Gauss-Newton, full", "Gauss-Newton, block", _FIRST)
_RIVALS = ("MPQCO, full", "MPQCO, block", "HAWQ-V2, half", "HAWQ-V2, as printed", "Gauss-Newton, block", _FIRST)


@dataclass(frozen=True, eq=False)
class Sample:
    """Allocations of one network in one range of bits.

    net, span : which.
    distinct : different ones among them.
    truth : float64 [K], change of the loss.
    predicted : float64 [K] by way.
    """

    net: str
    span: str
    distinct: int
    truth: Numbers
    predicted: dict[str, Numbers]

    @property
    def name(self) -> str:
        """Network and range."""
        return f"{self.net}, {self.span}"

    def errors(self, way: str) -> Numbers:
        """Relative errors of the first 50 allocations, per cent, float64 [K], predicted by ``way``."""
        return relative_errors(self.truth, self.predicted[way])[:_COMPARED]

    def against_hawq(self, way: str, rival: str = "HAWQ-V2, half") -> Interval:
        """The median relative error of ``way`` less that of ``rival``, in points."""
        return median_interval(np.stack([self.errors(way), self.errors(rival)], 1))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Draw allocations of a given size, run the networks with them, and compare with what the second order predicts.

    ``settings`` say how much of it; ``tell`` is called with (net, allocations done, allocations).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    images, count, curved = (48, 6, 2) if settings.smoke else (_IMAGES, _ALLOCATIONS, _CURVED)
    samples: list[Sample] = []
    hessian: list[Sample] = []
    trust: list[tuple[str, float, float]] = []
    for net in nets(settings):
        found, second = _measured(net, data, images, count, curved, tell)
        samples += found
        hessian.append(second)
        trust.append((net, *_trust(net, data, images)))
    return StudyResult(
        (_lines(samples), _errors(samples), _curvatures(hessian), _trusted(trust)),
        (*_straight(samples, hessian), *_won(samples), _gentle(samples)),
        (_scatter(samples), _bars(samples)),
        (
            f"{count} allocations each, drawn evenly from all whose average bits are within 1 % of the wanted ones (independent "
            "bits for each layer, rejected until they meet it; seed 0). LeNet, with five layers of which one has 93 % of the "
            "weights, has few such allocations, so some come twice.",
            f"All of it on {images} training images with their labels, the same for truth and prediction. The true change is "
            "that of the mean cross-entropy, in nats, with all layers quantized at once.",
            CANDIDATES,
            "'Full' has what couples the layers, 'block' is the sum over layers. The supplement's own horizontal axis is the "
            "change of the loss by the true Hessian; the third table has it (two derivatives along dw of the first "
            f"{curved} allocations, {min(images, _CURVED_IMAGES)} images). The true change is the harder and more useful test.",
            "MPQCO takes r rᵀ, r the residual of an image's own label, where the Hessian has the A that the network expects of "
            "it. The two agree on average over labels drawn from the network (proposition 1). On training images that it has "
            "fitted, residuals are smaller than it expects (last table), and with them MPQCO's slope. The Gauss-Newton form "
            "has A.",
            f"'With first order' adds g . dw on the same images. On {images} images it is not 0 even for a trained network, and "
            "for the smallest changes it is the larger term (see mpqco-first-order).",
            "HAWQ-V2's trace / n |dw|^2 is twice a loss, so that half of it is compared; as printed it is given beside. "
            "The relative error is |true - predicted| / |true|. Intervals hold 95 % of 2,000 resamples of the 50 allocations.",
            "ResNet-20 and the small MobileNetV2 (depthwise convolutions) stand in for ResNet-18/50 and MobileNetV2 on ImageNet.",
        ),
    )


def _measured(net: str, data: DataSet, images: int, count: int, curved: int, tell: Tell) -> tuple[list[Sample], Sample]:
    bench = open_bench(net, data, images)
    rows = {
        "MPQCO": project_changes(bench.objective, bench.candidates, Directions("labels")),
        "Gauss-Newton": project_changes(bench.objective, bench.candidates, Directions("fisher")),
    }
    hawq = hawq_sensitivity(bench.objective, bench.candidates, layer_traces(bench.objective)).values
    total, done = len(RANGES) * count + curved, 0
    samples = []
    for span, bits, average in RANGES:
        drawn = random_allocations(bench.sizes, bits, average, count)
        truth = np.zeros(count)
        for index, allocation in enumerate(drawn):
            truth[index] = loss_change(bench.objective, bench.weights(allocation))[0]
            done += 1
            tell(net, done, total)
        samples.append(
            Sample(net, span, len(np.unique(drawn, axis=0)), truth, _predictions(bench, rows, hawq, drawn, images))
        )
    first = min(images, _CURVED_IMAGES)
    drawn = random_allocations(bench.sizes, RANGES[0][1], RANGES[0][2], count)[:curved]
    whole = bench.objective
    fewer = replace(whole, images=whole.images[:first], targets=whole.targets[:first], outputs=whole.outputs[:first])
    truth = np.zeros(curved)
    for index, allocation in enumerate(drawn):
        truth[index] = curvature_along(fewer, bench.weights(allocation))
        done += 1
        tell(net, done, total)
    return samples, Sample(net, RANGES[0][0], curved, truth, _predictions(bench, rows, hawq, drawn, first))


def _predictions(
    bench: Bench, rows: dict[str, Projections], hawq: Numbers, drawn: NDArray[np.int64], images: int
) -> dict[str, Numbers]:
    """What each way says of the allocations ``drawn`` int64 [K, L] by the first ``images``: float64 [K]."""
    layers, places = np.arange(drawn.shape[1]), drawn - bench.candidates.bits[0]  # the bits are 1 to 8
    found, slopes = {}, np.zeros(len(drawn))
    for name, row in rows.items():
        moved = (row.moved(dict(zip(bench.candidates.layers, one.tolist(), strict=True))) for one in drawn)
        found[f"{name}, full"] = np.array([np.square(one[:images]).sum(1).mean() / 2 for one in moved])
        alone = np.stack([term[:images].mean(0) for term in row.terms().values()])
        found[f"{name}, block"] = alone[layers, places].sum(1)
        if name == "MPQCO":  # its directions are the residuals: the sums are g . dw of each image
            slopes = np.array(
                [
                    row.moved(dict(zip(bench.candidates.layers, one.tolist(), strict=True)))[:images].mean()
                    for one in drawn
                ]
            )
    found[_FIRST] = found["Gauss-Newton, full"] + slopes
    found["HAWQ-V2, as printed"] = hawq[layers, places].sum(1)
    found["HAWQ-V2, half"] = found["HAWQ-V2, as printed"] / 2
    return found


def _lines(samples: list[Sample]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for sample in samples:
        ends = np.percentile(sample.truth, (5, 50, 95))
        cells = [str(line(sample.truth, sample.predicted[way])) for way in _WAYS]
        rows.append((sample.name, sample.distinct, " / ".join(f"{end:.3g}" for end in ends), *cells))
    columns = ("network, bits", "different allocations", "true change: 5 % / median / 95 %, nats", *_WAYS)
    return Table(
        "Predicted over true change of the loss: slope through the origin / Pearson / Spearman", columns, tuple(rows)
    )


def _errors(samples: list[Sample]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for sample in samples:
        cells = [f"{np.median(sample.errors(way)):.0f}" for way in _RIVALS]
        rows.append((sample.name, *cells, sample.against_hawq("MPQCO, block").text(".0f")))
    columns = ("network, bits", *_RIVALS, "MPQCO, block, less HAWQ-V2, half: difference (95 %), points")
    return Table("Median relative error of the predicted change, per cent", columns, tuple(rows))


def _curvatures(samples: list[Sample]) -> Table:
    rows = tuple((s.net, *(str(line(s.truth, s.predicted[way])) for way in _WAYS[:4])) for s in samples)
    return Table(
        "The same over 1/2 dw . H dw with the true Hessian H, 8x, 1 to 8 bits: slope / Pearson / Spearman",
        ("network", *_WAYS[:4]),
        rows,
    )


def _trust(net: str, data: DataSet, images: int) -> tuple[float, float]:
    """Mean |r|^2 over what the network expects of it, tr A: on the training images, and on as many test images, at least 500."""
    bench = open_bench(net, data, images)
    x, labels = data.test(min(len(data.test_images), max(images, 500)))
    return _share(bench.objective), _share(make_objective(bench.graph, x, labels))


def _share(objective: Objective) -> float:
    squares = objective.residuals().double().square().sum(1).mean()
    return float(squares / objective.curvatures().double().diagonal(dim1=1, dim2=2).sum(1).mean())


def _trusted(found: list[tuple[str, float, float]]) -> Table:
    columns = ("network", "the training images used here", "test images")
    rows = tuple((net, f"{own:.2f}", f"{other:.2f}") for net, own, other in found)
    return Table(
        "Squared residual of the true label over the one that the network expects, mean |r|² / mean tr A", columns, rows
    )


def _straight(samples: list[Sample], hessian: list[Sample]) -> list[Finding]:
    found = []
    wide = [sample for sample in samples if sample.span == RANGES[0][0]]
    for what, way in (("full form (left)", _WAYS[0]), ("block-diagonal form (middle)", _WAYS[1])):
        for against, some in (("the true change of the loss", wide), ("the form of the true Hessian", hessian)):
            lines = [line(sample.truth, sample.predicted[way]) for sample in some]
            good = [abs(one.slope - 1) < 0.2 and one.r > 0.9 for one in lines]
            near = [0.5 < one.slope < 2 and one.r > 0.7 for one in lines]
            found.append(
                Finding(
                    f"8x, MPQCO's {what} lies roughly on a line of slope one through the origin, over {against}",
                    "; ".join(
                        f"{sample.net} slope {one.slope:.2f}, r {one.r:.2f}"
                        for sample, one in zip(some, lines, strict=True)
                    ),
                    "yes" if all(good) else "partly" if any(near) else "no",
                )
            )
    return found


def _won(samples: list[Sample]) -> list[Finding]:
    found = []
    for span, _, _ in RANGES:
        some = [sample for sample in samples if sample.span == span]
        gaps = [sample.against_hawq("MPQCO, block") for sample in some]
        better, worse = sum(gap.high < 0 for gap in gaps), sum(gap.low > 0 for gap in gaps)
        found.append(
            Finding(
                f"{span}: MPQCO estimates the true change better than HAWQ-V2 (right; difference of median relative errors)",
                "; ".join(f"{s.net} {gap.text('+.0f')} points" for s, gap in zip(some, gaps, strict=True)),
                "yes" if better == len(gaps) else "no" if worse == len(gaps) or not better else "partly",
            )
        )
    gaps = [sample.against_hawq("Gauss-Newton, block", "MPQCO, block") for sample in samples]
    found.append(
        Finding(
            "Beyond the supplement: the Gauss-Newton form, which needs no labels, is closer to the truth than MPQCO's",
            f"surely closer in {sum(gap.high < 0 for gap in gaps)} of {len(gaps)} cases, surely farther in "
            f"{sum(gap.low > 0 for gap in gaps)} (95 % intervals of the median relative error)",
            "yes"
            if all(gap.high < 0 for gap in gaps)
            else "partly"
            if sum(gap.high < 0 for gap in gaps) > sum(gap.low > 0 for gap in gaps)
            else "no",
        )
    )
    return found


def _gentle(samples: list[Sample]) -> Finding:
    """Whether both orders together get better when the changes get smaller."""
    errors = {span: [float(np.median(s.errors(_FIRST))) for s in samples if s.span == span] for span, _, _ in RANGES}
    first, last = errors[RANGES[0][0]], errors[RANGES[2][0]]
    fell = [b < a / 2 for a, b in zip(first, last, strict=True)]
    return Finding(
        "Beyond the supplement: the series holds where changes are small (error at 4 to 8 bits less than half of that at 1 to 8)",
        "median relative error with first order, in the order of the networks: "
        + "; ".join(f"{span}: {', '.join(f'{e:.0f}' for e in found)} %" for span, found in errors.items()),
        "yes" if all(fell) else "partly" if any(fell) else "no",
    )


def _scatter(samples: list[Sample]) -> Figure:
    panels = []
    for sample in samples:
        shown = sample.truth > 0
        # Where the first order is large and negative the sum can be below 0, which has no place on the axis.
        ways = {way: sample.predicted[way] for way in (*_WAYS[:3], _FIRST)}
        series = tuple(
            Series(
                way,
                tuple(sample.truth[shown & (values > 0)].tolist()),
                tuple(values[shown & (values > 0)].tolist()),
            )
            for way, values in ways.items()
        )
        panels.append(
            Figure(
                "panel",
                sample.name.replace(", ", "\n", 1),
                "scatter",
                "true change, nats",
                "predicted, nats",
                series,
                log_x=True,
                log_y=True,
                diagonal=True,
            )
        )
    title = "Random allocations: predicted over true change of the loss; on the dashed line the two are equal"
    return Figure("predicted-over-true", title, "scatter", "", "", (), panels=tuple(panels))


def _bars(samples: list[Sample]) -> Figure:
    panels = []
    for net in dict.fromkeys(sample.net for sample in samples):
        some = [sample for sample in samples if sample.net == net]
        series = []
        for way in ("MPQCO, block", "HAWQ-V2, half", "Gauss-Newton, block"):
            found = tuple(float(np.median(sample.errors(way))) for sample in some)
            spans = tuple(sample.span.replace(", ", ",\n") for sample in some)
            series.append(Series(way, spans, found))
        panels.append(
            Figure("panel", net, "bar", "compression, bits", "median relative error, %", tuple(series), log_y=True)
        )
    title = f"How far predictions are from the true change, median of {_COMPARED} allocations"
    return Figure("relative-error", title, "bar", "", "", (), panels=tuple(panels))
