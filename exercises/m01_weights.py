"""m01, weights: what is asked and how it is judged."""

from __future__ import annotations

import math

import numpy as np

from labkit.arithmetic.affine import (
    PerAxis,
    PerTensor,
    QParams,
    QuantSpec,
    dequantize,
    params_from_values,
    quantize,
    quantize_tensor,
)
from labkit.course.judges.values import Close, Exact, Fields, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task
from labkit.studies.ee219.report import PRINTED, PrintedRange, literal_scale_reach

_SHAPES = [(5,), (4, 3), (2, 3, 3, 2), (6, 5), (3, 1, 4, 4), (1,)]
_BITS = [8, 4, 2, 3, 6, 5, 7]


def _weights(rng, number):
    shape = _SHAPES[number % len(_SHAPES)]
    return {"w": rng.normal(rng.uniform(-0.1, 0.1), 0.2, shape).astype(np.float32)}


def _with_bits(rng, number):
    return _weights(rng, number) | {"bits": _BITS[number % len(_BITS)]}


def _off_the_middle(rng, size, low, high):
    """Numbers between the grid points ``low`` and ``high``, in steps, none of them near a half: every division gives the same."""
    return rng.integers(low, high, size) + rng.uniform(-0.45, 0.45, size)


def _largest(bits):
    return 2 ** (bits - 1) - 1


# --- m01.q1 -----------------------------------------------------------------------------------------------------------


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
    judge=Items((Items((Close(1e-5), Close(1e-5))), Items((Close(1e-4, 1e-6), Close(1e-4, 1e-6))))),
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
        Mistake(
            "magnitudes",
            "Your ranges are those of the magnitudes |w|. Negative weights count with their sign here.",
            lambda w: _three_sigma(np.abs(w)),
        ),
    ),
)

