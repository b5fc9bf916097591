"""EE219 lab, sections I, III, V and VI: the accuracy after each step, simulated as in the lab and in the integer engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.studies.ee219.bias import BiasOverflow, overflow, without_bias
from labkit.studies.ee219.report import ACCURACY
from labkit.studies.ee219.steps import STEPS, answers, float_answers
from labkit.studies.evidence import Contrast, contrast, redrawn, spread
from labkit.studies.lab import Lab, logits, open_lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_Classes = NDArray[np.int64]
_Answer = Literal["yes", "no", "partly"]

_EXPONENTS = (0, 10, 18, 19, 20, 30, 40)
_LITTLE = 0.3  # points: a change that the lab would call negligible

_PAIRS = (("both", "engine"), ("bias quantized", "bias engine"), ("bias unscaled", "bias unscaled engine"))


@dataclass(frozen=True, eq=False)
class _Net:
    """What one net answered: by step, int64 [draws, images] of classes (one draw where none matters), and the labels."""

    name: str
    answers: Mapping[str, NDArray[np.int64]]
    labels: _Classes
    leaning: tuple[str, ...]

    def right(self, step: str) -> NDArray[np.bool_]:
        return np.asarray(self.answers[step] == self.labels)

    def change(self, step: str, since: str) -> Contrast:
        return contrast(self.right(step), self.right(since))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Every step of the lab on LeNet with and without a bias, simulated and in integers.

    ``settings`` say how much of it; ``tell`` is called with (net, draws done, draws).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    pairs = [("lenet-short", "lenet-bias-short"), ("lenet", "lenet-bias")]
    nets, overflows = [], []
    for name, biased_name in pairs if data.name == "cifar10" else pairs[1:]:
        lab, biased = open_lab(name, settings, 0, data), open_lab(biased_name, settings, 0, data)
        found: dict[str, list[_Classes]] = {step: [] for step in STEPS}
        for step, classes in float_answers(lab, biased).items():
            found[step].append(classes)
        for seed in range(settings.seeds):
            for step, classes in answers(redrawn(lab, settings, seed), redrawn(biased, settings, seed)).items():
                found[step].append(classes)
            tell(name, seed + 1, settings.seeds)
        leaning = _leaning(biased)
        nets.append(_Net(name, {step: np.stack(each) for step, each in found.items()}, lab.labels, leaning))
        overflows = [overflow(biased, exponent) for exponent in _EXPONENTS]
    tables = [_table(net) for net in nets]
    tables += [_agreement(nets), _leaning_table(nets), _overflow_table(biased.net, overflows)]
    return StudyResult(tuple(tables), _findings(nets, overflows), (), _notes(settings))


def _table(net: _Net) -> Table:
    rows = []
    for step, (label, reported, since) in STEPS.items():
        change = None if since is None else net.change(step, since)
        rows.append(
            (
                label,
                None if reported is None else f"{ACCURACY[reported]:g}",
                spread(net.right(step)),
                "" if change is None else f"{change.points:+.2f} ± {change.error:.2f}",
            )
        )
    return Table(
        f"{net.name}: accuracy on {len(net.labels):,} test images",
        ("step", "EE219 report, %", "here, %", "change since the float network, points ± standard error"),
        tuple(rows),
    )


def _agreement(nets: list[_Net]) -> Table:
    rows = []
    for net in nets:
        for simulated, engine in _PAIRS:
            differing = (net.answers[simulated] != net.answers[engine]).sum(1)
            rows.append(
                (
                    net.name,
                    STEPS[simulated][0],
                    f"{differing.min()} to {differing.max()}" if len(differing) > 1 else f"{differing[0]}",
                    spread(net.right(simulated)),
                    spread(net.right(engine)),
                )
            )
    return Table(
        "Simulated (float arithmetic on rounded values) and integer engine",
        ("net", "step", "images with another class, by draw", "simulated, %", "engine, %"),
        tuple(rows),
    )


def _leaning(lab: Lab) -> tuple[str, ...]:
    """How much a net leans on its last bias: largest and spread of the bias, spread of the logits without it, their ratio."""
    bias = lab.graph["fc3"].op.bias  # type: ignore[union-attr]
    assert bias is not None
    values = logits(without_bias(lab.graph), lab.x).std(1).mean()
    return tuple(f"{v:.3f}" for v in (np.abs(bias).max(), bias.std(), values, bias.std() / values))


def _leaning_table(nets: list[_Net]) -> Table:
    return Table(
        "How much each net leans on the one bias (logits without it: standard deviation over the classes, mean "
        "over images)",
        (
            *("net with a bias", "largest bias", "deviation of the bias", "deviation of the logits", "ratio"),
            "float accuracy without the bias, points",
        ),
        tuple(
            (
                net.name.replace("lenet", "lenet-bias"),
                *net.leaning,
                f"{net.change('bias removed', 'bias float').points:+.2f}",
            )
            for net in nets
        ),
    )


def _overflow_table(name: str, rows: list[BiasOverflow]) -> Table:
    return Table(
        f"{name}: the bias integer where a channel's weights are small (S_bias = S_w S_x, one weight scale a channel)",
        (
            *("weights divided by", "bias / (S_w S_x)", "cut to 32 bits", "error then, output steps"),
            *("labkit enlarges S_w by", "its bias integer", "largest error in the engine, output steps"),
        ),
        tuple(
            (
                f"2^{row.exponent}",
                f"{row.needed:,}",
                f"{row.wrapped:,}",
                f"{row.wrapped_steps:.1f}",
                f"{row.enlarged:.4g}",
                f"{row.taken:,}",
                f"{row.taken_steps:.2f}",
            )
            for row in rows
        ),
    )


def _findings(nets: list[_Net], overflows: list[BiasOverflow]) -> tuple[Finding, ...]:
    def all_changes(step: str, since: str) -> tuple[str, list[Contrast]]:
        changes = [net.change(step, since) for net in nets]
        return ", ".join(f"{net.name} {change}" for net, change in zip(nets, changes, strict=True)), changes

    def verdict(fits: list[bool]) -> _Answer:
        return "yes" if all(fits) else "partly" if any(fits) else "no"

    base = nets[0].right("float").mean() * 100
    weights, small_weights = all_changes("weights", "float")
    both, small_both = all_changes("both", "float")
    drop, drops = all_changes("bias unscaled", "bias float")
    none, same = all_changes("bias unscaled", "bias dropped")
    restored, back = all_changes("bias quantized", "bias float")
    engine, equal = all_changes("engine", "both")
    apart = [int((net.answers[a] != net.answers[b]).sum(1).max()) for net in nets for a, b in _PAIRS]
    overflowing = [row for row in overflows if row.needed != row.wrapped]
    worst = max(row.taken_steps for row in overflowing) if overflowing else 0.0
    sizes = sorted(-change.points for change in drops)
    return (
        Finding(
            "the float network gets 60.88 %",
            f"{nets[0].name} {base:.2f} %",
            "yes" if abs(base - ACCURACY["float"]) < 1 else "no",
        ),
        Finding(
            "weights in 8 bits (60.9 %) change next to nothing",
            weights,
            verdict([abs(c.points) < _LITTLE for c in small_weights]),
        ),
        Finding(
            "weights and activations in 8 bits (60.92 %) change little",
            both,
            verdict([abs(c.points) < _LITTLE for c in small_both]),
        ),
        Finding(
            "a bias left unscaled costs accuracy (60.88 to 57.07 %: -3.81 points)",
            drop,
            verdict([c.is_worse for c in drops]),
        ),
        Finding(
            "it is an 'obvious reduction', whatever the network",
            f"it ranges from {sizes[0]:.2f} to {sizes[-1]:.2f} points here, by how much a net leans on that one "
            "bias (table)",
            verdict([size > 2 for size in sizes]),
        ),
        Finding(
            "a bias left unscaled might as well be 0 (docs/arithmetic.md, section 8)",
            f"unscaled less left out: {none}",
            verdict([abs(c.points) < _LITTLE for c in same]),
        ),
        Finding(
            "the bias at S_w S_x (60.9 %) brings the accuracy back",
            restored,
            verdict([abs(c.points) < _LITTLE for c in back]),
        ),
        Finding(
            "what is simulated is what integers compute (C6; the lab only simulates)",
            f"engine less simulated: {engine}; at most {max(apart)} of {len(nets[0].labels):,} images get another "
            "class in any of the pairs above",
            verdict([abs(c.points) < 0.1 for c in equal]),
        ),
        Finding(
            "eq. 11: the bias has the scale S_1 S_2, in 32 bits",
            f"largest bias integer of fc3 ({nets[-1].name} with a bias): {abs(overflows[0].needed):,}. But "
            f"{len(overflowing)} of {len(overflows)} channels made small here need more than 32 bits; cut to them "
            f"they are wrong by up to {max(row.wrapped_steps for row in overflows):.1f} output steps (the bias is "
            f"{abs(overflows[0].needed) * overflows[0].unit_steps:.1f}); with an enlarged S_w the engine stays "
            f"within {worst:.2f} steps of the float network",
            "partly" if overflowing else "yes",
        ),
    )


def _notes(settings: Settings) -> tuple[str, ...]:
    return (
        "As in the lab: 8 bits, symmetric, one scale a tensor, from the actual range (eq. 2 with the larger "
        "magnitude); the last layer alone may have a bias. The lab clamps to [-128, 127], the grid here is "
        "[-127, 127]: with eq. 2's scale nothing seen in calibration becomes -128.",
        f"Means and deviations are over {settings.seeds} draws of {settings.calibration} calibration images, "
        "which move the scales of activations only: rows in which these are float have no spread. Little is less "
        "than 0.3 points. Changes are paired by image; their standard error covers images and draws.",
        "The nets stand for the report's: `lenet-short` and its variant with a bias were trained for two epochs, "
        "with a learning rate and batch size chosen so as to stand near 60.88 %; `lenet` was trained in full. "
        "Rows with and without a bias are two separately trained networks, as in the lab.",
        "The report attributes 57.07 % to weights that are quantized and a bias that is not. Its net was "
        "quantized as a whole by then, and a bias in float that is added at its right place (row 'bias in "
        "float') costs nothing: what costs is that the bias is added to integer sums, where it is worth S_w S_x "
        "times its value.",
        "How large the drop is says nothing about quantization but how much the net leans on that bias: with "
        "other schedules of training, leaving it out cost 1.7, 2.8 and 1.0 points after 2, 5 and 10 epochs.",
        "The simulation sums in float32 and rounds ties to even (as torch.round does), the engine sums integers "
        "and rounds ties up: hence the few images on which they differ.",
        "Overflow: labkit allows a bias 2^30, half of int32, enlarges the channel's weight scale until it fits, "
        "and rounds the weights again (eq. 8a of docs/arithmetic.md). The engine's error in the table has the "
        "rounding of the whole network in it.",
        "The demo's own table of these steps is in [lenet-cifar10](../lenet-cifar10/README.md), with 512 "
        "calibration images.",
    )
