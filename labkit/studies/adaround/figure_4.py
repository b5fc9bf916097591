"""Nagel et al. 2020, figure 4: how many images the rounding needs to see, and whether they may come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE_NOTE, bound, nearest, outcome
from labkit.studies.adaround.images_seen import DOMAINS, draw_images
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["Bench", "draw", "run"]

_COUNTS = (16, 64, 256, 512, 1024, 2048)
_ELSEWHERE = 256  # images of another domain
_METHODS = {"adaround": "AdaRound", "gptq+descent": "GPTQ and descent"}


@dataclass(frozen=True)
class Bench:
    """A network at a width of its weights, by which ``methods`` it is rounded, and whether the first tries other domains."""

    net: str
    bits: int
    methods: tuple[str, ...]
    elsewhere: bool

    def __str__(self) -> str:
        return f"{self.net}, {self.bits} bits"


_BENCHES = (
    Bench("lenet", 3, ("gptq+descent", "adaround"), True),
    Bench("resnet20", 4, ("adaround",), True),
)
_ITERATIONS = 500
_OWN = "training images"


@dataclass
class _Found:
    """Accuracies by seed: of rounding to nearest, by (method, images), and by (domain, what saw it)."""

    reference: float
    nearest: list[float]
    sweep: dict[tuple[str, int], list[float]]
    domains: dict[tuple[str, str], list[float]]

    @property
    def places(self) -> tuple[str, ...]:
        """Where images came from, the training images first."""
        return tuple(dict.fromkeys((_OWN, *(domain for domain, _ in self.domains))))


_SEEN_BY = {"rounding": "rounding alone", "both": "rounding and ranges"}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Round LeNet and ResNet-20 on few and many images, and on images that are no training images.

    ``settings`` say how much of it; ``tell`` is called with (network and bits, roundings done, roundings).
    """
    benches = (Bench("lenet", 3, ("adaround",), True),) if settings.smoke else _BENCHES
    counts = (16, 32) if settings.smoke else _COUNTS
    own = min(_ELSEWHERE, counts[-1])
    data = load_data(settings.data, data_dir=settings.data_dir)
    found: dict[Bench, _Found] = {}
    arms = [(domain, seen) for domain in (DOMAINS[:1] if settings.smoke else DOMAINS) for seen in _SEEN_BY]
    arms.append((_OWN, "both"))
    for bench in benches:
        steps = settings.seeds * (len(bench.methods) * len(counts) + bench.elsewhere * len(arms))
        done = 0
        for seed in range(settings.seeds):
            lab = open_lab(bench.net, settings, seed, data)
            plan = lab.plan(bench.bits, 8, per_channel=False)
            one = found.setdefault(bench, _Found(lab.accuracy, [], {}, {}))
            one.nearest.append(nearest(lab.graph, lab.calibration, plan, "mse").integer_accuracy(lab))
            for method in bench.methods:
                images = draw(data, _OWN, counts[-1], seed)
                for count in counts:
                    accuracy = _accuracy(lab, bench, method, images[:count], lab.calibration, settings.smoke)
                    one.sweep.setdefault((method, count), []).append(accuracy)
                    done += 1
                    tell(str(bench), done, steps)
            for domain, seen in arms if bench.elsewhere else ():
                images = draw(data, domain, own, seed)
                ranges = lab.calibration if seen == "rounding" else calibrate(lab.graph, images)
                accuracy = _accuracy(lab, bench, bench.methods[0], images, ranges, settings.smoke)
                one.domains.setdefault((domain, seen), []).append(accuracy)
                done += 1
                tell(str(bench), done, steps)
            if bench.elsewhere:
                one.domains.setdefault((_OWN, "rounding"), []).append(one.sweep[bench.methods[0], own][seed])
    return StudyResult(
        (
            *(_count_table(bench, one, counts) for bench, one in found.items()),
            *(_domain_table(bench, one, own) for bench, one in found.items() if bench.elsewhere),
        ),
        tuple(finding for bench, one in found.items() for finding in _findings(bench, one, counts)),
        (
            _count_figure(found, counts),
            *(_domain_figure(bench, one) for bench, one in found.items() if bench.elsewhere),
        ),
        _notes(settings.calibration, own),
    )


def _notes(calibration: int, own: int) -> tuple[str, ...]:
    return (
        "The paper's networks are trained on ImageNet, its other images are those of Pascal VOC and MS COCO, and its "
        "activations are floats. Here all activations have 8 bits, everything runs in the integer engine, one scale a layer, "
        "grid of the least error of W; LeNet has 3 bits because it loses next to nothing at 4.",
        "The counts are nested: the first 16 of the images are among the first 64. The ranges of activations come from "
        f"{calibration} training images at every count, so that only the rounding sees fewer of them. Of each image "
        "some windows are looked at, so that a layer's quadratic form has about 32,768 of them or all there are.",
        f"Images from elsewhere are {own}, and are compared with {own} training images. With `rounding alone` the ranges of "
        "activations still come from training images; with `rounding and ranges` nothing has seen a training image, "
        "but for the two noises of like mean and spread, which know six numbers of them.",
        "There are no photographs here but CIFAR-10's: digits and noise are much further from them than VOC and COCO are from "
        "ImageNet. They show where the robustness ends; they do not test the paper's claim about similar images.",
        "The digits are MNIST's, white on black, 32x32. Noise is clipped to the range of pixels; the blurred noise has an "
        "amplitude of 1 / frequency, as photographs have (Field 1987).",
        f"AdaRound runs on the quadratic form, {_ITERATIONS} iterations; biases are corrected inside it. " + TIE_NOTE,
    )


