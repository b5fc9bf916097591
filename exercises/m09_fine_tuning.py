"""m09, fine-tuning: what is asked and how it is judged."""

from __future__ import annotations

import numpy as np
import torch

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, params_from_values, quantize
from labkit.course.judges.values import Close, Exact, Fields, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task
from labkit.quantization.observers import Observer
from labkit.quantization.qat.fake_quantize import Levels, reference

_GRIDS = [(-7, 7), (0, 15), (-1, 1), (-3, 3), (-5, 10), (-128, 127)]
_SHAPES = [(6,), (3, 4), (2, 3, 2, 2), (1,), (5, 2), (4, 1, 3)]


def _tensor(array):
    return torch.from_numpy(np.asarray(array, np.float32).copy())


def _spread(rng, number):
    """Numbers that fill a grid and reach a little beyond its ends."""
    low, high = _GRIDS[number % len(_GRIDS)]
    scale = float(np.float32(rng.uniform(0.02, 0.3)))
    shape = _SHAPES[number % len(_SHAPES)]
    x = (scale * rng.uniform(low - 2, high + 2, shape)).astype(np.float32)
    return {"x": x, "scale": scale, "low": low, "high": high}


def _halves(rng, number):
    """Every half between low - 2 and high + 2, in steps of a power of two: exact ties."""
    low, high = [(-3, 3), (0, 7), (-4, 6), (-1, 1)][number % 4]
    scale = [0.25, 0.125, 0.5, 1.0][number % 4]
    x = (scale * (np.arange(low - 2, high + 2) + 0.5)).astype(np.float32)
    return {"x": rng.permutation(x), "scale": scale, "low": low, "high": high}


def _rows(rng, number):
    """One scale for each row, as weights have them."""
    rows = 2 + number % 3
    scale = rng.uniform(0.02, 0.3, (rows, 1)).astype(np.float32)
    x = (scale * rng.uniform(-5, 5, (rows, 4))).astype(np.float32)
    return {"x": x, "scale": scale, "low": -3, "high": 3}


def _with_slope(make):
    def made(rng, number):
        inputs = make(rng, number)
        slope = rng.normal(0, 1, inputs["x"].shape).astype(np.float32)
        return {"x": inputs["x"], "slope": slope} | {name: inputs[name] for name in ("scale", "low", "high")}

    return made


# --- m09.q1 -----------------------------------------------------------------------------------------------------------


def _on_grid(x, scale, low, high):
    return reference(_tensor(x), torch.tensor(scale), Levels(low, high))


FAKE = Task(
    name="m09.q1",
    title="Round and come back",
    function="fake_quantize",
    points=5,
    minutes=8,
    source="Jacob et al. 2018, section 3; docs/arithmetic.md, eqs. 1 and 2",
    kinds=(
        Kind("typical", "numbers of several shapes that reach a little beyond the grid", _spread, count=6, public=2),
        Kind("ties", "numbers exactly halfway between two levels", _halves, count=4, public=2),
        Kind("a scale a row", "an array of scales that broadcasts against x", _rows, count=3, public=1),
    ),
    oracle=_on_grid,
    judge=Close(1e-6, 1e-7),
    mistakes=(
        Mistake(
            "stays an integer",
            "You returned the levels themselves. They have to come back to the unit of x, or the next layer sees numbers that "
            "are too large.",
            lambda x, scale, low, high: np.clip(np.rint(x / scale), low, high),
        ),
        Mistake(
            "no ends",
            "Numbers beyond the grid came out as if it had no ends. low and high are the first and the last level there is.",
            lambda x, scale, low, high: scale * np.rint(x / scale),
        ),
        Mistake(
            "truncates",
            "You cut the fraction off. The nearest level may be the one further from 0.",
            lambda x, scale, low, high: scale * np.clip(np.trunc(x / scale), low, high),
        ),
        Mistake(
            "half up",
            "Numbers exactly halfway between two levels go to the even one (eq. 2), and yours go up. Only ties differ.",
            lambda x, scale, low, high: scale * np.clip(np.floor(x / scale + 0.5), low, high),
        ),
        Mistake(
            "clips x itself",
            "You clipped x to low..high. These are integers: they bound x / scale, and not x.",
            lambda x, scale, low, high: scale * np.rint(np.clip(x, low, high) / scale),
        ),
    ),
    library="labkit.quantization.qat.fake_quantize.fake_quantize",
)

# --- m09.q2 -----------------------------------------------------------------------------------------------------------


