"""Values of the shapes that weights and activations have, and their histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QuantSpec
from labkit.quantization.histogram import Histogram, StreamingHistogram

SHAPES = ("bell", "laplace", "relu", "heavy", "skew", "positive", "negative", "spike", "three")
GRIDS = {
    "u8": QuantSpec(8, signed=False, symmetric=False),
    "u4": QuantSpec(4, signed=False, symmetric=False),
    "u2": QuantSpec(2, signed=False, symmetric=False),
    "s8": QuantSpec(8, narrow=True),
    "s4": QuantSpec(4, narrow=True),
    "s2": QuantSpec(2, narrow=True),
    "full s4": QuantSpec(4),
}


def sample(shape: str, count: int = 20_000, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    values = {
        "bell": lambda: rng.normal(0, 1, count),
        "laplace": lambda: rng.laplace(0.3, 2, count),
        "relu": lambda: np.maximum(rng.normal(0, 1, count), 0),
        "heavy": lambda: rng.standard_t(3, count),
        "skew": lambda: rng.gamma(2, 1, count) - 0.5,
        "positive": lambda: rng.uniform(3, 5, count),
        "negative": lambda: -rng.exponential(0.01, count),
        "spike": lambda: np.where(rng.random(count) < 0.999, 0.0, rng.normal(0, 1, count)),
        "three": lambda: np.array([-1.0, 0.0, 2.0]),
    }[shape]()
    return values.astype(np.float32)


def histogram_of(values: NDArray[np.floating]) -> Histogram:
    collected = StreamingHistogram("x")
    collected.update(np.asarray(values, np.float32))
    return collected.result()
