"""m03, bias: what is asked and how it is judged."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.bounds import accumulator_bound
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task
from labkit.graph.float_ops import BatchNorm2d
from labkit.graph.passes import fold_into
from labkit.quantization import convert

# --- m03.q1: the bias as an integer -----------------------------------------------------------------------------------


def _float32(value):
    return float(np.float32(value))


def _input_scale(rng):
    return _float32(rng.uniform(0.01, 0.1))


def _weight_scales(rng, outputs):
    return rng.uniform(0.0005, 0.01, outputs).astype(np.float32).astype(np.float64)


def _clear(values):
    """Whether no number is close to half-way between two integers."""
    return bool(np.all(np.abs(values % 1 - 0.5) > 1e-3))


def _bias_case(draw, s_w, s_x):
    while True:
        bias = draw().astype(np.float32)
        if _clear(bias.astype(np.float64) / (s_w * s_x)):
            return {"bias": bias, "s_w": s_w, "s_x": s_x}


def _one_scale(rng, number):
    size = [6, 1, 4][number % 3]
    return _bias_case(lambda: rng.normal(0, 0.5, size), float(_weight_scales(rng, 1)[0]), _input_scale(rng))


def _channel_scales(rng, number):
    size = [3, 5][number % 2]
    return _bias_case(lambda: rng.normal(0, 0.5, size), _weight_scales(rng, size), _input_scale(rng))


def _tied_bias(rng, number):
    s_w = np.array([0.25, 0.5, 0.125, 0.25, 0.5, 0.125])
    s_x = [0.5, 0.125, 0.25][number % 3]
    halves = rng.integers(-9, 9, 6) + 0.5
    return {"bias": (halves * s_w * s_x).astype(np.float32), "s_w": s_w, "s_x": s_x}


def _fine_scales(rng, number):
    s_w = (2.0 ** rng.uniform(-27, -25, 4)).astype(np.float32).astype(np.float64)
    s_x = _input_scale(rng)
    scale = float(s_w[0]) if number % 2 == 0 else s_w
    return _bias_case(lambda: rng.uniform(0.05, 0.9, 4) * [1, -1, 1, -1] * 2**30 * scale * s_x, scale, s_x)


def _with_weights(bias, s_w, s_x):
    """Zero weights with the scales ``s_w``, one a channel, and the integer bias that labkit gives them."""
    reals = np.zeros((len(bias), 1), np.float32)
    scale = np.broadcast_to(np.asarray(s_w, np.float32), bias.shape).copy()
    params = QParams(scale, np.zeros(len(bias), np.int32))
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(0))
    return convert.quantize_bias("layer", bias, reals, QTensor(reals.astype(np.int8), params, spec), np.float32(s_x))


def _bias_mistake(name, hint, quotient, nearest=np.rint):
    return Mistake(
        name, hint, lambda bias, s_w, s_x: nearest(quotient(bias.astype(np.float64), s_w, s_x)).astype(np.int64)
    )


BIAS = Task(
    name="m03.q1",
    title="The bias as an integer",
    function="quantize_bias",
    points=6,
    minutes=10,
    source="EE219 lab, eq. 11; docs/arithmetic.md, eq. 8",
    kinds=(
        Kind("one scale", "one weight scale for the whole layer", _one_scale, count=4, public=2),
        Kind("per channel", "a weight scale for each output channel", _channel_scales, count=4, public=2),
        Kind("ties", "quotients of exactly a half", _tied_bias, count=3, public=1),
        Kind(
            "fine scales",
            "scales so fine that the integers need more than the 24 bits of float32",
            _fine_scales,
            count=3,
            public=1,
        ),
    ),
    oracle=lambda bias, s_w, s_x: _with_weights(bias, s_w, s_x)[1],
    judge=Exact(),
    mistakes=(
        _bias_mistake(
            "left unscaled",
            "You rounded the bias itself. In the sum, 1 means S_w S_x: that is the mistake of the lab's 57.07 %.",
            lambda bias, s_w, s_x: bias,
        ),
        _bias_mistake(
            "weights' scale alone",
            "You divided by the scale of the weights alone. One unit of the sum is a weight's step times an input's "
            "step.",
            lambda bias, s_w, s_x: bias / s_w,
        ),
        _bias_mistake(
            "input's scale alone",
            "You divided by the scale of the input alone. One unit of the sum is a weight's step times an input's "
            "step.",
            lambda bias, s_w, s_x: bias / s_x,
        ),
        _bias_mistake(
            "multiplied",
            "You multiplied by the scale. A scale is the size of one step: how many steps fit into the bias?",
            lambda bias, s_w, s_x: bias * s_w * s_x,
        ),
        _bias_mistake(
            "eight bits",
            "You clipped the bias to 8 bits. It is added to a 32-bit sum and may be as long: that is what makes it "
            "precise.",
            lambda bias, s_w, s_x: np.clip(bias / (s_w * s_x), -127, 127),
        ),
        _bias_mistake(
            "truncates",
            "You cut the fraction off. Round to the nearest integer.",
            lambda bias, s_w, s_x: bias / (s_w * s_x),
            np.trunc,
        ),
        _bias_mistake(
            "half up",
            "Your ties go up. Eq. 8 rounds them to the even neighbour.",
            lambda bias, s_w, s_x: bias / (s_w * s_x),
            lambda v: np.floor(v + 0.5),
        ),
        _bias_mistake(
            "float32",
            "Your quotient was taken in float32, which keeps 24 bits; the integer may have 30. A float32 array "
            "divided by a Python "
            "number stays float32, so widen the bias first.",
            lambda bias, s_w, s_x: bias.astype(np.float32) / np.asarray(s_w * s_x, np.float32),
        ),
    ),
    library="labkit.quantization.convert.quantize_bias",
)

# --- m03.q2: how wrong is a bias left unscaled --------------------------------------------------------------------------


def _unscaled_case(rng, outputs, spread, coarse=False):
    bias = rng.uniform(0.6, spread, outputs) * rng.choice([-1, 1], outputs)
    s_w, s_x = _weight_scales(rng, outputs), _input_scale(rng)
    if coarse:
        s_w, s_x = rng.uniform(0.2, 0.6, outputs).astype(np.float32).astype(np.float64), _float32(rng.uniform(0.3, 0.9))
    return {"bias": bias.astype(np.float32), "s_w": s_w, "s_x": s_x, "s_y": _float32(rng.uniform(0.05, 0.2))}


def _like_lenet(rng, number):
    return _unscaled_case(rng, 5, 3.0)


def _coarse(rng, number):
    return _unscaled_case(rng, 4, 6.0, coarse=True)


def _below_half(rng, number):
    return _unscaled_case(rng, 3, 1.0) | {"bias": rng.uniform(-0.45, 0.45, 3).astype(np.float32)}


def _error_by_fractions(bias, s_w, s_x, s_y):
    reals, scales = bias.astype(np.float64).tolist(), s_w.tolist()
    means = [round(Fraction(b)) * Fraction(w) * Fraction(s_x) for b, w in zip(reals, scales, strict=True)]
    return np.array([float((m - Fraction(b)) / Fraction(s_y)) for m, b in zip(means, reals, strict=True)])


UNSCALED = Task(
    name="m03.q2",
    title="How wrong is a bias left unscaled?",
    function="unscaled_error",
    points=4,
    minutes=8,
    source="EE219 lab, section VI.A; docs/arithmetic.md, section 8",
    kinds=(
        Kind("like LeNet", "scales as LeNet has them", _like_lenet, count=4, public=2),
        Kind("coarse", "scales so coarse that what is added matters as well", _coarse, count=3, public=2),
        Kind("below a half", "biases that round to 0", _below_half, count=3, public=1),
    ),
    oracle=_error_by_fractions,
    judge=Close(1e-5, 1e-6),
    mistakes=(
        Mistake(
            "wrong sign",
            "Your error has the wrong sign: wanted is what was added minus what should have been added.",
            lambda bias, s_w, s_x, s_y: (bias - np.rint(bias) * s_w * s_x) / s_y,
        ),
        Mistake(
            "real units",
            "This is the error in real units. How many steps S_y of the output is it?",
            lambda bias, s_w, s_x, s_y: np.rint(bias) * s_w * s_x - bias,
        ),
        Mistake(
            "rounding alone",
            "You compared the rounded bias with the bias, as if an integer in the sum were worth 1. What is it worth?",
            lambda bias, s_w, s_x, s_y: (np.rint(bias) - bias) / s_y,
        ),
        Mistake(
            "not rounded",
            "The sum takes integers, so that the bias was rounded before it was added.",
            lambda bias, s_w, s_x, s_y: (bias.astype(np.float64) * s_w * s_x - bias) / s_y,
        ),
        Mistake(
            "nothing added",
            "You treat the bias as left out. Nearly so, but its rounded value was added, times what one unit of the "
            "sum is worth.",
            lambda bias, s_w, s_x, s_y: -bias.astype(np.float64) / s_y,
        ),
    ),
)

# --- m03.q3: where int32 is too small -----------------------------------------------------------------------------------


def _fitting_case(rng, wanted):
    """Biases whose integers are about ``wanted`` times 2**30, on scales of float32."""
    s_x = _input_scale(rng)
    s_w = (2.0 ** rng.uniform(-30, -22, len(wanted))).astype(np.float32)
    bias = np.array(wanted) * rng.choice([-1, 1], len(wanted)) * 2.0**30 * s_w.astype(np.float64) * s_x
    return {"bias": bias.astype(np.float32), "s_w": s_w, "s_x": s_x}


def _ordinary_channels(rng, number):
    return _fitting_case(rng, rng.uniform(0.001, 0.3, 4))


def _tiny_channels(rng, number):
    return _fitting_case(rng, [rng.uniform(1.1, 1.9), 0.0, rng.uniform(30, 900), 0.5, rng.uniform(2.1, 3.9)])


def _at_the_limit(rng, number):
    s_w = np.array([2.0**-30, 2.0**-29, 2.0**-31, 2.0**-28], np.float32)
    factor = np.array([[1, 1, -1, 2], [-1, 2, 1, 1], [2, -1, 1, -2]][number % 3])
    s_x = [0.5, 0.25, 0.125][number % 3]
    return {"bias": (factor * 2.0**30 * s_w * s_x).astype(np.float32), "s_w": s_w, "s_x": s_x}


def _needed(bias, s_x, limit=2.0**30):
    return np.abs(bias.astype(np.float64)) / (limit * s_x)


def _above(needed):
    return np.nextafter(needed.astype(np.float32), np.float32(np.inf))


FITTING = Task(
    name="m03.q3",
    title="When 32 bits are too few",
    function="fitting_weight_scale",
    points=6,
    minutes=14,
    source="docs/arithmetic.md, eq. 8a",
    kinds=(
        Kind("ordinary", "channels whose bias fits", _ordinary_channels, count=3, public=1),
        Kind(
            "tiny weights",
            "channels whose weight scale is too fine for their bias, and others",
            _tiny_channels,
            count=5,
            public=2,
        ),
        Kind("at the limit", "integers of exactly 2**30, and of twice as much", _at_the_limit, count=3, public=3),
    ),
    oracle=lambda bias, s_w, s_x: _with_weights(bias, s_w, s_x)[0].params.scale,
    judge=Exact(),
    mistakes=(
        Mistake(
            "the whole of int32",
            "You allowed the bias all of int32. Half of it, 2**30, is the bias's; the other half is left to the "
            "products.",
            lambda bias, s_w, s_x: np.where(
                _needed(bias, s_x, 2.0**31) > s_w, _above(_needed(bias, s_x, 2.0**31)), s_w
            ),
        ),
        Mistake(
            "every channel",
            "You changed channels whose bias fits already. They keep their scale.",
            lambda bias, s_w, s_x: _above(_needed(bias, s_x)),
        ),
        Mistake(
            "without magnitude",
            "A large negative bias does not fit either: compare its magnitude.",
            lambda bias, s_w, s_x: np.where(
                np.sign(bias) * _needed(bias, s_x) > s_w, _above(np.sign(bias) * _needed(bias, s_x)), s_w
            ),
        ),
        Mistake(
            "input scale forgotten",
            "The bias is divided by S_w S_x, so the scale that it needs depends on S_x too.",
            lambda bias, s_w, s_x: np.where(_needed(bias, 1.0) > s_w, _above(_needed(bias, 1.0)), s_w),
        ),
        Mistake(
            "not above",
            "Your scale is the float32 nearest to the quotient. It may lie below it, and then the bias is a little "
            "too large: take "
            "the next float32 above.",
            lambda bias, s_w, s_x: np.where(_needed(bias, s_x) > s_w, _needed(bias, s_x).astype(np.float32), s_w),
        ),
    ),
    library="labkit.quantization.convert.quantize_bias",
)

# --- m03.q4: how large a sum can become ---------------------------------------------------------------------------------


def _bound_case(rng, shape, zero_in, low=-127):
    weight = rng.integers(low, 128, shape).astype(np.int8)
    bias = rng.integers(-40000, 40000, shape[0]).astype(np.int32)
    return {"weight": weight, "bias": bias, "zero_in": zero_in}


def _linear_bound(rng, number):
    return _bound_case(rng, [(3, 5), (1, 4), (4, 1)][number % 3], int(rng.integers(0, 120)))


def _conv_bound(rng, number):
    return _bound_case(rng, [(2, 2, 3, 2), (3, 1, 2, 2)][number % 2], int(rng.integers(0, 120)))


def _high_zero_point(rng, number):
    return _bound_case(rng, (3, 4), int(rng.integers(135, 256)))


def _lowest_weight(rng, number):
    case = _bound_case(rng, (3, 4), int(rng.integers(0, 256)), low=-128)
    case["weight"][:2, number % 4] = -128
    return case


def _bound_wrongly(
    weight,
    bias,
    zero_in,
    *,
    total=lambda rows: np.abs(rows).sum(axis=1),
    reach=lambda z: max(z, 255 - z),
    beside=np.abs,
    kind=np.int64,
):
    return total(weight.reshape(len(weight), -1).astype(kind)).astype(np.int64) * reach(zero_in) + beside(bias)


def _reachable(weight, bias, zero_in):
    rows = weight.reshape(len(weight), -1).astype(np.int64)
    above, below = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    up, down = 255 - zero_in, zero_in
    return np.maximum(above * up + below * down, below * up + above * down) + np.abs(bias)


def _bound_mistake(name, hint, **changes):
    return Mistake(name, hint, lambda **inputs: _bound_wrongly(**inputs, **changes))


BOUND = Task(
    name="m03.q4",
    title="How large a sum can become",
    function="largest_accumulator",
    points=6,
    minutes=12,
    source="docs/arithmetic.md, eq. 9",
    kinds=(
        Kind("linear", "weights of linear layers", _linear_bound, count=4, public=2),
        Kind("convolution", "weights with four axes", _conv_bound, count=3, public=1),
        Kind(
            "high zero point",
            "inputs whose zero point lies above the middle of the grid",
            _high_zero_point,
            count=3,
            public=1,
        ),
        Kind("-128", "weights that use the lowest integer of int8", _lowest_weight, count=4, public=2),
    ),
    oracle=lambda weight, bias, zero_in: accumulator_bound(weight, -zero_in, 255 - zero_in, bias),
    judge=Exact(),
    mistakes=(
        _bound_mistake(
            "sum first",
            "You added the weights and took the magnitude of the sum. An input that is large where the weights are "
            "positive and "
            "small where they are negative reaches more: add the magnitudes.",
            total=lambda rows: np.abs(rows.sum(axis=1)),
        ),
        _bound_mistake(
            "always 255",
            "You took 255 for the input. What is multiplied is q - Z, whose magnitude depends on the zero point.",
            reach=lambda z: 255,
        ),
        _bound_mistake(
            "upper end alone",
            "You looked at 255 - Z alone. Below the zero point the input reaches as far as Z.",
            reach=lambda z: 255 - z,
        ),
        Mistake(
            "closer than eq. 9",
            "This is what a sum can really reach, which is less than eq. 9 allows for. Its bound is simpler: every weight meets "
            "the input farthest from Z, whatever its sign.",
            _reachable,
        ),
        _bound_mistake("no bias", "The bias is a part of the sum.", beside=np.zeros_like),
        _bound_mistake(
            "bias with its sign",
            "A negative bias does not make the bound smaller: the products may be negative too. Take its magnitude.",
            beside=lambda bias: bias,
        ),
        _bound_mistake(
            "the magnitude of -128",
            "int8 has no 128, so np.abs of -128 in int8 is -128 again. Widen the weights before you take magnitudes.",
            total=lambda rows: np.abs(rows).astype(np.int64).sum(axis=1),
            kind=np.int8,
        ),
    ),
    library="labkit.arithmetic.bounds.accumulator_bound",
)

# --- m03.q5: folding a batch norm ---------------------------------------------------------------------------------------


def _norm(rng, channels, variance=(0.3, 4.0)):
    return {
        "gamma": (rng.uniform(0.4, 2, channels) * rng.choice([-1, 1, 1], channels)).astype(np.float32),
        "beta": rng.normal(0, 1, channels).astype(np.float32),
        "mean": rng.normal(0, 1, channels).astype(np.float32),
        "variance": rng.uniform(*variance, channels).astype(np.float32),
        "epsilon": 1e-5,
    }


def _weights(rng, *shape):
    return rng.normal(0, 0.3, shape).astype(np.float32)


def _conv_norm(rng, number):
    outputs = [3, 2, 4][number % 3]
    bias = rng.normal(0, 0.5, outputs).astype(np.float32)
    return {"weight": _weights(rng, outputs, 2, 3, 3), "bias": bias} | _norm(rng, outputs)


def _linear_norm(rng, number):
    shape = [(3, 3), (4, 2)][number % 2]
    return {"weight": _weights(rng, *shape), "bias": None} | _norm(rng, shape[0])


def _small_variance(rng, number):
    case = {"weight": _weights(rng, 2, 1, 2, 2), "bias": rng.normal(0, 0.5, 2).astype(np.float32)}
    return case | _norm(rng, 2, (1e-5, 1e-3)) | {"epsilon": [1e-3, 1e-5][number % 2]}


def _folded(weight, bias, gamma, beta, mean, variance, epsilon):
    return fold_into(weight, bias, BatchNorm2d(gamma, beta, mean, variance, epsilon))


def _folded_wrongly(
    weight,
    bias,
    gamma,
    beta,
    mean,
    variance,
    epsilon,
    *,
    gain=lambda gamma, variance, epsilon: gamma / np.sqrt(variance + epsilon),
    shift=lambda bias, beta, mean, gain: beta + (bias - mean) * gain,
    spread=lambda weight, gain: (weight.T * gain).T,
):
    g = gain(gamma.astype(np.float64), variance.astype(np.float64), epsilon)
    before = np.zeros(len(weight)) if bias is None else bias
    return spread(weight, g), shift(before, beta, mean, g)


def _fold_mistake(name, hint, **changes):
    return Mistake(name, hint, lambda **inputs: _folded_wrongly(**inputs, **changes))


_FOLDED = Items((Close(1e-5, 1e-6, of_largest=True), Close(1e-5, 1e-6, of_largest=True)))

FOLD = Task(
    name="m03.q5",
    title="Folding a batch norm",
    function="fold_batch_norm",
    points=8,
    minutes=14,
    source="Jacob et al. 2018, section 3.2; docs/arithmetic.md, eq. 22 and 23",
    kinds=(
        Kind("convolution", "convolutions with a bias of their own", _conv_norm, count=4, public=2),
        Kind("no bias", "linear layers whose bias is None", _linear_norm, count=3, public=2),
        Kind(
            "small variance", "channels whose variance is about as small as epsilon", _small_variance, count=3, public=2
        ),
    ),
    oracle=_folded,
    judge=_FOLDED,
    mistakes=(
        _fold_mistake(
            "epsilon outside the root",
            "You added epsilon to the root. It belongs under the root, beside the variance.",
            gain=lambda gamma, variance, epsilon: gamma / (np.sqrt(variance) + epsilon),
        ),
        _fold_mistake(
            "no root",
            "You divided by the variance. A batch norm divides by its root, the standard deviation.",
            gain=lambda gamma, variance, epsilon: gamma / (variance + epsilon),
        ),
        _fold_mistake(
            "no epsilon",
            "Epsilon is missing. Where a channel's variance is small it decides.",
            gain=lambda gamma, variance, epsilon: gamma / np.sqrt(variance),
        ),
        _fold_mistake(
            "gamma forgotten",
            "Your gain has no gamma: a batch norm divides by the deviation and multiplies by gamma.",
            gain=lambda gamma, variance, epsilon: 1 / np.sqrt(variance + epsilon),
        ),
        _fold_mistake(
            "mean not scaled",
            "Your weights are right. In the bias, the mean (and the layer's own bias) has to be multiplied by g as "
            "well.",
            shift=lambda bias, beta, mean, gain: beta + bias - mean,
        ),
        _fold_mistake(
            "own bias not scaled",
            "The layer's own bias passes through the batch norm too: it is multiplied by g like everything the layer "
            "puts out.",
            shift=lambda bias, beta, mean, gain: beta + bias - mean * gain,
        ),
        _fold_mistake(
            "last axis",
            "You multiplied along the last axis of the weights. The channels that are normalised are the outputs, "
            "axis 0.",
            spread=lambda weight, gain: weight * gain,
        ),
    ),
    library="labkit.graph.passes.fold_into",
)

# --- m03.q6: vanished channels ------------------------------------------------------------------------------------------


def _with_gains(rng, gains):
    return {"weight": _weights(rng, len(gains), 3), "gain": np.array(gains, np.float32).astype(np.float64)}


def _healthy_and_gone(rng, number):
    case = _with_gains(rng, rng.permutation([0.8, -1.3, 2.0 ** -rng.integers(104, 124), 0.02]).tolist())
    case["weight"][:, number % 3] = 0
    return case


def _dead_before(rng, number):
    case = _with_gains(rng, [1.0, 1e-35, 0.5, -1e-36])
    case["weight"][[number % 4, (number + 1) % 4]] = 0
    return case


def _partly_small(rng, number):
    case = _with_gains(rng, [2.0**-95, -(2.0**-95), 2.0**-120, 1.0])
    case["weight"][:, 0] = 2.0**-20
    case["weight"][0, 1] = -abs(case["weight"][0, 1])
    case["weight"][1, :] = -np.abs(case["weight"][1, :])
    case["weight"][3, 1] = 0
    return case


def _gain_against_weights(rng, number):
    case = _with_gains(rng, np.roll([2.0**-103, -(2.0**-90), 1.0], number).tolist())
    case["weight"][number % 3] = rng.uniform(9, 40, 3)  # times its gain above 2**-100
    case["weight"][(number + 1) % 3] *= 2.0**-14  # times its gain below it
    return case


def _at_the_threshold(rng, number):
    gains = [2.0**-100, 2.0**-100 * (1 - 2.0**-20), -(2.0**-100), -(2.0**-101), 2.0**-99]
    weight = rng.uniform(-0.9, 0.9, (5, 2)).astype(np.float32)
    weight[:, number % 2] = [1, 1, -1, 1, -1]
    return {"weight": weight, "gain": np.array(gains)}


def _vanished_by_folding(weight, gain):
    """A batch norm with variance 1 and epsilon 0 has the gain gamma; labkit sets channels that vanish to 0."""
    zeros, ones = np.zeros(len(gain), np.float32), np.ones(len(gain), np.float32)
    folded, _ = fold_into(weight, None, BatchNorm2d(gain.astype(np.float32), zeros, zeros, ones, 0.0))
    return [c for c in range(len(gain)) if np.any(weight[c]) and not np.any(folded[c])]


def _channels(weight, gain, chosen):
    folded = weight.astype(np.float64) * gain[:, None]
    return [c for c in range(len(gain)) if chosen(weight[c], folded[c])]


VANISHED = Task(
    name="m03.q6",
    title="Channels that have vanished",
    function="vanished_channels",
    points=5,
    minutes=8,
    source="docs/arithmetic.md, eq. 23a",
    kinds=(
        Kind("one gone", "a channel with a gain below 2**-100 among others", _healthy_and_gone, count=3, public=1),
        Kind("dead before", "channels that were all zeros before the batch norm", _dead_before, count=4, public=2),
        Kind(
            "partly small",
            "channels in which some weights fall below the threshold and some do not",
            _partly_small,
            count=3,
            public=1,
        ),
        Kind(
            "gain against weights",
            "a very small gain on large weights, and a larger gain on very small weights",
            _gain_against_weights,
            count=3,
            public=1,
        ),
        Kind(
            "threshold",
            "largest weights of exactly 2**-100 after folding, and just below",
            _at_the_threshold,
            count=2,
            public=1,
        ),
    ),
    oracle=_vanished_by_folding,
    judge=Exact(),
    mistakes=(
        Mistake(
            "dead channels too",
            "You named a channel that was all zeros before the batch norm. That one did not vanish by folding, and "
            "labkit refuses it.",
            lambda weight, gain: _channels(weight, gain, lambda w, f: np.abs(f).max() < 2.0**-100),
        ),
        Mistake(
            "one small weight is enough",
            "You named channels in which some weights are still there. A channel has vanished when all of them are "
            "below 2**-100.",
            lambda weight, gain: _channels(weight, gain, lambda w, f: np.abs(f).min() < 2.0**-100 and w.any()),
        ),
        Mistake(
            "the gain alone",
            "You looked at the gain alone. What has to be small is its product with the weights.",
            lambda weight, gain: [c for c in range(len(gain)) if abs(gain[c]) < 2.0**-100 and weight[c].any()],
        ),
        Mistake(
            "without magnitude",
            "You compared weights with their signs. Negative weights are as large as their magnitude.",
            lambda weight, gain: _channels(weight, gain, lambda w, f: f.max() < 2.0**-100 and w.any()),
        ),
        Mistake(
            "exactly zero",
            "You waited until nothing at all is left. Weights below 2**-100 count as gone: their scale would come "
            "near the end of "
            "the float32 numbers.",
            lambda weight, gain: _channels(weight, gain, lambda w, f: not f.astype(np.float32).any() and w.any()),
        ),
    ),
    library="labkit.graph.passes.fold_batch_norm",
)

# --- m03.q7: bias correction --------------------------------------------------------------------------------------------


def _coarse_weights(rng, outputs, inputs):
    weight = _weights(rng, outputs, inputs)
    scale = np.abs(weight).max() / 3
    return {"weight": weight, "rounded": (np.rint(weight / scale) * scale).astype(np.float32)}


def _correction(rng, number, draw):
    outputs, inputs, samples = [(3, 4, 6), (2, 5, 3), (4, 3, 5)][number % 3]
    bias = rng.normal(0, 0.5, outputs).astype(np.float32)
    return {"bias": bias} | _coarse_weights(rng, outputs, inputs) | {"x": draw((samples, inputs)).astype(np.float32)}


def _relu_inputs(rng, number):
    return _correction(rng, number, lambda shape: np.maximum(rng.normal(0.4, 1, shape), 0))


def _signed_inputs(rng, number):
    return _correction(rng, number, lambda shape: rng.normal(rng.uniform(-1, 1), 1, shape))


def _one_sample(rng, number):
    return _correction(rng, number, lambda shape: rng.uniform(0, 2, (1, shape[1])))


def _equal_means(bias, weight, rounded, x):
    """What the rounded layer has to add so that its outputs have the mean of the original's, from the outputs themselves."""
    b, w, r, rows = (a.astype(np.float64) for a in (bias, weight, rounded, x))
    wanted = np.array([w @ row + b for row in rows]).mean(axis=0)
    got = np.array([r @ row for row in rows]).mean(axis=0)
    return wanted - got


