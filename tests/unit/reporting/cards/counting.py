"""Parameters and multiply-accumulates of a torch module, counted by hooks on its layers."""

from __future__ import annotations

import math

import torch
from torch import nn


def macs_by_hooks(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer that runs, for one image of ``shape``."""
    found: dict[str, int] = {}
    hooks = []

    def counter(name: str):
        def count(layer: nn.Module, _: object, result: torch.Tensor) -> None:
            one = (
                math.prod(layer.kernel_size) * layer.in_channels // layer.groups
                if isinstance(layer, nn.Conv2d)
                else layer.in_features
            )
            found[name] = found.get(name, 0) + one * result[0].numel()

        return count

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(counter(name)))
    place = next(module.parameters()).device
    with torch.no_grad():
        module.eval()(torch.zeros(1, *shape, device=place))
    for hook in hooks:
        hook.remove()
    return found


def parameters_after_folding(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Weights, and a bias for each output of a layer that has one or that a batch norm follows by name."""
    ran = macs_by_hooks(module, shape)
    layers = [(name, layer) for name, layer in module.named_modules() if name in ran]
    norms = sum(part.num_features for part in module.modules() if isinstance(part, nn.BatchNorm2d))
    return sum(layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel()) for _, layer in layers) + norms
