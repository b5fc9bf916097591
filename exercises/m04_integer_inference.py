"""m04, integer inference: what is asked and how it is judged."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from labkit.arithmetic.bounds import accumulator_bound as library_bound
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.packing import pack_int4 as library_pack
from labkit.arithmetic.packing import unpack_int4 as library_unpack
from labkit.arithmetic.requantize import Requantizer, RoundingRule, scale_and_round
from labkit.course.judges.values import Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.kernels import reference

_INT32 = 2**31 - 1
_GIVEN_ROUNDING = (
    "labkit.arithmetic.requantize.scale_and_round",
    "labkit.arithmetic.requantize.RoundingRule",
    "labkit.arithmetic.fixedpoint.FixedPointMultiplier",
)

# --- m04.q1: the bound of a sum ---------------------------------------------------------------------------------------

_WEIGHTS = [(3, 5), (2, 3, 3, 3), (4, 2), (1, 6), (2, 1, 2, 4)]


def _bound_case(rng, number):
    shape = _WEIGHTS[number % len(_WEIGHTS)]
    bits = [8, 4, 8, 6, 2][number % 5]
    return {
        "weight": rng.integers(-127, 128, shape).astype(np.int8),
        "bias": rng.integers(-9000, 9000, shape[0]).astype(np.int32),
        "x_zero": int(rng.integers(0, 2 ** (bits - 1) - 1)),
        "bits": bits,
    }


def _high_zero_point(rng, number):
    case = _bound_case(rng, number)
    return case | {"x_zero": 2 ** case["bits"] - 1 - int(case["x_zero"])}


def _ends_of_int8(rng, number):
    case = _bound_case(rng, number)
    case["weight"].reshape(len(case["weight"]), -1)[:, number % 2] = -128
    return case


def _beyond_int32(rng, number):
    bias = rng.choice([-1, 1], 3) * (_INT32 - rng.integers(0, 500, 3))
    return _bound_case(rng, 0) | {"bias": bias.astype(np.int32)}


def _bound(weight, bias, x_zero, bits):
    return library_bound(weight, -x_zero, 2**bits - 1 - x_zero, bias)


BOUND = Task(
    name="m04.q1",
    title="How large can a sum become?",
    function="accumulator_bound",
    points=4,
    minutes=8,
    source="docs/arithmetic.md, section 2, eq. 9",
    kinds=(
        Kind("typical", "weights of layers of several shapes, inputs of 2 to 8 bits", _bound_case, count=5, public=2),
        Kind("high zero point", "a zero point in the upper half of the grid", _high_zero_point, count=4, public=1),
        Kind("weight -128", "int8 weights down to -128, whose magnitude int8 cannot hold", _ends_of_int8, count=4),
        Kind("beyond int32", "biases so large that the bound itself needs 64 bits", _beyond_int32, count=3, public=1),
    ),
    oracle=_bound,
    judge=Exact(),
    mistakes=(
        Mistake(
            "lets weights cancel",
            "You added the weights with their signs. The input may follow those signs, so that nothing cancels.",
            lambda weight, bias, x_zero, bits: (
                np.abs(weight.astype(int).reshape(len(weight), -1).sum(1)) * max(x_zero, 2**bits - 1 - x_zero)
                + np.abs(bias.astype(int))
            ),
        ),
        Mistake(
            "forgets the zero point",
            "You multiplied by the largest stored integer. What is multiplied is q_x - Z_x; how far from 0 can that be?",
            lambda weight, bias, x_zero, bits: _bound(weight, bias, 0, bits),
        ),
        Mistake(
            "upper end only",
            "With a zero point in the upper half of the grid the far end of q_x - Z_x is the negative one.",
            lambda weight, bias, x_zero, bits: (
                np.abs(weight.astype(int)).reshape(len(weight), -1).sum(1) * (2**bits - 1 - x_zero)
                + np.abs(bias.astype(int))
            ),
        ),
        Mistake(
            "magnitude in int8",
            "np.abs of an int8 array is int8 again, and 128 does not fit: |-128| came out as -128. Widen before np.abs.",
            lambda weight, bias, x_zero, bits: (
                np.abs(weight).reshape(len(weight), -1).sum(1) * max(x_zero, 2**bits - 1 - x_zero)
                + np.abs(bias.astype(int))
            ),
        ),
        Mistake(
            "bias with its sign",
            "A negative bias made your bound smaller. It can pull a sum down as far as a positive one pushes it up.",
            lambda weight, bias, x_zero, bits: _bound(weight, np.zeros_like(bias), x_zero, bits) + bias,
        ),
        Mistake(
            "bound in 32 bits",
            "Your bound wrapped around at 2**31. It must be computed in a wider type than the one it is to protect.",
            lambda weight, bias, x_zero, bits: _bound(weight, bias, x_zero, bits).astype(np.int32),
        ),
    ),
    library="labkit.arithmetic.bounds.accumulator_bound",
    equivalent=(
        Equivalent(
            "magnitude = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)",
            "magnitude = np.abs(weight.astype(np.int64)).reshape(len(weight), -2).sum(axis=1)",
            "NumPy takes any negative length for the one that it is to find.",
        ),
    ),
)

# --- m04.q2: a multiplier without a fraction --------------------------------------------------------------------------


def _multiplier(rng, number):
    return {"M": float(2.0 ** rng.uniform(-14, 3))}


def _power_of_two(rng, number):
    return {"M": 2.0 ** [-1, 0, 5, -9, -30][number % 5]}


def _tie_of_mantissa(rng, number):
    return {"M": float((2 * rng.integers(2**30, 2**31 - 1) + 1) * 2.0 ** -int(rng.integers(33, 45)))}


def _carry(rng, number):
    power = [0, -32, 7, -3, -9][number % 5]  # at -32 only the carry keeps the exponent at -31
    return {"M": float(math.ldexp(1 - 2.0 ** -int(rng.integers(33, 52)), power))}


def _vanishing(rng, number):
    power = [-33, -32, -40, -31][number % 4]
    fraction = float(rng.uniform(0.5, 0.99)) if number < 3 else 0.5
    return {"M": math.ldexp(fraction, power)}


def _fixed_point(M):
    found = FixedPointMultiplier.from_real(M)
    return int(found.mantissa), int(found.exponent)


def _plain_fixed_point(M, offset=0.5, carry=True, vanish=True, bits=31):
    fraction, exponent = math.frexp(M)
    mantissa = math.floor(fraction * 2**bits + offset)
    if carry and mantissa == 2**bits:
        mantissa, exponent = 2 ** (bits - 1), exponent + 1
    return (0, 0) if vanish and exponent < -31 else (mantissa, exponent)


FIXED_POINT = Task(
    name="m04.q2",
    title="A multiplier without a fraction",
    function="fixed_point",
    points=5,
    minutes=10,
    source="docs/arithmetic.md, section 3, eqs. 11 and 12",
    kinds=(
        Kind("typical", "multipliers between 2**-14 and 8", _multiplier, count=6, public=2),
        Kind("powers of two", "multipliers that are powers of two", _power_of_two, count=5, public=2),
        Kind(
            "ties", "multipliers whose mantissa lies exactly between two integers", _tie_of_mantissa, count=5, public=2
        ),
        Kind(
            "carry",
            "multipliers a hair below a power of two, whose mantissa rounds up to 2**31",
            _carry,
            count=5,
            public=2,
        ),
        Kind("tiny", "multipliers about 2**-32, below which everything rounds to 0", _vanishing, count=4, public=2),
    ),
    oracle=_fixed_point,
    judge=Items((Exact(), Exact())),
    mistakes=(
        Mistake(
            "cuts off",
            "You cut the mantissa off. Rounding it to the nearest integer halves the error.",
            lambda M: _plain_fixed_point(M, offset=0.0),
        ),
        Mistake(
            "ties to even",
            "Python's round and np.rint send a tie to the even integer. Eq. 12 sends it up.",
            lambda M: (round(math.frexp(M)[0] * 2**31), math.frexp(M)[1]) if M > 2.0**-33 else (0, 0),
        ),
        Mistake(
            "no carry",
            "Your mantissa became 2**31, which int32 cannot hold. Half of it, with one more in the exponent, is the same number.",
            lambda M: _plain_fixed_point(M, carry=False),
        ),
        Mistake(
            "tiny ones kept",
            "Your exponent went below -31. Such a multiplier is replaced by mantissa 0 and exponent 0.",
            lambda M: _plain_fixed_point(M, vanish=False),
        ),
        Mistake(
            "looks before the carry",
            "You looked at the exponent before the carry. The carry may lift it to -31, and then the multiplier is not 0.",
            lambda M: (0, 0) if math.frexp(M)[1] < -31 else _plain_fixed_point(M),
        ),
        Mistake(
            "thirty bits",
            "Your mantissa is half as large as it may be: it belongs between 2**30 and 2**31 - 1.",
            lambda M: _plain_fixed_point(M, bits=30),
        ),
    ),
    library="labkit.arithmetic.fixedpoint.FixedPointMultiplier",
)

# --- m04.q3 and q4: two rounding rules --------------------------------------------------------------------------------


def _scaled(rng, number):
    mantissa, exponent = _fixed_point(float(2.0 ** rng.uniform(-11, -2)))
    return {"a": rng.integers(-60000, 60000, 6).astype(np.int32), "mantissa": mantissa, "exponent": exponent}


def _tied(rng, number):
    exponent = [0, -1, -2, -5, -3, -10][number % 6]  # M = 2**(exponent - 1), and every odd multiple of 1/(2 M) is a tie
    odd = np.concatenate([[1, -1, -3, 3], 2 * rng.integers(-40, 40, 3) + 1])
    a = odd * 2**-exponent
    return {
        "a": np.append(a, [a[0] + 1, -(2**-exponent) // 2]).astype(np.int32),
        "mantissa": 2**30,
        "exponent": exponent,
    }


def _by_channel(rng, number):
    pairs = [_fixed_point(float(2.0 ** rng.uniform(-9, -1))) for _ in range(3)]
    return {
        "a": rng.integers(-9000, 9000, (4, 3)).astype(np.int32),
        "mantissa": np.array([m for m, _ in pairs], np.int32),
        "exponent": np.array([e for _, e in pairs], np.int32),
    }


def _largest(rng, number):
    mantissa, exponent = _fixed_point(float(2.0 ** rng.uniform(-28, -22)))
    ends = np.array([_INT32, -_INT32 - 1])
    return {
        "a": np.append(ends, rng.integers(-_INT32, _INT32, 4)).astype(np.int32),
        "mantissa": mantissa,
        "exponent": exponent,
    }


def _beside_a_tie(rng, number):
    """Sums for which a m lies by one below a tie (and by one above, for those of the other sign)."""
    mantissa = int(rng.integers(2**29, 2**30)) * 2 + 1
    below = (2**30 - 1) * pow(mantissa, -1, 2**31) % 2**31
    other = (2**30 - 1 - 2**20 * int(rng.integers(1, 400))) * pow(mantissa, -1, 2**31) % 2**31
    a = np.array([below, -below, below - 2**31, other, -other], np.int64).astype(np.int32)
    return {"a": a, "mantissa": mantissa, "exponent": 0}


def _single(a, mantissa, exponent):
    def one(value, m, e):
        return math.floor(Fraction(int(value) * int(m), 2 ** (31 - int(e))) + Fraction(1, 2))

    rounded = np.frompyfunc(one, 3, 1)(a, mantissa, exponent)
    return np.asarray(rounded).astype(np.int64)


def _with_rule(rule):
    def rounded(a, mantissa, exponent):
        return scale_and_round(a, FixedPointMultiplier(mantissa, exponent), rule, axis=a.ndim - 1)

    return rounded


def _real_product(a, mantissa, exponent):
    return np.asarray(a, np.float64) * mantissa * 2.0 ** (np.asarray(exponent) - 31.0)


SINGLE = Task(
    name="m04.q3",
    title="Round once",
    function="round_single",
    points=4,
    minutes=8,
    source="docs/arithmetic.md, section 4, eq. 13",
    kinds=(
        Kind("typical", "sums of a layer and one multiplier", _scaled, count=4, public=2),
        Kind("ties", "products that lie exactly between two integers, of both signs", _tied, count=6, public=3),
        Kind("channels", "one multiplier for each column", _by_channel, count=3, public=1),
        Kind("large sums", "sums up to both ends of int32", _largest, count=3, public=1),
        Kind("beside a tie", "large sums whose product misses a tie by its last bit", _beside_a_tie, count=3),
    ),
    oracle=_single,
    judge=Exact(),
    mistakes=(
        Mistake(
            "rounds down",
            "The shift alone always rounds down. Half of the last step has to be added before it.",
            lambda a, mantissa, exponent: (a.astype(np.int64) * mantissa) >> (31 - np.asarray(exponent, np.int64)),
        ),
        Mistake(
            "ties away from zero",
            "Your negative ties go away from zero. SINGLE sends every tie up, towards plus infinity, also below 0.",
            lambda a, mantissa, exponent: np.sign(a) * _single(np.abs(a.astype(np.int64)), mantissa, exponent),
        ),
        Mistake(
            "ties to even",
            "Your ties go to the even integer, as np.rint and round do. SINGLE sends every tie up.",
            lambda a, mantissa, exponent: np.rint(_real_product(a, mantissa, exponent)).astype(np.int64),
        ),
        Mistake(
            "product in 32 bits",
            "a times the mantissa needs up to 62 bits, and int32 arrays wrap around without a word. Widen a first.",
            lambda a, mantissa, exponent: (
                ((a * np.asarray(mantissa, np.int32)).astype(np.int64) + (1 << (30 - np.asarray(exponent, np.int64))))
                >> (31 - np.asarray(exponent, np.int64))
            ),
        ),
        Mistake(
            "product in float64",
            "A product of 62 bits does not fit the 53 bits of a float64: one that lay just below a tie was rounded up to it.",
            lambda a, mantissa, exponent: np.floor(_real_product(a, mantissa, exponent) + 0.5).astype(np.int64),
        ),
    ),
    library="labkit.arithmetic.requantize.scale_and_round",
)


def _above_one(rng, number):
    exponent = [1, 3, 2, 5][number % 4]
    mantissa = 2**30 + int(rng.integers(0, 2**30))
    return {"a": rng.integers(-60000, 60000, 6).astype(np.int32), "mantissa": mantissa, "exponent": exponent}


def _beside_an_integer(rng, number):
    """Sums for which a' m lies on a tie of the first step, and by one beside it, of both signs."""
    mantissa = int(rng.integers(2**29, 2**30)) * 2 + 1
    inverse = pow(mantissa, -1, 2**31)
    near = (-(2**30) - 1) * inverse % 2**31
    tie = 2**30 * inverse % 2**31
    beyond = (2**30 + 1) * inverse % 2**31
    a = np.array([near, -near, tie, -tie, beyond, -beyond], np.int64).astype(np.int32)
    return {"a": a, "mantissa": mantissa, "exponent": [0, -8, -20][number % 3]}


