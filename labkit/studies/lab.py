"""A network on the bench: data, float graph and ranges of a study, and what a quantized form of it gets right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.data import DataSet
from labkit.data import load as load_data
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.studies.study import Settings

__all__ = ["Lab", "drop", "logits", "open_lab"]

_BATCH = 500


@dataclass(frozen=True, eq=False)
class Lab:
    """A trained network and what a study measures it with.

    net : "lenet", "resnet20", ...
    data : CIFAR-10 or the digits.
    graph : the float network, batch norms folded.
    images : float32 [M, 3, 32, 32], calibration images (training images, drawn with ``seed``), without labels.
    calibration : min-max ranges of ``images``.
    x, labels : float32 [N, 3, 32, 32] and int64 [N], test images.
    accuracy : of the float network on them, per cent.
    seed : of what was drawn.
    """

    net: str
    data: DataSet
    graph: FloatGraph
    images: NDArray[np.float32]
    calibration: Calibration
    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    accuracy: float
    seed: int

    def plan(self, weights: int = 8, activations: int = 8, per_channel: bool = True) -> BitPlan:
        """The same bits for all ``weights`` and ``activations`` (8 at input and output); ``per_channel`` or one scale a layer."""
        return BitPlan.uniform(self.graph, weights, activations, per_channel=per_channel)

    def round(
        self, plan: BitPlan, method: str, options: RoundingOptions | None = None, seed: int | None = None
    ) -> RoundedWeights:
        """The weights of ``plan`` rounded by ``method`` with ``options`` on the calibration images; ``seed`` None: the lab's."""
        return round_weights(
            self.graph, self.calibration, plan, self.images, method, options, self.seed if seed is None else seed
        )

    def integer_accuracy(
        self,
        plan: BitPlan,
        rounded: RoundedWeights | Mapping[str, RoundedLayer] | None = None,
        calibration: Calibration | None = None,
        graph: FloatGraph | None = None,
    ) -> float:
        """Per cent of the test images that the integer engine gets right.

        Parameters
        ----------
        plan : bits and grids
        rounded : weights rounded elsewhere; layers that they leave out are rounded to nearest
        calibration : in place of the lab's own, or of that which comes with rounded weights
        graph : in place of the lab's own
        """
        layers: Mapping[str, RoundedLayer] | None
        if isinstance(rounded, RoundedWeights):
            calibration, layers = calibration or rounded.calibration, rounded.layers
        else:
            layers = rounded
        net = convert(graph or self.graph, calibration or self.calibration, plan, {}, layers)
        return self.score(IntegerNet(net).run(self.x))

    def float_accuracy(self, graph: FloatGraph) -> float:
        """Per cent right of the float network ``graph``: rounded weights with float activations, for example."""
        return self.score(logits(graph, self.x))

    def score(self, answers: NDArray[np.float32]) -> float:
        """Per cent of the test images for which ``answers``, float32 [N, classes], are largest at the label."""
        return 100 * float((answers.argmax(1) == self.labels).mean())


def open_lab(net: str, settings: Settings, seed: int = 0, data: DataSet | None = None) -> Lab:
    """The shipped network ``net`` on the data of ``settings``, with calibration images drawn with ``seed``.

    ``data`` is what ``settings`` name, where a study has loaded it already (images float32 [N, 3, 32, 32]).

    Raises
    ------
    LabkitError
        The data cannot be had, or there is no such network for them.
    """
    data = data or load_data(settings.data, data_dir=settings.data_dir)
    x, labels = data.test(settings.images)
    graph = simplify(from_torch(load_model(net, data.name), x.shape[1:]))
    images = data.calibration(settings.calibration, seed)
    right = 100 * float((logits(graph, x).argmax(1) == labels).mean())
    return Lab(net, data, graph, images, calibrate(graph, images), x, labels, right, seed)


def logits(graph: FloatGraph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output of the float network ``graph`` on ``x`` float32 [N, ...], in float32."""
    name = graph.inputs[0]
    parts = (x[start : start + _BATCH] for start in range(0, len(x), _BATCH))
    return np.concatenate([run_float(graph, {name: part}, only_outputs=True)[graph.outputs[0]] for part in parts])


def drop(lab: Lab, accuracy: float) -> str:
    """``accuracy``, in per cent, and how far it is from the float network of ``lab``, in points."""
    return f"{accuracy:.2f} ({accuracy - lab.accuracy:+.2f})"