# --- m01.q2 -----------------------------------------------------------------------------------------------------------


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
    points=4,
    minutes=7,
    source="EE219 lab, eq. 2; docs/arithmetic.md, eqs. 3 and 4",
    kinds=(
        Kind("typical", "weights of several shapes at 2 to 8 bits", _with_bits, count=7, public=2),
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
            "unsigned grid",
            "You divided by 2**bits - 1, as if all integers were positive. Half of them are needed for negative weights.",
            lambda w, bits: np.abs(w).max() / (2**bits - 1),
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

# --- m01.q3 -----------------------------------------------------------------------------------------------------------

# conv1 of the weights, fc1 of the activations, then the rest
_ROWS = tuple(
    sorted(PRINTED, key=lambda row: (row.kind, row.layer) not in (("weights", "conv1"), ("activations", "fc1")))
)


def _row(low, high, left, right, said):
    return {"actual": (float(low), float(high)), "three_sigma": (float(left), float(right)), "said": said}


def _printed_row(rng, number):
    row = _ROWS[number]
    return _row(row.low, row.high, row.sigma_low, row.sigma_high, row.said)


def _sixteenths(rng, lowest, highest):
    return int(rng.integers(lowest, highest)) / 16


def _sticks_out(rng, number):
    low, high = -_sixteenths(rng, 8, 40), _sixteenths(rng, 8, 40)
    width = (high - low) * (0.75 if number < 3 else 1.25)
    shift = _sixteenths(rng, 2, 6) + max(0, width - (high - low))  # and so the other end lies inside
    ends = (high + shift - width, high + shift) if number % 2 == 0 else (low - shift, low - shift + width)
    return _row(low, high, *ends, ["larger", "smaller"][number // 2 % 2])


def _equal_widths(rng, number):
    low, high, shift = -_sixteenths(rng, 8, 40), _sixteenths(rng, 8, 40), _sixteenths(rng, 1, 6)
    return _row(low, high, low + shift, high + shift, ["larger", "smaller"][number % 2])


def _audited(actual, three_sigma, said):
    row = PrintedRange("weights", "", *actual, *three_sigma, False, said)
    return {
        "mean": row.mean,
        "sigma": row.deviation,
        "ratio": row.width_ratio,
        "holds": {"larger": row.width_ratio > 1, "smaller": row.width_ratio < 1}[said],
        "reaches": literal_scale_reach(row),
    }


def _audit_with(change):
    return lambda actual, three_sigma, said: (
        _audited(actual, three_sigma, said) | change(*actual, *three_sigma, said == "larger")
    )


AUDIT = Task(
    name="m01.q3",
    title="Hold a report against its own numbers",
    function="audit",
    points=6,
    minutes=12,
    source="EE219 lab, sections II.B, III.A and IV.B",
    kinds=(
        Kind("the report", "rows as the report prints them", _printed_row, count=11, public=2),
        Kind("sticks out", "a 3-sigma range that sticks out on one side", _sticks_out, count=6, public=2),
        Kind("equal widths", "two ranges of the same width: neither is larger", _equal_widths, count=4, public=2),
    ),
    oracle=_audited,
    judge=Fields(
        ("mean", "sigma", "ratio", "holds", "reaches"),
        (Close(1e-6, 1e-9), Close(1e-6), Close(1e-6), Exact(), Close(1e-6)),
    ),
    mistakes=(
        Mistake(
            "a third of the width",
            "The 3-sigma range goes 3 sigma to the left of the mean and 3 sigma to the right. Count how many sigma wide it is.",
            _audit_with(lambda low, high, left, right, larger: {"sigma": (right - left) / 3}),
        ),
        Mistake(
            "middle of the wrong range",
            "Your mean is the middle of the actual range, which says nothing of the mean. The 3-sigma range is built around it.",
            _audit_with(lambda low, high, left, right, larger: {"mean": (low + high) / 2}),
        ),
        Mistake(
            "compares one end",
            "You compared one end of the ranges. A range can stick out on one side and still be the shorter one: compare widths.",
            _audit_with(lambda low, high, left, right, larger: {"holds": (right > high) == larger}),
        ),
        Mistake(
            "no third way",
            "Where both widths are equal, neither 'larger' nor 'smaller' is true, and you let one of them pass.",
            _audit_with(lambda low, high, left, right, larger: {"holds": (right - left > high - low) == larger}),
        ),
        Mistake(
            "the largest only",
            "With the scale high / 127, high itself becomes 127; but ask which end is the farther one, and what becomes of that.",
            _audit_with(lambda low, high, left, right, larger: {"reaches": 127.0}),
        ),
    ),
    library="labkit.studies.ee219.report.slips",
)

# --- m01.q4 -----------------------------------------------------------------------------------------------------------


def _to_integers(w, scale, bits):
    spec = QuantSpec(bits, narrow=True)
    return quantize(w, QParams(np.float32(scale), np.int32(0)), spec)


def _scaled(rng, number, reach):
    bits = _BITS[number % len(_BITS)]
    shape = _SHAPES[number % len(_SHAPES)]
    far = int(np.ceil(reach * _largest(bits)))
    scale = float(np.float32(rng.uniform(0.003, 0.3)))
    return {"w": (_off_the_middle(rng, shape, -far, far + 1) * scale).astype(np.float32), "scale": scale, "bits": bits}


def _inside_grid(rng, number):
    return _scaled(rng, number, 1.0)


def _beyond_grid(rng, number):
    case = _scaled(rng, number, 2.5)
    w = case["w"].reshape(-1)
    far = 1.7 * (_largest(case["bits"]) + 1) * case["scale"]
    w[0], w[-1] = (far, -far) if number % 2 == 0 else (-far, far)
    return case


def _ties(rng, number):
    bits = [4, 8, 3, 5][number % 4]
    steps = rng.integers(-_largest(bits), _largest(bits), 12) + 0.5
    steps[:4] = [0.5, 1.5, -0.5, -1.5]
    scale = 2.0 ** -int(rng.integers(1, 7))
    return {"w": (steps * scale).astype(np.float32), "scale": scale, "bits": bits}


def _lowest_left_out(rng, number):
    bits = _BITS[number % len(_BITS)]
    scale = float(np.float32(rng.uniform(0.01, 0.1)))
    edge = _largest(bits) + 1
    steps = np.array([-edge, -edge + 0.3, edge, edge - 0.3, 0.0, -edge + 1, edge - 1])
    return {"w": (steps * scale).astype(np.float32), "scale": scale, "bits": bits}


def _cast_first(w, scale, bits):
    integers = np.rint(w / scale).astype(np.int64).astype(np.int8)  # wraps around, as many machines do
    return np.clip(integers, -_largest(bits), _largest(bits))


def _clipped(integers, bits, lowest=None):
    return np.clip(integers, -_largest(bits) if lowest is None else lowest, _largest(bits)).astype(np.int8)


INTEGERS = Task(
    name="m01.q4",
    title="From weights to integers",
    function="to_integers",
    points=6,
    minutes=12,
    source="EE219 lab, eq. 3 and section III.A; docs/arithmetic.md, eqs. 2 and 3",
    kinds=(
        Kind("typical", "weights that all fit the grid, at 2 to 8 bits", _inside_grid, count=7, public=2),
        Kind("ties", "weights exactly half-way between two integers", _ties, count=4, public=2),
        Kind("beyond the grid", "weights farther out than the largest integer", _beyond_grid, count=7, public=2),
        Kind(
            "lowest left out", "weights next to the integer that the narrow grid leaves out", _lowest_left_out, public=1
        ),
    ),
    oracle=_to_integers,
    judge=Exact(),
    mistakes=(
        Mistake(
            "truncates",
            "Your integers are cut off towards 0, so that 2.9 becomes 2. Changing the type of a number does not round it.",
            lambda w, scale, bits: _clipped(np.trunc(w / scale), bits),
        ),
        Mistake(
            "rounds down",
            "Your integers are rounded down, which lowers each weight by half a step on average. Rounding to nearest is wanted.",
            lambda w, scale, bits: _clipped(np.floor(w / scale), bits),
        ),
        Mistake(
            "half up",
            "You round halves up. Here halves go to the even neighbour: 0.5 to 0, 1.5 to 2, -0.5 to 0, -1.5 to -2.",
            lambda w, scale, bits: _clipped(np.floor(w / scale + 0.5), bits),
        ),
        Mistake(
            "half away from 0",
            "You round halves away from 0, as at school. Here they go to the even neighbour: 0.5 to 0, 1.5 to 2, 2.5 to 2.",
            lambda w, scale, bits: _clipped(np.sign(w) * np.floor(np.abs(w / scale) + 0.5), bits),
        ),
        Mistake(
            "full grid",
            "You let -2**(bits - 1) through. The narrow grid is symmetric: its lowest integer is minus its highest.",
            lambda w, scale, bits: _clipped(np.rint(w / scale), bits, -_largest(bits) - 1),
        ),
        Mistake(
            "turned into int8 before clipping",
            "Numbers beyond int8 wrapped around before you clipped them, and large weights changed sign. Mind the order.",
            _cast_first,
        ),
        Mistake(
            "no clipping",
            "Some of your integers lie outside the grid. What is too far out takes the grid's last integer.",
            lambda w, scale, bits: np.rint(w / scale).astype(np.int64),
        ),
        Mistake(
            "multiplies by the scale",
            "You multiplied by the scale. A scale is the size of one step; ask how many steps fit into a weight.",
            lambda w, scale, bits: _clipped(np.rint(w * scale), bits),
        ),
    ),
    library="labkit.arithmetic.affine.quantize",
)

# --- m01.q5 -----------------------------------------------------------------------------------------------------------


def _integers(rng, shape, bits):
    return rng.integers(-_largest(bits), _largest(bits) + 1, shape).astype(np.int8)


def _one_scale(rng, number):
    shape = _SHAPES[number % len(_SHAPES)]
    return {"q": _integers(rng, shape, 8), "scale": float(np.float32(rng.uniform(0.001, 0.1)))}


def _scale_a_channel(rng, number):
    shape = [(4, 3), (2, 3, 2, 2), (5,), (3, 1, 2, 3)][number % 4]
    return {
        "q": _integers(rng, shape, [8, 4][number % 2]),
        "scale": rng.uniform(0.001, 0.1, shape[0]).astype(np.float32),
    }


def _square(rng, number):
    side = 3 + number
    shape = [(side, side), (side, side, side)][number % 2]
    return {"q": _integers(rng, shape, 4), "scale": rng.uniform(0.001, 0.1, side).astype(np.float32)}


def _to_reals(q, scale):
    scale = np.asarray(scale, np.float32)
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(0) if scale.ndim else PerTensor())
    return dequantize(q, QParams(scale, np.zeros(scale.shape, np.int32)), spec)


REALS = Task(
    name="m01.q5",
    title="And back to real numbers",
    function="to_reals",
    points=4,
    minutes=8,
    source="docs/arithmetic.md, eq. 1",
    kinds=(
        Kind("one scale", "one scale for the whole tensor", _one_scale, count=6, public=2),
        Kind("square", "as many inputs as outputs, so that a wrong axis fits as well", _square, count=4, public=2),
        Kind("one a channel", "a scale for each index of the first axis", _scale_a_channel, count=4, public=2),
    ),
    oracle=_to_reals,
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "last axis",
            "Your scales run along the last axis. NumPy lines axes up from the right; the channels are the first axis.",
            lambda q, scale: q * scale,
        ),
        Mistake(
            "divides",
            "You divided by the scale. An integer counts steps, and the scale says how large a step is.",
            lambda q, scale: (q.T / scale).T,
        ),
        Mistake(
            "first scale only",
            "You used one scale for all channels, where each index of the first axis has its own.",
            lambda q, scale: q * np.ravel(scale)[0],
        ),
    ),
    library="labkit.arithmetic.affine.dequantize",
)

