"""Search by trial: a yardstick for the methods that use the structure of the problem, with a budget of evaluations.

What is searched need not be the sum that the table predicts: ``evaluate`` may run the network. The searches of the
reinforcement-learning kind (the slides compare HAWQ-V2 with one) see the loss in this way only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.answer import Allocation, answer
from labkit.allocation.bound import lower_bound
from labkit.allocation.problem import Mckp
from labkit.errors import QuantizationError

__all__ = ["EVALUATIONS", "evolutionary_search", "random_search"]

EVALUATIONS = 2000
_TRIES = 1000  # random choices that may fail to meet the budgets, in a row

Picks = NDArray[np.int64]
Evaluate = Callable[[dict[str, int]], float]


def random_search(
    problem: Mckp, evaluations: int = EVALUATIONS, seed: int = 0, evaluate: Evaluate | None = None
) -> Allocation:
    """The best of so many random choices within the budgets.

    Each is drawn evenly; one that exceeds a budget gives way in single steps towards cheaper choices, in random order.

    Parameters
    ----------
    problem : with any number of constraints
    evaluations : choices to look at, 1 or more
    seed : of what is drawn
    evaluate : what to make least, from bits by layer; the sum of the values if left out

    Raises
    ------
    QuantizationError
        The budgets cannot be met, or no choice that meets them was found.
    """
    trial = _Trial(problem, evaluations, seed, evaluate)
    for _ in range(evaluations):
        trial.score(trial.draw())
    return trial.answer("random")


def evolutionary_search(
    problem: Mckp,
    evaluations: int = EVALUATIONS,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    population: int = 40,
) -> Allocation:
    """A small genetic search: the better of two parents twice, each class from either, one class in G redrawn.

    A child takes the place of the worst in the population if it is better.

    Parameters
    ----------
    problem : with any number of constraints
    evaluations : choices to look at, 1 or more, the first population included
    seed : of what is drawn
    evaluate : what to make least, from bits by layer; the sum of the values if left out
    population : how many choices are kept, 2 or more

    Raises
    ------
    QuantizationError
        The budgets cannot be met, or no choice that meets them was found.
    """
    if population < 2:
        raise QuantizationError(f"population must be 2 or more, got {population}.")
    trial = _Trial(problem, evaluations, seed, evaluate)
    rng = trial.rng
    people = [trial.draw() for _ in range(min(population, evaluations))]
    scores = [trial.score(picks) for picks in people]
    for _ in range(evaluations - len(people)):
        parents = []
        for _ in range(2):
            a, b = rng.integers(len(people), size=2)
            parents.append(people[a] if scores[a] <= scores[b] else people[b])
        child = np.where(rng.random(len(parents[0])) < 0.5, *parents)
        redrawn = rng.random(len(child)) < 1 / len(child)
        child[redrawn] = trial.evenly()[redrawn]
        fitted = trial.fit(child)
        if fitted is None:
            fitted = trial.draw()
        score = trial.score(fitted)
        worst = int(np.argmax(scores))
        if score < scores[worst]:
            people[worst], scores[worst] = fitted, score
    return trial.answer("evolutionary")


class _Trial:
    """Draws choices within the budgets and remembers the best."""

    def __init__(self, problem: Mckp, evaluations: int, seed: int, evaluate: Evaluate | None) -> None:
        if evaluations < 1:
            raise QuantizationError(f"evaluations must be 1 or more, got {evaluations}.")
        self.started = time.perf_counter()
        self.bound = lower_bound(problem)
        self.problem, self.rng, self.evaluate, self.evaluations = (
            problem,
            np.random.default_rng(seed),
            evaluate,
            evaluations,
        )
        self.best: tuple[float, Picks] | None = None
        classes = problem.classes
        self._rows = np.arange(len(classes.members))
        self._counts = classes.allowed.sum(1)
        with np.errstate(over="ignore"):
            shares = [table / (budget or 1.0) for table, budget in zip(classes.costs, problem.budgets, strict=True)]
        # Towards the left a choice is cheaper, by the largest share of any budget.
        self._order = np.argsort(np.where(classes.allowed, np.max(shares, axis=0), np.inf), axis=1, kind="stable")

    def evenly(self) -> Picks:
        """A choice for each class, whatever it costs."""
        picks: Picks = self._order[self._rows, self.rng.integers(self._counts)]
        return picks

    def draw(self) -> Picks:
        """A choice within the budgets."""
        for _ in range(_TRIES):
            if (found := self.fit(self.evenly())) is not None:
                return found
        raise QuantizationError(
            f"{_TRIES} random choices in a row did not meet the budgets ({', '.join(self.problem.names)}). "
            f"Raise one, or use the method 'ilp'."
        )

    def fit(self, picks: Picks) -> Picks | None:
        """``picks`` made cheaper in random single steps until they fit, or None where they never do."""
        costs = self.problem.classes.costs
        places = np.argmax(self._order == picks[:, None], axis=1)
        budgets = np.array(self.problem.budgets)
        spent = np.array([table[self._rows, picks].sum() for table in costs])
        groups = self.rng.permutation(np.repeat(self._rows, places))
        if np.any(spent > budgets) and len(groups):
            downs = _occurrence(groups)  # how often the class came before
            here = self._order[groups, places[groups] - downs]
            after = self._order[groups, places[groups] - downs - 1]
            saved = np.cumsum([table[groups, here] - table[groups, after] for table in costs], axis=1)
            enough = np.flatnonzero(np.all(spent[:, None] - saved <= budgets[:, None], axis=0))
            taken = groups[: enough[0] + 1] if len(enough) else groups
            places = places - np.bincount(taken, minlength=len(places))
        found = self._order[self._rows, places]
        return found if self.problem.fits(found) else None

    def score(self, picks: Picks) -> float:
        """What is made least, at ``picks``."""
        if self.evaluate is None:
            value = self.problem.value_of(picks)
        else:
            bits = (self.problem.bits[c] for c in self.problem.columns(picks))
            value = float(self.evaluate(dict(zip(self.problem.layers, bits, strict=True))))
        if self.best is None or value < self.best[0]:
            self.best = (value, picks)
        return value

    def answer(self, method: str) -> Allocation:
        """The best choice so far."""
        if self.best is None or np.isnan(self.best[0]):
            raise QuantizationError("Every evaluation was NaN. Look at what the function returns.")
        notes = {"evaluations": self.evaluations, "relaxation": self.bound.value}
        if self.evaluate is not None:
            notes["evaluated"] = self.best[0]
        return answer(self.problem, self.best[1], method, self.bound.value, self.started, **notes)


def _occurrence(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each item how often it occurs before, int64."""
    order = np.argsort(items, kind="stable")
    ordered = items[order]
    first = np.searchsorted(ordered, ordered, side="left")
    found = np.empty(len(items), np.int64)
    found[order] = np.arange(len(items)) - first
    return found