_gemmlowp = _with_rule(RoundingRule.GEMMLOWP)


def _gemmlowp_with(a, mantissa, exponent, divide, nudge=True):
    left, right = np.maximum(exponent, 0), np.maximum(np.negative(exponent), 0)
    product = (a.astype(np.int64) << left) * mantissa
    down = 1 - 2**30 if nudge else 2**30
    high = divide(product + np.where(product >= 0, 2**30, down))
    whole = np.abs(high) + ((np.int64(1) << right) >> 1)
    return np.sign(high) * (whole >> right)


GEMMLOWP = Task(
    name="m04.q4",
    title="Round twice, as gemmlowp does",
    function="round_gemmlowp",
    points=7,
    minutes=16,
    source="docs/arithmetic.md, section 4, eq. 14",
    kinds=(
        Kind("typical", "sums of a layer and one multiplier", _scaled, count=4, public=2),
        Kind("ties", "products that lie exactly between two integers, of both signs", _tied, count=6, public=3),
        Kind("above one", "multipliers above 1, whose exponent is positive", _above_one, count=4, public=1),
        Kind(
            "beside an integer",
            "large sums whose first quotient falls just beside an integer",
            _beside_an_integer,
            count=4,
        ),
        Kind("channels", "one multiplier for each column", _by_channel, count=3, public=1),
    ),
    oracle=_gemmlowp,
    judge=Exact(),
    mistakes=(
        Mistake(
            "rounds once",
            "These are the values of SINGLE: one rounding. Here the upper half is rounded first, and then once more.",
            _single,
        ),
        Mistake(
            "floor for trunc",
            "// and >> round down, also below 0. C's division, which eq. 14 means, cuts off towards 0.",
            lambda a, mantissa, exponent: _gemmlowp_with(a, mantissa, exponent, lambda v: v >> 31),
        ),
        Mistake(
            "second tie up",
            "Your second rounding sends ties up; that is GEMMLOWP_UP. In GEMMLOWP they go away from zero.",
            _with_rule(RoundingRule.GEMMLOWP_UP),
        ),
        Mistake(
            "one nudge",
            "You added 2**30 to negative products as well. The nudge depends on the sign of the product.",
            lambda a, mantissa, exponent: _gemmlowp_with(
                a, mantissa, exponent, lambda v: np.sign(v) * (np.abs(v) >> 31), nudge=False
            ),
        ),
        Mistake(
            "no left shift",
            "Where the exponent is positive, a has to be shifted left by it before anything else.",
            lambda a, mantissa, exponent: _gemmlowp(a, mantissa, np.minimum(exponent, 0)),
        ),
        Mistake(
            "quotient in float64",
            "A product of 62 bits does not fit the 53 bits of a float64, so your quotient was rounded before trunc saw it.",
            lambda a, mantissa, exponent: _gemmlowp_with(
                a, mantissa, exponent, lambda v: np.trunc(v / 2.0**31).astype(np.int64)
            ),
        ),
    ),
    library="labkit.arithmetic.requantize.scale_and_round",
    equivalent=tuple(
        Equivalent(
            "nudged = product + np.where(product >= 0, 2 ** 30, 1 - 2 ** 30)",
            f"nudged = product + np.where(product {other}, 2 ** 30, 1 - 2 ** 30)",
            "No product is 1 or -1, since the mantissa is 2**30 at least, and one of 0 gives h = 0 with either nudge.",
        )
        for other in ("> 0", ">= 1", ">= -1")
    ),
)