def _beside_the_ends(rng, number):
    """Numbers within half a step beyond the last level, which still round to it, and just beyond that."""
    low, high = [(-1, 1), (0, 7), (-3, 3)][number % 3]
    scale = [0.25, 0.5, 0.125][number % 3]
    beyond = np.array([low - 0.75, low - 0.25, low, low + 0.25, high - 0.25, high, high + 0.25, high + 0.75])
    return {"x": rng.permutation(scale * beyond).astype(np.float32), "scale": scale, "low": low, "high": high}


def _through(x, slope, scale, low, high):
    inner = _tensor(x).requires_grad_()
    reference(inner, torch.tensor(scale), Levels(low, high)).backward(_tensor(slope))
    return inner.grad


THROUGH = Task(
    name="m09.q2",
    title="A gradient for a staircase",
    function="straight_through",
    points=5,
    minutes=10,
    source="MPQCO supplement, section 1; Bengio et al. 2013; docs/fine-tuning.md, What is rounded",
    kinds=(
        Kind("typical", "numbers inside and beyond the grid", _with_slope(_spread), count=6, public=2),
        Kind(
            "at the ends", "numbers within half a step of the grid's ends", _with_slope(_beside_the_ends), 3, public=2
        ),
        Kind("ties", "numbers exactly halfway between two levels", _with_slope(_halves), count=4, public=1),
        Kind("a scale a row", "an array of scales that broadcasts against x", _with_slope(_rows), count=3, public=0),
    ),
    oracle=_through,
    judge=Close(1e-6, 1e-9),
    mistakes=(
        Mistake(
            "true derivative",
            "This is the true derivative of rounding, 0 everywhere, and nothing is learned from it. Where nothing was clipped, "
            "pass the slope on.",
            lambda x, slope, scale, low, high: np.zeros_like(slope),
        ),
        Mistake(
            "passes everything",
            "You passed the slope on for clipped numbers too. Moving those a little changes nothing, however smoothly one looks.",
            lambda x, slope, scale, low, high: slope,
        ),
        Mistake(
            "clips real numbers",
            "You looked whether x itself lies between the last levels. A number a quarter of a step beyond still rounds to the "
            "last level and is not clipped: ask its nearest integer.",
            lambda x, slope, scale, low, high: np.where((x >= low * scale) & (x <= high * scale), slope, 0),
        ),
        Mistake(
            "leaves the ends out",
            "You stopped the slope at the last levels too. A number that rounds to low or high is not clipped.",
            lambda x, slope, scale, low, high: np.where(
                (np.rint(x / scale) > low) & (np.rint(x / scale) < high), slope, 0
            ),
        ),
        Mistake(
            "divides by the scale",
            "You let the division count and forgot the product: x / scale has the derivative 1 / scale, and the way back "
            "multiplies by scale again.",
            lambda x, slope, scale, low, high: (
                np.where((np.rint(x / scale) >= low) & (np.rint(x / scale) <= high), slope, 0) / scale
            ),
        ),
    ),
    library="labkit.quantization.qat.fake_quantize.fake_quantize",
)

# --- m09.q3 -----------------------------------------------------------------------------------------------------------


def _layer(rng, number, reach):
    outputs, inputs, images = [(2, 3, 4), (1, 4, 3), (3, 2, 5), (2, 5, 2)][number % 4]
    low, high = [(-1, 1), (-3, 3), (-7, 7), (-2, 1)][number % 4]
    scale = float(np.float32(rng.uniform(0.1, 0.4)))
    w = (scale * rng.uniform(low - reach, high + reach, (outputs, inputs))).astype(np.float32)
    x = rng.normal(0, 1, (images, inputs)).astype(np.float32)
    target = rng.normal(0, 1, (images, outputs)).astype(np.float32)
    rate = float(np.round(rng.uniform(0.05, 0.2), 3))
    return {"w": w, "x": x, "target": target, "scale": scale, "low": low, "high": high, "rate": rate}


def _small_rate(rng, number):
    return _layer(rng, number, 0.4) | {"rate": 0.002}


def _step(w, x, target, scale, low, high, rate, through=True, clipped=True):
    """By hand: the slope of the mean square is 2 (y - target) x / count."""
    wide, inputs = np.asarray(w, np.float64), np.asarray(x, np.float64)
    level = np.rint(np.asarray(w) / np.float32(scale)).astype(np.float64)
    kept = np.clip(level, low, high)
    miss = inputs @ (kept * scale).T - target
    slope = 2 * miss.T @ inputs / miss.size
    passed = slope * (kept == level) if clipped else slope
    return (miss**2).mean(), wide - rate * passed * through


