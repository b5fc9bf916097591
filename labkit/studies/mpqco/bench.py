"""What these studies share: networks on labelled training images, with the weights that each layer would have at 1 to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import weight_bytes
from labkit.data import DataSet
from labkit.data.dataset import normalise
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.sensitivity.candidates import BITS, Candidates, nearest_candidates
from labkit.sensitivity.objective import Objective, make_objective
from labkit.studies.study import Settings

__all__ = ["CANDIDATES", "Bench", "labelled_images", "nets", "open_bench"]

_NETS = ("lenet", "resnet20", "mobilenetv2-small")

CANDIDATES = (
    "Candidate weights are rounded to nearest on symmetric grids, one scale a channel, with the least squared error; 1 bit is "
    "the sign times the mean magnitude. Batch norms are folded first; activations stay float, as the loss perturbation is "
    "of weights. The supplement does not say how weights are quantized."
)


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained network and what its layers' weights would be.

    net : "lenet", "resnet20", ...
    graph : the float network, batch norms folded.
    objective : its loss on some training images with their labels.
    candidates : weights of each layer at each of the bits.
    """

    net: str
    graph: FloatGraph
    objective: Objective
    candidates: Candidates

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Weights of each layer, int64 [L]."""
        return self.objective.sizes

    @property
    def cost(self) -> CostTable:
        """Bytes by layer and bits."""
        return weight_bytes(self.graph, self.candidates.bits)

    @property
    def squares(self) -> NDArray[np.float64]:
        """The squared change ``|Q_b(w) - w|^2``, float64 [L, B]."""
        changes = (self.candidates.changes(self.graph, name) for name in self.candidates.layers)
        return np.stack([np.square(change).reshape(len(change), -1).sum(1) for change in changes])

    def weights(self, bits: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """The weights, float32 [O, ...] by layer, with the layers at ``bits`` in running order."""
        return {
            name: self.candidates.weights[name][int(b)] for name, b in zip(self.candidates.layers, bits, strict=True)
        }


def nets(settings: Settings) -> tuple[str, ...]:
    """The networks to look at: three, one of them with depthwise convolutions; of the smoke form of ``settings`` LeNet."""
    return _NETS[:1] if settings.smoke else _NETS


def labelled_images(data: DataSet, count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Training images of ``data`` with labels, drawn with ``seed``, none twice: float32 [count, 3, 32, 32] and int64 [count].

    ``count`` is cut down to what there is.
    """
    count = min(count, len(data.train_images))
    chosen = np.random.default_rng(seed).choice(len(data.train_images), size=count, replace=False)
    return normalise(data.train_images[chosen]), data.train_labels[chosen]


def open_bench(net: str, data: DataSet, count: int, seed: int = 0, ranges: str = "mse") -> Bench:
    """The shipped network ``net`` for ``data``, 1 to 8 bits.

    Parameters
    ----------
    net : a shipped name
    data : CIFAR-10 or the digits
    count : training images
    seed : of their choice
    ranges : of the candidate weights, as in `nearest_candidates`

    Raises
    ------
    LabkitError
        There is no such network for these data.
    """
    images, labels = labelled_images(data, count, seed)
    graph = simplify(from_torch(load_model(net, data.name), images.shape[1:]))
    return Bench(net, graph, make_objective(graph, images, labels), nearest_candidates(graph, BITS, ranges))