# --- m04.q5: a fully connected layer ----------------------------------------------------------------------------------


def _channels(rng, outputs):
    pairs = [_fixed_point(float(2.0 ** rng.uniform(-9, -6))) for _ in range(outputs)]
    return np.array([m for m, _ in pairs], np.int32), np.array([e for _, e in pairs], np.int32)


def _linear_case(rng, number):
    images, inputs, outputs = [(2, 5, 3), (1, 8, 4), (3, 4, 2), (1, 1, 1)][number % 4]
    mantissa, exponent = _channels(rng, outputs)
    return {
        "x": rng.integers(0, 256, (images, inputs)).astype(np.uint8),
        "weight": rng.integers(-127, 128, (outputs, inputs)).astype(np.int8),
        "bias": rng.integers(-12000, 12000, outputs).astype(np.int32),
        "x_zero": int(rng.integers(60, 190)),
        "mantissa": mantissa,
        "exponent": exponent,
        "y_zero": int(rng.integers(60, 190)),
        "low": 0,
        "high": 255,
    }


def _linear_relu(rng, number):
    case = _linear_case(rng, number % 3)
    high = [255, case["y_zero"] + 20][number % 2]
    return case | {"low": case["y_zero"], "high": high}


def _linear_ties(rng, number):
    case = _linear_case(rng, number % 3)
    outputs = len(case["bias"])
    exponent = rng.integers(-9, -6, outputs)
    sums = (case["x"].astype(np.int64) - case["x_zero"]) @ case["weight"].T.astype(np.int64)
    bias = (2 * rng.integers(-20, 20, outputs) + 1) * 2 ** (-exponent) - sums[0]  # the first image's sums are ties
    mantissa = np.full(outputs, 2**30, np.int32)
    return case | {"bias": bias.astype(np.int32), "mantissa": mantissa, "exponent": exponent.astype(np.int32)}