def _moves_the_rounded(w, x, target, scale, low, high, rate):
    loss, moved = _step(w, x, target, scale, low, high, rate)
    return loss, moved - w + scale * np.clip(np.rint(w / scale), low, high)


def _clamps_first(w, x, target, scale, low, high, rate):
    loss, moved = _step(w, x, target, scale, low, high, rate, clipped=False)
    return loss, np.where((w / scale >= low) & (w / scale <= high), moved, w)


def _over_images(w, x, target, scale, low, high, rate):
    outputs = target.shape[1]
    loss, moved = _step(w, x, target, scale, low, high, rate * outputs)
    return outputs * loss, moved


def _float_forward(w, x, target, scale, low, high, rate):
    miss = x @ w.T - target
    return (miss**2).mean(), w - rate * 2 * miss.T @ x / miss.size


STEP = Task(
    name="m09.q3",
    title="One step of training",
    function="training_step",
    points=6,
    minutes=15,
    source="MPQCO supplement, section 1; EE219 lab, section V.E(b), algorithm 1",
    kinds=(
        Kind(
            "typical",
            "weights that all lie on the grid's reach",
            lambda rng, number: _layer(rng, number, 0.4),
            6,
            public=2,
        ),
        Kind("clipped", "weights of which some are clipped", lambda rng, number: _layer(rng, number, 2.5), 4, public=1),
        Kind("small rate", "a rate so small that no weight reaches another level", _small_rate, count=3, public=1),
    ),
    oracle=_step,
    judge=Items((Close(1e-5, 1e-7), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "moves the rounded weights",
            "You moved the rounded weights. Small steps would be rounded away again the next time: the float weights are the "
            "ones that move and remember.",
            _moves_the_rounded,
        ),
        Mistake(
            "no gradient",
            "No weight moved: torch.round has the derivative 0. Take the rounding out of the gradient with .detach().",
            lambda **inputs: _step(**inputs, through=False),
        ),
        Mistake(
            "clipped weights move",
            "Clipped weights moved as well. Let the gradient pass the rounding, and let the clamp stop it.",
            lambda **inputs: _step(**inputs, clipped=False),
        ),
        Mistake(
            "clamps first",
            "You clamped before you rounded. A weight a little beyond the last level still rounds to it; its gradient was lost.",
            _clamps_first,
        ),
        Mistake(
            "sums over outputs",
            "You took the mean over the images only. The loss is the mean of all squares, those of every output.",
            lambda **inputs: _over_images(**inputs),
        ),
        Mistake(
            "never rounds",
            "You computed with the float weights. The loss must be that of the rounded ones, or the network never sees what "
            "rounding does.",
            _float_forward,
        ),
        Mistake(
            "uphill",
            "The weights moved uphill: the loss grows where the gradient points.",
            lambda rate, **inputs: _step(**inputs, rate=-rate),
        ),
    ),
)

# --- m09.q4 -----------------------------------------------------------------------------------------------------------


def _by_scale(x, scale, low, high):
    """The gradient of each element's result by a scale of its own."""
    own = _tensor(np.broadcast_to(np.asarray(scale, np.float32), x.shape)).requires_grad_()
    reference(_tensor(x), own, Levels(low, high)).sum().backward()
    return own.grad


def _inside(x, scale, low, high):
    level = np.rint(x / scale)
    return (level >= low) & (level <= high)


