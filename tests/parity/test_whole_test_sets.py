"""Every test image through every shipped full-schedule LeNet: the long form of what the demo certifies. `make test-full`."""

from __future__ import annotations

import pytest

import labkit
from labkit.data.cifar10 import find_cifar10

PLANS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W1A8": (1, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("bits", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("name", ["lenet", "lenet-bias"])
@pytest.mark.parametrize("kernels", ["numba", "reference"])
def test_all_digits(name: str, bits: tuple[int, int], kernels: str) -> None:
    certify(name, "mnist5k", bits, kernels, 1_000)


@pytest.mark.slow
@pytest.mark.skipif(find_cifar10(None) is None, reason="CIFAR-10 is not on this machine")
@pytest.mark.parametrize("bits", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("name", ["lenet", "lenet-bias", "lenet-short", "lenet-bias-short"])
def test_all_of_cifar10(name: str, bits: tuple[int, int]) -> None:
    certify(name, "cifar10", bits, "numba", 10_000)


def certify(name: str, data: str, bits: tuple[int, int], kernels: str, images: int) -> None:
    module, dataset = labkit.models.load(name, data=data), labkit.data.load(data)
    net = labkit.quantize(module, dataset.calibration(512), *bits)
    report = labkit.verify(net, module, dataset.test()[0], kernels=kernels)
    assert report.passed, str(report)
    assert report.images == images
