"""A small network whose branches are joined at differing scales, as in an Inception block: trained in seconds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

__all__ = ["Branches", "trained"]


class Branches(nn.Module):
    """Two blocks of three branches each (1x1, 3x3, pooled), joined along the channels, and a linear layer; 3x32x32 in, 10 out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.point1, self.wide1, self.pooled1 = _branches(12, 8)
        self.point2, self.wide2, self.pooled2 = _branches(24, 12)
        self.fc = nn.Linear(36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, 10] of images ``x`` float32 [N, 3, 32, 32]."""
        x = F.relu(self.stem(x))
        pooled = F.avg_pool2d(x, 2)
        x = torch.cat([F.relu(self.point1(pooled)), F.relu(self.wide1(pooled)), self.pooled1(F.max_pool2d(x, 2))], 1)
        pooled = F.avg_pool2d(x, 2)
        x = torch.cat([F.relu(self.point2(pooled)), F.relu(self.wide2(pooled)), self.pooled2(F.max_pool2d(x, 2))], 1)
        logits: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def trained(images: NDArray[np.float32], labels: NDArray[np.int64], steps: int, seed: int = 0) -> Branches:
    """A `Branches` after ``steps`` steps of Adam (learning rate 0.004, falling to 0) on batches of 64.

    ``images`` float32 [N, 3, 32, 32] and ``labels`` int64 [N]; ``seed`` draws the weights and batches. In evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    module = Branches()
    with torch.no_grad():
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            drawn = torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5
            parameter.copy_(drawn if parameter.ndim > 1 else torch.zeros_like(parameter))
    optimizer = torch.optim.Adam(module.parameters(), 0.004)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator).numpy()
        loss = F.cross_entropy(module(torch.from_numpy(images[chosen])), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return module.eval()


def _branches(inputs: int, outputs: int) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    return nn.Conv2d(inputs, outputs, 1), nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)