BY_SCALE = Task(
    name="m09.q4",
    title="The scale learns too",
    function="scale_derivative",
    points=5,
    minutes=12,
    source="Esser et al. 2020 (LSQ), equation 3; docs/fine-tuning.md, What is rounded",
    kinds=(
        Kind("typical", "numbers inside and beyond the grid", _spread, count=6, public=2),
        Kind("ends", "numbers within half a step of the grid's ends", _beside_the_ends, count=3, public=1),
        Kind("ties", "numbers exactly halfway between two levels", _halves, count=4, public=1),
        Kind("a scale a row", "an array of scales that broadcasts against x", _rows, count=3, public=0),
    ),
    oracle=_by_scale,
    judge=Close(1e-5, 5e-5),
    mistakes=(
        Mistake(
            "the level alone",
            "You held the level fixed: then the result s l has the derivative l. But l comes from x / s, which moves with the "
            "scale, and the straight-through estimator lets that count where nothing was clipped.",
            lambda x, scale, low, high: np.clip(np.rint(x / scale), low, high),
        ),
        Mistake(
            "only what is clipped",
            "You left 0 where nothing was clipped. That is PACT (Choi et al. 2018); here the rounding counts, too.",
            lambda x, scale, low, high: np.where(
                _inside(x, scale, low, high), 0, np.clip(np.rint(x / scale), low, high)
            ),
        ),
        Mistake(
            "forgets the clipped",
            "You used l - x / s for clipped numbers as well. Their result is an end of the grid times s, and x is no part of it.",
            lambda x, scale, low, high: np.clip(np.rint(x / scale), low, high) - x / scale,
        ),
        Mistake(
            "wrong sign",
            "The sign is turned round where nothing was clipped: level minus x / scale.",
            lambda x, scale, low, high: np.where(
                _inside(x, scale, low, high), x / scale - np.rint(x / scale), np.clip(np.rint(x / scale), low, high)
            ),
        ),
    ),
    library="labkit.quantization.qat.fake_quantize.fake_quantize",
)

# --- m09.q5 -----------------------------------------------------------------------------------------------------------


def _activations(rng, number):
    shape = [(4,), (2, 3), (2, 2, 2), (5, 2)][number % 4]
    return rng.normal(rng.uniform(-1, 1), rng.uniform(0.5, 2), shape).astype(np.float32)


def _later_batch(rng, number):
    low, high = np.sort(rng.normal(0, 2, 2)).round(3).tolist()
    return {
        "average": (low, high),
        "values": _activations(rng, number),
        "momentum": [0.9, 0.99, 0.5, 0.75, 0.0][number % 5],
    }


def _first_batch(rng, number):
    return {"average": None, "values": _activations(rng, number), "momentum": [0.9, 0.99, 0.5][number % 3]}


def _after_relu(rng, number):
    inputs = _later_batch(rng, number)
    return inputs | {"average": (0.0, round(rng.uniform(2, 6), 3)), "values": np.maximum(inputs["values"], 0)}


def _averaged(average, values, momentum):
    observer = Observer("activation", momentum)
    if average is not None:
        observer.update(np.array(average))
    observer.update(values)
    return observer.average()


def _started(average, values):
    return (values.min(), values.max()) if average is None else average


RANGE = Task(
    name="m09.q5",
    title="A range that moves",
    function="moving_range",
    points=4,
    minutes=8,
    source="EE219 lab, section V.E(b); Jacob et al. 2018, section 3.1",
    kinds=(
        Kind("later batches", "a range that some batches have made already", _later_batch, count=5, public=2),
        Kind("the first batch", "no range yet: average is None", _first_batch, count=3, public=1),
        Kind("after a ReLU", "activations that are never negative", _after_relu, count=3, public=0),
    ),
    oracle=_averaged,
    judge=Items((Close(1e-5, 1e-6), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "shares swapped",
            "Old and new have changed places: momentum is the share of the old range, close to 1, so that one odd batch moves "
            "little.",
            lambda average, values, momentum: (
                _averaged(average, values, 1 - momentum) if momentum else _started(average, values)
            ),
        ),
        Mistake(
            "starts from 0",
            "You started the average at 0, so that the range is far too small at first. The first batch is the first average.",
            lambda average, values, momentum: _averaged((0.0, 0.0) if average is None else average, values, momentum),
        ),
        Mistake(
            "widest so far",
            "This is the widest range so far. It never shrinks, and one odd batch decides for ever.",
            lambda average, values, momentum: (
                min(_started(average, values)[0], values.min()),
                max(_started(average, values)[1], values.max()),
            ),
        ),
        Mistake(
            "magnitudes",
            "You took the largest magnitude for both ends. Each end has an average of its own.",
            lambda average, values, momentum: _averaged(
                average, np.array([-np.abs(values).max(), np.abs(values).max()]), momentum
            ),
        ),
    ),
)

# --- m09.q6 -----------------------------------------------------------------------------------------------------------


def _range_and_step(rng, number):
    bits, fraction = [4, 8, 2, 3, 6, 5][number % 6], 0.5
    while (
        abs(fraction - 0.5) < 1e-3
    ):  # a tie would depend on whether the scale is a float32; they have a kind of their own
        low, high = round(-rng.uniform(0.2, 3), 3), round(rng.uniform(0.5, 6), 3)
        fraction = low / (high - low) * (2**bits - 1) % 1
    delay = [10, 4, 0, 25][number % 4]
    step = delay + [-1, 0, 1, -3, 7][number % 5]
    return {
        "average": (low, high),
        "bits": bits,
        "step": max(0, step),
        "delay": delay,
    }


