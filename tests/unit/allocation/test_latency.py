"""Latencies measured on this machine: complete, additive on a binary grid, and good enough to predict a mixed plan."""

from __future__ import annotations

import numpy as np
import pytest
from unit.quantization.nets import images, small

from labkit.allocation.latency import latency, measured_latency
from labkit.engine.plan import Purpose
from labkit.errors import InputError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import build
from labkit.quantization.calibration import calibrate
from labkit.quantization.plan import BitPlan

GRAPH = simplify(from_torch(small(), (3, 8, 8)))
CALIBRATION = calibrate(GRAPH, images())
BATCH = images(4).numpy()


@pytest.mark.parametrize("purpose", list(Purpose))
def test_every_layer_and_width_has_an_entry(purpose: Purpose) -> None:
    told: list[tuple[int, int]] = []
    found = latency(GRAPH, CALIBRATION, BATCH, (1, 4, 8), purpose=purpose, rounds=3, progress=lambda *a: told.append(a))
    assert found.layers == ("0", "3") and found.bits == (1, 4, 8) and found.unit == "microseconds"
    assert np.all(found.values > 0) and found.fixed >= 0
    scaled = np.append(found.values, found.fixed) * 1024
    np.testing.assert_array_equal(scaled, np.round(scaled))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.notes["images"] == (4 if purpose is Purpose.SPEED else 1) and found.notes["rounds"] == 3


def test_a_mixed_plan_takes_about_what_its_entries_say() -> None:
    # Within 15 %, where a uniform plan measured in the same rounds says how fast a shared machine is just then.
    graph = simplify(from_torch(build("lenet"), (3, 32, 32)))
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.5, (8, 3, 32, 32)).astype(np.float32)
    calibration = calibrate(graph, x)
    uniform = BitPlan.uniform(graph)
    errors = []
    for _ in range(3):
        table = latency(graph, calibration, x, (2, 4, 8), rounds=9)
        plan = BitPlan({name: int(rng.choice(table.bits)) for name in table.layers}, uniform.activations)
        speed, measured = measured_latency(graph, calibration, x, [uniform, plan], rounds=9)
        assert 0.2 < table.uniform(8) / speed < 5
        errors.append(abs(table.total(plan.weights) / table.uniform(8) / (measured / speed) - 1))
        if errors[-1] < 0.15:
            return
    pytest.fail(f"predictions are off by {errors}")


def test_a_larger_layer_takes_longer() -> None:
    graph = simplify(from_torch(build("lenet"), (3, 32, 32)))
    x = np.zeros((8, 3, 32, 32), np.float32)
    x[0] = 1
    table = latency(
        graph, calibrate(graph, np.random.default_rng(1).normal(size=x.shape).astype(np.float32)), x, (8,), rounds=5
    )
    assert table.value("conv1", 8) > 5 * table.value("fc3", 8)  # 705,600 products against 640


def test_what_cannot_be_measured_is_refused() -> None:
    for wrong in (BATCH[:0], BATCH[0], BATCH[:, :2]):
        with pytest.raises(InputError, match=r"must have shape \(N, 3, 8, 8\), N 1 or more, got"):
            latency(GRAPH, CALIBRATION, wrong, (8,), rounds=1)
    with pytest.raises(QuantizationError, match="rounds must be 1 or more, got 0"):
        latency(GRAPH, CALIBRATION, BATCH, (8,), rounds=0)
    with pytest.raises(QuantizationError, match="nothing to measure"):
        measured_latency(GRAPH, CALIBRATION, BATCH, [])
    with pytest.raises(QuantizationError, match=r"weight bits must be an integer in 1\.\.8"):
        latency(GRAPH, CALIBRATION, BATCH, (9,), rounds=1)
