"""Nagel et al. 2020, table 9: semantic segmentation with weights of few bits, on a small encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.parity.compare import verify
from labkit.quantization.bias_correction import correct_empirically
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert, quantize_weight
from labkit.quantization.equalization import equalize
from labkit.quantization.pipeline import quantize
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE, verdict
from labkit.studies.lab import logits
from labkit.studies.picture import Picture
from labkit.studies.segmentation.network import SceneNet, load_scene_net, scene_net_recipe
from labkit.studies.segmentation.scenes import CLASSES, SIDE, Scenes, draw_scenes
from labkit.studies.segmentation.training import TEST_SEED, miou_of
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["WAYS", "Bench", "class_colours", "run"]

_CALIBRATION_SEED = 3  # of pictures that neither training nor test has
_MOST_IMAGES = 512  # as in the paper
_TEST, _VERIFIED, _SHOWN = 1000, 100, 4
_ADAROUND, _BITS = "AdaRound", (8, 4, 3, 2)
_NEAREST, _EQUALIZED = "nearest", "CLE and bias correction"
_COLOURS = np.array([(110, 110, 110), (0, 114, 178), (213, 94, 0), (0, 158, 115)], np.uint8)  # one a class


@dataclass(frozen=True, eq=False)
class Bench:
    """The network ``graph`` (batch norms folded), calibration ``images``, their ranges and the ``test`` pictures.

    seed : of what is drawn
    options : of AdaRound
    """

    graph: FloatGraph
    images: NDArray[np.float32]
    calibration: Calibration
    test: Scenes
    seed: int
    options: RoundingOptions

    def plan(self, bits: int) -> BitPlan:
        """All weights of ``bits``, one scale a layer; activations of 8."""
        return BitPlan.uniform(self.graph, bits, 8, per_channel=False)


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Weights of 8, 4, 3 and 2 bits by several ways, activations of 8 bits, judged pixel by pixel in the integer engine.

    ``settings`` say how much of it; ``tell`` is called with (step, done, steps).
    """
    module = load_scene_net()
    graph = simplify(from_torch(module, (3, SIDE, SIDE)))
    test = draw_scenes(2 if settings.smoke else min(settings.images or _TEST, _TEST), TEST_SEED)
    bits, ways = ((4,), dict(list(WAYS.items())[:3])) if settings.smoke else (_BITS, WAYS)
    reference = miou_of(lambda x: logits(graph, x), test)
    benches = [_bench(graph, test, settings, seed) for seed in range(settings.seeds)]
    found: dict[tuple[str, int], list[float]] = {}
    steps, done = settings.seeds * len(bits) * len(ways) + 1, 0
    for bench in benches:
        for width in bits:
            for name, way in ways.items():
                found.setdefault((name, width), []).append(miou_of(way(bench, width).run, test))
                done += 1
                tell(f"seed {bench.seed}, W{width}A8", done, steps)
    certificates = _certificates(module, benches[0], _VERIFIED)
    pictures = _pictures(benches[0], 3 if 3 in bits else bits[0])
    tell("certificates and pictures", steps, steps)
    figures = [] if settings.smoke else [_curves(found, reference)]
    return StudyResult(
        (_table(found, reference, bits), certificates),
        _findings(found, reference, bits),
        (*figures, pictures),
        _notes(len(benches[0].images), len(test.labels)),
    )


def _nearest(bench: Bench, bits: int) -> IntegerNet:
    return IntegerNet(convert(bench.graph, bench.calibration, bench.plan(bits)))


def _equalized(bench: Bench, bits: int) -> IntegerNet:
    """What DFQ comes down to with images at hand: factors between layers, then biases that give the mean outputs of before."""
    graph, plan = equalize(bench.graph).graph, bench.plan(bits)
    calibration = calibrate(graph, bench.images)
    weights = {
        node.name: quantize_weight(node.name, node.op.weight, plan.weight_spec(node.name), vanished=node.op.vanished)
        for node in graph
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)
    }
    return IntegerNet(convert(correct_empirically(graph, weights, calibration, plan, bench.images), calibration, plan))


