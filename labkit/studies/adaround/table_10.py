"""Nagel et al. 2020, appendix A and table 10: solvers of the rounding problem, and what a start near nearest is worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.quantization.weight_rounding.qubo import Qubo
from labkit.quantization.weight_rounding.qubo_solvers import (
    Bits,
    anneal,
    cross_entropy,
    descend_bits,
    solve_exactly,
)
from labkit.quantization.weight_rounding.simple import up_share
from labkit.quantization.weight_rounding.task_hessian import TaskHessian, task_hessian
from labkit.studies.adaround.one_layer import OneLayer, first_layer, integer_logits, labelled, mean_cross_entropy
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["SOLVERS", "restrict", "run"]

Rows = NDArray[np.float64]

# (problem, probability of up, generator) -> answer
Solver = Callable[[Qubo, Rows, np.random.Generator], Bits]


def _nearest(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
    return np.asarray(chance >= 0.5)


def _stochastic(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
    return np.asarray(generator.random(qubo.size) < chance)


def _random(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
    return np.asarray(generator.random(qubo.size) < 0.5)


def _uninformed(solver: Solver) -> Solver:
    """``solver`` from a random answer in place of the probabilities."""

    def solve(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
        return solver(qubo, _random(qubo, chance, generator).astype(np.float64), generator)

    return solve


def _large_cross_entropy(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
    return cross_entropy(qubo, chance, generator, _SAMPLES, iterations=_ITERATIONS)


def _flat_cross_entropy(qubo: Qubo, chance: Rows, generator: np.random.Generator) -> Bits:
    return cross_entropy(qubo, np.full(qubo.size, 0.5), generator, _SAMPLES, iterations=_ITERATIONS)


SOLVERS: dict[str, Solver] = {
    "rounding to nearest": _nearest,
    "random roundings": _random,
    "stochastic roundings": _stochastic,
    "cross-entropy method from stochastic rounding": _large_cross_entropy,
    "cross-entropy method from probabilities of 1/2": _flat_cross_entropy,
    "annealing from nearest": anneal,
    "annealing from a random rounding": _uninformed(anneal),
    "descent from nearest": descend_bits,
    "descent from a random rounding": _uninformed(descend_bits),
}
_DRAWN = ("random roundings", "stochastic roundings", "descent from a random rounding")
_SAMPLES, _ITERATIONS = 1024, 150
# Bits, images for the Hessian, test images.
_CASES = (("lenet", (4, 2), 1024, 10000), ("resnet20", (4,), 384, 3000))
_PROBLEMS, _SIZE = 20, 18
_DRAWS = 3


@dataclass(frozen=True)
class _Answer:
    """What a solver found: its ``energy``, and what the network then does."""

    energy: float
    accuracy: float
    loss: float
    seconds: float


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Solve the Hessian problem of the first layer by nine ways, and small parts of it exactly.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tables: list[Table] = []
    figures: list[Figure] = []
    findings: list[Finding] = []
    for net, several, images, test in _CASES[:1] if settings.smoke else _CASES:
        several = several[:1] if settings.smoke else several
        answers: dict[int, dict[str, list[_Answer]]] = {bits: {name: [] for name in SOLVERS} for bits in several}
        exact: dict[int, dict[str, list[float]]] = {bits: {name: [] for name in SOLVERS} for bits in several}
        for seed in range(settings.seeds):
            lab = open_lab(net, replace(settings, images=min(test, settings.images or test)), seed, data)
            x, labels = labelled(data, min(images, settings.calibration), seed)
            hessian = task_hessian(lab.graph, first_layer(lab.graph), x, labels, dtype=torch.float32)
            tell(f"{net}: Hessians", seed + 1, settings.seeds)
            for bits in several:
                _one_seed(lab, hessian, bits, settings.smoke, answers[bits], exact[bits])
                tell(f"{net}, {bits} bits", seed + 1, settings.seeds)
        for bits in several:
            found = {solver: values for solver, values in answers[bits].items() if values}
            tables += [_table(net, bits, found), _exact_table(net, bits, exact[bits])]
            figures.append(_figure(net, bits, found))
            findings += _findings(net, bits, found, exact[bits])
    return StudyResult(
        tuple(tables),
        tuple(findings),
        tuple(figures),
        (
            "The paper's second solver, qbsolv, which could not be told where to start, was not at hand. Annealing and "
            "descent from a random rounding stand for a solver that is not told.",
            "The first layer, one scale; other weights and activations have 8 bits; integer engine. LeNet 1,024 "
            "images with labels for the Hessian and 10,000 test images, ResNet-20 384 and 3,000. Seeds 0, 1, ... "
            "draw the images and the samples.",
            f"Random and stochastic roundings, and descent from random ones, are drawn {_DRAWS} times a seed. "
            f"Cross-entropy method: {_SAMPLES:,} samples, at most {_ITERATIONS} iterations. Annealing: 200 sweeps; "
            "it ends where it began only if nothing was better.",
            f"Exactly solved problems: {_SIZE} weights of one output channel, drawn at random, may change, all "
            f"others stay at nearest; {_PROBLEMS} a seed. The cost is what equation 13 says the loss rises by on the "
            "images of the Hessian, and what a solver saves of it is partly fitted to these images.",
        ),
    )


def restrict(qubo: Qubo, bits: Bits, kept: NDArray[np.intp]) -> Qubo:
    """The problem over the ``kept`` bits alone, the others held at ``bits``: the same energies.

    Parameters
    ----------
    qubo : over n bits
    bits : bool [n]
    kept : integers [m], places in 0..n - 1, none twice
    """
    held = bits.astype(np.float64)
    held[kept] = 0
    linear = qubo.linear[kept] + 2 * qubo.matrix[kept] @ held
    return Qubo(qubo.matrix[np.ix_(kept, kept)], linear, float(qubo.energy(held)))


def _one_seed(
    lab: Lab,
    hessian: TaskHessian,
    bits: int,
    smoke: bool,
    answers: dict[str, list[_Answer]],
    exact: dict[str, list[float]],
) -> None:
    """Add what each solver finds for the first layer, with the lab's seed, to ``answers`` and ``exact``."""
    layer = OneLayer.of(lab.graph, first_layer(lab.graph), bits)
    qubo, free = hessian.qubo(layer.weights, layer.grid)
    chance = up_share(layer.weights, layer.grid).reshape(-1)[free]
    draws, problems = (1, 2) if smoke else (_DRAWS, _PROBLEMS)
    for solver, solve in SOLVERS.items():
        for draw in range(draws if solver in _DRAWN else 1):
            if smoke and "cross-entropy" in solver:
                continue
            start = time.process_time()
            up = solve(qubo, chance, np.random.default_rng((lab.seed, draw)))
            seconds = time.process_time() - start
            found = integer_logits(lab, {layer.name: (layer, layer.levels(up, free))})
            right, loss = lab.score(found), mean_cross_entropy(found, lab.labels)
            answers[solver].append(_Answer(float(qubo.energy(up)), right, loss, seconds))
    for solver, shares in _small_problems(qubo, chance, free // layer.weights.shape[1], lab.seed, problems).items():
        exact[solver].extend(shares)


def _small_problems(
    qubo: Qubo, chance: Rows, rows: NDArray[np.intp], seed: int, problems: int
) -> dict[str, list[float]]:
    """By solver and problem: by how much the answer is short of the exact one, as a share of what that saves of nearest."""
    generator = np.random.default_rng(seed)
    nearest = chance >= 0.5
    short: dict[str, list[float]] = {}
    for _ in range(problems):
        channel = np.flatnonzero(rows == generator.choice(np.flatnonzero(np.bincount(rows) >= _SIZE)))
        kept = generator.choice(channel, _SIZE, replace=False)
        small, shares = restrict(qubo, nearest, kept), chance[kept]
        best, start = float(small.energy(solve_exactly(small))), float(small.energy(nearest[kept]))
        for name, solver in SOLVERS.items():
            energy = float(small.energy(solver(small, shares, generator)))
            short.setdefault(name, []).append((energy - best) / max(start - best, 1e-300))
    return short


def _table(net: str, bits: int, answers: dict[str, list[_Answer]]) -> Table:
    rows = [
        (
            solver,
            mean_and_spread([answer.energy for answer in values], 5),
            mean_and_spread([answer.accuracy for answer in values]),
            mean_and_spread([answer.loss for answer in values], 4),
            f"{fmean(answer.seconds for answer in values):.2f}",
        )
        for solver, values in answers.items()
    ]
    return Table(
        f"{net}, first layer at {bits} bits",
        ("way", "d H d / 2, nats", "test accuracy, %", "test loss, nats", "processor seconds"),
        tuple(rows),
    )


def _exact_table(net: str, bits: int, exact: dict[str, list[float]]) -> Table:
    rows = [
        (solver, f"{100 * _solved(short):.0f}", f"{100 * (1 - fmean(short)):.1f}") for solver, short in exact.items()
    ]
    count = len(next(iter(exact.values())))
    return Table(
        f"{net}, {bits} bits: {count} problems of {_SIZE} of its weights, against all 2^{_SIZE} answers",
        ("way", "solved exactly, %", "of what the exact answer saves, mean, %"),
        tuple(rows),
    )


def _solved(short: list[float]) -> float:
    return float(np.mean(np.array(short) < 1e-9))


def _figure(net: str, bits: int, answers: dict[str, list[_Answer]]) -> Figure:
    return Figure(
        f"{net}-{bits}-bits",
        f"{net}, first layer at {bits} bits: what each way finds",
        "scatter",
        "d H d / 2, nats (logarithmic)",
        "test loss, nats",
        tuple(
            Series(solver, tuple(a.energy for a in values), tuple(a.loss for a in values))
            for solver, values in answers.items()
            if "cross-entropy" in solver
            or "random" in solver
            or solver in ("rounding to nearest", "stochastic roundings")
        ),
        log_x=True,
    )


def _findings(net: str, bits: int, answers: dict[str, list[_Answer]], exact: dict[str, list[float]]) -> list[Finding]:
    what = f"{net}, {bits} bits"

    def mean(solver: str, part: str) -> float:
        return fmean(getattr(answer, part) for answer in answers[solver])

    def more(these: str, those: str, part: str) -> Literal["yes", "no", "partly"]:
        """Whether ``these`` have more of ``part`` than ``those``, by over two standard errors of the difference or less."""
        error, gain = 0.0, mean(these, part) - mean(those, part)
        for solver in (these, those):
            values = [getattr(answer, part) for answer in answers[solver]]
            error += stdev(values) ** 2 / len(values) if len(values) > 1 else 0.0
        return "yes" if gain > 2 * error**0.5 else "partly" if gain > 0 else "no"

    random, stochastic, nearest = "random roundings", "stochastic roundings", "rounding to nearest"
    found = [
        Finding(
            f"{what}: random roundings are significantly worse, on average, than those near nearest",
            f"random {mean(random, 'accuracy'):.2f} %, stochastic {mean(stochastic, 'accuracy'):.2f} %, "
            f"nearest {mean(nearest, 'accuracy'):.2f} %",
            more(stochastic, random, "accuracy"),
        )
    ]
    informed, flat = "cross-entropy method from stochastic rounding", "cross-entropy method from probabilities of 1/2"
    if informed in answers:
        costs = [f"{mean(solver, 'energy'):.5f} and {mean(solver, 'accuracy'):.2f} %" for solver in (informed, flat)]
        found.append(
            Finding(
                f"{what}: the start near nearest helps the cross-entropy method find a better minimum",
                f"cost and accuracy {costs[0]} with it, {costs[1]} without",
                more(flat, informed, "energy"),
            )
        )
        blind = "annealing from a random rounding"
        found.append(
            Finding(
                f"{what}: the cross-entropy method significantly outperforms a solver that is not told where to start",
                f"cost {mean(informed, 'energy'):.5f}, annealing from a random rounding {mean(blind, 'energy'):.5f}, "
                f"descent from one {mean('descent from a random rounding', 'energy'):.5f}",
                more(blind, informed, "energy"),
            )
        )
        found.append(
            Finding(
                f"{what}: a solver that is not told where to start is worse than rounding to nearest",
                f"annealing from a random rounding {mean(blind, 'accuracy'):.2f} %, nearest "
                f"{mean(nearest, 'accuracy'):.2f} %",
                more(nearest, blind, "accuracy"),
            )
        )
    share = _solved(exact[informed])
    found.append(
        Finding(
            f"{what}: the cross-entropy method solves what can be checked (ours, not the paper's)",
            f"{100 * share:.0f} % of problems of {_SIZE} weights exactly, rounding to nearest "
            f"{100 * _solved(exact[nearest]):.0f} %",
            "yes" if share > 0.9 else "partly" if share > 0.5 else "no",
        )
    )
    return found
