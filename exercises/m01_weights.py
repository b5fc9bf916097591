"""m01, weights: what is asked and how it is judged."""

from __future__ import annotations

import numpy as np

from labkit.arithmetic.affine import QuantSpec, params_from_values
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task

# --- m01.q1 -----------------------------------------------------------------------------------------------------------

_SHAPES = [(5,), (4, 3), (2, 3, 3, 3), (10, 7), (3, 1, 5, 5), (1,)]


def _weights(rng, number):
    shape = _SHAPES[number % len(_SHAPES)]
    return {"w": rng.normal(rng.uniform(-0.1, 0.1), 0.2, shape).astype(np.float32)}


def _skewed(rng, number):
    return {"w": (rng.exponential(0.3, (3 + number, 4)) - 0.1).astype(np.float32)}


def _three_sigma(w):
    values = np.asarray(w, np.float64)
    mean, spread = values.mean(), values.std()
    return (values.min(), values.max()), (mean - 3 * spread, mean + 3 * spread)


RANGES = Task(
    name="m01.q1",
    title="Actual range and 3-sigma range",
    function="weight_ranges",
    points=4,
    minutes=8,
    source="EE219 lab, section II",
    kinds=(
        Kind("typical", "weights of several shapes, spread like a bell", _weights, count=6, public=2),
        Kind("skewed", "weights whose mean is far from 0", _skewed, count=3, public=1),
    ),
    oracle=_three_sigma,
    judge=Items((Items((Close(1e-5), Close(1e-5))), Items((Close(1e-5, 1e-7), Close(1e-5, 1e-7))))),
    mistakes=(
        Mistake(
            "forgets the mean",
            "The 3-sigma range is centred on the mean of the weights, and yours is centred on 0.",
            lambda w: ((w.min(), w.max()), (-3 * w.std(), 3 * w.std())),
        ),
        Mistake(
            "variance for deviation",
            "You used the variance. Sigma is its square root, in the unit of the weights themselves.",
            lambda w: ((w.min(), w.max()), (w.mean() - 3 * w.var(), w.mean() + 3 * w.var())),
        ),
        Mistake(
            "sample deviation",
            "You divided by n - 1. These are all the weights there are, no sample of more: divide by n.",
            lambda w: ((w.min(), w.max()), (w.mean() - 3 * w.std(ddof=1), w.mean() + 3 * w.std(ddof=1))),
        ),
    ),
)

# --- m01.q2 -----------------------------------------------------------------------------------------------------------


def _with_bits(rng, number):
    return _weights(rng, number) | {"bits": [8, 4, 2, 3, 6, 5][number % 6]}


def _negative_end(rng, number):
    w = rng.normal(0, 0.2, (4, 5)).astype(np.float32)
    w[1, number] = -1.5
    return {"w": w, "bits": [8, 4, 3][number % 3]}


def _symmetric_scale(w, bits):
    return float(params_from_values(w, QuantSpec(bits, signed=True, symmetric=True, narrow=True)).scale)


SCALE = Task(
    name="m01.q2",
    title="A symmetric scale",
    function="symmetric_scale",
    points=5,
    minutes=8,
    source="EE219 lab, eq. 2; docs/arithmetic.md, eq. 4",
    kinds=(
        Kind("typical", "weights of several shapes at 2 to 8 bits", _with_bits, count=6, public=2),
        Kind("negative end", "weights whose largest magnitude is negative", _negative_end, count=3, public=1),
    ),
    oracle=_symmetric_scale,
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "full grid",
            "You divided by 2**(bits - 1), which is 128 at 8 bits. The largest positive integer of 8 bits is one less.",
            lambda w, bits: np.abs(w).max() / 2 ** (bits - 1),
        ),
        Mistake(
            "maximum without magnitude",
            "You took the largest weight. A negative weight of a larger magnitude has to fit as well.",
            lambda w, bits: np.max(w) / (2 ** (bits - 1) - 1),
        ),
        Mistake(
            "the inverse",
            "You returned the factor that weights are multiplied with, 1/S. The scale S is the size of one step.",
            lambda w, bits: (2 ** (bits - 1) - 1) / np.abs(w).max(),
        ),
    ),
    library="labkit.arithmetic.affine.params_from_values",
)

# --- questions --------------------------------------------------------------------------------------------------------

WHY_NARROW = Question(
    name="m01.e1",
    title="Why give up an integer?",
    text="The grid of 8-bit weights is -127 to 127, although int8 has room for -128. Give two reasons.",
    points=3,
    rubric=(
        (1, "The negative of every weight is representable: the grid is symmetric about 0."),
        (1, "One scale serves both ends, max|w| / 127; with -128 the ends would not be equally far."),
        (1, "Bounds: |w| <= 127 keeps sums of products smaller (or: products in 16 bits cannot saturate)."),
    ),
)

MODULE = Module(
    name="m01",
    topic="weights",
    title="Weights: ranges, scales and integers",
    minutes=90,
    source="EE219 lab, sections II and III",
    tasks=(RANGES, SCALE),
    questions=(WHY_NARROW,),
)
