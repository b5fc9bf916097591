"""The networks that are timed: a trained LeNet, and nets with seeded random weights that serve for speed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.data.dataset import DataSet
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import InputError

__all__ = ["BATCHES", "NETS", "BasicBlock", "ResNet20", "Subject", "subject"]

SEED = 0
# Batch sizes that are timed where none are asked for: one image for delay, more for throughput.
BATCHES: dict[str, tuple[int, ...]] = {"lenet": (1, 32), "resnet20": (1, 32), "resnet18": (1, 8), "mobilenet_v2": (1,)}
NETS = tuple(BATCHES)


@dataclass(frozen=True, eq=False)
class Subject:
    """A float network to be timed, with real images.

    module : in eval mode
    images : float32 [n, C, H, W], all different; a batch repeats them where it is longer
    calibration : float32 [m, C, H, W], other images
    weights : where the weights come from, in words
    """

    name: str
    module: nn.Module
    images: NDArray[np.float32]
    calibration: NDArray[np.float32]
    weights: str

    def batch(self, size: int) -> NDArray[np.float32]:
        """``size`` images, float32 [size, C, H, W]."""
        return np.ascontiguousarray(self.images[np.arange(size) % len(self.images)])


def subject(name: str, data: DataSet) -> Subject:
    """The net called ``name`` (one of `NETS`) with images of ``data``, enlarged to 224 pixels where it wants them so.

    Raises
    ------
    InputError
        There is no such net.
    """
    if name not in NETS:
        raise InputError(f"There is no net {name!r} to time; choose among {', '.join(NETS)}.")
    small = name in ("lenet", "resnet20")
    images, calibration = (
        data.test(32 if small else 2)[0],
        data.calibration({"lenet": 256, "resnet20": 64}.get(name, 8), SEED),
    )
    if name == "lenet":
        from labkit.models import load

        return Subject(name, load("lenet", data=data.name), images, calibration, f"trained on {data.name}")
    with _seeded():
        if name == "resnet20":
            module: nn.Module = ResNet20()
        else:
            import_torchvision()
            from torchvision import models

            build: Callable[..., nn.Module] = getattr(models, name)
            module = build(weights=None)
            images, calibration = _enlarged(images), _enlarged(calibration)
        _settle(module, calibration)
    return Subject(name, module.eval(), images, calibration, f"random, seed {SEED}")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 2); a 1x1 convolution where the shapes differ."""

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
    """The ResNet of 20 layers for 32x32 images (He et al. 2015, section 4.2): 16, 32 and 64 channels, three blocks each."""

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
        """Images ``x`` float32 [N, 3, 32, 32] to logits [N, classes]."""
        features = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: torch.Tensor = self.fc(self.flatten(self.pool(features)))
        return logits


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw torch's random numbers from `SEED`, and afterwards go on as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _settle(module: nn.Module, images: NDArray[np.float32]) -> None:
    """Give batch norms gains and shifts as training leaves them, and the statistics of ``images``.

    Fresh statistics (mean 0, variance 1) would let the activations of a deep random net shrink to nothing.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    module.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.4)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        module(torch.from_numpy(images))


def _enlarged(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return F.interpolate(torch.from_numpy(images), size=(224, 224), mode="bilinear", align_corners=False).numpy()