# --- m01.q6 -----------------------------------------------------------------------------------------------------------


def _noisy(rng, number):
    shape = _SHAPES[number % 5]
    w = rng.normal(0, 0.3, shape).astype(np.float32)
    return {"w": w, "restored": (w + rng.normal(0, [0.05, 0.002][number % 2], shape)).astype(np.float32)}


def _nothing_left(rng, number):
    w = rng.normal(0, 0.3, (3, 4)).astype(np.float32)
    return {"w": w, "restored": (w * [0, -2][number % 2]).astype(np.float32)}


def _exact(rng, number):
    w = (rng.integers(-7, 8, (3, 2 + number)) / 8).astype(np.float32)
    w[0, 0] = 0.5
    return {"w": w, "restored": w.copy()}


def _decibels(w, restored):
    signal = math.fsum(float(value) ** 2 for value in w.flat)
    noise = math.fsum((float(a) - float(b)) ** 2 for a, b in zip(w.flat, restored.flat, strict=True))
    return 10 * math.log10(signal / noise) if noise else math.inf


SQNR = Task(
    name="m01.q6",
    title="Signal over noise in decibels",
    function="sqnr",
    points=4,
    minutes=8,
    source="docs/networks.md, 'How to read this'",
    kinds=(
        Kind("typical", "restored weights with small errors", _noisy, count=5, public=2),
        Kind("nothing left", "errors as large as the weights, or larger", _nothing_left, count=2, public=2),
        Kind("exact", "weights that were restored without any error", _exact, count=2, public=1),
    ),
    oracle=_decibels,
    judge=Close(1e-3, 1e-3),
    mistakes=(
        Mistake(
            "twenty for ten",
            "You took 20 times the logarithm, which is for ratios of amplitudes. These are squares already: a power ratio.",
            lambda w, restored: 2 * _decibels(w, restored),
        ),
        Mistake(
            "upside down",
            "Your ratio is noise over signal, so that better weights get fewer decibels. Turn it round.",
            lambda w, restored: -_decibels(w, restored),
        ),
        Mistake(
            "natural logarithm",
            "You took the natural logarithm. Decibels are ten times the logarithm to base 10.",
            lambda w, restored: math.log(10) * _decibels(w, restored),
        ),
        Mistake(
            "not squared",
            "You added magnitudes. Signal and noise are sums of squares.",
            lambda w, restored: 10 * np.log10(np.abs(w).sum() / np.abs(w - restored).sum()),
        ),
        Mistake(
            "ratio of each weight",
            "You averaged a ratio for each weight. Sum the squares of all weights and of all errors first, then divide once.",
            lambda w, restored: 10 * np.log10(np.mean(np.square(w) / np.square(w - restored))),
        ),
    ),
)

