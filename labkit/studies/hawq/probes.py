"""Hutchinson's estimate of a trace beside the exact one: how far probes are off, and how far they should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.sensitivity.hessian import HessianOperator, full_hessian, random_signs
from labkit.sensitivity.objective import Objective
from labkit.studies.study import Figure, Finding, Series, Table

__all__ = ["ProbeErrors", "probe_deviations", "probe_errors"]

Values = NDArray[np.float64]

_SHOWN = 64  # probes of the table


@dataclass(frozen=True, eq=False)
class ProbeErrors:
    """Values of ``v . H v`` of L layers, and what the whole Hessian says of them.

    layers : names; sizes : int64 [L], their weights.
    exact : float64 [L], traces of the Hessian's blocks.
    samples : float64 [K, L], "own" with probes of each layer's own and "global" with one probe for all, by way.
    deviations : float64 [L], their standard deviations as the Hessian's elements give them, by way.
    """

    layers: tuple[str, ...]
    sizes: NDArray[np.int64]
    exact: Values
    samples: dict[str, Values]
    deviations: dict[str, Values]

    def table(self) -> Table:
        """Exact traces beside estimates."""
        rows: list[tuple[str | int, ...]] = []
        for at, layer in enumerate(self.layers):
            cells = []
            for way in ("own", "global"):
                few = self.samples[way][:_SHOWN, at]
                cells.append(f"{few.mean():.2f} ± {few.std(ddof=1) / math.sqrt(len(few)):.2f}")
            rows.append(
                (
                    f"{at + 1}: {layer}",
                    int(self.sizes[at]),
                    f"{self.exact[at]:.2f}",
                    f"{self.exact[at] / self.sizes[at]:.3f}",
                    *cells,
                    f"{100 * self.deviations['own'][at] / self.exact[at]:.0f}",
                    f"{100 * self.deviations['global'][at] / self.exact[at]:.0f}",
                )
            )
        return Table(
            "A network of 412 weights: the exact trace, and Hutchinson's estimate",
            (
                *("layer", "weights n", "tr(H), exact", "tr(H) / n", f"{_SHOWN} probes a layer"),
                *(f"{_SHOWN} probes for all layers", "deviation of a probe, %", "the same, for all layers, %"),
            ),
            tuple(rows),
        )

    def findings(self) -> list[Finding]:
        """Whether the estimates are right on average, and as uncertain as they should be."""
        own = self.samples["own"]
        off = np.abs(own.mean(0) - self.exact) / (own.std(0, ddof=1) / math.sqrt(len(own)))
        ratio = own.std(0, ddof=1) / self.deviations["own"]
        layers = len(self.layers)
        same = np.argsort(own[:_SHOWN].mean(0) / self.sizes).tolist() == np.argsort(self.exact / self.sizes).tolist()
        return [
            Finding(
                "Hutchinson's estimate is right on average, with the deviation that H's elements outside the diagonal give",
                f"{int((off <= 3).sum())} of {layers} layers within three standard errors of {len(own)} probes; measured "
                f"deviation {ratio.min():.2f} to {ratio.max():.2f} of the computed one",
                "yes"
                if (off <= 3).all() and (np.abs(ratio - 1) < 0.25).all()
                else "partly"
                if (off <= 3).any()
                else "no",
            ),
            Finding(
                f"{_SHOWN} probes order the layers of the tiny network by average trace as the exact Hessian does",
                "the same order" if same else "another order",
                "yes" if same else "no",
            ),
        ]

    def figure(self) -> Figure:
        """Root mean square errors over the number of probes, of the layer with the smallest trace."""
        at = int(np.argmin(self.exact))
        counts = [2**k for k in range(8) if 2**k * 4 <= len(self.samples["own"])]
        series = []
        for way, words in (("own", "the layer's own probes"), ("global", "one probe for all layers")):
            values = self.samples[way][:, at]
            found = []
            for count in counts:
                means = values[: len(values) // count * count].reshape(-1, count).mean(1)
                found.append(100 * math.sqrt(np.square(means / self.exact[at] - 1).mean()))
            theory = [100 * self.deviations[way][at] / self.exact[at] / math.sqrt(count) for count in counts]
            series.append(Series(words, tuple(map(float, counts)), tuple(found)))
            series.append(Series(f"{words}, from H", tuple(map(float, counts)), tuple(theory)))
        return Figure(
            "tiny-probes",
            f"Tiny network, layer {at + 1}: error of Hutchinson's trace",
            "line",
            "probes",
            "root mean square error, % of the trace",
            tuple(series),
            log_x=True,
            log_y=True,
        )


def probe_errors(objective: Objective, probes: int, seed: int = 0) -> ProbeErrors:
    """So many ``probes`` both ways, drawn with ``seed``, and the whole Hessian of ``objective``, of at most 500 weights."""
    matrix = full_hessian(objective)
    operator, generator = HessianOperator(objective), np.random.default_rng(seed)
    parts = list(operator.slices.values())
    signs = random_signs(generator, (probes, operator.size))
    terms = signs * operator.products(signs)
    samples = {"global": np.stack([terms[:, part].sum(1) for part in parts], 1), "own": np.zeros((probes, len(parts)))}
    for column, name in enumerate(objective.layers):
        alone = HessianOperator(objective, [name])
        signs = random_signs(generator, (probes, alone.size))
        samples["own"][:, column] = (signs * alone.products(signs)).sum(1)
    exact = np.array([np.trace(matrix[part, part]) for part in parts])
    return ProbeErrors(objective.layers, objective.sizes, exact, samples, probe_deviations(matrix, parts))


def probe_deviations(matrix: Values, parts: list[slice]) -> dict[str, Values]:
    """The standard deviation of one probe of each block's trace, float64 [L], by way: "own" and "global".

    For signs v the variance of ``v . H v`` is ``2 sum_{i != j} H_ij^2``. Where v is one probe for all layers, the layer's part
    of it has each element beside the block once more: their squares are added.

    Parameters
    ----------
    matrix : float64 [n, n], symmetric
    parts : the rows of each layer
    """
    own = np.array([2 * (np.square(matrix[p, p]).sum() - np.square(np.diag(matrix)[p]).sum()) for p in parts])
    beside = np.array([np.square(matrix[p]).sum() - np.square(matrix[p, p]).sum() for p in parts])
    return {"own": np.sqrt(own), "global": np.sqrt(own + beside)}
