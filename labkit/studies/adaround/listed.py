"""The studies of the AdaRound paper. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["ADAROUND"]

_PAPER = "Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (2020)"

ADAROUND: tuple[Study, ...] = (
    Study(
        "adaround-table-1",
        "Rounding to nearest is not the best rounding",
        f"{_PAPER}, table 1",
        "The first layer of ResNet-18 on ImageNet at 4 bits: of 100 stochastic roundings 48 are better than rounding to nearest, "
        "the best of them by more than 10 points; everything rounded up, or down, is catastrophic.",
        "labkit.studies.adaround.table_1",
        4,
    ),
)
