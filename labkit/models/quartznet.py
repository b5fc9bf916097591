"""A small QuartzNet: separable convolutions along time that give each frame a class (Kriman et al. 2020)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labkit.errors import ModelError
from labkit.models.weights import fill, read_weights

__all__ = ["CHECKPOINT", "QuartzNet", "Transcriber", "frames_out", "load_quartznet", "quartznet_recipe"]

CHECKPOINT = Path(__file__).with_name("checkpoints") / "quartznet-fsdd.safetensors"
_STEM, _BLOCKS = 11, (13, 15, 17, 19)  # lengths of the depthwise convolutions
_STRIDE = 2


class _Separable(nn.Module):
    """Depthwise along time, then 1x1, batch norm, the input added where its shape stays, ReLU."""

    def __init__(self, inputs: int, outputs: int, length: int, stride: int, height_one: bool) -> None:
        super().__init__()
        self.depthwise = _conv(inputs, inputs, length, stride, inputs, height_one)
        self.pointwise = _conv(inputs, outputs, 1, 1, 1, height_one)
        self.norm = _norm(outputs, height_one)
        self.relu = nn.ReLU()
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.pointwise(self.depthwise(x)))
        z: torch.Tensor = self.relu(y + x if self.has_shortcut else y)
        return z


class QuartzNet(nn.Module):
    """Five separable blocks and two 1x1 convolutions: 33,987 parameters, a fortieth of a second for each frame that comes out.

    As in the paper, a strided separable convolution (C1) stands before blocks with shortcuts whose kernels grow, and 1x1
    convolutions (C3, C4) after them. Blocks have one separable convolution, not five; a shortcut has no convolution of its own.

    Parameters
    ----------
    bands
        Of the log-mel features.
    classes
        Words and the blank of CTC.
    channels
        Of the blocks; the last hidden layer has twice as many.
    height_one
        Made of two-dimensional convolutions with kernels of height 1. The numbers are the same; torch trains it several times
        as fast, in the order channels last.
    """

    def __init__(self, bands: int = 40, classes: int = 11, channels: int = 64, height_one: bool = False) -> None:
        super().__init__()
        self.stem = _Separable(bands, channels, _STEM, _STRIDE, height_one)
        self.blocks = nn.Sequential(*(_Separable(channels, channels, length, 1, height_one) for length in _BLOCKS))
        self.widen = _conv(channels, 2 * channels, 1, 1, 1, height_one)
        self.norm = _norm(2 * channels, height_one)
        self.relu = nn.ReLU()
        self.head = _conv(2 * channels, classes, 1, 1, 1, height_one, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, float32 [N, classes, (T + 1) // 2], of features float32 [N, bands, T]; with ``height_one`` [N, ..., 1, T]."""
        scores: torch.Tensor = self.head(self.relu(self.norm(self.widen(self.blocks(self.stem(x))))))
        return scores


class Transcriber(nn.Module):
    """``net`` and the argmax over its classes: features float32 [N, bands, T] to int64 [N, (T + 1) // 2], as CTC is read from.

    Of equal scores the first one counts. Quantized, the argmax is taken of integers too, and nothing but the features is real.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The class with the largest score of each frame, int64 [N, (T + 1) // 2], of ``x`` float32 [N, bands, T]."""
        best: torch.Tensor = torch.argmax(self.net(x), dim=1)
        return best


def frames_out(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many frames come out of `QuartzNet`, int64 of any shape, for ``frames`` that go in."""
    return np.asarray((frames + _STRIDE - 1) // _STRIDE)


def load_quartznet(weights: str | Path | None = None) -> QuartzNet:
    """The trained net, in evaluation mode; ``weights`` is a .safetensors file in place of the shipped one.

    Raises
    ------
    ModelError
        The weights cannot be read, or do not fit.
    """
    path = CHECKPOINT if weights is None else Path(weights)
    tensors = read_weights(path, sha256=quartznet_recipe()["sha256"] if weights is None else None)
    with torch.random.fork_rng(devices=[]):
        module = QuartzNet()
    # Safetensors hold no counters of batches, which evaluation does not use.
    counters = {name: tensor for name, tensor in module.state_dict().items() if name.endswith("num_batches_tracked")}
    fill(module, counters | tensors, f"{path}, weights for QuartzNet")
    return module.eval()


def quartznet_recipe() -> dict[str, Any]:
    """How the shipped weights were made: ``command``, ``recipe``, ``data_sha256``, ``word_error_rate`` in per cent, ...

    Raises
    ------
    ModelError
        The file is missing or damaged.
    """
    path = CHECKPOINT.with_suffix(".json")
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The recipe of QuartzNet cannot be read from {path}: {error}. Install labkit again: the file belongs to the package."
        ) from error
    return content


def _conv(
    inputs: int, outputs: int, length: int, stride: int, groups: int, height_one: bool, bias: bool = False
) -> nn.Module:
    if height_one:
        size, by, around = (1, length), (1, stride), (0, length // 2)
        return nn.Conv2d(inputs, outputs, size, by, around, groups=groups, bias=bias)
    return nn.Conv1d(inputs, outputs, length, stride, length // 2, groups=groups, bias=bias)


def _norm(channels: int, height_one: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if height_one else nn.BatchNorm1d(channels)
