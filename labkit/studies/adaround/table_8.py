"""Nagel et al. 2020, table 8: empirical bias correction against AdaRound, and both together."""

from __future__ import annotations

from labkit.data import load as load_data
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE_NOTE, Outcome, bound, corrected, nearest, outcome, verdict
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_ROWS = ("nearest", "nearest, bias corrected", "AdaRound", "AdaRound, bias corrected")
_NETS = ("lenet", "resnet20")
_BITS = (4, 3)

Accuracies = dict[tuple[str, int, str], list[float]]  # by net, bits and row


def run(settings: Settings, tell: Tell) -> StudyResult:
    """LeNet and ResNet-20 at 4 and 3 bits, to nearest and by AdaRound, each without and with bias correction.

    ``settings`` say how much of it; ``tell`` is called with (net, rows done, rows).
    """
    nets, bits = (_NETS[:1], _BITS[:1]) if settings.smoke else (_NETS, _BITS)
    data = load_data(settings.data, data_dir=settings.data_dir)
    found: Accuracies = {}
    reference, done, total = {}, 0, len(nets) * settings.seeds * len(bits) * len(_ROWS)
    for net in nets:
        for seed in range(settings.seeds):
            lab = open_lab(net, settings, seed, data)
            reference[net] = lab.accuracy
            for width in bits:
                for row in _ROWS:
                    if row == "nearest":
                        plain = _nearest(lab, width)
                    elif row == "AdaRound":
                        plain = _adaround(lab, width, settings.smoke)
                    measured = corrected(plain, lab) if row.endswith("corrected") else plain
                    found.setdefault((net, width, row), []).append(measured.integer_accuracy(lab))
                    done += 1
                    tell(net, done, total)
    return StudyResult(
        tuple(_table(found, net, bits, reference[net]) for net in nets),
        tuple(finding for net in nets for width in bits for finding in _findings(found, net, width, reference[net])),
        tuple(_figure(found, net, bits, reference[net]) for net in nets),
        (
            "The paper's network is ResNet-18 on ImageNet with float activations. Here activations have 8 bits with min-max "
            "ranges, and everything runs in the integer engine. One scale a layer, grid of the least error of W, first and last "
            "layers too. 3 bits are added because these networks lose little at 4.",
            "Empirical bias correction (Nagel et al. 2019, section 4.2) measures on the calibration images by how much the mean "
            "of each output channel is off, layer after layer in the quantized network, and takes it back. AdaRound runs on the "
            "quadratic form of each layer, 1,000 iterations, with the biases as they are; its correction comes afterwards, by "
            "the same function.",
            TIE_NOTE,
        ),
    )


def _nearest(lab: Lab, bits: int) -> Outcome:
    return nearest(lab.graph, lab.calibration, lab.plan(bits, 8, per_channel=False), "mse")


def _adaround(lab: Lab, bits: int, smoke: bool) -> Outcome:
    plan = lab.plan(bits, 8, per_channel=False)
    options = RoundingOptions(correct_bias=False, iterations=20 if smoke else None)
    return outcome(lab, plan, lab.round(plan, "adaround", options))


def _table(found: Accuracies, net: str, bits: tuple[int, ...], reference: float) -> Table:
    rows = [(row, *(mean_and_spread(found[net, width, row]) for width in bits)) for row in _ROWS]
    return Table(
        f"{net}, activations 8 bits: test accuracy, % (float network {reference:.2f})",
        ("weights", *(f"{width} bits" for width in bits)),
        tuple(rows),
    )


def _findings(found: Accuracies, net: str, bits: int, reference: float) -> tuple[Finding, ...]:
    plain, fixed, ada, both = (found[net, bits, row] for row in _ROWS)
    lost = [reference - _mean(values) for values in (plain, fixed, ada)]
    return (
        Finding(
            f"{net}, {bits} bits: bias correction improves rounding to nearest",
            f"{_mean(fixed) - _mean(plain):+.2f} points",
            verdict(fixed, plain),
        ),
        Finding(
            f"{net}, {bits} bits: AdaRound (68.60 % in the paper) is better than bias correction (38.87 %)",
            f"{_mean(ada):.2f} % against {_mean(fixed):.2f} %; of {lost[0]:.2f} points lost by rounding to nearest, "
            f"{lost[2]:.2f} are left after AdaRound and {lost[1]:.2f} after bias correction",
            verdict(ada, fixed),
        ),
        Finding(
            f"{net}, {bits} bits: after AdaRound there is nothing left to gain from bias correction (not in the paper)",
            f"{_mean(both) - _mean(ada):+.2f} points; to count it takes {bound(both, ada):.2f}",
            "no" if verdict(both, ada) == "yes" else "yes",
        ),
    )


def _figure(found: Accuracies, net: str, bits: tuple[int, ...], reference: float) -> Figure:
    words = tuple(row.replace(", ", ",\n") for row in _ROWS)
    series = [
        Series(f"{width} bits", words, tuple(reference - _mean(found[net, width, row]) for row in _ROWS))
        for width in bits
    ]
    return Figure(
        f"{net}-bias",
        f"{net}: bias correction and AdaRound",
        "bar",
        "weights",
        "test accuracy lost against float, points",
        tuple(series),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
