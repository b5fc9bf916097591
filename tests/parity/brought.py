"""Networks that people bring: torchvision's own, with seeded random weights and settled batch norms, and soft pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.data.torchvision_shim import import_torchvision
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models.settled import settled
from labkit.quantization.plan import BitPlan, tensor_names

__all__ = ["NETS", "PLANS", "Brought", "build", "images", "make"]


@dataclass(frozen=True)
class Brought:
    """A network of torchvision: ``side`` of its pictures, a ``small_side`` that it takes as well, arguments of its builder."""

    name: str
    side: int
    small_side: int
    options: dict[str, Any] = field(default_factory=dict)


NETS = {
    net.name: net
    for net in (
        Brought("resnet18", 224, 64),
        Brought("resnet50", 224, 64),
        Brought("mobilenet_v2", 224, 64),
        # The weights that torchvision offers for it come with transform_input; init_weights takes half a minute.
        Brought("inception_v3", 299, 75, {"init_weights": False, "transform_input": True}),
        Brought("squeezenet1_1", 224, 64),
    )
}


def images(number: int, side: int, seed: int) -> NDArray[np.float32]:
    """Seeded pictures with soft shapes and some noise, float32 [number, 3, side, side]."""
    random = torch.Generator().manual_seed(seed)
    shapes = torch.randn(number, 3, 1 + side // 8, 1 + side // 8, generator=random)
    soft = F.interpolate(shapes, size=(side, side), mode="bilinear", align_corners=False)
    return (soft + 0.2 * torch.randn(number, 3, side, side, generator=random)).numpy()


def build(name: str, **options: Any) -> nn.Module:
    """The network ``name`` of torchvision with random weights; ``options`` are its builder's."""
    import_torchvision()
    from torchvision import models

    builder: Callable[..., nn.Module] = getattr(models, name)
    return builder(weights=None, **options)


@cache
def make(name: str, side: int) -> nn.Module:
    """The network ``name`` of `NETS` with random weights, its batch norms settled on pictures of ``side`` pixels."""
    return settled(lambda: build(name, **NETS[name].options), images(4, side, seed=1))


def _alternating(graph: FloatGraph) -> BitPlan:
    """4 and 8 bits in turn for weights and activations, 8 at both ends."""
    layers = [node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)]
    tensors = tensor_names(graph)
    weights = {name: 4 if i % 2 else 8 for i, name in enumerate(layers)}
    activations = {name: 8 if i % 2 else 4 for i, name in enumerate(tensors)}
    ends = dict.fromkeys((layers[0], layers[-1]), 8), dict.fromkeys((tensors[0], tensors[-1]), 8)
    return BitPlan(weights | ends[0], activations | ends[1])


PLANS: dict[str, Callable[[nn.Module, int], dict[str, Any]]] = {
    "W8A8": lambda module, side: {"weights": 8, "activations": 8},
    "W4A8": lambda module, side: {"weights": 4, "activations": 8},
    "W4A4": lambda module, side: {"weights": 4, "activations": 4},
    "mixed": lambda module, side: {"plan": _alternating(simplify(from_torch(module, (3, side, side))))},
}
"""Arguments of `labkit.quantize` for a module and the side of its pictures, by name."""
