"""As test_planted_errors, for what multiplies, moves and ends: one mistake at a time, found where it was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity.nets import images, tiers
from parity.test_planted_errors import Change, of_op, of_requantizer, plus
from parity.zoo import Case, build, conv
from torch import nn

import labkit
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.kernels import reference
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet
from labkit.parity.report import Difference, ParityReport
from labkit.quantization.plan import BitPlan


class Net(nn.Module):
    """One of each operation, and every one of them read by another or leaving the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 6)
        self.gate = conv(6, 6, 1, 0)
        self.pool = nn.AdaptiveAvgPool2d((3, 5))
        self.pad = nn.ZeroPad2d((1, 0, 2, 0))
        self.up = nn.Upsample(scale_factor=(2, 1))
        self.line = nn.Conv1d(30, 4, 3)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.conv(x)
        scaled = y * self.gate(F.adaptive_avg_pool2d(y, 1))
        uneven = self.pad(self.pool(scaled))
        shuffled = uneven.permute(0, 3, 1, 2).reshape(x.size(0), 30, 6)
        logits = self.fc(F.max_pool1d(self.line(shuffled), 2, stride=1).flatten(1))
        return self.up(scaled), logits.softmax(1), logits.argmax(1)


CASE = Case("planted", Net, ())


@cache
def sound() -> tuple[IntegerNet, Any]:
    module = build(CASE, seed=3)
    with torch.no_grad():
        module.fc.weight *= 6  # shares that differ
    return labkit.quantize(module, images(32, seed=2), weights=4), module


def judged(net: IntegerNet, kernels: Any = "reference") -> tuple[ParityReport, Difference]:
    """The report on ``net`` against the sound module, which must have failed."""
    report = labkit.verify(net, sound()[1], images(), kernels=kernels)
    assert not report.passed
    assert report.first is not None
    return report, report.first


def test_sound_net_passes() -> None:
    net, module = sound()
    kinds = {type(node.op).__name__ for node in net.graph}
    assert kinds >= {"Multiply", "AdaptiveAveragePool2d", "Pad", "Transpose", "Reshape", "Softmax", "ArgMax"}
    assert "UpsampleNearest2d" in kinds
    for tier in ("reference", "numba"):
        assert labkit.verify(net, module, images(), kernels=tier).passed
        assert labkit.verify(net, None, images(), kernels=tier).passed


MANTISSA = of_requantizer(multiplier=lambda m: FixedPointMultiplier(plus((), 1)(m.mantissa), m.exponent))
EXPONENT = of_requantizer(multiplier=lambda m: FixedPointMultiplier(m.mantissa, plus((), 1)(m.exponent)))

PARAMETERS: dict[str, tuple[str, Change, str, tuple[int, ...], int]] = {
    # node, change, name in the report, index, and by how much the value differs
    "mantissa of a product": ("mul", MANTISSA, "mul.mantissa", (), 1),
    "exponent of a product": ("mul", EXPONENT, "mul.exponent", (), 1),
    "clamp of a product": ("mul", of_requantizer(clamp=lambda c: (c[0] + 1, c[1])), "mul.clamp", (0,), 1),
    "mantissa of uneven windows": ("pool", MANTISSA, "pool.mantissa", (), 1),
    "one exponential": ("softmax", of_op(table=plus(3, -1)), "softmax.table", (3,), -1),
    "an exponential that rounds to 0": ("softmax", of_op(table=plus(255, 1)), "softmax.table", (255,), 1),
    "clamp of a softmax": ("softmax", of_op(clamp=lambda c: (c[0], c[1] - 1)), "softmax.clamp", (1,), -1),
}


@pytest.mark.parametrize("tier", tiers())
@pytest.mark.parametrize("mistake", PARAMETERS)
def test_wrong_parameter(mistake: str, tier: str) -> None:
    name, change, where, index, difference = PARAMETERS[mistake]
    graph = sound()[0].graph
    nodes = tuple(change(node) if node.name == name else node for node in graph)
    report, first = judged(IntegerNet(replace(graph, nodes=nodes)), tier)
    assert (first.where, first.index) == (where, index)
    assert int(first.got) - int(first.expected) == difference
    [compared] = [found for found in report.comparisons if found.name == where]
    assert compared.differing == 1


# ---- execution: the operation, a wrong function for it, the node at which it must be found

Wrong = Callable[..., Any]


def _product_of_bare_integers(a: Any, b: Any, *, zero_points: Any, requantizer: Any) -> Any:
    return reference.multiply(a, b, zero_points=(0, zero_points[1]), requantizer=requantizer)


