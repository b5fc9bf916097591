"""Weights rounded to their grid while they are trained, and as integers afterwards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerTensor, QParams, QTensor, QuantSpec, quantize_tensor
from labkit.quantization.qat.fake_quantize import round_through, scale_gradient
from labkit.quantization.weight_rounding.grids import RowGrid, grid_spec, mse_grid

__all__ = ["integer_weight", "rounded_weight", "starting_grid"]


def starting_grid(weight: NDArray[np.float32], spec: QuantSpec, wide_up_to: int) -> RowGrid:
    """The grid with the least squared error of ``weight`` float32 [O, ...], where learned scales begin.

    Parameters
    ----------
    weight : batch norm folded in
    spec : of the bit plan
    wide_up_to : layers of so many bits and fewer get the mirrored set of levels
    """
    levels = "mirrored" if spec.bits <= wide_up_to else "narrow"
    return mse_grid(weight.reshape(len(weight), -1).astype(np.float64), grid_spec(spec, levels))


def rounded_weight(
    weight: torch.Tensor, scale: torch.Tensor | None, spec: QuantSpec, grid: RowGrid | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` on its grid, with the straight-through gradient, and the scale of each row or of all.

    Parameters
    ----------
    weight : float32 [O, ...], batch norm folded in
    scale : float32 [O] or [1], learned; None for the largest magnitude over the largest level, or the mean magnitude where
        there is one bit
    spec : of the bit plan
    grid : levels and zero points that go with a learned scale

    Returns
    -------
    float32 [O, ...], and float32 [O] or [1] without a gradient
    """
    rows = weight.reshape(len(weight), -1)
    if spec.is_binary:
        per_tensor = isinstance(spec.granularity, PerTensor)
        magnitude = rows.abs().mean().reshape(1, 1) if per_tensor else rows.abs().mean(1, keepdim=True)
        exact = rows / magnitude.detach()
        signs = torch.where(exact >= 0, 1.0, -1.0)
        rounded = (exact + (signs - exact).detach()) * magnitude
        return rounded.reshape(weight.shape), magnitude.detach().reshape(-1)
    if scale is None:
        largest = rows.detach().abs().amax() if isinstance(spec.granularity, PerTensor) else rows.detach().abs().amax(1)
        step = (largest / spec.qmax).clamp_min(torch.finfo(torch.float32).tiny).reshape(-1, 1)
        rounded = round_through(rows / step).clamp(-spec.qmax, spec.qmax) * step
        return rounded.reshape(weight.shape), step.reshape(-1)
    assert grid is not None
    count = rows.numel() / scale.numel()  # weights that share a scale
    step = scale_gradient(scale, 1 / float(np.sqrt(count * max(1, spec.qmax)))).reshape(-1, 1)
    low, high = (torch.from_numpy(end.astype(np.float32)) for end in (grid.low, grid.high))
    rounded = torch.clamp(round_through(rows / step), low, high) * step
    return rounded.reshape(weight.shape), step.detach().reshape(-1)


def integer_weight(weight: NDArray[np.float32], scale: NDArray[np.float32], grid: RowGrid) -> QTensor:
    """The integers of ``weight`` float32 [O, ...] at the learned ``scale`` float32 [O] or [1], levels as in ``grid``."""
    params = QParams(scale.reshape(grid.params.scale.shape), grid.params.zero_point)
    return quantize_tensor(weight, params, grid.spec)
