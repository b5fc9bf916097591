"""The comparison of a fine-tuned network with its integers: nothing unexplained, and a planted fault is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from labkit import data, models
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.options import FineTuning, recipe
from labkit.quantization.qat.result import FineTuned
from labkit.quantization.qat.train import fine_tune
from labkit.studies.kit.agreement import agreement

DIGITS = data.load("mnist5k")
SHORT = {"epochs": 1, "batch_size": 25, "mirror": False}


def tuned(net: str, bits: tuple[int, int], options: FineTuning) -> FineTuned:
    module = models.load(net, data="mnist5k")
    plan = BitPlan.uniform(simplify(from_torch(module, (3, 32, 32))), *bits)
    x, labels = DIGITS.train()
    found = fine_tune(module, x[:50], labels[:50], plan, replace(options, **SHORT), calibration_images=32)
    assert found is not None
    return found


@pytest.mark.parametrize("net", ["lenet", "lenet-bias", "resnet20", "mobilenetv2-small"])
@pytest.mark.parametrize("bits", [(8, 8), (2, 4), (1, 3)])
@pytest.mark.parametrize("name", ["labkit", "jacob", "pact"])
def test_every_difference_lies_at_a_tie(net: str, bits: tuple[int, int], name: str) -> None:
    found = agreement(tuned(net, bits, recipe(name)), DIGITS.test(20)[0])
    assert found.elements > 100_000
    assert found.unexplained == 0
    assert found.largest <= 1
    assert found.differing <= found.elements / 10_000


@pytest.mark.parametrize("layer", ["conv2", "fc3"])
def test_a_weight_that_differs_is_not_explained(layer: str) -> None:
    found = tuned("lenet", (8, 8), recipe("lsq"))
    with torch.no_grad():
        found.trained.layer(layer).weight[0] += 3 * float(found.trained.weight_scales[found.trained._keys[layer]][0])
    assert agreement(found, DIGITS.test(20)[0]).unexplained > 0


def test_a_scale_that_differs_is_not_explained() -> None:
    found = tuned("lenet", (8, 8), recipe("lsq"))
    with torch.no_grad():
        found.trained.activation_scales[found.trained._keys["conv1"]] *= 1.02
    assert agreement(found, DIGITS.test(20)[0]).unexplained > 0