CORRECTION = Task(
    name="m03.q7",
    title="Bias correction",
    function="corrected_bias",
    points=6,
    minutes=10,
    source="Nagel et al. 2019, section 4.2; docs/calibration-and-rounding.md",
    kinds=(
        Kind("after a ReLU", "inputs that are never negative", _relu_inputs, count=3, public=2),
        Kind("signed", "inputs of both signs", _signed_inputs, count=3, public=1),
        Kind("one sample", "a single sample", _one_sample, count=2, public=1),
    ),
    oracle=_equal_means,
    judge=Close(1e-5, 2e-6),
    mistakes=(
        Mistake(
            "wrong sign",
            "Your correction has the wrong sign: it doubles the shift. What the rounded weights add too much has to "
            "be taken away.",
            lambda bias, weight, rounded, x: bias + (rounded - weight) @ x.mean(axis=0),
        ),
        Mistake(
            "own bias lost",
            "You returned the correction alone. It is added to the bias that the layer has.",
            lambda bias, weight, rounded, x: (weight - rounded) @ x.mean(axis=0),
        ),
        Mistake(
            "inputs left out",
            "You added the errors of the weights as if every input were 1. Each is multiplied by its input, on "
            "average.",
            lambda bias, weight, rounded, x: bias + (weight - rounded).sum(axis=1),
        ),
        Mistake(
            "sum over the samples",
            "You added the shifts of all samples. Wanted is their mean.",
            lambda bias, weight, rounded, x: bias + (weight - rounded) @ x.sum(axis=0),
        ),
        Mistake(
            "one mean for all inputs",
            "You took one mean over all inputs. Each input has a mean of its own, over the samples.",
            lambda bias, weight, rounded, x: bias + (weight - rounded).sum(axis=1) * x.mean(),
        ),
    ),
    library="labkit.quantization.bias_correction.correct_empirically",
)

