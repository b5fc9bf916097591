"""A module whose numbers its operations do not explain is refused, whatever hides behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import labkit
from labkit.errors import UnsupportedOperation
from labkit.frontends.torch_fx import from_torch

SHAPE = (3, 8, 8)
WORDS = "computes something else"


class PreActivation(nn.Module):
    """An ordinary pre-activation block whose shortcut is an alias of the tensor that the ReLU overwrites."""

    def __init__(self, shortcut: nn.Module, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=inplace)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        kept = self.shortcut(x)
        return self.conv(self.relu(x)) + kept


class Tripled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


@pytest.mark.parametrize("shortcut", [nn.Identity(), nn.Dropout()], ids=["identity", "dropout"])
def test_an_alias_of_an_overwritten_tensor(shortcut: nn.Module) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedOperation, match=rf"^(add|shortcut): .*{WORDS}.*inplace"):
        from_torch(PreActivation(shortcut, inplace=True), SHAPE)
    from_torch(PreActivation(shortcut, inplace=False), SHAPE)


def test_a_hook() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    from_torch(module, SHAPE)
    module[0].register_forward_hook(lambda part, inputs, output: output * 2)
    with pytest.raises(UnsupportedOperation, match=f"^0: .*{WORDS}.*hook"):
        from_torch(module, SHAPE)


def test_a_subclass_with_a_forward_of_its_own() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedOperation, match=r"^(0|conv2d): "):
        from_torch(nn.Sequential(Tripled(3, 4, 3), nn.ReLU()), SHAPE)


def test_a_module_in_training_mode_is_read_as_at_inference() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    labkit.quantize(module, torch.randn(8, *SHAPE))
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
