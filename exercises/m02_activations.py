"""m02, activations: what is asked and how it is judged."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from labkit.arithmetic import affine
from labkit.arithmetic.affine import QParams, QuantSpec, params_from_range
from labkit.course.ingredients import Made
from labkit.course.judges.values import Close, Exact, Fields, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.kernels import reference
from labkit.quantization.observers import TensorStatistics
from labkit.quantization.ranges import three_sigma

_SHAPES = [(6,), (3, 4), (2, 2, 3, 2), (1,), (2, 5), (1, 3, 2, 2)]
_POWERS = [0.5, 0.25, 0.125, 1.0]

# --- m02.q1: from integers to real numbers ----------------------------------------------------------------------------


def _scale(rng):
    return float(np.float32(rng.uniform(0.004, 0.2)))


def _codes_above(rng, number):
    zero_point = int(rng.integers(0, 20))
    shape = _SHAPES[number % len(_SHAPES)]
    return {"q": rng.integers(zero_point, 256, shape).astype(np.uint8), "scale": _scale(rng), "zero_point": zero_point}


def _codes_around(rng, number):
    zero_point = int(rng.integers(60, 200))
    q = rng.integers(0, 256, _SHAPES[(number + 1) % len(_SHAPES)]).astype(np.uint8)
    q.reshape(-1)[0] = rng.integers(0, zero_point)
    return {"q": q, "scale": _scale(rng), "zero_point": zero_point}


def _codes_signed(rng, number):
    zero_point = [0, -128, 17, -40][number % 4]
    q = rng.integers(-128, 128, (2, 4)).astype(np.int8)
    q[0, :2] = 127, -128
    return {"q": q, "scale": _scale(rng), "zero_point": zero_point}


def _by_fractions(q, scale, zero_point):
    return np.array([float(Fraction(scale) * (n - zero_point)) for n in q.reshape(-1).tolist()]).reshape(q.shape)


TO_REAL = Task(
    name="m02.q1",
    title="What an integer stands for",
    function="to_real",
    points=3,
    minutes=5,
    source="EE219 lab, section III; docs/arithmetic.md, eq. 1",
    kinds=(
        Kind("above zero", "integers that are all at least the zero point", _codes_above, count=4, public=1),
        Kind("around zero", "integers on both sides of the zero point", _codes_around, count=5, public=2),
        Kind("signed", "int8 integers, with a zero point of either sign", _codes_signed, count=4, public=2),
    ),
    oracle=_by_fractions,
    judge=Close(1e-6, 1e-5),  # 1/400 of the finest step: room for S q - S Z in float32
    mistakes=(
        Mistake(
            "the zero point outside",
            "You took the zero point away after multiplying, as the lab's report prints it. The zero point is an "
            "integer of the "
            "grid, so it belongs inside the bracket, beside q: try q = Z, which must give exactly 0.",
            lambda q, scale, zero_point: scale * q.astype(np.int64) - zero_point,
        ),
        Mistake(
            "wraps around",
            "Your difference q - Z was taken in 8 bits, where there is no room for it: in uint8, 3 - 5 is 254. Give q"
            " a wider type "
            "before you subtract.",
            lambda q, scale, zero_point: scale * (q - np.array(zero_point).astype(q.dtype)),
        ),
        Mistake(
            "adds the zero point",
            "You added the zero point. Some texts write the line that way; in eq. 1 it is subtracted, so that q = Z "
            "gives 0.",
            lambda q, scale, zero_point: scale * (q.astype(np.int64) + zero_point),
        ),
        Mistake(
            "no zero point",
            "You left the zero point out. Which real number does the integer Z stand for in your function?",
            lambda q, scale, zero_point: scale * q.astype(np.int64),
        ),
    ),
    library="labkit.arithmetic.affine.dequantize",
)

# --- m02.q2: watching a layer -----------------------------------------------------------------------------------------

_LAYERS = ("first", "relu", "second")


def _net(rng, sign=0):
    first = rng.normal(0, 0.8, (3, 4)).astype(np.float32)
    second = rng.normal(0, 0.8, (2, 3)).astype(np.float32)
    if sign:
        first, second = np.abs(first), sign * np.abs(second)
    return Made("small_nets.two_linear_layers", {"first": first, "second": second})


def _one_batch(rng, number):
    return {"module": _net(rng), "names": list(_LAYERS), "batches": [rng.normal(0, 1, (4, 4)).astype(np.float32)]}


def _many_batches(rng, number):
    sizes = [0.5, 0.5, 0.5]
    sizes[number % 2] = 2.0
    batches = [rng.normal(0, size, (3, 4)).astype(np.float32) for size in sizes]
    return {"module": _net(rng), "names": list(_LAYERS), "batches": batches}


def _one_sided(rng, number):
    batches = [rng.uniform(0.5, 2, (3, 4)).astype(np.float32) for _ in range(2)]
    return {"module": _net(rng, sign=-1), "names": list(_LAYERS), "batches": batches}


def _by_layers(module, names, batches):
    """Without hooks: all images at once, layer after layer."""
    x, found = torch.from_numpy(np.concatenate(batches)), {}
    with torch.no_grad():
        for name, layer in module.named_children():
            x = layer(x)
            found[name] = (x.min().item(), x.max().item())
    return {name: found[name] for name in names}


def _watched(module, names, batches, merge, look=lambda inputs, output: output):
    found = {}
    for batch in batches:
        x = torch.from_numpy(batch)
        with torch.no_grad():
            for name, layer in module.named_children():
                y = layer(x)
                seen = look(x, y)
                found[name] = merge(found.get(name), (seen.min().item(), seen.max().item()))
                x = y
    return {name: found[name] for name in names}


def _widened(old, new):
    return new if old is None else (min(old[0], new[0]), max(old[1], new[1]))


_RANGE = Items((Close(1e-5, 1e-7), Close(1e-5, 1e-7)))

WATCH = Task(
    name="m02.q2",
    title="A hook that remembers the range",
    function="activation_ranges",
    points=5,
    minutes=10,
    source="EE219 lab, section IV",
    kinds=(
        Kind("one batch", "a single batch", _one_batch, count=3, public=1),
        Kind(
            "several batches",
            "three batches, of which the first or the second is the widest",
            _many_batches,
            count=4,
            public=2,
        ),
        Kind(
            "one-sided",
            "a layer whose outputs are all positive, and one whose outputs are all negative",
            _one_sided,
            count=3,
            public=1,
        ),
    ),
    oracle=_by_layers,
    judge=Fields(_LAYERS, (_RANGE,) * 3),
    mistakes=(
        Mistake(
            "last batch only",
            "Your hook keeps the range of the last batch alone. It is called once for each batch: compare with what "
            "it found before.",
            lambda module, names, batches: _watched(module, names, batches, lambda old, new: new),
        ),
        Mistake(
            "first batch only",
            "Your hook keeps the range of the first batch and ignores the others.",
            lambda module, names, batches: _watched(module, names, batches, lambda old, new: old or new),
        ),
        Mistake(
            "begins at 0",
            "Your ranges begin as (0, 0), so they always hold 0 even where the layer never gave it. Begin with the "
            "first batch, or "
            "with ends that any number beats.",
            lambda module, names, batches: _watched(
                module, names, batches, lambda old, new: _widened(old or (0.0, 0.0), new)
            ),
        ),
        Mistake(
            "input for output",
            "You looked at what goes into the layer. The range that is wanted is that of its output, the hook's third"
            " argument.",
            lambda module, names, batches: _watched(module, names, batches, _widened, lambda inputs, output: inputs),
        ),
    ),
    library="labkit.quantization.calibration.calibrate",
)

# --- m02.q3: 3 sigma of what is never negative --------------------------------------------------------------------------


def _after_relu(rng, number):
    values = np.maximum(rng.normal(0, 1, [(40,), (5, 8), (2, 3, 3, 2)][number % 3]), 0)
    values.reshape(-1)[number % 7] = 6.0
    return {"values": values.astype(np.float32)}


def _flat(rng, number):
    return {"values": rng.uniform(-1, 1, [(30,), (4, 6)][number % 2]).astype(np.float32)}


def _outliers(rng, number):
    values = rng.normal(rng.uniform(-1, 1), 1, 48)
    values[:2] = [[-9, 10], [11, -8], [-9, 0], [0, 12]][number % 4]
    return {"values": values.astype(np.float32)}


def _useful(values):
    v = values.astype(np.float64)
    return three_sigma(TensorStatistics(float(v.min()), float(v.max()), float(v.mean()), float(v.std()), v.size))


def _ends(values):
    v = values.astype(np.float64)
    return v.min(), v.max(), v.mean() - 3 * v.std(), v.mean() + 3 * v.std()


USEFUL = Task(
    name="m02.q3",
    title="The useful part of 3 sigma",
    function="useful_range",
    points=4,
    minutes=6,
    source="EE219 lab, section IV; labkit's ranges='3sigma'",
    kinds=(
        Kind("after a ReLU", "activations that are never negative, with one outlier", _after_relu, count=4, public=2),
        Kind(
            "flat",
            "values that fill their range evenly, so that 3 sigma reaches beyond both ends",
            _flat,
            count=3,
            public=1,
        ),
        Kind("outliers", "values with outliers at one end or both", _outliers, count=4, public=2),
    ),
    oracle=_useful,
    judge=Items((Close(1e-5, 1e-6), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "not cut",
            "This is the whole 3-sigma range. Where it reaches beyond the values, it spends integers on numbers that "
            "never occur.",
            lambda values: _ends(values)[2:],
        ),
        Mistake(
            "lower end at 0",
            "You cut the lower end at 0. That is right after a ReLU, but other values may be negative: cut at the "
            "smallest value seen.",
            lambda values: (max(0.0, _ends(values)[2]), min(_ends(values)[1], _ends(values)[3])),
        ),
        Mistake(
            "only the lower end",
            "Your lower end is right. The upper end can lie beyond the values as well.",
            lambda values: (max(_ends(values)[0], _ends(values)[2]), _ends(values)[3]),
        ),
        Mistake(
            "union",
            "You took the wider of both ranges at each end. Wanted is the part that both have in common.",
            lambda values: (min(_ends(values)[0], _ends(values)[2]), max(_ends(values)[1], _ends(values)[3])),
        ),
    ),
    library="labkit.quantization.ranges.three_sigma",
)

# --- m02.q4: affine parameters ------------------------------------------------------------------------------------------

_BITS = [8, 4, 2, 3, 6, 5, 7]


def _off_tie(low, high, bits):
    """Whether the wished zero point is clearly not half-way between two integers."""
    low, high = min(low, 0.0), max(high, 0.0)
    wish = -low * (2**bits - 1) / (high - low)
    return abs(wish % 1 - 0.5) > 0.01


def _straddling(rng, number):
    bits = _BITS[number % len(_BITS)]
    while True:
        low, high = float(-rng.uniform(0.2, 3)), float(rng.uniform(0.2, 3))
        if _off_tie(low, high, bits):
            return {"low": low, "high": high, "bits": bits}


def _not_holding_zero(rng, number):
    near, far = sorted(rng.uniform(0.3, 4, 2).tolist())
    ends = {"low": near, "high": far} if number % 2 == 0 else {"low": -far, "high": -near}
    return ends | {"bits": _BITS[(number // 2) % len(_BITS)]}


def _from_zero(rng, number):
    return {"low": 0.0, "high": float(rng.uniform(0.5, 12)), "bits": _BITS[number % len(_BITS)]}


def _tied_zero_point(rng, number):
    bits = [3, 4, 2, 8][number % 4]
    top, scale = 2**bits - 1, _POWERS[number % 4]
    # the wish is an integer and a half; both roundings of a half occur
    whole = 2 * int(rng.integers(0, top // 2)) + (number // 2) % 2 if top > 3 else number // 2 % 2
    low = -(whole + 0.5) * scale
    return {"low": low, "high": low + top * scale, "bits": bits}


def _equal_arms(rng, number):
    arm = [1.0, 1.5, 0.6, 3.0, 0.7, 5.0][number % 6]
    return {"low": -arm, "high": arm, "bits": 8}


def _affine(low, high, bits):
    found = params_from_range(low, high, QuantSpec(bits, signed=False, symmetric=False))
    return float(found.scale), int(found.zero_point)


def _affine_wrongly(
    low,
    high,
    bits,
    *,
    widen=True,
    steps=None,
    nearest=np.rint,
    single=np.float32,
    quotient=lambda length, steps: length / steps,
    wish=lambda low, high, scale: -low / scale,
):
    if widen:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = float(single(quotient(high - low, 2**bits - 1 if steps is None else steps(bits))))
    return scale, int(nearest(wish(low, high, scale)))


AFFINE = Task(
    name="m02.q4",
    title="Scale and zero point",
    function="affine_params",
    points=6,
    minutes=12,
    source="Jacob et al. 2018, section 3; docs/arithmetic.md, eq. 5",
    kinds=(
        Kind("around 0", "an interval that holds 0, at 2 to 8 bits", _straddling, count=6, public=2),
        Kind("without 0", "an interval that does not hold 0", _not_holding_zero, count=5, public=2),
        Kind("from 0", "the range after a ReLU, which begins at 0", _from_zero, count=3, public=1),
        Kind(
            "ties",
            "a zero point that would fall exactly half-way between two integers",
            _tied_zero_point,
            count=6,
            public=3,
        ),
        Kind(
            "equal arms",
            "an interval like [-1, 1], where rounding the scale to float32 decides the zero point",
            _equal_arms,
            count=6,
            public=3,
        ),
    ),
    oracle=_affine,
    judge=Items((Close(1e-6), Exact())),
    mistakes=(
        Mistake(
            "0 left outside",
            "Your interval was not widened to hold 0. Real 0 must have an integer of its own, so the interval has to "
            "reach it.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, widen=False),
        ),
        Mistake(
            "one step too many",
            "You divided by the number of integers. Between 2**b integers there is one step less.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, steps=lambda bits: 2**bits),
        ),
        Mistake(
            "rounds down",
            "Your zero point was rounded down (or cut off). The nudge goes to the nearest integer.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, nearest=np.floor),
        ),
        Mistake(
            "half up",
            "Where the zero point falls half-way between two integers you always went up. RNE takes the even "
            "neighbour.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, nearest=lambda x: np.floor(x + 0.5)),
        ),
        Mistake(
            "scale not rounded first",
            "Your zero point comes from the scale as it was before its rounding to float32. Round S first, and use "
            "the rounded S "
            "in the second half of eq. 5, as the engine will.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, single=float),
        ),
        Mistake(
            "rounded twice",
            "Your interval was rounded to float32 before it was divided, and the quotient once more. Divide in float64, and "
            "round the quotient alone.",
            lambda low, high, bits: _affine_wrongly(
                low, high, bits, quotient=lambda length, steps: np.float32(length) / np.float32(steps)
            ),
        ),
        Mistake(
            "second half in float32",
            "Your zero point was computed in float32: NumPy keeps a quotient with an np.float32 in that type, and the"
            " last digits "
            "decide here. Make S a Python float again before you divide by it.",
            lambda low, high, bits: _affine_wrongly(
                low, high, bits, wish=lambda low, high, scale: np.float32(-low) / np.float32(scale)
            ),
        ),
        Mistake(
            "the other end",
            "Your zero point is measured from the wrong end: it is as many steps above the lowest integer as 0 is "
            "above the low end.",
            lambda low, high, bits: _affine_wrongly(low, high, bits, wish=lambda low, high, scale: high / scale),
        ),
    ),
    library="labkit.arithmetic.affine.params_from_range",
)

# --- m02.q5: affine quantization ----------------------------------------------------------------------------------------


def _reals(rng, scale, zero_point, bits, shape, reach=0.0):
    """Real numbers from a bit below to a bit above the grid, none close to a tie."""
    top = 2**bits - 1
    steps = rng.uniform(-zero_point - reach * top, top - zero_point + reach * top, shape)
    whole = np.floor(steps)
    steps = whole + np.where(steps - whole < 0.5, np.minimum(steps - whole, 0.48), np.maximum(steps - whole, 0.52))
    return (steps * scale).astype(np.float32)


def _inside(rng, number):
    bits, scale = _BITS[number % len(_BITS)], _scale(rng)
    zero_point = int(rng.integers(0, 2**bits))
    real = _reals(rng, scale, zero_point, bits, _SHAPES[number % len(_SHAPES)])
    return {"real": real, "scale": scale, "zero_point": zero_point, "bits": bits}


def _beyond(rng, number):
    bits, scale = _BITS[number % len(_BITS)], _scale(rng)
    zero_point = int(rng.integers(0, 2**bits))
    real = _reals(rng, scale, zero_point, bits, (2, 6), reach=0.5)
    real[0, :2] = 3 * 2**bits * scale, -3 * 2**bits * scale
    return {"real": real, "scale": scale, "zero_point": zero_point, "bits": bits}


def _halves(rng, number):
    scale, bits = _POWERS[number % 4], [4, 8, 3][number % 3]
    zero_point = 2 * int(rng.integers(0, 2 ** (bits - 1))) + (number + 1) % 2
    steps = rng.integers(-zero_point, 2**bits - 1 - zero_point, 8) + 0.5
    return {"real": (steps * scale).astype(np.float32), "scale": scale, "zero_point": zero_point, "bits": bits}


def _affine_quantized(real, scale, zero_point, bits):
    spec = QuantSpec(bits, signed=False, symmetric=False)
    return affine.quantize(real, QParams(np.float32(scale), np.int32(zero_point)), spec)


def _clipped(values, bits):
    return np.clip(values, 0, 2**bits - 1).astype(np.uint8)


QUANTIZE = Task(
    name="m02.q5",
    title="Real numbers onto the grid",
    function="affine_quantize",
    points=5,
    minutes=10,
    source="EE219 lab, section V; docs/arithmetic.md, eq. 2",
    kinds=(
        Kind("inside", "real numbers inside the grid's range, in arrays of several shapes", _inside, count=7, public=2),
        Kind("beyond", "real numbers that lie partly beyond both ends of the grid", _beyond, count=5, public=2),
        Kind("ties", "quotients of exactly a half, with odd and even zero points", _halves, count=6, public=3),
    ),
    oracle=_affine_quantized,
    judge=Exact(),
    mistakes=(
        Mistake(
            "truncates",
            "You cut the fraction off instead of rounding to nearest. A cast to integers truncates towards 0.",
            lambda real, scale, zero_point, bits: _clipped(np.trunc(real / np.float32(scale)) + zero_point, bits),
        ),
        Mistake(
            "truncates at the end",
            "The fraction was cut off when the result became an integer. Round the quotient to nearest before that.",
            lambda real, scale, zero_point, bits: _clipped(real / np.float32(scale) + zero_point, bits),
        ),
        Mistake(
            "zero point first",
            "You added the zero point before rounding. On ties that matters: 2.5 rounds to 2, and 2.5 + 1 rounds to "
            "4. Eq. 2 rounds "
            "the quotient alone.",
            lambda real, scale, zero_point, bits: _clipped(np.rint(real / np.float32(scale) + zero_point), bits),
        ),
        Mistake(
            "half up",
            "Your ties always go up. RNE, which np.rint and torch.round do, takes the even neighbour.",
            lambda real, scale, zero_point, bits: _clipped(np.floor(real / np.float32(scale) + 0.5) + zero_point, bits),
        ),
        Mistake(
            "wraps around",
            "Numbers beyond the grid came back at its other end: clip before you turn the result into 8 bits.",
            lambda real, scale, zero_point, bits: (
                (np.rint(real / np.float32(scale)) + zero_point).astype(np.int64) % 256
            ),
        ),
        Mistake(
            "no zero point",
            "The zero point is missing, so negative numbers were clipped to 0.",
            lambda real, scale, zero_point, bits: _clipped(np.rint(real / np.float32(scale)), bits),
        ),
        Mistake(
            "clips first",
            "You clipped before you added the zero point. The grid 0 to 2**b - 1 is where the result has to lie.",
            lambda real, scale, zero_point, bits: (
                np.clip(np.rint(real / np.float32(scale)), 0, 2**bits - 1).astype(np.int64) + zero_point
            ),
        ),
    ),
    library="labkit.arithmetic.affine.quantize",
)

# --- m02.q6: the lab's factors ------------------------------------------------------------------------------------------


def _factors_case(rng, layers):
    return {
        "n_in": float(127 / rng.uniform(0.8, 3)),
        "n_w": [float(x) for x in 127 / rng.uniform(0.1, 0.7, layers)],
        "largest": [float(x) for x in rng.uniform(2, 14, layers)],
    }


def _one_layer(rng, number):
    return _factors_case(rng, 1)


def _several_layers(rng, number):
    return _factors_case(rng, 2 + number % 4)


def _by_scales(n_in, n_w, largest):
    """The same with scales: n_out is M = S_w S_x / S_y of eq. 10, and S_x of a layer is S_y of the one before."""
    s_w = [1 / Fraction(n) for n in n_w]
    s_y = [Fraction(top) / 127 for top in largest]
    s_x = [1 / Fraction(n_in), *s_y[:-1]]
    return [float(w * x / y) for w, x, y in zip(s_w, s_x, s_y, strict=True)]


def _factors_wrongly(n_in, n_w, largest, factor, following):
    found = []
    for w, top in zip(n_w, largest, strict=True):
        n_out = factor(w, n_in, top)
        found.append(n_out)
        n_in = following(w, n_in, n_out)
    return found


FACTORS = Task(
    name="m02.q6",
    title="The factors n_Out of a network",
    function="output_factors",
    points=6,
    minutes=12,
    source="EE219 lab, eq. 4 to 6; docs/arithmetic.md, section 8",
    kinds=(
        Kind("one layer", "a network of a single layer", _one_layer, count=3, public=1),
        Kind("several layers", "networks of two to five layers", _several_layers, count=6, public=3),
    ),
    oracle=_by_scales,
    judge=Close(1e-9),
    mistakes=(
        Mistake(
            "its name taken at its word",
            "Your n_Out is the whole factor of the output, 127 / largest. But the integer sums carry a factor "
            "already, before n_Out "
            "is applied: which?",
            lambda n_in, n_w, largest: _factors_wrongly(
                n_in, n_w, largest, lambda w, i, top: 127 / top, lambda w, i, o: i
            ),
        ),
        Mistake(
            "the report's division",
            "Your second layer follows the report's eq. 6, which divides n_In by the first layer's factors. What "
            "comes out of "
            "layer 1 is Out times a product: write eq. 4 for layer 1 and read the factor off its right side.",
            lambda n_in, n_w, largest: _factors_wrongly(
                n_in, n_w, largest, lambda w, i, top: 127 / (top * w * i), lambda w, i, o: i / (w * o)
            ),
        ),
        Mistake(
            "the same input for all",
            "You used the factor of the network's input for every layer. The input of layer 2 is the output of layer "
            "1.",
            lambda n_in, n_w, largest: _factors_wrongly(
                n_in, n_w, largest, lambda w, i, top: 127 / (top * w * i), lambda w, i, o: i
            ),
        ),
        Mistake(
            "n_Out passed on",
            "You gave n_Out alone to the next layer as its n_In. The output of a layer carries all three factors.",
            lambda n_in, n_w, largest: _factors_wrongly(
                n_in, n_w, largest, lambda w, i, top: 127 / (top * w * i), lambda w, i, o: o
            ),
        ),
    ),
)

# --- m02.q7: requantization ---------------------------------------------------------------------------------------------


def _exactly(acc, multiplier, zero_point, low, high):
    """Eq. 10 with fractions: Python rounds a Fraction to the nearest integer, ties to even, without any error."""
    factors = np.broadcast_to(np.asarray(multiplier, np.float64), acc.shape)
    found = [
        min(max(round(Fraction(m) * a) + zero_point, low), high)
        for m, a in zip(factors.reshape(-1).tolist(), acc.reshape(-1).tolist(), strict=True)
    ]
    return np.array(found, np.int64).reshape(acc.shape)


def _sums(rng, multiplier, shape, steps=200.0):
    """Accumulators whose products with ``multiplier`` spread over ``steps`` and stay away from ties."""
    factors = np.broadcast_to(multiplier, shape)
    while True:
        acc = np.rint(rng.uniform(-0.6 * steps, steps, shape) / factors).astype(np.int32)
        if np.all(np.abs((factors * acc) % 1 - 0.5) > 1e-3):
            return acc


def _typical_sums(rng, number):
    multiplier = float(rng.uniform(0.0005, 0.01))
    zero_point = int(rng.integers(0, 150))
    acc = _sums(rng, multiplier, [(6,), (3, 4), (2, 2, 3)][number % 3])
    return {"acc": acc, "multiplier": multiplier, "zero_point": zero_point, "low": 0, "high": 255}


def _relu_sums(rng, number):
    multiplier = float(rng.uniform(0.0005, 0.01))
    zero_point = int(rng.integers(1, 90))
    acc = _sums(rng, multiplier, (2, 5), 300.0)
    acc[0, 0] = -np.abs(acc[0, 0]) - 50
    high = int(rng.integers(150, 240)) if number % 2 else 255
    return {"acc": acc, "multiplier": multiplier, "zero_point": zero_point, "low": zero_point, "high": high}


def _tied_sums(rng, number):
    shift = [1, 2, 3, 1][number % 4]
    zero_point = 2 * int(rng.integers(5, 40)) + (number + 1) % 2
    halves = (2 * rng.integers(-12, 60, 8) + 1) * 2 ** (shift - 1)
    return {"acc": halves.astype(np.int32), "multiplier": 2.0**-shift, "zero_point": zero_point, "low": 0, "high": 255}


def _channels(rng, number):
    multiplier = rng.uniform(0.0005, 0.01, 3)
    acc = _sums(rng, multiplier, [(3, 3), (4, 3), (2, 3, 3)][number % 3])
    return {"acc": acc, "multiplier": multiplier, "zero_point": int(rng.integers(0, 150)), "low": 0, "high": 255}


def _large_sums(rng, number):
    acc, odd = [], 5
    while len(acc) < 4:
        around = 2 * int(rng.integers(1, 40)) + 1
        if odd * around % 4 == 1:  # a tie whose lower neighbour is even, and one unit above it
            acc.append(2**24 * around + 1)
    return {"acc": np.array(acc, np.int32), "multiplier": odd / 2.0**25, "zero_point": 0, "low": 0, "high": 255}


def _requantized(acc, multiplier, zero_point, low, high, nearest=np.rint):
    return np.clip(nearest(multiplier * acc) + zero_point, low, high).astype(np.int64)


REQUANTIZE = Task(
    name="m02.q7",
    title="Requantization: scale, round, clamp",
    function="requantize",
    points=6,
    minutes=10,
    source="EE219 lab, eq. 7 and section V.C; docs/arithmetic.md, eq. 10",
    kinds=(
        Kind("typical", "sums of several shapes, some of which leave the grid", _typical_sums, count=4, public=2),
        Kind("ReLU", "a clamp that begins at the zero point, or ends below 255", _relu_sums, count=4, public=2),
        Kind("ties", "products of exactly a half, with odd and even zero points", _tied_sums, count=4, public=2),
        Kind("per channel", "one multiplier for each index of the last axis", _channels, count=3, public=1),
        Kind("large sums", "sums beyond 2**24, which float32 cannot tell apart", _large_sums, count=3, public=1),
    ),
    oracle=_exactly,
    judge=Exact(),
    mistakes=(
        Mistake(
            "truncates",
            "You cut the fraction off. A cast to integers truncates: round to nearest first.",
            lambda acc, multiplier, zero_point, low, high: _requantized(
                acc, multiplier, zero_point, low, high, np.trunc
            ),
        ),
        Mistake(
            "truncates at the end",
            "The fraction was cut off when the result became an integer. Round to nearest before that, and before the"
            " zero point.",
            lambda acc, multiplier, zero_point, low, high: np.clip(
                np.trunc(multiplier * acc + zero_point), low, high
            ).astype(np.int64),
        ),
        Mistake(
            "half up",
            "Your ties go up. That is labkit's own engine's rule, but this task wants ties to even, as torch.round "
            "has it.",
            lambda acc, multiplier, zero_point, low, high: _requantized(
                acc, multiplier, zero_point, low, high, lambda v: np.floor(v + 0.5)
            ),
        ),
        Mistake(
            "zero point first",
            "You added the zero point before rounding, which moves ties to other integers when Z is odd. Round the "
            "product alone.",
            lambda acc, multiplier, zero_point, low, high: np.clip(
                np.rint(multiplier * acc + zero_point), low, high
            ).astype(np.int64),
        ),
        Mistake(
            "clamps first",
            "You clamped before the zero point was added. The clamp is about the integers that are stored, zero point"
            " included.",
            lambda acc, multiplier, zero_point, low, high: (
                np.clip(np.rint(multiplier * acc), low, high).astype(np.int64) + zero_point
            ),
        ),
        Mistake(
            "no zero point",
            "The output's zero point is missing.",
            lambda acc, multiplier, zero_point, low, high: _requantized(acc, multiplier, 0, low, high),
        ),
        Mistake(
            "float32",
            "Your product was taken in float32, which keeps 24 bits: sums beyond 2**24 lose their last ones. Multiply"
            " in float64.",
            lambda acc, multiplier, zero_point, low, high: _requantized(
                acc.astype(np.float32), np.float32(multiplier), zero_point, low, high
            ),
        ),
    ),
    library="labkit.arithmetic.requantize.Requantizer",
)

# --- m02.q8: a linear layer in integers ---------------------------------------------------------------------------------


def _layer(rng, *, inputs, outputs, rows, per_channel=True, relu=False, zero_in=None, zero_out=None):
    """A random layer and input: no product near a tie. ``rows`` is the shape before the last axis."""
    zero_in = int(rng.integers(60, 190)) if zero_in is None else zero_in
    zero_out = int(rng.integers(60, 190)) if zero_out is None else zero_out
    s_x, s_y = _scale(rng), float(np.float32(rng.uniform(0.05, 0.3)))
    while True:
        s_w = rng.uniform(0.002, 0.01, outputs).astype(np.float32).astype(np.float64)
        scale = s_w if per_channel else float(s_w[0])
        weight = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        x = rng.integers(0, 256, (*rows, inputs)).astype(np.uint8)
        acc = (x.astype(np.int64) - zero_in) @ weight.astype(np.int64).T
        if np.all(np.abs((acc * (scale * s_x / s_y)) % 1 - 0.5) > 1e-3):
            break
    names = {"s_w": scale, "s_x": s_x, "s_y": s_y, "zero_in": zero_in, "zero_out": zero_out, "relu": relu}
    return {"x": x, "weight": weight} | names


def _plain_layer(rng, number):
    sizes = [(4, 3, (2,)), (6, 2, (3,)), (3, 5, (1,)), (1, 2, (2,))][number % 4]
    inputs, outputs, rows = sizes
    return _layer(rng, inputs=inputs, outputs=outputs, rows=rows, per_channel=number % 2 == 0, zero_out=0, zero_in=0)


def _layer_with_zero_points(rng, number):
    return _layer(rng, inputs=5, outputs=3, rows=[(2,), (2, 2)][number % 2], per_channel=number % 2 == 0)


def _layer_with_relu(rng, number):
    return _layer(rng, inputs=4, outputs=4, rows=(3,), relu=True, zero_out=[20, 0, 55][number % 3])


def _tied_layer(rng, number):
    zero_out = 2 * int(rng.integers(20, 60)) + 1
    weight = rng.integers(-3, 4, (3, 4)).astype(np.int8)
    x = rng.integers(100, 110, (3, 4)).astype(np.uint8)
    scales = {"s_w": 0.25, "s_x": 0.5, "s_y": 0.25, "zero_in": 104, "zero_out": zero_out, "relu": False}
    return {"x": x, "weight": weight} | scales


def _close_calls(rng, number):
    """In the first row every product is a millionth away from a half, on the side from which float32 easily falls off."""
    zero_out = int(rng.integers(110, 140))
    while True:
        case = _layer(rng, inputs=6, outputs=5, rows=(2,), zero_out=zero_out)
        sums = (case["x"].astype(np.int64) - case["zero_in"]) @ case["weight"].astype(np.int64).T
        whole = rng.integers(20, 60, 5)
        product = np.sign(sums[0]) * (whole + 0.5 + np.where(whole % 2 == 0, 1e-6, -1e-6))
        s_w = product / np.where(sums[0] == 0, 1, sums[0]) * case["s_y"] / case["s_x"]
        if np.all(sums[0] != 0) and np.all(np.abs((sums[1] * (s_w * case["s_x"] / case["s_y"])) % 1 - 0.5) > 1e-3):
            return case | {"s_w": s_w}


class _Exact:
    """A stand-in for labkit's requantizer that rounds fractions; channels run along ``axis`` as there."""

    def __init__(self, s_w, s_x, s_y, zero_point, relu):
        self.factors = [Fraction(w) * Fraction(s_x) / Fraction(s_y) for w in np.atleast_1d(s_w).tolist()]
        self.zero_point, self.low = zero_point, zero_point if relu else 0

    def apply(self, accumulator, axis=1):
        found = np.empty(accumulator.shape, np.int64)
        for place, a in np.ndenumerate(accumulator):
            m = self.factors[place[axis] if len(self.factors) > 1 else 0]
            found[place] = min(max(round(m * int(a)) + self.zero_point, self.low), 255)
        return found