def _requantizer(mantissa, exponent, y_zero, low, high):
    return Requantizer(RoundingRule.SINGLE, FixedPointMultiplier(mantissa, exponent), y_zero, (low, high))


def _linear(x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high):
    return reference.linear(
        x,
        weight,
        bias,
        input_zero_point=x_zero,
        weight_zero_point=np.zeros((), np.int32),
        requantizer=_requantizer(mantissa, exponent, y_zero, low, high),
    )


def _wrapped(x, zero):
    return (x - np.uint8(zero)).astype(np.uint8)


def _scaled_sums(x, weight, bias, x_zero, mantissa, exponent):
    sums = (x.astype(np.int64) - x_zero) @ weight.T.astype(np.int64) + bias
    return _single(sums, mantissa, exponent)


LINEAR = Task(
    name="m04.q5",
    title="A fully connected layer in integers",
    function="linear_layer",
    points=6,
    minutes=12,
    source='docs/arithmetic.md, sections 2 and 3, eqs. 7 and 10; HAWQ slides, "Closer Look at One Layer"',
    kinds=(
        Kind(
            "typical",
            "layers of several sizes, each output with a multiplier of its own",
            _linear_case,
            count=4,
            public=2,
        ),
        Kind("fused ReLU", "a clamp narrower than the grid, as a fused ReLU or ReLU6 makes it", _linear_relu, count=4),
        Kind("ties", "sums that lie exactly between two integers of the output", _linear_ties, count=3),
    ),
    oracle=_linear,
    judge=Exact(),
    mistakes=(
        Mistake(
            "forgets the zero point of x",
            "The stored integers of x were multiplied as they are. Real numbers are proportional to q_x - Z_x.",
            lambda x, x_zero, **rest: _linear(x, x_zero=0, **rest),
        ),
        Mistake(
            "difference in uint8",
            "uint8 minus something is uint8 again: -1 became 255. Widen x before you subtract.",
            lambda x, x_zero, **rest: _linear(_wrapped(x, x_zero), x_zero=0, **rest),
        ),
        Mistake(
            "bias after the multiplier",
            "The bias is an integer at the scale of the sums (eq. 8), so it is added before they are multiplied.",
            lambda x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high: np.clip(
                _scaled_sums(x, weight, 0 * bias, x_zero, mantissa, exponent) + bias + y_zero, low, high
            ),
        ),
        Mistake(
            "clamp before the zero point",
            "You clamped first and added Z_y afterwards. The clamp is given in stored integers, zero point included.",
            lambda x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high: (
                np.clip(_scaled_sums(x, weight, bias, x_zero, mantissa, exponent), low, high) + y_zero
            ),
        ),
        Mistake(
            "no zero point of y",
            "Real 0 must come out as the integer Z_y; yours comes out as 0.",
            lambda y_zero, **rest: _linear(y_zero=0, **rest),
        ),
        Mistake(
            "one multiplier for all",
            "Every output has a multiplier of its own; you used the first one for all of them.",
            lambda mantissa, exponent, **rest: _linear(
                mantissa=np.full_like(mantissa, mantissa[0]), exponent=np.full_like(exponent, exponent[0]), **rest
            ),
        ),
    ),
    given=_GIVEN_ROUNDING,
    library="labkit.kernels.reference.linear",
)

