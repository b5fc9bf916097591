"""Nagel et al. 2020, figures 2 and 3: soft decisions that become hard, and the weights that leave the nearest level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.relaxation import annealed_beta, penalty
from labkit.reporting.rounding_counts import DecisionCounts, LayerChoices, decision_counts, layer_choices
from labkit.studies.adaround.design import IMAGES_NOTE, draws, tried, undecided_share
from labkit.studies.lab import Lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["penalty_curves", "run", "up_shares"]

_NETS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
_BITS = 4
_FEWER = (3, 2)
_ITERATIONS = 1000
_WARM_UP = 0.2
_AT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the iterations: where decisions are looked at
_BETAS = (20, 11, 5, 2)
_BINS = 20


@dataclass(frozen=True, eq=False)
class _Net:
    """What was found about one network: by draw, and by bits for the first draw."""

    lab: Lab
    draws: tuple[RoundedWeights, ...]
    accuracies: tuple[float, ...]
    nearest: tuple[float, ...]
    unregularized: float
    by_bits: dict[int, RoundedWeights]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Watch AdaRound decide at 4 bits, as ``settings`` say; ``tell`` is told (net, roundings done, all)."""
    iterations = 10 if settings.smoke else _ITERATIONS
    nets = {name: _watched(name, settings, iterations, tell) for name in (list(_NETS)[:1] if settings.smoke else _NETS)}
    tables, figures, findings = [], [_penalty_figure()], []
    for name, found in nets.items():
        counts = decision_counts(found.draws[0], bins=_BINS)
        choices = layer_choices(found.draws[0], _BINS)
        tables += [_counts_table(name, counts, iterations), _layers_table(name, found.draws[0], choices)]
        figures += [_histograms(name, counts), _places(name, found.by_bits), _layers_figure(name, choices)]
        findings += _findings(name, found, counts, iterations)
    tables.append(_accuracy_table(nets))
    return StudyResult(tuple(tables), tuple(findings), tuple(figures), (*_notes(iterations), IMAGES_NOTE))


def penalty_curves(betas: Sequence[float], points: int = 101) -> tuple[Series, ...]:
    """The regularizer of one weight against its h, from 0 to 1 at so many ``points``, for each of ``betas``."""
    h = np.linspace(0, 1, points)
    return tuple(
        Series(f"β = {beta:g}", tuple(h.tolist()), tuple(penalty(np.array([one]), beta) for one in h)) for beta in betas
    )


