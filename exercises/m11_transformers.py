"""m11, integer-only transformers: what is asked and how it is judged."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from labkit.arithmetic import ibert
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.course.judges.values import Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.kernels import reference_transformer as library

_A, _B, _LN_2 = 0.35815147, 0.96963238, 0.6931  # I-BERT's parabola for exp
_THIRTY = 30

# --- m11.q1: the constants of i-exp -----------------------------------------------------------------------------------


def _constants(scale):
    found = ibert.exp_constants(scale)
    return found.ln2, found.b, found.c


def _is_clear(scale):
    """Whether no constant lies so near an integer that the order of two float64 divisions could decide."""
    real = (-_LN_2 / scale, _B / _A / scale, 1 / _A / scale**2)
    return all(abs(value - round(value)) > 1e-5 for value in real)


def _scale(rng, low, high):
    while True:
        scale = float(math.exp(rng.uniform(math.log(low), math.log(high))))
        if _is_clear(scale):
            return scale


def _usual_scale(rng, number):
    return {"scale": _scale(rng, 2e-4, 0.02)}


def _coarse_scale(rng, number):
    return {"scale": _scale(rng, 0.1, 0.69)}


def _binary_scale(rng, number):
    return {"scale": 2.0 ** -[3, 10, 1, 12, 6][number % 5]}


CONSTANTS = Task(
    name="m11.q1",
    title="Three integers for one scale",
    function="exp_constants",
    points=4,
    minutes=8,
    source="I-BERT, section 3.5; docs/arithmetic.md, section 11, eq. 46",
    kinds=(
        Kind("typical", "scales of scores with 16 bits", _usual_scale, count=5, public=2),
        Kind("coarse", "scales so coarse that ln 2 is a few steps long", _coarse_scale, count=5, public=2),
        Kind("powers of two", "scales that are powers of two", _binary_scale, count=5),
    ),
    oracle=_constants,
    judge=Items((Exact(), Exact(), Exact())),
    mistakes=(
        Mistake(
            "int() cuts off",
            "int() and math.trunc cut off towards 0, so your negative constant came out one too high. Eq. 46 rounds down.",
            lambda scale: (int(-_LN_2 / scale), *_constants(scale)[1:]),
        ),
        Mistake(
            "to nearest",
            "You rounded to the nearest integer. I-BERT rounds all three constants down.",
            lambda scale: (round(-_LN_2 / scale), round(_B / _A / scale), round(1 / _A / scale**2)),
        ),
        Mistake(
            "one scale too few",
            "Your third constant is divided by S once. It stands beside a square of integers, and so do two scales.",
            lambda scale: (*_constants(scale)[:2], math.floor(1 / _A / scale)),
        ),
        Mistake(
            "without a",
            "You did not divide by a. It was taken out of the parabola and waits in the scale of the result.",
            lambda scale: (_constants(scale)[0], math.floor(_B / scale), math.floor(1 / scale**2)),
        ),
        Mistake(
            "ln 2 above zero",
            "Your first constant is positive. The inputs are negative, and so is the step by which they are taken apart.",
            lambda scale: (math.floor(_LN_2 / scale), *_constants(scale)[1:]),
        ),
    ),
    library="labkit.arithmetic.ibert.exp_constants",
)

# --- m11.q2: i-exp ----------------------------------------------------------------------------------------------------


def _named(scale):
    return dict(zip(("ln2", "b", "c"), _constants(scale), strict=True))


def _exp_case(rng, number):
    scale = _scale(rng, 2e-3, 0.3)
    shape = [(6,), (2, 4), (5,), (2, 1, 3)][number % 4]
    return {"q": rng.integers(int(-8 / scale) - 1, 1, shape).astype(np.int32)} | _named(scale)


def _on_a_step(rng, number):
    scale = _scale(rng, 0.004, 0.3)
    ln2 = _constants(scale)[0]
    steps = np.sort(rng.integers(1, 12, 3)) * ln2
    q = np.concatenate([[0, -1], steps, steps + 1, steps - 1])
    return {"q": q.astype(np.int32)} | _named(scale)


def _far_below(rng, number):
    scale = _scale(rng, 0.004, 0.3)
    lowest = _THIRTY * _constants(scale)[0]
    q = np.array([lowest + 1, lowest, lowest - 1, 2 * lowest, lowest - int(rng.integers(2, 900)), -1])
    return {"q": q.astype(np.int32)} | _named(scale)


def _fine_scale(rng, number):
    scale = float(rng.uniform(1.2e-5, 2.2e-5))
    numbers = {"ln2": math.floor(-_LN_2 / scale), "b": math.floor(_B / _A / scale), "c": math.floor(1 / _A / scale**2)}
    steps = rng.integers(0, 4, 6) * numbers["ln2"]  # rests near l, where the product is large
    return {"q": (steps + (rng.uniform(0.7, 1, 6) * numbers["ln2"]).astype(int)).astype(np.int32)} | numbers


def _i_exp(q, ln2, b, c):
    return library.i_exp(q, ibert.ExpConstants(ln2, b, c, 1.0))


def _exp_with(q, ln2, b, c, clamp=True, halvings=None):
    q = np.maximum(q.astype(np.int64), _THIRTY * ln2) if clamp else q.astype(np.int64)
    z = q // ln2 if halvings is None else halvings(q / ln2).astype(np.int64)
    r = q - z * ln2
    return (r + b) * r + c, z


def _exp_in_32_bits(q, ln2, b, c):
    q = np.maximum(q, np.int32(_THIRTY * ln2))
    z = q // np.int32(ln2)
    r = q - z * np.int32(ln2)
    return ((r + np.int32(b)) * r).astype(np.int64) + c, z


def _clamped_after(q, ln2, b, c):
    q = q.astype(np.int64)
    z = np.minimum(q // ln2, _THIRTY)
    r = q - z * ln2
    return (r + b) * r + c, z


I_EXP = Task(
    name="m11.q2",
    title="An exponential from integers",
    function="i_exp",
    points=6,
    minutes=12,
    source="I-BERT, section 3.5, algorithm 3; docs/arithmetic.md, section 11, eq. 46",
    kinds=(
        Kind("typical", "scores of several shapes and scales", _exp_case, count=5, public=2),
        Kind("on the steps", "0, multiples of l, and their neighbours", _on_a_step, count=4, public=2),
        Kind("far below", "scores about 30 l and below it", _far_below, count=4, public=2),
        Kind("fine scale", "a scale so fine that products pass 32 bits", _fine_scale, count=3, public=1),
    ),
    oracle=_i_exp,
    judge=Items((Exact(), Exact())),
    mistakes=(
        Mistake(
            "no floor at 30 l",
            "Far below 0 you go on halving. Inputs below 30 l count as 30 l, so that z stays within 0..30.",
            lambda q, ln2, b, c: _exp_with(q, ln2, b, c, clamp=False),
        ),
        Mistake(
            "z limited, not q",
            "You limited z to 30 after the division. The rest is then no longer within one l of 0; limit q before it.",
            _clamped_after,
        ),
        Mistake(
            "one halving too many",
            "You rounded q / l up. That makes the rest positive, where the parabola was never fitted; round down.",
            lambda q, ln2, b, c: _exp_with(q, ln2, b, c, halvings=np.ceil),
        ),
        Mistake(
            "nearest multiple",
            "You took the nearest multiple of l. The rest must lie between l and 0, so q / l is rounded down.",
            lambda q, ln2, b, c: _exp_with(q, ln2, b, c, halvings=np.rint),
        ),
        Mistake(
            "square without b",
            "Your parabola is r * r + b + c. By Horner's rule b is added to r before it is multiplied by r.",
            lambda q, ln2, b, c: (lambda r, z: (r * r + b + c, z))(
                *(lambda s: (s - s // ln2 * ln2, s // ln2))(np.maximum(q.astype(np.int64), _THIRTY * ln2))
            ),
        ),
        Mistake(
            "product in 32 bits",
            "The product of r and r + b passed 2**31 and wrapped around. Widen q to int64 first.",
            _exp_in_32_bits,
        ),
    ),
    library="labkit.kernels.reference_transformer.i_exp",
)

# --- m11.q3: i-softmax ------------------------------------------------------------------------------------------------


def _softmax_numbers(scale, bits):
    multiplier = FixedPointMultiplier.from_real(_A * scale**2 * 32767)
    return {
        "constants": _constants(scale),
        "multiplier": (int(multiplier.mantissa), int(multiplier.exponent)),
        "bits": bits,
    }


def _scores_case(rng, number):
    shape = [(2, 5), (7,), (2, 2, 3), (3, 4), (1, 6)][number % 5]
    scale = _scale(rng, 2e-4, 0.02)
    x = rng.normal(0, 1.5 / scale, shape).astype(np.int32)
    return {"x": x, "mask": None} | _softmax_numbers(scale, [8, 8, 6, 12, 8][number % 5])


def _masked_case(rng, number):
    case = _scores_case(rng, number + 3)
    x = case["x"]
    if number % 2:
        x -= 200_000  # all scores far below 0
    mask = rng.random(x.shape[-1]) < 0.6
    mask[number % len(mask)] = True
    hidden = (number + 1) % len(mask)
    mask[hidden] = False
    x[..., hidden] = np.abs(x).max() + int(rng.integers(1, 2 * np.abs(x).max()))  # the largest score takes no part
    return case | {"mask": mask}


def _row_masks(rng, number):
    shape = [(2, 3, 4), (3, 3), (2, 1, 5)][number % 3]
    scale = _scale(rng, 2e-4, 0.02)
    x = rng.normal(0, 1 / scale, shape).astype(np.int32)
    mask = rng.random((shape[0], *(1,) * (len(shape) - 2), shape[-1])) < 0.6
    mask[0] = False  # nobody left
    mask[1, ..., 0] = True
    return {"x": x, "mask": mask} | _softmax_numbers(scale, 8)


def _equal_scores(rng, number):
    length = [3, 1, 6, 2, 7, 5][number % 6]
    scale = _scale(rng, 2e-4, 0.3)
    x = np.full((2, length), int(rng.integers(-3000, 3000)), np.int32)
    if length > 2:
        x[1, 1:] -= 100_000  # so that one share is all but 1
    return {"x": x, "mask": None} | _softmax_numbers(scale, [8, 8, 10, 4][number % 4])


def _sixteen_bits(rng, number):
    """Scores for which dividing once a row shows: every share divided by itself would be another integer."""
    while True:
        scale = _scale(rng, 2e-4, 0.02)
        case = {"x": rng.normal(0, 0.5 / scale, (1, 6)).astype(np.int32), "mask": None} | _softmax_numbers(scale, 16)
        if not np.array_equal(_softmax_by(**case), _divides_directly(**case)):
            return case


def _last_bits(rng, number):
    """Scores so fine that the shift of an exponential reaches 62 and goes beyond."""
    scale = _scale(rng, 3.36e-5, 3.42e-5)
    ln2 = _constants(scale)[0]
    steps = np.array([0, 15, 15, 16, 16, 17, 14, 29])
    x = steps * ln2 + rng.integers(ln2 // 4, 1, len(steps)) * (steps > 0)
    x = np.concatenate([np.zeros(1, np.int64), x[1:] if number % 2 else x[:0:-1]]) + int(rng.integers(-9000, 9000))
    return {"x": x.astype(np.int32), "mask": None} | _softmax_numbers(scale, 16)


def _softmax_by(x, mask, constants, multiplier, bits, rounds=True):
    return library.i_softmax(
        x,
        mask=mask,
        constants=ibert.ExpConstants(*constants, 1.0),
        multiplier=FixedPointMultiplier(*multiplier),
        bits=bits,
        rounds=rounds,
    )


def _softmax_with(x, mask, constants, multiplier, bits, largest="seen", half=True, limit=True, halved=True, axis=-1):
    x = x.astype(np.int64)
    seen = np.broadcast_to(True if mask is None else mask, x.shape)
    among = np.where(seen, x, -(2**40)) if largest == "seen" else x
    below = np.minimum(x - among.max(axis=-1, keepdims=True), 0)
    P, z = _i_exp(below, *constants)
    m, e = multiplier
    shift = 31 - e + (z if halved else 0 * z)
    E = np.where(shift <= 62, (P * m + (half << np.minimum(shift - 1, 61))) >> np.minimum(shift, 62), 0)
    if largest != "after":
        E = np.where(seen, E, 0)
    total = np.maximum(E.sum(axis=axis, keepdims=True), 1)
    shares = (E * (2**32 // total) + (1 << (31 - bits))) >> (32 - bits)
    shares = np.where(seen, shares, 0)
    return np.minimum(shares, 2**bits - 1) if limit else shares


def _divides_directly(x, mask, constants, multiplier, bits):
    """The exact share of each exponential, rounded to nearest: without the reciprocal of the sum."""
    E = _softmax_exponentials(x, mask, constants, multiplier)
    total = np.maximum(E.sum(axis=-1, keepdims=True), 1)
    return np.minimum((2 * E * 2**bits + total) // (2 * total), 2**bits - 1)


def _softmax_exponentials(x, mask, constants, multiplier):
    seen = np.broadcast_to(True if mask is None else mask, x.shape)
    x = x.astype(np.int64)
    top = np.where(seen, x, -(2**40)).max(axis=-1, keepdims=True)
    P, z = _i_exp(np.where(seen, x - top, 0), *constants)
    shift = 31 - multiplier[1] + z
    E = (P * multiplier[0] + (1 << (np.minimum(shift, 62) - 1))) >> np.minimum(shift, 62)
    return np.where(seen & (shift <= 62), E, 0)


I_SOFTMAX = Task(
    name="m11.q3",
    title="Shares of attention",
    function="i_softmax",
    points=9,
    minutes=20,
    source="I-BERT, section 3.5; docs/arithmetic.md, section 11, eq. 47",
    kinds=(
        Kind("typical", "scores of several shapes, every element takes part", _scores_case, count=5, public=2),
        Kind("masked", "a mask that leaves out the largest score", _masked_case, count=4, public=2, weight=2),
        Kind("masked rows", "a mask of its own for each sentence, one with nobody left", _row_masks, count=3, public=1),
        Kind(
            "equal scores",
            "rows of equal scores, of one element, and with one winner",
            _equal_scores,
            count=6,
            public=3,
        ),
        Kind("sixteen bits", "shares of 16 bits, which show where a division was rounded", _sixteen_bits, public=1),
        Kind("last bits", "a scale so fine that s + z reaches 62 and passes it", _last_bits, count=4, public=2),
    ),
    oracle=_softmax_by,
    judge=Exact(),
    mistakes=(
        Mistake(
            "mask after the maximum",
            "You subtracted the largest of all scores. Only those that take part count: beside a large hidden one others vanish.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(
                x, mask, constants, multiplier, bits, largest="all"
            ),
        ),
        Mistake(
            "mask at the very end",
            "You set masked shares to 0 after the division, so hidden elements still took their part of the sum.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(
                x, mask, constants, multiplier, bits, largest="after"
            ),
        ),
        Mistake(
            "mask ignored",
            "Elements whose mask is False get a share. They take no part: not in the maximum, not in the sum, and get 0.",
            lambda x, mask, constants, multiplier, bits: _softmax_by(x, None, constants, multiplier, bits),
        ),
        Mistake(
            "shares rounded down",
            "Your shares are rounded down, as I-BERT does it. Half of the last step has to be added before the shift.",
            lambda x, mask, constants, multiplier, bits: _softmax_by(
                x, mask, constants, multiplier, bits, rounds=False
            ),
        ),
        Mistake(
            "exponentials rounded down",
            "Your E are rounded down: the half 2**(s + z - 1) is missing before the shift.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(
                x, mask, constants, multiplier, bits, half=False
            ),
        ),
        Mistake(
            "halvings forgotten",
            "You used P alone. It stands for the rest r only; each element still has to be halved z times.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(
                x, mask, constants, multiplier, bits, halved=False
            ),
        ),
        Mistake(
            "beyond the grid",
            "A share of almost 1 came out as 2**b. The largest integer with b bits is one less.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(
                x, mask, constants, multiplier, bits, limit=False
            ),
        ),
        Mistake(
            "sum over everything",
            "Your shares are of the sum over the whole array. Each row (the last axis) is a softmax of its own.",
            lambda x, mask, constants, multiplier, bits: _softmax_with(x, mask, constants, multiplier, bits, axis=None),
        ),
        Mistake(
            "divided each element",
            "You divided each E by the sum. Eq. 47 divides once a row, 2**32 by the sum, rounds that down, and multiplies.",
            _divides_directly,
        ),
    ),
    given=("labkit.kernels.reference_transformer.i_exp", "labkit.arithmetic.ibert.ExpConstants"),
    library="labkit.kernels.reference_transformer.i_softmax",
    equivalent=(
        Equivalent(
            "E = np.where(seen & (shift <= 62), E, 0)",
            "E = np.where(seen & (shift <= 63), E, 0)",
            "At a shift of 63 what is shifted is below 2**63, so that E is 0 already.",
        ),
        Equivalent(
            "factor = 2 ** 32 // np.maximum(E.sum(axis=-1, keepdims=True), 1)",
            "factor = 2 ** 32 // np.maximum(E.sum(axis=-1, keepdims=True), 2)",
            "The largest element of a row has an E of thousands: a sum is far above 2, or 0 with all of its E.",
        ),
        Equivalent(
            "factor = 2 ** 32 // np.maximum(E.sum(axis=-1, keepdims=True), 1)",
            "factor = 2 ** 32 // np.maximum(E.sum(axis=-1, keepdims=True), 0)",
            "NumPy's integer division by 0 warns and gives 0, and where a sum is 0 all of its E are 0.",
        ),
    ),
)

# --- m11.q4: i-GELU ---------------------------------------------------------------------------------------------------


def _gelu_numbers(scale):
    found = ibert.gelu_constants(scale)
    return {"b": found.b, "c": found.c, "one": found.one}


def _gelu_case(rng, number):
    scale = float(rng.uniform(2.5e-4, 9e-4))
    shape = [(6,), (2, 3), (4,), (1, 2, 3)][number % 4]
    return {"q": np.rint(rng.normal(0, 1.2 / scale, shape)).clip(-32767, 32767).astype(np.int16)} | _gelu_numbers(scale)


def _gelu_edge(rng, number):
    numbers = _gelu_numbers(float(rng.uniform(2.5e-4, 9e-4)))
    edge = -numbers["b"]
    q = np.array([edge, edge + 1, edge - 1, -edge, -edge - 1, 1 - edge, 0, 1, -1])
    return {"q": q.astype(np.int16)} | numbers


def _gelu_ends(rng, number):
    q = np.concatenate([[32767, -32767], rng.integers(20_000, 32_767, 2), -rng.integers(20_000, 32_767, 2)])
    return {"q": q.astype(np.int16)} | _gelu_numbers(float(rng.uniform(2.5e-4, 9e-4)))


def _i_gelu(q, b, c, one):
    return -library.i_gelu(q, ibert.GeluConstants(b, c, one, 1.0))


def _gelu_with(q, b, c, one, shift=lambda v: v >> 14, limit=True, sign=np.sign):
    q = q.astype(np.int64)
    near = (np.minimum(np.abs(q), -b) if limit else np.abs(q)) + b
    return q * (-shift(sign(q) * (near * near + c)) - one)


def _gelu_in_16_bits(q, b, c, one):
    near = (np.minimum(np.abs(q), np.int16(-b)) + np.int16(b)).astype(np.int16)
    return q.astype(np.int64) * (-((np.sign(q) * ((near * near).astype(np.int64) + c)) >> 14) - one)


I_GELU = Task(
    name="m11.q4",
    title="GELU from a parabola",
    function="i_gelu",
    points=6,
    minutes=12,
    source="I-BERT, section 3.4, algorithm 2; docs/arithmetic.md, section 11, eq. 48",
    kinds=(
        Kind("typical", "inputs of 16 bits in several shapes", _gelu_case, count=5, public=2),
        Kind("at the edge", "where the parabola ends, beside it, and about 0", _gelu_edge, count=3, public=2),
        Kind("ends", "the largest inputs of both signs", _gelu_ends, count=3, public=1),
    ),
    oracle=_i_gelu,
    judge=Exact(),
    mistakes=(
        Mistake(
            "parabola without end",
            "Beyond -b the parabola bends back, and you followed it. There |q| is replaced by -b, so that erf stays 1.",
            lambda q, b, c, one: _gelu_with(q, b, c, one, limit=False),
        ),
        Mistake(
            "sign forgotten",
            "Your error function is the same for q and -q. It is odd: the sign of q belongs before the bracket.",
            lambda q, b, c, one: _gelu_with(q, b, c, one, sign=lambda q: np.where(q == 0, 0, 1)),
        ),
        Mistake(
            "shift towards zero",
            "Your negative numbers were cut off towards 0. The shift >> rounds down, also below 0.",
            lambda q, b, c, one: _gelu_with(q, b, c, one, shift=lambda v: np.sign(v) * (np.abs(v) >> 14)),
        ),
        Mistake(
            "shift to nearest",
            "You rounded the polynomial to nearest. Here I-BERT shifts, which rounds down.",
            lambda q, b, c, one: _gelu_with(q, b, c, one, shift=lambda v: (v + 2**13) >> 14),
        ),
        Mistake(
            "the other sign",
            "Your results have the wrong sign. L and o are negative, as a is; eq. 48 multiplies q by -L - o.",
            lambda q, b, c, one: -_i_gelu(q, b, c, one),
        ),
        Mistake(
            "one left out",
            "You computed x erf(x). GELU has 1 + erf(x): the integer o is that 1, at the scale of L.",
            lambda q, b, c, one: _gelu_with(q, b, c, 0),
        ),
        Mistake(
            "square in 16 bits",
            "The square wrapped around: q is an int16 array and so is what you computed from it. Widen it first.",
            _gelu_in_16_bits,
        ),
    ),
    library="labkit.kernels.reference_transformer.i_gelu",
)

# --- m11.q5: the integer square root ----------------------------------------------------------------------------------


def _any_number(rng, number):
    return {"n": int(2.0 ** rng.uniform(4, 40))}


def _squares(rng, number):
    root = int(rng.integers(3, 2 ** [4, 8, 20, 30][number % 4]))
    return {"n": root * root + [-1, 0, 1][number % 3]}


def _small(rng, number):
    return {"n": [0, 1, 2, 3, 4, 5, 7, 8][number % 8]}


def _binary_numbers(rng, number):
    power = int(rng.integers(6, 60))
    return {"n": 2**power - number % 2}


def _beyond_doubles(rng, number):
    root = 2**31 - int(rng.integers(0, 2000))
    return {"n": [2**62, root * root - 1, root * root, 2**62 - 1][number % 4]}


def _guesses(n, first=None, stop=lambda new, old: new >= old, keeps=False):
    if n == 0:
        return [0]
    guesses = [first(n) if first else 2 ** -(-n.bit_length() // 2)]
    while len(guesses) < 200:
        new = (guesses[-1] + n // guesses[-1]) // 2
        if stop(new, guesses[-1]):
            return [*guesses, new] if keeps else guesses
        guesses.append(new)
    return guesses


def _guesses_by_fractions(n):
    """Newton's method in exact fractions, rounded down after each step; its end held against labkit's integer_sqrt."""
    if n == 0:
        return [0]
    bits = len(f"{n:b}")
    guesses = [2 ** math.ceil(Fraction(bits, 2))]
    while (new := math.floor((guesses[-1] + Fraction(n, guesses[-1])) / 2)) < guesses[-1]:
        guesses.append(new)
    assert guesses[-1] == int(library.integer_sqrt(np.array(n)))
    return guesses


def _real_guesses(n):
    if n == 0:
        return [0]
    guesses = [2 ** math.ceil(n.bit_length() / 2)]
    while (new := round((guesses[-1] + n / guesses[-1]) / 2)) < guesses[-1]:
        guesses.append(new)
    return guesses


ROOT = Task(
    name="m11.q5",
    title="A square root by Newton",
    function="root_guesses",
    points=5,
    minutes=10,
    source="I-BERT, section 3.6, algorithm 4",
    kinds=(
        Kind("typical", "numbers of 4 to 40 bits", _any_number, count=5, public=2),
        Kind("squares", "square numbers and their neighbours", _squares, count=6, public=3),
        Kind("small", "0 and the first numbers", _small, count=8, public=4),
        Kind("powers of two", "powers of two and one less", _binary_numbers, count=6, public=2),
        Kind("beyond doubles", "numbers up to 2**62, which float64 cannot hold", _beyond_doubles, count=4, public=1),
    ),
    oracle=_guesses_by_fractions,
    judge=Exact(),
    mistakes=(
        Mistake(
            "starts at n",
            "You started at n. That works, but takes a step for each bit; 2**ceil(bits / 2) is already near the root.",
            lambda n: _guesses(n, first=lambda n: n),
        ),
        Mistake(
            "starts too low",
            "For an odd number of bits you start below the root. Round bits / 2 up, so that the guesses fall.",
            lambda n: _guesses(n, first=lambda n: 2 ** (n.bit_length() // 2)),
        ),
        Mistake(
            "one guess too many",
            "Your list also holds the guess that did not fall any more. The last one in the list is the root.",
            lambda n: _guesses(n, keeps=True),
        ),
        Mistake(
            "stops when close",
            "You stopped as soon as two guesses differed by 1. Go on as long as the next guess is smaller.",
            lambda n: _guesses(n, stop=lambda new, old: new >= old - 1),
        ),
        Mistake(
            "real division, to nearest",
            "Your guesses are rounded to nearest. Both divisions round down; only then the last guess is floor(sqrt(n)).",
            _real_guesses,
        ),
    ),
)

# --- m11.q6: i-LayerNorm ----------------------------------------------------------------------------------------------


def _rows_case(rng, number):
    shape = [(2, 6), (8,), (2, 2, 4), (1, 3), (3, 5)][number % 5]
    return {"x": rng.integers(-32767, 32768, shape).astype(np.int16)}


def _tied_mean(rng, number):
    length = [4, 2, 6, 8][number % 4]
    x = rng.integers(-400, 400, (4, length))
    wanted = 2 * rng.integers(-20, 20, 4) + [0, 1, 0, 1]  # even and odd integers below the tie
    x[:, -1] += wanted * length + length // 2 - x.sum(axis=1)
    return {"x": x.astype(np.int16)}


def _quiet_rows(rng, number):
    level = int(rng.integers(-9000, 9000))
    length = [4, 5, 1, 3][number % 4]
    x = np.full((3, length), level)
    x[1, 0] += 1
    x[2, -1] -= length + 1
    return {"x": x.astype(np.int16)}


def _wide_rows(rng, number):
    return {"x": rng.integers(-(2**29), 2**29, (2, [5, 7, 4][number % 3])).astype(np.int32)}


def _no_rows(rng, number):
    return {"x": np.zeros([(0, 4), (2, 0, 3)][number % 2], np.int16)}


def _i_layer_norm(x):
    return library.i_layer_norm(x, bias=np.zeros((), np.int64), shift=0)


def _mean_to_even(x):
    return np.array([round(Fraction(int(s), x.shape[-1])) for s in x.sum(axis=-1).ravel()], np.int64).reshape(
        *x.shape[:-1], 1
    )


def _norm_with(x, mean=_mean_to_even, divisor=1, halve=lambda v: v >> 1, reciprocal=True, kept=False):
    x = x.astype(np.int64)
    y = x - mean(x)
    of = x if kept else y
    squares = (of * of).sum(axis=-1, keepdims=True) // divisor
    sigma = np.maximum(library.integer_sqrt(squares), 1)
    return halve(y * (2**31 // sigma)) if reciprocal else y * 2**30 // sigma


def _norm_in_16_bits(x):
    y = x - _mean_to_even(x.astype(np.int64)).astype(x.dtype)
    y = y.astype(x.dtype)
    sigma = np.maximum(library.integer_sqrt(np.abs((y * y).astype(np.int64)).sum(axis=-1, keepdims=True)), 1)
    return (y.astype(np.int64) * (2**31 // sigma)) >> 1


I_LAYER_NORM = Task(
    name="m11.q6",
    title="A layer norm in integers",
    function="i_layer_norm",
    points=7,
    minutes=14,
    source="I-BERT, section 3.6; docs/arithmetic.md, section 11, eq. 49",
    kinds=(
        Kind("typical", "rows of 16-bit integers in several shapes", _rows_case, count=5, public=2),
        Kind("tied means", "rows whose mean lies exactly between two integers", _tied_mean, count=4, public=2),
        Kind("quiet rows", "rows of equal numbers, or all but equal", _quiet_rows, count=4, public=2),
        Kind("wide", "int32 numbers, whose squares need 60 bits", _wide_rows, count=3, public=1),
        Kind("no rows", "arrays with no row at all, as of an empty batch", _no_rows, count=2, public=0),
    ),
    oracle=_i_layer_norm,
    judge=Exact(),
    mistakes=(
        Mistake(
            "mean rounded down",
            "Your mean is rounded down. It goes to the nearest integer.",
            lambda x: _norm_with(x, mean=lambda x: x.sum(axis=-1, keepdims=True) // x.shape[-1]),
        ),
        Mistake(
            "mean half up",
            "Where the mean lies between two integers you always went up. Such a tie goes to the even one.",
            lambda x: _norm_with(
                x, mean=lambda x: (2 * x.sum(axis=-1, keepdims=True) + x.shape[-1]) // (2 * x.shape[-1])
            ),
        ),
        Mistake(
            "mean cut off",
            "Your mean is cut off towards 0, as int() and C's division do. It goes to the nearest integer.",
            lambda x: _norm_with(x, mean=lambda x: np.trunc(x.mean(axis=-1, keepdims=True)).astype(np.int64)),
        ),
        Mistake(
            "divided by D",
            "You divided the sum of squares by D. Eq. 49 does not: sqrt(D) waits in the scale of the result.",
            lambda x: _norm_with(x, divisor=x.shape[-1]),
        ),
        Mistake(
            "squares of x",
            "You summed the squares of x itself. A standard deviation is about y, the distance from the mean.",
            lambda x: _norm_with(x, kept=True),
        ),
        Mistake(
            "halved towards zero",
            "Your negative results were halved towards 0. The shift >> 1 rounds down, also below 0.",
            lambda x: _norm_with(x, halve=lambda v: np.sign(v) * (np.abs(v) >> 1)),
        ),
        Mistake(
            "divided each element",
            "You divided each element by sigma. Eq. 49 divides once a row, 2**31 by sigma, rounds that down, and multiplies.",
            lambda x: _norm_with(x, reciprocal=False),
        ),
        Mistake(
            "squares in few bits",
            "Your squares wrapped around: they have the dtype of x, which is too narrow. Widen x first.",
            _norm_in_16_bits,
        ),
    ),
    given=("labkit.kernels.reference_transformer.integer_sqrt",),
    library="labkit.kernels.reference_transformer.i_layer_norm",
    equivalent=(
        Equivalent(
            "sigma = np.maximum(np.array(roots, np.int64).reshape(squares.shape), 1)",
            "sigma = np.maximum(np.array(roots, np.int64).reshape(squares.shape), 0)",
            "NumPy's integer division by 0 warns and gives 0, and where sigma is 0 all of its y are 0.",
        ),
    ),
)

# --- m11.c1: a ledger of bits -----------------------------------------------------------------------------------------


def _ledger_case(rng, number):
    largest = 2 ** ([12, 16, 10, 14][number % 4] - 1) - 1
    return {"low": -largest, "high": largest} | _gelu_numbers(float(rng.uniform(2.5e-4, 9e-4)))


def _beyond_int32(rng, number):
    return {"low": -32767, "high": 32767} | _gelu_numbers(float(10 ** rng.uniform(-5, -4)))


def _one_sided(rng, number):
    ends = [(0, 9000), (-9000, -1), (0, 0), (-12_000, 0), (1, 4000), (-7, 500)][number % 6]
    low, high = (end + int(np.sign(end)) * int(rng.integers(0, 900)) for end in ends)
    return {"low": low, "high": high} | _gelu_numbers(float(rng.uniform(2.5e-4, 9e-4)))


def _ends_of_a_width(rng, number):
    """Squares, polynomials and products that are powers of two or one beside them; positive inputs, negative ones, or both."""
    power, beside = int(rng.integers(8, 13)), number % 3 - 1
    end = 2 ** (power + 1) - number % 2
    low, high = [(0, end), (-end, end), (-end, 0), (1, end)][number // 2 % 4]
    c = -(2 ** (2 * power + 1))
    return {"low": low, "high": high, "b": -(2**power), "c": c - beside, "one": c >> 14}


def _bits_of(values):
    low, high = int(values.min()), int(values.max())
    width = 1
    while not -(2 ** (width - 1)) <= low <= high < 2 ** (width - 1):
        width += 1
    return width


def _parts(q, b, c, one, shift=14):
    near = np.minimum(np.abs(q), -b) + b
    polynomial = np.sign(q) * (near * near + c)
    return near * near, polynomial, polynomial >> shift, q * (-(polynomial >> shift) - one)


def _ledger(low, high, b, c, one, lost=0, ends=False, shift=14):
    q = np.array([low, high]) if ends else np.arange(low, high + 1, dtype=np.int64)
    return tuple(_bits_of(values) - lost for values in _parts(q, b, c, one, shift))


def _ledger_of_magnitudes(low, high, b, c, one):
    parts = _parts(np.arange(low, high + 1, dtype=np.int64), b, c, one)
    return tuple(int(np.abs(part).max()).bit_length() + 1 for part in parts)


def _ledger_of_logarithms(low, high, b, c, one):
    parts = _parts(np.arange(low, high + 1, dtype=np.int64), b, c, one)
    return tuple(math.ceil(math.log2(max(int(np.abs(part).max()), 1))) + 1 for part in parts)


LEDGER = Task(
    name="m11.c1",
    title="A ledger of bits",
    function="gelu_bits",
    points=5,
    minutes=15,
    source="docs/arithmetic.md, section 11, eq. 48 and what follows it",
    kinds=(
        Kind("typical", "inputs of 10 to 16 bits at usual scales", _ledger_case, count=4, public=2),
        Kind("beyond int32", "scales so fine that some numbers need more than 32 bits", _beyond_int32, count=3),
        Kind("one-sided", "inputs that are all positive, all negative, or only 0", _one_sided, count=6, public=3),
        Kind("powers of two", "numbers that are powers of two, or beside them", _ends_of_a_width, count=12, public=6),
    ),
    oracle=_ledger,
    judge=Items((Exact(), Exact(), Exact(), Exact())),
    mistakes=(
        Mistake(
            "no bit for the sign",
            "You counted the bits of the magnitude. A register that can hold both signs needs one more.",
            lambda low, high, b, c, one: _ledger(low, high, b, c, one, lost=1),
        ),
        Mistake(
            "the ends alone",
            "You looked at the first and the last input only. The square is largest where the input is nearest to 0.",
            lambda low, high, b, c, one: _ledger(low, high, b, c, one, ends=True),
        ),
        Mistake(
            "magnitude alone",
            "You went by the largest magnitude. The two ends of a register differ: -128 fits into 8 bits, 128 does not.",
            _ledger_of_magnitudes,
        ),
        Mistake(
            "logarithm",
            "The logarithm misleads at powers of two: 127 fits into 8 bits, 128 needs 9. Compare with the ends of a register.",
            _ledger_of_logarithms,
        ),
        Mistake(
            "before the shift",
            "Your third and fourth numbers are those without the shift by 14, which is there to keep the product short.",
            lambda low, high, b, c, one: _ledger(low, high, b, c, one, shift=0),
        ),
    ),
)

# --- the module -------------------------------------------------------------------------------------------------------

MODULE = Module(
    name="m11",
    topic="transformers",
    title="Integer-only transformers (advanced)",
    minutes=95,
    source="I-BERT (Kim et al. 2021), sections 3.4 to 3.6; docs/arithmetic.md, section 11",
    tasks=(CONSTANTS, I_EXP, I_SOFTMAX, I_GELU, ROOT, I_LAYER_NORM, LEDGER),
    questions=(
        Question(
            name="m11.e1",
            title="Shares that are not one",
            text="Exact shares of a row add up to 1. Your integer shares with 8 bits often add up to 255 or 257 "
            "instead of 256, and sometimes to less or more still. Name two roundings that cause this, say what would happen to "
            "a row of 512 equal scores, and what one could do about it.",
            points=4,
            rubric=(
                (1, "each share is rounded by itself"),
                (1, "the reciprocal of the sum is rounded down (or a share of 1 is cut to 2**b - 1)"),
                (1, "a share of 1 / 512 is half a step: all become 0 or all become 1 of 256, so the sum is 0 or 512"),
                (1, "more bits for the shares (16), or another sensible remedy"),
            ),
            minutes=5,
        ),
        Question(
            name="m11.e2",
            title="Why sixteen bits?",
            text="Activations before a convolution have 8 bits. Why does the input of i-GELU get 16, and why would a finer scale "
            "not be better still? Use the two figures above. What is int64 needed for in this module, if i-GELU fits "
            "int32?",
            points=4,
            rubric=(
                (
                    1,
                    "the shift by 14 drops bits of a polynomial of the size 1 / S**2: at a coarse scale nothing is left",
                ),
                (1, "8 bits over a range of -8..8 give S = 0.06, far above 0.001; 16 bits give 0.00025"),
                (1, "a finer scale makes the square and the product pass 32 bits"),
                (
                    1,
                    "P m in i-softmax, or the squares and y times 2**31 / sigma in i-LayerNorm, need more than 32 bits",
                ),
            ),
            minutes=6,
        ),
    ),
)
