"""Train a reference net: seeded, and resumable so exactly that a run that was killed ends in the same weights."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from labkit.data import DataSet, normalise
from labkit.data.augment import shift_and_mirror
from labkit.errors import InputError, ModelError
from labkit.files import folder_for, write_atomically
from labkit.frontends.torch_threads import torch_threads
from labkit.models.finished import finished_record
from labkit.models.recipes import WARM_UP, TrainingRecipe
from labkit.models.weights import fill, read_weights
from labkit.models.zoo import build

__all__ = ["TrainingResult", "accuracy", "learning_rate_at", "train"]

_STATE = "labkit_training"  # the key of the progress file's metadata


@dataclass(frozen=True)
class TrainingResult:
    """What training gave: the two files, and what is in the recipe file.

    Attributes
    ----------
    module
        The trained net, in evaluation mode, on the CPU.
    weights_file, recipe_file
        ``<network>-<data>.safetensors`` and ``<network>-<data>.json``.
    test_accuracy
        Per cent of the test images, after the last epoch.
    record
        The content of the recipe file.
    already_there
        Whether an earlier training had written the two files, so that nothing was trained.
    """

    module: nn.Module
    weights_file: Path
    recipe_file: Path
    test_accuracy: float
    record: dict[str, Any]
    already_there: bool = False


def train(
    recipe: TrainingRecipe,
    data: DataSet,
    out: str | Path,
    *,
    resume: bool = True,
    force: bool = False,
    console: Console | None = None,
    stop_after: int | None = None,
) -> TrainingResult | None:
    """Train the net that ``recipe`` names on ``data`` and write its weights and recipe into the folder ``out``.

    After each epoch all that the rest depends on goes into ``<network>-<data>.progress.safetensors``; the same call
    goes on from there, and the file is removed at the end. The test images are looked at once, after the last epoch.
    A finished training of the same recipe and data is handed back as it is, and one of another is never overwritten.

    Parameters
    ----------
    recipe
        See `TrainingRecipe`.
    data
        The data set that ``recipe.data`` names: uint8 images [N, 3, 32, 32], int64 labels [N].
    out
        A folder; it is made where it is missing.
    resume
        Whether to go on from a progress file of the same recipe. False starts anew.
    force
        Train in any case, and replace weights and recipe that are in ``out`` already.
    console
        Where progress is shown; None shows nothing.
    stop_after
        Return None after this many epochs, as if killed there. For tests and for time limits.

    Raises
    ------
    InputError
        ``data`` is not what the recipe names, or the loss is no longer a number.
    ModelError
        The progress file is damaged, or of another recipe or data.
    OutputError
        ``out`` cannot be written to, or holds the result of another recipe or data, and ``force`` is False.
    """
    if data.name != recipe.data:
        raise InputError(f"The recipe is for the data set {recipe.data}, got {data.name}. Hand in that one.")
    with folder_for(out) as folder:
        stem = folder / f"{recipe.network}-{recipe.data}"
        if not force and (found := _finished(stem, recipe, data, resume)) is not None:
            return found
        return _train(stem, recipe, data, resume, console, stop_after)


def _train(
    stem: Path, recipe: TrainingRecipe, data: DataSet, resume: bool, console: Console | None, stop_after: int | None
) -> TrainingResult | None:
    progress_file = _progress_file(stem)
    device = _device(recipe)
    # The data are part of what a resumed run must agree on.
    state: dict[str, Any] = {
        "recipe": recipe.as_dict(),
        "data_sha256": _fingerprint(data),
        "seconds": 0.0,
        "epochs": [],
    }
    with _settled_torch(recipe.threads):
        torch.manual_seed(recipe.seed)
        module = build(recipe.network).to(device).to(memory_format=_memory_format(recipe))  # type: ignore[call-overload]
        optimiser = torch.optim.SGD(
            module.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
        if resume and progress_file.exists():
            state = _restore(progress_file, state, module, optimiser)
        if console is not None:
            done = len(state["epochs"])
            console.print(f"{recipe.command}" + (f"\n(going on after epoch {done})" if done else ""), soft_wrap=True)
        with _progress_bar(console) as bar:
            steps = math.ceil(len(data.train_images) / recipe.batch_size)
            task = bar.add_task("", total=recipe.epochs * steps, completed=len(state["epochs"]) * steps)
            for epoch in range(len(state["epochs"]), recipe.epochs):
                if stop_after is not None and epoch >= stop_after:
                    return None
                started = time.monotonic()
                loss = _epoch(recipe, data, module, optimiser, epoch, lambda: bar.advance(task))
                state["seconds"] += time.monotonic() - started
                state["epochs"].append({"mean_loss": loss})
                bar.update(task, description=f"epoch {epoch + 1}/{recipe.epochs}, loss {loss:.3f}")
                if console is not None:
                    console.print(f"epoch {epoch + 1}/{recipe.epochs}: mean training loss {loss:.4f}")
                _keep(progress_file, state, module, optimiser)
        trained = build(recipe.network)
        trained.load_state_dict(module.state_dict())
        test_accuracy = accuracy(trained.eval(), data.test_images, data.test_labels)
    result = _write(stem, recipe, state, trained, test_accuracy)
    progress_file.unlink(missing_ok=True)
    return result


def accuracy(module: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int = 500) -> float:
    """Per cent of images that ``module`` gives the highest logit at their label; the first of equal logits counts.

    Parameters
    ----------
    module
        Takes float32 [n, 3, 32, 32] in [-1, 1], returns float32 logits [n, classes].
    images, labels
        uint8 [N, 3, 32, 32] and int64 [N], N at least 1.
    batch_size
        Images at a time.
    """
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            logits = module(torch.from_numpy(normalise(images[start : start + batch_size])))
            right += int((logits.argmax(1).numpy() == labels[start : start + batch_size]).sum())
    return 100.0 * right / len(images)


def learning_rate_at(recipe: TrainingRecipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate that ``recipe`` gives step ``step``, counted from 0 over all epochs of ``steps_per_epoch``."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "step":
        late = step // steps_per_epoch >= round(0.7 * recipe.epochs)
        return recipe.final_learning_rate if late else recipe.learning_rate
    steps, done = float(recipe.epochs * steps_per_epoch), float(step)
    if recipe.schedule == "one-cycle":
        rise = WARM_UP * steps
        if done < rise:
            return recipe.learning_rate * (0.1 + 0.9 * done / rise)
        steps, done = steps - rise, done - rise
    share = (1 + math.cos(math.pi * done / steps)) / 2
    return recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * share


def _epoch(
    recipe: TrainingRecipe, data: DataSet, module: nn.Module, optimiser: torch.optim.SGD, epoch: int, tick: Any
) -> float:
    """One pass; returns the mean loss. All chance comes from (seed, epoch), so that epochs need no common generator."""
    rng = np.random.default_rng([recipe.seed, epoch])
    order = rng.permutation(len(data.train_images))
    device = next(module.parameters()).device
    steps = math.ceil(len(order) / recipe.batch_size)
    module.train()
    if recipe.precision == "bfloat16":
        _spare_slow_layers(module)
    total = 0.0
    for step in range(steps):
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        images = data.train_images[chosen]
        if recipe.augment:
            images = shift_and_mirror(images, rng, mirror=data.name == "cifar10")  # a mirrored digit is none
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(recipe, epoch * steps + step, steps)
        optimiser.zero_grad()
        inputs = torch.from_numpy(normalise(images)).to(device, memory_format=_memory_format(recipe))
        labels = torch.from_numpy(data.train_labels[chosen]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = module(inputs)
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.item() * len(chosen)
        tick()
    if not math.isfinite(total):
        raise InputError(
            f"Training {recipe.network} on {recipe.data} diverged in epoch {epoch + 1}: the loss is {total}. "
            f"Lower the learning rate, which is {recipe.learning_rate}; nothing of this epoch was kept."
        )
    return total / len(order)


def _memory_format(recipe: TrainingRecipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


def _device(recipe: TrainingRecipe) -> torch.device:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("The recipe asks for the device cuda, and torch finds none here. Train with --device cpu.")
    return torch.device(recipe.device)


def _spare_slow_layers(module: nn.Module) -> None:
    """Let depthwise convolutions with a stride work in float32.

    The CPU kernel of torch for their bfloat16 gradient takes some thirty times as long as that of their neighbours:
    two thirds of the time of a MobileNetV2.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1):
            layer.forward = partial(_float32_convolution, layer)  # type: ignore[method-assign]


