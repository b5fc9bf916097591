"""SceneNet: a small encoder and decoder that gives every pixel a class. Its trained weights lie beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.random import fork_rng

from labkit.errors import ModelError
from labkit.models.weights import read_weights
from labkit.models.weights_files import fill_from
from labkit.studies.segmentation.scenes import CLASSES

__all__ = ["FOLDER", "SceneNet", "load_scene_net", "scene_net_recipe"]

FOLDER = Path(__file__).parent


class _Bottleneck(nn.Module):
    """MobileNetV2's block: wider by 1x1, 3x3 by channel, narrower by 1x1; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _layer(inputs, inner, 1)
        self.depthwise = _layer(inner, inner, 3, stride, inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class _Join(nn.Module):
    """A decoder's step: the coarse tensor at twice its size beside the fine one, then 3x3 by channel and 1x1."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.depthwise = _layer(coarse + fine, coarse + fine, 3, 1, coarse + fine)
        self.point = _layer(coarse + fine, outputs, 1)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.point(self.depthwise(torch.cat([self.up(coarse), fine], 1)))
        return y


class SceneNet(nn.Module):
    """float32 [N, 3, 48, 48] in [-1, 1] to scores, float32 [N, 4, 48, 48], of `scenes.CLASSES`. Other multiples of 8 work too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, 16, 3)
        self.encode_half = nn.Sequential(_Bottleneck(16, 24, 2), _Bottleneck(24, 24, 1))
        self.encode_quarter = nn.Sequential(_Bottleneck(24, 32, 2), _Bottleneck(32, 32, 1))
        self.encode_eighth = nn.Sequential(_Bottleneck(32, 48, 2), _Bottleneck(48, 48, 1), _Bottleneck(48, 48, 1))
        self.join_quarter = _Join(48, 32, 32)
        self.join_half = _Join(32, 24, 24)
        self.join_full = _Join(24, 16, 16)
        self.head = nn.Conv2d(16, len(CLASSES), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores float32 [N, 4, H, W] of the images ``x`` float32 [N, 3, H, W]."""
        full = self.stem(x)
        half = self.encode_half(full)
        quarter = self.encode_quarter(half)
        y = self.join_quarter(self.encode_eighth(quarter), quarter)
        scores: torch.Tensor = self.head(self.join_full(self.join_half(y, half), full))
        return scores


def load_scene_net() -> SceneNet:
    """The trained network, in evaluation mode.

    Raises
    ------
    ModelError
        Its files are missing or damaged.
    """
    path = FOLDER / "scene-net.safetensors"
    tensors = read_weights(path, sha256=scene_net_recipe()["sha256"])
    with fork_rng(devices=[]):
        module = SceneNet()
    fill_from(module, tensors, f"{path}, weights for SceneNet")
    return module.eval()


def scene_net_recipe() -> dict[str, Any]:
    """How the weights were made: ``command``, ``recipe`` (every number), ``test_miou`` in per cent, ``sha256``, ``versions``.

    Raises
    ------
    ModelError
        The file is missing or damaged.
    """
    path = FOLDER / "scene-net.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The recipe of SceneNet cannot be read from {path}: {error}. Install labkit again: the file belongs to the package."
        ) from error
    return content


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
