"""The networks that are timed: trained ones for small images, and large ones with random weights, for speed alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.data.dataset import DataSet
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import InputError
from labkit.models import load
from labkit.models.settled import settled

__all__ = ["BATCHES", "NETS", "Subject", "subject"]

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
    trained = name in ("lenet", "resnet20")
    images, calibration = (
        data.test(32 if trained else 2)[0],
        data.calibration({"lenet": 256, "resnet20": 64}.get(name, 8), SEED),
    )
    if trained:
        return Subject(name, load(name, data=data.name), images, calibration, f"trained on {data.name}")
    images, calibration = _enlarged(images), _enlarged(calibration)
    import_torchvision()
    from torchvision import models

    build: Callable[..., nn.Module] = getattr(models, name)
    module = settled(lambda: build(weights=None), calibration, SEED)
    return Subject(name, module, images, calibration, f"random, seed {SEED}")


def _enlarged(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return F.interpolate(torch.from_numpy(images), size=(224, 224), mode="bilinear", align_corners=False).numpy()
