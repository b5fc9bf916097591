"""Numbers rounded to a grid and back, with a gradient: what stands in for the integer engine during training.

Rounding has the derivative 0 almost everywhere; the straight-through estimator takes 1 in its place, and 0 where a number
was clipped (Bengio et al. 2013). With ``x`` the number, ``s`` the scale and ``l`` the level that it is rounded to, the result
``s l`` has the derivative ``l - x / s`` by the scale where nothing was clipped, and the end of the grid where it was (Esser et
al. 2020, equation 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labkit.quantization.qat.kernels import fake_quantize_backward, fake_quantize_forward

__all__ = ["Levels", "fake_quantize", "reference", "round_through", "scale_gradient"]


@dataclass(frozen=True)
class Levels:
    """The ends of a grid as integers less the zero point: what was clipped is ``low`` or ``high`` times the scale.

    rounding_counts : whether the scale also has a derivative where nothing was clipped; PACT's has none (Choi et al. 2018,
        equation 3).
    """

    low: int
    high: int
    rounding_counts: bool = True


def round_through(x: torch.Tensor) -> torch.Tensor:
    """``x``, float of any shape, rounded, ties to even, with the derivative 1; the shape and dtype of ``x``."""
    return _RoundThrough.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``x`` itself, float of any shape, to the last bit, with its gradient multiplied by ``factor``."""
    return _ScaleGradient.apply(x, factor)  # type: ignore[no-any-return, no-untyped-call]


def reference(x: torch.Tensor, scale: torch.Tensor, levels: Levels) -> torch.Tensor:
    """``x`` on the grid, as `fake_quantize`, in PyTorch's own operations: slower, and what defines it.

    Parameters
    ----------
    x : float32 of any shape
    scale : float32, a scalar or broadcast against ``x``
    levels : the grid
    """
    exact = x / (scale if levels.rounding_counts else scale.detach())
    if levels.rounding_counts:
        return torch.clamp(round_through(exact), levels.low, levels.high) * scale
    nearest = torch.round(exact)
    inside = (nearest >= levels.low) & (nearest <= levels.high)
    clipped = torch.clamp(nearest, levels.low, levels.high).detach()
    return torch.where(inside, round_through(exact) * scale.detach(), clipped * scale)


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, levels: Levels) -> torch.Tensor:
    """``x`` on the grid: ``scale`` times the nearest whole number (ties to even), clipped to ``levels``.

    Gradients reach ``x``, and ``scale`` where it wants one.

    Parameters
    ----------
    x : float32; the kernels take what lies densely in memory, others go through `reference`
    scale : float32 scalar
    levels : the grid

    Returns
    -------
    float32, as ``x``
    """
    dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    if x.device.type != "cpu" or x.dtype != torch.float32 or not dense:
        return reference(x, scale, levels)
    return _FakeQuantize.apply(x, scale, levels)  # type: ignore[no-any-return, no-untyped-call]


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        return slope * ctx.factor, None


class _FakeQuantize(torch.autograd.Function):
    """`reference` by two kernels."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, levels: Levels) -> torch.Tensor:
        out = torch.empty_like(x)
        ctx.save_for_backward(x, scale)
        ctx.levels = levels
        fake_quantize_forward(_flat(x), *_constants(scale, levels), _flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, scale = ctx.saved_tensors
        same = torch.empty_like(x)  # in the memory order of x
        same.copy_(slope)
        out, by_scale = torch.empty_like(x), torch.empty_like(x)
        share = np.float32(ctx.levels.rounding_counts)
        constants = _constants(scale, ctx.levels)
        fake_quantize_backward(_flat(x), _flat(same), *constants, share, _flat(out), _flat(by_scale))
        if not ctx.needs_input_grad[1]:
            return out, None, None
        return out, torch.dot(_line(same), _line(by_scale)).reshape(scale.shape), None


def _constants(scale: torch.Tensor, levels: Levels) -> tuple[np.float32, np.float32, np.float32]:
    return np.float32(scale.item()), np.float32(levels.low), np.float32(levels.high)


def _line(x: torch.Tensor) -> torch.Tensor:
    """The numbers of ``x`` as they lie in memory."""
    return x.detach().as_strided((x.numel(),), (1,))


def _flat(x: torch.Tensor) -> Any:
    return _line(x).numpy()
