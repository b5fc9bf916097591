"""The transformer of m11: its patches, its graph and its integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labkit
from labkit.course.small_transformer import (
    SIDE,
    TOKENS,
    PatchTransformer,
    graph_of,
    patches_of,
    quantized,
    trained,
)
from labkit.data.dataset import DataSet
from labkit.frontends.float_run import run_float
from labkit.graph import int_ops


@pytest.fixture(scope="module")
def data() -> DataSet:
    return labkit.data.load("mnist5k")


@pytest.fixture(scope="module")
def module(data: DataSet) -> PatchTransformer:
    return trained(data, epochs=3, images=1024)


def test_a_patch_holds_its_pixels() -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    patches = patches_of(images)["patches"]
    for token in range(TOKENS):
        row, column = divmod(token, 32 // SIDE)
        window = images[:, :, SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        assert np.array_equal(patches[:, :, token], window.reshape(2, -1))


def test_a_patch_of_one_colour_is_masked() -> None:
    images = np.zeros((1, 3, 32, 32), np.float32)
    images[0, 0] = 0.5  # one colour, though its three channels differ
    images[0, 2, 9, 25] = 1.0  # a single pixel
    mask = patches_of(images)["mask"]
    assert mask.dtype == np.uint8
    assert np.flatnonzero(mask[0]).tolist() == [7]


def test_the_graph_computes_what_the_module_does(data: DataSet, module: PatchTransformer) -> None:
    given = patches_of(data.test(50)[0])
    assert 0.3 < given["mask"].mean() < 0.7
    with torch.no_grad():
        logits = module(torch.from_numpy(given["patches"]), torch.from_numpy(given["mask"])).numpy()
    seen = run_float(graph_of(module), given)
    assert np.allclose(seen["head"], logits, atol=1e-4)
    shares = seen["shares"]
    assert np.all(shares[np.broadcast_to(given["mask"][:, None, None, :] == 0, shares.shape)] == 0)


def test_the_integers_answer_as_the_module_does(data: DataSet, module: PatchTransformer) -> None:
    graph = graph_of(module)
    net = quantized(graph, patches_of(data.calibration(128)))
    given = patches_of(data.test(200)[0])
    real, integer = run_float(graph, given)["head"], net.run(given, kernels="reference")
    assert np.mean(real.argmax(1) == integer.argmax(1)) > 0.95
    assert np.abs(real - integer).mean() < 0.05 * np.ptp(real)
    assert net.graph["gelu"].inputs == ("up",)
    assert float(net.graph["up"].output.quantized[1].scale) >= 8.2 / 32767 * 0.999
    kinds = {type(node.op) for node in net.graph}
    assert {int_ops.SoftmaxPolynomial, int_ops.GeluPolynomial, int_ops.LayerNorm, int_ops.MatMul} <= kinds


def test_a_seed_says_it_all_and_leaves_no_trace(data: DataSet) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (trained(data, epochs=1, images=256, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.training
