"""The KL range of a tensor, by any of four searches that all call themselves entropy calibration."""

from __future__ import annotations

import numpy as np

from labkit.arithmetic.affine import QuantSpec
from labkit.errors import QuantizationError
from labkit.quantization.clipping.divergence import KLCurve
from labkit.quantization.clipping.interval import check_grid, cut_to_seen, magnitude_levels
from labkit.quantization.clipping.kl_onnxruntime import onnxruntime_curve
from labkit.quantization.clipping.kl_ppq import ppq_curve
from labkit.quantization.clipping.kl_tensorrt import tensorrt_curve
from labkit.quantization.clipping.kl_toolkit import toolkit_curve
from labkit.quantization.histogram import Histogram

__all__ = ["VARIANTS", "kl_curve", "kl_range"]

VARIANTS = ("tensorrt", "toolkit", "onnxruntime", "ppq")
_BINS = 2048  # of the slides, the toolkit and, for both signs together, onnxruntime
_PPQ_BINS = 4096


def kl_curve(histogram: Histogram, spec: QuantSpec, variant: str = "toolkit") -> KLCurve:
    """Every candidate range of a variant with its divergence, for plots and for `kl_range`.

    The histogram is merged in pairs until it has as many bins as the variant's source takes, or fewer: 2,048
    magnitudes ("tensorrt", "toolkit"), 4,096 ("ppq"), 2,048 values of both signs ("onnxruntime"). As many levels are
    taken as ``spec`` has for magnitudes (`magnitude_levels`), but PPQ and onnxruntime know signed grids only:
    2**(bits - 1), which is 128 for 8 bits.

    The default is the toolkit's. The slides' loop counts the zeros of a ReLU like any other value of the first bin, where
    they outweigh all else, so that it cuts off far too much of such tensors; its own fix is not in the slides.

    Parameters
    ----------
    histogram : of the tensor
    spec : its grid
    variant : "tensorrt", "toolkit", "onnxruntime" or "ppq"

    Raises
    ------
    QuantizationError
        The variant is unknown, or the grid is {-1, +1}.
    """
    check_grid(spec)
    if variant not in VARIANTS:
        raise QuantizationError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}.")
    levels, signed_levels = magnitude_levels(histogram, spec), max(2, 2 ** (spec.bits - 1))
    if variant == "onnxruntime":
        return onnxruntime_curve(*histogram.coarsened(_BINS // 2).signed(), signed_levels)
    if variant == "ppq":
        fine = histogram.coarsened(_PPQ_BINS)
        return ppq_curve(fine.magnitudes(), fine.width, signed_levels)
    coarse = histogram.coarsened(_BINS)
    curve = tensorrt_curve if variant == "tensorrt" else toolkit_curve
    return curve(coarse.magnitudes(), coarse.width, levels)


def kl_range(histogram: Histogram, spec: QuantSpec, variant: str = "toolkit") -> tuple[float, float]:
    """The range of least divergence between ``histogram`` and its quantized form, cut to the values that were seen.

    Where almost all values lie far from 0, a range that ends before them puts them all into its last bin, on both sides of
    the comparison, and its divergence is 0. So a range that cuts off more than half of the values that are not 0 is passed
    over here; `kl_curve` shows what each variant would choose by itself.

    Parameters
    ----------
    histogram : of the tensor
    spec : its grid
    variant : whose search: "tensorrt" (the slides), "toolkit" (NVIDIA pytorch-quantization), "onnxruntime" or "ppq"

    Raises
    ------
    QuantizationError
        The variant is unknown, or the grid is {-1, +1}.
    """
    curve = kl_curve(histogram, spec, variant)
    counts = histogram.positive + histogram.negative
    within = np.concatenate([[0], np.cumsum(counts)])
    reach = np.maximum(np.abs(curve.low), np.abs(curve.high)) / histogram.width
    kept = within[np.clip(np.rint(reach).astype(np.int64), 0, len(counts))]
    too_narrow = 2 * kept < within[-1]
    if too_narrow[curve.best]:
        divergence = np.where(too_narrow, np.inf, curve.divergence)
        best = int(np.argmin(divergence)) if np.isfinite(divergence).any() else len(divergence) - 1
        return cut_to_seen(histogram, float(curve.low[best]), float(curve.high[best]))
    return cut_to_seen(histogram, *curve.chosen)
