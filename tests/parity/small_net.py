"""A small quantized network with a convolution, a residual sum, pools and a linear layer, made in a second."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

import labkit
from labkit.net import IntegerNet


class Small(nn.Module):
    """Takes [N, 3, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv1(x))
        y = torch.relu(self.conv2(y) + y)
        return self.fc(torch.flatten(self.pool(torch.relu(self.depthwise(y))), 1))


def images(count: int, seed: int = 0) -> np.ndarray:
    """Float32 [count, 3, 8, 8]."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


@cache
def small_net() -> IntegerNet:
    """The network with 7-bit weights, which saturate in no kernel."""
    torch.manual_seed(0)
    return labkit.quantize(Small().eval(), images(64, 1), weights=7)