# --- m04.q6: a convolution --------------------------------------------------------------------------------------------


_IMAGES = [
    ((1, 2, 4, 5), (2, 2, 3, 2)),
    ((2, 1, 5, 3), (3, 1, 2, 3)),
    ((1, 3, 3, 3), (1, 3, 1, 1)),
    ((1, 1, 3, 6), (2, 1, 3, 4)),
]


def _conv_case(rng, number, stride=1, padding=0):
    image, kernel = _IMAGES[number % len(_IMAGES)]
    return {
        "x": rng.integers(0, 256, image).astype(np.uint8),
        "weight": rng.integers(-127, 128, kernel).astype(np.int8),
        "bias": rng.integers(-9000, 9000, kernel[0]).astype(np.int32),
        "x_zero": int(rng.integers(30, 220)),
        "stride": stride,
        "padding": padding,
    }


def _conv_strided(rng, number):
    return _conv_case(rng, number + 1, stride=2 + number % 2)


def _conv_padded(rng, number):
    return _conv_case(rng, number, stride=1 + number // 2, padding=1 + number % 2)


def _conv(x, weight, bias, x_zero, stride, padding):
    """By PyTorch in float64: every product and sum is below 2**53 and therefore exact."""
    import torch

    centred = torch.from_numpy(x.astype(np.float64) - x_zero)
    kernel, offset = torch.from_numpy(weight.astype(np.float64)), torch.from_numpy(bias.astype(np.float64))
    return torch.nn.functional.conv2d(centred, kernel, offset, stride, padding).numpy().astype(np.int64)


def _conv_padded_with_zero(x, weight, bias, x_zero, stride, padding):
    wide = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return _conv(wide, weight, bias, x_zero, stride, 0)


CONV = Task(
    name="m04.q6",
    title="A convolution in integers",
    function="conv_sums",
    points=8,
    minutes=20,
    source="docs/arithmetic.md, section 2, eq. 7",
    kinds=(
        Kind("typical", "several shapes, images and kernels that are not square", _conv_case, count=4, public=2),
        Kind("stride", "a stride of 2 or 3", _conv_strided, count=4),
        Kind("padding", "padding, which stands for real 0, with and without a stride", _conv_padded, count=4, public=2),
    ),
    oracle=_conv,
    judge=Exact(),
    mistakes=(
        Mistake(
            "pads with the integer 0",
            "You padded with the integer 0, which stands for the real number -S_x Z_x. Which integer stands for real 0?",
            _conv_padded_with_zero,
        ),
        Mistake(
            "forgets the zero point",
            "The stored integers of x were multiplied as they are. Real numbers are proportional to q_x - Z_x.",
            lambda x_zero, **rest: _conv(x_zero=0, **rest),
        ),
        Mistake(
            "difference in uint8",
            "uint8 minus something is uint8 again: -1 became 255. Widen x before you subtract.",
            lambda x, x_zero, **rest: _conv(_wrapped(x, x_zero), x_zero=0, **rest),
        ),
        Mistake(
            "kernel turned round",
            "Your kernel is mirrored. Networks call it a convolution, but they do not turn the kernel round.",
            lambda weight, **rest: _conv(weight=weight[:, :, ::-1, ::-1].copy(), **rest),
        ),
        Mistake(
            "no bias",
            "The bias is missing. It is an integer at the scale of the sums, one for each output channel.",
            lambda bias, **rest: _conv(bias=0 * bias, **rest),
        ),
        Mistake(
            "ignores the stride",
            "Your windows move on by one pixel, whatever the stride is.",
            lambda stride, **rest: _conv(stride=1, **rest),
        ),
    ),
    library="labkit.kernels.reference.conv2d",
    seconds=10.0,
)

# --- m04.q7: a residual connection ------------------------------------------------------------------------------------


def _add_case(rng, number):
    shape = [(6,), (2, 3), (1, 2, 2, 2)][number % 3]
    ratios = rng.uniform(0.2, 1.6, 2)
    shift = 30 - math.frexp(ratios.max())[1]
    return {
        "a": rng.integers(0, 256, shape).astype(np.uint8),
        "b": rng.integers(0, 256, shape).astype(np.uint8),
        "a_zero": int(rng.integers(60, 190)),
        "b_zero": int(rng.integers(60, 190)),
        "m_a": math.floor(ratios[0] * 2**shift + 0.5),
        "m_b": math.floor(ratios[1] * 2**shift + 0.5),
        "shift": shift,
        "y_zero": int(rng.integers(90, 160)),
        "low": 0,
        "high": 255,
    }


def _add_ties(rng, number):
    case = _add_case(rng, number)
    powers = [(29, 28, 30), (28, 28, 30), (29, 30, 30), (29, 27, 31)][number % 4]
    return case | {"m_a": 2 ** powers[0], "m_b": 2 ** powers[1], "shift": powers[2]}


def _add_clamped(rng, number):
    case = _add_case(rng, number)
    return case | {"low": case["y_zero"], "high": case["y_zero"] + 40}


def _add_both(a, b, a_zero, b_zero, m_a, m_b, shift, y_zero, low, high):
    def clamped(values):
        return np.array([min(max(v + y_zero, low), high) for v in values]).reshape(a.shape)

    def nearest(fraction):
        return math.floor(fraction + Fraction(1, 2))

    parts = [
        (Fraction((int(p) - a_zero) * m_a, 2**shift), Fraction((int(q) - b_zero) * m_b, 2**shift))
        for p, q in zip(a.ravel(), b.ravel(), strict=True)
    ]
    return clamped([nearest(p + q) for p, q in parts]), clamped([nearest(p) + nearest(q) for p, q in parts])


def _add_after_clamping(a, b, a_zero, b_zero, m_a, m_b, shift, y_zero, low, high):
    once, _ = _add_both(a, b, a_zero, b_zero, m_a, m_b, shift, y_zero, low, high)
    left, _ = _add_both(a, b, a_zero, b_zero, m_a, 0, shift, y_zero, low, high)
    right, _ = _add_both(a, b, a_zero, b_zero, 0, m_b, shift, y_zero, low, high)
    return once, np.clip(left + right - y_zero, low, high)


def _add_rounding_down(a, b, a_zero, b_zero, m_a, m_b, shift, y_zero, low, high):
    left, right = (a.astype(np.int64) - a_zero) * m_a, (b.astype(np.int64) - b_zero) * m_b
    down = np.clip(((left + right) >> shift) + y_zero, low, high)
    return down, np.clip((left >> shift) + (right >> shift) + y_zero, low, high)


RESIDUAL = Task(
    name="m04.q7",
    title="A residual connection",
    function="residual_add",
    points=6,
    minutes=12,
    source='docs/arithmetic.md, section 5, eq. 19; HAWQ slides, "Simulated/Fake Quantization Error"',
    kinds=(
        Kind("typical", "two branches with scales and zero points of their own", _add_case, count=4, public=2),
        Kind("ties", "sums or branches that lie exactly between two integers", _add_ties, count=4, public=2),
        Kind("clamp", "a clamp narrower than the grid, as after a ReLU", _add_clamped, count=3),
    ),
    oracle=_add_both,
    judge=Items((Exact(), Exact())),
    mistakes=(
        Mistake(
            "the same twice",
            "Your two results are the same. The second one rounds each branch by itself and adds the integers.",
            lambda **case: (_add_both(**case)[0], _add_both(**case)[0]),
        ),
        Mistake(
            "wrong order",
            "Your two results are in the wrong order: first the sum rounded once, then the branches rounded by themselves.",
            lambda **case: _add_both(**case)[::-1],
        ),
        Mistake(
            "rounds down",
            "A shift by itself rounds down. Half of the last step has to be added before each shift.",
            _add_rounding_down,
        ),
        Mistake(
            "no zero points",
            "The stored integers were multiplied as they are. Real numbers are proportional to q - Z.",
            lambda a_zero, b_zero, **rest: _add_both(a_zero=0, b_zero=0, **rest),
        ),
        Mistake(
            "clamps each branch",
            "You clamped each branch. Only the sum has to fit the output's grid; clamp once, at the end.",
            _add_after_clamping,
        ),
        Mistake(
            "difference in uint8",
            "uint8 minus something is uint8 again: -1 became 255. Widen both branches before you subtract.",
            lambda a, b, a_zero, b_zero, **rest: _add_both(
                a=_wrapped(a, a_zero), b=_wrapped(b, b_zero), a_zero=0, b_zero=0, **rest
            ),
        ),
    ),
    library="labkit.kernels.reference.add",
)

# --- m04.q8 and q9: two integers in a byte ----------------------------------------------------------------------------


def _nibbles(rng, number):
    shape = [(4,), (2, 3), (6,), (2, 1, 2, 2)][number % 4]
    return {"values": rng.integers(-8, 8, shape).astype(np.int8)}


def _odd_nibbles(rng, number):
    shape = [(3,), (3, 3), (1,), (5, 1, 3)][number % 4]
    values = rng.integers(-8, 8, shape).astype(np.int8)
    values.reshape(-1)[-1] = [-8, 7, -1, 3][number % 4]
    return {"values": values}


def _half_bytes(values):
    flat = [int(v) % 16 for v in values.ravel()]
    return flat + [0] * (len(flat) % 2)


def _bytes_of(halves):
    return np.array([low + 16 * high for low, high in zip(halves[0::2], halves[1::2], strict=True)], np.uint8)


PACK = Task(
    name="m04.q8",
    title="Two integers in a byte",
    function="pack_int4",
    points=3,
    minutes=7,
    source="docs/arithmetic.md, section 6",
    kinds=(
        Kind("even", "an even number of integers, of any shape", _nibbles, count=4, public=2),
        Kind("odd", "an odd number of integers, whose last half-byte is 0", _odd_nibbles, count=4, public=2),
    ),
    oracle=library_pack,
    judge=Exact(),
    mistakes=(
        Mistake(
            "high half first",
            "Your halves are in the wrong order: the first integer belongs into the low four bits.",
            lambda values: np.array([(b >> 4 | b << 4) & 255 for b in library_pack(values).tolist()], np.uint8),
        ),
        Mistake(
            "sign bits spill over",
            "-1 as int8 is eight ones, and its upper four flooded the other half. Keep only the low four bits of each.",
            lambda values: _bytes_of(_spilt(values)),
        ),
        Mistake(
            "signed bytes",
            "Your bits are right, but they stand in int8, where the byte 241 reads as -15. The bytes are to be uint8.",
            lambda values: library_pack(values).view(np.int8),
        ),
        Mistake(
            "adds 8",
            "You stored v + 8. The halves are two's complement: -1 is the half-byte 15, and 0 stays 0.",
            lambda values: _bytes_of([int(v) + 8 for v in values.ravel()] + [0] * (values.size % 2)),
        ),
        Mistake(
            "halves of the array",
            "You paired the first half of the array with the second. Neighbours share a byte.",
            lambda values: _bytes_of([h for pair in _far_pairs(_half_bytes(values)) for h in pair]),
        ),
    ),
    library="labkit.arithmetic.packing.pack_int4",
)


def _spilt(values):
    """Half-bytes whose pair gives the byte that low | high << 4 gives in int8, where the sign bits of low spill over."""
    flat = [int(v) for v in values.ravel()] + [0] * (values.size % 2)
    found = []
    for low, high in zip(flat[0::2], flat[1::2], strict=True):
        byte = (low | high << 4) & 255
        found += [byte & 15, byte >> 4]
    return found


def _far_pairs(halves):
    middle = len(halves) // 2
    return zip(halves[:middle], halves[middle:], strict=True)


def _packed(rng, number):
    count = [4, 6, 2, 10][number % 4]
    values = rng.integers(-8, 8, count)
    values[: 2 * (number % 2)] = [-8, 7][: 2 * (number % 2)]
    return {"packed": library_pack(values), "count": count}


def _packed_odd(rng, number):
    count = [3, 1, 7, 5][number % 4]
    return {"packed": library_pack(rng.integers(-8, 8, count)), "count": count}


def _halves_of(packed):
    return np.array([half for byte in packed.tolist() for half in (byte % 16, byte // 16)])


UNPACK = Task(
    name="m04.q9",
    title="And out again",
    function="unpack_int4",
    points=3,
    minutes=7,
    source="docs/arithmetic.md, section 6",
    kinds=(
        Kind("even", "bytes that hold two integers each", _packed, count=4, public=2),
        Kind("odd", "bytes of which the last holds one integer only", _packed_odd, count=4, public=2),
    ),
    oracle=lambda packed, count: library_unpack(packed, (count,), signed=True),
    judge=Exact(),
    mistakes=(
        Mistake(
            "unsigned",
            "Your integers run from 0 to 15. The upper eight half-bytes stand for negative numbers.",
            lambda packed, count: _halves_of(packed)[:count],
        ),
        Mistake(
            "wraps in uint8",
            "uint8 knows no negative numbers: -1 came out as 255. Make the half-bytes signed before you subtract.",
            lambda packed, count: library_unpack(packed, (count,), signed=True).astype(np.uint8),
        ),
        Mistake(
            "takes 8 off",
            "You subtracted 8 from every half-byte, so that 0 came out as -8. Only the upper eight are negative.",
            lambda packed, count: _halves_of(packed)[:count] - 8,
        ),
        Mistake(
            "high half first",
            "Your halves are in the wrong order: the first integer is in the low four bits.",
            lambda packed, count: library_unpack((packed >> 4) | (packed << 4), (len(packed) * 2,), signed=True)[
                :count
            ],
        ),
        Mistake(
            "keeps the filling",
            "The last half-byte of an odd number is only filling. Return exactly count integers.",
            lambda packed, count: library_unpack(packed, (len(packed) * 2,), signed=True),
        ),
    ),
    library="labkit.arithmetic.packing.unpack_int4",
)

# --- m04.c1: your own kernel ------------------------------------------------------------------------------------------


def _kernel_case(rng, number):
    case = _conv_case(rng, number)
    mantissa, exponent = _channels(rng, len(case["bias"]))
    more = {"mantissa": mantissa, "exponent": exponent, "y_zero": int(rng.integers(60, 190)), "low": 0, "high": 255}
    return {name: case[name] for name in ("x", "weight", "bias", "x_zero")} | more


def _kernel_relu(rng, number):
    case = _kernel_case(rng, number)
    return case | {"low": case["y_zero"], "high": case["y_zero"] + 60}


def _kernel_ties(rng, number):
    case = _kernel_case(rng, number)
    outputs = len(case["bias"])
    exponent = rng.integers(-9, -6, outputs)
    sums = _conv(case["x"], case["weight"], 0 * case["bias"], case["x_zero"], 1, 0)[0, :, 0, 0]
    bias = (2 * rng.integers(-20, 20, outputs) + 1) * 2 ** (-exponent) - sums
    mantissa = np.full(outputs, 2**30, np.int32)
    return case | {"bias": bias.astype(np.int32), "mantissa": mantissa, "exponent": exponent.astype(np.int32)}


def _kernel(x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high):
    return reference.conv2d(
        x,
        weight,
        bias,
        input_zero_point=x_zero,
        weight_zero_point=np.zeros((), np.int32),
        requantizer=_requantizer(mantissa, exponent, y_zero, low, high),
    )


KERNEL = Task(
    name="m04.c1",
    title="Your own compiled kernel",
    function="fast_conv2d",
    points=8,
    minutes=30,
    source="docs/arithmetic.md, eqs. 7, 10 and 13; docs/kernels.md",
    kinds=(
        Kind("typical", "several shapes, images and kernels that are not square", _kernel_case, count=4, public=2),
        Kind("fused ReLU", "a clamp narrower than the grid", _kernel_relu, count=2),
        Kind("ties", "sums that lie exactly between two integers of the output", _kernel_ties, count=3),
    ),
    oracle=_kernel,
    judge=Exact(),
    mistakes=(
        Mistake(
            "rounds down",
            "The shift alone rounds down. Half of the last step has to be added before it.",
            lambda **case: _kernel_rounding(lambda a, m, e: (a * m) >> (31 - e.astype(np.int64)), **case),
        ),
        Mistake(
            "forgets the zero point of x",
            "The stored integers of x were multiplied as they are. Real numbers are proportional to q_x - Z_x.",
            lambda x_zero, **rest: _kernel(x_zero=0, **rest),
        ),
        Mistake(
            "difference in uint8",
            "The difference to Z_x was taken in uint8 and wrapped around. Make the pixel a wider integer first.",
            lambda x, x_zero, **rest: _kernel(x=_wrapped(x, x_zero), x_zero=0, **rest),
        ),
        Mistake(
            "no bias",
            "The bias is missing: it is what the sum of each output begins with.",
            lambda bias, **rest: _kernel(bias=0 * bias, **rest),
        ),
        Mistake(
            "clamp before the zero point",
            "You clamped first and added Z_y afterwards. The clamp is given in stored integers, zero point included.",
            lambda y_zero, low, high, **rest: _kernel_rounding(
                lambda a, m, e: np.clip(_single(a, m, e), low, high), y_zero=y_zero, low=-(10**9), high=10**9, **rest
            ),
        ),
    ),
    given=(),
    library="labkit.kernels.reference.conv2d",
    seconds=20.0,
)


def _kernel_rounding(rule, x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high):
    sums = _conv(x, weight, bias, x_zero, 1, 0)
    rounded = rule(sums.transpose(0, 2, 3, 1), mantissa, exponent).transpose(0, 3, 1, 2)
    return np.clip(rounded + y_zero, low, high).astype(np.int64)


# --- questions --------------------------------------------------------------------------------------------------------

WHY_MAGNITUDES = Question(
    name="m04.e1",
    title="Why so careful?",
    text=(
        "The bound of eq. 9 adds magnitudes, although in every real sum positive and negative products cancel; your figure "
        "shows how much room is left. Why does labkit demand it all the same, and does the *order* in which a kernel adds "
        "matter?"
    ),
    points=3,
    rubric=(
        (1, "The bound must hold for every input, and an input that follows the weights' signs reaches it."),
        (1, "Partial sums may be larger than the final one, and a kernel may add in any order (lanes side by side)."),
        (1, "What is at stake: an overflow wraps around silently (or saturates), which gives grossly wrong numbers."),
    ),
)

TWO_RUNTIMES = Question(
    name="m04.e2",
    title="Two phones",
    text=(
        "The same network runs on two phones. 0.6 % of the integers of one layer differ, each by one; the accuracy is the same. "
        "Is one of them wrong? Name two explanations from this module, and a test that tells them apart."
    ),
    points=4,
    rubric=(
        (1, "Neither need be wrong: both round to nearest under rules of different names."),
        (
            1,
            "Differences far more frequent than exact ties point to double rounding (GEMMLOWP), about 2**e / 2 of the results.",
        ),
        (
            1,
            "The other explanation: rules that differ in ties only (up, even, away), or a float32 product beyond 2**24.",
        ),
        (1, "A test: power-of-two multipliers and sums that are ties, or M = 1/4 with a = 1, of both signs."),
    ),
)

MODULE = Module(
    name="m04",
    topic="integer_inference",
    title="Integer inference: sums, shifts and the many ways to round",
    minutes=120,
    source="HAWQ slides (integer-only quantization); docs/arithmetic.md, sections 2 to 6",
    tasks=(BOUND, FIXED_POINT, SINGLE, GEMMLOWP, LINEAR, CONV, RESIDUAL, PACK, UNPACK, KERNEL),
    questions=(WHY_MAGNITUDES, TWO_RUNTIMES),
)
