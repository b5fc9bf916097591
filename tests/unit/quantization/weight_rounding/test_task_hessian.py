"""The task loss around a layer's weights: against torch's own Hessian, against differences, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from unit.quantization.weight_rounding.problems import grid_of

from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.passes import simplify
from labkit.quantization.weight_rounding.task_hessian import LARGEST_LAYER, task_hessian

CLASSES = 3


class Branches(nn.Module):
    """Strides, dilation, groups, one-sided padding, a branch that does not see the layer, an addition, two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(4, 4, 2, groups=2, dilation=2, padding="same", bias=False)
        self.point = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(16, 5)
        self.out = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.grouped(x)) + self.point(x)
        x = F.max_pool2d(x, 2).flatten(1)
        return self.out(torch.relu(self.head(x)))


class Gate(nn.Module):
    """A product of two branches that both see the first layer: logits that are not piecewise linear in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3)
        self.gate = nn.Conv2d(3, 3, 1)
        self.out = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(F.adaptive_avg_pool2d(x * self.gate(x), 1).flatten(1))


class Sequence(nn.Module):
    """A convolution of sequences, and a linear layer on every place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3, padding=1)
        self.out = nn.Linear(4 * 6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.stem(x)).flatten(1))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {Branches: (2, 8, 8), Gate: (2, 6, 6), Sequence: (2, 6)}


def network(kind: type[nn.Module], seed: int = 0) -> tuple[FloatGraph, NDArray[np.float32], NDArray[np.int64]]:
    torch.manual_seed(seed)
    graph = simplify(from_torch(kind().eval(), SHAPES[kind]))
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(40, *SHAPES[kind])).astype(np.float32)  # more than are computed at a time
    return graph, images, rng.integers(0, CLASSES, 40)