# --- m01.q7 -----------------------------------------------------------------------------------------------------------


def _layer(rng, shape, bits):
    """Weights whose channels have grids of their own, each with an end on the largest integer and no other weight near a half."""
    steps = _off_the_middle(rng, shape, -_largest(bits) + 1, _largest(bits))
    rows = steps.reshape(shape[0], -1)
    rows[:, 0] = rng.choice([-1, 1], shape[0]) * _largest(bits)
    scales = np.exp(rng.uniform(-5, -1, shape[0]))
    return (rows * scales[:, None]).reshape(shape).astype(np.float32)


def _layers(rng, number):
    shape = [(3, 3), (4, 3), (2, 3, 2, 2), (2, 1, 3, 3), (4, 2, 2, 1)][number % 5]
    bits = _BITS[number % len(_BITS)]
    return {"w": _layer(rng, shape, bits), "bits": bits}


def _dead_channel(rng, number):
    shape = [(4, 3), (3, 2, 2, 2)][number % 2]
    bits = [8, 4, 3][number % 3]
    w = _layer(rng, shape, bits)
    w[1 + number % 2] = 0
    return {"w": w, "bits": bits}


def _negative_peaks(rng, number):
    case = _layers(rng, 2 * number)
    w = case["w"]
    return case | {
        "w": np.where(np.abs(w) == np.abs(w).max(axis=tuple(range(1, w.ndim)), keepdims=True), -np.abs(w), w)
    }


