"""The studies of the MPQCO supplement, in the document's order. Importing this imports none of them."""

from __future__ import annotations

from labkit.studies.study import Study

__all__ = ["MPQCO"]

_PAPER = (
    "Chen, Wang, Cheng: *Towards Mixed-Precision Quantization of Neural Networks via Constrained Optimization*, supplementary "
    "material (2021)"
)

MPQCO: tuple[Study, ...] = (
    Study(
        "mpqco-candidates",
        "The weights of 1 to 8 bits that a layer can have",
        f"{_PAPER}, section 1",
        "The candidate bit-widths of the weights are {1, 2, 3, 4, 5, 6, 7, 8} for each network.",
        "labkit.studies.mpqco.candidates",
        1,
    ),
    Study(
        "mpqco-figure-1",
        "Predicted and true change of the loss for random bit allocations",
        f"{_PAPER}, section 4, figure 1",
        "For 100 random allocations of ResNet-18 at 8x compression the loss perturbations by the approximated Hessian, whole and "
        "block-diagonal, lie roughly on a straight line through the origin with a slope of one over those by the Hessian. For 50 "
        "allocations the relative error from the true loss perturbation is smaller than HAWQ-V2's.",
        "labkit.studies.mpqco.figure_1",
        5,
    ),
    Study(
        "mpqco-images",
        "How many images the loss perturbation needs",
        f"{_PAPER}, section 2",
        "The loss perturbation costs O(N T) for N images of a forward and backward pass T each. It converges rapidly, and a few "
        "hundred of images are enough.",
        "labkit.studies.mpqco.images",
        3,
    ),
    Study(
        "mpqco-greedy",
        "The greedy search for bits, against the best answer",
        f"{_PAPER}, section 2",
        "The allocation is solved as a multiple-choice knapsack problem by a greedy search. For |B| bit-widths and L layers it "
        "makes at most |B| L steps, each of which looks for the best of L: O(|B| L²). How far it is from the best answer is not "
        "said.",
        "labkit.studies.mpqco.greedy",
        2,
    ),
    Study(
        "mpqco-matrices",
        "Hessian, Gauss-Newton, Fisher and empirical Fisher matrix of a small network",
        f"{_PAPER}, section 3, eqs. 1 to 16, propositions 1 and 2",
        "The Hessian is approximated by the mean of each image's gradient of log p times itself (5). Proposition 1: the two are "
        "equal for endless data with labels distributed as the model says. Proposition 2: ‖H - H̃‖² is at most the residuals' sum "
        "times the smoothness of the model (13), so that the approximation is exact if the data is perfectly fit.",
        "labkit.studies.mpqco.matrices",
        2,
    ),
    Study(
        "mpqco-first-order",
        "The first-order term of the loss perturbation",
        f"{_PAPER}, sections 3 and 4",
        "The loss perturbation is taken as 1/2 dw . H dw. That the gradient along dw can be left out is not said and not shown.",
        "labkit.studies.mpqco.first_order",
        2,
    ),
)
