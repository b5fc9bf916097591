"""What the studies of AdaRound's design choices share: draws, held-out images, roundings of one method with their marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labkit.data.dataset import normalise
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.reporting.rounding_counts import decision_counts
from labkit.studies.evidence import Contrast
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Series, Settings

__all__ = [
    "IMAGES_NOTE",
    "Trial",
    "accuracy_panels",
    "draws",
    "held_out",
    "judged",
    "right_answers",
    "tried",
    "undecided_share",
]

# More of its images tell nothing more of ResNet-20's layers, which have many places each, and take twice as long.
_IMAGES = {"resnet20": 512}
IMAGES_NOTE = (
    "ResNet-20 is calibrated and rounded on 512 of the training images, which have enough places to tell its layers "
    "apart."
)


@dataclass(frozen=True, eq=False)
class Trial:
    """One rounding of a network, measured.

    right : bool [N], which test images the integer engine gets right.
    undecided : the share of soft decisions further than 0.01 from 0 and 1 at the end; None where there are none.
    rounded : the integers.
    """

    right: NDArray[np.bool_]
    undecided: float | None
    rounded: RoundedWeights

    @property
    def accuracy(self) -> float:
        """Per cent."""
        return 100 * float(self.right.mean())


def draws(net: str, settings: Settings, count: int) -> Iterator[Lab]:
    """``count`` labs of ``net`` that differ in their calibration images, drawn with seeds 0, 1, ... as ``settings`` say.

    ResNet-20 has at most 512 of them, other networks what ``settings`` say.
    """
    wanted = replace(settings, calibration=min(settings.calibration, _IMAGES.get(net, settings.calibration)))
    first = open_lab(net, wanted)
    yield first
    for seed in range(1, count):
        images = first.data.calibration(wanted.calibration, seed)
        yield replace(first, images=images, calibration=calibrate(first.graph, images), seed=seed)


def held_out(lab: Lab, count: int) -> Lab:
    """``lab`` with up to ``count`` training images in place of the test images, none of them a calibration image.

    On these a method's settings are chosen, so that no test image has a part in it.
    """
    seen = {image.tobytes() for image in lab.images}
    order = np.random.default_rng(lab.seed).permutation(len(lab.data.train_images))[: count + len(seen)]
    x = normalise(lab.data.train_images[order])
    kept = np.array([image.tobytes() not in seen for image in x]).nonzero()[0][:count]
    return replace(lab, x=x[kept], labels=lab.data.train_labels[order][kept])


def right_answers(lab: Lab, plan: BitPlan, rounded: RoundedWeights) -> NDArray[np.bool_]:
    """Bool [N]: which test images of ``lab`` the integer engine gets right with ``rounded`` weights under ``plan``."""
    net = IntegerNet(convert(lab.graph, rounded.calibration, plan, {}, rounded.layers))
    return np.asarray(net.run(lab.x).argmax(1) == lab.labels)


def undecided_share(rounded: RoundedWeights, layers: Sequence[str] | None = None) -> float | None:
    """The share of the last soft decisions kept of ``layers`` (None: all) that are further than 0.01 from 0 and 1.

    None where ``rounded`` has none.
    """
    if not rounded.history or not all(kept.decisions for kept in rounded.history.values()):
        return None
    last = decision_counts(rounded, layers)[-1]
    return last.undecided / max(last.total, 1)


def tried(lab: Lab, plan: BitPlan, method: str, options: RoundingOptions) -> Trial:
    """``lab``'s weights rounded by ``method`` with ``options`` under ``plan``, and measured on the lab's images."""
    rounded = lab.round(plan, method, options)
    return Trial(right_answers(lab, plan, rounded), undecided_share(rounded), rounded)


def judged(difference: Contrast) -> Literal["yes", "no", "partly"]:
    """Whether a claim that ``difference`` is above 0 holds: "partly" where it is, but within two standard errors."""
    return "yes" if difference.is_better else "partly" if difference.points > 0 else "no"


def accuracy_panels(
    title: str, words: Mapping[str, tuple[str, str]], found: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """A panel for each network and number of bits: mean and standard deviation of the accuracy of each way of rounding.

    Parameters
    ----------
    title : of the whole
    words : for each way a short name and a long one
    found : by panel and way, accuracies in per cent
    """
    panels = []
    for panel, ways in found.items():
        series = tuple(
            Series(words[way][1], (words[way][0],), (fmean(values),), (stdev(values) if len(values) > 1 else 0.0,))
            for way, values in ways.items()
        )
        panels.append(Figure(panel, panel, "line", "", "test accuracy, %", series))
    return Figure("accuracies", title, "line", "", "test accuracy, %", (), panels=tuple(panels))