def _linear_by_reference(x, weight, s_w, s_x, s_y, zero_in, zero_out, relu):
    rows = x.reshape(-1, x.shape[-1])
    found = reference.linear(
        rows,
        weight,
        np.zeros(len(weight), np.int32),
        input_zero_point=zero_in,
        weight_zero_point=np.zeros((), np.int32),
        requantizer=_Exact(s_w, s_x, s_y, zero_out, relu),
    )
    return found.reshape(*x.shape[:-1], len(weight))


def _linear_wrongly(
    x,
    weight,
    s_w,
    s_x,
    s_y,
    zero_in,
    zero_out,
    relu,
    *,
    sums=lambda x, weight, zero_in: (x.astype(np.int64) - zero_in) @ weight.astype(np.int64).T,
    factor=lambda s_w, s_x, s_y: s_w * s_x / s_y,
    lowest=lambda relu, zero_out: zero_out if relu else 0,
):
    acc = sums(x, weight, zero_in)
    return _requantized(acc, factor(s_w, s_x, s_y), zero_out, lowest(relu, zero_out), 255)


def _linear_in_reals(x, weight, s_w, s_x, s_y, zero_in, zero_out, relu):
    real_x = np.float32(s_x) * (x.astype(np.float32) - np.float32(zero_in))
    real_w = weight * np.reshape(s_w, (-1, 1)).astype(np.float32)
    rounded = np.rint(real_x @ real_w.T / np.float32(s_y))
    return np.clip(rounded + zero_out, zero_out if relu else 0, 255).astype(np.int64)


