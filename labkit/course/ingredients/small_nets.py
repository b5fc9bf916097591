"""Ingredients that are small PyTorch networks, with weights given in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

__all__ = ["two_linear_layers"]


def two_linear_layers(first: NDArray[np.float32], second: NDArray[np.float32]) -> nn.Sequential:
    """A network of the layers ``first``, ``relu`` and ``second``, without biases, in evaluation mode.

    Parameters
    ----------
    first, second : float32 [H, I] and [O, H], the weights of the two linear layers
    """
    import torch
    from torch import nn

    hidden, inputs = first.shape
    net = nn.Sequential()
    net.add_module("first", nn.Linear(inputs, hidden, bias=False))
    net.add_module("relu", nn.ReLU())
    net.add_module("second", nn.Linear(hidden, len(second), bias=False))
    with torch.no_grad():
        net.get_submodule("first").weight.copy_(torch.from_numpy(first))  # type: ignore[operator]
        net.get_submodule("second").weight.copy_(torch.from_numpy(second))  # type: ignore[operator]
    return net.eval()
