"""`fine_tune`: train a network that rounds as the integer engine does, seeded and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.data.augment import shift_and_mirror
from labkit.errors import InputError, QuantizationError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.frontends.torch_threads import torch_threads
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import check_plan
from labkit.quantization.differentiable import run_nodes
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.kept import Kept, fingerprint
from labkit.quantization.qat.network import TrainableNet
from labkit.quantization.qat.options import FineTuning
from labkit.quantization.qat.parts import check_parts
from labkit.quantization.qat.result import Epoch, FineTuned, finished
from labkit.quantization.qat.schedule import learning_rate_at, phase_at
from labkit.quantization.qat.start import trainable

__all__ = ["fine_tune"]

Tell = Callable[[str, int, int], None]


def fine_tune(
    module: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.integer[Any]],
    plan: BitPlan,
    options: FineTuning | None = None,
    *,
    calibration_images: int = 1024,
    progress_file: str | Path | None = None,
    progress: Tell | None = None,
    after_epoch: Callable[[int, Epoch], None] | None = None,
    stop_after: int | None = None,
) -> FineTuned | None:
    """Train ``module`` with rounded weights and activations, so that it loses less as integers.

    Parameters
    ----------
    module : a trained torch.nn.Module; it is not changed
    images : float32 [N, ...], training images as the module takes them
    labels : integers [N], each a class
    plan : bits and grids; `BitPlan.uniform`, or an allocation's
    options : how; by default labkit's own recipe
    calibration_images : how many of the images, drawn by the seed, ranges and the start look at
    progress_file : written after each epoch; the same call goes on from there, exactly. Removed at the end. None keeps nothing
    progress : called with (step, done, total)
    after_epoch : called with the epoch's number, counted from 1, and what it was like
    stop_after : return None after this many epochs, as if killed there

    Returns
    -------
    the network with its new weights; `FineTuned.to_net` makes the integer network

    Raises
    ------
    InputError
        Images and labels do not fit each other or the module, or the loss is no longer a number.
    QuantizationError
        Plan and module do not fit.
    ModelError
        The module cannot be fine-tuned, or the progress file is damaged or belongs to other data, weights or options.
    """
    options = options or FineTuning()
    images, labels = _checked(images, labels)
    raw = from_torch(module, images.shape[1:])
    check_parts(module, raw)
    graph = simplify(raw)
    check_plan(graph, plan)
    if plan.weight_ranges != "minmax":
        raise QuantizationError(
            f"Fine-tuning chooses the scales of weights itself, and the plan asks for weight_ranges={plan.weight_ranges!r}: "
            f"give a plan with weight_ranges='minmax'."
        )
    _check_classes(graph, images, labels)
    identity = fingerprint(module, graph, images, labels, plan, options, calibration_images) if progress_file else {}
    kept = Kept(progress_file, identity)
    chosen = np.random.default_rng(options.seed).permutation(len(images))[:calibration_images]
    with torch_threads(options.threads), torch.enable_grad():
        calibration = calibrate(graph, images[chosen])
        net = trainable(raw, graph, plan, calibration, images[chosen], options, progress)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = _Run(net, graph, images, labels, options, progress)
        history = kept.restore(net, run.optimiser)
        for epoch in range(len(history), options.epochs):
            if stop_after is not None and epoch >= stop_after:
                return None
            history = (*history, run.epoch(epoch))
            kept.write(net, run.optimiser, history)
            if after_epoch is not None:
                after_epoch(epoch + 1, history[-1])
        result = finished(net, module, calibration, history)
        result.to_net()  # what cannot be converted is found out while the last epoch is still kept
    kept.remove()
    return result


class _Run:
    """A training under way: the network, its optimiser, and the data."""

    def __init__(
        self,
        net: TrainableNet,
        graph: FloatGraph,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        options: FineTuning,
        progress: Tell | None,
    ) -> None:
        self.net, self.options, self.progress = net, options, progress
        self.images, self.labels = images, labels
        self.teacher = _teacher(graph, options.precision) if options.distillation > 0 else None
        # one image that would be left over joins the last batch: alone it has no variance
        self.steps = max(1, math.ceil((len(images) - 1) / options.batch_size))
        self.fill = float(images.min())
        self.optimiser = _optimiser(net, options)

    def epoch(self, epoch: int) -> Epoch:
        """One pass. All chance comes from (seed, epoch), so that a resumed run goes the same way."""
        rng = np.random.default_rng([self.options.seed, epoch])
        order = rng.permutation(len(self.images))
        total, right, started = 0.0, 0, time.monotonic()
        self.net.train()
        every = self.options.epochs * self.steps
        for step in range(self.steps):
            now = epoch * self.steps + step
            end = None if step == self.steps - 1 else (step + 1) * self.options.batch_size
            chosen = order[step * self.options.batch_size : end]
            loss, logits = self._step(chosen, rng, now, every)
            total += loss * len(chosen)
            right += int((logits.argmax(1).numpy() == self.labels[chosen]).sum())
            if self.progress is not None:
                self.progress("Fine-tune", now + 1, every)
        self.net.eval()
        return Epoch(total / len(order), 100 * right / len(order), time.monotonic() - started)

    def _step(
        self, chosen: NDArray[np.int64], rng: np.random.Generator, now: int, every: int
    ) -> tuple[float, torch.Tensor]:
        batch = self.images[chosen]
        if self.options.augment and batch.ndim == 4:
            batch = shift_and_mirror(batch, rng, self.options.mirror, self.fill)
        x = torch.from_numpy(np.ascontiguousarray(batch))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate_at(self.options, now, every) * group["share"]
        self.net.phase = phase_at(self.options, now, every)
        self.optimiser.zero_grad()
        logits = self.net(x)
        loss = self._loss(logits, x, torch.from_numpy(self.labels[chosen]))
        value = loss.item()
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.net.keep_in_bounds()
        if not (math.isfinite(value) and self.net.is_finite()):
            raise InputError(
                f"Fine-tuning diverged in epoch {now // self.steps + 1}: the loss is {value}, or a scale is no number any more. "
                f"Lower the learning rate, which is {self.options.learning_rate}; nothing of this epoch was kept."
            )
        return value, logits.detach()

    def _loss(self, logits: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        share, heat = self.options.distillation, self.options.temperature
        loss = (1 - share) * F.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        target = F.log_softmax(self.teacher(x) / heat, 1)
        gap = F.kl_div(F.log_softmax(logits / heat, 1), target, reduction="batchmean", log_target=True)
        return loss + share * heat**2 * gap


def _teacher(graph: FloatGraph, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The float network: images [N, ...] to logits [N, classes]."""
    name = graph.inputs[0]

    def answer(x: torch.Tensor) -> torch.Tensor:
        reduced = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with torch.no_grad(), reduced:
            return run_nodes(graph, {name: x})[graph.outputs[0]].float()

    return answer