def _rounded(method: str, options: Callable[[Bench], RoundingOptions]) -> Callable[[Bench, int], IntegerNet]:
    def way(bench: Bench, bits: int) -> IntegerNet:
        plan = bench.plan(bits)
        result = round_weights(
            bench.graph, bench.calibration, plan, bench.images, method, options(bench), seed=bench.seed
        )
        return IntegerNet(convert(bench.graph, result.calibration, plan, {"rounding": method}, result.layers))

    return way


WAYS: Mapping[str, Callable[[Bench, int], IntegerNet]] = {
    _NEAREST: _nearest,
    _EQUALIZED: _equalized,
    _ADAROUND: _rounded("adaround", lambda bench: bench.options),
    "GPTQ and descent": _rounded("gptq+descent", lambda _: RoundingOptions()),
    "best (mirrored levels)": _rounded(BEST_METHOD, lambda _: BEST),
}


def class_colours(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] of ``labels`` [H, W], indices of `CLASSES`: one colour each."""
    return np.asarray(_COLOURS[labels])


def _bench(graph: FloatGraph, test: Scenes, settings: Settings, seed: int) -> Bench:
    count = 8 if settings.smoke else min(settings.calibration, _MOST_IMAGES)
    images = draw_scenes(count, _CALIBRATION_SEED, seed).images
    options = RoundingOptions(iterations=10, samples=256) if settings.smoke else RoundingOptions()
    return Bench(graph, images, calibrate(graph, images), test, seed, options)


def _certificates(module: SceneNet, bench: Bench, images: int) -> Table:
    rows = []
    for rounding in ("nearest", "adaround"):
        options = None if rounding == "nearest" else bench.options
        net = quantize(
            module, bench.images, rounding=rounding, rounding_options=options, plan=bench.plan(4), seed=bench.seed
        )
        report = verify(net, module, bench.test.images[:images])
        rows.append((f"W4A8, {rounding}", report.images, f"{report.elements:,}", report.differing))
    return Table(
        "Every parameter and every tensor against an integer emulation in PyTorch, tolerance 0",
        ("network", "images", "integers compared", "differing"),
        tuple(rows),
    )


def _table(found: Mapping[tuple[str, int], list[float]], reference: float, bits: tuple[int, ...]) -> Table:
    rows = [("float network", *[f"{reference:.2f}"] * len(bits))]
    for name in dict.fromkeys(name for name, _ in found):
        values = [found[name, width] for width in bits]
        rows.append((name, *(f"{mean_and_spread(v)} ({np.mean(v) - reference:+.2f})" for v in values)))
    return Table(
        "Mean intersection over union, %, in the integer engine (and its change against the float network)",
        ("rounding of the weights", *(f"W{width}A8" for width in bits)),
        tuple(rows),
    )


def _findings(
    found: Mapping[tuple[str, int], list[float]], reference: float, bits: tuple[int, ...]
) -> tuple[Finding, ...]:
    def loss(name: str, width: int) -> float:
        return reference - float(np.mean(found[name, width]))

    four = loss(_ADAROUND, 4)
    findings = [
        Finding(
            "AdaRound at W4A8 loses about 2 points of mIoU against the float network",
            f"{four:.2f} points",
            "yes" if four <= 2 else "partly" if four <= 4 else "no",
        )
    ]
    for width in bits:
        dfq = loss(_EQUALIZED, width)
        if width == 8:
            findings.append(
                Finding(
                    "DFQ (here equalization and bias correction) works well for weights of 8 bits",
                    f"it loses {dfq:.2f} points",
                    "yes" if dfq <= 1 else "partly" if dfq <= 2 else "no",
                )
            )
        elif width == 4:
            findings.append(
                Finding(
                    "At 4 bits DFQ drops drastically (here: loses at least 10 points)",
                    f"it loses {dfq:.2f} points",
                    "yes" if dfq >= 10 else "partly" if dfq >= max(3 * four, 2) else "no",
                )
            )
        if width < 8:
            findings.append(
                Finding(
                    f"At {width} bits AdaRound is better than DFQ" + ("" if width == 4 else " (not in the paper)"),
                    f"{loss(_ADAROUND, width):.2f} points lost against {dfq:.2f} (to nearest: {loss(_NEAREST, width):.2f})",
                    verdict(found[_ADAROUND, width], found[_EQUALIZED, width]),
                )
            )
    return tuple(findings)


def _curves(found: Mapping[tuple[str, int], list[float]], reference: float) -> Figure:
    series = [Series("float network", tuple(map(float, reversed(_BITS))), (reference,) * len(_BITS))]
    for name in WAYS:
        values = [found[name, width] for width in reversed(_BITS)]
        errors = tuple(float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in values)
        series.append(
            Series(name, tuple(map(float, reversed(_BITS))), tuple(float(np.mean(v)) for v in values), errors)
        )
    return Figure(
        "miou-by-bits", "SceneNet, activations of 8 bits", "line", "bits of the weights", "mean IoU, %", tuple(series)
    )


def _pictures(bench: Bench, bits: int) -> Figure:
    """Test pictures 0 to 3, what they show, and what the networks of ``bits`` make of them: one column each."""
    shown = bench.test.images[:_SHOWN]
    answers = {"float network": logits(bench.graph, shown).argmax(1)}
    for name in (_NEAREST, _EQUALIZED, _ADAROUND):
        answers[f"{name.partition(' ')[0]}, W{bits}"] = WAYS[name](bench, bits).run(shown).argmax(1)
    pictures = []
    for index in range(len(shown)):
        pictures.append(Picture.of("" if index else "picture", bench.test.pixels[index].transpose(1, 2, 0).copy()))
        pictures.append(Picture.of("" if index else "wanted", class_colours(bench.test.labels[index])))
        pictures += [
            Picture.of("" if index else name, class_colours(labels[index])) for name, labels in answers.items()
        ]
    title = "Background (grey), circles (blue), rectangles (orange), triangles (green)"
    return Figure("pictures", title, "line", "", "", (), pictures=tuple(pictures), across=2 + len(answers))


def _notes(calibration: int, test: int) -> tuple[str, ...]:
    recipe = scene_net_recipe()
    return (
        "The paper's DeeplabV3+ has a MobileNetV2 in front, and Pascal VOC's 20 classes and photographs. Here a network of "
        f"{recipe['parameters']:,} parameters of the same make (inverted bottlenecks, then nearest up-sampling, concatenation "
        f"and depthwise layers) tells {len(CLASSES)} classes apart in drawn pictures of {SIDE} x {SIDE} pixels: circles, "
        "rectangles and triangles, striped, one behind the other, with noise (`labkit.studies.segmentation`). It was trained "
        f"once, in {recipe['seconds'] / 60:.0f} minutes on one thread (`{recipe['command']}`).",
        f"mIoU over all pixels of {test} test pictures, background counted as a class. A seed draws {calibration} pictures, "
        "which nothing was trained on, for ranges and roundings, without labels (the paper: 512).",
        "One scale a layer, as in the paper; every layer has the bits of its column, first and last included; activations have "
        "8 bits, from minimum to maximum. AdaRound: grid of least squared error, 1,000 iterations on the quadratic form.",
        "DFQ uses no images: it takes mean outputs from batch norms. The row here equalizes as DFQ does, rounds to nearest, and "
        "corrects biases by mean outputs measured on the calibration pictures.",
        "The weights that AdaRound decided are taken as decided: the certificate of that row covers all but these.",
        f"A difference counts (agrees) where it is larger than twice its standard error over the seeds and larger than {TIE} "
        "points; a smaller one of the right sign agrees in part.",
    )
