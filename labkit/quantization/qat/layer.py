"""A layer in training: its own parameters and those of the batch norm behind it, which is folded before weights are rounded."""

from __future__ import annotations

import torch
from torch import nn

from labkit.errors import InputError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode

__all__ = ["LEAST_FACTOR", "TrainableLayer", "normalised", "trainable_layer"]

LEAST_FACTOR = (
    1e-6  # of a folded batch norm: channels with a smaller one are the shift alone, and are not divided by it
)


class TrainableLayer(nn.Module):
    """The parameters of a convolution or linear layer and of the batch norm behind it, if there is one."""

    def __init__(
        self, op: float_ops.Conv2d | float_ops.Linear, norm: float_ops.BatchNorm2d | None = None, norm_name: str = ""
    ) -> None:
        super().__init__()
        self.op, self.norm = op, norm_name
        self.weight = nn.Parameter(torch.from_numpy(op.weight.copy()))
        self.bias = None if op.bias is None else nn.Parameter(torch.from_numpy(op.bias.copy()))
        self.mean: torch.Tensor
        self.variance: torch.Tensor
        self.epsilon = None if norm is None else norm.epsilon
        if norm is not None:
            self.gain = nn.Parameter(torch.from_numpy(norm.gamma.copy()))
            self.shift = nn.Parameter(torch.from_numpy(norm.beta.copy()))
            self.register_buffer("mean", torch.from_numpy(norm.mean.copy()))
            self.register_buffer("variance", torch.from_numpy(norm.variance.copy()))

    def factor(self) -> torch.Tensor | None:
        """What the folded batch norm multiplies each output by, float32 [O]; None without one."""
        return None if self.epsilon is None else self.gain / torch.sqrt(self.variance + self.epsilon)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight float32 [O, ...] and bias float32 [O], if there is one, with the batch norm folded in (eqs. 22 and 23)."""
        factor = self.factor()
        if factor is None:
            return self.weight, self.bias
        before = 0.0 if self.bias is None else self.bias
        weight = self.weight * factor.reshape([-1] + [1] * (self.weight.ndim - 1))
        return weight, self.shift + (before - self.mean) * factor


def trainable_layer(raw: FloatGraph, node: FloatNode) -> TrainableLayer:
    """The layer ``node`` of the simplified graph, with its parameters as the graph ``raw``, batch norms in place, has them."""
    op = raw[node.name].op
    if not isinstance(op, float_ops.Conv2d | float_ops.Linear):  # a batch norm that stands alone: folded already
        assert isinstance(node.op, float_ops.Conv2d | float_ops.Linear)
        fixed = TrainableLayer(node.op)
        for parameter in fixed.parameters():
            parameter.requires_grad_(False)
        return fixed
    norms = [raw[name] for name in node.carries if isinstance(raw[name].op, float_ops.BatchNorm2d)]  # one at most
    if not norms:
        return TrainableLayer(op)
    assert isinstance(norms[0].op, float_ops.BatchNorm2d)
    return TrainableLayer(op, norms[0].op, norms[0].name)


def normalised(layer: TrainableLayer, value: torch.Tensor) -> torch.Tensor:
    """``value`` normalised by the statistics of this batch, which are remembered.

    Parameters
    ----------
    layer : one with a batch norm
    value : float32 [N, O, ...], the sums of its rounded folded weights, without a bias

    Returns
    -------
    float32 [N, O, ...], gain and shift applied

    Raises
    ------
    InputError
        There is one number a channel only.

    Notes
    -----
    The weights hold the factor f = gain / sqrt(variance + epsilon) of the statistics so far. The mean and variance of
    the layer itself are therefore those of ``value`` over f and f squared (Krishnamoorthi 2018, section 3.2.2).
    """
    axes = [axis for axis in range(value.ndim) if axis != 1]
    shape = [1, -1] + [1] * (value.ndim - 2)
    epsilon, factor = layer.epsilon, layer.factor()
    assert epsilon is not None and factor is not None
    factor = factor.detach()
    count = value.numel() / value.shape[1]
    if count < 2:
        raise InputError(
            "A batch norm that is not frozen needs two numbers a channel, and the batch has one image. Give batch_size of at "
            "least 2, or freeze batch norms from the start with freeze_at=0."
        )
    mean, variance = value.mean(axes), value.var(axes, unbiased=False)
    with torch.no_grad():
        usable = factor.abs() > LEAST_FACTOR
        safe = torch.where(usable, factor, torch.ones_like(factor))
        before = 0.0 if layer.bias is None else layer.bias
        seen_mean = torch.where(usable, mean / safe + before, layer.mean)
        seen_variance = torch.where(usable, variance / safe.square() * count / (count - 1), layer.variance)
        layer.mean.lerp_(seen_mean, 0.1)
        layer.variance.lerp_(seen_variance, 0.1)
    spread = torch.where(usable, variance + epsilon * factor.square(), torch.ones_like(variance))
    sign = torch.where(usable, torch.sign(factor), torch.zeros_like(factor)).reshape(
        shape
    )  # without gain: the shift alone
    centred = (value - mean.reshape(shape)) / torch.sqrt(spread).reshape(shape)
    return centred * sign * layer.gain.reshape(shape) + layer.shift.reshape(shape)
