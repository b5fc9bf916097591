"""Tiny networks, images and targets for the tests of sensitivities, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.sensitivity.objective import Objective, make_objective


class Gate(nn.Module):
    """A factor of the image is computed from the image: outputs are not piecewise linear in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.gate = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.fc(nn.functional.avg_pool2d(x * self.gate(x), 2).flatten(1))


class Branched(nn.Module):
    """A grouped convolution, strides, a residual sum, a maximum and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.short = nn.Conv2d(4, 4, 1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        y = torch.relu(self.pool(self.grouped(x)) + self.short(x))
        return self.fc(y.flatten(1))


class Sequence(nn.Module):
    """A convolution along time, a second one with a stride, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Conv1d(2, 4, 3, padding=1)
        self.head = nn.Conv1d(4, 3, 2, stride=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.head(torch.relu(self.time(x)))).flatten(1))


def mlp() -> nn.Module:
    """Two layers, 6 inputs as an image of 6 channels: 6 -> 5 -> 3."""
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


NETS = {
    "mlp": (mlp, (6, 1, 1)),
    "branched": (Branched, (2, 4, 4)),
    "gate": (Gate, (2, 4, 4)),
    "sequence": (Sequence, (2, 4)),
}


def images(shape: tuple[int, ...], count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def objective(
    name: str = "mlp",
    count: int = 7,
    loss: str = "cross-entropy",
    seed: int = 0,
    layers: tuple[str, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    gain: float = 1.0,
) -> Objective:
    """``count`` images with random labels; weights times ``gain``."""
    make, shape = NETS[name]
    torch.manual_seed(seed)
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain)
    generator = np.random.default_rng((seed, 1))
    x = images(shape, count, seed)
    labels = generator.integers(0, 3, count) if loss == "cross-entropy" else generator.standard_normal((count, 3))
    return make_objective(module, x, labels, loss, layers, dtype)


def losses_of(found: Objective, flat: Tensor) -> Tensor:
    """The loss [N] of each image as a function of all weights of the layers, one after the other: an independent way."""
    graph, weights, start = found.graph, {}, 0
    for name in found.layers:
        shape = graph[name].op.weight.shape  # type: ignore[union-attr]
        size = int(np.prod(shape))
        weights[name] = flat[start : start + size].reshape(shape)
        start += size
    return found.losses(outputs_of(found, weights))


def outputs_of(found: Objective, weights: dict[str, Tensor]) -> Tensor:
    """Outputs [N, M] with other weights, written out for the four networks."""
    graph, x, functional = found.graph, found.images, nn.functional

    def layer(name: str, value: Tensor) -> Tensor:
        op = graph[name].op
        weight = weights.get(name, torch.from_numpy(op.weight))  # type: ignore[union-attr]
        bias = torch.from_numpy(op.bias)  # type: ignore[union-attr]
        if weight.ndim == 2:
            return value @ weight.T + bias
        if value.ndim == 3:
            return functional.conv1d(value, weight[:, :, 0], bias, op.stride[1], op.padding[1][0])  # type: ignore[union-attr]
        return functional.conv2d(value, weight, bias, op.stride, op.padding[0], 1, op.groups)  # type: ignore[union-attr]

    names = {node.name for node in graph}
    if "gate" in names:
        x = torch.relu(layer("stem", x))
        return layer("fc", functional.avg_pool2d(x * layer("gate", x), 2).flatten(1))
    if "time" in names:
        return layer("fc", torch.relu(layer("head", torch.relu(layer("time", x)))).flatten(1))
    if "grouped" in names:
        x = functional.relu6(layer("stem", x))
        return layer("fc", torch.relu(functional.max_pool2d(layer("grouped", x), 2) + layer("short", x)).flatten(1))
    return layer("3", torch.relu(layer("1", x.flatten(1))))


def flat_weights(found: Objective) -> Tensor:
    """All weights of the layers, one after the other."""
    return torch.cat([torch.from_numpy(found.graph[n].op.weight).reshape(-1) for n in found.layers])  # type: ignore[union-attr]


def graph_of(module: nn.Module, shape: tuple[int, ...]) -> FloatGraph:
    """The float network of ``module`` with its float64 parameters as they are."""
    exact = {name: value.detach().numpy().copy() for name, value in module.named_parameters()}
    graph = simplify(from_torch(copy.deepcopy(module).float().eval(), shape))
    nodes = []
    for node in graph:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            op = replace(node.op, weight=exact[f"{node.name}.weight"], bias=exact[f"{node.name}.bias"])
            nodes.append(replace(node, op=op))
        else:
            nodes.append(node)
    return FloatGraph(tuple(nodes), graph.outputs)


def fitted(loss: str, seed: int, iterations: int, count: int = 7) -> Objective:
    """The multilayer perceptron after so many iterations of L-BFGS on ``count`` images, in float64."""
    torch.manual_seed(seed)
    module = mlp().double()
    start = objective("mlp", count, loss, seed)
    x, y = start.images, start.targets

    def value() -> Tensor:
        outputs = module(x)
        if loss == "cross-entropy":
            return nn.functional.cross_entropy(outputs, y)
        return (outputs - y).square().sum(1).mean() / 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = value()
        found.backward()
        return found

    if iterations:
        small = {"tolerance_grad": 1e-15, "tolerance_change": 1e-18, "line_search_fn": "strong_wolfe"}
        optimizer = torch.optim.LBFGS(module.parameters(), max_iter=iterations, **small)  # type: ignore[arg-type]
        optimizer.step(closure)
    return make_objective(graph_of(module, (6, 1, 1)), x, y, loss, dtype=torch.float64)
