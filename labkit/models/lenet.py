"""The LeNet of the EE219 quantization lab, for 3x32x32 images and ten classes."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """conv 3->12 5x5, ReLU, max-pool 2, conv 12->32 3x3, ReLU, max-pool 2, fc 1152-256-64-10.

    No layer has a bias, except the last one where ``last_bias`` asks for it: the lab's last step is to quantize that
    one bias. 316,292 weights: 900, 3,456, 294,912, 16,384 and 640 from the first layer to the last.

    Parameters
    ----------
    last_bias
        Whether ``fc3`` has a bias.
    """

    def __init__(self, last_bias: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, bias=False)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(12, 32, 3, bias=False)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(1152, 256, bias=False)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(256, 64, bias=False)
        self.relu4 = nn.ReLU()
        self.fc3 = nn.Linear(64, 10, bias=last_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, 10], of normalised images, float32 [N, 3, 32, 32] in [-1, 1]."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.flatten(x)
        x = self.relu3(self.fc1(x))
        x = self.relu4(self.fc2(x))
        logits: torch.Tensor = self.fc3(x)
        return logits