def _linear_mistake(name, hint, **changes):
    return Mistake(name, hint, lambda **inputs: _linear_wrongly(**inputs, **changes))


LINEAR = Task(
    name="m02.q8",
    title="A linear layer in integers",
    function="quantized_linear",
    points=7,
    minutes=12,
    source="EE219 lab, eq. 7 and 8; docs/arithmetic.md, eq. 7 and 10",
    kinds=(
        Kind("no zero points", "layers of several shapes whose zero points are 0", _plain_layer, count=4, public=2),
        Kind(
            "zero points",
            "an input and an output with a zero point; rows and grids of rows",
            _layer_with_zero_points,
            count=4,
            public=2,
        ),
        Kind(
            "ReLU",
            "a fused ReLU, with a zero point of the output above 0 and at 0",
            _layer_with_relu,
            count=4,
            public=2,
        ),
        Kind("ties", "scales that are powers of two, so that halves occur", _tied_layer, count=3, public=1),
        Kind(
            "close calls",
            "products a millionth away from a half, which float32 takes for a half or puts on its other side",
            _close_calls,
            count=3,
            public=1,
        ),
    ),
    oracle=_linear_by_reference,
    judge=Exact(),
    mistakes=(
        _linear_mistake(
            "8-bit products",
            "Your products were computed in 8 or 16 bits and wrapped around. Widen the integers before you multiply.",
            sums=lambda x, weight, zero_in: (x.astype(np.int16) - zero_in).astype(np.int16) @ weight.astype(np.int16).T,
        ),
        _linear_mistake(
            "8-bit difference",
            "Your difference q_x - Z_x was taken in 8 bits, and the products in 16: both wrap around. Widen the "
            "integers first.",
            sums=lambda x, weight, zero_in: (x - np.uint8(zero_in)) @ weight.T,
        ),
        _linear_mistake(
            "input's zero point forgotten",
            "The input's zero point is missing: q_x stands for a real number only after Z_x is taken away.",
            sums=lambda x, weight, zero_in: x.astype(np.int64) @ weight.astype(np.int64).T,
        ),
        _linear_mistake(
            "M upside down",
            "Your multiplier is the inverse of M. One unit of the accumulator is S_w S_x worth; how many steps S_y is"
            " that?",
            factor=lambda s_w, s_x, s_y: s_y / (s_w * s_x),
        ),
        _linear_mistake(
            "ReLU at the integer 0",
            "Your ReLU cuts at the integer 0, which the grid does anyway. Real 0 is another integer of the output.",
            lowest=lambda relu, zero_out: 0,
        ),
        _linear_mistake(
            "always a ReLU",
            "You clamped at the zero point where no ReLU was asked for.",
            lowest=lambda relu, zero_out: zero_out,
        ),
        _linear_mistake(
            "no output scale",
            "Your multiplier is S_w S_x, which gives real numbers. In integers of the output they are S_y apart.",
            factor=lambda s_w, s_x, s_y: s_w * s_x,
        ),
        Mistake(
            "in real numbers",
            "You went back to real numbers, or to float32, before the sum was rounded. Keep the sum an integer, which is exact, "
            "and multiply it by M once, in float64.",
            _linear_in_reals,
        ),
    ),
    library="labkit.kernels.reference.linear",
)

