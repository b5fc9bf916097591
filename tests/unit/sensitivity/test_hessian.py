"""Products with the Hessian against PyTorch's own Hessian and against differences of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.sensitivity.nets import NETS, flat_weights, losses_of, objective

import labkit.sensitivity.hessian as module
from labkit.errors import InputError
from labkit.sensitivity.hessian import HessianOperator, full_hessian
from labkit.sensitivity.objective import LOSSES


def exact(found: module.Objective) -> np.ndarray:
    matrix = torch.autograd.functional.hessian(lambda w: losses_of(found, w).mean(), flat_weights(found))
    return matrix.numpy()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_full_hessian_is_that_of_pytorch(name: str, loss: str) -> None:
    found = objective(name, loss=loss)
    np.testing.assert_allclose(full_hessian(found), exact(found), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_with_the_matrix_over_chunks_and_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = objective(name, count=40)  # two chunks
    matrix = exact(found)
    whole = HessianOperator(found)
    vectors = np.random.default_rng(0).standard_normal((19, whole.size))  # more than go through at once
    np.testing.assert_allclose(whole.products(vectors), vectors @ matrix, rtol=1e-8, atol=1e-11)
    for layer, part in whole.slices.items():
        block = HessianOperator(found, [layer])
        np.testing.assert_allclose(block.products(vectors[:, part]), vectors[:, part] @ matrix[part, part], atol=1e-11)
        np.testing.assert_allclose(block(vectors[0, part]), matrix[part, part] @ vectors[0, part], atol=1e-11)
    monkeypatch.setattr(module, "_KEPT", 0)  # nothing kept between products
    again = HessianOperator(found)
    for _ in range(2):
        assert np.array_equal(again.products(vectors), whole.products(vectors))


@pytest.mark.parametrize("name", NETS)
def test_gradient_and_curvature_are_differences_of_the_loss(name: str) -> None:
    found = objective(name)
    operator, weights = HessianOperator(found), flat_weights(found)
    direction = np.random.default_rng(1).standard_normal(operator.size)
    step, along = 1e-5, torch.from_numpy(direction)
    up, down = (losses_of(found, weights + sign * step * along).mean().item() for sign in (1, -1))
    middle = losses_of(found, weights).mean().item()
    assert operator.gradient() @ direction == pytest.approx((up - down) / (2 * step), rel=1e-6)
    assert direction @ operator(direction) == pytest.approx((up + down - 2 * middle) / step**2, rel=1e-3)


def test_single_precision_is_near_double() -> None:
    double, single = objective("branched"), objective("branched", dtype=torch.float32)
    np.testing.assert_allclose(full_hessian(single), full_hessian(double), rtol=1e-3, atol=1e-5)


def test_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    found = objective("mlp", layers=("3",))
    saturated = objective("mlp", layers=("1",), gain=0.0)  # no unit is alive
    assert np.abs(full_hessian(found)).max() > 1e-3
    assert np.array_equal(full_hessian(saturated), np.zeros((30, 30)))


def test_too_many_weights_and_unknown_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = objective("branched")
    with pytest.raises(InputError, match="no layer 'nothing'"):
        full_hessian(found, ["nothing"])
    with pytest.raises(InputError, match="At least one layer"):
        full_hessian(found, [])
    monkeypatch.setattr(module, "LARGEST_MATRIX", 50)
    assert full_hessian(found, ["fc"]).shape == (48, 48)
    with pytest.raises(InputError, match="at most 50 weights, fc, short have 64|at most 50 weights, short, fc have 64"):
        full_hessian(found, ["fc", "short"])
