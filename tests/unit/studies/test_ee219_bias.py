"""The bias of the last layer: left out, left unscaled, and beyond int32."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from labkit.graph import int_ops
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import run_simulated, simulate_weights
from labkit.studies.ee219.bias import overflow, unscaled_bias, without_bias
from labkit.studies.ee219.steps import STEPS, answers, float_answers
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, logits, open_lab
from labkit.studies.study import Settings


@cache
def lab(net: str = "lenet-bias") -> Lab:
    return redrawn(open_lab(net, Settings.short()), Settings.short(), 0)


def test_without_bias_the_logits_lack_it() -> None:
    bias = lab().graph["fc3"].op.bias  # type: ignore[union-attr]
    assert bias is not None
    assert np.abs(bias).max() > 0
    gap = logits(lab().graph, lab().x) - logits(without_bias(lab().graph), lab().x)
    np.testing.assert_allclose(gap, np.broadcast_to(bias, gap.shape), atol=1e-5)


def test_unscaled_bias_is_added_to_integer_sums_as_it_is() -> None:
    graph = lab().graph
    plan = BitPlan.uniform(graph, 8, 8, per_channel=False, activation_scheme="symmetric")
    net = convert(graph, lab().calibration, plan)
    changed = convert(graph, lab().calibration, plan, {}, unscaled_bias(graph, net))
    one, other = net["fc3"].op, changed["fc3"].op
    assert isinstance(one, int_ops.Linear) and isinstance(other, int_ops.Linear)
    assert np.array_equal(one.weight.values, other.weight.values)
    assert other.bias.tolist() == np.rint(graph["fc3"].op.bias).tolist()  # type: ignore[union-attr]
    simulated = run_simulated(simulate_weights(graph, net, "unscaled"), net, lab().x)
    step = float(net["fc3"].output.quantized[1].scale)
    assert np.abs(IntegerNet(changed).run(lab().x) - simulated).max() <= 1.01 * step


@pytest.mark.parametrize("exponent", [0, 10, 20, 30, 40])
def test_overflowing_biases_are_saved_by_a_larger_weight_scale(exponent: int) -> None:
    found = overflow(lab(), exponent, images=32)
    bits = np.array([found.needed], object) & 0xFFFFFFFF
    assert found.wrapped == int(bits.astype(np.uint32).view(np.int32)[0])
    assert abs(found.taken) <= 2**30 + 1
    assert (found.enlarged > 1.001) == (abs(found.needed) > 2**30)
    if abs(found.needed) < 2**24:
        assert found.taken == pytest.approx(found.needed, abs=max(1, 1e-6 * abs(found.needed)))
    if exponent:  # the channel is next to constant, and its bias right to half a step and a little
        assert found.taken_steps < 0.7
    if abs(found.needed) > 2**38:  # what is left in 32 bits is next to nothing: the bias is lost
        bias = np.abs(lab().graph["fc3"].op.bias).max()  # type: ignore[union-attr]
        low, high = lab().calibration.ranges["fc3"]
        assert found.wrapped_steps == pytest.approx(bias / ((high - low) / 255), rel=0.02)


def test_every_step_has_its_answers() -> None:
    found = float_answers(lab("lenet"), lab()) | answers(lab("lenet"), lab())
    assert set(found) == set(STEPS)
    assert all(classes.shape == lab().labels.shape for classes in found.values())
    assert np.array_equal(found["float"], logits(lab("lenet").graph, lab("lenet").x).argmax(1))
    assert np.mean(found["engine"] == found["both"]) > 0.98
    assert np.mean(found["bias engine"] == found["bias quantized"]) > 0.98
    assert np.array_equal(found["bias unscaled"], found["bias dropped"]) or np.mean(
        found["bias unscaled"] == found["bias dropped"]
    ) > np.mean(found["bias quantized"] == found["bias dropped"])
