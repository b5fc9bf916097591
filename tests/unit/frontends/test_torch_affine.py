"""Every channel of the input times a number plus a number: read off the calls here, measured there, and the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity.zoo import SHAPE, conv, net
from torch import nn

import labkit
from labkit.errors import UnsupportedOperation
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_affine import channel_affine
from labkit.frontends.torch_fx import from_torch, trace_module
from labkit.graph import float_ops, int_ops
from labkit.graph.passes import simplify
from labkit.parity.torch_affine import channel_map

GAINS, SHIFTS = (0.458, -0.7, 0.0), (-0.03, 0.25, 1.5)
Channels = Callable[[torch.Tensor], list[torch.Tensor]]


def joined(channels: Channels, dim: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return net(lambda s, x: s.conv(torch.cat(channels(x), dim)), conv=conv()).eval()


def each(function: Callable[[torch.Tensor, int], torch.Tensor], order: tuple[int, ...] = (0, 1, 2)) -> Channels:
    return lambda x: [function(x, c) for c in order]


FORMS: dict[str, tuple[nn.Module, tuple[float, ...], tuple[float, ...]]] = {
    "torchvision": (joined(each(lambda x, c: torch.unsqueeze(x[:, c], 1) * GAINS[c] + SHIFTS[c])), GAINS, SHIFTS),
    "slices that keep the axis": (joined(each(lambda x, c: x[:, c : c + 1] * GAINS[c] + SHIFTS[c])), GAINS, SHIFTS),
    "numbers first, axes from the end": (
        joined(each(lambda x, c: SHIFTS[c] + GAINS[c] * x[:, c, :, :].unsqueeze(-3)), -3),
        GAINS,
        SHIFTS,
    ),
    "functions": (
        joined(each(lambda x, c: torch.add(torch.mul(x[:, c].unsqueeze(1), GAINS[c]), SHIFTS[c]))),
        GAINS,
        SHIFTS,
    ),
    "gains alone": (joined(each(lambda x, c: x[:, c].unsqueeze(1) * GAINS[c])), GAINS, (0.0, 0.0, 0.0)),
    "shifts alone": (joined(each(lambda x, c: x[:, c : c + 1] + SHIFTS[c])), (1.0, 1.0, 1.0), SHIFTS),
    "whole numbers": (joined(each(lambda x, c: x[:, c : c + 1] * 2 + 1)), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_becomes_a_depthwise_convolution(form: str) -> None:
    module, gains, shifts = FORMS[form]
    graph = from_torch(module, SHAPE)
    assert [node.name for node in graph] == ["x", "cat", "conv"]
    op = simplify(graph)["cat"].op
    assert isinstance(op, float_ops.Conv2d)
    assert op.groups == 3 and op.bias is not None
    np.testing.assert_array_equal(op.weight.reshape(-1), np.float32(gains))
    np.testing.assert_array_equal(op.bias, np.float32(shifts))
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = module(x).numpy()
    np.testing.assert_allclose(run_float(simplify(graph), {"x": x.numpy()})["conv"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tier", ["numba", "reference"])
def test_its_integers_are_verified(form: str, tier: str) -> None:
    module, *_ = FORMS[form]
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(2))
    net = labkit.quantize(module, x, weights=4)
    assert isinstance(net.graph["cat"].op, int_ops.Conv2d)
    report = labkit.verify(net, module, x, kernels=tier)
    assert report.passed, str(report)
    assert {"cat", "conv"} < {found.name for found in report.comparisons if found.kind == "tensor"}


def test_another_number_is_found() -> None:
    module, *_ = FORMS["torchvision"]
    other = joined(each(lambda x, c: torch.unsqueeze(x[:, c], 1) * GAINS[c] + (SHIFTS[c] + 0.01 * (c == 1))))
    x = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(2))
    report = labkit.verify(labkit.quantize(module, x), other, x)
    assert report.first is not None
    assert report.first.where == "cat.bias" and report.first.index == (1,)


@given(
    gains=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    shifts=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
)
def test_the_front_end_and_the_emulation_find_the_same_numbers(gains: list[float], shifts: list[float]) -> None:
    """One reads the calls, the other runs them on 0 and on 2**200."""
    traced = trace_module(joined(each(lambda x, c: x[:, c].unsqueeze(1) * gains[c] + shifts[c])), SHAPE)
    (cat,) = (node for node in traced.graph.nodes if node.name == "cat")
    read, measured = channel_affine(cat), channel_map(cat)
    assert read is not None and measured is not None
    assert (read.source, read.parts) == (measured.source, measured.parts)
    np.testing.assert_array_equal(np.float32(read.gains), measured.gain.float().numpy())
    np.testing.assert_array_equal(np.float32(read.shifts), measured.shift.float().numpy())


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "channels in another order": lambda: joined(each(lambda x, c: x[:, c : c + 1] * 2, (2, 1, 0))),
    "a channel twice": lambda: joined(each(lambda x, c: x[:, c : c + 1] * 2, (0, 0, 2))),
    "a product of two channels": lambda: joined(lambda x: [x[:, 0:1] * x[:, 1:2], x[:, 1:2], x[:, 2:3]]),
    "a part of each row": lambda: net(
        lambda s, x: s.conv(torch.cat([x[:, c : c + 1, :, 1:] for c in range(3)], 1)), conv=conv()
    ),
    "two channels at once": lambda: joined(lambda x: [x[:, 0:2] * 2, x[:, 2:3] * 2]),
    "a slice that is used elsewhere": lambda: net(
        lambda s, x: (lambda red: s.conv(torch.cat([red * 2, x[:, 1:2], x[:, 2:3]], 1)) * red)(x[:, 0:1]), conv=conv()
    ),
    "channels of another layer": lambda: net(
        lambda s, x: (lambda y: s.last(torch.cat([y[:, c : c + 1] * 2 for c in range(4)], 1)))(s.conv(x)),
        conv=conv(),
        last=conv(4, 2),
    ),
    "joined along the rows": lambda: net(
        lambda s, x: s.conv(torch.cat([x[:, 0:1], x[:, 1:2]], 2).flatten(2)), conv=nn.Conv1d(1, 2, 3)
    ),
    "a chunk": lambda: joined(each(lambda x, c: 2 * x.chunk(3, 1)[c])),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_parts_of_tensors_are_refused(what: str) -> None:
    module = OTHERS[what]().eval()
    with pytest.raises(UnsupportedOperation, match=r"^getitem\w*: taking a part of a tensor .* has no integer form"):
        from_torch(module, SHAPE)
