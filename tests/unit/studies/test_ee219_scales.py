"""The factors of eqs. 4 to 6 hold to float precision, and rounded they give the integer engine's integers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from labkit.data import load as load_data
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import load
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.studies.ee219.scales import Factors, factors, scaled_outputs


@cache
def bench():  # type: ignore[no-untyped-def]
    graph = simplify(from_torch(load("lenet", "mnist5k"), (3, 32, 32)))
    images = load_data("mnist5k").calibration(64)
    plan = BitPlan.uniform(graph, 8, 8, per_channel=False, activation_scheme="symmetric")
    return graph, images, convert(graph, calibrate(graph, images), plan)


def test_factors_of_outputs_are_one_over_their_scales() -> None:
    _, _, net = bench()
    by = factors(net)
    for name, factor in (("conv1", by.first), ("conv2", by.second)):
        assert factor == pytest.approx(1 / float(net[name].output.quantized[1].scale), rel=1e-12)
    assert by.second_as_printed == pytest.approx(by.second / (by.w1 * by.out1) ** 2, rel=1e-12)


@pytest.mark.parametrize("by", [None, Factors(2.0, 3.0, 0.25, 5.0, 7.0), Factors(1e-3, 1e3, 11.0, 0.7, 0.3)])
def test_corrected_equation_holds_and_the_printed_one_does_not(by: Factors | None) -> None:
    graph, images, net = bench()
    by = by or factors(net)
    outputs = scaled_outputs(graph, images[:4], by)
    for name, factor in (("conv1", by.first), ("conv2", by.second)):
        scaled, plain = outputs[name]
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-12, atol=1e-12 * np.abs(scaled).max())
    scaled, plain = outputs["conv2"]
    assert np.abs(scaled - by.second_as_printed * plain).max() > 0.1 * np.abs(scaled).max()


def test_rounded_it_is_what_the_engine_computes() -> None:
    graph, images, net = bench()
    trace = IntegerNet(net).trace(images[:16])
    for name, (scaled, _) in scaled_outputs(graph, images[:16], factors(net), rounded=True).items():
        differing = trace[name].astype(np.float64) != scaled  # ties are rounded up there, to even here
        assert differing.mean() < 1e-3
        assert np.abs(trace[name] - scaled).max() <= 1
