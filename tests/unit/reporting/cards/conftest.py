from __future__ import annotations

import numpy as np
import pytest
from unit.quantization.nets import branches, images

import labkit
from labkit.reporting.cards.measure import CardData, measure
from labkit.reporting.cards.results import NetworkCard

LENET_IMAGES = 60


@pytest.fixture(scope="session")
def lenet_card() -> NetworkCard:
    """The shipped LeNet on some of the digits, with an accuracy over 150 of them."""
    digits = labkit.data.load("mnist5k")
    x, labels = digits.test(150)
    parts = ((x[start : start + 70], labels[start : start + 70]) for start in (0, 70, 140))
    data = CardData("digits", digits.calibration(64), 64, x[:LENET_IMAGES], 20, parts, len(x))
    module = labkit.models.load("lenet", data="mnist5k")
    return measure("lenet", module, data, weights="shipped", command="labkit card lenet")


@pytest.fixture(scope="session")
def branches_card() -> NetworkCard:
    """A net with batch norm, a residual add, a depthwise convolution and a concatenation; no labels."""
    seen, x = images(16).numpy(), images(9, seed=1).numpy()
    return measure("branches", branches(), CardData("random", np.array_split(seen, 3), len(seen), x))