def _by_library(w, bits, live=None):
    """labkit's per-channel quantization of the channels that are not all 0; 0 and the scale 1 for the others."""
    live = np.array([np.any(channel) for channel in w])
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0))
    tensor = quantize_tensor(w[live], params_from_values(w[live], spec), spec)
    integers, scales = np.zeros(w.shape, np.int8), np.ones(len(w))
    integers[live], scales[live] = tensor.values, tensor.params.scale
    return integers, scales


def _with_peaks(peaks):
    """A wrong quantizer: ``peaks`` takes the weights and gives the largest magnitude of each channel, or one number."""

    def quantized(w, bits):
        scales = np.broadcast_to(peaks(w) / _largest(bits), (len(w),))
        return _clipped(np.nan_to_num(np.rint((w.T / scales).T)), bits), scales

    return quantized


def _nan_where_dead(w, bits):
    integers, scales = _by_library(w, bits)
    return integers, np.where([np.any(channel) for channel in w], scales, 0.0)


CHANNELS = Task(
    name="m01.q7",
    title="A scale for each channel",
    function="quantize_layer",
    points=6,
    minutes=12,
    source="docs/arithmetic.md, section 1, eqs. 2 and 4",
    kinds=(
        Kind("typical", "linear and convolution layers whose channels differ in size", _layers, count=7, public=3),
        Kind("negative peak", "channels whose largest magnitude is negative", _negative_peaks, count=3, public=1),
        Kind("dead channel", "a channel that holds only zeros", _dead_channel, count=4, public=2),
    ),
    oracle=_by_library,
    judge=Items((Exact(), Close(1e-6))),
    mistakes=(
        Mistake(
            "one scale for the layer",
            "All your channels share one scale. Take the largest magnitude within each channel, not of the whole layer.",
            _with_peaks(lambda w: np.abs(w).max()),
        ),
        Mistake(
            "inputs for outputs",
            "Your scales belong to the input channels. Output channels are the first axis; take the maximum over all the others.",
            _with_peaks(lambda w: np.abs(w).max(axis=tuple(i for i in range(w.ndim) if i != 1))),
        ),
        Mistake(
            "maximum without magnitude",
            "You took the largest weight of each channel. A negative one of a larger magnitude has to fit as well.",
            _with_peaks(lambda w: w.max(axis=tuple(range(1, w.ndim)))),
        ),
        Mistake(
            "scale 0 of a dead channel",
            "A channel of zeros got the scale 0, and 0 / 0 is no number. The contract says which scale it shall have.",
            _nan_where_dead,
        ),
    ),
    library="labkit.arithmetic.affine.quantize_tensor",
)

