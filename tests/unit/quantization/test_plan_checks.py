"""A plan that does not fit is refused before an image is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan

torch.manual_seed(0)
MODULE = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
PLAN = BitPlan.uniform(simplify(from_torch(MODULE, (3, 8, 8))), 4, 8)


def images() -> Iterator[np.ndarray[Any, Any]]:
    """One batch, from which the shape is read, and then none that may be looked at."""
    yield np.zeros((2, 3, 8, 8), np.float32)
    raise AssertionError("the images were gone through")


@pytest.mark.parametrize(
    ("weights", "activations", "words"),
    [
        ({"0": 4}, PLAN.activations, "no weight bits for '3'; it names 0. Every layer"),
        ({}, PLAN.activations, "no weight bits for '0'; it names nothing"),
        (PLAN.weights, {"0": 8}, "no activation bits for 'input_1'"),
        ({**PLAN.weights, "conv9": 4}, PLAN.activations, "weights bits for 'conv9', which this network does not have"),
    ],
)
def test_names_are_checked_first(weights: dict[str, int], activations: dict[str, int], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        labkit.quantize(MODULE, images(), plan=BitPlan(weights, activations))


def test_unknown_key_is_named() -> None:
    with pytest.raises(QuantizationError, match="no key weight_rangs; it has weights, activations"):
        BitPlan.from_json({**PLAN.to_json(), "weight_rangs": "minmax"})