# --- m03.c1: what comes before a layer ----------------------------------------------------------------------------------


def _norm_before(rng, number):
    outputs, channels, size = [(3, 3, 2), (2, 3, 3), (1, 2, 2)][number % 3]
    bias = rng.normal(0, 0.5, outputs).astype(np.float32)
    return {"weight": _weights(rng, outputs, channels, size, size), "bias": bias} | _norm(rng, channels)


def _pointwise(rng, number):
    case = {"weight": _weights(rng, 2, 4, 1, 1), "bias": rng.normal(0, 0.5, 2).astype(np.float32)}
    return case | _norm(rng, 4) | {"epsilon": 1e-3}


def _by_probing(weight, bias, gamma, beta, mean, variance, epsilon):
    """The layer after its batch norm as a black box: what it gives for 0, and how far each input moves it."""
    w, b, g, t, m, v = (a.astype(np.float64) for a in (weight, bias, gamma, beta, mean, variance))

    def output(patch):
        normalised = np.stack([(patch[c] - m[c]) / (v[c] + epsilon) ** 0.5 * g[c] + t[c] for c in range(len(g))])
        return np.array([(w[o] * normalised).sum() + b[o] for o in range(len(w))])

    at_zero = output(np.zeros(w.shape[1:]))
    folded = np.empty(w.shape)
    for place in np.ndindex(w.shape[1:]):
        probe = np.zeros(w.shape[1:])
        probe[place] = 1
        folded[(slice(None), *place)] = output(probe) - at_zero
    return folded, at_zero