# --- m01.q8 -----------------------------------------------------------------------------------------------------------


def _limited(rng, number):
    w = rng.normal(0, 0.2, [(5, 4), (30,), (3, 2, 3, 2)][number % 3]).astype(np.float32)
    limit, bits = float(np.abs(w).max() * rng.uniform(0.4, 0.9)), _BITS[number % len(_BITS)]
    a_bit_beyond = limit * (1 + 0.3 / _largest(bits))  # by less than half a step
    w.reshape(-1)[number] = [-a_bit_beyond, a_bit_beyond][number % 2]
    return {"w": w, "limit": limit, "bits": bits}


def _outlier(rng, number):
    w = rng.normal(0, 0.1, 30).astype(np.float32)
    w[3 + number] = [2.0, -1.5][number % 2]
    return {"w": w, "limit": 0.25, "bits": [4, 3, 6][number % 3]}


def _nothing_clipped(rng, number):
    w = rng.normal(0, 0.2, (4, 5)).astype(np.float32)
    return {"w": w, "limit": float(np.abs(w).max() * [1.0, 1.6][number % 2]), "bits": [3, 4, 5][number % 3]}


def _two_errors(w, limit, bits):
    """By looking at every point of the grid for every weight."""
    values = np.asarray(w, np.float64).reshape(-1)
    grid = np.arange(-_largest(bits), _largest(bits) + 1) * (limit / _largest(bits))
    inside = np.clip(values, -limit, limit)
    nearest = np.square(inside[:, None] - grid).min(axis=1)
    beyond = np.abs(values) > limit
    total = np.square(values[:, None] - grid).min(axis=1)
    return total[beyond].sum() / values.size, nearest[~beyond].sum() / values.size


def _two_errors_by_integers(w, limit, bits):
    scale = limit / _largest(bits)
    q = np.rint(np.asarray(w, np.float64) / scale)
    errors = np.square(w - _clipped(q, bits) * scale)
    beyond = np.abs(q) > _largest(bits)
    return errors[beyond].sum() / w.size, errors[~beyond].sum() / w.size


def _errors_with(change):
    return lambda w, limit, bits: change(w, bits, *_two_errors(w, limit, bits), np.abs(w) > limit)


