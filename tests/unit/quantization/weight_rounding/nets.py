"""Small networks and images for the tests of weight rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify


class Residual(nn.Module):
    """A stem, two residual blocks (one with a convolution as shortcut, one plain), a depthwise layer, a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.a3 = nn.Conv2d(8, 12, 1, stride=2)
        self.b1, self.b2 = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.a2(torch.relu(self.a1(x))) + self.a3(x))
        x = torch.relu(self.b2(torch.relu(self.b1(x))) + x)
        x = torch.relu(self.depthwise(x))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def residual(seed: int = 0) -> FloatGraph:
    torch.manual_seed(seed)
    return simplify(from_torch(Residual().eval(), (3, 8, 8)))


def images(count: int = 64, seed: int = 0) -> Tensor:
    """Smooth images, so that neighbouring pixels go together as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return smooth + 0.2 * torch.randn(count, 3, 8, 8, generator=generator)