# --- m02.q9: a network in integers --------------------------------------------------------------------------------------


def _conv_layer(rng, inputs, outputs, size, zero_out, relu, s_y):
    weight = rng.integers(-127, 128, (outputs, inputs, size, size)).astype(np.int8)
    s_w = rng.uniform(0.001, 0.004, outputs).astype(np.float32).astype(np.float64)
    return {"kind": "conv", "weight": weight, "s_w": s_w, "s_y": s_y, "zero_out": zero_out, "relu": relu}


def _linear_layer(rng, inputs, outputs, zero_out, relu, s_y):
    weight = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    s_w = rng.uniform(0.001, 0.004, outputs).astype(np.float32).astype(np.float64)
    return {"kind": "linear", "weight": weight, "s_w": s_w, "s_y": s_y, "zero_out": zero_out, "relu": relu}


def _pixels(rng, images, channels, size):
    zero_point = int(rng.integers(90, 160))
    q = rng.integers(0, 256, (images, channels, size, size)).astype(np.uint8)
    return {"q": q, "scale": float(np.float32(rng.uniform(0.006, 0.01))), "zero_point": zero_point}


def _steps(rng):
    return float(np.float32(rng.uniform(0.01, 0.03)))


def _only_linear(rng, number):
    while True:
        layers = [
            _linear_layer(rng, 6, 4, [0, 12][number % 2], True, _steps(rng)),
            _linear_layer(rng, 4, 3, int(rng.integers(80, 160)), False, _steps(rng)),
        ]
        zero_point = int(rng.integers(90, 160))
        inputs = {"q": rng.integers(0, 256, (2, 6)).astype(np.uint8), "scale": 0.0078125, "zero_point": zero_point}
        if _clear(**inputs, layers=layers):
            return inputs | {"layers": layers}


