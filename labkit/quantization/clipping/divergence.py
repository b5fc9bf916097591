"""What every KL method needs: a histogram merged into few levels and expanded again, and how much that loses.

The EE219 lab (section V.E, figure 5) and the TensorRT slides it cites (Migacz, "8-bit inference with TensorRT", GTC 2017)
show it on eight bins and two levels: [1, 0, 2, 3, 5, 3, 1, 7] is merged to [6, 16] and expanded to
[2, 0, 2, 2, 4, 4, 4, 4]: what a level holds is spread evenly over those of its bins that were not empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import QuantizationError

__all__ = ["KLCurve", "clipped_divergences", "even_borders", "kl_divergence", "merge_and_expand"]


@dataclass(frozen=True, eq=False)
class KLCurve:
    """The divergence of every candidate range.

    variant : whose search it is.
    low, high : float64 [K], the candidates in real units, narrow ones first.
    divergence : float64 [K]; infinite where a candidate is out of the question.
    best : the index of the one that is chosen.
    """

    variant: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    divergence: NDArray[np.float64]
    best: int

    def __post_init__(self) -> None:
        for name in ("low", "high", "divergence"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.float64))

    @property
    def chosen(self) -> tuple[float, float]:
        """The chosen range (low, high)."""
        return float(self.low[self.best]), float(self.high[self.best])


def merge_and_expand(counts: ArrayLike, levels: int) -> NDArray[np.float64]:
    """``counts`` [B], integers or floats, merged into ``levels`` groups of B // levels bins and expanded again; float64 [B].

    The last group takes the remainder. Each group's sum is spread evenly over those of its bins that are not empty.

    >>> merge_and_expand([1, 0, 2, 3, 5, 3, 1, 7], 2).tolist()
    [2.0, 0.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0]

    Raises
    ------
    QuantizationError
        There are fewer bins than levels.
    """
    bins = np.asarray(counts, np.float64)
    if not 1 <= levels <= len(bins):
        raise QuantizationError(f"{len(bins)} bins cannot be merged into {levels} levels: use 1..{len(bins)}.")
    size = len(bins) // levels
    starts = np.arange(levels) * size
    filled = bins != 0
    sums, numbers = np.add.reduceat(bins, starts), np.add.reduceat(filled.astype(np.int64), starts)
    sizes = np.diff([*starts, len(bins)])
    return np.where(filled, np.repeat(sums / np.maximum(numbers, 1), sizes), 0.0)


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """The sum of P ln(P / Q) in nats, with ``p`` and ``q``, non-negative reals [B], divided by their sums first.

    Infinite where some Q is 0 and P is not.

    Raises
    ------
    QuantizationError
        The two differ in length.
    """
    a, b = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if a.shape != b.shape:
        raise QuantizationError(f"Two distributions must have one length, got shapes {a.shape} and {b.shape}.")
    if np.any((a > 0) & (b == 0)):
        return float("inf")
    a, b = a[a > 0] / a.sum(), b[a > 0] / b.sum()
    return float((a * np.log(a / b)).sum())


def even_borders(ends: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """Where groups begin if ``ends`` int64 [K] bins are divided evenly into ``levels``; int64 [K, levels + 1].

    Group g holds the bins j with g <= j * levels / end < g + 1.
    """
    groups = np.arange(levels + 1, dtype=np.int64)
    return -(-groups * ends[:, None] // levels)


def clipped_divergences(
    counts: NDArray[np.int64], borders: NDArray[np.int64], empty: float = 0.0
) -> NDArray[np.float64]:
    """KL(P || Q) for many candidates at once, float64 [K].

    Candidate k keeps the bins below its end i. P is those bins with the counts of all others added to the last one; Q is
    the same bins without those others, merged into groups and expanded (`merge_and_expand`). Within a group Q is one
    number, so that with the sums S of the kept and T of all counts, and m_g counts in z_g filled bins of group g,

        KL = (sum p ln p - sum_g m_g ln(m_g / z_g) - outliers * ln(m_last / z_last)) / T + ln(S / T)

    and every sum is a difference of two running sums: a candidate costs as many logarithms as there are levels.

    Parameters
    ----------
    counts : int64 [B]
    borders : int64 [K, levels + 1], where each candidate's groups begin, and its end
    empty : what to take for Q where it is 0 and P is not, that is, in the last bin if it was empty before the outliers
        came; 0 makes the divergence infinite
    """
    bins = np.asarray(counts, np.float64)
    total, ends, levels = bins.sum(), borders[:, -1], borders.shape[1] - 1
    mass, filled, plogp = (_running(each) for each in (bins, bins > 0, _xlogx(bins)))
    m, z = np.diff(mass[borders], axis=1), np.diff(filled[borders], axis=1)
    kept = mass[ends]
    outliers = np.maximum(total - kept, 0.0)
    last = bins[ends - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.log(m / np.maximum(z, 1.0))
        spread = np.where(m > 0, m * level, 0.0).sum(1)
        # ln q of the bin that the outliers fall into; where it was empty, Q is a share of the kept, hence the factor
        of_last = levels - 1 - np.argmax(np.diff(borders, axis=1)[:, ::-1] > 0, axis=1)  # a group may have no bins
        at_end = np.where(last > 0, level[np.arange(len(ends)), of_last], np.log(empty * kept))
        lost = np.where(outliers > 0, outliers * at_end, 0.0)
        own = plogp[ends] - _xlogx(last) + _xlogx(last + outliers)
        divergence = (own - spread - lost) / total + np.log(kept / total)
    return np.where(np.isnan(divergence), np.inf, divergence)


def _running(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > 0, values * np.log(np.maximum(values, 1.0)), 0.0)  # counts: nothing lies between 0 and 1
