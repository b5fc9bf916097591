"""Knapsack problems for the tests, and the truth about small ones by trying every choice."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from labkit.allocation.problem import Mckp

KINDS = ("net", "any", "flat", "real", "signed")


def problem(
    kind: str, layers: int, bits: int, seed: int, share: float = 0.4, constraints: int = 1, **more: object
) -> Mckp:
    """A random problem whose budgets lie at ``share`` of the way from the cheapest to the dearest choice.

    kind : "net" (sizes of layers, loss falling by about 4 a bit), "any" (values and costs without order), "flat" (few
        different numbers, so that ties abound), "real" (costs without a common measure), "signed" (values of either sign)
    """
    rng = np.random.default_rng(seed)
    shape, widths = (layers, bits), np.arange(1, bits + 1)
    if kind == "net":
        sizes = np.exp(rng.uniform(np.log(400), np.log(4e5), layers)).astype(int)[:, None]
        values = np.sqrt(sizes) * rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-widths * rng.lognormal(0, 0.3, shape)
        costs = np.stack([sizes * widths / 8 * rng.integers(1, 4, (layers, 1)) ** k for k in range(constraints)])
    elif kind == "any":
        values, costs = rng.uniform(0, 1000, shape), rng.integers(0, 1000, (constraints, *shape)) / 8
    elif kind == "flat":
        values, costs = rng.integers(0, 4, shape) / 1.0, rng.integers(0, 4, (constraints, *shape)) / 1.0
    elif kind == "real":
        values, costs = np.sort(rng.random(shape), 1)[:, ::-1], np.sort(rng.random((constraints, *shape)), 2)
    else:
        values, costs = rng.normal(0, 10, shape), np.sort(rng.integers(0, 10**6, (constraints, *shape)), 2) / 1.0
    low, high = costs.min(2).sum(1), costs.max(2).sum(1)
    names = tuple(f"l{i}" for i in range(layers))
    return Mckp(names, tuple(range(1, bits + 1)), values, costs, tuple(low + share * (high - low)), **more)  # type: ignore[arg-type]


def every_answer(given: Mckp) -> list[tuple[Fraction, tuple[Fraction, ...], tuple[int, ...]]]:
    """(value, costs, columns) of every choice that obeys tied and fixed layers, in exact fractions, whatever it costs."""
    rows = range(len(given.layers))
    values = [[Fraction(float(v)) for v in row] for row in given.values]
    costs = [[[Fraction(float(c)) for c in row] for row in table] for table in given.costs]
    wanted = {given.layers.index(name): given.bits.index(b) for name, b in given.fixed.items()}
    tied = [[given.layers.index(name) for name in group] for group in given.tied]
    found = []
    for columns in itertools.product(range(len(given.bits)), repeat=len(given.layers)):
        if any(columns[row] != column for row, column in wanted.items()):
            continue
        if any(columns[row] != columns[group[0]] for group in tied for row in group):
            continue
        value = sum((values[r][columns[r]] for r in rows), Fraction(0))
        spent = tuple(sum((table[r][columns[r]] for r in rows), Fraction(0)) for table in costs)
        found.append((value, spent, columns))
    return found


def best_by_trying(given: Mckp, slack: float = 0.0) -> Fraction | None:
    """The least value within the budgets, or None where nothing fits: each sum is rounded once and then compared.

    slack : budgets are raised by this share of what the dearest choice costs
    """
    budgets = [b + slack * float(t.max(1).sum()) for t, b in zip(given.costs, given.budgets, strict=True)]
    fitting = [
        v for v, spent, _ in every_answer(given) if all(float(s) <= b for s, b in zip(spent, budgets, strict=True))
    ]
    return min(fitting, default=None)
