"""The nets are what their names say, the same each time, and their activations are alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labkit
from labkit.benchmark.nets import BATCHES, NETS, Subject, subject
from labkit.data.dataset import DataSet
from labkit.errors import InputError
from labkit.graph.costs import costs


def test_resnet20_is_the_same_each_time_and_alive(digits: DataSet, resnet20: Subject) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again = resnet20, subject("resnet20", digits)
    assert torch.equal(torch.random.get_rng_state(), before), "a benchmark must not disturb other random numbers"
    for (name, a), b in zip(first.module.state_dict().items(), again.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    net = labkit.quantize(first.module, first.calibration[:16])
    assert costs(net.graph).total_macs == 40_813_184
    for name, tensor in net.trace(first.images[:2], kernels="reference").items():
        if tensor.dtype != np.float32 and name != "x":
            assert len(np.unique(tensor)) > 10, f"{name} is nearly constant, so nothing of it would be tested"


def test_batches_repeat_the_images(digits: DataSet) -> None:
    lenet = subject("lenet", digits)
    batch = lenet.batch(len(lenet.images) + 2)
    assert batch.flags.c_contiguous
    assert np.array_equal(batch[-2:], lenet.images[:2])
    assert len(np.unique(lenet.images.reshape(len(lenet.images), -1), axis=0)) == len(lenet.images)


def test_unknown_net_is_refused(digits: DataSet) -> None:
    assert set(BATCHES) == set(NETS)
    with pytest.raises(InputError, match="choose among lenet, resnet20, resnet18, mobilenet_v2"):
        subject("alexnet", digits)