def _before_wrongly(weight, bias, gamma, beta, mean, variance, epsilon, *, spread, shift):
    g = gamma / np.sqrt(variance.astype(np.float64) + epsilon)
    return spread(weight, g), shift(weight, bias, beta - mean * g, beta, g)


BEFORE = Task(
    name="m03.c1",
    title="Folding the other way",
    function="fold_norm_before",
    points=4,
    minutes=20,
    source="docs/arithmetic.md, section 7, turned round",
    kinds=(
        Kind("convolution", "a batch norm in front of a convolution", _norm_before, count=4, public=2),
        Kind("1x1", "a batch norm in front of a 1 x 1 convolution", _pointwise, count=2, public=1),
    ),
    oracle=_by_probing,
    judge=_FOLDED,
    mistakes=(
        Mistake(
            "gain on the outputs",
            "You multiplied the output channels, axis 0. What is normalised here is the input.",
            lambda **inputs: _before_wrongly(
                **inputs, spread=lambda w, g: (w.T * g).T, shift=lambda w, b, s, t, g: b + w.sum(axis=(2, 3)) @ s
            ),
        ),
        Mistake(
            "one tap",
            "Your weights are right. The shift of an input channel enters once for every weight of the kernel, not "
            "once for all.",
            lambda **inputs: _before_wrongly(
                **inputs, spread=lambda w, g: w * g[:, None, None], shift=lambda w, b, s, t, g: b + w[:, :, 0, 0] @ s
            ),
        ),
        Mistake(
            "shift multiplied twice",
            "You took the folded weights for the shift. beta - mean g holds g already.",
            lambda **inputs: _before_wrongly(
                **inputs,
                spread=lambda w, g: w * g[:, None, None],
                shift=lambda w, b, s, t, g: b + (w * g[:, None, None]).sum(axis=(2, 3)) @ s,
            ),
        ),
        Mistake(
            "mean forgotten",
            "Your bias has beta in it, and not the mean that the batch norm takes away.",
            lambda **inputs: _before_wrongly(
                **inputs,
                spread=lambda w, g: w * g[:, None, None],
                shift=lambda w, b, s, t, g: b + w.sum(axis=(2, 3)) @ t,
            ),
        ),
    ),
)

