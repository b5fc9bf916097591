"""`FineTuning`: everything that quantization-aware training can be told, and the schedules of the literature."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from labkit.errors import QuantizationError

__all__ = [
    "ACTIVATION_SCALES",
    "OPTIMIZERS",
    "PRECISIONS",
    "RECIPES",
    "STARTS",
    "WEIGHT_SCALES",
    "FineTuning",
    "recipe",
]

WEIGHT_SCALES = ("minmax", "learned")
ACTIVATION_SCALES = ("ema", "learned", "pact")
STARTS = ("nearest", "best")
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class FineTuning:
    """How a network is fine-tuned.

    epochs : passes over the training images.
    batch_size : images a step.
    learning_rate : the first one; it falls to 0 along half a cosine, after a rise over the first ``warm_up`` of all steps.
    optimizer : "adam" (Kingma and Ba 2015) or "sgd" with Nesterov's momentum. With folded batch norms nothing evens out how
        differently parameters move the loss; Adam does.
    scale_rate : factor of the learning rate for scales and ends, which are far smaller than weights; for Adam only.
    momentum : of SGD; Adam's first moment has it too.
    weight_decay : of the weights of layers; gains, shifts, biases and scales have none.
    weight_scales : "minmax", the largest weight of each row is the largest level (Jacob et al. 2018, section 3); "learned", a
        scale is a parameter (LSQ, Esser et al. 2020). Layers of one bit have the mean magnitude.
    activation_scales : "ema", moving averages of each batch's extremes (Jacob et al. 2018, section 3.1); "learned", LSQ with the
        zero point as it was calibrated; "pact", a learned upper end for what a ReLU gives (Choi et al. 2018), "ema" elsewhere.
    ema_momentum : share of the old average that a step keeps.
    ema_delay : share of all steps in which activations are observed and not yet quantized, so that ranges settle first
        (Jacob et al. 2018, algorithm 1); for "ema" only.
    pact_decay : L2 penalty on PACT's ends; with Adam it is decoupled (Loshchilov and Hutter 2019).
    freeze_at : share of all steps after which batch norms have fixed statistics and are folded; before it they normalise
        each batch by its own. 0 folds them from the start. "ema" ranges are fixed at the same time, if it is not 0.
    distillation : share of the loss that compares with the float network's answers; the rest compares with labels.
    temperature : both networks' logits are divided by it for that comparison (Hinton et al. 2015).
    start : "nearest", the float weights; "best", weights moved into the cells that ``method="best"`` chooses, with its scales.
    wide_up_to : with learned scales, weights of so many bits and fewer use all 2**b levels, mirrored where that fits a row
        better (`weight_rounding.grids`).
    augment, mirror : shift training images by up to 4 pixels along sides of 16 pixels and more; mirror one in two.
    precision : of products: "float32", or "bfloat16", faster on processors that have it. All that is rounded to
        grids is float32 in any case.
    threads : of torch; another number gives slightly other weights.
    seed : of the order of images, of augmentation, and of the start.

    Raises
    ------
    QuantizationError
        A value makes no sense.
    """

    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 0.0005
    optimizer: str = "adam"
    scale_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    warm_up: float = 0.05
    weight_scales: str = "learned"
    activation_scales: str = "learned"
    ema_momentum: float = 0.99
    ema_delay: float = 0.1
    pact_decay: float = 0.0001
    freeze_at: float = 0.0
    distillation: float = 0.5
    temperature: float = 2.0
    start: str = "best"
    wide_up_to: int = 3
    augment: bool = True
    mirror: bool = True
    precision: str = "float32"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("epochs", "batch_size", "threads", "seed", "wide_up_to"):
            if not isinstance(getattr(self, what), int | np.integer) or isinstance(getattr(self, what), bool):
                raise QuantizationError(f"{what} must be a whole number, got {getattr(self, what)!r}.")
            object.__setattr__(self, what, int(getattr(self, what)))
        for what, allowed in (
            ("weight_scales", WEIGHT_SCALES),
            ("activation_scales", ACTIVATION_SCALES),
            ("start", STARTS),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, what) not in allowed:
                raise QuantizationError(f"{what} must be one of {', '.join(allowed)}, got {getattr(self, what)!r}.")
        for what in ("epochs", "batch_size", "threads"):
            if getattr(self, what) < 1:
                raise QuantizationError(f"{what} must be at least 1, got {getattr(self, what)}.")
        for what in ("momentum", "ema_momentum", "warm_up", "ema_delay"):
            if not 0 <= getattr(self, what) < 1:
                raise QuantizationError(f"{what} must be in [0, 1), got {getattr(self, what)}.")
        for what in ("freeze_at", "distillation"):
            if not 0 <= getattr(self, what) <= 1:
                raise QuantizationError(f"{what} must be in 0..1, got {getattr(self, what)}.")
        for what in ("weight_decay", "pact_decay", "seed"):
            if getattr(self, what) < 0:
                raise QuantizationError(f"{what} must not be negative, got {getattr(self, what)}.")
        for what in ("learning_rate", "temperature", "scale_rate"):
            if not getattr(self, what) > 0:
                raise QuantizationError(f"{what} must be above 0, got {getattr(self, what)}.")
        if self.wide_up_to not in range(4):
            raise QuantizationError(f"wide_up_to must be in 0..3, got {self.wide_up_to}.")
        if self.start == "best" and self.weight_scales == "minmax":
            raise QuantizationError(
                'start="best" brings scales of its own, and weight_scales="minmax" would put others in their place: '
                'take start="nearest", or weight_scales="learned".'
            )

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON can hold them."""
        return asdict(self)


_JACOB = FineTuning(
    optimizer="sgd",
    learning_rate=0.01,
    weight_decay=0.0001,
    weight_scales="minmax",
    activation_scales="ema",
    freeze_at=0.8,
    distillation=0.0,
    start="nearest",
    wide_up_to=0,
)
RECIPES: dict[str, FineTuning] = {
    "labkit": FineTuning(),
    # supplement, section 1: straight-through, SGD 0.9, batches of 256, 0.005 falling along a cosine, 30 epochs
    "mpqco": replace(
        _JACOB, epochs=30, batch_size=256, learning_rate=0.005, weight_decay=0.00005, freeze_at=1.0, ema_delay=0.0
    ),
    "jacob": _JACOB,
    "pact": replace(_JACOB, activation_scales="pact", ema_delay=0.0),
    "lsq": replace(_JACOB, weight_scales="learned", activation_scales="learned", ema_delay=0.0),
}


def recipe(name: str) -> FineTuning:
    """The options that go by ``name``, a key of `RECIPES`.

    Raises
    ------
    QuantizationError
        There is no such recipe.
    """
    if name not in RECIPES:
        raise QuantizationError(f"The recipe must be one of {', '.join(RECIPES)}, got {name!r}.")
    return RECIPES[name]
