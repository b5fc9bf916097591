"""Fine-tunings of a study, each kept when it is done, so that a study of hours goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labkit.data import DataSet
from labkit.files import make_folder, user_cache, write_atomically
from labkit.frontends.torch_fx import parameters_digest
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.result import FineTuned
from labkit.quantization.qat.train import fine_tune
from labkit.studies.study import Tell

__all__ = ["Leg", "run_leg", "tune"]

_WAY = 2  # raise it when fine-tuning computes something else than before, so that nothing kept is taken for new


@dataclass(frozen=True)
class Leg:
    """What a fine-tuning gave.

    loss, accuracy : by epoch, of the training images as they went by; accuracy in per cent.
    integer : per cent of the test images that the integer network gets right.
    simulated : the same of the network with fake quantization.
    differing : test images that the two put into different classes.
    seconds : of all epochs.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    integer: float
    simulated: float
    differing: int
    seconds: float


def run_leg(
    name: str,
    module: nn.Module,
    data: DataSet,
    plan: BitPlan,
    options: FineTuning,
    tell: Tell,
    images: int | None = None,
    training: int | None = None,
    keep: bool = True,
) -> Leg:
    """Fine-tune ``module`` and measure it, or read what an earlier run of the same left.

    Parameters
    ----------
    name : of the leg, for progress
    module : trained
    data : training images to train on, test images to measure with
    plan, options : of the fine-tuning
    tell : progress
    images, training : of the test and training images, how many; None for all
    keep : write the result, and the state after each epoch, into labkit's cache
    """
    identity = {
        "way": _WAY,
        "weights": parameters_digest(module),
        "data": data.name,
        "plan": plan.to_json(),
        "options": options.as_dict(),
        "images": [images, training],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    done = user_cache() / "fine-tuning" / f"{digest}.json"
    if keep and done.exists():
        return _read(done)
    if keep:
        make_folder(done.parent)
    x, labels = data.train()
    state = done.with_suffix(".safetensors") if keep else None
    result = tune(name, module, x[:training], labels[:training], plan, options, tell, progress_file=state)
    test, truth = data.test(images)
    integer = result.to_net().run(test)
    simulated = _simulated_logits(result.trained, test)
    leg = Leg(
        tuple(epoch.loss for epoch in result.history),
        tuple(epoch.accuracy for epoch in result.history),
        100 * float((integer.argmax(1) == truth).mean()),
        100 * float((simulated.argmax(1) == truth).mean()),
        int((integer.argmax(1) != simulated.argmax(1)).sum()),
        sum(epoch.seconds for epoch in result.history),
    )
    if keep:
        write_atomically(done, json.dumps({"identity": identity, **asdict(leg)}, indent=1) + "\n")
    return leg


def tune(
    name: str,
    module: nn.Module,
    x: NDArray[np.float32],
    labels: NDArray[np.int64],
    plan: BitPlan,
    options: FineTuning,
    tell: Tell,
    calibration: int = 1024,
    progress_file: Path | None = None,
) -> FineTuned:
    """`fine_tune` with progress under the ``name`` of a leg.

    Parameters
    ----------
    name : of the leg
    module : trained
    x, labels : float32 [N, ...] and int64 [N], to train on
    plan, options : of the fine-tuning
    tell : progress
    calibration : how many of the images the start looks at
    progress_file : kept after each epoch; None keeps nothing
    """
    result = fine_tune(
        module,
        x,
        labels,
        plan,
        options,
        calibration_images=calibration,
        progress_file=progress_file,
        progress=lambda step, at, total: tell(f"{name}: {step.lower()}", at, total),
    )
    assert result is not None
    return result


def _simulated_logits(net: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ``net`` answers to ``x`` float32 [N, ...] in evaluation mode: float32 [N, classes]."""
    net.eval()
    with torch.inference_mode():
        parts = [net(torch.from_numpy(x[start : start + 500])).numpy() for start in range(0, len(x), 500)]
    return np.concatenate(parts)


def _read(path: Path) -> Leg:
    values: dict[str, Any] = json.loads(path.read_text())
    values.pop("identity")
    return Leg(tuple(values.pop("loss")), tuple(values.pop("accuracy")), **values)