# --- questions --------------------------------------------------------------------------------------------------------

EQUATION_TEN = Question(
    name="m03.e1",
    title="What is wrong with the report's eq. 10?",
    text=(
        "For $W * In + \\beta = Out$ the report writes "
        "$n_W W * n_{In} In * n_{Out} + n_{Out}\\, \\beta = n_W n_{In} n_{Out}\\, Out$. "
        "Show that it cannot be right, write the right equation, and say from it which integer has to be added to the"
        " sum "
        "*before* it is multiplied by $n_{Out}$. Does the report's own eq. 11, $S_{bias} = S_1 S_2$, agree with you?"
    ),
    points=4,
    minutes=8,
    rubric=(
        (1, "Every other term carries the factor n_W n_In n_Out; the bias carries n_Out alone."),
        (1, "(n_W W * n_In In + n_W n_In beta) n_Out = n_W n_In n_Out Out."),
        (1, "The integer is round(n_W n_In beta) = round(beta / (S_w S_x))."),
        (1, "Yes: eq. 11 is right (it is eq. 8 here), and contradicts eq. 10."),
    ),
)

FOLD_FIRST = Question(
    name="m03.e2",
    title="Fold first, then look",
    text=(
        "Why does folding come *before* the ranges of the weights are chosen? Say what goes wrong in a channel with a"
        " large gain, "
        "and in one with a small gain, if one scale is taken from the weights as they were before folding; and what "
        "one scale for each "
        "output channel changes about it."
    ),
    points=4,
    minutes=7,
    rubric=(
        (1, "It is the folded weights g W that are rounded, so it is their range that the grid has to cover."),
        (1, "Large gain: g W leaves the range of W and is clipped."),
        (1, "Small gain: g W uses only a few integers around 0, so its rounding error is relatively large."),
        (1, "A scale for each channel grows with g, so that (chosen after folding) every channel uses the whole grid."),
    ),
)

MODULE = Module(
    name="m03",
    topic="bias",
    title="Bias and batch norm",
    minutes=110,
    source="EE219 lab, section VI; docs/arithmetic.md, sections 2, 7 and 8",
    tasks=(BIAS, UNSCALED, FITTING, BOUND, FOLD, VANISHED, CORRECTION, BEFORE),
    questions=(EQUATION_TEN, FOLD_FIRST),
)
