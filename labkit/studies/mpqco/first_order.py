"""The term that the supplement leaves out without a word: the loss's gradient along the change of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.sensitivity.candidates import BITS
from labkit.sensitivity.direct import direct_sensitivity
from labkit.sensitivity.perturbation import mean_and_error, project_changes
from labkit.sensitivity.slopes import Directions
from labkit.studies.mpqco.bench import CANDIDATES, nets, open_bench
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["Orders", "run"]

Numbers = NDArray[np.float64]

_IMAGES = 512
_UNDERTRAINED = "lenet-short"
_NETS = ("lenet", _UNDERTRAINED, "resnet20")
_BIG = 0.5  # of the second order: from there the first matters
_SURE = 2.0  # standard errors


@dataclass(frozen=True, eq=False)
class Orders:
    """The change of the loss with one layer quantized, layer by layer and bit by bit.

    net : which.
    images : N.
    first, error : float64 [L, B], the gradient along dw and its standard error over images.
    second : float64 [L, B], 1/2 dw . H dw.
    truth, unsure : float64 [L, B], the change itself and its standard error.
    """

    net: str
    images: int
    first: Numbers
    error: Numbers
    second: Numbers
    truth: Numbers
    unsure: Numbers

    @property
    def ratios(self) -> Numbers:
        """The size of the first order over the second, float64 [L, B]."""
        return np.asarray(np.abs(self.first) / self.second)

    @property
    def real(self) -> NDArray[np.bool_]:
        """Where the first order is more than chance: bool [L, B]."""
        return np.asarray(np.abs(self.first) > _SURE * self.error)

    @property
    def matters(self) -> NDArray[np.bool_]:
        """Where it is besides more than half the second order: bool [L, B]."""
        return self.real & (self.ratios > _BIG)

    def missed(self, predicted: Numbers) -> Numbers:
        """By how much ``predicted`` [L, B] is off, over the size of the truth, median over layers: float64 [B]."""
        return np.asarray(np.median(np.abs(predicted - self.truth) / np.abs(self.truth), axis=0))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Both orders and the true change of the loss for each layer alone at 1 to 8 bits, trained networks and an undertrained one.

    ``settings`` say how much of it; ``tell`` is called with (net, images done, images).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    names = nets(settings) if settings.smoke else _NETS
    images = 24 if settings.smoke else _IMAGES
    found = [_measured(net, data, images, tell) for net in names]
    return StudyResult(
        (_sizes(found), _misses(found)),
        (*_where(found), _predicts(found), _few_bits(found)),
        (_scatter(found), _by_bits(found)),
        (
            f"{images} training images with labels, the same for all three; each layer quantized alone. The second order is the "
            "Gauss-Newton form, which for one layer of these networks is the Hessian's exactly; the true change is that of the "
            "network run with the layer quantized.",
            "The mean gradient of a trained network is 0 only over all its training images, and only if there is no weight decay "
            "and no augmentation. On N images it is off by chance: the standard error of g . dw is about the root of 2 / N times "
            "the perturbation by MPQCO, so that for changes below 2 / N ("
            f"{2 / images:.4f} nats for {images} images) the first order is mostly the choice of images. The tables therefore "
            f"say where it is more than {_SURE:g} standard errors from 0.",
            f"{_UNDERTRAINED} is LeNet after the EE219 lab's short training.",
            CANDIDATES,
        ),
    )


def _measured(net: str, data: DataSet, images: int, tell: Tell) -> Orders:
    bench = open_bench(net, data, images)
    steps = 3 * images

    def told(part: int):  # type: ignore[no-untyped-def]
        return lambda done, total: tell(net, part * images + done, steps)

    slopes = project_changes(bench.objective, bench.candidates, Directions("labels"), told(0))
    curved = project_changes(bench.objective, bench.candidates, Directions("fisher"), told(1))
    truth = direct_sensitivity(bench.objective, bench.candidates, "loss", told(2))
    first, error = zip(*(mean_and_error(values[:, 0]) for values in slopes.values.values()), strict=True)
    second = curved.table("gauss-newton").values
    return Orders(net, images, np.stack(first), np.stack(error), second, truth.values, truth.errors)


def _sizes(found: list[Orders]) -> Table:
    rows = []
    for orders in found:
        shares = orders.matters.mean(0)
        ratios = np.median(orders.ratios, axis=0)
        rows.append(
            (orders.net, *(f"{ratio:.2f} / {100 * share:.0f}" for ratio, share in zip(ratios, shares, strict=True)))
        )
    title = f"First over second order, median of the layers / layers where it is above {_BIG:g} and more than chance, per cent"
    return Table(title, ("network", *(f"{b} bit{'s' if b > 1 else ''}" for b in BITS)), tuple(rows))


def _misses(found: list[Orders]) -> Table:
    rows = []
    for orders in found:
        alone, both = orders.missed(orders.second), orders.missed(orders.first + orders.second)
        rows.append((orders.net, *(f"{100 * a:.0f} / {100 * b:.0f}" for a, b in zip(alone, both, strict=True))))
    title = "Distance from the true change, median of the layers, per cent: second order alone / with the first"
    return Table(title, ("network", *(f"{b} bit{'s' if b > 1 else ''}" for b in BITS)), tuple(rows))


def _where(found: list[Orders]) -> list[Finding]:
    results = []
    for orders in found:
        low, high = orders.matters[:, :3].mean(), orders.matters[:, 3:].mean()
        share = float(orders.matters.mean())
        results.append(
            Finding(
                f"{orders.net}: the first-order term can be left out (assumed by the supplement)",
                f"it is more than half the second, beyond chance, in {100 * low:.0f} % of the layers at 1 to 3 bits and "
                f"{100 * high:.0f} % at 4 to 8; more than chance in {100 * orders.real.mean():.0f} % of all",
                "yes" if share < 0.05 else "partly" if share < 0.25 else "no",
            )
        )
    return results


def _predicts(found: list[Orders]) -> Finding:
    """Whether the first order helps at 4 bits and more, where the change is small."""
    words, better = [], []
    for orders in found:
        alone = float(np.median(orders.missed(orders.second)[3:]))
        both = float(np.median(orders.missed(orders.first + orders.second)[3:]))
        better.append(both < alone)
        words.append(f"{orders.net} {100 * alone:.0f} % alone, {100 * both:.0f} % with it")
    return Finding(
        "Beyond the supplement: on the same images, 4 to 8 bits, the first order makes the prediction better",
        "distance from the truth: " + "; ".join(words),
        "yes" if all(better) else "partly" if any(better) else "no",
    )


def _few_bits(found: list[Orders]) -> Finding:
    low = [float(np.median(orders.missed(orders.first + orders.second)[:2])) for orders in found]
    high = [float(np.median(orders.missed(orders.first + orders.second)[3:6])) for orders in found]
    return Finding(
        "Beyond the supplement: at 1 and 2 bits not even both orders are enough",
        "distance of both from the truth at 1 and 2 bits, and at 4 to 6: "
        + "; ".join(f"{o.net} {100 * a:.0f} and {100 * b:.0f} %" for o, a, b in zip(found, low, high, strict=True)),
        "yes"
        if all(a > 2 * b for a, b in zip(low, high, strict=True))
        else "partly"
        if any(a > 2 * b for a, b in zip(low, high, strict=True))
        else "no",
    )


def _scatter(found: list[Orders]) -> Figure:
    panels = []
    for orders in found:
        series = tuple(
            Series(
                words,
                tuple(orders.second[:, part].ravel().tolist()),
                tuple(np.abs(orders.first[:, part]).ravel().tolist()),
            )
            for words, part in (("1 to 3 bits", slice(0, 3)), ("4 to 8 bits", slice(3, 8)))
        )
        panels.append(
            Figure(
                "panel",
                orders.net,
                "scatter",
                "½ dw · H dw, nats",
                "|g · dw|, nats",
                series,
                log_x=True,
                log_y=True,
                diagonal=True,
            )
        )
    title = "First over second order, a point for each layer and number of bits; on the dashed line they are equal"
    return Figure("orders", title, "scatter", "", "", (), panels=tuple(panels))


def _by_bits(found: list[Orders]) -> Figure:
    panels = []
    for orders in found:
        bits = tuple(map(float, BITS))
        curves = {
            "true change": np.median(np.abs(orders.truth), 0),
            "second order": np.median(orders.second, 0),
            "first order": np.median(np.abs(orders.first), 0),
            "its standard error": np.median(orders.error, 0),
        }
        series = tuple(Series(label, bits, tuple(values.tolist())) for label, values in curves.items())
        panels.append(Figure("panel", orders.net, "line", "bits", "size, nats", series, log_y=True))
    return Figure("sizes", "Sizes of the terms, median of the layers", "line", "", "", (), panels=tuple(panels))
