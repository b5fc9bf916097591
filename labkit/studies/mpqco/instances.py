"""Knapsack problems to try solvers on: networks that might be, and three on which the greedy is led astray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.problem import Mckp

__all__ = ["ADVERSARIES", "made_up_network", "search_greedy", "with_average"]

BITS = (1, 2, 3, 4, 5, 6, 7, 8)


def made_up_network(layers: int, seed: int, average: float = 3.0) -> Mckp:
    """A network of so many ``layers``, drawn with ``seed``, whose weights may have ``average`` bits.

    Layers have 400 to 400,000 weights (evenly in the logarithm). The loss falls by about four with each bit, as a squared
    rounding error does, from a height that has nothing to do with the size, and not quite smoothly.
    """
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.uniform(np.log(400), np.log(4e5), layers)).astype(np.int64)
    heights = generator.lognormal(0, 1.5, (layers, 1))
    values = heights * 4.0 ** -np.arange(1, 9) * generator.lognormal(0, 0.3, (layers, 8))
    costs = sizes[:, None] * np.array(BITS) / 8
    names = tuple(f"layer {at}" for at in range(layers))
    return Mckp(
        names, BITS, values, costs[None], (float(sizes.sum()) * average / 8,), names=("size",), units=("bytes",)
    )


def with_average(problem: Mckp, average: float) -> Mckp:
    """``problem``, whose costs are bytes at 1 to 8 bits, with a budget of ``average`` bits a weight."""
    return replace(problem, budgets=(float(problem.costs[0, :, 0].sum()) * average,))


def search_greedy(problem: Mckp) -> tuple[NDArray[np.int64], int, int]:
    """The greedy as the supplement counts it: every step looks through the next bit-width of all layers for the best.

    It starts at the cheapest bits of ``problem``, which has one budget, no tied layers, and costs that rise and values that
    fall with the bits. A layer whose next step does not fit is done.

    Returns
    -------
    columns int64 [L], how many steps were made, and how many layers were looked at
    """
    values, costs = problem.values.tolist(), problem.costs[0].tolist()
    at, left = [0] * len(values), problem.budgets[0] - sum(row[0] for row in costs)
    open_layers, steps, looks = list(range(len(values))), 0, 0
    while open_layers:
        best, best_rate = open_layers[0], 1.0
        for layer in open_layers:
            here = at[layer]
            if here + 1 < len(values[layer]):
                gain, more = values[layer][here + 1] - values[layer][here], costs[layer][here + 1] - costs[layer][here]
                if gain / more < best_rate:
                    best, best_rate = layer, gain / more
        looks += len(open_layers)
        here = at[best]
        if here + 1 == len(values[best]) or costs[best][here + 1] - costs[best][here] > left:
            open_layers.remove(best)
            continue
        left -= costs[best][here + 1] - costs[best][here]
        at[best] = here + 1
        steps += 1
    return np.array(at, np.int64), steps, looks


def _made(values: list[list[float]], costs: list[list[float]], budget: float, bits: tuple[int, ...]) -> Mckp:
    names = tuple(f"layer {at}" for at in range(len(values)))
    return Mckp(names, bits, np.array(values), np.array([costs]), (budget,), names=("size",), units=("bytes",))


# What is wrong with each, and the problem. Losses and bytes are made up.
ADVERSARIES: dict[str, Mckp] = {
    "a small step blocks a large one": _made([[1.1, 0.0], [1000.0, 0.0]], [[0, 1], [0, 1000]], 1000, (4, 8)),
    "the best choice is off the hull": _made([[100.0, 26.0, 0.0]], [[0, 75, 100]], 99, (2, 4, 8)),
    "2 to 4 bits gain nothing, 4 to 8 everything": _made(
        [[100.0, 99.99, 0.0], [10.0, 5.0, 2.5]], [[100, 200, 400], [100, 200, 400]], 500, (2, 4, 8)
    ),
}
