"""What the studies of sensitivity compute by themselves: variances of probes, eigenvalues, losses around weights, searches."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labkit.data import load as load_data
from labkit.errors import InputError
from labkit.quantization.differentiable import layer_op
from labkit.sensitivity.direct import loss_change
from labkit.sensitivity.hessian import full_hessian
from labkit.sensitivity.objective import Objective, make_objective
from labkit.studies.figures import svg
from labkit.studies.hawq import curvature
from labkit.studies.hawq.curvature import layer_curvatures
from labkit.studies.hawq.landscape import grid, losses_at
from labkit.studies.hawq.predictors import mean_order, order
from labkit.studies.hawq.probes import probe_deviations
from labkit.studies.hawq.search import Trials, cross_entropy
from labkit.studies.hawq.tiny import reduced, tiny_objective
from labkit.studies.study import Figure, StudyResult, Surface


@pytest.fixture(scope="module")
def tiny() -> Objective:
    return tiny_objective(load_data("mnist5k"), 16, 10)


@pytest.mark.parametrize("sizes", [(1, 2), (3, 3), (2, 4, 1)])
def test_deviation_of_a_probe_is_that_over_all_signs(sizes: tuple[int, ...]) -> None:
    count = sum(sizes)
    matrix = np.random.default_rng(count).normal(size=(count, count))
    matrix = matrix + matrix.T
    ends = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in itertools.pairwise(ends.tolist())]
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=count)))
    found = probe_deviations(matrix, parts)
    for at, part in enumerate(parts):
        whole = (signs[:, part] * (signs @ matrix)[:, part]).sum(1)
        alone = (signs[:, part] * (signs[:, part] @ matrix[part, part])).sum(1)
        for values, way in ((whole, "global"), (alone, "own")):
            assert values.mean() == pytest.approx(np.trace(matrix[part, part]))
            assert found[way][at] == pytest.approx(values.std())


def test_images_are_reduced_by_means() -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    wanted = nn.functional.avg_pool2d(torch.from_numpy(images), 4).numpy()
    assert np.allclose(reduced(images), wanted, atol=1e-6)


def test_tiny_network_is_the_same_each_time_and_learns() -> None:
    data = load_data("mnist5k")
    short, long, again = (tiny_objective(data, 32, steps) for steps in (0, 60, 60))
    assert long.sizes.tolist() == [108, 144, 160]
    assert torch.equal(long.outputs, again.outputs)
    assert long.losses(long.outputs).mean() < 0.8 * short.losses(short.outputs).mean()


@pytest.mark.parametrize("together", [10**9, 1])
def test_eigenvalues_are_those_of_the_hessian(tiny: Objective, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(curvature, "_NUMBERS", together)
    found = list(layer_curvatures(tiny, 3))
    assert [one.layer for one in found] == list(tiny.layers)
    for one in found:
        matrix = full_hessian(tiny, [one.layer])
        assert one.size == len(matrix)
        assert one.trace == pytest.approx(np.trace(matrix))
        assert one.values == pytest.approx(np.linalg.eigvalsh(matrix)[::-1][:3], rel=1e-6)
        assert np.allclose(one.vectors @ one.vectors.T, np.eye(3), atol=1e-6)
        assert np.allclose(matrix @ one.vectors.T, one.vectors.T * one.values, atol=1e-6 * one.values[0])


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y * y)  # type: ignore[no-any-return]


def test_eigenvalues_need_outputs_that_do_not_bend() -> None:
    objective = make_objective(_Gate(), np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="bend in the weights of 'first'"):
        list(layer_curvatures(objective))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_losses_around_a_layer_are_those_of_the_moved_network(tiny: Objective, at: int) -> None:
    layer = tiny.layers[at]
    weight = layer_op(tiny.graph, layer).weight
    directions = np.random.default_rng(at).normal(size=(2, weight.size))
    points = np.array([[0.0, 0.0], [0.5, 0.0], [-0.25, 0.75]])
    found = losses_at(tiny, layer, directions, points)
    assert np.allclose(found[0], tiny.losses(tiny.outputs).numpy())
    for losses, point in zip(found, points, strict=True):
        moved = weight + (point @ directions).reshape(weight.shape)
        change, _ = loss_change(tiny, {layer: moved})
        assert losses.mean() - found[0].mean() == pytest.approx(change, abs=1e-9)


def test_grid_runs_along_x_first() -> None:
    places, points = grid(2.0, 3)
    assert places.tolist() == [-2, 0, 2]
    assert points[:4].tolist() == [[-2, -2], [0, -2], [2, -2], [-2, 0]]
    assert len(points) == 9


def test_cross_entropy_is_torch_s() -> None:
    rng = np.random.default_rng(0)
    logits, labels = (30 * rng.normal(size=(40, 7))).astype(np.float32), rng.integers(7, size=40)
    wanted = nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert cross_entropy(logits, labels) == pytest.approx(float(wanted))


@pytest.mark.parametrize(("loss", "after", "ratio"), [(3.0, 1, 0.5), (2.5, 2, 1.0), (1.0, 4, 2.0), (0.5, None, 2.0)])
def test_when_a_search_equals_a_plan(loss: float, after: int | None, ratio: float) -> None:
    trials = Trials(np.array([3.0, 2.0, 4.0, 1.0]), np.array([5.0, 10.0, 15.0, 20.0]))
    assert trials.best.tolist() == [3, 2, 2, 1]
    assert trials.reached(loss) == after
    assert trials.ratio(loss, 10.0) == (ratio, after is not None)


def test_orders_of_predictions() -> None:
    measured = np.random.default_rng(0).random((12, 2))
    predicted = {"same": 2 * measured, "reversed": -measured, "random": np.random.default_rng(1).random((12, 2))}
    assert order(predicted["same"], measured).tolist() == [1, 1]
    means, less = mean_order(predicted, measured, "same", 40)
    assert (means["same"].value, means["reversed"].value) == (1, -1)
    assert means["reversed"].low == means["reversed"].high == -1
    assert (less["same"].value, less["same"].low, less["same"].high) == (0, 0, 0)
    assert less["random"].value == pytest.approx(means["random"].value - 1)
    assert means["random"].low < means["random"].value < means["random"].high


SURFACE = Surface((-1, 0, 1), (-1, 1), ((1, 0, 1), (3, 2, 3)), (0, 1, 2), "loss, nats")
MAP = Figure("map", "A map", "line", "along x", "along y", (), surface=SURFACE)


@pytest.mark.parametrize("figure", [MAP, Figure("both", "Two maps", "line", "", "", (), panels=(MAP, MAP))])
def test_maps_survive_json_and_are_drawn(figure: Figure) -> None:
    result = StudyResult((), (), (figure,))
    assert StudyResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    drawn = svg(figure)
    assert drawn == svg(figure)
    for text in (figure.title, "along x", "along y", "loss, nats"):
        assert f">{text}<" in drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [({"z": ((1, 0, 1),)}, "another shape"), ({"z": ((1, 0), (1, 0))}, "another shape"), ({"levels": (1,)}, "ascend")],
)
def test_surfaces_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    given = {"x": (-1, 0, 1), "y": (-1, 1), "z": ((1, 0, 1), (3, 2, 3)), "levels": (0, 1), "label": "loss"}
    with pytest.raises(InputError, match=message):
        Surface(**{**given, **change})  # type: ignore[arg-type]