def _optimiser(net: TrainableNet, options: FineTuning) -> torch.optim.Optimizer:
    """Parameters by their weight decay and rate: weights of layers; scales; and all the rest, which has no decay."""
    weights = [layer.weight for layer in net.layers.values() if layer.weight.requires_grad]
    scales, ends = list(net.weight_scales.values()), list(net.activation_scales.values())
    known = {id(one) for one in (*weights, *scales, *ends)}
    rest = [one for one in net.parameters() if id(one) not in known and one.requires_grad]
    decay = options.pact_decay if options.activation_scales == "pact" else 0.0
    adam = options.optimizer == "adam"
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": options.weight_decay, "share": 1.0},
        {"params": scales, "weight_decay": 0.0, "share": options.scale_rate if adam else 1.0},
        {"params": ends, "weight_decay": decay, "share": options.scale_rate if adam else 1.0},
        {"params": rest, "weight_decay": 0.0, "share": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    if adam:
        return torch.optim.AdamW(groups, options.learning_rate, (options.momentum, 0.999))
    return torch.optim.SGD(groups, options.learning_rate, options.momentum, nesterov=options.momentum > 0)


def _checked(images: Any, labels: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    x, found = np.asarray(images), np.asarray(labels)
    if not np.issubdtype(x.dtype, np.number) or x.ndim < 2:
        raise InputError(f"Fine-tuning needs images as numbers [N, ...], got {x.dtype} of shape {x.shape}.")
    if found.ndim != 1 or len(found) != len(x) or len(x) == 0:
        raise InputError(
            f"Fine-tuning needs one label for each image, got images of shape {x.shape} and labels of shape {found.shape}."
        )
    if not np.issubdtype(found.dtype, np.integer):
        raise InputError(f"Labels must be integers, each a class, got {found.dtype}.")
    return np.asarray(x, np.float32), np.asarray(found, np.int64)


def _check_classes(graph: FloatGraph, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Refuse a network whose output is not [N, classes], and labels that are none of the classes."""
    shape = run_float(graph, {graph.inputs[0]: images[:1]}, only_outputs=True)[graph.outputs[0]].shape
    if len(shape) != 2:
        raise InputError(f"Fine-tuning needs logits of shape [N, classes], and the network gives {('N', *shape[1:])}.")
    wrong = np.flatnonzero((labels < 0) | (labels >= shape[1]))
    if len(wrong):
        raise InputError(
            f"Labels must be in 0..{shape[1] - 1}, the network's classes; image {wrong[0]} has the label {labels[wrong[0]]}."
        )
