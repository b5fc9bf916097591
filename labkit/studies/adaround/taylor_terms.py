"""The Taylor expansion term by term, and what it leaves out between layers (Nagel et al. 2020, sections 2 and 3.1)."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.differentiable import layer_names
from labkit.quantization.weight_rounding.simple import round_stochastic
from labkit.quantization.weight_rounding.task_hessian import TaskHessian
from labkit.studies.adaround.one_layer import (
    OneLayer,
    first_layer,
    mean_cross_entropy,
    with_weights,
)
from labkit.studies.lab import Lab, logits
from labkit.studies.study import Finding, Table, Tell, mean_and_spread

__all__ = ["cross_layer_table", "taylor_table"]

Rows = NDArray[np.float64]
Known = tuple[NDArray[np.float32], NDArray[np.int64]]

_BITS = (8, 6, 4, 3, 2)
_DRAWS = {"lenet": 20, "resnet20": 6}
_MAIN = 4


def taylor_table(
    lab: Lab, hessian: TaskHessian, known: Known, smoke: bool, tell: Tell
) -> tuple[Table, tuple[Finding, ...]]:
    """First- and second-order terms of stochastic roundings of the first layer, beside the true rise of the loss.

    Parameters
    ----------
    lab : the network
    hessian : of its first layer
    known : images float32 [N, ...] and labels int64 [N]
    smoke : few draws
    tell : called with (step, done, total)
    """
    name, start = first_layer(lab.graph), _loss(lab, {}, known)
    draws = 2 if smoke else _DRAWS[lab.net]
    rows: list[tuple[str | float, ...]] = []
    at_main = None
    for done, bits in enumerate(_BITS):
        layer = OneLayer.of(lab.graph, name, bits)
        first, second, true = [], [], []
        for seed in range(draws):
            levels = round_stochastic(layer.weights, layer.grid, np.random.default_rng(1000 + seed))
            change = layer.change(levels)
            first.append(hessian.first_order(change))
            second.append(hessian.second_order(change))
            true.append(_loss(lab, {name: layer.grid.values(levels)}, known) - start)
        both = [a + b for a, b in zip(first, second, strict=True)]
        rows.append(
            (str(bits), *(mean_and_spread(part, 5) for part in (first, second, both, true)), fmean(both) / fmean(true))
        )
        if bits == _MAIN:
            at_main = fmean(map(abs, first)) / fmean(second), fmean(both) / fmean(true), _spread_share(first, second)
        tell(f"{lab.net}: Taylor terms", done + 1, len(_BITS))
    assert at_main is not None
    table = Table(
        f"{lab.net}, first layer: Taylor terms and the true rise of the loss, nats, {draws} stochastic roundings",
        ("bits", "g d", "d H d / 2", "both terms", "true rise", "both / true, of the means"),
        tuple(rows),
    )
    ratio, reached, varies = at_main
    return table, (
        Finding(
            f"{lab.net}: the gradient's term can be ignored, as it is close to 0 in a trained network",
            f"{_MAIN} bits: mean |g d| is {100 * ratio:.0f} % of mean d H d / 2; the standard deviation of g d is "
            f"{100 * varies:.0f} % of that of both terms together",
            "yes" if ratio < 0.1 and varies < 0.1 else "partly" if ratio < 0.5 else "no",
        ),
        Finding(
            f"{lab.net}: ignoring higher orders is a good approximation unless perturbations are too large",
            f"both terms are {100 * reached:.0f} % of the true rise at {_MAIN} bits, "
            f"{100 * float(rows[-1][-1]):.0f} % at {_BITS[-1]} bits",
            "yes" if abs(reached - 1) < 0.25 else "partly" if abs(reached - 1) < 0.5 else "no",
        ),
    )


def cross_layer_table(lab: Lab, known: Known, smoke: bool, tell: Tell) -> tuple[Table, tuple[Finding, ...]]:
    """Rises of the loss by layers rounded one at a time, by neighbours together, and by all together.

    Parameters
    ----------
    lab : the network
    known : images float32 [N, ...] and labels int64 [N]
    smoke : few layers
    tell : called with (step, done, total)
    """
    names = layer_names(lab.graph)[: 3 if smoke else None]
    pairs = tuple(pairwise(names))[: len(names) if lab.net == "lenet" else 3]
    start = _loss(lab, {}, known)
    rows, findings = [], []
    bits_to_try = (_MAIN, 3) if lab.net == "lenet" and not smoke else (_MAIN,)
    total, done = len(bits_to_try) * (len(names) + len(pairs) + 1), 0
    for bits in bits_to_try:
        layers = {name: OneLayer.of(lab.graph, name, bits) for name in names}
        rounded = {name: layer.grid.values(layer.nearest) for name, layer in layers.items()}
        alone = {}
        for name in names:
            alone[name] = _loss(lab, {name: rounded[name]}, known) - start
            tell(f"{lab.net}: layers", done := done + 1, total)
        for pair in (*pairs, names):
            together = _loss(lab, {name: rounded[name] for name in pair}, known) - start
            separately = sum(alone[name] for name in pair)
            words = f"all {len(names)} layers" if pair == names and len(names) > 2 else " and ".join(pair)
            rows.append((str(bits), words, separately, together, together - separately, together / separately))
            tell(f"{lab.net}: layers", done := done + 1, total)
            if bits == _MAIN and pair in (pairs[0], names):
                share = (together - separately) / together
                findings.append(
                    Finding(
                        f"{lab.net}: interactions between weights of different layers can be ignored ({words})",
                        f"rounded together to {bits} bits the loss rises by {together:.4f}, the rises one at a time sum to "
                        f"{separately:.4f}: {100 * share:+.0f} % is interaction",
                        "yes" if abs(share) < 0.1 else "partly" if abs(share) < 0.3 else "no",
                    )
                )
    table = Table(
        f"{lab.net}, rounded to nearest: rise of the loss by several layers, nats",
        ("bits", "layers", "sum of the rises one at a time", "rise together", "interaction", "together / sum"),
        tuple(rows),
    )
    return table, tuple(findings)


def _spread_share(first: list[float], second: list[float]) -> float:
    """The standard deviation of the first-order terms as a share of that of both terms together."""
    both = np.std(np.add(first, second))
    return float(np.std(first) / both) if both > 0 else 0.0


def _loss(lab: Lab, rows: dict[str, Rows], known: Known) -> float:
    return mean_cross_entropy(logits(with_weights(lab.graph, rows), known[0]), known[1])