def up_shares(layers: Sequence[LayerChoices]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Which share of the weights of ``layers`` went up, by their place between two levels.

    Returns
    -------
    the middles of the places 0..1, and the shares; places without a weight are left out
    """
    starts, ups = (np.sum([getattr(one, name) for one in layers], 0) for name in ("starts", "ups"))
    middles = (np.arange(len(starts)) + 0.5) / len(starts)
    filled = starts > 0
    return tuple(middles[filled].tolist()), tuple((ups[filled] / starts[filled]).tolist())


def _watched(name: str, settings: Settings, iterations: int, tell: Tell) -> _Net:
    seeds = 1 if settings.smoke else settings.seeds
    total, done = 2 * seeds + 1 + len(_FEWER), 0

    def step() -> None:
        nonlocal done
        done += 1
        tell(_NETS[name], done, total)

    history = tuple(round(part * iterations) for part in _AT)
    options = RoundingOptions(iterations=iterations, warm_up=_WARM_UP, history=history)
    first: Lab | None = None
    rounded, accuracies, nearest = [], [], []
    for lab in draws(name, settings, seeds):
        first = first or lab
        plan = lab.plan(_BITS, 8, per_channel=False)
        trial = tried(lab, plan, "adaround", options)
        rounded.append(trial.rounded)
        accuracies.append(trial.accuracy)
        step()
        nearest.append(tried(lab, plan, "nearest", RoundingOptions()).accuracy)
        step()
    assert first is not None
    free = RoundingOptions(iterations=iterations, regularization=0.0, history=(iterations,))
    share = undecided_share(first.round(first.plan(_BITS, 8, per_channel=False), "adaround", free))
    assert share is not None
    step()
    by_bits = {_BITS: rounded[0]}
    for bits in _FEWER:
        by_bits[bits] = first.round(first.plan(bits, 8, per_channel=False), "adaround", options)
        step()
    return _Net(first, tuple(rounded), tuple(accuracies), tuple(nearest), share, by_bits)


def _moved(rounded: RoundedWeights) -> float:
    """Per cent of all weights that are not at the nearest level."""
    layers = layer_choices(rounded)
    return 100 * sum(one.moved for one in layers) / sum(one.weights for one in layers)


def _findings(name: str, found: _Net, counts: Sequence[DecisionCounts], iterations: int) -> list[Finding]:
    shares = [one.undecided / one.total for one in counts]
    last, end = counts[-1], shares[-1]
    between = last.total - last.down - last.up
    moved = [_moved(one) for one in found.draws]
    middle = shares[_AT.index(0.4)]
    net = _NETS[name]
    return [
        Finding(
            f"{net}: at the end h is close to 0 or 1",
            f"{last.undecided:,} of {last.total:,} are further than 0.01 from both, {100 * end:.2f} %; "
            f"without the regularizer {100 * found.unregularized:.1f} %",
            "yes" if end < 0.001 else "partly" if end < 0.01 else "no",
        ),
        Finding(
            f"{net}: at the end every h is exactly 0 or 1",
            f"{between:,} of {last.total:,} are not",
            "yes" if between == 0 else "partly" if between < 0.001 * last.total else "no",
        ),
        Finding(
            f"{net}: many weights learn a rounding other than to nearest",
            f"{mean_and_spread(moved, 1)} % of the weights at {_BITS} bits, "
            + " and ".join(f"{_moved(found.by_bits[bits]):.1f} % at {bits}" for bits in _FEWER),
            "yes" if min(moved) >= 5 else "partly" if min(moved) >= 1 else "no",
        ),
        Finding(
            f"{net}: a high β lets most h move freely at first, a lower one decides later",
            f"undecided: {100 * shares[1]:.0f} % after the {round(_WARM_UP * iterations)} iterations without the regularizer, "
            f"{100 * middle:.0f} % after {counts[2].iteration} and {100 * end:.2f} % after {iterations}",
            "yes" if middle > 0.5 and end < 0.01 else "partly" if end < shares[1] / 2 else "no",
        ),
    ]


def _penalty_figure() -> Figure:
    return Figure(
        "penalty", "The regularizer of one weight (fig. 2)", "line", "h", "1 - |2h - 1|^β", penalty_curves(_BETAS)
    )


def _histograms(name: str, counts: Sequence[DecisionCounts]) -> Figure:
    edges = tuple(np.linspace(0, 1, _BINS + 1).tolist())
    panels = []
    for one in counts:
        shares = (100 * one.counts / max(one.total, 1)).tolist()
        beta = annealed_beta(one.iteration, counts[-1].iteration, _WARM_UP)
        words = (
            "no regularizer" if one.iteration < _WARM_UP * counts[-1].iteration or beta is None else f"β = {beta:.3g}"
        )
        panels.append(
            Figure(
                f"{name}-h-{one.iteration}",
                f"{one.iteration:,} iterations, {words}",
                "step",
                "h",
                "weights, %",
                (Series("weights", (0.0, *edges), (0.0, *shares, 0.0)),),
            )
        )
    return Figure(
        f"{name}-h",
        f"{_NETS[name]}, {_BITS} bits: soft decisions h of all weights while AdaRound runs",
        "step",
        "h",
        "weights, %",
        (),
        panels=tuple(panels),
    )


def _places(name: str, by_bits: dict[int, RoundedWeights]) -> Figure:
    series = [Series("to nearest", (0.0, 0.4999, 0.5001, 1.0), (0.0, 0.0, 100.0, 100.0))]
    for bits, rounded in by_bits.items():
        x, y = up_shares(layer_choices(rounded, _BINS))
        series.append(Series(f"AdaRound, {bits} bits", x, tuple(100 * share for share in y)))
    return Figure(
        f"{name}-places",
        f"{_NETS[name]}: weights that went up, by their place between two levels (fig. 3)",
        "line",
        "place: 0 at the level below, 1 at the level above",
        "rounded up, %",
        tuple(series),
    )


def _layers_figure(name: str, choices: Sequence[LayerChoices]) -> Figure:
    shares = tuple(100 * one.moved / one.weights for one in choices)
    return Figure(
        f"{name}-layers",
        f"{_NETS[name]}, {_BITS} bits: weights that are not at the nearest level",
        "bar",
        "layer",
        "weights, %",
        (Series("AdaRound", tuple(one.name for one in choices), shares),),
    )


def _counts_table(name: str, counts: Sequence[DecisionCounts], iterations: int) -> Table:
    rows = []
    for one in counts:
        beta = annealed_beta(min(one.iteration, iterations - 1), iterations, _WARM_UP)
        rows.append(
            (
                one.iteration,
                "none" if beta is None else f"{beta:.1f}",
                f"{one.down:,}",
                f"{one.up:,}",
                f"{one.total - one.down - one.up:,}",
                f"{one.undecided:,} ({100 * one.undecided / max(one.total, 1):.2f} %)",
            )
        )
    columns = ("iterations", "β", "h = 0", "h = 1", "between", "further than 0.01 from both")
    return Table(
        f"{_NETS[name]}, {_BITS} bits: h of the {counts[0].total:,} weights with a choice", columns, tuple(rows)
    )


def _layers_table(name: str, rounded: RoundedWeights, choices: Sequence[LayerChoices]) -> Table:
    rows = []
    for one in choices:
        last = decision_counts(rounded, (one.name,))[-1]
        rows.append(
            (
                one.name,
                f"{one.weights:,}",
                f"{one.moved:,} ({100 * one.moved / one.weights:.1f} %)",
                f"{last.total - last.down - last.up:,}",
                f"{rounded.error_before[one.name]:.3g}",
                f"{rounded.error_after[one.name]:.3g}",
            )
        )
    columns = (
        "layer",
        "weights",
        "not at the nearest level",
        "h between 0 and 1",
        "error to nearest",
        "error AdaRound",
    )
    return Table(f"{_NETS[name]}, {_BITS} bits, seed 0, by layer", columns, tuple(rows))


def _accuracy_table(nets: dict[str, _Net]) -> Table:
    rows = [
        (
            _NETS[name],
            f"{found.lab.accuracy:.2f}",
            mean_and_spread(found.nearest),
            mean_and_spread(found.accuracies),
            mean_and_spread([_moved(one) for one in found.draws], 1),
        )
        for name, found in nets.items()
    ]
    columns = ("network", "float, %", "to nearest, %", "AdaRound, %", "weights not at the nearest level, %")
    return Table(f"Test accuracy at {_BITS} bits, activations at 8", columns, tuple(rows))


def _notes(iterations: int) -> tuple[str, ...]:
    return (
        "The paper has 10,000 iterations on batches of images at a learning rate of 0.001. "
        f"Here it is AdaRound on the quadratic form, {iterations:,} iterations at 0.01, so that V can go as far; "
        "one scale a layer (grid mse), all layers at once, and everything runs in the integer engine.",
        "Counted are the weights with a choice: those beyond an end of the grid have none. "
        "An error is that of the layer's output as a share of its variance, to nearest on the grid of the weights' range.",
        f"The regularizer rests for the first {100 * _WARM_UP:.0f} % of the iterations; then β falls from 20 to 2 "
        "in a straight line.",
    )
