"""ResNet-20 for 32x32 images (He et al. 2015, section 4.2)."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["BasicBlock", "ResNet20"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 2).

    The shortcut is the identity, or, where the shapes differ, a 1x1 convolution (option B of section 3.3).

    Parameters
    ----------
    inputs, outputs
        Channels.
    stride
        Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: torch.Tensor = self.relu2(inner + self.shortcut(x))
        return result


class ResNet20(nn.Module):
    """Three blocks each of 16, 32 and 64 channels: 272,474 parameters, 40.8 million multiplications an image.

    He et al. fill the two shortcuts that change the shape with zeros (their option A); here these are 1x1 convolutions
    (option B), so that every tensor of the net is computed by a layer that can be quantized.

    Parameters
    ----------
    classes
        Logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        blocks, inputs = [], 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range(3):
                blocks.append(BasicBlock(inputs, outputs, stride if index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, classes], of normalised images, float32 [N, 3, 32, 32] in [-1, 1]."""
        features = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: torch.Tensor = self.fc(self.flatten(self.pool(features)))
        return logits
