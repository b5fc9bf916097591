"""The literature's ways of quantization-aware training side by side on LeNet: what each part brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np

from labkit.data import load as load_data
from labkit.models import load as load_model
from labkit.quantization.qat.options import FineTuning, recipe
from labkit.studies.kit.agreement import Agreement, agreement
from labkit.studies.kit.legs import Leg, run_leg, tune
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

EPOCHS = 3
IMAGES = 12_800
_RECIPES: dict[str, Callable[[], FineTuning]] = {
    "labkit": lambda: recipe("labkit"),
    "labkit, labels only": lambda: replace(recipe("labkit"), distillation=0.0),
    "labkit, from the float weights": lambda: replace(recipe("labkit"), start="nearest"),
    "lsq": lambda: recipe("lsq"),
    "pact": lambda: recipe("pact"),
    "jacob": lambda: recipe("jacob"),
    "mpqco": lambda: recipe("mpqco"),
}
_SAYS = {
    "labkit": "Adam, learned scales, distillation, begins with the best rounding",
    "labkit, labels only": "the same without distillation",
    "labkit, from the float weights": "the same, but begins with the float weights",
    "lsq": "SGD, learned scales (Esser et al. 2020)",
    "pact": "SGD, min-max weights, learned ends of ReLUs (Choi et al. 2018)",
    "jacob": "SGD, min-max weights, moving averages after a delay (Jacob et al. 2018)",
    "mpqco": "SGD 0.9, batches of 256, 0.005 along a cosine, decay 0.00005 (supplement, section 1)",
}
_BITS = ((4, 4), (2, 4))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The study, with ``settings``; ``tell`` is told of progress."""
    data = load_data(settings.data, data_dir=settings.data_dir)
    module = load_model("lenet", data.name)
    labs = [open_lab("lenet", settings, seed, data) for seed in range(settings.seeds)]
    names = list(_RECIPES)[:2] if settings.smoke else list(_RECIPES)
    legs: dict[tuple[str, tuple[int, int]], list[Leg]] = {}
    for bits in _BITS:
        for name in names:
            for lab in labs:
                options = replace(
                    _RECIPES[name](),
                    epochs=1 if settings.smoke else EPOCHS,
                    mirror=data.name == "cifar10",
                    seed=lab.seed,
                )
                legs.setdefault((name, bits), []).append(
                    run_leg(
                        f"W{bits[0]}A{bits[1]}, {name}",
                        module,
                        data,
                        lab.plan(*bits),
                        options,
                        tell,
                        settings.images,
                        100 if settings.smoke else IMAGES,
                        keep=not settings.smoke,
                    )
                )
    agreements = [_agreement(labs[0], name, settings.smoke, tell) for name in names[: 2 if settings.smoke else None]]
    tell("Done", 1, 1)
    return StudyResult(
        (_table(labs, names, legs), _agreement_table(agreements)),
        (*_findings(labs, names, legs), _agreement_finding(agreements)),
        (_figure(labs[0], names, legs),),
        _NOTES,
    )


_NOTES = (
    f"{EPOCHS} passes over {IMAGES:,} training images each, whatever the source takes (the supplement 30 over all): what is "
    "compared is how far a short training gets. "
    "LeNet has no batch norm, so that freezing and folding it plays no part here.",
    "A seed draws the calibration images, the order of training and the augmentation. SGD recipes take the learning rates of "
    "their sources, or 0.01; none was tuned on these images.",
    "The last table gives every node of the trained network the engine's own input. An element of the two may differ by one "
    "step where the exact real result lies within float32's error of a rounding tie; whatever lies farther away is unexplained.",
)


def _agreement(lab: Lab, name: str, smoke: bool, tell: Tell) -> tuple[str, Agreement]:
    """How a network that was trained for a moment agrees with its integers, node by node."""
    options = replace(_RECIPES[name](), epochs=1, mirror=lab.data.name == "cifar10", precision="float32")
    x, labels = lab.data.train()
    count = 100 if smoke else 2000
    net = "lenet" if smoke else "resnet20"
    module = load_model(net, lab.data.name)
    bench = lab if smoke else open_lab(net, Settings(lab.data.name, images=100), 0, lab.data)
    found = tune(f"agreement, {name}", module, x[:count], labels[:count], bench.plan(4, 4), options, tell, 128)
    return name, agreement(found, lab.x[: 20 if smoke else 200])


