"""Networks without training: the same each time, and alive to the last layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from labkit.models import build
from labkit.models.settled import settled

X = np.random.default_rng(0).normal(size=(6, 3, 32, 32)).astype(np.float32)


def test_the_seed_decides_and_nobody_else_is_disturbed() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = settled(lambda: build("resnet20"), X), settled(lambda: build("resnet20"), X), settled(
        lambda: build("resnet20"), X, seed=1)  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), before)
    states = [module.state_dict() for module in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    assert not any(part.training for part in first.modules())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2-small"])
def test_statistics_are_those_of_the_images(name: str) -> None:
    """In evaluation mode each batch norm puts out what it would in training: its own mean and spread."""
    module = settled(lambda: build(name), X)
    seen: dict[str, torch.Tensor] = {}
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for key, part in norms.items():
        part.register_forward_hook(lambda _, __, y, key=key: seen.update({key: y}))  # type: ignore[misc]
    with torch.no_grad():
        module(torch.from_numpy(X))
    assert len(seen) == len(norms) > 10
    for key, part in norms.items():
        assert torch.allclose(seen[key].mean((0, 2, 3)), part.bias, atol=0.1), key  # unbiased variances: n - 1
        assert torch.allclose(seen[key].std((0, 2, 3)), part.weight, rtol=0.25), key


def test_a_net_without_batch_norm_is_only_seeded() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = build("lenet").state_dict()
    found = settled(lambda: build("lenet"), X, seed=3).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_bias_is_left_at_zero() -> None:
    def made() -> nn.Module:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        nn.init.zeros_(module[0].bias)
        return module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        as_drawn = made()[2].bias.detach().clone()
    found = settled(made, X)
    assert found[0].bias.abs().min() > 0
    assert torch.equal(found[2].bias, as_drawn)
