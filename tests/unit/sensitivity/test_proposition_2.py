"""Which matrix the Hessian tends to as targets are fitted (Chen et al. 2021, supplement, proposition 2).

The bound is proved from ``H = X + sum of r times the outputs' second derivatives``, which holds for X the Gauss-Newton matrix
and not for the empirical Fisher matrix that the supplement's equation 5 defines.
"""

from __future__ import annotations

import numpy as np
import pytest
from unit.sensitivity.nets import fitted

from labkit.sensitivity.fisher import fisher_matrix
from labkit.sensitivity.hessian import full_hessian
from labkit.sensitivity.objective import LOSSES


def gaps(loss: str, seed: int, iterations: int) -> tuple[float, float, float]:
    """The mean loss, and how far the Hessian is from both matrices, as shares of its own norm."""
    found = fitted(loss, seed, iterations)
    hessian = full_hessian(found)
    size = np.linalg.norm(hessian)
    mean = float(found.losses(found.outputs).mean())
    return (
        mean,
        float(np.linalg.norm(hessian - fisher_matrix(found, "gauss-newton")) / size),
        float(np.linalg.norm(hessian - fisher_matrix(found, "empirical")) / size),
    )


@pytest.mark.parametrize(("loss", "seed"), [(LOSSES[0], 0), (LOSSES[0], 1), (LOSSES[1], 1)])
def test_hessian_tends_to_gauss_newton_and_away_from_the_empirical_fisher(loss: str, seed: int) -> None:
    start, end = gaps(loss, seed, 0), gaps(loss, seed, 300)
    assert start[0] > 0.5
    assert end[0] < 1e-12  # fitted
    assert start[1] > 0.5
    assert end[1] < 0.03
    assert end[2] == pytest.approx(1, abs=1e-6)  # the empirical matrix is gone beside the Hessian


@pytest.mark.parametrize("loss", LOSSES)
def test_gap_to_gauss_newton_is_the_residuals_times_second_derivatives(loss: str) -> None:
    """Equation 14, with the mean over images, by differences of the Jacobian."""
    from dataclasses import replace

    import torch
    from unit.sensitivity.nets import outputs_of

    from labkit.sensitivity.fisher import output_jacobian

    found = fitted(loss, 0, 5)
    residuals = found.residuals().numpy()
    names = found.layers
    weights = {name: torch.from_numpy(found.graph[name].op.weight) for name in names}  # type: ignore[union-attr]
    sizes = [weight.numel() for weight in weights.values()]
    ends = np.cumsum([0, *sizes])
    step, size = 1e-6, int(ends[-1])
    second = np.zeros((size, size))
    for index in range(size):
        sides = []
        for sign in (1, -1):
            nodes = []
            for node in found.graph:
                if node.name in weights:
                    at = names.index(node.name)
                    weight = weights[node.name].clone()
                    if ends[at] <= index < ends[at + 1]:
                        weight.view(-1)[index - ends[at]] += sign * step
                    node = replace(node, op=replace(node.op, weight=weight.numpy()))
                nodes.append(node)
            moved = replace(found, graph=type(found.graph)(tuple(nodes), found.graph.outputs))
            moved = replace(moved, outputs=outputs_of(moved, {}))
            sides.append(output_jacobian(moved))
        slope = (sides[0] - sides[1]) / (2 * step)  # [N, M, n]
        second[index] = np.einsum("nm,nmw->w", residuals, slope) / len(residuals)
    gap = full_hessian(found) - fisher_matrix(found, "gauss-newton")
    np.testing.assert_allclose(second, gap, atol=1e-6 * np.abs(gap).max() + 1e-8)
    assert np.abs(gap).max() > 1e-3
