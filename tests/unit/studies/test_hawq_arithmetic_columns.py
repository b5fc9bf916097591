"""Counting a network's weights, MACs and plans: against numbers by hand and against all plans one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from labkit.models.brought import bring
from labkit.studies.hawq.counting import Counted, LayerCount, a_plan, all_plans, bops, count, megabytes, stride_first


class Small(nn.Module):
    """Two convolutions with a batch norm, a sum and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.fc(self.pool(x + self.second(x)).flatten(1))  # type: ignore[no-any-return]


def test_counts_by_hand() -> None:
    net = count(Small().eval(), (3, 10, 12))
    assert net.layers == (
        LayerCount("first", 8 * 3 * 9, 8, 8 * 3 * 9 * 120),
        LayerCount("second", 8 * 2 * 9, 0, 8 * 2 * 9 * 120),
        LayerCount("fc", 40, 5, 40),
    )
    assert (net.normed, net.activated, net.added) == (960, 960, 960)
    assert (net.parameters, net.buffers) == (216 + 8 + 16 + 144 + 40 + 5, 17)
    assert net.ends == {"first", "fc"}
    assert megabytes(net, 8) == (216 + 144 + 40) / 2**20
    assert bops(net, {"first": 8, "second": 4, "fc": 8}, 2) == pytest.approx(
        (216 * 8 + 144 * 4) * 120 * 2 / 1e9 + 640 / 1e9
    )


def made(layers: int, seed: int) -> Counted:
    generator = np.random.default_rng(seed)
    numbers = generator.integers(1, 9, (layers, 2)) * (6, 10)
    return Counted(tuple(LayerCount(f"l{i}", int(w), 0, int(m)) for i, (w, m) in enumerate(numbers)), 0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_all_plans_are_all_of_them(seed: int) -> None:
    net = made(9, seed)
    plans = all_plans(net)
    assert plans.counts.sum() == 2**7
    found: dict[tuple[float, float], int] = {}
    for choice in itertools.product((4, 8), repeat=7):
        bits = {"l0": 8, "l8": 8, **{f"l{i + 1}": b for i, b in enumerate(choice)}}
        at = round(megabytes(net, bits), 15), round(bops(net, bits, bits), 15)
        found[at] = found.get(at, 0) + 1
    counted = {
        (round(float(plans.sizes[w]), 15), round(float(plans.bops[m]), 15)): int(plans.counts[w, m])
        for w, m in np.argwhere(plans.counts)
    }
    assert counted == found


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_is_as_near_as_any(seed: int) -> None:
    net = made(8, seed)
    wanted = megabytes(net, 6), bops(net, 6, 6)

    def apart(chosen: frozenset[str]) -> float:
        bits = {layer.name: 4 if layer.name in chosen else 8 for layer in net.layers}
        return abs(megabytes(net, bits) / wanted[0] - 1) + abs(bops(net, bits, bits) / wanted[1] - 1)

    inner = [layer.name for layer in net.layers if layer.name not in net.ends]
    subsets = (frozenset(s) for n in range(len(inner) + 1) for s in itertools.combinations(inner, n))
    chosen = a_plan(net, *wanted)
    assert chosen <= set(inner)
    assert apart(chosen) == pytest.approx(min(map(apart, subsets)), abs=1e-12)


def test_stride_in_the_first_convolution() -> None:
    resnet = stride_first(bring("torchvision.models:resnet50"))
    assert resnet.layer3[0].conv1.stride == (2, 2)  # type: ignore[index, union-attr]
    assert resnet.layer3[0].conv2.stride == (1, 1)  # type: ignore[index, union-attr]
    assert resnet.layer1[0].conv1.stride == (1, 1)  # type: ignore[index, union-attr]
    net = count(resnet, (3, 224, 224))
    assert net.macs == 3_857_973_248  # 3.8 G in table 1 of He et al. 2015
    assert net.weights == 25_502_912
