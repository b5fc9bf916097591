"""The studies of the kit's own figures. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["KIT"]

KIT: tuple[Study, ...] = (
    Study(
        "best-rounding",
        'What `method="best"` reaches in the integer engine',
        "labkit's own targets; the ways of rounding are those of Nagel et al. (2020), Frantar et al. (2022) and our own",
        "Post-training only, every layer quantized, 1,024 training images without labels. LeNet is to lose at most 0.2 / 0.5 / "
        "1.1 / 2.7 points at W8A8 / W4A8 / W3A8 / W2A8 and 1.3 at W4A4; ResNet-20 0.1 / 0.2 / 0.6 / 1.6, and at W4A4 2.0, "
        "or 0.9 with its input at 8 bits.",
        "labkit.studies.kit.best_rounding",
        8,
    ),
    Study(
        "rounding-time",
        "How long calibration and rounding take",
        "labkit's own targets",
        "On one core: ResNet-20 at W4A8 from the module to the integer network in under 25 s; the search alone under 2 s by "
        "coordinate descent and under 40 s by AdaRound on the quadratic form; "
        "KL calibration in at most half the time of onnxruntime's.",
        "labkit.studies.kit.rounding_time",
        4,
    ),
)
