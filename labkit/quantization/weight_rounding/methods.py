"""The rounding methods by name, each a function of one layer's problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from labkit.quantization.weight_rounding import simple
from labkit.quantization.weight_rounding.adaround import HOPFIELD, RECTIFIED, SIGMOID, Relaxation, adaround
from labkit.quantization.weight_rounding.adaround_images import adaround_images
from labkit.quantization.weight_rounding.descent import descend, descend_decisions
from labkit.quantization.weight_rounding.gptq import best_weights, gptq
from labkit.quantization.weight_rounding.grids import RowGrid, refit_scale
from labkit.quantization.weight_rounding.options import LayerHistory, RoundingOptions
from labkit.quantization.weight_rounding.problem import LayerProblem
from labkit.quantization.weight_rounding.qubo import decisions_qubo
from labkit.quantization.weight_rounding.qubo_solvers import anneal, cross_entropy
from labkit.quantization.weight_rounding.straight_through import straight_through

__all__ = ["BLOCK_METHODS", "LAYER_METHODS", "Found", "round_layer"]

Rows = NDArray[np.float64]
Found = tuple[Rows, LayerHistory | None]
Method = Callable[[LayerProblem, RowGrid, RoundingOptions, np.random.Generator], Found]

BLOCK_METHODS = ("brecq", "qdrop")


def round_layer(
    method: str, problem: LayerProblem, grid: RowGrid, options: RoundingOptions, generator: np.random.Generator
) -> tuple[Rows, RowGrid, LayerHistory | None]:
    """Levels for one layer, with the scale fitted to them where ``options.refits`` asks for it.

    Parameters
    ----------
    method : a name in `LAYER_METHODS`
    problem : the layer
    grid : to start with
    options : of the method
    generator : of random numbers

    Returns
    -------
    levels float64 [O, K], their grid, and the search's history where it keeps one
    """
    levels, history = LAYER_METHODS[method](problem, grid, options, generator)
    for _ in range(options.refits):
        grid = refit_scale(grid, levels, problem.held)
        if method in _DESCENDS_AGAIN and not options.restricted:
            levels = descend(levels, grid, problem.held)
    return levels, grid, history


def _simple(choose: Callable[[Rows, RowGrid], Rows], problem: LayerProblem, grid: RowGrid, *_: object) -> Found:
    return choose(problem.weights, grid), None


def _stochastic(
    problem: LayerProblem, grid: RowGrid, options: RoundingOptions, generator: np.random.Generator
) -> Found:
    return simple.round_stochastic(problem.weights, grid, generator), None


def _descent(problem: LayerProblem, grid: RowGrid, options: RoundingOptions, generator: np.random.Generator) -> Found:
    start = grid.nearest(problem.weights)
    if options.restricted:
        return descend_decisions(problem.weights, start, grid, problem.held), None
    return descend(start, grid, problem.held), None


def _gptq(
    then_descend: bool,
    problem: LayerProblem,
    grid: RowGrid,
    options: RoundingOptions,
    generator: np.random.Generator,
) -> Found:
    levels = gptq(best_weights(problem.held), grid, problem.held)
    return descend(levels, grid, problem.held) if then_descend else levels, None


def _relaxed(
    relaxation: Relaxation,
    problem: LayerProblem,
    grid: RowGrid,
    options: RoundingOptions,
    generator: np.random.Generator,
) -> Found:
    told = {"iterations": options.iterations, "learning_rate": options.learning_rate}
    relaxation = replace(relaxation, last_temperature=options.last_temperature, cooling=options.cooling)
    return adaround(
        problem.weights,
        grid,
        problem.held,
        relaxation,
        regularization=options.regularization,
        warm_up=options.warm_up,
        keep=options.history,
        **{name: value for name, value in told.items() if value is not None},  # type: ignore[arg-type]
    )


def _straight_through(
    problem: LayerProblem, grid: RowGrid, options: RoundingOptions, generator: np.random.Generator
) -> Found:
    told = {"iterations": options.iterations, "learning_rate": options.learning_rate}
    given = {name: value for name, value in told.items() if value is not None}
    return straight_through(problem.weights, grid, problem.held, **given)  # type: ignore[arg-type]


def _by_images(problem: LayerProblem, grid: RowGrid, options: RoundingOptions, generator: np.random.Generator) -> Found:
    return adaround_images(problem, grid, options, int(generator.integers(2**31)))


def _qubo(
    solver: Callable[..., NDArray[np.bool_]],
    problem: LayerProblem,
    grid: RowGrid,
    options: RoundingOptions,
    generator: np.random.Generator,
) -> Found:
    levels = grid.choices(problem.weights)[0].copy()
    shares = simple.up_share(problem.weights, grid)
    up = grid.choices(problem.weights)[1]
    for row in range(len(levels)):
        qubo, free = decisions_qubo(problem.weights, grid, problem.held, row)
        ups = solver(qubo, shares[row, free], generator)
        levels[row, free[ups]] = up[row, free[ups]]
    return levels, None


_DESCENDS_AGAIN = ("descent", "gptq+descent")

LAYER_METHODS: dict[str, Method] = {
    "nearest": partial(_simple, simple.round_nearest),
    "floor": partial(_simple, simple.round_floor),
    "ceil": partial(_simple, simple.round_ceil),
    "stochastic": _stochastic,
    "descent": _descent,
    "gptq": partial(_gptq, False),
    "gptq+descent": partial(_gptq, True),
    "cross-entropy": partial(_qubo, cross_entropy),
    "annealing": partial(_qubo, anneal),
    "adaround": partial(_relaxed, RECTIFIED),
    "sigmoid": partial(_relaxed, SIGMOID),
    "hopfield": partial(_relaxed, HOPFIELD),
    "adaround-images": _by_images,
    "straight-through": _straight_through,
}