def _without_zero(rng, number):
    near, far = rng.uniform(0.5, 1.5), rng.uniform(2, 6)
    ends = (near, far) if number % 2 == 0 else (-far, -near)
    return _range_and_step(rng, number) | {"average": tuple(round(end, 3) for end in ends)}


def _relu_range(rng, number):
    return _range_and_step(rng, number) | {"average": (0.0, round(rng.uniform(1, 6), 3))}


def _halfway(rng, number):
    """Ranges whose zero point would be a whole number and a half."""
    bits, below = [(4, 2.5), (3, 0.5), (4, 5.5), (8, 100.5)][number % 4]
    scale = [0.25, 0.5, 0.125, 1.0][number % 4]
    return {"average": (-below * scale, (2**bits - 1 - below) * scale), "bits": bits, "step": number, "delay": 2}


def _grid(average, bits, step, delay):
    spec = QuantSpec(bits, signed=False, symmetric=False)
    params = params_from_range(*average, spec)
    zero = int(params.zero_point)
    return {"scale": float(params.scale), "low": spec.qmin - zero, "high": spec.qmax - zero, "on": bool(step >= delay)}


def _grid_with(average, bits, step, delay, rounding=np.rint, steps=None, widened=True):
    low, high = (min(average[0], 0), max(average[1], 0)) if widened else average
    largest = 2**bits - 1
    scale = (high - low) / (steps or largest)
    zero = int(rounding(-low / scale))
    return {"scale": scale, "low": -zero, "high": largest - zero, "on": bool(step >= delay)}


def _symmetric_grid(average, bits, step, delay):
    largest = 2 ** (bits - 1) - 1
    scale = max(abs(average[0]), abs(average[1])) / largest
    return {"scale": scale, "low": -largest, "high": largest, "on": bool(step >= delay)}


GRID = Task(
    name="m09.q6",
    title="Observe first, then round",
    function="activation_grid",
    points=6,
    minutes=12,
    source="EE219 lab, section V.E(b), algorithm 1; docs/arithmetic.md, eqs. 3 and 5",
    kinds=(
        Kind("typical", "ranges around 0, before, at and after the end of the delay", _range_and_step, 10, public=4),
        Kind("without 0", "ranges that lie all above or all below 0", _without_zero, count=4, public=2),
        Kind("after a ReLU", "ranges that begin at 0", _relu_range, count=3, public=1),
        Kind("ties", "ranges whose zero point lies exactly halfway", _halfway, count=4, public=1),
    ),
    oracle=_grid,
    judge=Fields(("scale", "low", "high", "on"), (Close(1e-6), Exact(), Exact(), Exact())),
    mistakes=(
        Mistake(
            "range without 0",
            "Real 0 must be a level (padding, a dead ReLU), so a range that lies all on one side is widened to hold 0 first.",
            lambda **inputs: _grid_with(**inputs, widened=False),
        ),
        Mistake(
            "levels for steps",
            "You divided by the number of levels, 2**bits. Between so many levels there is one step less.",
            lambda **inputs: _grid_with(**inputs, steps=2 ** inputs["bits"]),
        ),
        Mistake(
            "zero point cut off",
            "You cut the fraction of the zero point off. The nearest integer is nearer (eq. 5).",
            lambda **inputs: _grid_with(**inputs, rounding=np.trunc),
        ),
        Mistake(
            "on too late",
            "Steps are counted from 0, so that after `delay` steps the next one has the number delay. Rounding is on from there.",
            lambda **inputs: _grid(**inputs) | {"on": inputs["step"] > inputs["delay"]},
        ),
        Mistake(
            "on too early",
            "You switched rounding on while the ranges still settle, or off afterwards: look at step and delay again.",
            lambda **inputs: _grid(**inputs) | {"on": True},
        ),
        Mistake(
            "symmetric",
            "This is the symmetric grid of weights. Half of it is wasted on what leaves a ReLU; take the affine one (eq. 5).",
            _symmetric_grid,
        ),
    ),
    library="labkit.arithmetic.affine.params_from_range",
)

# --- m09.q7 -----------------------------------------------------------------------------------------------------------


