"""Seconds for a plan from sensitivities and an exact solver, beside searches that run the network for every plan they try."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.allocate import make_problem
from labkit.allocation.answer import Allocation
from labkit.allocation.budgets import average_bits
from labkit.allocation.costs import weight_bytes
from labkit.allocation.exact import solve_exact
from labkit.allocation.problem import Mckp
from labkit.allocation.search import evolutionary_search, random_search
from labkit.data import load as load_data
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.measure import measure_sensitivity
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, open_lab
from labkit.studies.mpqco.bench import labelled_images
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["Trials", "cross_entropy", "run"]

_BITS = (2, 3, 4, 5, 6, 7, 8)
_AVERAGE = 3.0
_METHODS = {"gauss-newton": 128, "mpqco": 128}  # images
_SEARCHES = {"random": random_search, "evolutionary": evolutionary_search}
_EVALUATIONS = 200
_LOOKS = (1, 10, 40, 100)
_IMAGES = 256
_LEAST_RATIO = 20  # the smallest of the slides' table


@dataclass(frozen=True, eq=False)
class Trials:
    """What a search saw: the loss of each plan it tried, and the processor's seconds after each, float64 [E]."""

    losses: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @property
    def best(self) -> NDArray[np.float64]:
        """The least loss so far, float64 [E]."""
        return np.minimum.accumulate(self.losses)

    def reached(self, loss: float) -> int | None:
        """After how many plans ``loss`` was reached, or None."""
        found = np.flatnonzero(self.best <= loss)
        return int(found[0]) + 1 if len(found) else None

    def ratio(self, loss: float, seconds: float) -> tuple[float, bool]:
        """The search's seconds over ``seconds`` when it reached ``loss``, and whether it did; else at its end, a lower bound."""
        at = self.reached(loss)
        return float(self.seconds[-1 if at is None else at - 1]) / seconds, at is not None


@dataclass(frozen=True)
class _Plan:
    """A plan with the processor's seconds it took to find, its loss on the searches' images and its test accuracy."""

    seconds: float
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class _Found:
    """What one seed gave, by method and search."""

    plans: dict[str, _Plan]
    trials: dict[str, Trials]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Plan ResNet-20 at three bits a weight by sensitivities, and search for such a plan by running the network.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    net = "lenet" if settings.smoke else "resnet20"
    data = load_data(settings.data, data_dir=settings.data_dir)
    evaluations = 6 if settings.smoke else _EVALUATIONS
    found = []
    lab = open_lab(net, settings, 0, data)
    for seed in range(settings.seeds):
        lab = redrawn(lab, settings, seed, histograms=False) if seed else lab
        found.append(_seed(lab, 64 if settings.smoke else _IMAGES, evaluations, seed))
        tell(net, seed + 1, settings.seeds)
    looks = (*(look for look in _LOOKS if look < evaluations), evaluations)
    return StudyResult(
        (_plans(net, lab, found), _progress(found, looks), _times(found)),
        _findings(found),
        (_figure(net, found),),
        (
            f"Both choose among 2 to 8 bits for each layer, at the size of {_AVERAGE:g} bits a weight on average; activations "
            "have 8 bits, weights are rounded to nearest, one scale a channel. A search runs the integer network on "
            f"{_IMAGES} training images for every plan and sees their cross-entropy with labels. The sensitivities see the "
            f"first {_METHODS['gauss-newton']} of these images, Gauss-Newton without labels.",
            "Seconds are those of the processor, one thread. A plan's include sensitivities, costs and solver, and a search's "
            "its evaluations. Neither includes ranges of activations, which both need.",
            "The evolutionary search keeps 40 plans. HAQ's reinforcement learning on ImageNet was not run. An evaluation here "
            "takes a fraction of a second and trains nothing, which flatters the search.",
        ),
    )


def _seed(lab: Lab, count: int, evaluations: int, seed: int) -> _Found:
    images, labels = labelled_images(lab.data, count, seed)

    def loss(weights: dict[str, int]) -> float:
        plan = BitPlan(weights, lab.plan().activations)
        logits = IntegerNet(convert(lab.graph, lab.calibration, plan)).run(images)
        return cross_entropy(np.asarray(logits), labels)

    def finished(seconds: float, weights: dict[str, int]) -> _Plan:
        return _Plan(seconds, loss(weights), lab.integer_accuracy(BitPlan(weights, lab.plan().activations)))

    plans: dict[str, _Plan] = {}
    for method, wanted in _METHODS.items():
        few, answers = images[:wanted], labels[:wanted] if method == "mpqco" else None
        measure_sensitivity(lab.graph, few[:8], None, _BITS, method)  # so that nothing is loaded while the clock runs
        began = time.process_time()
        table = measure_sensitivity(lab.graph, few, answers, _BITS, method)
        problem = make_problem(table, weight_bytes(lab.graph, _BITS), average_bits(_AVERAGE))
        answer = solve_exact(problem)
        plans[method] = finished(time.process_time() - began, answer.weights)
    plans["uniform"] = finished(0.0, dict.fromkeys(problem.layers, round(_AVERAGE)))
    trials = {}
    for name in _SEARCHES:
        trials[name], answer = _searched(name, problem, loss, evaluations, seed)
        plans[name] = finished(float(trials[name].seconds[-1]), answer.weights)
    return _Found(plans, trials)


