"""The studies of the AdaRound paper. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["ADAROUND"]

_PAPER = "Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (2020)"

ADAROUND: tuple[Study, ...] = (
    Study(
        "adaround-toy",
        "Two weights that interact",
        f"{_PAPER}, section 2",
        "Of two weights, off-diagonal entries of the Hessian make perturbations of opposite signs better; rounding to nearest, "
        "optimal for the diagonal alone, ignores them and is often sub-optimal. (The text gives no figures.)",
        "labkit.studies.adaround.toy",
        1,
    ),
    Study(
        "adaround-table-1",
        "Rounding to nearest is not the best rounding",
        f"{_PAPER}, table 1",
        "The first layer of ResNet-18 on ImageNet at 4 bits: of 100 stochastic roundings 48 are better than rounding to nearest, "
        "the best of them by more than 10 points; everything rounded up, or down, is catastrophic.",
        "labkit.studies.adaround.table_1",
        4,
    ),
    Study(
        "adaround-figure-1",
        "The second-order cost of a rounding and what it does to the network",
        f"{_PAPER}, figure 1 and section 3.1",
        "The first layer of ResNet-18 on ImageNet at 4 bits, 100 stochastic roundings: the cost d H d of equation 13 and the "
        "validation accuracy are clearly correlated. The gradient's term and interactions between layers are ignored.",
        "labkit.studies.adaround.figure_1",
        7,
    ),
    Study(
        "adaround-table-2",
        "From the task's Hessian to the local error to the relaxation",
        f"{_PAPER}, table 2",
        "ResNet-18 on ImageNet at 4 bits: rounding by the Hessian of the task loss is a significant boost over "
        "rounding to nearest; "
        "the local squared error does not degrade it, and makes all layers feasible; the continuous relaxation "
        "takes minutes where "
        "the cross-entropy method takes hours, and is slightly better.",
        "labkit.studies.adaround.table_2",
        7,
    ),
    Study(
        "adaround-figures-2-3",
        "Soft decisions that become hard, and the weights that leave the nearest level",
        f"{_PAPER}, figures 2 and 3",
        "With the rectified sigmoid and an annealed regularizer many weights learn a rounding other than to nearest, while h "
        "ultimately converges close to 0 or 1.",
        "labkit.studies.adaround.figures_2_3",
        5,
    ),
    Study(
        "adaround-table-3",
        "Hopfield's falling temperature, the regularizer, and the rectified sigmoid",
        f"{_PAPER}, table 3",
        "Even after an extensive search for the schedule of T, the sigmoid with the regularizer outperforms the classical "
        "method, with a lower variance; the rectified sigmoid gives a consistent small improvement.",
        "labkit.studies.adaround.table_3",
        10,
    ),
    Study(
        "adaround-table-4",
        "Layer by layer, asymmetric, and with the activation function",
        f"{_PAPER}, table 4",
        "Making up for the error of the layers before (asymmetric reconstruction) improves the accuracy noticeably; the "
        "activation function in the loss gives a small gain.",
        "labkit.studies.adaround.table_4",
        8,
    ),
    Study(
        "adaround-table-5",
        "The straight-through estimator on the same loss",
        f"{_PAPER}, table 5",
        "AdaRound clearly outperforms optimizing the weights through the straight-through estimator, although that may move "
        "a weight further than to the next level.",
        "labkit.studies.adaround.table_5",
        6,
    ),
    Study(
        "adaround-table-6",
        "Three grids for the weights",
        f"{_PAPER}, table 6",
        "AdaRound significantly improves over rounding to nearest whatever the grid: min-max, least error of W, or least error "
        "of W x. Both grids of least error are superior to min-max; between the two there is no clear winner for AdaRound.",
        "labkit.studies.adaround.table_6",
        11,
    ),
    Study(
        "adaround-figure-4",
        "How many images, and which",
        f"{_PAPER}, figure 4",
        "With 256 images AdaRound is within 2 % of the float accuracy; with unlabelled images of a similar "
        "domain that are not from "
        "the training data (VOC, COCO) it loses less than 0.2 % on average.",
        "labkit.studies.adaround.figure_4",
        15,
    ),
    Study(
        "adaround-table-7",
        "AdaRound among other roundings",
        f"{_PAPER}, table 7",
        "Weights of 4 bits, float activations (4/32) or 8 bits (4/8): AdaRound is within 1 % of float on ResNet-18 and "
        "ResNet-50, within 2 % on MobileNetV2 and InceptionV3, and better than DFQ, OMSE, OCS and bias correction.",
        "labkit.studies.adaround.table_7",
        12,
    ),
    Study(
        "adaround-table-8",
        "Bias correction against AdaRound",
        f"{_PAPER}, table 8",
        "ResNet-18 with weights of 4 bits: empirical bias correction improves rounding to nearest, but reaches "
        "only 38.87 %, where "
        "AdaRound recovers the accuracy to 68.60 %.",
        "labkit.studies.adaround.table_8",
        9,
    ),
    Study(
        "adaround-table-9",
        "Semantic segmentation",
        f"{_PAPER}, table 9",
        "DeeplabV3+ on Pascal VOC, rounded on 512 images: DFQ works well at 8 bits and drops drastically at W4A8; AdaRound loses "
        "about 2 % there.",
        "labkit.studies.adaround.table_9",
        13,
    ),
    Study(
        "adaround-export",
        "From V to logits, bit for bit",
        f"{_PAPER}, sections 3.3 and 5 (weights of 4 bits)",
        "AdaRound decides up or down for each weight; the result is a network with weights of 4 bits and activations of 8.",
        "labkit.studies.adaround.export",
        6,
    ),
    Study(
        "adaround-table-10",
        "Solvers of the rounding problem, and where they start",
        f"{_PAPER}, appendix A and table 10",
        "The cross-entropy method, started near rounding to nearest, significantly outperforms qbsolv, which "
        "cannot be told where to "
        "start and ends worse than rounding to nearest; random roundings are significantly worse on average than those near it.",
        "labkit.studies.adaround.table_10",
        5,
    ),
    Study(
        "adaround-local-loss",
        "A convolution's local error, channel by channel",
        f"{_PAPER}, appendix B",
        "If output channels do not interact in the task loss, the Hessian problem of a convolution is the "
        "squared error of its output, "
        "and breaks down into one problem for each output channel.",
        "labkit.studies.adaround.local_loss",
        1,
    ),
)
