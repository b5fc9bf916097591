"""The losses that cases of the course are made of, held to NumPy."""

from __future__ import annotations

import numpy as np
import torch

from labkit.course.ingredients import Made, build


def test_a_quadratic_loss_has_its_matrix_as_hessian() -> None:
    rng = np.random.default_rng(0)
    matrix, linear, w = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=4)
    matrix = matrix + matrix.T
    loss = build(Made("losses.quadratic", {"matrix": matrix, "linear": linear}))
    assert np.isclose(float(loss(torch.from_numpy(w))), w @ matrix @ w / 2 + linear @ w)
    found = torch.autograd.functional.hessian(loss, torch.from_numpy(w))
    assert np.allclose(found.numpy(), matrix)


def test_a_network_of_tanh_is_the_cross_entropy_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, labels, w = rng.normal(size=(5, 3)), rng.integers(0, 4, 5), rng.normal(size=2 * (3 + 4))
    data = {"x": x, "labels": labels, "hidden": 2, "classes": 4}
    logits = np.tanh(x @ w[:6].reshape(2, 3).T) @ w[6:].reshape(4, 2).T
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    by_hand = -np.log(chances[np.arange(5), labels])
    point = torch.from_numpy(w)
    assert np.allclose(build(Made("losses.tanh_net_samples", data))(point).numpy(), by_hand)
    assert np.isclose(float(build(Made("losses.tanh_net", data))(point)), by_hand.mean())
