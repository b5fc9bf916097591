"""Networks without training: seeded random weights, and batch norms as a training might leave them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["settled"]


def settled(build: Callable[[], nn.Module], images: NDArray[np.float32], seed: int = 0) -> nn.Module:
    """A network whose shapes, speed and arithmetic are real, and whose answers mean nothing; in evaluation mode.

    Batch norms get gains and shifts as training leaves them, and the statistics of ``images``. Fresh statistics (mean 0,
    variance 1) would let the activations of a deep random net shrink to nothing. Biases that begin at 0 get small values,
    because zeros need neither room nor an addition.

    Parameters
    ----------
    build
        Makes the module; what it draws comes from torch's generator at ``seed``.
    images
        float32 [N, C, H, W], as the module takes them.
    seed
        The same seed gives the same network. torch's random numbers afterwards go on as if none had been drawn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval()
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.6, 1.4)
            nn.init.normal_(norm.bias, 0.0, 0.3)
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None and not part.bias.any():
                nn.init.normal_(part.bias, 0.0, 0.05)
        with torch.no_grad():
            module(torch.from_numpy(images))
    return module.eval()
