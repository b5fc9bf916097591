"""A network with so few parameters that every matrix of the supplement can be formed, and a smooth activation, so that all exist.

All derivatives are by PyTorch's automatic differentiation in float64, by all parameters at once: nothing here uses the
layerwise ways of `labkit.sensitivity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

from labkit.errors import InputError

__all__ = ["LOSSES", "SmallNet", "expected_labels", "fitted", "small_images"]

LOSSES = ("cross-entropy", "squared-error")
Numbers = NDArray[np.float64]

_CLASSES = 3


@dataclass(frozen=True)
class SmallNet:
    """``inputs`` -> ``hidden`` tanh -> ``outputs``, with biases; ``hidden`` 0: linear. Parameters are one vector.

    loss : "cross-entropy", p(y | f) = softmax(f), or "squared-error", a normal distribution with variance 1 around f

    Raises
    ------
    InputError
        There is no such loss.
    """

    loss: str
    inputs: int = 16
    hidden: int = 8
    outputs: int = _CLASSES

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"The loss must be one of {', '.join(LOSSES)}, got {self.loss!r}.")

    @property
    def size(self) -> int:
        """The number of parameters."""
        if not self.hidden:
            return (self.inputs + 1) * self.outputs
        return (self.inputs + 1) * self.hidden + (self.hidden + 1) * self.outputs

    def start(self, seed: int) -> Tensor:
        """First parameters, drawn with ``seed``: float64 [P]."""
        generator = torch.Generator().manual_seed(seed)
        if not self.hidden:
            return torch.randn(self.size, generator=generator, dtype=torch.float64) * math.pow(self.inputs, -0.5)
        scales = torch.cat(
            [
                torch.full(((self.inputs + 1) * self.hidden,), self.inputs**-0.5),
                torch.full(((self.hidden + 1) * self.outputs,), self.hidden**-0.5),
            ]
        )
        return torch.randn(self.size, generator=generator, dtype=torch.float64) * scales.double()

    def run(self, theta: Tensor, x: Tensor) -> Tensor:
        """The outputs f [N, M] for images ``x`` [N, inputs] and parameters ``theta`` [P], all float64."""
        if not self.hidden:
            weights, last = theta[: self.inputs * self.outputs], theta[self.inputs * self.outputs :]
            return x @ weights.reshape(self.inputs, self.outputs) + last
        ends = np.cumsum([self.inputs * self.hidden, self.hidden, self.hidden * self.outputs])
        first, bias, second, last = torch.tensor_split(theta, ends.tolist())
        middle = torch.tanh(x @ first.reshape(self.inputs, self.hidden) + bias)
        return middle @ second.reshape(self.hidden, self.outputs) + last

    def log_chance(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The logarithm of p(y | f), float64 [...].

        ``outputs`` are float64 [..., M], ``labels`` int64 [...], or float64 [..., M] for least squares.
        """
        if self.loss == "cross-entropy":
            return outputs.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return -(outputs - labels).square().sum(-1) / 2 - self.outputs * math.log(2 * math.pi) / 2

    def mean_loss(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Equation 1, of float64 ``theta`` [P], ``x`` [N, inputs] and ``labels`` as in `log_chance`.

        Least squares without the constant of the normal distribution, so that a perfect fit has the loss 0.
        """
        constant = 0.0 if self.loss == "cross-entropy" else self.outputs * math.log(2 * math.pi) / 2
        return -self.log_chance(self.run(theta, x), labels).mean() - constant

    def residuals(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """r, float64 [N, M], ``-d log p / df``; float64 ``theta`` [P] and ``x`` [N, inputs], ``labels`` [N] or [N, M]."""
        outputs = self.run(theta, x)
        if self.loss == "cross-entropy":
            return outputs.softmax(1) - torch.nn.functional.one_hot(labels, self.outputs)
        return outputs - labels

    def curvatures(self, theta: Tensor, x: Tensor) -> Tensor:
        """A, float64 [N, M, M], ``-d^2 log p / df^2``, for float64 ``theta`` [P] and ``x`` [N, inputs]."""
        if self.loss == "cross-entropy":
            chance = self.run(theta, x).softmax(1)
            return torch.diag_embed(chance) - chance[:, :, None] * chance[:, None, :]
        return torch.eye(self.outputs, dtype=torch.float64).expand(len(x), -1, -1)

    def drawn(self, theta: Tensor, x: Tensor, seed: int) -> Tensor:
        """Labels drawn with ``seed`` from the model's distribution, as `log_chance` takes them.

        ``theta`` and ``x`` are float64 [P] and [N, inputs].
        """
        generator, outputs = torch.Generator().manual_seed(seed), self.run(theta, x)
        if self.loss == "cross-entropy":
            return torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]
        return outputs + torch.randn(outputs.shape, generator=generator, dtype=torch.float64)

    def hessian(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """H, equation 4, float64 [P, P]; ``theta`` [P], ``x`` [N, inputs] float64, ``labels`` as in `log_chance`."""
        return hessian(self.mean_loss)(theta, x, labels)  # type: ignore[no-any-return]

    def jacobian(self, theta: Tensor, x: Tensor) -> Tensor:
        """df/dtheta, float64 [N, M, P], for float64 ``theta`` [P] and ``x`` [N, inputs]."""
        return vmap(lambda one: jacrev(self.run)(theta, one))(x)  # type: ignore[no-any-return]

    def second_derivatives(self, theta: Tensor, x: Tensor) -> Tensor:
        """d^2 f / dtheta^2, float64 [N, M, P, P], for float64 ``theta`` [P] and ``x`` [N, inputs]."""
        return vmap(lambda one: hessian(self.run)(theta, one))(x)  # type: ignore[no-any-return]

    def log_gradients(self, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """The gradient of each image's log p, float64 [N, P].

        ``theta`` [P] and ``x`` [N, inputs] are float64, ``labels`` as in `log_chance`.
        """

        def one(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
            return self.log_chance(self.run(theta, image), label)

        return vmap(grad(one), (None, 0, 0))(theta, x, labels)  # type: ignore[no-any-return]

    def chance_gradients(self, theta: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The chance p [N] of each image's label and its gradient [N, P], float64: what line 1 of equation 5 is made of.

        ``theta`` [P] and ``x`` [N, inputs] are float64, ``labels`` as in `log_chance`.
        """

        def one(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
            return self.log_chance(self.run(theta, image), label).exp()

        found = vmap(one, (None, 0, 0))(theta, x, labels)
        return found, vmap(grad(one), (None, 0, 0))(theta, x, labels)


def expected_labels(net: SmallNet, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and their weights, over which a sum is the exact expectation under the model of what is quadratic in the label.

    All classes with their chances; for least squares a Gauss-Hermite grid of three points in each direction (exact to degree 5).

    Parameters
    ----------
    net : whose distribution
    theta : float64 [P]
    x : float64 [N, inputs]

    Returns
    -------
    labels int64 [N, K] or float64 [N, K, M], and weights float64 [N, K], whose sum is 1
    """
    outputs = net.run(theta, x).detach()
    if net.loss == "cross-entropy":
        return torch.arange(net.outputs).expand(len(x), -1), outputs.softmax(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.stack(np.meshgrid(*[nodes] * net.outputs, indexing="ij"), -1).reshape(-1, net.outputs)
    chances = np.stack(np.meshgrid(*[weights / weights.sum()] * net.outputs, indexing="ij"), -1).prod(-1).reshape(-1)
    labels = outputs[:, None, :] + torch.from_numpy(grid)[None]
    return labels, torch.from_numpy(chances).expand(len(x), -1)


def fitted(net: SmallNet, x: Tensor, labels: Tensor, seed: int, iterations: tuple[int, ...]) -> list[Tensor]:
    """The parameters after so many ``iterations`` of the damped Gauss-Newton method (Levenberg 1944), over all images at once.

    Parameters
    ----------
    net, seed : what to fit, and the seed of its first parameters
    x, labels : float64 [N, inputs], and labels as in `SmallNet.log_chance`
    iterations : ascending

    Returns
    -------
    float64 [P] for each of ``iterations``
    """
    theta, damping = net.start(seed), 1.0
    value = float(net.mean_loss(theta, x, labels))
    snapshots = []
    for done in range(max(iterations) + 1):
        if done in iterations:
            snapshots.append(theta)
        jacobian, residuals = net.jacobian(theta, x), net.residuals(theta, x, labels)
        curved = torch.einsum("nmp,nmk,nkq->pq", jacobian, net.curvatures(theta, x), jacobian) / len(x)
        slope = torch.einsum("nm,nmp->p", residuals, jacobian) / len(x)
        for _ in range(20):
            step = torch.linalg.solve(curved + damping * torch.eye(net.size, dtype=torch.float64), slope)
            moved = float(net.mean_loss(theta - step, x, labels))
            if moved < value:
                theta, value, damping = theta - step, moved, damping / 3
                break
            damping *= 3
    return snapshots


def small_images(images: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of the classes 0 to 2: grey, 4 x 4 means, each pixel with mean 0 and variance 1.

    Parameters
    ----------
    images : float32 [N, 3, 32, 32]
    labels : int64 [N]
    count : of them, fewer where there are fewer

    Returns
    -------
    float64 [count, 16] and int64 [count]
    """
    chosen = np.flatnonzero(labels < _CLASSES)[:count]
    grey = images[chosen].astype(np.float64).mean(1).reshape(len(chosen), 4, 8, 4, 8).mean((2, 4)).reshape(-1, 16)
    grey = (grey - grey.mean(0)) / np.maximum(grey.std(0), 1e-3)
    return torch.from_numpy(grey), torch.from_numpy(labels[chosen].astype(np.int64))