def draw(data: DataSet, domain: str, count: int, seed: int) -> NDArray[np.float32]:
    """``count`` images of a ``domain``, "training images" of ``data`` or one of `DOMAINS`, drawn with ``seed``.

    float32 [count, 3, 32, 32] in [-1, 1]; of training images they are the first ``count`` of 2,048.
    """
    own = data.calibration(min(_COUNTS[-1], len(data.train_images)), seed)
    return own[:count] if domain == _OWN else draw_images(domain, own, count, seed)


def _accuracy(
    lab: Lab, bench: Bench, method: str, images: NDArray[np.float32], ranges: Calibration, smoke: bool
) -> float:
    """Per cent right with ``bench`` rounded on ``images`` float32 [N, 3, 32, 32], activations in ``ranges``."""
    options = RoundingOptions(images=len(images), iterations=20 if smoke else _ITERATIONS)
    plan = lab.plan(bench.bits, 8, per_channel=False)
    rounded = round_weights(lab.graph, ranges, plan, images, method, options, lab.seed)
    return outcome(lab, plan, rounded).integer_accuracy(lab)


def _count_table(bench: Bench, one: _Found, counts: tuple[int, ...]) -> Table:
    rows: list[tuple[str | int, ...]] = [
        (count, *(mean_and_spread(one.sweep[method, count]) for method in bench.methods)) for count in counts
    ]
    return Table(
        f"{bench}: test accuracy, % (float network {one.reference:.2f}, to nearest {mean_and_spread(one.nearest)})",
        ("training images", *(_METHODS[method] for method in bench.methods)),
        tuple(rows),
    )


def _domain_table(bench: Bench, one: _Found, own: int) -> Table:
    method = bench.methods[0]
    rows = [(name, *(mean_and_spread(one.domains[name, seen]) for seen in _SEEN_BY)) for name in one.places]
    return Table(
        f"{bench}, {_METHODS[method]} on {own} images: test accuracy, %",
        ("images", *(f"seen by {words}" for words in _SEEN_BY.values())),
        tuple(rows),
    )


def _findings(bench: Bench, one: _Found, counts: tuple[int, ...]) -> list[Finding]:
    findings = []
    few = 256 if 256 in counts else counts[0]
    for method in bench.methods:
        lost = one.reference - _mean(one.sweep[method, few])
        steps = _mean(one.sweep[method, counts[-1]]) - _mean(one.sweep[method, few])
        findings.append(
            Finding(
                f"{bench}, {_METHODS[method]}: {few} images bring it within 2 points of float",
                f"{lost:.2f} points below float, against {one.reference - _mean(one.nearest):.2f} to nearest; "
                f"{counts[-1]} images give {steps:+.2f} points more",
                "yes" if lost < 2 else "partly" if lost < (one.reference - _mean(one.nearest)) / 2 else "no",
            )
        )
    if bench.elsewhere:
        for seen, words in _SEEN_BY.items():
            here = one.domains[_OWN, seen]
            gaps = {domain: _mean(here) - _mean(one.domains[domain, seen]) for domain in one.places[1:]}
            within = [gap <= max(0.2, bound(here, one.domains[domain, seen])) for domain, gap in gaps.items()]
            findings.append(
                Finding(
                    f"{bench}: images of another domain, seen by {words}, cost less than 0.2 points",
                    "; ".join(f"{domain} {gap:.2f}" for domain, gap in gaps.items()) + " points lost",
                    "yes" if all(within) else "partly" if any(within) else "no",
                )
            )
    return findings


def _count_figure(found: Mapping[Bench, _Found], counts: tuple[int, ...]) -> Figure:
    series = []
    for bench, one in found.items():
        for method in bench.methods:
            below = tuple(_mean(one.sweep[method, count]) - one.reference for count in counts)
            spread = tuple(_spread(one.sweep[method, count]) for count in counts)
            series.append(Series(f"{bench}, {_METHODS[method]}", counts, below, spread))
    return Figure(
        "images",
        "How many training images the rounding sees",
        "line",
        "images",
        "accuracy against float, points",
        tuple(series),
        log_x=True,
    )


def _domain_figure(bench: Bench, one: _Found) -> Figure:
    words = tuple(
        name.replace(" of like mean ", "\nof like\nmean\n").replace(" images", "\nimages") for name in one.places
    )
    series = []
    for seen, label in _SEEN_BY.items():
        values = [one.domains[domain, seen] for domain in one.places]
        lost = tuple(one.reference - _mean(part) for part in values)
        series.append(Series(f"seen by {label}", words, lost, tuple(map(_spread, values))))
    return Figure(
        f"{bench.net}-domains",
        f"{bench}: images from elsewhere",
        "bar",
        "calibration images",
        "test accuracy lost against float, points",
        tuple(series),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
