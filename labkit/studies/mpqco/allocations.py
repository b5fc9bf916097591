"""Random bit allocations of one size, and the loss's second derivative along what an allocation does to the weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.quantization.differentiable import layer_op, run_nodes
from labkit.sensitivity.objective import Objective

__all__ = ["average_bits", "curvature_along", "random_allocations"]

_TRIES = 2000  # times 1,000 allocations; one in 10,000 is then found
_TOGETHER = 1000


def average_bits(sizes: NDArray[np.int64], bits: NDArray[np.int64]) -> NDArray[np.float64]:
    """The average bits of a weight, float64 [K], for layers of ``sizes`` int64 [L] at ``bits`` int64 [K, L]."""
    return np.asarray(bits @ sizes / sizes.sum())


def random_allocations(
    sizes: NDArray[np.int64],
    bits: tuple[int, ...],
    average: float,
    count: int,
    seed: int = 0,
    tolerance: float = 0.01,
) -> NDArray[np.int64]:
    """Bits of each layer, drawn evenly from all allocations whose average bits are as wanted: rejection sampling.

    Parameters
    ----------
    sizes : int64 [L], weights of each layer
    bits : candidates, equally likely for each layer
    average : bits of a weight, over all layers
    count : how many; one may come twice where there are few
    seed : of the draws
    tolerance : relative, by how much the average may be missed

    Returns
    -------
    int64 [count, L]

    Raises
    ------
    InputError
        Hardly any allocation has this average.
    """
    generator, found, have = np.random.default_rng(seed), [], 0
    for _ in range(_TRIES):
        drawn = generator.choice(bits, (_TOGETHER, len(sizes)))
        drawn = drawn[np.abs(average_bits(sizes, drawn) - average) <= tolerance * average]
        found.append(drawn)
        have += len(drawn)
        if have >= count:
            return np.asarray(np.concatenate(found)[:count], np.int64)
    raise InputError(
        f"Of {_TRIES * _TOGETHER:,} random allocations of {min(bits)} to {max(bits)} bits only {have} have {average:g} bits on "
        f"average within {tolerance:.1%}; {count} are wanted. Allow a larger tolerance, or ask for another average."
    )


def curvature_along(objective: Objective, weights: Mapping[str, NDArray[np.floating]]) -> float:
    """``1/2 dw . H dw`` with the whole Hessian H of the mean loss, layers coupled: two derivatives by t of the loss at w + t dw.

    Parameters
    ----------
    objective : network, images and targets
    weights : the changed weights, real numbers [O, ...] by layer
    """
    graph, dtype = objective.graph, objective.images.dtype
    starts = {name: torch.from_numpy(np.array(layer_op(graph, name).weight)).to(dtype) for name in weights}
    changes = {name: torch.from_numpy(np.array(w)).to(dtype) - starts[name] for name, w in weights.items()}
    zero, one, total = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), 0.0
    for where in objective.chunks():

        def loss(t: torch.Tensor, where: slice = where) -> torch.Tensor:
            moved = {name: start + t * changes[name] for name, start in starts.items()}
            outputs = run_nodes(graph, {graph.inputs[0]: objective.images[where]}, moved)[graph.outputs[0]]
            return objective.losses(outputs, where).sum()

        def slope(t: torch.Tensor, loss=loss) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return torch.func.jvp(loss, (t,), (one,))[1]  # type: ignore[no-any-return]

        total += float(torch.func.jvp(slope, (zero,), (one,))[1])
    return total / len(objective.images) / 2
