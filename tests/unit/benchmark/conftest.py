"""A LeNet to be timed, made once."""

from __future__ import annotations

import pytest

import labkit
from labkit.benchmark.nets import Subject, subject
from labkit.data.dataset import DataSet
from labkit.net import IntegerNet


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return labkit.data.load("mnist5k")


@pytest.fixture(scope="session")
def lenet(digits: DataSet) -> Subject:
    return subject("lenet", digits)


@pytest.fixture(scope="session")
def lenet_net(lenet: Subject) -> IntegerNet:
    return labkit.quantize(lenet.module, lenet.calibration)


@pytest.fixture(scope="session")
def resnet20(digits: DataSet) -> Subject:
    return subject("resnet20", digits)
