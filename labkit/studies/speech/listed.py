"""The studies of speech. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["SPEECH"]

SPEECH: tuple[Study, ...] = (
    Study(
        "speech-quartznet",
        "Strings of spoken digits, read by a QuartzNet in integers",
        "Q-ASR: Kim et al., *Integer-only Zero-shot Quantization for Efficient Speech Recognition* (2021), word error rates of "
        "QuartzNet-15x5 and JasperDR-10x5",
        "All layers in INT8, the word error rate goes from 3.82 to 4.04 % (QuartzNet) and stays at 3.68 % (Jasper); the abstract "
        "speaks of at most 0.29 points. Weights of fewer bits compress more than four times with a small loss.",
        "labkit.studies.speech.word_errors",
        50,
        ("fsdd",),
    ),
)