def _searched(
    name: str, problem: Mckp, loss: Callable[[dict[str, int]], float], evaluations: int, seed: int
) -> tuple[Trials, Allocation]:
    losses: list[float] = []
    seconds: list[float] = []

    def evaluate(weights: dict[str, int]) -> float:
        losses.append(loss(weights))
        seconds.append(time.process_time() - began)
        return losses[-1]

    loss(dict.fromkeys(problem.layers, 8))  # so that nothing is compiled while the clock runs
    began = time.process_time()
    answer = _SEARCHES[name](problem, evaluations, seed, evaluate)
    return Trials(np.array(losses), np.array(seconds)), answer


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean of -log softmax(``logits``) float32 [N, M] at ``labels`` int64 [N]."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean())


_WORDS = {
    "gauss-newton": "Gauss-Newton, exact solver",
    "mpqco": "MPQCO, exact solver",
    "uniform": "uniform 3 bits",
    "random": "random search",
    "evolutionary": "evolutionary search",
}


def _plans(net: str, lab: Lab, found: list[_Found]) -> Table:
    rows = []
    for name, words in _WORDS.items():
        plans = [one.plans[name] for one in found]
        rows.append(
            (
                words,
                mean_and_spread([plan.seconds for plan in plans], 1) if name != "uniform" else None,
                len(found[0].trials[name].losses) if name in found[0].trials else None,
                mean_and_spread([plan.loss for plan in plans], 3),
                mean_and_spread([plan.accuracy for plan in plans]),
            )
        )
    return Table(
        f"{net}, {_AVERAGE:g} bits a weight on average, float {lab.accuracy:.2f} %, {len(found)} seeds",
        ("plan", "seconds to find it", "plans tried", f"loss of the {_IMAGES} images, nats", "test accuracy, %"),
        tuple(rows),
    )


def _progress(found: list[_Found], looks: tuple[int, ...]) -> Table:
    rows = []
    for name in _SEARCHES:
        best = [mean_and_spread([float(one.trials[name].best[look - 1]) for one in found], 3) for look in looks]
        rows.append((_WORDS[name], *best))
    return Table(
        "The least loss so far, nats, after so many plans", ("", *(f"{look:,}" for look in looks)), tuple(rows)
    )


def _times(found: list[_Found]) -> Table:
    rows = []
    for name in _SEARCHES:
        for method in _METHODS:
            cells = []
            for one in found:
                plan, trials = one.plans[method], one.trials[name]
                ratio, reached = trials.ratio(plan.loss, plan.seconds)
                after = f"after {trials.reached(plan.loss)} plans, " if reached else "not reached, "
                cells.append(f"{after}{'' if reached else '> '}{ratio:.1f}")
            rows.append((_WORDS[name], _WORDS[method], *cells))
    return Table(
        "When a search equals the solver's plan, and its time over the solver's (sensitivities included)",
        ("search", "plan", *(f"seed {seed}" for seed in range(len(found)))),
        tuple(rows),
    )


def _findings(found: list[_Found]) -> tuple[Finding, ...]:
    findings = []
    for method in _METHODS:
        pairs = [one.trials["evolutionary"].ratio(one.plans[method].loss, one.plans[method].seconds) for one in found]
        ratios, reached = [ratio for ratio, _ in pairs], sum(hit for _, hit in pairs)
        findings.append(
            Finding(
                f"{_WORDS[method]} is faster than a search for the same (more than 20, 125 and 55 times in the slides)",
                f"the evolutionary search reached its loss in {reached} of {len(pairs)} seeds; until then, or until it was "
                f"stopped, it took {mean_and_spread(ratios, 1)} times as long",
                "yes"
                if min(ratios) >= _LEAST_RATIO
                else "partly"  # faster, or a search that was stopped before it could say
                if min(ratios) > 1 or reached < len(pairs)
                else "no",
            )
        )
    for method in _METHODS:
        more = [one.plans[method].accuracy - one.plans["evolutionary"].accuracy for one in found]
        error = stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.inf
        findings.append(
            Finding(
                f"{_WORDS[method]} is more accurate than the search's best (0.3, 4.1 and 2.5 points in the slides)",
                f"{mean_and_spread(more)} points above the evolutionary search after "
                f"{len(found[0].trials['evolutionary'].losses)} plans",
                "yes" if fmean(more) > 2 * error else "partly" if fmean(more) > 0 else "no",
            )
        )
    return tuple(findings)


def _figure(net: str, found: list[_Found]) -> Figure:
    series = []
    for name in _SEARCHES:
        best = np.mean([one.trials[name].best for one in found], axis=0)
        x = tuple(range(1, len(best) + 1))
        series.append(Series(_WORDS[name], x, tuple(best.tolist())))
    for method in (*_METHODS, "uniform"):
        level = fmean(one.plans[method].loss for one in found)
        series.append(Series(_WORDS[method], (1, len(best)), (level, level)))
    return Figure(
        "search",
        f"{net}: searching by running the network, mean of {len(found)} seeds",
        "line",
        "plans tried",
        f"least loss so far of {_IMAGES} training images, nats",
        tuple(series),
        log_x=True,
        log_y=True,
    )
