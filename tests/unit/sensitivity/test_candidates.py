"""Candidate weights are what the library's own roundings give."""

from __future__ import annotations

import numpy as np
import pytest
from unit.sensitivity.nets import images, objective

from labkit.errors import InputError, QuantizationError
from labkit.graph.ir import FloatGraph
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import quantize_weight
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.candidates import BITS, Candidates, nearest_candidates, rounded_candidates


def graph(name: str = "branched") -> FloatGraph:
    import torch

    return objective(name, count=1, dtype=torch.float32).graph


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("ranges", ["minmax", "3sigma"])
def test_nearest_is_that_of_conversion(ranges: str, per_channel: bool) -> None:
    net = graph()
    found = nearest_candidates(net, ranges=ranges, per_channel=per_channel)
    assert found.bits == BITS
    for layer in found.layers:
        for bits in BITS:
            spec = BitPlan.uniform(net, bits, per_channel=per_channel).weight_spec(layer)
            op = net[layer].op
            wanted = quantize_weight(layer, op.weight, spec, ranges).dequantized()  # type: ignore[union-attr]
            assert np.array_equal(found.weights[layer][bits], wanted)


@pytest.mark.parametrize("per_channel", [True, False])
def test_mse_ranges_have_the_smaller_squared_error(per_channel: bool) -> None:
    net = graph()
    plain, better = (nearest_candidates(net, (2, 3), ranges, per_channel) for ranges in ("minmax", "mse"))
    for layer in plain.layers:
        errors = [np.square(found.changes(net, layer)).sum() for found in (plain, better)]
        assert errors[1] < errors[0]


def test_more_bits_change_weights_less() -> None:
    net = graph()
    found = nearest_candidates(net, (8, 2, 5))
    assert found.bits == (2, 5, 8)
    for layer in found.layers:
        sizes = np.square(found.changes(net, layer)).reshape(3, -1).sum(1)
        assert (np.diff(sizes) < 0).all()


def test_other_roundings_are_taken_as_they_are() -> None:
    net, told = graph(), []
    x = images((2, 4, 4), 64)
    calibration = calibrate(net, x)
    found = rounded_candidates(
        net, calibration, x, (2, 4), "descent", seed=1, progress=lambda a, b: told.append((a, b))
    )
    near = nearest_candidates(net, (2, 4), "mse")
    assert found.bits == (2, 4)
    assert told[-1][0] == told[-1][1]
    for layer in found.layers:
        assert found.weights[layer][2].shape == near.weights[layer][2].shape
    assert any(not np.array_equal(found.weights[name][2], near.weights[name][2]) for name in found.layers)
    again = rounded_candidates(net, calibration, x, (2, 4), "descent", seed=1)
    assert all(np.array_equal(found.weights[n][b], again.weights[n][b]) for n in found.layers for b in found.bits)


def test_what_does_not_fit_is_refused() -> None:
    net = graph()
    with pytest.raises(InputError, match="minmax, 3sigma, mse"):
        nearest_candidates(net, ranges="max")
    with pytest.raises(QuantizationError, match="9"):
        nearest_candidates(net, (9,))
    one = np.zeros((3, 16), np.float32)
    with pytest.raises(InputError, match="the same bits"):
        Candidates({"fc": {2: one}, "stem": {3: one}})
    with pytest.raises(QuantizationError, match="bits must be"):
        Candidates({"fc": {}})
    with pytest.raises(InputError, match=r"shape \(3, 15\)"):
        Candidates({"fc": {2: one[:, :15]}}).changes(net, "fc")