def _gate_of_the_wrong_image(a: Any, b: Any, **options: Any) -> Any:
    return reference.multiply(a, np.roll(b, 1, 0), **options)


def _padded_with_integer_zero(x: Any, *, padding: Any, zero_point: int) -> Any:
    return reference.pad(x, padding=padding, zero_point=0)


def _padded_on_the_other_side(x: Any, *, padding: Any, zero_point: int) -> Any:
    return reference.pad(x, padding=tuple((after, before) for before, after in padding), zero_point=zero_point)


def _repeated_in_blocks(x: Any, *, factor: Any) -> Any:
    return np.tile(x, (1, 1, *factor))


def _channels_last_order(x: Any, *, shape: Any) -> Any:
    return np.moveaxis(x, 1, -1).reshape(len(x), *shape)


def _inverse_order(x: Any, *, axes: Any) -> Any:
    return x.transpose(0, *(1 + np.argsort(axes)))


def _share_rounded_down(x: Any, *, axis: int, table: Any, bits: int, output_zero_point: int, clamp: Any) -> Any:
    integers = x.astype(np.int64)
    powers = table.astype(np.int64)[integers.max(1 + axis, keepdims=True) - integers]
    return np.clip((powers << bits) // powers.sum(1 + axis, keepdims=True) + output_zero_point, *clamp)


def _share_of_the_other_axis(x: Any, *, axis: int, **options: Any) -> Any:
    return np.moveaxis(reference.softmax(np.moveaxis(x, 1, 0)[None], axis=1, **options)[0], 0, 1)


def _last_of_ties(x: Any, *, axis: int, keepdims: bool) -> Any:
    flipped = np.flip(x, 1 + axis)
    return x.shape[1 + axis] - 1 - np.argmax(flipped, axis=1 + axis, keepdims=keepdims)


def _windows_of_one_size(x: Any, *, input_zero_point: int, output_size: Any, requantizer: Any) -> Any:
    """Every sum taken for that of a window of the largest area."""
    found = reference.adaptive_average_pool2d(
        x, input_zero_point=input_zero_point, output_size=output_size, requantizer=requantizer
    )
    wrong = np.array(found)
    wrong[:, :, 1] = requantizer.apply(x[:, :, 2:6, : found.shape[3]].astype(np.int32).sum(2) * 3, axis=1)
    return wrong


MISTAKES: dict[str, tuple[str, Wrong, str]] = {
    "forgotten zero point": ("multiply", _product_of_bare_integers, "mul"),
    "gate of the image before": ("multiply", _gate_of_the_wrong_image, "mul"),
    "integer 0 for real 0": ("pad", _padded_with_integer_zero, "pad"),
    "right for left": ("pad", _padded_on_the_other_side, "pad"),
    "the image repeated, not its pixels": ("upsample_nearest2d", _repeated_in_blocks, "up"),
    "reshape in the order of memory": ("reshape", _channels_last_order, "reshape"),
    "inverse order of axes": ("transpose", _inverse_order, "permute"),
    "shares cut off": ("softmax", _share_rounded_down, "softmax"),
    "shares over the images": ("softmax", _share_of_the_other_axis, "softmax"),
    "windows of one size": ("adaptive_average_pool2d", _windows_of_one_size, "pool"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_kernel(mistake: str) -> None:
    operation, function, node = MISTAKES[mistake]

    def wrong(*arrays: Any, **options: Any) -> Any:
        right = getattr(reference, operation)(*arrays, **options)
        result = np.asarray(function(*arrays, **options))
        return result.reshape(right.shape)

    report, first = judged(sound()[0], REFERENCE.with_override(operation, wrong))
    assert first.where == f"tensor {node}"
    [compared] = [found for found in report.comparisons if (found.kind, found.name) == ("tensor", node)]
    assert 0 < compared.differing <= compared.elements


def test_last_of_ties_instead_of_the_first() -> None:
    """On logits of two bits, where ties are common."""
    module = sound()[1]
    plan = labkit.quantize(module, images(32, seed=2)).graph.notes["plan"]
    coarse = BitPlan.from_json({**plan, "activations": {**plan["activations"], "fc": 2}})
    net = labkit.quantize(module, images(32, seed=2), plan=coarse)
    assert labkit.verify(net, module, images()).passed
    report = labkit.verify(net, module, images(), kernels=REFERENCE.with_override("argmax", _last_of_ties))
    assert report.first is not None
    assert report.first.where == "tensor argmax"
    assert int(report.first.got) > int(report.first.expected)
