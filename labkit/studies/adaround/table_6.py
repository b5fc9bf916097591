"""Nagel et al. 2020, table 6: three grids for the weights, each rounded to nearest and by AdaRound."""

from __future__ import annotations

from labkit.data import load as load_data
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.adaround.comparison import TIE, TIE_NOTE, bound, nearest, outcome, verdict
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_GRIDS = {"minmax": "min-max of W", "mse": "least error of W", "output-mse": "least error of W x"}
_METHODS = {"nearest": "nearest", "adaround": "AdaRound"}
_NETS = ("lenet", "resnet20")
_BITS = (4, 3)

Accuracies = dict[tuple[str, int, str, str], list[float]]  # by net, bits, grid and method


def run(settings: Settings, tell: Tell) -> StudyResult:
    """All weights of LeNet and ResNet-20 at 4 and 3 bits on three grids, rounded in two ways.

    ``settings`` say how much of it; ``tell`` is called with (net, cells done, cells).
    """
    nets, bits = (_NETS[:1], _BITS[:1]) if settings.smoke else (_NETS, _BITS)
    data = load_data(settings.data, data_dir=settings.data_dir)
    found: Accuracies = {}
    reference, done, cells = {}, 0, len(nets) * settings.seeds * len(bits) * len(_GRIDS) * len(_METHODS)
    for net in nets:
        for seed in range(settings.seeds):
            lab = open_lab(net, settings, seed, data)
            reference[net] = lab.accuracy
            for width in bits:
                for grid in _GRIDS:
                    for method in _METHODS:
                        accuracy = _accuracy(lab, width, grid, method, settings.smoke)
                        found.setdefault((net, width, grid, method), []).append(accuracy)
                        done += 1
                        tell(net, done, cells)
    return StudyResult(
        tuple(_table(found, net, width, reference[net]) for net in nets for width in bits),
        tuple(finding for net in nets for width in bits for finding in _findings(found, net, width)),
        tuple(_figure(found, net, bits, reference[net]) for net in nets),
        (
            "The paper's networks are trained on ImageNet and its activations are floats. Here all activations have 8 bits with "
            "min-max ranges, and everything runs in the integer engine. One scale a layer, first and last layers too; 3 bits are "
            "added because these networks lose little at 4.",
            "Biases stay as they are in all six cells, so that only the grid and the rounding differ. AdaRound runs on the "
            "quadratic form of each layer, 1,000 iterations.",
            "The grid by the error of W x is chosen on the layer's inputs in the network quantized so far, for rounding to "
            "nearest in both columns, as in the paper. Rounding to nearest on the other two grids depends on the seed only by "
            "the ranges of activations.",
            TIE_NOTE,
        ),
    )


def _accuracy(lab: Lab, bits: int, grid: str, method: str, smoke: bool) -> float:
    plan = lab.plan(bits, 8, per_channel=False)
    if method == "nearest" and grid != "output-mse":  # these need no image
        return nearest(lab.graph, lab.calibration, plan, grid).integer_accuracy(lab)
    options = RoundingOptions(grid=grid, correct_bias=False, iterations=20 if smoke else None)
    return outcome(lab, plan, lab.round(plan, method, options)).integer_accuracy(lab)


def _table(found: Accuracies, net: str, bits: int, reference: float) -> Table:
    rows = [
        (words, *(mean_and_spread(found[net, bits, grid, method]) for method in _METHODS))
        for grid, words in _GRIDS.items()
    ]
    return Table(
        f"{net}, weights {bits} bits, activations 8 bits: test accuracy, % (float network {reference:.2f})",
        ("grid", *_METHODS.values()),
        tuple(rows),
    )


def _findings(found: Accuracies, net: str, bits: int) -> list[Finding]:
    cells = {(grid, method): found[net, bits, grid, method] for grid in _GRIDS for method in _METHODS}
    gains = {grid: _mean(cells[grid, "adaround"]) - _mean(cells[grid, "nearest"]) for grid in _GRIDS}
    verdicts = {verdict(cells[grid, "adaround"], cells[grid, "nearest"]) for grid in _GRIDS}
    findings = [
        Finding(
            f"{net}, {bits} bits: AdaRound is better than rounding to nearest whatever the grid",
            "; ".join(f"{_GRIDS[grid]} {gain:+.2f} points" for grid, gain in gains.items()),
            "yes" if verdicts == {"yes"} else "no" if verdicts == {"no"} else "partly",
        )
    ]
    for method, words in _METHODS.items():
        apart = {
            grid: _mean(cells[grid, method]) - _mean(cells["minmax", method]) for grid in _GRIDS if grid != "minmax"
        }
        above = {verdict(cells[grid, method], cells["minmax", method]) for grid in apart}
        below = {verdict(cells["minmax", method], cells[grid, method]) for grid in apart}
        findings.append(
            Finding(
                f"{net}, {bits} bits, {words}: both grids of least error are better than min-max",
                "; ".join(f"{_GRIDS[grid]} {value:+.2f} points" for grid, value in apart.items()),
                "yes" if above == {"yes"} else "no" if above == {"no"} or "yes" in below else "partly",
            )
        )
    first, second = cells["mse", "adaround"], cells["output-mse", "adaround"]
    gap, limit = _mean(first) - _mean(second), bound(first, second)
    findings.append(
        Finding(
            f"{net}, {bits} bits, AdaRound: no clear winner between the two grids of least error",
            f"W above W x by {gap:+.2f} points; to count it takes {limit:.2f} (at least {TIE})",
            "yes" if abs(gap) <= limit else "no",
        )
    )
    return findings


def _figure(found: Accuracies, net: str, bits: tuple[int, ...], reference: float) -> Figure:
    words = tuple(f"{_GRIDS[grid]}\n{width} bits".replace(" of W", "\nof W") for width in bits for grid in _GRIDS)
    series = [
        Series(
            name, words, tuple(reference - _mean(found[net, width, grid, method]) for width in bits for grid in _GRIDS)
        )
        for method, name in _METHODS.items()
    ]
    return Figure(
        f"{net}-grids",
        f"{net}: three grids, two roundings",
        "bar",
        "grid and bits",
        "test accuracy lost against float, points",
        tuple(series),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
