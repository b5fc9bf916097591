"""The list of studies. Importing it imports none of them."""

from __future__ import annotations

from labkit.errors import InputError
from labkit.studies.adaround.listed import ADAROUND
from labkit.studies.ee219.listed import EE219
from labkit.studies.hawq.listed import HAWQ
from labkit.studies.kit.listed import KIT
from labkit.studies.mpqco.listed import MPQCO
from labkit.studies.speech.listed import SPEECH
from labkit.studies.study import Study
from labkit.studies.transformer.listed import TRANSFORMER

__all__ = ["STUDIES", "find"]

STUDIES: tuple[Study, ...] = (*EE219, *ADAROUND, *HAWQ, *MPQCO, *SPEECH, *TRANSFORMER, *KIT)


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
