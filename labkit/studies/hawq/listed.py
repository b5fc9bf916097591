"""The studies of the slides on HAWQ, in the document's order. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["HAWQ"]

_SLIDES = "Gholami et al., *Systematic Neural Network Quantization* (GTC 2021)"

HAWQ: tuple[Study, ...] = (
    Study(
        "hawq-mapping",
        "Nine numbers, and a layer of 4 bits",
        f'{_SLIDES}, "Quantization: Workhorse for Efficient Inference" and "Closer Look at One Layer"',
        "Uniform quantization maps real values to integers, Q(r) = Int(r / S) - Z, with a picture of nine numbers; one layer "
        "accumulates in INT32 and rescales to INT4, y_i4 = Round(S_x S_w / S_y y_i32).",
        "labkit.studies.hawq.mapping",
        1,
    ),
    Study(
        "hawq-depth",
        "Simulated quantization against integers, layer by layer",
        f'{_SLIDES}, "Simulated Quantization" and "Simulated/Fake Quantization Error"',
        "Simulated quantization computes in FP32 and can differ from what integer-only hardware computes. For ResNet-50 on "
        "ImageNet the normalized difference becomes quite significant, especially for low precision (a figure).",
        "labkit.studies.hawq.depth",
        4,
    ),
    Study(
        "hawq-addition",
        "A sum of rounded numbers is not the rounded sum",
        f'{_SLIDES}, "Simulated/Fake Quantization Error"',
        "Rounding is not linear: Int(2.4 + 1.3) = 4, but Int(2.4) + Int(1.3) = 3. Simple operations such as a residual "
        "connection get an error of O(1), which propagates through the network.",
        "labkit.studies.hawq.addition",
        4,
    ),
    Study(
        "hawq-columns",
        "Megabytes and bit operations, counted again",
        f"{_SLIDES}, tables on MobileNetV2, ResNet50 and InceptionV3",
        "ResNet50: 97.8 MB and 3951 G bit operations in float32, 24.5 and 247 at W8A8, 18.7 and 154 at W4/8A4/8; "
        "MobileNetV2: 13.2 and 322, 3.3 and 20; InceptionV3: 90.9 and 5850, 22.7 and 366.",
        "labkit.studies.hawq.columns",
        1,
    ),
    Study(
        "hawq-low-precision",
        "Uniform bits without fine-tuning",
        f"{_SLIDES}, tables on MobileNetV2, ResNet50 and InceptionV3; summary",
        "W8A8 keeps the accuracy: MobileNetV2 73.03 to 73.01 %, ResNet50 77.72 to 77.58 %, InceptionV3 78.88 to 78.76 %, up to "
        "4.5 points over Jacob et al.; uniform low precision degrades it significantly; one size does not fit all.",
        "labkit.studies.hawq.low_precision",
        8,
    ),
    Study(
        "hawq-surfaces",
        "The loss around a sharp and a flat layer",
        f'{_SLIDES}, "Hessian Aware Quantization" and "Summary: One Size Does Not Fit All"',
        "Insensitive parameters have a flat loss landscape and stand low precision, sensitive ones a sharp landscape. Pictures "
        "of surfaces; no figures.",
        "labkit.studies.hawq.surfaces",
        3,
    ),
    Study(
        "hawq-int4-speed",
        "Is INT4 faster than INT8?",
        f"{_SLIDES}, summary",
        "Up to 1.5x speed up with INT4/INT8 compared to INT8 quantization.",
        "labkit.studies.hawq.int4_speed",
        3,
    ),
    Study(
        "hawq-batch-norm",
        "Freeze, then fold",
        f"{_SLIDES}, on integer-only quantization",
        "Fine-tune the statistics of batch norm in high precision first; after correctly computing them it can be quantized and "
        "fused with the convolution, so that no part of the network computes in FP32.",
        "labkit.studies.hawq.batch_norm",
        8,
    ),
    Study(
        "hawq-search",
        "A plan from sensitivities against a search that runs the network",
        f'{_SLIDES}, "HAWQ Overhead?"',
        "All calculations for bit selection, the Hessian included, take less than an hour; up to 120x faster than AutoML, with "
        "higher accuracy. HAQ against HAWQ-V2, accuracy and hours: ResNet50 75.30 in 10 and 75.56 in 0.5, InceptionV3 71.60 in "
        "50 and 75.68 in 0.4, SqueezeNext 65.87 in 50 and 68.38 in 0.9.",
        "labkit.studies.hawq.search",
        4,
    ),
    Study(
        "hawq-budgets",
        "Bits under budgets of size, bit operations and latency",
        f'{_SLIDES}, "Results: ResNet50" and the summary on HAWQ-V3',
        "HAWQ-V3 selects bits without any manual choice. ResNet50 with layers of 4 or 8 bits: 18.7 MB, 154 GBOPS and 75.39 %; "
        "all at 8 bits: 24.5 MB, 247 GBOPS and 77.58 %.",
        "labkit.studies.hawq.budgets",
        4,
    ),
    Study(
        "hawq-traces",
        "Does the average trace order the layers?",
        f'{_SLIDES}, "Hessian Trace can Quantify Sharpness/Flatness", theorem 1',
        "A large average trace tr(H) / n means a sharp loss landscape, which needs high precision, a small one a flat "
        "landscape: after quantization to the same precision, layers with a smaller average trace can reach a smaller loss.",
        "labkit.studies.hawq.traces",
        6,
    ),
)
