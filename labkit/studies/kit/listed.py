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
    Study(
        "mixed-precision",
        "Bits layer by layer under a size budget, from the trained network to the integer one",
        "labkit's own targets; the problem is MPQCO's (Chen et al. 2021) and HAWQ-V3's",
        "ResNet-20 on CIFAR-10, post-training only, every layer quantized, activations 8 bits: 4 / 3 / 2.5 bits a weight on "
        "average are to lose at most 0.15 / 0.4 / 0.8 points. A plan of 2.5 bits is to beat uniform 2 bits, and 3 bits in the "
        "first layers with 2 in the rest at the same size.",
        "labkit.studies.kit.mixed_precision",
        13,
    ),
    Study(
        "fine-tuning",
        "Six epochs of quantization-aware training",
        "labkit's own targets; distillation is the slides' (Gholami et al. 2021), straight-through fine-tuning the supplement's "
        "(Chen et al. 2021)",
        "ResNet-20 on CIFAR-10 with at most 10 epochs: 2.5 bits a weight on average within 0.4 points of float, W4A4 within "
        "0.8, W2A4 stated; integers and simulation within 0.1 point. Slides: distillation brings ResNet50 at W4/8 from 75.39 to "
        "76.73 %.",
        "labkit.studies.kit.fine_tuning",
        60,
    ),
    Study(
        "fine-tuning-recipes",
        "Ways of quantization-aware training side by side",
        "labkit's own; the recipes are those of Jacob et al. (2018), Choi et al. (2018), Esser et al. (2020) and Chen et al. "
        "(2021)",
        "A short fine-tuning through the straight-through estimator makes up for few bits; learned scales, learned ends and "
        "distillation each improve on moving averages and labels alone.",
        "labkit.studies.kit.fine_tuning_recipes",
        25,
    ),
    Study(
        "allocation-and-rounding",
        "Bits by layer and better rounding, alone and together",
        "labkit's own targets; Nagel et al. (2020), related work, name bits by layer (Dong et al. 2019) as something to use "
        "in conjunction with AdaRound",
        "Both together are better than either alone, at 2.5, 3 and 4 bits a weight on average.",
        "labkit.studies.kit.allocation_and_rounding",
        5,
    ),
    Study(
        "rounding-rules",
        "The same network under every runtime's rounding rules",
        "labkit's own question; the rules are those of LiteRT, XNNPACK, ONNX Runtime and PyTorch's engines",
        "LeNet and ResNet-20 at W8A8: runtimes give the same numbers but for their rounding. On the same inputs a node is to "
        "differ by one step at most, no rule set is to change accuracy by more than chance, and convolutions with calibrated "
        "scales are to meet no exact tie.",
        "labkit.studies.kit.rounding_rules",
        3,
    ),
)
