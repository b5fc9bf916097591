"""Ingredients that are losses: functions of a network's flat weights that torch can differentiate twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["quadratic", "tanh_net", "tanh_net_samples"]

Loss = Callable[[torch.Tensor], torch.Tensor]


def quadratic(matrix: NDArray[np.float64], linear: NDArray[np.float64]) -> Loss:
    """The loss ``w M w / 2 + b . w`` of float64 weights w [n], for a ``matrix`` M [n, n] and ``linear`` b [n], float64."""
    m, b = torch.from_numpy(np.array(matrix)), torch.from_numpy(np.array(linear))
    return lambda w: w @ m @ w / 2 + b @ w


def tanh_net_samples(x: NDArray[np.float64], labels: NDArray[np.int64], hidden: int, classes: int) -> Loss:
    """The cross-entropy of each image, for a network of one layer of tanh and no biases.

    Parameters
    ----------
    x : float64 [N, F], the images
    labels : int64 [N], in 0..classes - 1
    hidden, classes : how many values the layers put out

    Returns
    -------
    a function from float64 weights [hidden * F + classes * hidden], those of the first layer first, to losses [N]
    """
    images, targets = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(labels))
    border = hidden * images.shape[1]

    def losses(w: torch.Tensor) -> torch.Tensor:
        values = torch.tanh(images @ w[:border].reshape(hidden, -1).T)
        return F.cross_entropy(values @ w[border:].reshape(classes, hidden).T, targets, reduction="none")

    return losses


def tanh_net(x: NDArray[np.float64], labels: NDArray[np.int64], hidden: int, classes: int) -> Loss:
    """The mean of what `tanh_net_samples` gives for ``x``, float64 [N, F], ``labels``, ``hidden`` and ``classes``."""
    losses = tanh_net_samples(x, labels, hidden, classes)
    return lambda w: losses(w).mean()