TRADE = Task(
    name="m01.q8",
    title="Clip or round?",
    function="clipping_and_rounding",
    points=6,
    minutes=12,
    source="EE219 lab, section V.E; docs/calibration-and-rounding.md",
    kinds=(
        Kind("typical", "limits inside the range of the weights", _limited, count=7, public=2),
        Kind("outlier", "one weight far outside all others", _outlier, count=3, public=1),
        Kind("nothing clipped", "limits at the largest magnitude or beyond it", _nothing_clipped, count=4, public=2),
    ),
    oracle=_two_errors,
    judge=Items((Close(1e-3, 1e-11), Close(1e-3, 1e-11))),
    mistakes=(
        Mistake(
            "means of each part",
            "You divided each sum by the number of weights in its part. Divide both by the number of all weights.",
            _errors_with(
                lambda w, bits, clipping, rounding, beyond: (
                    clipping * w.size / max(1, beyond.sum()),
                    rounding * w.size / max(1, (~beyond).sum()),
                )
            ),
        ),
        Mistake(
            "judged by integers",
            "You counted a weight as clipped when its integer left the grid. Less than half a step beyond the limit it rounds "
            "to the last integer, and is clipped all the same: compare the weight itself with the limit.",
            _two_errors_by_integers,
        ),
        Mistake(
            "total for a part",
            "Your second number is the whole error. Rounding is what remains when the part of clipping is taken away.",
            _errors_with(lambda w, bits, clipping, rounding, beyond: (clipping, clipping + rounding)),
        ),
        Mistake(
            "sums for means",
            "These are sums over the weights. A mean squared error divides them by the number of weights.",
            _errors_with(lambda w, bits, clipping, rounding, beyond: (clipping * w.size, rounding * w.size)),
        ),
        Mistake(
            "the range's own scale",
            "Your steps belong to the whole range of the weights. The grid ends at the limit, and its steps are finer for it.",
            lambda w, limit, bits: (
                _two_errors(w, limit, bits)[0],
                _two_errors(np.clip(w, -limit, limit), float(np.abs(w).max()), bits)[1],
            ),
        ),
        Mistake(
            "swapped",
            "The two numbers are swapped: the error of clipping comes first.",
            _errors_with(lambda w, bits, clipping, rounding, beyond: (rounding, clipping)),
        ),
    ),
    given=(
        "labkit.arithmetic.affine.QParams",
        "labkit.arithmetic.affine.QuantSpec",
        "labkit.arithmetic.affine.quantize",
        "labkit.arithmetic.affine.dequantize",
    ),
)

# --- m01.c1 -----------------------------------------------------------------------------------------------------------


def _integers_on_the_way(w, scale, bits, rounds=10_000):
    """The (weights in steps, integers) of every round until the integers rest, and the scale after them."""
    values, largest = [float(value) for value in w], _largest(bits)
    seen = []
    for _ in range(rounds):
        steps = [value / scale for value in values]
        q = [max(-largest, min(largest, round(step))) for step in steps]  # Python's round: ties to even
        if seen and seen[-1][1] == q:
            break
        seen.append((steps, q))
        scale = math.fsum(n * value for n, value in zip(q, values, strict=True)) / sum(n * n for n in q)
    return seen, scale


def _fitted(w, scale, bits, rounds=10_000):
    return _integers_on_the_way(w, scale, bits, rounds)[1]


def _clear_of_ties(rng, size, spread, scale_of, bits):
    """Normal weights that never come near a tie on the way, so that float32 and float64 take the same way."""
    while True:
        w = rng.normal(0, spread, size)
        scale = float(scale_of(np.abs(w).max()))
        seen, _ = _integers_on_the_way(w, scale, bits)
        if min(abs(step - math.floor(step) - 0.5) for steps, _ in seen for step in steps) > 1e-4:
            return {"w": w, "scale": scale, "bits": bits}


def _to_fit(rng, number):
    bits = [3, 4, 2][number % 3]
    return _clear_of_ties(rng, 40, 0.2, lambda peak: peak / _largest(bits), bits)


def _far_start(rng, number):
    return _clear_of_ties(rng, 30, 0.2, lambda peak: [2.5, 0.3][number % 2] * peak / 7, 4)


def _large_sums(rng, number):
    return _clear_of_ties(rng, 60, 0.5, lambda peak: peak / 127, 8)


def _in_int8(w, scale, bits):
    q = np.clip(np.rint(w / scale), -_largest(bits), _largest(bits)).astype(np.int8)
    return float((w * q).sum() / (q * q).sum())