def _normed(rng, number, spread=0.3, least=0.3, bits=(4, 8, 2, 3, 5, 6)):
    shape = [(2, 2, 2, 2), (3, 4), (4, 1, 3, 1), (2, 5)][number % 4]
    outputs = shape[0]

    def real(values):
        return np.asarray(values, np.float32)

    return {
        "w": real(rng.normal(0, 0.3, shape)),
        "gamma": real(rng.choice([-1, 1], outputs) * np.exp(rng.normal(0, spread, outputs))),
        "beta": real(rng.normal(0, 0.5, outputs)),
        "mean": real(rng.normal(0, 0.5, outputs)),
        "variance": real(rng.uniform(least, 4 * least, outputs)),
        "epsilon": 1e-5,
        "bits": bits[number % len(bits)],
    }


def _little_variance(rng, number):
    return _normed(rng, number, least=0.002) | {"epsilon": 0.003}


def _frozen(w, gamma, beta, mean, variance, epsilon, bits):
    norm = [_tensor(a).double() for a in (mean, variance, gamma, beta)]
    four = torch.from_numpy(w.reshape(w.shape[0], w.shape[1], -1, 1).astype(np.float64))
    weight, bias = torch.nn.utils.fuse_conv_bn_weights(four, None, *norm[:2], epsilon, *norm[2:])
    spec = QuantSpec(bits, narrow=True)
    folded = weight.detach().numpy().reshape(w.shape)
    params = params_from_values(folded, spec)
    return dequantize(quantize(folded.astype(np.float32), params, spec), params, spec), bias


def _frozen_with(
    w, gamma, beta, mean, variance, epsilon, bits, gain=None, rounds_first=False, per_channel=False, subtract=True
):
    factor = gamma / np.sqrt(variance + epsilon) if gain is None else gain
    column = factor.reshape(-1, *[1] * (w.ndim - 1))
    folded = w if rounds_first else w * column
    axes = tuple(range(1, w.ndim)) if per_channel else None
    scale = np.abs(folded).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
    rounded = np.rint(folded / scale) * scale
    return rounded * column if rounds_first else rounded, beta - mean * factor if subtract else beta


FOLD = Task(
    name="m09.q7",
    title="Freeze, fold, round",
    function="folded_and_rounded",
    points=6,
    minutes=15,
    source="HAWQ slides, Integer-only quantization; docs/arithmetic.md, eqs. 22, 23 and 4",
    kinds=(
        Kind("typical", "weights of convolutions and of linear layers", _normed, count=6, public=2),
        Kind(
            "uneven gains",
            "channels whose gains differ by a factor of ten and more",
            lambda rng, number: _normed(rng, number, spread=1.5),
            count=4,
            public=1,
        ),
        Kind("small variance", "channels whose variance is as small as epsilon", _little_variance, count=3, public=1),
    ),
    oracle=_frozen,
    judge=Items((Close(1e-5, 1e-6), Close(1e-5, 1e-5))),
    mistakes=(
        Mistake(
            "rounds first",
            "You rounded first and folded afterwards. The engine has no other weights than the folded ones, so these are the "
            "ones that must lie on one grid.",
            lambda **inputs: _frozen_with(**inputs, rounds_first=True),
        ),
        Mistake(
            "epsilon outside",
            "You added epsilon to the root. It belongs under it, beside the variance.",
            lambda **inputs: _frozen_with(
                **inputs, gain=inputs["gamma"] / (np.sqrt(inputs["variance"]) + inputs["epsilon"])
            ),
        ),
        Mistake(
            "no root",
            "You divided by the variance. Dividing by its root, the deviation, is what makes the deviation 1.",
            lambda **inputs: _frozen_with(**inputs, gain=inputs["gamma"] / (inputs["variance"] + inputs["epsilon"])),
        ),
        Mistake(
            "forgets the mean",
            "The bias is beta alone. What the batch norm subtracts from each sum has to go somewhere (eq. 23).",
            lambda **inputs: _frozen_with(**inputs, subtract=False),
        ),
        Mistake(
            "a scale a channel",
            "You took a scale for each channel. That is often better, but here one scale for the whole layer is asked.",
            lambda **inputs: _frozen_with(**inputs, per_channel=True),
        ),
    ),
)

# --- m09.q8 -----------------------------------------------------------------------------------------------------------