def _only_conv(rng, number):
    inputs, outputs, size = [(2, 4, 3), (3, 1, 2)][number % 2]
    while True:
        layers = [_conv_layer(rng, inputs, outputs, size, int(rng.integers(0, 40)), number % 2 == 0, _steps(rng))]
        image = _pixels(rng, 1, inputs, 4)
        if _clear(**image, layers=layers):
            return image | {"layers": layers}


def _small_lenet(rng, number):
    while True:
        layers = [
            _conv_layer(rng, 1, 3, 2, [0, 9][number % 2], True, _steps(rng)),
            {"kind": "pool"},
            _linear_layer(rng, 12, 4, 0, True, _steps(rng)),
            _linear_layer(rng, 4, 3, int(rng.integers(80, 160)), False, _steps(rng)),
        ]
        images = _pixels(rng, 2, 1, 5)
        if _clear(**images, layers=layers):
            return images | {"layers": layers}


def _forward_by_reference(q, scale, zero_point, layers):
    """labkit's reference kernels, with requantizers that round fractions."""
    for layer in layers:
        if layer["kind"] == "pool":
            size = (q.shape[2] // 2, q.shape[3] // 2)
            q = reference.max_pool2d(q, kernel=(2, 2), stride=(2, 2), output_size=size)
            continue
        told = {
            "input_zero_point": zero_point,
            "weight_zero_point": np.zeros((), np.int32),
            "requantizer": _Exact(layer["s_w"], scale, layer["s_y"], layer["zero_out"], layer["relu"]),
        }
        if layer["kind"] == "linear":
            q = reference.flatten(q)
        kernel = reference.linear if layer["kind"] == "linear" else reference.conv2d
        q = kernel(q, layer["weight"], np.zeros(len(layer["weight"]), np.int32), **told)
        scale, zero_point = layer["s_y"], layer["zero_out"]
    return q


def _forward_wrongly(
    q,
    scale,
    zero_point,
    layers,
    *,
    keep_scale=False,
    keep_zero_point=False,
    relu=None,
    order="nohw",
    distances=None,
):
    for layer in layers:
        if layer["kind"] == "pool":
            n, c, h, w = q.shape
            q = q[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
            continue
        centred = q.astype(np.int64) - zero_point
        weight = layer["weight"].astype(np.int64)
        if layer["kind"] == "conv":
            size = weight.shape[-1]
            windows = sliding_window_view(centred, (size, size), axis=(2, 3))
            acc = np.einsum("nchwij,ocij->nhwo", windows, weight)
        else:
            acc = centred.reshape(len(centred), -1) @ weight.T
        m = layer["s_w"] * scale / layer["s_y"]
        if distances is not None:
            distances.append(np.abs((m * acc) % 1 - 0.5).min())
        active = layer["relu"] if relu is None else relu
        q = _requantized(acc, m, layer["zero_out"], layer["zero_out"] if active else 0, 255)
        if layer["kind"] == "conv" and order == "nohw":
            q = q.transpose(0, 3, 1, 2)
        if not keep_scale:
            scale = layer["s_y"]
        if not keep_zero_point:
            zero_point = layer["zero_out"]
    return q


def _clear(q, scale, zero_point, layers):
    """Whether no product of the network is near a tie."""
    distances = []
    _forward_wrongly(q, scale, zero_point, layers, distances=distances)
    return min(distances) > 1e-3


FORWARD = Task(
    name="m02.q9",
    title="A whole network in integers",
    function="integer_forward",
    points=8,
    minutes=14,
    source="EE219 lab, section V.C; docs/arithmetic.md, eq. 7 and 10",
    kinds=(
        Kind("linear layers", "two linear layers, the first with a ReLU", _only_linear, count=3, public=1),
        Kind("one convolution", "a single convolution, with and without a ReLU", _only_conv, count=4, public=2),
        Kind(
            "small LeNet",
            "a convolution, a pooling and two linear layers, for two images",
            _small_lenet,
            count=4,
            public=2,
        ),
    ),
    oracle=_forward_by_reference,
    judge=Exact(),
    mistakes=(
        Mistake(
            "the first scale for all",
            "Every layer of yours uses the scale of the network's input. What is S_x of the second layer?",
            lambda **inputs: _forward_wrongly(**inputs, keep_scale=True),
        ),
        Mistake(
            "the first zero point for all",
            "Every layer of yours subtracts the zero point of the network's input. Each tensor has its own.",
            lambda **inputs: _forward_wrongly(**inputs, keep_zero_point=True),
        ),
        Mistake(
            "ReLU everywhere",
            "You gave every layer a ReLU. The last layer's outputs are logits, of which many are negative: look at "
            "layer['relu'].",
            lambda **inputs: _forward_wrongly(**inputs, relu=True),
        ),
        Mistake(
            "no ReLU",
            "There is no ReLU in your network: it is a part of the clamp.",
            lambda **inputs: _forward_wrongly(**inputs, relu=False),
        ),
        Mistake(
            "channels left at the end",
            "After a convolution your channels stand at the last axis, where the linear layer left them. Images are "
            "[N, C, H, W].",
            lambda **inputs: _forward_wrongly(**inputs, order="nhwo"),
        ),
    ),
    library="labkit.engine.node_by_node.run_nodes",
    equivalent=(
        Equivalent(
            "rows = patches(q, weight.shape[-1]) if is_conv else q.reshape(len(q), weight.shape[1])",
            "rows = patches(q, weight.shape[-2]) if is_conv else q.reshape(len(q), weight.shape[1])",
            "kernels are square, so that both axes are equally long",
        ),
    ),
)

# --- m02.c1: where two rounding rules part ------------------------------------------------------------------------------


def _dyadic(rng, number):
    return {"multiplier": float((2 * int(rng.integers(0, 60)) + 1) / 2 ** int(rng.integers(1, 9)))}


def _of_scales(rng, number):
    s_w, s_x, s_y = (np.float64(np.float32(rng.uniform(0.002, 0.2))) for _ in range(3))
    return {"multiplier": float(s_w * s_x / s_y)}


def _at_the_edge(rng, number):
    shift, rest = [(30, 1), (31, 1), (31, 3), (32, 1), (32, 3), (30, 3)][number % 6]
    return {"multiplier": float(4 * int(rng.integers(1, 40)) + rest) / 2.0**shift}


def _whole_multiplier(rng, number):
    return {"multiplier": float(rng.integers(1, 9))}


def _by_search(multiplier):
    """The first of all accumulators that could be ties, tried one by one with fractions."""
    exact = Fraction(multiplier)
    if exact.denominator == 1:
        return None
    candidates = range(exact.denominator // 2, min(2**31, 8 * exact.denominator), exact.denominator // 2)
    for a in candidates:
        value = exact * a
        if (value + Fraction(1, 2)).__floor__() != round(value):
            return a
    return None


def _first_tie(multiplier):
    half = Fraction(multiplier).denominator // 2
    return half if 0 < half < 2**31 else None


def _first_disagreement_anywhere(multiplier):
    exact = Fraction(multiplier)
    half = exact.denominator // 2
    return (half if exact.numerator % 4 == 1 else 3 * half) if half else None


PARTING = Task(
    name="m02.c1",
    title="Where two rounding rules part",
    function="first_disagreement",
    points=4,
    minutes=20,
    source="docs/arithmetic.md, section 4",
    kinds=(
        Kind("simple fractions", "an odd number over a power of two up to 256", _dyadic, count=8, public=4),
        Kind(
            "real scales", "multipliers of three float32 scales, as a network has them", _of_scales, count=3, public=1
        ),
        Kind("whole numbers", "multipliers that are integers", _whole_multiplier, count=2, public=1),
        Kind("the edge", "answers close to the largest int32, on both sides", _at_the_edge, count=6, public=3),
    ),
    oracle=_by_search,
    judge=Exact(),
    mistakes=(
        Mistake(
            "any tie",
            "You found the first tie. At some ties both rules agree: which of the two neighbours is even?",
            _first_tie,
        ),
        Mistake(
            "no end",
            "Your answer does not fit int32. An accumulator has 32 bits, so the largest is 2**31 - 1.",
            _first_disagreement_anywhere,
        ),
        Mistake(
            "never",
            "You say that the rules never part. They do where M a is exactly a half more than an even number: try M ="
            " 1/2, a = 1.",
            lambda multiplier: None,
        ),
    ),
)


# --- questions --------------------------------------------------------------------------------------------------------

NEGATIVE_END = Question(
    name="m02.e1",
    title="The negative end of 3 sigma",
    text=(
        "The lab reports a 3-sigma range of [-1.55, 2.49] for the output of conv1 after its ReLU, whose actual range "
        "is [0, 6.80]. "
        "(a) What share of the 256 integers of an affine 8-bit grid would the negative end take, and what would they "
        "be used for? "
        "(b) Cut to [0, 2.49], name one thing that becomes better and one that becomes worse than with [0, 6.80]."
    ),
    points=4,
    rubric=(
        (1, "1.55 / (1.55 + 2.49) = 38 % of the integers (about 98 of 256)."),
        (1, "They are used for nothing: no activation after a ReLU is negative."),
        (1, "Better: the step is 2.49 / 255 instead of 6.80 / 255, 2.7 times finer, for the many values below 2.49."),
        (1, "Worse: every value above 2.49 is clipped, the largest by 4.31."),
    ),
)

EQUATION_SIX = Question(
    name="m02.e2",
    title="What is wrong with the report's eq. 6?",
    text=(
        "The report writes for conv2, with $W_1, W_2$ the weights of conv1 and conv2, "
        "$\\frac{n_{W2} W_2}{n_{W1} W_1} * n_{In} In * \\frac{n_{Out2}}{n_{Out1}} = n_{W2} \\frac{n_{In}}{n_{W1} "
        "n_{Out1}} n_{Out2} Out$. "
        "Find two things that cannot be right, and write the equation as it should be."
    ),
    points=4,
    minutes=7,
    rubric=(
        (
            1,
            "It divides by a tensor of weights, $W_1$; a convolution has no such operation (and In is not what enters"
            " conv2).",
        ),
        (1, "The factors of layer 1 are divided by, although each was multiplied with: they accumulate as a product."),
        (
            2,
            "$n_{W2} W_2 * (n_{W1} n_{In} n_{Out1} Out_1) * n_{Out2} = n_{W2} (n_{W1} n_{In} n_{Out1}) n_{Out2} "
            "Out_2$, or the same "
            "with $n_{In2} = n_{W1} n_{In} n_{Out1}$ (1 point for the right input factor alone).",
        ),
    ),
)

MODULE = Module(
    name="m02",
    topic="activations",
    title="Activations: from one line to an integer network",
    minutes=120,
    source="EE219 lab, sections IV and V; docs/arithmetic.md, sections 1 to 4 and 8",
    tasks=(TO_REAL, WATCH, USEFUL, AFFINE, QUANTIZE, FACTORS, REQUANTIZE, LINEAR, FORWARD, PARTING),
    questions=(NEGATIVE_END, EQUATION_SIX),
)
