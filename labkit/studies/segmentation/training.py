"""Train SceneNet: ``python -m labkit.studies.segmentation.training FOLDER`` writes its weights and how they were made."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save

from labkit.files import folder_for, write_atomically
from labkit.studies.segmentation.network import SceneNet
from labkit.studies.segmentation.scenes import CLASSES, Scenes, draw_scenes
from labkit.studies.segmentation.scores import confusion, mean_iou

__all__ = ["TEST_SEED", "TRAINING_SEED", "Recipe", "miou_of", "train_scene_net", "write_checkpoint"]

TRAINING_SEED, TEST_SEED = 1, 2  # of the pictures; a calibration set has another one
_BATCH = 100


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, given the version of torch and the kind of processor.

    scenes : training pictures, drawn once.
    epochs, batch_size : passes over them, and pictures a step.
    learning_rate, weight_decay : the highest rate of one cycle (Adam with decoupled weight decay).
    seed : of the first weights, the order of the pictures and their mirroring.
    threads : of torch.
    test_scenes : pictures that the weights are judged by, once, at the end.
    """

    scenes: int = 5000
    epochs: int = 14
    batch_size: int = 50
    learning_rate: float = 0.004
    weight_decay: float = 0.0005
    seed: int = 0
    threads: int = 1
    test_scenes: int = 1000


def train_scene_net(recipe: Recipe, tell: Callable[[int, int, float], None] | None = None) -> SceneNet:
    """A network trained by ``recipe``, in evaluation mode; ``tell`` is called with (epoch, epochs, mean loss)."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    scenes = draw_scenes(recipe.scenes, TRAINING_SEED)
    images, labels = torch.from_numpy(scenes.images), torch.from_numpy(scenes.labels).long()
    module = SceneNet()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = -(-recipe.scenes // recipe.batch_size) * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        losses = []
        for chosen in torch.split(torch.randperm(recipe.scenes), recipe.batch_size):
            x, y = images[chosen], labels[chosen]
            for axis in (1, 2):
                if torch.rand(()) < 0.5:
                    x, y = x.flip(axis + 1), y.flip(axis)
            loss = F.cross_entropy(module(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if tell is not None:
            tell(epoch + 1, recipe.epochs, float(np.mean(losses)))
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return module.eval()


def miou_of(run: Callable[[NDArray[np.float32]], NDArray[np.float32]], scenes: Scenes) -> float:
    """Mean intersection over union, per cent, of ``run`` (float32 images to scores [N, classes, H, W]) on ``scenes``."""
    table = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    images = scenes.images
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        table += confusion(run(images[part]).argmax(1), scenes.labels[part], len(CLASSES))
    return mean_iou(table)


def write_checkpoint(folder: str | Path, recipe: Recipe | None = None) -> dict[str, Any]:
    """Train by ``recipe`` (None: the one of the shipped weights) and write scene-net.safetensors and .json to ``folder``.

    Returns what the .json holds.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    recipe, started, losses = recipe or Recipe(), time.perf_counter(), []

    def tell(epoch: int, epochs: int, loss: float) -> None:
        losses.append(round(loss, 4))
        print(f"epoch {epoch} of {epochs}: mean loss {loss:.4f}", file=sys.stderr)

    module = train_scene_net(recipe, tell)
    seconds = time.perf_counter() - started

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: torch.Tensor = module(torch.from_numpy(images))
        return scores.numpy()

    tensors = module.state_dict().items()
    weights = save({name: tensor.contiguous() for name, tensor in tensors if tensor.is_floating_point()})
    record = {
        "command": "python -m labkit.studies.segmentation.training FOLDER",
        "recipe": asdict(recipe),
        "test_miou": round(miou_of(run, draw_scenes(recipe.test_scenes, TEST_SEED)), 2),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "mean_training_loss": losses,
        "seconds": round(seconds),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }
    with folder_for(Path(folder)) as path:
        write_atomically(path / "scene-net.safetensors", weights)
        write_atomically(path / "scene-net.json", json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    print(write_checkpoint(sys.argv[1])["test_miou"])
