"""What a few epochs of quantization-aware training bring ResNet-20, and what distillation adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from labkit.allocation.planning import plan_for
from labkit.allocation.request import Budgets, PlanOptions
from labkit.models import load as load_model
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.studies.kit.legs import Leg, run_leg
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run"]

EPOCHS = 6


@dataclass(frozen=True)
class _Case:
    """Bits, the share of distillation, and how far below float the network may come out.

    weights : bits of all layers, or their average where it is no whole number
    """

    name: str
    weights: float
    activations: int
    distillation: float
    limit: float | None

    def plan(self, lab: Lab) -> BitPlan:
        if self.weights == int(self.weights):
            return BitPlan.uniform(lab.graph, int(self.weights), self.activations)
        options = PlanOptions(activations=self.activations, seed=lab.seed)
        return plan_for(lab.graph, lab.images, Budgets(average_bits=self.weights), options).plan


_CASES = (
    _Case("W2.5A8 plan", 2.5, 8, 0.5, 0.4),
    _Case("W4A4", 4, 4, 0.5, 0.8),
    _Case("W2A4", 2, 4, 0.5, None),
    _Case("W2A4, labels only", 2, 4, 0.0, None),
)


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The study, with ``settings``; ``tell`` is told of progress."""
    net = "lenet" if settings.smoke else "resnet20"
    lab = open_lab(net, settings)
    module = load_model(net, lab.data.name)
    options = FineTuning(epochs=EPOCHS, precision="bfloat16", mirror=lab.data.name == "cifar10")
    if settings.smoke:
        options = replace(options, epochs=1, precision="float32", start="nearest")
    legs: dict[str, Leg] = {}
    before: dict[str, tuple[float, float]] = {}
    for case in _CASES:
        plan = case.plan(lab)
        before[case.name] = _without(lab, plan, settings.smoke)
        chosen = replace(options, distillation=case.distillation)
        legs[case.name] = run_leg(
            case.name, module, lab.data, plan, chosen, tell,
            settings.images, 200 if settings.smoke else None, keep=not settings.smoke,
        )  # fmt: skip
    tell("Done", 1, 1)
    return StudyResult(
        (_table(net, lab.accuracy, before, legs),),
        (*_findings(net, lab, before, legs),),
        _figures(net, lab.accuracy, before, legs),
        _NOTES,
    )


_NOTES = (
    f'{EPOCHS} epochs, one seed, labkit\'s recipe: the weights begin in the cells that `method="best"` chooses, all scales are '
    "learned (LSQ), batch norms are folded from the start, Adam with 0.0005 falling along a cosine, shifted and mirrored images, "
    "half the loss from labels and half from the float network's answers at temperature 2. The learning rate was chosen by "
    "120 steps of training and the loss on held-out training images, no test image took part.",
    "One seed: what another order of training would have given is not known. The standard error of a difference between two "
    "networks that err independently on 10,000 images is about 0.4 points; these share most errors, so theirs is smaller.",
    "The float network was trained for 50 epochs; it is not given the extra epochs that the quantized ones get. Their "
    "gain over it, where there is one, is partly that of training longer.",
    "Weights of up to 3 bits have all 2**b levels. Branches before additions have as many bits as all other activations.",
)


def _without(lab: Lab, plan: BitPlan, smoke: bool) -> tuple[float, float]:
    """Per cent right without training: rounded to nearest, and by the best rounding."""
    nearest = lab.integer_accuracy(plan)
    return nearest, nearest if smoke else lab.integer_accuracy(plan, lab.round(plan, BEST_METHOD, BEST))


def _table(net: str, reference: float, before: dict[str, tuple[float, float]], legs: dict[str, Leg]) -> Table:
    rows = []
    for case in _CASES:
        leg, (nearest, best) = legs[case.name], before[case.name]
        rows.append(
            (
                case.name,
                f"{nearest:.2f}",
                f"{best:.2f}",
                f"{leg.simulated:.2f}",
                f"{leg.integer:.2f}",
                f"{reference - leg.integer:+.2f}",
                None if case.limit is None else f"{case.limit:g}",
                leg.differing,
                f"{leg.seconds / 60:.0f}",
            )
        )
    return Table(
        f"{net}, float {reference:.2f} %: test images right, in per cent",
        (
            *("bits", "to nearest", "best rounding", "fine-tuned, simulated", "fine-tuned, integers"),
            *("points below float", "at most", "images classed otherwise than simulated", "minutes of training"),
        ),
        tuple(rows),
    )


def _findings(net: str, lab: Lab, before: dict[str, tuple[float, float]], legs: dict[str, Leg]) -> Sequence[Finding]:
    reference = lab.accuracy
    found = []
    for case in _CASES:
        if case.limit is None:
            continue
        drop = reference - legs[case.name].integer
        found.append(
            Finding(
                f"{net}, {case.name}, {EPOCHS} epochs: at most {case.limit:g} points below float",
                f"{drop:.2f} points",
                "yes" if drop <= case.limit else "no",
            )
        )
    gaps = {name: abs(leg.integer - leg.simulated) for name, leg in legs.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    found.append(
        Finding(
            "the integers are as accurate as the simulation that was trained, to 0.1 point",
            f"largest gap {gaps[worst]:.2f} points ({worst})",
            "yes" if gaps[worst] <= 0.1 else "no",
        )
    )
    gain = legs["W2A4"].integer - legs["W2A4, labels only"].integer
    error = 100 * float(np.sqrt(2 * 0.1 * 0.9 / len(lab.x)))  # of two independent shares near 90 %
    found.append(
        Finding(
            "distillation improves a network of few bits (slides: ResNet50 at W4/8, 75.39 to 76.73 %)",
            f"W2A4: {gain:+.2f} points, of which {2 * error:.1f} could be chance",
            "yes" if gain > 2 * error else "partly" if gain > 0 else "no",
        )
    )
    names = [case.name for case in _CASES]
    helped = sum(legs[name].integer > before[name][1] for name in names)
    found.append(
        Finding(
            "a short fine-tuning recovers what rounding loses (supplement, section 1)",
            "; ".join(f"{name}: {before[name][1]:.2f} to {legs[name].integer:.2f}" for name in names),
            "yes" if helped == len(names) else "partly" if helped else "no",
        )
    )
    return found


def _figures(
    net: str, reference: float, before: dict[str, tuple[float, float]], legs: dict[str, Leg]
) -> tuple[Figure, ...]:
    names = tuple(case.name for case in _CASES)
    bars = Figure(
        "drop",
        f"{net}: points of test accuracy lost, before and after fine-tuning",
        "bar",
        "bits of weights and activations",
        "points below the float network",
        (
            Series("best rounding, no training", names, tuple(reference - before[name][1] for name in names)),
            Series(f"{EPOCHS} epochs", names, tuple(reference - legs[name].integer for name in names)),
        ),
    )
    course = Figure(
        "course",
        f"{net}: training images right as training goes on",
        "line",
        "epoch",
        "training images right, shifted and mirrored (%)",
        tuple(
            Series(name, tuple(float(i + 1) for i in range(len(leg.accuracy))), leg.accuracy)
            for name, leg in legs.items()
        ),
    )
    return bars, course