def _agreement_table(found: list[tuple[str, Agreement]]) -> Table:
    return Table(
        "Nodes of a fine-tuned ResNet-20 at W4A4 against the engine, each given the engine's input",
        ("recipe", "elements", "differing", "largest difference (steps)", "unexplained", "classes that differ (%)"),
        tuple(
            (name, one.elements, one.differing, one.largest, one.unexplained, f"{100 * one.classes:.1f}")
            for name, one in found
        ),
    )


def _agreement_finding(found: list[tuple[str, Agreement]]) -> Finding:
    unexplained, differing = sum(one.unexplained for _, one in found), sum(one.differing for _, one in found)
    return Finding(
        "every disagreement of simulation and integers lies at a rounding tie",
        f"{unexplained} of {differing} differing elements unexplained, of {sum(one.elements for _, one in found)}",
        "yes" if unexplained == 0 else "no",
    )


def _table(labs: list[Lab], names: list[str], legs: dict[tuple[str, tuple[int, int]], list[Leg]]) -> Table:
    rows: list[tuple[str, ...]] = []
    nearest = [
        mean_and_spread([lab.accuracy - lab.integer_accuracy(lab.plan(*bits)) for lab in labs]) for bits in _BITS
    ]
    rows.append(("no training", "to nearest, min-max", *nearest, "", ""))
    for name in names:
        drops = [mean_and_spread(_drops(labs, legs[name, bits])) for bits in _BITS]
        every = [leg for bits in _BITS for leg in legs[name, bits]]
        gap = max(abs(leg.integer - leg.simulated) for leg in every)
        seconds = fmean(leg.seconds / len(leg.loss) for leg in every)
        rows.append((name, _SAYS[name], *drops, f"{gap:.2f}", f"{seconds:.0f}"))
    return Table(
        f"lenet, float {labs[0].accuracy:.2f} %: points of test accuracy lost after {EPOCHS} short epochs, in integers",
        (
            *("recipe", "what it is", *(f"W{w}A{a}" for w, a in _BITS)),
            *("largest gap to the simulation (points)", f"seconds for {IMAGES:,} images"),
        ),
        tuple(rows),
    )


def _drops(labs: list[Lab], legs: list[Leg]) -> list[float]:
    return [lab.accuracy - leg.integer for lab, leg in zip(labs, legs, strict=True)]


def _findings(labs: list[Lab], names: list[str], legs: dict[tuple[str, tuple[int, int]], list[Leg]]) -> list[Finding]:
    found = []
    low = _BITS[-1]
    nearest = fmean(lab.accuracy - lab.integer_accuracy(lab.plan(*low)) for lab in labs)
    worst = max(names, key=lambda name: fmean(_drops(labs, legs[name, low])))
    loss = fmean(_drops(labs, legs[worst, low]))
    found.append(
        Finding(
            "a short fine-tuning with the straight-through estimator recovers what two bits lose",
            f"{nearest:.1f} points lost to nearest; {loss:.1f} by the weakest recipe ({worst})",
            "yes" if loss < 0.2 * nearest else "partly" if loss < nearest else "no",
        )
    )
    pairs = (
        ("distillation helps", "labkit", "labkit, labels only"),
        ("beginning with the best rounding helps", "labkit", "labkit, from the float weights"),
        ("learned scales beat min-max and moving averages", "lsq", "jacob"),
        ("learned ends of ReLUs beat moving averages", "pact", "jacob"),
    )
    for claim, better, other in pairs:
        if not {better, other} <= set(names):
            continue
        gains = [b - a for a, b in zip(_drops(labs, legs[better, low]), _drops(labs, legs[other, low]), strict=True)]
        error = stdev(gains) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf  # one seed proves nothing
        gain = fmean(gains)
        found.append(
            Finding(
                f"{claim} (W{low[0]}A{low[1]})",
                f"{better} against {other}: {mean_and_spread(gains)} points",
                "yes" if gain > 2 * error else "no" if gain < -2 * error else "partly",
            )
        )
    return found


def _figure(lab: Lab, names: list[str], legs: dict[tuple[str, tuple[int, int]], list[Leg]]) -> Figure:
    labels = tuple(name.replace(" ", "\n") for name in names)
    series = []
    for bits in _BITS:
        drops = [[lab.accuracy - leg.integer for leg in legs[name, bits]] for name in names]
        error = tuple(stdev(one) for one in drops) if len(drops[0]) > 1 else ()
        series.append(Series(f"W{bits[0]}A{bits[1]}", labels, tuple(fmean(one) for one in drops), error))
    return Figure(
        "recipes",
        f"lenet: points of test accuracy lost after {EPOCHS} short epochs, by recipe",
        "bar",
        "recipe",
        "points below the float network",
        tuple(series),
    )
