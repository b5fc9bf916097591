"""The nets are what their names say, the same each time, and their activations are alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import labkit
from labkit.benchmark.nets import BATCHES, NETS, ResNet20, Subject, subject
from labkit.data.dataset import DataSet
from labkit.errors import InputError
from labkit.graph.costs import costs


def test_resnet20_is_the_one_of_the_paper() -> None:
    """Table 6 of He et al. 2015 gives 0.27 million parameters; the 1x1 shortcuts add 2,752."""
    net = ResNet20()
    layers = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([part for part in layers if getattr(part, "kernel_size", (0, 0)) != (1, 1)]) == 20
    assert sum(parameter.numel() for parameter in net.parameters()) == 272_474


def test_resnet20_is_seeded_and_alive(digits: DataSet, resnet20: Subject) -> None:
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
