"""Both sides of the supplement's equations 5 to 8 and 13 to 16, as numbers, for a network small enough to form every matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import hessian

from labkit.studies.mpqco.small_net import SmallNet, expected_labels

__all__ = ["Sides", "empirical_fisher", "fisher_identity", "five", "norm", "sides"]


def norm(matrix: Tensor) -> float:
    """The spectral norm of a symmetric ``matrix``, float64 [P, P]."""
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2).abs().max())


def empirical_fisher(net: SmallNet, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """H~ of equation 5, line 3, float64 [P, P].

    ``theta`` [P] and ``x`` [N, inputs] are float64, ``labels`` of ``net`` as in `SmallNet.log_chance`.
    """
    rows = net.log_gradients(theta, x, labels)
    return rows.T @ rows / len(x)


def five(net: SmallNet, theta: Tensor, x: Tensor, labels: Tensor) -> float:
    """The largest difference between the lines of equation 5, over the largest element.

    Line 1 is made of p and its gradient, line 3 of the gradient of log p, and line 4 is the expectation over all labels with the
    weights of the data: 1 for the image's own, 0 for others.

    Parameters
    ----------
    net : whose labels
    theta, x : float64 [P] and [N, inputs]
    labels : as in `SmallNet.log_chance`
    """
    chance, slopes = net.chance_gradients(theta, x, labels)
    first = torch.einsum("n,np,nq->pq", chance**-2, slopes, slopes) / len(x)
    scaled = slopes / chance[:, None]
    lines = [first, scaled.T @ scaled / len(x)]
    third = empirical_fisher(net, theta, x, labels)
    if net.loss == "cross-entropy":
        fourth = torch.zeros_like(third)
        for label in range(net.outputs):
            rows = net.log_gradients(theta, x, torch.full_like(labels, label))
            fourth += torch.einsum("n,np,nq->pq", (labels == label).double(), rows, rows) / len(x)
        lines.append(fourth)
    return max(float((line - third).abs().max()) for line in lines) / float(third.abs().max())


def fisher_identity(net: SmallNet, theta: Tensor, x: Tensor) -> tuple[float, float]:
    """Equations 6 to 8 with an exact expectation over the model's labels.

    Parameters
    ----------
    net : whose distribution
    theta, x : float64 [P] and [N, inputs]

    Returns
    -------
    how far E[-d^2 log p] is from E[grad grad^T], and how far E[-(d^2 p) / p] is from 0, both over the norm of the Fisher matrix
    """
    labels, weights = expected_labels(net, theta, x)
    known = net.log_chance(net.run(theta, x)[:, None, :].expand(-1, labels.shape[1], -1), labels).detach()

    def logs(moved: Tensor) -> Tensor:
        return net.log_chance(net.run(moved, x)[:, None, :].expand(-1, labels.shape[1], -1), labels)

    curved = -hessian(lambda moved: (weights * logs(moved)).sum(1).mean())(theta)
    vanishing = -hessian(lambda moved: (weights * (logs(moved) - known).exp()).sum(1).mean())(theta)
    fisher = torch.zeros_like(curved)
    for at in range(labels.shape[1]):
        rows = net.log_gradients(theta, x, labels[:, at])
        fisher += torch.einsum("n,np,nq->pq", weights[:, at], rows, rows) / len(x)
    size = norm(fisher)
    return norm(curved - fisher) / size, norm(vanishing) / size


@dataclass(frozen=True)
class Sides:
    """What equations 13 to 16 speak of, at one point. Norms are spectral; X is "GGN" or "Fisher", the empirical one.

    loss : mean.
    images : N.
    hessian : |H|.
    gaps : |H - X| by X.
    rests : |H - X - 1/N sum r d^2 f| by X: 0 where equation 14 holds, with the mean in place of its sum.
    unscaled : |H - GGN - sum r d^2 f|: equation 14 without 1/N, as printed.
    residuals : sum of |r| over images and outputs, the r(theta) of the proposition.
    signed : |sum of r|, as equation 15 has it.
    beta : the largest |d^2 f| of an image's output at this point.
    mixed : mean of |A - r r^T| |J|^2, by which the empirical Fisher may be off besides.
    """

    loss: float
    images: int
    hessian: float
    gaps: dict[str, float]
    rests: dict[str, float]
    unscaled: float
    residuals: float
    signed: float
    beta: float
    mixed: float

    @property
    def printed(self) -> float:
        """The right side of (13), to be compared with a squared norm: sum of |r|, times beta."""
        return self.residuals * self.beta

    @property
    def bound(self) -> float:
        """What follows for |H - GGN|: the mean over images of |r| summed over outputs, times beta."""
        return self.residuals * self.beta / self.images

    @property
    def fifteen(self) -> float:
        """The bound with the absolute value outside, as printed in (15), with 1/N."""
        return self.signed * self.beta / self.images


def sides(net: SmallNet, theta: Tensor, x: Tensor, labels: Tensor) -> Sides:
    """Both sides of equations 13 to 16.

    Parameters
    ----------
    net : network and loss
    theta, x : float64 [P] and [N, inputs]
    labels : as in `SmallNet.log_chance`
    """
    count = len(x)
    whole, jacobian = net.hessian(theta, x, labels), net.jacobian(theta, x)
    residuals, curvatures = net.residuals(theta, x, labels), net.curvatures(theta, x)
    second = net.second_derivatives(theta, x)
    matrices = {
        "GGN": torch.einsum("nmp,nmk,nkq->pq", jacobian, curvatures, jacobian) / count,
        "Fisher": empirical_fisher(net, theta, x, labels),
    }
    rest = torch.einsum("nm,nmpq->pq", residuals, second) / count
    mixed = torch.linalg.matrix_norm(curvatures - residuals[:, :, None] * residuals[:, None, :], 2)
    steep = torch.linalg.matrix_norm(jacobian, 2).square()
    return Sides(
        float(net.mean_loss(theta, x, labels)),
        count,
        norm(whole),
        {name: norm(whole - matrix) for name, matrix in matrices.items()},
        {name: norm(whole - matrix - rest) for name, matrix in matrices.items()},
        norm(whole - matrices["GGN"] - rest * count),
        float(residuals.abs().sum()),
        abs(float(residuals.sum())),
        float(torch.linalg.eigvalsh(second).abs().max()),
        float((mixed * steep).mean()),
    )