def _float32_convolution(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return nn.Conv2d.forward(layer, x.float())


@contextmanager
def _settled_torch(threads: int) -> Iterator[None]:
    """One number of threads, and a generator of our own; the caller's are put back afterwards."""
    with torch_threads(threads), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def _progress_bar(console: Console | None) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=console is None) as bar:
        yield bar


def _keep(path: Path, state: dict[str, Any], module: nn.Module, optimiser: torch.optim.SGD) -> None:
    """Write weights, momenta and where we stand into one file, so that they cannot disagree."""
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        buffer = optimiser.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum of {name}"] = buffer.contiguous()
    write_atomically(path, save(tensors, {_STATE: json.dumps(state)}))


def _restore(path: Path, wanted: dict[str, Any], module: nn.Module, optimiser: torch.optim.SGD) -> dict[str, Any]:
    """Put what `_keep` wrote back into place and return where it stood."""
    again = "Start anew (--no-resume), or train into another folder."
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        known = TrainingRecipe().as_dict() | state["recipe"]  # written before a field was there: as it was then
        differing = [
            f"{name} was {known.get(name)}, is {value}"
            for name, value in wanted["recipe"].items()
            if known.get(name) != value
        ]
        if state["data_sha256"] != wanted["data_sha256"]:
            differing.append("the training images differ")
        if differing:
            raise ModelError(f"{path} belongs to a training with another recipe: {'; '.join(differing)}. {again}")
        module.load_state_dict({name: tensors[name] for name in module.state_dict()})
        for name, parameter in module.named_parameters():
            if f"momentum of {name}" in tensors:
                buffer = torch.empty_like(parameter, requires_grad=False)  # in the same memory format
                optimiser.state[parameter]["momentum_buffer"] = buffer.copy_(tensors[f"momentum of {name}"])
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}. {again}") from error
    return state