def _two_networks(rng, number, size=2.0):
    images, classes = [(2, 4), (3, 3), (1, 5), (4, 2)][number % 4]
    return {
        "logits": rng.normal(0, size, (images, classes)).astype(np.float32),
        "teacher": rng.normal(0, size, (images, classes)).astype(np.float32),
        "labels": rng.integers(0, classes, images),
        "share": [0.5, 0.9, 0.25, 0.7][number % 4],
        "temperature": [2.0, 4.0, 1.0, 3.0][number % 4],
    }


def _one_part(rng, number):
    return _two_networks(rng, number + 1) | {"share": [0.0, 1.0][number % 2]}


def _sure(rng, number):
    return _two_networks(rng, number, size=300.0)


def _distilled(
    logits, teacher, labels, share, temperature, factor=None, turned=False, summed=False, hot_labels=False, other=False
):
    x = torch.from_numpy(np.asarray(logits, np.float64)).requires_grad_()
    heat = temperature
    functional = torch.nn.functional
    aim = functional.log_softmax(torch.from_numpy(np.asarray(teacher, np.float64)) / heat, 1)
    soft = functional.log_softmax(x / heat, 1)
    first, second = (aim, soft) if turned else (soft, aim)
    gap = functional.kl_div(first, second, reduction="sum" if summed else "batchmean", log_target=True)
    hard = functional.cross_entropy(
        x / heat if hot_labels else x, torch.from_numpy(labels), reduction="sum" if summed else "mean"
    )
    part = 1 - share if other else share
    loss = (1 - part) * hard + part * (heat**2 if factor is None else factor) * gap
    loss.backward()
    return loss.item(), x.grad


DISTIL = Task(
    name="m09.q8",
    title="Learning from a teacher",
    function="distillation",
    points=7,
    minutes=20,
    source="Hinton et al. 2015; docs/fine-tuning.md, Choices",
    kinds=(
        Kind("typical", "logits of a few images", _two_networks, count=6, public=2),
        Kind("one part", "a share of 0 (labels alone) or 1 (the teacher alone)", _one_part, count=4, public=2),
        Kind("very sure", "logits of several hundred, which exp alone cannot take", _sure, count=3, public=1),
    ),
    oracle=_distilled,
    judge=Items((Close(1e-5, 1e-5), Close(1e-4, 1e-5))),
    mistakes=(
        Mistake(
            "no temperature squared",
            "The teacher's part misses its factor: dividing logits by T makes gradients smaller by T squared, and the factor "
            "makes up for it.",
            lambda **inputs: _distilled(**inputs, factor=1.0),
        ),
        Mistake(
            "divergence turned round",
            "The divergence is turned round: the teacher's probabilities weigh the difference of the logarithms, teacher minus "
            "student.",
            lambda **inputs: _distilled(**inputs, turned=True),
        ),
        Mistake(
            "sums over images",
            "You added the images up. Take the mean over them, so that the loss does not grow with the batch.",
            lambda **inputs: _distilled(**inputs, summed=True),
        ),
        Mistake(
            "labels at a temperature",
            "You divided by the temperature in the part of the labels as well. It belongs to the comparison with the teacher.",
            lambda **inputs: _distilled(**inputs, hot_labels=True),
        ),
        Mistake(
            "shares swapped",
            "The shares have changed places: `share` is the teacher's, the labels have the rest.",
            lambda **inputs: _distilled(**inputs, other=True),
        ),
    ),
)

# --- m09.c1 -----------------------------------------------------------------------------------------------------------


def _sums(rng, number):
    shape = [(4, 2), (3, 2, 2, 2), (2, 3, 1, 3), (5, 3)][number % 4]
    channels = shape[1]
    factor = (rng.choice([-1, 1], channels) * np.exp(rng.normal(0, 1, channels))).astype(np.float32)
    spread = rng.normal(rng.uniform(-1, 1), 1, shape) * np.abs(factor).reshape([1, -1] + [1] * (len(shape) - 2))
    return {
        "sums": spread.astype(np.float32),
        "factor": factor,
        "mean": rng.normal(0, 1, channels).astype(np.float32),
        "variance": rng.uniform(0.5, 2, channels).astype(np.float32),
        "momentum": [0.1, 0.5, 0.25][number % 3],
    }


def _dead(rng, number):
    inputs = _sums(rng, number)
    factor, sums = inputs["factor"].copy(), inputs["sums"].copy()
    dead = number % len(factor)
    factor[dead], sums[:, dead] = 0, 0
    return inputs | {"factor": factor, "sums": sums}


