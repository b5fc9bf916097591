"""`measure`: from a module and some images to a `NetworkCard`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph import float_ops, storage
from labkit.graph.costs import costs, peak_activation_bytes
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.parity.compare import verify
from labkit.quantization.batches import image_batches, in_threads
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.reporting.cards.noise import sqnr_by_tensor
from labkit.reporting.cards.plans import PLANS, PlanRule
from labkit.reporting.cards.results import Certificate, LayerFacts, NetworkCard, PlanResult
from labkit.reporting.paired import change_error

__all__ = ["CardData", "layer_facts", "measure"]

_BATCH = 100  # small images at a time, fewer large ones: the tensors of a batch stay in the cache

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class CardData:
    """The images that a card is measured on.

    source : which they are, in words.
    calibration : array [M, ...] or an iterable of arrays, images that choose the ranges; best none of the others.
    calibration_images : how many these are.
    images : float32 [N, ...], in the module's own layout: on them the error of each tensor is measured.
    certified_images : how many of ``images``, from the first one, are compared with PyTorch; all of them where there are fewer.
    labelled : pairs of images float32 [n, ...] and their classes, integers [n], for the accuracy; gone through once. None: there
        are no labels.
    labelled_images : how many these are.
    no_accuracy : why there is no accuracy, in words, where there are no labels.

    Raises
    ------
    InputError
        There are no images.
    """

    source: str
    calibration: Any
    calibration_images: int
    images: NDArray[np.float32]
    certified_images: int = 16
    labelled: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]] | None = None
    labelled_images: int = 0
    no_accuracy: str = "the images have no labels"

    def __post_init__(self) -> None:
        if len(self.images) == 0 or self.certified_images < 1:
            raise InputError(
                f"{self.source}: a card needs at least one image to measure on and one to certify, got {len(self.images)} and "
                f"{self.certified_images}."
            )


def measure(
    name: str,
    module: nn.Module,
    data: CardData,
    plans: Sequence[PlanRule] = PLANS,
    *,
    weights: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> NetworkCard:
    """Quantize ``module`` by each of ``plans`` and measure what comes out.

    Images are taken a few at a time, so that memory does not grow with their number beyond ``data.images``.

    Parameters
    ----------
    name : of the card
    module : a network of the supported operations with one input and one output; it is not changed
    data : images, and labels where there are some
    plans : at least one, with names of their own
    weights : where the module's weights come from, in words
    command : kept in the card, so that the reader can repeat it
    progress : called with (step, done, total)

    Raises
    ------
    InputError
        The images do not fit the module, there is no plan, or labels do not fit its output.
    ModelError, QuantizationError
        The module cannot be quantized.
    """
    if not plans or len({plan.name for plan in plans}) < len(plans):
        raise InputError(
            f"A card compares plans with names of their own, got {[plan.name for plan in plans]}. Name at least one."
        )
    tell = progress or (lambda step, done, total: None)
    graph = simplify(from_torch(module, data.images.shape[1:]))
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InputError(f"{name}: a card describes a network with one input and one output, got {graph.outputs}.")
    calibration = calibrate(
        graph, _told(data.calibration, lambda done: tell("Calibrate", done, data.calibration_images))
    )
    nets = _quantized(graph, module, calibration, plans)
    integer = nets[plans[0].name].graph
    rights = _rights(name, graph, nets, data, tell)
    real = rights.get("")

    count = len(data.images)
    errors = sqnr_by_tensor(graph, nets, data.images, lambda done: tell("Error of each tensor", done, count))

    proven = data.images[: data.certified_images]
    results: list[PlanResult] = []
    versions: Mapping[str, str] = {}
    for plan in plans:
        net = nets[plan.name]
        step = f"Verify {plan.name} against PyTorch"
        report = verify(net, module, proven, progress=lambda done, step=step: tell(step, done, len(proven)))  # type: ignore[misc]
        first = "" if report.first is None else str(report.first)
        versions = report.versions
        found = costs(net.graph)
        accuracy, change, error = _accuracy(rights.get(plan.name), real)
        results.append(
            PlanResult(
                name=plan.name,
                rule=plan.words,
                weight_bits=plan.make(graph).weights,
                weight_bytes=sum(found.weight_bytes.values()),
                size_bytes=found.size_bytes,
                file_bytes=len(storage.dumps(net.graph)),
                bops=found.total_bops,
                accuracy=accuracy,
                change=change,
                change_error=error,
                sqnr_db={tensor: round(ratio, 3) for tensor, ratio in errors[plan.name].items()},  # the rest is noise
                certificate=Certificate(
                    report.images, len(report.comparisons), report.elements, report.differing, first
                ),
            )
        )
    return NetworkCard(
        name=name,
        weights=weights,
        data=data.source,
        module_parameters=sum(parameter.numel() for parameter in module.parameters()),
        calibration_images=calibration.images,
        sqnr_images=count,
        accuracy_images=0 if real is None else len(real),
        accuracy=_accuracy(real, None)[0],
        no_accuracy="" if real is not None else data.no_accuracy,
        activation_bytes=peak_activation_bytes(integer),
        layers=layer_facts(graph, integer),
        plans=tuple(results),
        versions=versions,
        command=command,
    )


def layer_facts(graph: FloatGraph, integer: IntGraph) -> tuple[LayerFacts, ...]:
    """The nodes of the simplified ``graph`` in running order, with shapes and MACs from any ``integer`` net made from it."""
    macs = costs(integer).macs
    rows = []
    for node in graph:
        op = node.op
        window: dict[str, Any] = {}
        if isinstance(op, float_ops.Conv2d):
            window = {"kernel": op.weight.shape[2:], "stride": op.stride, "dilation": op.dilation, "groups": op.groups}
        elif isinstance(op, float_ops.MaxPool2d):
            window = {"kernel": op.kernel, "stride": op.stride, "dilation": op.dilation}
        elif isinstance(op, float_ops.AveragePool2d):
            window = {"kernel": op.kernel, "stride": op.stride}
        weighted = isinstance(op, float_ops.Conv2d | float_ops.Linear)
        rows.append(
            LayerFacts(
                name=node.name,
                kind=type(op).__name__,
                activation=node.activation.value,
                inputs=tuple(integer[source].output.shape for source in node.inputs),
                output=integer[node.name].output.shape,
                parameters=op.weight.size + (0 if op.bias is None else op.bias.size) if weighted else 0,  # type: ignore[union-attr]
                macs=macs.get(node.name, 0),
                **window,
            )
        )
    return tuple(rows)


def _told(images: Any, tell: Callable[[int], None]) -> Iterator[NDArray[np.float32]]:
    done = 0
    for batch in image_batches(images):
        yield batch
        done += len(batch)
        tell(done)


def _quantized(
    graph: FloatGraph, module: nn.Module, calibration: Calibration, plans: Sequence[PlanRule]
) -> dict[str, IntegerNet]:
    notes = {"rounding": "nearest", "source": type(module).__name__, "parameters_sha256": parameters_digest(module)}
    return {plan.name: IntegerNet(convert(graph, calibration, plan.make(graph), notes)) for plan in plans}


def _rights(
    name: str, graph: FloatGraph, nets: Mapping[str, IntegerNet], data: CardData, tell: Progress
) -> dict[str, NDArray[np.bool_]]:
    """Whether each network is right about each image, bool [N], by plan; the float network's name is "". Empty without labels."""
    if data.labelled is None:
        return {}
    shape = nets[next(iter(nets))].graph[graph.outputs[0]].output.shape
    if len(shape) != 1:
        raise InputError(
            f"{name}: for an accuracy the network must put out one number for each class, (N, classes), and it puts out "
            f"{('N', *shape)}. Leave the labels out."
        )

    def judge(item: tuple[NDArray[np.float32], NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
        batch, labels = item
        real = run_float(graph, {graph.inputs[0]: batch}, only_outputs=True)[graph.outputs[0]]
        answers = {"": real} | {plan: net.run(batch) for plan, net in nets.items()}
        return {plan: logits.argmax(1) == labels for plan, logits in answers.items()}

    found: dict[str, list[NDArray[np.bool_]]] = {"": [], **{plan: [] for plan in nets}}
    done = 0
    for rights in in_threads(judge, _labelled_batches(name, data.labelled, shape[0])):
        for plan, right in rights.items():
            found[plan].append(right)
        done += len(rights[""])
        tell("Accuracy", done, data.labelled_images)
    if done == 0:
        raise InputError(f"{name}: there are no labelled images. Hand in some, or None in their place.")
    return {plan: np.concatenate(parts) for plan, parts in found.items()}


def _labelled_batches(
    name: str, labelled: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]], classes: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    for images, labels in labelled:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise InputError(
                f"{name}: labels must be integers, one for each of {len(images)} images, got {labels.dtype} "
                f"{list(labels.shape)}. Hand in the classes in the order of the images."
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(
                f"{name}: the network tells {classes} classes apart, got labels in {labels.min()}..{labels.max()}. Hand in "
                f"labels of its classes, from 0 on."
            )
        start = 0
        for batch in image_batches(images, _BATCH):
            yield batch, labels[start : start + len(batch)]
            start += len(batch)


def _accuracy(
    right: NDArray[np.bool_] | None, real: NDArray[np.bool_] | None
) -> tuple[float | None, float | None, float | None]:
    """Per cent right; where ``real`` is given also the change against it and that change's standard error."""
    if right is None:
        return None, None, None
    percent = 100 * int(right.sum()) / len(right)
    if real is None:
        return percent, None, None
    change = 100 * (int(right.sum()) - int(real.sum())) / len(right)
    return percent, change, change_error(right, real)
