"""Channels that a batch norm has taken away are constants, and are quantized as such (eq. 23a)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify

X = np.random.default_rng(0).uniform(-1, 1, (64, 3, 8, 8)).astype(np.float32)
GAINS = {
    "zero": ([1.0, 1.0, 0.0, 0.0], [0.0, 0.2, 0.1, 0.0], (2, 3)),
    "subnormal": ([1.0, 1e-40, 1e-42, 0.5], [0.0, 0.3, 0.0, -0.2], (1, 2)),
    "tiny": ([1.0, 1e-29, 1e-31, 1e-34], [0.0, 0.3, 1e-20, 1e-34], (2, 3)),
    "small": ([1.0, 1e-9, 1e-20, 0.5], [0.0, 0.3, 1e-20, 0.0], ()),
}
OPTIONS = [{}, {"weights": 4, "activations": 4}, {"weights": 1}, {"per_channel": False}, {"ranges": "3sigma"}]
OPTIONS += [
    {"weight_ranges": "3sigma"},
    {"weight_ranges": "mse", "weights": 4},
    {"weight_ranges": "aciq", "per_channel": False},
]


def network(gains: list[float], shifts: list[float], kind: str = "conv") -> nn.Module:
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)]
    if kind == "alone":  # nothing before it to fold into
        first = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)]
    module = nn.Sequential(*first, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)).eval()
    norm = next(part for part in module if isinstance(part, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gains))
        norm.bias.copy_(torch.tensor(shifts))
    return module


@pytest.mark.parametrize("kind", ["conv", "alone"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", GAINS)
def test_net_is_exact_and_close(case: str, options: dict[str, int], kind: str) -> None:
    gains, shifts, _ = GAINS[case]
    module = network(gains, shifts, kind)
    net = labkit.quantize(module, X, **options)  # type: ignore[arg-type]
    report = labkit.verify(net, module, X)
    assert report.passed, report
    assert np.array_equal(net.run(X), net.run(X, kernels="reference"))
    if not options:
        expected = module(torch.from_numpy(X)).detach().numpy()
        assert np.abs(net.run(X) - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("case", GAINS)
def test_vanished_channels_are_known_and_give_their_bias(case: str) -> None:
    gains, shifts, gone = GAINS[case]
    module = network(gains, shifts)
    graph = simplify(from_torch(module, (3, 8, 8)))
    op = graph["0"].op
    assert op.vanished == gone  # type: ignore[union-attr]
    net = labkit.quantize(module, X)
    node = net.graph["0"]
    spec, params = node.output.quantized
    for channel in gone:
        assert not op.weight[channel].any()  # type: ignore[union-attr]
        assert not node.op.weight.values[channel].any()  # type: ignore[union-attr]
        bias = float(op.bias[channel])  # type: ignore[union-attr,index]
        wanted = np.clip(np.rint(max(bias, 0.0) / float(params.scale)) + int(params.zero_point), spec.qmin, spec.qmax)
        assert set(np.unique(net.trace(X)["0"][:, channel])) == {int(wanted)}


def test_channel_of_zeros_in_the_module_is_refused_though_a_batch_norm_follows() -> None:
    module = network([1.0] * 4, [0.1] * 4)
    with torch.no_grad():
        module[0].weight[2] = 0  # type: ignore[index,operator]
    with pytest.raises(QuantizationError, match=r"0, weights: .*channel 2 holds only zeros"):
        labkit.quantize(module, X)


def test_layer_of_which_nothing_is_left_needs_a_scale_for_each_channel() -> None:
    module = network([0.0] * 4, [0.1, 0.2, 0.3, 0.0])
    with pytest.raises(QuantizationError, match=r"0, weights: .*every value is 0"):
        labkit.quantize(module, X, per_channel=False)
    assert labkit.verify(labkit.quantize(module, X), module, X).passed
