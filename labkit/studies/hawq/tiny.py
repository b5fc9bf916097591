"""A convolutional network small enough that its whole Hessian fits a matrix, trained in a second."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labkit.data import DataSet
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.sensitivity.objective import Objective, make_objective
from labkit.studies.mpqco.bench import labelled_images

__all__ = ["reduced", "tiny_objective"]

_SIDE = 8  # pixels
_RATE = 0.02


def reduced(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 [N, 3, 8, 8]: the means of 4 x 4 pixels of ``images`` float32 [N, 3, 32, 32]."""
    blocks = images.reshape(len(images), 3, _SIDE, 4, _SIDE, 4)
    return np.asarray(blocks.mean((3, 5)), np.float32)


def tiny_objective(data: DataSet, images: int = 256, steps: int = 200, seed: int = 0) -> Objective:
    """The mean loss, in float64, of a trained network with 412 weights in three layers: two convolutions and a linear layer.

    Parameters
    ----------
    data : its training images are reduced to 8 x 8 pixels
    images : of the loss, with their labels; the network is trained on four times as many
    steps : of Adam on all of these at once
    seed : of the images and the first weights
    """
    x, labels = labelled_images(data, 4 * images, seed)
    small = torch.from_numpy(reduced(x))
    targets = torch.from_numpy(np.array(labels))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 10)),
        )
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(small), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    graph = simplify(from_torch(network.eval(), (3, _SIDE, _SIDE)))
    return make_objective(graph, small[:images], labels[:images], dtype=torch.float64)
