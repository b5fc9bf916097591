"""The list of studies. Importing it imports none of them."""

from __future__ import annotations

from labkit.errors import InputError
from labkit.studies.study import Study

__all__ = ["STUDIES", "find"]

STUDIES: tuple[Study, ...] = (
    Study(
        "adaround-table-1",
        "Rounding to nearest is not the best rounding",
        "Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (2020), table 1",
        "The first layer of ResNet-18 on ImageNet at 4 bits: of 100 stochastic roundings 48 are better than rounding to nearest, "
        "the best of them by more than 10 points; everything rounded up, or down, is catastrophic.",
        "labkit.studies.adaround_table_1",
        4,
    ),
)


def find(name: str) -> Study:
    """The study called ``name``.

    Raises
    ------
    InputError
        There is none.
    """
    for study in STUDIES:
        if study.name == name:
            return study
    raise InputError(f"There is no study {name!r}. Choose one of: {', '.join(study.name for study in STUDIES)}.")
