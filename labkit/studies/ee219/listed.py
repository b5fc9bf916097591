"""The studies of the EE219 lab. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["EE219"]

_LAB = "EE219 quantization lab report (2022)"

EE219: tuple[Study, ...] = (
    Study(
        "ee219-ranges",
        "Ranges of weights and activations, and what their integers are worth",
        f"{_LAB}, sections II, IV and V.A, figures 1 and 3, eqs. 4 to 6",
        "Tables of the actual and the 3-sigma range of each layer. The 3-sigma range of conv1's weights and of "
        "the input are said to be larger than the actual ones, and these layers therefore a good choice. "
        "Equations for the factors that the outputs of conv1 and conv2 carry.",
        "labkit.studies.ee219.ranges",
        1,
    ),
    Study(
        "ee219-accuracy",
        "The lab's steps, simulated and in integers",
        f"{_LAB}, sections I, III, V and VI",
        "Float network 60.88 %, weights in 8 bits 60.9 %, weights and activations 60.92 %. With a bias in the "
        "last layer 60.88 %, with everything quantized but that bias 57.07 %, with the bias at S_1 S_2 60.9 %.",
        "labkit.studies.ee219.accuracy",
        4,
    ),
    Study(
        "ee219-kl",
        "The KL threshold: the example, the curves, and four searches of that name",
        f"{_LAB}, section V.E (a), figures 4 and 5",
        "Instead of the largest magnitude take a threshold, the one whose quantized distribution has the least "
        "KL divergence from the original; it makes better use of 8 bits and does not affect the precision. Eight "
        "bins [1, 0, 2, 3, 5, 3, 1, 7] become [2, 0, 2, 2, 4, 4, 4, 4]. Nothing is measured.",
        "labkit.studies.ee219.kl",
        5,
    ),
    Study(
        "ee219-clipping",
        "Rules for activation ranges at 8, 6 and 4 bits",
        f"{_LAB}, sections IV and V.E",
        "3-sigma ranges are tabulated, KL thresholds and moving averages proposed, because the actual range 'did "
        "not fully utilize' the 8 bits. All quantization is done with the actual range; nothing else is measured.",
        "labkit.studies.ee219.clipping",
        6,
    ),
    Study(
        "ee219-clipping-weights",
        "Rules for weight ranges at 8 to 3 bits",
        f"{_LAB}, sections II and III",
        "The 3-sigma range of each layer's weights is tabulated beside the actual one; quantization takes the "
        "actual one.",
        "labkit.studies.ee219.clipping_weights",
        4,
    ),
)