def plain_loss(module: nn.Module, name: str, images: NDArray[np.float32], labels: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """The mean loss of a torch module in float64, as a function of one layer's weight, by torch alone."""
    module = module.double().requires_grad_(False)
    layer = dict(module.named_modules())[name]
    x, y = torch.from_numpy(images).double(), torch.from_numpy(labels)

    def loss(weight: Tensor) -> Tensor:
        values = {f"{name}.weight": weight}
        return F.cross_entropy(torch.func.functional_call(module, values, (x,)), y)

    return loss, layer.weight.detach()


CASES = [
    (Branches, "stem"),
    (Branches, "grouped"),
    (Branches, "point"),
    (Branches, "head"),
    (Branches, "out"),
    (Gate, "out"),
    (Sequence, "stem"),
    (Sequence, "out"),
]


@pytest.mark.parametrize("way", ["jacobian", "double-backward"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_is_the_hessian_that_torch_finds(kind: type[nn.Module], name: str, way: str) -> None:
    graph, images, labels = network(kind)
    torch.manual_seed(0)
    loss, weight = plain_loss(kind().eval(), name, images, labels)
    found = task_hessian(graph, name, images, labels, way)
    wanted = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).numpy()
    assert found.images == 40
    assert found.loss == pytest.approx(float(loss(weight)), rel=1e-12)
    slope = torch.func.grad(loss)(weight).reshape(-1).numpy()
    assert np.allclose(found.gradient, slope, rtol=1e-9, atol=1e-12)
    assert np.allclose(found.hessian, wanted, rtol=1e-9, atol=1e-10 * np.abs(wanted).max())
    assert np.array_equal(found.hessian, found.hessian.T)
    assert not found.hessian.flags.writeable


@pytest.mark.parametrize(("name", "way"), [("stem", "double-backward"), ("stem", "auto"), ("gate", "auto")])
def test_product_of_branches_needs_double_backward(name: str, way: str) -> None:
    graph, images, labels = network(Gate)
    torch.manual_seed(0)
    loss, weight = plain_loss(Gate().eval(), name, images, labels)
    wanted = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).numpy()
    found = task_hessian(graph, name, images, labels, way)
    assert np.allclose(found.hessian, wanted, rtol=1e-9, atol=1e-10 * np.abs(wanted).max())
    with pytest.raises(InputError, match="not piecewise linear"):
        task_hessian(graph, name, images, labels, "jacobian")


def test_second_order_agrees_with_differences_of_the_loss() -> None:
    """A parabola through three points on a line: no derivative of anything is asked for."""
    graph, images, labels = network(Branches)
    torch.manual_seed(0)
    loss, weight = plain_loss(Branches().eval(), "head", images, labels)
    found = task_hessian(graph, "head", images, labels)
    for seed in range(5):
        # small enough that hardly any ReLU switches, large enough for float64
        change = 1e-5 * np.random.default_rng(seed).normal(size=weight.shape)
        ahead, here, behind = (float(loss(weight + sign * torch.from_numpy(change))) for sign in (1, 0, -1))
        assert (ahead - behind) / 2 == pytest.approx(found.first_order(change), rel=1e-5)
        assert (ahead + behind) / 2 - here == pytest.approx(found.second_order(change), rel=2e-3)


def test_own_predictions_are_the_labels_where_there_are_none() -> None:
    graph, images, labels = network(Branches)
    own = run_float(graph, {graph.inputs[0]: images})[graph.outputs[0]].argmax(1)
    assert not np.array_equal(own, labels)
    for way in ("jacobian", "double-backward"):
        without, told, true = (task_hessian(graph, "head", images, y, way) for y in (None, own, labels))
        assert np.array_equal(without.gradient, told.gradient)
        assert without.loss == told.loss < true.loss
        # where logits are piecewise linear, labels move the gradient only
        assert np.allclose(without.hessian, true.hessian, rtol=1e-9, atol=1e-12)
        assert not np.allclose(without.gradient, true.gradient, rtol=1e-2)


@pytest.mark.parametrize("way", ["jacobian", "double-backward"])
def test_float32_is_close(way: str) -> None:
    graph, images, labels = network(Branches)
    exact = task_hessian(graph, "stem", images, labels, way)
    quick = task_hessian(graph, "stem", images, labels, way, dtype=torch.float32)
    assert np.abs(quick.hessian - exact.hessian).max() < 1e-5 * np.abs(exact.hessian).max()
    assert quick.hessian.dtype == np.float64


def test_progress_reaches_the_end() -> None:
    graph, images, _ = network(Sequence)
    told: list[tuple[int, int]] = []
    task_hessian(graph, "out", images, progress=lambda done, total: told.append((done, total)))
    assert told == [(32, 40), (40, 40)]


def test_problem_over_bits_has_the_energy_of_the_change() -> None:
    graph, images, labels = network(Branches)
    found = task_hessian(graph, "stem", images, labels)
    op = graph["stem"].op
    assert isinstance(op, float_ops.Conv2d)
    rows = op.weight.reshape(4, -1).astype(np.float64)
    grid = grid_of(rows, 3)
    down, up = grid.choices(rows)
    for with_gradient in (False, True):
        qubo, free = found.qubo(rows, grid, with_gradient)
        z = np.random.default_rng(1).random(qubo.size) < 0.5
        levels = down.copy().reshape(-1)
        levels[free[z]] = up.reshape(-1)[free[z]]
        change = grid.values(levels.reshape(rows.shape)) - rows
        wanted = found.second_order(change) + (found.first_order(change) if with_gradient else 0)
        assert float(qubo.energy(z)) == pytest.approx(wanted, rel=1e-9)


def test_what_cannot_be_is_refused() -> None:
    graph, images, labels = network(Branches)
    with pytest.raises(InputError, match=r"no layer 'nowhere'.*stem, grouped, point, head, out"):
        task_hessian(graph, "nowhere", images)
    with pytest.raises(InputError, match="auto, double-backward, jacobian, got 'fast'"):
        task_hessian(graph, "stem", images, way="fast")
    with pytest.raises(InputError, match="40 images and 39 labels"):
        task_hessian(graph, "stem", images, labels[:-1])
    with pytest.raises(InputError, match="got 0 images"):
        task_hessian(graph, "stem", images[:0])
    wide = nn.Sequential(nn.Flatten(), nn.Linear(128, LARGEST_LAYER // 128 + 1))
    with pytest.raises(InputError, match="would take 0.6 GB"):
        task_hessian(simplify(from_torch(wide.eval(), (2, 8, 8))), "1", images)
    pixels = simplify(from_torch(nn.Sequential(nn.Conv2d(2, 3, 1)).eval(), (2, 8, 8)))
    with pytest.raises(InputError, match=r"needs logits \[N, classes\]"):
        task_hessian(pixels, "0", images)


def test_activation_after_the_layer_counts() -> None:
    """ReLU6 fused into the layer itself: beyond 6 its weights have no effect."""
    x = FloatNode("x", float_ops.Input((2,)))
    op = float_ops.Linear(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([0.0, 100.0], np.float32))
    graph = FloatGraph((x, FloatNode("fc", op, ("x",), Activation.RELU6)), ("fc",))
    found = task_hessian(graph, "fc", np.array([[1.0, 2.0]], np.float32))
    assert np.all(found.gradient[2:] == 0)
    assert np.all(found.hessian[2:] == 0)
    assert found.hessian[0, 0] > 0
