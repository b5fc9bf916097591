"""The small network's matrices against differences and against the layerwise ways, and the two sides of each equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.sensitivity.nets import fitted as fitted_layers
from unit.sensitivity.nets import flat_weights, losses_of, outputs_of

from labkit.errors import InputError
from labkit.sensitivity.fisher import fisher_matrix
from labkit.sensitivity.hessian import full_hessian
from labkit.studies.mpqco.identities import Sides, empirical_fisher, fisher_identity, five, norm, sides
from labkit.studies.mpqco.small_net import LOSSES, SmallNet, expected_labels, fitted, small_images

COUNT = 9


def problem(loss: str, hidden: int = 3, seed: int = 0) -> tuple[SmallNet, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A net of 4 inputs with random images and labels, and its first parameters."""
    net = SmallNet(loss, 4, hidden)
    generator = np.random.default_rng(seed)
    x = torch.from_numpy(generator.standard_normal((COUNT, 4)))
    classes = torch.from_numpy(generator.integers(0, 3, COUNT))
    labels = classes if loss == "cross-entropy" else torch.from_numpy(generator.standard_normal((COUNT, 3)))
    return net, net.start(seed), x, labels


def by_hand(net: SmallNet, theta: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Each image's loss, float64 [N], in NumPy."""
    flat, images = theta.numpy(), x.numpy()
    if net.hidden:
        a, b, c, d = np.split(flat, np.cumsum([4 * net.hidden, net.hidden, net.hidden * 3]))
        outputs = np.tanh(images @ a.reshape(4, -1) + b) @ c.reshape(-1, 3) + d
    else:
        outputs = images @ flat[:12].reshape(4, 3) + flat[12:]
    if net.loss == "squared-error":
        return np.square(outputs - labels.numpy()).sum(1) / 2
    top = outputs.max(1)
    return top + np.log(np.exp(outputs - top[:, None]).sum(1)) - outputs[np.arange(len(outputs)), labels.numpy()]


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_gradients_and_hessian_are_those_of_differences(loss: str, hidden: int) -> None:
    net, theta, x, labels = problem(loss, hidden)
    assert len(theta) == net.size
    assert float(net.mean_loss(theta, x, labels)) == pytest.approx(by_hand(net, theta, x, labels).mean(), abs=1e-12)
    step = 1e-5
    moves = torch.eye(net.size, dtype=torch.float64) * step
    rows = [(by_hand(net, theta + m, x, labels) - by_hand(net, theta - m, x, labels)) / (2 * step) for m in moves]
    np.testing.assert_allclose(-net.log_gradients(theta, x, labels).numpy().T, rows, atol=1e-8)
    slopes = [
        (net.log_gradients(theta - m, x, labels) - net.log_gradients(theta + m, x, labels)).mean(0) / (2 * step)
        for m in moves
    ]
    np.testing.assert_allclose(net.hessian(theta, x, labels), torch.stack(slopes), atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_residuals_and_curvatures_are_derivatives_by_the_output(loss: str) -> None:
    net, theta, x, labels = problem(loss)
    outputs = net.run(theta, x).requires_grad_()
    slope = torch.autograd.grad(-net.log_chance(outputs, labels).sum(), outputs, create_graph=True)[0]
    torch.testing.assert_close(net.residuals(theta, x, labels), slope.detach())
    for output in range(3):
        row = torch.autograd.grad(slope[:, output].sum(), outputs, retain_graph=True)[0] if slope.requires_grad else 0
        torch.testing.assert_close(net.curvatures(theta, x)[:, output], row)


@pytest.mark.parametrize("loss", LOSSES)
def test_expected_labels_have_the_models_mean_and_variance(loss: str) -> None:
    net, theta, x, _ = problem(loss)
    labels, weights = expected_labels(net, theta, x)
    torch.testing.assert_close(weights.sum(1), torch.ones(COUNT, dtype=torch.float64))
    every = torch.stack([net.residuals(theta, x, labels[:, k]) for k in range(labels.shape[1])], 1)  # [N, K, M]
    torch.testing.assert_close(
        torch.einsum("nk,nkm->nm", weights, every), torch.zeros(COUNT, 3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(torch.einsum("nk,nkm,nkl->nml", weights, every, every), net.curvatures(theta, x))


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_equations_5_to_8(loss: str, hidden: int) -> None:
    net, theta, x, labels = problem(loss, hidden)
    assert five(net, theta, x, labels) < 1e-12
    assert max(fisher_identity(net, theta, x)) < 1e-12


def test_what_tells_the_equations_apart_is_seen() -> None:
    """With weights that are not the model's the identity must fail, or the check of equation 6 checks nothing."""
    net, theta, x, _ = problem("cross-entropy")
    other = SmallNet("cross-entropy", 4, 3)
    labels, weights = expected_labels(net, theta, x)
    wrong = weights.roll(1, 1)
    known = torch.zeros(net.size, net.size, dtype=torch.float64)
    for k in range(3):
        rows = other.log_gradients(theta, x, labels[:, k])
        known += torch.einsum("n,np,nq->pq", wrong[:, k], rows, rows) / COUNT
    curved = sum(
        -torch.func.hessian(lambda moved, k=k: (wrong[:, k] * net.log_chance(net.run(moved, x), labels[:, k])).mean())(
            theta
        )
        for k in range(3)
    )
    assert norm(curved - known) / norm(known) > 0.05


@pytest.mark.parametrize("loss", LOSSES)
def test_sides_of_proposition_2(loss: str) -> None:
    net, theta, x, labels = problem(loss)
    found = sides(net, theta, x, labels)
    assert found.rests["GGN"] < 1e-12 * max(1.0, found.hessian)  # equation 14 with the mean
    assert found.rests["Fisher"] > 1e-2
    assert found.gaps["GGN"] <= found.bound
    assert found.gaps["Fisher"] <= found.bound + found.mixed
    assert found.bound == pytest.approx(found.printed / COUNT)
    assert found.signed <= found.residuals
    if loss == "cross-entropy":
        assert found.signed < 1e-12  # residuals of softmax add up to 0
        assert found.fifteen < found.gaps["GGN"]


@pytest.mark.parametrize("loss", LOSSES)
def test_linear_model_has_no_second_derivatives(loss: str) -> None:
    net, theta, x, labels = problem(loss, 0)
    found = sides(net, theta, x, labels)
    assert found.beta == 0
    assert found.gaps["GGN"] < 1e-12
    assert found.gaps["Fisher"] > 1e-2


@pytest.mark.parametrize(("loss", "iterations"), [("cross-entropy", (0, 2, 16)), ("squared-error", (0, 2, 16))])
def test_fits_reach_the_labels(loss: str, iterations: tuple[int, ...]) -> None:
    net, _, x, labels = problem(loss, 12)
    losses = [float(net.mean_loss(theta, x, labels)) for theta in fitted(net, x, labels, 1, iterations)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-4
    again = fitted(net, x, labels, 1, iterations)
    torch.testing.assert_close(again[2], fitted(net, x, labels, 1, iterations)[2], atol=0, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_same_matrices_as_the_layerwise_ways(loss: str) -> None:
    """`labkit.sensitivity` on its own net against automatic differentiation by all weights, as this study does it."""
    found = fitted_layers(loss, 0, 5)
    weights = flat_weights(found)
    whole = torch.func.hessian(lambda flat: losses_of(found, flat).mean())(weights)
    np.testing.assert_allclose(full_hessian(found), whole, atol=1e-10)
    rows = torch.func.jacrev(lambda flat: losses_of(found, flat))(weights)
    np.testing.assert_allclose(fisher_matrix(found, "empirical"), rows.T @ rows / len(rows), atol=1e-10)
    assert outputs_of(found, {}).shape == found.outputs.shape


def test_drawn_labels_make_the_empirical_fisher_right_on_average() -> None:
    for loss in LOSSES:
        net, theta, x, _ = problem(loss)
        several = torch.stack([empirical_fisher(net, theta, x, net.drawn(theta, x, seed)) for seed in range(400)])
        jacobian = net.jacobian(theta, x)
        truth = torch.einsum("nmp,nmk,nkq->pq", jacobian, net.curvatures(theta, x), jacobian) / COUNT
        error = several.std(0) / 20
        assert float(((several.mean(0) - truth).abs() > 5 * error + 1e-12).double().mean()) < 0.01


def test_small_images_are_means_of_the_first_classes() -> None:
    generator = np.random.default_rng(0)
    images = generator.random((20, 3, 32, 32)).astype(np.float32)
    labels = np.arange(20, dtype=np.int64) % 5
    x, classes = small_images(images, labels, 7)
    assert classes.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert x.shape == (7, 16)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-12)
    first = images[0, :, :8, :8].mean()
    second = images[1, :, :8, :8].mean()
    assert (x[0, 0] - x[1, 0]).sign() == np.sign(first - second)


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="cross-entropy, squared-error, got 'hinge'"):
        SmallNet("hinge")


def test_bounds_are_what_they_say() -> None:
    some = Sides(0.1, 4, 2.0, {}, {}, 0.0, 6.0, 1.0, 3.0, 0.0)
    assert (some.printed, some.bound, some.fifteen) == (18.0, 4.5, 0.75)
