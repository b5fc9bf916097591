"""Simulated quantization against the integer net whose grids it uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.quantization.nets import branches, images

import labkit
from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.simulate import run_simulated, simulate_weights

MODULE, X = branches(), images(40)
NET = labkit.quantize(MODULE, X)
GRAPH = simplify(from_torch(MODULE, (3, 8, 8)))


def test_float_graphs_compute_the_module() -> None:
    with torch.no_grad():
        wanted = MODULE(X).numpy()
    np.testing.assert_allclose(run_float(GRAPH, {"x": X.numpy()})["fc"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", ["float", "quantized"])
def test_simulation_is_the_integer_net_but_for_rare_steps(bias: str) -> None:
    simulated = run_simulated(simulate_weights(GRAPH, NET.graph, bias), NET.graph, X.numpy())
    integer = NET.run(X, kernels="reference")
    step = float(NET.graph["fc"].output.quantized[1].scale)
    steps = np.abs(simulated - integer) / step
    assert steps.max() < 3.5
    assert np.mean(steps < 0.5) > 0.5


def test_weights_only() -> None:
    simulated = simulate_weights(GRAPH, NET.graph)
    for name in ("stem", "depthwise", "fc"):
        wanted = NET.graph[name].op.weight.dequantized()  # type: ignore[union-attr]
        assert np.array_equal(simulated[name].op.weight, wanted)  # type: ignore[union-attr]
        assert not np.array_equal(simulated[name].op.weight, GRAPH[name].op.weight)  # type: ignore[union-attr]
        assert np.array_equal(simulated[name].op.bias, GRAPH[name].op.bias)  # type: ignore[union-attr]
    left = run_simulated(simulated, NET.graph, X.numpy(), activations=False)
    assert np.array_equal(left, run_float(simulated, {"x": X.numpy()})["fc"])


def test_a_bias_left_unscaled_is_worth_next_to_nothing() -> None:
    unscaled, quantized = (simulate_weights(GRAPH, NET.graph, bias)["fc"].op.bias for bias in ("unscaled", "quantized"))  # type: ignore[union-attr]
    real = GRAPH["fc"].op.bias  # type: ignore[union-attr]
    np.testing.assert_allclose(quantized, real, atol=1e-4)
    assert np.abs(unscaled).max() < 0.001 * np.abs(real).max()


def test_an_unknown_way_of_the_bias_is_refused() -> None:
    with pytest.raises(InputError, match="bias must be one of float, unscaled, quantized, got 'none'"):
        simulate_weights(GRAPH, NET.graph, "none")
