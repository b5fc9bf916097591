"""Chen et al. 2021, supplement, section 1: the candidate bit-widths, and the weights that belong to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.quantization.differentiable import layer_op
from labkit.sensitivity.candidates import BITS
from labkit.studies.mpqco.bench import Bench, nets, open_bench
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["level_counts", "relative_errors", "rises", "run", "sign_times_mean"]

Numbers = NDArray[np.float64]

_RANGES = {"least squared error": "mse", "smallest and largest weight": "minmax"}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """The squared error of every layer's weights at 1 to 8 bits, by two ways to choose the scale.

    ``settings`` say which data the networks were trained on; ``tell`` is called with (what, done, all).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    names = nets(settings)
    errors: dict[str, dict[str, Numbers]] = {way: {} for way in _RANGES}
    ones, levels, rows = [], [], []
    for at, net in enumerate(names):
        for way, ranges in _RANGES.items():
            bench = open_bench(net, data, 1, ranges=ranges)
            errors[way][net] = relative_errors(bench)
            ones.append(sign_times_mean(bench))
            levels.append(level_counts(bench))
            rows.append(_row(bench, way, errors[way][net]))
        tell("networks", at + 1, len(names))
    columns = ("network", "scale from", *(f"{b} bit{'s' if b > 1 else ''}" for b in BITS), "layers whose error rises")
    table = Table("Squared change of the weights, per cent of their square, mean of the layers", columns, tuple(rows))
    return StudyResult(
        (table,),
        _findings(errors, ones, levels),
        (_figure(errors),),
        (
            "Symmetric grids, one scale a channel: 1 bit is the sign times a magnitude, b bits have 2^b - 1 levels. The "
            "supplement names the bit-widths but not the quantizer; its 1 bit is taken as in XNOR-Net (Rastegari et al. 2016).",
            "From the smallest and largest weight, 2 bits have the levels -max, 0 and max: most weights become 0, so that 1 bit "
            "can be closer to the weights than 2 bits. The other studies of this document take the scale of the least squared "
            "error.",
        ),
    )


def relative_errors(bench: Bench) -> Numbers:
    """``|Q_b(w) - w|^2 / |w|^2`` of each layer of ``bench``, float64 [L, B]."""
    squares = [
        float(np.square(layer_op(bench.graph, name).weight, dtype=np.float64).sum()) for name in bench.candidates.layers
    ]
    return np.asarray(bench.squares / np.array(squares)[:, None])


def rises(errors: Numbers) -> NDArray[np.bool_]:
    """The layers, bool [L], in which a further bit does not lower the ``errors`` float64 [L, B]."""
    return np.asarray((np.diff(errors, axis=1) >= 0).any(1))


def sign_times_mean(bench: Bench) -> float:
    """The largest relative difference of the 1-bit weights of ``bench`` from the sign times the channel's mean magnitude."""
    worst = 0.0
    for name in bench.candidates.layers:
        weight = np.asarray(layer_op(bench.graph, name).weight, np.float64)
        rows = weight.reshape(len(weight), -1)
        means = np.abs(rows).mean(1, keepdims=True)
        expected = np.where(rows < 0, -means, means)
        got = bench.candidates.weights[name][1].reshape(len(weight), -1)
        worst = max(worst, float(np.max(np.abs(got - expected) / np.maximum(means, 1e-12))))
    return worst


def level_counts(bench: Bench) -> NDArray[np.int64]:
    """The most different values in a channel of any layer of ``bench``, int64 [B]."""
    found = np.zeros(len(bench.candidates.bits), np.int64)
    for by_bits in bench.candidates.weights.values():
        for at, weight in enumerate(by_bits.values()):
            found[at] = max(found[at], *(len(np.unique(row)) for row in weight.reshape(len(weight), -1)))
    return found


def _row(bench: Bench, way: str, errors: Numbers) -> tuple[str | int, ...]:
    means = (f"{100 * value:.2g}" for value in errors.mean(0))
    return (bench.net, way, *means, f"{int(rises(errors).sum())} of {len(errors)}")


def _findings(
    errors: dict[str, dict[str, Numbers]], ones: list[float], levels: list[NDArray[np.int64]]
) -> tuple[Finding, ...]:
    most = np.max(levels, axis=0)
    allowed = [2, *(2**b - 1 for b in BITS[1:])]
    found = [
        Finding(
            "The candidates are {1, 2, 3, 4, 5, 6, 7, 8} bits",
            f"values in a channel at most {', '.join(map(str, most))}; 1 bit differs from the sign times the mean magnitude "
            f"by at most {max(ones):.0e} of it",
            "yes" if np.all(most <= allowed) and max(ones) < 1e-5 else "no",
        )
    ]
    for way, by_net in errors.items():
        wrong = {net: (int(rises(some).sum()), len(some)) for net, some in by_net.items()}
        good = sum(count == 0 for count, _ in wrong.values())
        found.append(
            Finding(
                f"With each further bit every layer's squared error falls (scale from {way})",
                "; ".join(f"{net}: it rises in {count} of {layers} layers" for net, (count, layers) in wrong.items()),
                "yes" if good == len(wrong) else "partly" if good else "no",
            )
        )
    return tuple(found)


def _figure(errors: dict[str, dict[str, Numbers]]) -> Figure:
    panels = []
    for net in next(iter(errors.values())):
        series = tuple(
            Series(f"scale from {way}", tuple(map(float, BITS)), tuple((100 * by_net[net].mean(0)).tolist()))
            for way, by_net in errors.items()
        )
        panels.append(Figure("panel", net, "line", "bits", "squared error, % of the square", series, log_y=True))
    return Figure("errors", "Squared change of the weights", "line", "", "", (), panels=tuple(panels))