def _by_batch_norm(sums, factor, mean, variance, momentum):
    channels = len(factor)
    norm = torch.nn.BatchNorm1d(channels, momentum=momentum, dtype=torch.float64)
    norm.running_mean.copy_(_tensor(mean))
    norm.running_var.copy_(_tensor(variance))
    live = factor != 0
    divisor = np.where(live, factor, 1).reshape([1, -1] + [1] * (sums.ndim - 2)).astype(np.float64)
    norm.train()(torch.from_numpy(sums / divisor).reshape(len(sums), channels, -1))
    found = norm.running_mean.numpy(), norm.running_var.numpy()
    return tuple(np.where(live, new, old).astype(np.float64) for new, old in zip(found, (mean, variance), strict=True))


def _seen(sums, factor, mean, variance, momentum, by_mean=1, by_variance=2, free=1):
    axes = (0, *range(2, sums.ndim))
    safe = np.where(factor == 0, 1, factor)
    seen = sums.mean(axes) / safe**by_mean, sums.var(axes, ddof=free) / safe**by_variance
    return tuple(
        np.where(factor == 0, old, (1 - momentum) * old + momentum * new)
        for old, new in zip((mean, variance), seen, strict=True)
    )


LIVE = Task(
    name="m09.c1",
    title="Statistics seen through the fold",
    function="moved_statistics",
    points=4,
    minutes=20,
    source="Krishnamoorthi 2018, section 3.2.2; docs/fine-tuning.md, Choices",
    kinds=(
        Kind("typical", "sums of convolutions and of linear layers", _sums, count=6, public=2),
        Kind("dead channel", "a channel whose factor is 0", _dead, count=3, public=1),
    ),
    oracle=_by_batch_norm,
    judge=Items((Close(1e-5, 1e-5), Close(1e-5, 1e-5))),
    mistakes=(
        Mistake(
            "forgets the factor",
            "These are the statistics of the folded sums. The batch norm's own are those of the sums before its factor.",
            lambda **inputs: _seen(**inputs, by_mean=0, by_variance=0),
        ),
        Mistake(
            "factor once",
            "A variance is in squared units: a factor of 3 makes it 9 times as large.",
            lambda **inputs: _seen(**inputs, by_variance=1),
        ),
        Mistake(
            "divides by n",
            "The running variance of a batch norm estimates that of all images from a sample: the divisor is n - 1.",
            lambda **inputs: _seen(**inputs, free=0),
        ),
        Mistake(
            "momentum swapped",
            "Old and new have changed places. In a batch norm, momentum is the share of the new batch.",
            lambda momentum, **inputs: _seen(**inputs, momentum=1 - momentum),
        ),
    ),
)

# --- questions --------------------------------------------------------------------------------------------------------

ORDER = Question(
    name="m09.e1",
    title="When does the order matter?",
    text=(
        "In m09.q7 it made a difference whether one folds first or rounds first. With one min-max scale for **each output "
        "channel** the rounded weights would come out the same either way. Why? And why does labkit fold first all the same?"
    ),
    points=4,
    rubric=(
        (2, "Folding multiplies a row by g and its min-max scale by |g|, so that w / S changes at most its sign."),
        (1, "The grid is symmetric and ties go to even, so that the sign makes no difference to the rounding."),
        (1, "The engine has only folded weights; with one scale a layer or learned scales the order does matter."),
    ),
)

FAIR = Question(
    name="m09.e2",
    title="Better than float?",
    text=(
        "A colleague fine-tunes a network at 2 bits. Before, in float, it had 97.4 % on 1,000 test images, now 97.8 %. "
        '"Two bits are better than thirty-two," says the colleague. Name two reasons not to believe it, and the '
        "experiment that would decide."
    ),
    points=4,
    rubric=(
        (1, "The 2-bit network was trained longer; the float network would get better from that as well."),
        (
            1,
            "With 1,000 images one standard error is about 0.5 per cent points, more than the difference (or: one seed).",
        ),
        (
            2,
            "Train the float network as many steps with the same data, loss and rate, then compare on more images or seeds.",
        ),
    ),
)

MODULE = Module(
    name="m09",
    topic="fine_tuning",
    title="Fine-tuning: training a network that rounds",
    minutes=120,
    source="EE219 lab, section V.E(b); MPQCO supplement, section 1; HAWQ slides; docs/fine-tuning.md",
    tasks=(FAKE, THROUGH, STEP, BY_SCALE, RANGE, GRID, FOLD, DISTIL, LIVE),
    questions=(ORDER, FAIR),
)
