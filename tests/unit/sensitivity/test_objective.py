"""What the objective checks, and its losses, residuals and curvatures against PyTorch's own derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from unit.sensitivity.nets import images, mlp, objective, outputs_of

from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.sensitivity.objective import LOSSES, make_objective


@pytest.mark.parametrize("loss", LOSSES)
def test_residuals_and_curvatures_are_derivatives_of_the_loss(loss: str) -> None:
    found = objective(loss=loss)
    for index in range(len(found.images)):
        where = slice(index, index + 1)
        value = lambda f, where=where: found.losses(f[None], where).sum()  # noqa: E731
        torch.testing.assert_close(
            torch.autograd.functional.jacobian(value, found.outputs[index]), found.residuals()[index]
        )
        second = torch.autograd.functional.hessian(value, found.outputs[index])
        torch.testing.assert_close(second, found.curvatures()[index])
        factor = found.curvature_factors()[index]
        torch.testing.assert_close(factor @ factor.T, second)


@pytest.mark.parametrize("name", ["mlp", "branched", "gate"])
def test_outputs_are_the_networks(name: str) -> None:
    found = objective(name, count=40)  # more than one chunk
    torch.testing.assert_close(found.outputs, outputs_of(found, {}))


@pytest.mark.parametrize("loss", LOSSES)
def test_divergence_is_the_expected_rise_of_the_loss(loss: str) -> None:
    found = objective(loss=loss, count=3)
    other = found.outputs + 0.3 * torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3)))
    if loss == "squared-error":
        wanted = (other - found.outputs).square().sum(1) / 2
    else:
        chance = found.outputs.softmax(1)
        wanted = (chance * (chance.log() - other.softmax(1).log())).sum(1)
    torch.testing.assert_close(found.divergences(other), wanted)
    assert (found.divergences(other) > 0).all()
    torch.testing.assert_close(found.divergences(found.outputs), torch.zeros(3, dtype=torch.float64))


def test_labels_may_be_given_predicted_or_drawn() -> None:
    found = objective(count=500)
    own = found.with_labels("predicted")
    assert torch.equal(own.targets, found.outputs.argmax(1))
    assert found.with_labels("given") is found
    drawn = found.with_labels("drawn", 3)
    assert torch.equal(drawn.targets, found.with_labels("drawn", 3).targets)
    assert not torch.equal(drawn.targets, found.with_labels("drawn", 4).targets)
    expected = found.outputs.softmax(1).sum(0)
    counts = torch.bincount(drawn.targets, minlength=3)
    assert ((counts - expected).abs() < 4 * (expected.clamp(min=1)).sqrt()).all()
    real = objective(loss="squared-error", count=500).with_labels("drawn")
    assert abs(float((real.targets - real.outputs).std()) - 1) < 0.1


def test_labels_that_are_not_there_cannot_be_taken() -> None:
    found = make_objective(mlp().eval(), images((6, 1, 1), 3))
    assert found.labels == "predicted"
    with pytest.raises(InputError, match="The labels here are predicted"):
        found.with_labels("given")
    with pytest.raises(InputError, match="given, predicted, drawn"):
        found.with_labels("true")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss": "hinge"}, "The loss must be one of"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"layers": ["7"]}, "no layer '7'"),
        ({"layers": []}, "no weights to look at"),
        ({"labels": np.zeros(3, np.int64)}, "one integer label for each of 4 images"),
        ({"labels": np.zeros(4)}, "one integer label"),
        ({"labels": np.array([0, 1, 2, 3])}, "Labels must be 0..2"),
        ({"labels": np.zeros((4, 2)), "loss": "squared-error"}, "Targets must be"),
        ({"images": images((6, 1, 1), 0)}, "at least one image"),
        ({"network": nn.Sequential(mlp(), nn.Softmax(1))}, "up to its logits"),
        ({"network": nn.Sequential(nn.Conv2d(6, 2, 1))}, "real outputs"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, object], words: str) -> None:
    given: dict[str, object] = {
        "network": mlp().eval(),
        "images": images((6, 1, 1), 4),
        "labels": np.zeros(4, np.int64),
    }
    with pytest.raises(InputError, match=words):
        make_objective(**(given | changed))  # type: ignore[arg-type]


def test_indices_have_no_sensitivities() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)).eval()
    graph = simplify(from_torch(module, {"input": torch.arange(6).reshape(2, 3) % 5}))
    with pytest.raises(InputError, match="must take real numbers, 'input' is an index"):
        make_objective(graph, np.zeros((4, 3), np.float32), np.zeros(4, int))