FITTED = Task(
    name="m01.c1",
    title="The scale that fits best",
    function="fitted_scale",
    points=5,
    minutes=20,
    source="docs/arithmetic.md, the derivation after eq. 6",
    kinds=(
        Kind("typical", "the start of m01.q2, at 2 to 4 bits", _to_fit, count=6, public=2),
        Kind("far start", "a start that is much too coarse or much too fine", _far_start, count=4, public=2),
        Kind("8 bits", "integers whose squares need more than 8 bits", _large_sums, count=3, public=1),
    ),
    oracle=_fitted,
    judge=Close(1e-5),
    mistakes=(
        Mistake(
            "one step only",
            "You stopped after one step. The new scale changes the integers, and these change the scale: go on until they rest.",
            lambda w, scale, bits: _fitted(w, scale, bits, rounds=1),
        ),
        Mistake(
            "overflow",
            "Your integers overflowed: their squares do not fit into int8. Make them wider before you multiply.",
            _in_int8,
        ),
        Mistake(
            "mean of ratios",
            "You averaged w / q. The least squares of eq. 6 weigh each weight by its integer: one sum over another.",
            lambda w, scale, bits: float(
                np.mean([v / round(v / scale) for v in w if round(v / scale) != 0] or [scale])
            ),
        ),
    ),
    given=(
        "labkit.arithmetic.affine.QParams",
        "labkit.arithmetic.affine.QuantSpec",
        "labkit.arithmetic.affine.quantize",
    ),
)

# --- questions --------------------------------------------------------------------------------------------------------

WHAT_THE_REPORT_SAYS = Question(
    name="m01.e1",
    title="What do the numbers say?",
    text=(
        "Which sentences and numbers of the report do its own numbers contradict? Name at least three, each with the figures "
        "that speak against it. And is a layer whose 3-sigma range is *larger* than its actual range a good choice for "
        "quantization, as the report says?"
    ),
    points=5,
    minutes=10,
    rubric=(
        (1, "conv1's weights: the 3-sigma range is not larger; it lies inside the actual one, at 91 % of its width."),
        (
            1,
            "|max| / 127, read as the largest weight, sends conv1's -0.6182 to -143 and fc1's -0.1489 to -132, beyond int8.",
        ),
        (
            1,
            "Activations of fc1 (or fc2): a mean of 1.86 with a sigma of 0.09 cannot be after a ReLU with its many zeros and a "
            "largest value 100 sigma away. The minus sign of the lower end is lost.",
        ),
        (1, "A larger 3-sigma range means flat values without tails: there is nothing to cut off."),
        (1, "Using it would waste integers: the steps become wider than with the actual range (the input: by half)."),
    ),
)

WHY_NARROW = Question(
    name="m01.e2",
    title="Why give up an integer?",
    text="The grid of 8-bit weights is -127 to 127, although int8 has room for -128. Give two reasons.",
    points=2,
    rubric=(
        (
            1,
            "Symmetry: the negative of every weight is representable, and one scale max|w| / 127 serves both ends equally.",
        ),
        (1, "Bounds: |w| <= 127 keeps sums of products smaller (or: pairs of products cannot saturate 16 bits)."),
    ),
)

WHEN_TO_CLIP = Question(
    name="m01.e3",
    title="When does clipping pay?",
    text=(
        "At 8 bits the limit with the least error lies not far below the largest magnitude, at 3 bits far below. Explain why, "
        "with the two parts of the error. And why may the weights with the least squared error still not give the best accuracy?"
    ),
    points=4,
    minutes=6,
    rubric=(
        (1, "The error of rounding grows with the square of the step, and the step is limit / (2^(bits - 1) - 1)."),
        (1, "The error of clipping does not depend on the bits, only on the tail beyond the limit."),
        (
            1,
            "With few bits rounding dominates, and finer steps are worth a cut tail; with many bits it is the other way round.",
        ),
        (
            1,
            "Squared error counts all weights alike; the few large ones may matter most to the output (or: layers and inputs "
            "differ in how much an error hurts).",
        ),
    ),
)

MODULE = Module(
    name="m01",
    topic="weights",
    title="Weights: ranges, scales and integers",
    minutes=100,
    source="EE219 lab, sections II and III",
    tasks=(RANGES, SCALE, AUDIT, INTEGERS, REALS, SQNR, CHANNELS, TRADE, FITTED),
    questions=(WHAT_THE_REPORT_SAYS, WHY_NARROW, WHEN_TO_CLIP),
)
