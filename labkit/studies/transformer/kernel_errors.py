"""How far I-BERT's polynomials, and the integer kernels made of them, are from the real functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import EXPONENT_SHIFT, NORMALISED_BITS, exp_constants, gelu_constants
from labkit.kernels.reference_transformer import i_exp, i_gelu, i_layer_norm, i_softmax, integer_sqrt

__all__ = ["KernelError", "approximations", "kernel_errors"]

Reals = NDArray[np.floating]

_ENDS, _POINTS = 4.0, 100_001  # of the range in which I-BERT's table 1 compares approximations of GELU
_LIMIT = 32767
_SHARE_BITS = 8


@dataclass(frozen=True)
class KernelError:
    """Errors of one function: ``largest`` in absolute value and ``spread``, their root mean square, ``where`` they were taken.

    printed : what I-BERT prints of them: (root mean square or None, largest), or None.
    """

    name: str
    where: str
    largest: float
    spread: float
    printed: tuple[float | None, float] | None = None


def approximations() -> list[KernelError]:
    """Real functions in place of GELU and of the exponential, as I-BERT compares them."""
    x = np.linspace(-_ENDS, _ENDS, _POINTS)
    where = f"[-{_ENDS:g}, {_ENDS:g}]"
    wanted = _gelu(x)
    ways: dict[str, tuple[Callable[[Reals], Reals], tuple[float, float]]] = {
        "x sigmoid(1.702 x)": (lambda x: x / (1 + np.exp(-1.702 * x)), (0.012, 0.020)),
        "h-GELU, x ReLU6(1.702 x + 3) / 6": (lambda x: x * np.clip(1.702 * x + 3, 0, 6) / 6, (0.031, 0.068)),
        "i-GELU's polynomial": (_gelu_polynomial, (0.0082, 0.018)),
    }
    found = [_error(name, where, way(x) - wanted, printed) for name, (way, printed) in ways.items()]
    p = np.linspace(-math.log(2), 0, _POINTS)
    parabola = 0.35815147 * p**2 + 0.96963238 * p + 1
    return [*found, _error("i-exp's polynomial", "[-ln 2, 0]", parabola - np.exp(p), (None, 0.0019))]


def kernel_errors(scores: float, reach: float, features: int, seed: int = 0, rows: int = 2000) -> list[KernelError]:
    """The integer kernels against float64.

    Parameters
    ----------
    scores : scale of the scores that a softmax takes
    reach : the largest real number of 16 bits that a GELU takes
    features : of a layer norm
    seed : of what is drawn at random
    rows : how many rows of scores, and of features, are drawn
    """
    rng = np.random.default_rng(seed)
    x = np.arange(-_LIMIT, _LIMIT + 1)
    scale = reach / _LIMIT
    gelu = gelu_constants(scale)
    every = f"every integer of 16 bits, ±{reach:.1f}"
    found = [_error("i-GELU", every, i_gelu(x, gelu) * gelu.scale - _gelu(x * scale))]
    exp = exp_constants(scores)
    below = np.arange(EXPONENT_SHIFT * exp.ln2, 1)
    powers, halvings = i_exp(below, exp)
    close = powers * exp.scale / 2.0**halvings
    found.append(
        _error("i-exp", f"every integer of -30 ln 2 .. 0 at the scale {scores:.2g}", close - np.exp(below * scores))
    )
    q = np.clip(np.rint(rng.normal(0, 3, (rows, 32)) / scores), -_LIMIT, _LIMIT).astype(np.int64)
    multiplier = FixedPointMultiplier.from_real(exp.scale * _LIMIT)
    shares = i_softmax(q, mask=None, constants=exp, multiplier=multiplier, bits=_SHARE_BITS, rounds=True)
    real = np.exp((q - q.max(1, keepdims=True)) * scores)
    real /= real.sum(1, keepdims=True)
    found.append(_error("i-softmax, shares of 8 bits", f"{rows:,} rows of 32 scores, N(0, 3)", shares / 256 - real))
    nearest = np.minimum(np.floor(real * 256 + 0.5), 255) / 256
    found.append(_error("float softmax, rounded to 8 bits", "the same rows", nearest - real))
    tokens = np.rint(rng.normal(0, 4000, (rows, features))).astype(np.int64)
    normed = i_layer_norm(tokens, bias=np.zeros((), np.int64), shift=0) * (math.sqrt(features) / 2.0**NORMALISED_BITS)
    centred = tokens - tokens.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True))
    found.append(_error("i-LayerNorm", f"{rows:,} tokens of {features} features of 16 bits", normed - wanted))
    n = rng.integers(0, 2**62, 20 * rows)
    roots = np.array([math.isqrt(int(one)) for one in n])
    found.append(_error("i-sqrt", f"{len(n):,} integers below 2^62, against the exact floor", integer_sqrt(n) - roots))
    return found


def _gelu(x: Reals) -> Reals:
    return np.array([0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])


def _gelu_polynomial(x: Reals) -> Reals:
    a, b, root = -0.2888, -1.769, 1.4142
    erf = np.sign(x) * (a * (np.minimum(np.abs(x) / root, -b) + b) ** 2 + 1)
    return np.asarray(x * 0.5 * (1 + erf))


def _error(
    name: str, where: str, errors: NDArray[np.number], printed: tuple[float | None, float] | None = None
) -> KernelError:
    reals = np.asarray(errors, np.float64)
    return KernelError(name, where, float(np.abs(reals).max()), float(np.sqrt(np.square(reals).mean())), printed)