def _finished(stem: Path, recipe: TrainingRecipe, data: DataSet, resume: bool) -> TrainingResult | None:
    """What an earlier training of the same recipe and data left; None where there is nothing to lose."""
    weights_file, recipe_file = _files(stem)
    if resume and _progress_file(stem).exists() and not recipe_file.exists():
        return None  # killed after the weights were written and before the recipe was: the progress file decides
    record = finished_record(weights_file, recipe_file, recipe, _fingerprint(data))
    if record is None:
        return None
    with _settled_torch(recipe.threads):
        module = build(recipe.network)
    fill(module, read_weights(weights_file), f"{weights_file}, weights for {recipe.network}")
    return TrainingResult(module.eval(), weights_file, recipe_file, record["test_accuracy"], record, already_there=True)


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _progress_file(stem: Path) -> Path:
    return stem.with_suffix(".progress.safetensors")


def _write(
    stem: Path, recipe: TrainingRecipe, state: dict[str, Any], module: nn.Module, test_accuracy: float
) -> TrainingResult:
    weights_file, recipe_file = _files(stem)
    content = save(dict(module.state_dict()), {"network": recipe.network})
    record = {
        "command": recipe.command,
        "recipe": recipe.as_dict(),
        "training_images": {"sha256": state["data_sha256"]},
        "mean_training_loss": [round(epoch["mean_loss"], 6) for epoch in state["epochs"]],
        "seconds": round(state["seconds"], 1),
        "test_accuracy": test_accuracy,
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {"labkit": _version("labkit"), "torch": torch.__version__, "python": platform.python_version()},
    }
    write_atomically(weights_file, content)
    write_atomically(recipe_file, json.dumps(record, indent=2) + "\n")
    return TrainingResult(module, weights_file, recipe_file, test_accuracy, record)


def _fingerprint(data: DataSet) -> str:
    return hashlib.sha256(data.train_images.tobytes() + data.train_labels.tobytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "from source"
