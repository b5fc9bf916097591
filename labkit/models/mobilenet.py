"""A small MobileNetV2 for 32x32 images (Sandler et al. 2018)."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["InvertedResidual", "MobileNetV2Small"]

# Expansion, output channels, blocks and first stride, as in table 2 of the paper; the nets there have seven such rows,
# and are made for images of 224 pixels.
_STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (6, 32, 3, 2), (6, 64, 3, 1), (6, 96, 2, 2))
_FIRST, _LAST = 16, 384


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise 3x3, 1x1 without ReLU6 (Sandler et al. 2018, figure 4d).

    Where stride is 1 and the numbers of channels agree, the input is added.

    Parameters
    ----------
    inputs, outputs
        Channels.
    stride
        Of the depthwise convolution.
    expansion
        The depthwise convolution has ``expansion * inputs`` channels; 1 leaves the first convolution out.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * inputs
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(inputs, inner, 1)]
        layers += [_conv(inner, inner, 3, stride, groups=inner)]
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        result: torch.Tensor = self.layers(x)
        return x + result if self.has_shortcut else result


class MobileNetV2Small(nn.Module):
    """Eleven inverted residuals between a 3x3 and a 1x1 convolution: 405,946 parameters.

    Against the paper's net, strides are fewer (images have 32 pixels), stages end at 96 channels, and the last
    convolution has 384, so that the weights stay below 2 MB.

    Parameters
    ----------
    classes
        Logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, _FIRST, 3)]
        inputs = _FIRST
        for expansion, outputs, blocks, stride in _STAGES:
            for index in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        layers.append(_conv(inputs, _LAST, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(_LAST, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, classes], of normalised images, float32 [N, 3, 32, 32] in [-1, 1]."""
        logits: torch.Tensor = self.fc(self.flatten(self.pool(self.features(x))))
        return logits


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6; padded so that a stride of 1 keeps height and width."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )
