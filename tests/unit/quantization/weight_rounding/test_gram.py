"""The quadratic form against sums over all windows, written out by PyTorch's unfold in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.graph.float_ops import Conv2d, Linear
from labkit.quantization.weight_rounding.gram import Gram, collect_gram, window_rows

CONVOLUTIONS = [
    # channels, outputs, kernel, stride, padding, dilation, groups
    (3, 4, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (4, 6, (3, 2), (2, 1), ((0, 1), (2, 0)), (1, 1), 2),
    (6, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    (2, 4, (3, 3), (1, 2), ((2, 2), (2, 2)), (2, 2), 1),
    (5, 3, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
]


def convolution(case: tuple, bias: bool = True) -> tuple[Conv2d, torch.Tensor, torch.Tensor]:  # type: ignore[type-arg]
    channels, outputs, kernel, stride, padding, dilation, groups = case
    rng = np.random.default_rng(sum(map(hash, (channels, outputs))))
    weight = rng.normal(size=(outputs, channels // groups, *kernel)).astype(np.float32)
    op = Conv2d(
        weight, rng.normal(size=outputs).astype(np.float32) if bias else None, stride, padding, dilation, groups
    )
    x = torch.from_numpy(rng.normal(1, 1, size=(7, channels, 9, 8)).astype(np.float32))
    return op, x, output(op, x) + 0.1 * torch.randn(output(op, x).shape, generator=torch.Generator().manual_seed(0))


def output(op: Conv2d, x: torch.Tensor, weight: NDArray[np.float64] | None = None) -> torch.Tensor:
    (top, bottom), (left, right) = op.padding
    padded = F.pad(x.double(), (left, right, top, bottom))
    kernel = torch.from_numpy(op.weight.astype(np.float64) if weight is None else weight)
    bias = None if op.bias is None else torch.from_numpy(op.bias).double()
    return F.conv2d(padded, kernel, bias, op.stride, 0, op.dilation, op.groups).float()


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_error_is_that_of_the_output_with_its_best_bias(case: tuple) -> None:  # type: ignore[type-arg]
    op, x, target = convolution(case)
    gram = collect_gram(op, x, target, samples=10**6)
    assert gram.samples == target.numel() // target.shape[1]
    weights = op.weight.reshape(len(op.weight), -1) + np.random.default_rng(1).normal(size=(len(op.weight), 1)) * 0.1
    plain = output(replace(op, bias=None), x, weights.reshape(op.weight.shape).astype(np.float64)).double()
    gap = (target.double() - plain).transpose(0, 1).flatten(1)
    np.testing.assert_allclose(gram.error(weights), gap.var(1, unbiased=False), rtol=2e-3)
    np.testing.assert_allclose(gram.best_bias(weights), gap.mean(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_uncentred_error_keeps_the_bias(case: tuple) -> None:  # type: ignore[type-arg]
    op, x, target = convolution(case)
    gram = collect_gram(op, x, target, samples=10**6, centred=False)
    gap = (target - output(op, x)).double().transpose(0, 1).flatten(1)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    np.testing.assert_allclose(gram.error(rows), gap.square().mean(1), rtol=2e-3)
    np.testing.assert_array_equal(gram.best_bias(rows), op.bias)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_minimum_of_the_exact_target_is_the_layer_itself(case: tuple) -> None:  # type: ignore[type-arg]
    op, x, _ = convolution(case)
    gram = collect_gram(op, x, output(op, x), samples=10**6)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    assert np.abs(gram.half_gradient(rows)).max() < 1e-4 * np.abs(gram.cross).max()
    np.testing.assert_allclose(gram.symmetric(rows).cross, gram.cross, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gram.best_bias(rows), op.bias, atol=1e-4)


def test_windows_are_those_of_unfold() -> None:
    op, x, target = convolution(CONVOLUTIONS[0])
    places = np.array([0, 5, 17, 71])
    every = np.broadcast_to(places, (7, 4))
    windows, taken = window_rows(op, x, target, every)
    wanted = F.unfold(x, (3, 3), padding=1)[:, :, places].permute(0, 2, 1).reshape(-1, 27)
    assert torch.equal(windows[0], wanted)
    assert torch.equal(taken, target.flatten(2)[:, :, places].permute(0, 2, 1).reshape(-1, 4))
    own = np.random.default_rng(0).integers(0, 72, (7, 3))  # other places in every image
    windows, taken = window_rows(op, x, target, own)
    for image, place in product(range(7), range(3)):
        one, one_target = window_rows(
            op, x[image : image + 1], target[image : image + 1], own[image : image + 1, place : place + 1]
        )
        assert torch.equal(windows[0, image * 3 + place], one[0, 0])
        assert torch.equal(taken[image * 3 + place], one_target[0])


@pytest.mark.parametrize("shape", [(50, 6), (10, 5, 6)])
def test_linear_layers(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    op = Linear(rng.normal(size=(3, 6)).astype(np.float32), None)
    x = rng.normal(size=shape).astype(np.float32)
    target = x @ op.weight.T + 2
    gram = collect_gram(op, torch.from_numpy(x), torch.from_numpy(target), samples=10**6)
    np.testing.assert_allclose(gram.gram[0], np.cov(x.reshape(-1, 6).T, bias=True), atol=1e-5)
    np.testing.assert_allclose(gram.best_bias(op.weight.astype(np.float64)), 2, atol=1e-5)


def test_sequences_are_images_of_height_one() -> None:
    rng = np.random.default_rng(0)
    op = Conv2d(rng.normal(size=(4, 3, 1, 3)).astype(np.float32), None, (1, 1), ((0, 0), (1, 1)), (1, 1), 1)
    x = torch.from_numpy(rng.normal(size=(5, 3, 11)).astype(np.float32))
    target = output(op, x.unsqueeze(2)).squeeze(2)
    gram = collect_gram(op, x, target, samples=10**6)
    assert gram.error(op.weight.reshape(4, -1).astype(np.float64)).max() < 1e-5


def test_few_samples_estimate_the_whole_and_depend_on_the_seed() -> None:
    op, x, target = convolution(CONVOLUTIONS[0])
    whole = collect_gram(op, x.repeat(40, 1, 1, 1), target.repeat(40, 1, 1, 1), samples=10**7)
    some, other, again = (
        collect_gram(op, x.repeat(40, 1, 1, 1), target.repeat(40, 1, 1, 1), samples=2800, seed=seed)
        for seed in (0, 1, 0)
    )
    assert some.samples == 2800
    assert np.array_equal(some.gram, again.gram)
    assert not np.array_equal(some.gram, other.gram)
    assert np.abs(some.gram - whole.gram).max() < 0.15 * whole.gram.max()


def test_ridge_leaves_the_error_of_the_original_weights_alone() -> None:
    op, x, target = convolution(CONVOLUTIONS[1])
    gram = collect_gram(op, x, target)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    held = gram.with_ridge(rows, 0.5)
    np.testing.assert_allclose(held.error(rows), gram.error(rows), rtol=1e-9)
    amount = 0.5 * np.array([np.trace(g) / len(g) for g in gram.gram]).repeat(3)
    moved = rows + 0.3
    np.testing.assert_allclose(held.error(moved), gram.error(moved) + amount * 0.09 * rows.shape[1], rtol=1e-9)


def test_gradient_is_that_of_the_error() -> None:
    op, x, target = convolution(CONVOLUTIONS[1])
    gram: Gram = collect_gram(op, x, target)
    rows = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    step = 1e-4
    for row, column in [(0, 0), (2, 5), (5, 11)]:
        ahead, back = rows.copy(), rows.copy()
        ahead[row, column] += step
        back[row, column] -= step
        slope = (gram.error(ahead).sum() - gram.error(back).sum()) / (2 * step)
        assert slope == pytest.approx(2 * gram.half_gradient(rows)[row, column], rel=1e-5, abs=1e-7)


def test_targets_that_do_not_fit_are_refused() -> None:
    op, x, target = convolution(CONVOLUTIONS[0])
    with pytest.raises(InputError, match="got 7 and 6"):
        collect_gram(op, x, target[:6])
    with pytest.raises(InputError, match="got 0 and 0"):
        collect_gram(op, x[:0], target[:0])
