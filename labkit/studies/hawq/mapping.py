"""The slides' first pictures: nine real numbers as integers of 8 bits, and one layer of 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerTensor, QParams, QTensor, QuantSpec, dequantize, params_from_range, quantize
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.studies.hawq.affine_grids import best_line, largest_set, largest_set_of_integers, out_of_order
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["OneLayer", "one_layer", "run"]

_REAL = ("0.34", "3.75", "5.64", "1.12", "2.7", "-0.9", "-4.7", "0.68", "1.43")
_PRINTED = (64, 134, 217, 76, 119, 21, 3, 81, 99)
_GRID = QuantSpec(4, narrow=True, granularity=PerTensor())
_LAYERS = ((5, 3), (64, 64), (256, 1152), (10, 4608))  # outputs, inputs; the first is the picture's
_ROWS = 200  # inputs that each layer is given


@dataclass(frozen=True)
class OneLayer:
    """y_i4 = Round(S_x S_w / S_y * W_i4 x_i4), in the engine and otherwise.

    outputs, clipped : elements, and those beyond the output's 4 bits
    from_float : the largest distance of those that are not clipped from the real W x, in steps of the output
    not_oracle : elements that differ from whole numbers of any length
    not_rational : elements that differ from the exact product with S_x S_w / S_y, rounded half up
    """

    outputs: int
    clipped: int
    from_float: float
    not_oracle: int
    not_rational: int


def one_layer(outputs: int, inputs: int, seed: int, rows: int = _ROWS) -> OneLayer:
    """A random layer of ``outputs`` x ``inputs`` weights, 4 bits everywhere, on ``rows`` random inputs of ``seed``."""
    generator = np.random.default_rng((seed, outputs, inputs))
    real_weights = generator.normal(size=(outputs, inputs)).astype(np.float32)
    real_inputs = generator.normal(size=(rows, inputs)).astype(np.float32)
    w_scale, x_scale = (np.float32(np.abs(a).max() / _GRID.qmax) for a in (real_weights, real_inputs))
    y_scale = np.float32(2.5 * np.sqrt(inputs) / _GRID.qmax)  # some outputs are beyond
    params = [QParams(np.asarray(s, np.float32), np.zeros((), np.int32)) for s in (w_scale, x_scale, y_scale)]
    weights = QTensor(quantize(real_weights, params[0], _GRID), params[0], _GRID)
    ratio = np.float64(w_scale) * np.float64(x_scale) / np.float64(y_scale)
    requantizer = Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(ratio), 0, (_GRID.qmin, _GRID.qmax))
    layer = int_ops.Linear(weights, np.zeros(outputs, np.int32), requantizer)
    net = IntegerNet(
        IntGraph(
            (
                IntNode("x", int_ops.Quantize((inputs,)), (), Tensor((inputs,), _GRID, params[1])),
                IntNode("y", layer, ("x",), Tensor((outputs,), _GRID, params[2])),
                IntNode("output", int_ops.Dequantize(), ("y",), Tensor((outputs,), None, None)),
            ),
            ("output",),
        )
    )
    trace = net.trace(real_inputs)
    sums = trace["x"].astype(np.int64) @ weights.values.astype(np.int64).T
    engine = trace["y"].astype(np.int64)
    exact = sums * ratio  # the real W x in steps of the output: scales times exact sums
    inside = (exact > _GRID.qmin - 0.5) & (exact < _GRID.qmax + 0.5)
    return OneLayer(
        engine.size,
        int((~inside).sum()),
        float(np.abs(engine - exact)[inside].max()),
        int((engine != _whole_numbers(sums, requantizer)).sum()),
        int((engine != _rational(sums, w_scale, x_scale, y_scale)).sum()),
    )


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Ask which grid the picture of nine numbers implies, and run the picture of one layer.

    ``settings`` say how many seeds draw weights and inputs; ``tell`` is called with (what, parts done, parts).
    """
    sizes = _LAYERS[:2] if settings.smoke else _LAYERS
    total = 1 + len(sizes)
    pairs = tuple((Fraction(r), q) for r, q in zip(_REAL, _PRINTED, strict=True))
    table, grids, figure, findings = _picture(pairs, 100 if settings.smoke else 1000)
    tell("nine numbers", 1, total)
    rows, found = [], []
    for done, (outputs, inputs) in enumerate(sizes):
        runs = [one_layer(outputs, inputs, seed) for seed in range(settings.seeds)]
        found += runs
        rows.append(
            (
                f"{outputs} x {inputs}",
                f"{sum(r.outputs for r in runs):,}",
                f"{sum(r.clipped for r in runs):,}",
                f"{max(r.from_float for r in runs):.6f}",
                sum(r.not_oracle for r in runs),
                sum(r.not_rational for r in runs),
            )
        )
        tell(f"layer {outputs} x {inputs}", done + 2, total)
    layers = Table(
        "One layer, y_i4 = Round(S_x S_w / S_y * W_i4 x_i4), weights, inputs and outputs of 4 bits",
        (
            "W",
            "outputs",
            "clipped",
            "farthest from the real W x, steps",
            "not as whole numbers of any length give",
            "not as the exact S_x S_w / S_y gives",
        ),
        tuple(rows),
    )
    farthest, wrong = max(r.from_float for r in found), sum(r.not_oracle + r.not_rational for r in found)
    findings.append(
        Finding(
            "y_i4 = Round(S_x S_w / S_y y_i32): sums in INT32, then rescaled to INT4",
            f"{sum(r.outputs for r in found):,} outputs, {wrong} of them wrong; at most {farthest:.6f} steps from the real W x",
            "yes" if not wrong and farthest <= 0.5 + 2.0**-23 else "no",
        )
    )
    return StudyResult(
        (table, grids, layers),
        tuple(findings),
        (figure,),
        (
            "The slides write Q(r) = Int(r / S) - Z; labkit writes q = Int(r / S) + Z, so its zero point has the other sign "
            "(docs/arithmetic.md, eq. 1 and 2).",
            "A pair (r, q) asks for r / S - Z in [q - 1/2, q + 1/2]. Whether some S and Z satisfy several pairs is decided in "
            "rational numbers, over all lines through two ends of such intervals (real Z) and for each integer Z in "
            "-1000 .. 1000.",
            "The picture is an illustration (credited to Manas Sahni); its integers are no mistake of the method.",
            "Random normal weights and inputs, one scale each, no zero points, as on the slide. The output's scale is chosen "
            "such that some outputs are clipped. A fixed-point multiplier stands for S_x S_w / S_y (eq. 11); it could give "
            "another integer than the exact quotient only within 2^-23 of a tie.",
        ),
    )


def _picture(pairs: tuple[tuple[Fraction, int], ...], reach: int) -> tuple[Table, Table, Figure, list[Finding]]:
    reals = np.array([float(r) for r, _ in pairs], np.float32)
    spec = QuantSpec(8, signed=False, symmetric=False)
    params = params_from_range(reals.min(), reals.max(), spec)
    ours = quantize(reals, params, spec)
    back = dequantize(ours, params, spec)
    error, (x, z) = best_line(pairs)
    fitted = [float(r * x - z) for r, _ in pairs]
    rows = tuple(
        (real, printed, f"{line:.0f}", int(q), f"{value:.3f}")
        for real, printed, line, q, value in zip(_REAL, _PRINTED, fitted, ours, back, strict=True)
    )
    table = Table(
        "Nine numbers",
        ("r", "printed", "by the nearest line", "by min-max, 8 bits", "S (q - Z)"),
        rows,
    )
    count, grid = largest_set(pairs)
    count_integers, grid_integers = largest_set_of_integers(pairs, reach)
    wrong = out_of_order(pairs)
    step = float(params.scale)
    grids = Table(
        "Grids Q(r) = Int(r / S) - Z",
        ("grid", "S", "Z", "of the nine printed integers"),
        (
            ("most of them, Z real", f"{float(1 / grid[0]):.5f}", f"{float(grid[1]):.2f}", count),
            (
                "most of them, Z an integer",
                f"{float(1 / grid_integers[0]):.5f}",
                f"{int(grid_integers[1])}",
                count_integers,
            ),
            ("smallest largest error", f"{float(1 / x):.5f}", f"{float(z):.2f}", f"within {float(error):.1f} steps"),
            ("min-max of the numbers", f"{step:.5f}", f"{-int(params.zero_point)}", int((ours == _PRINTED).sum())),
        ),
    )
    order = np.argsort(reals)
    at = tuple(float(reals[i]) for i in order)
    figure = Figure(
        "nine-numbers",
        "The slides' nine numbers, and grids",
        "line",
        "r",
        "integer",
        (
            Series("printed", at, tuple(float(_PRINTED[i]) for i in order)),
            Series("min-max, 8 bits", at, tuple(float(ours[i]) for i in order)),
            Series("line nearest to the printed", at, tuple(fitted[i] for i in order)),
        ),
    )
    swapped = ", ".join(f"{_REAL[i]} -> {_PRINTED[i]} but {_REAL[j]} -> {_PRINTED[j]}" for i, j in wrong)
    findings = [
        Finding(
            "The picture's nine integers are Q(r) = Int(r / S) - Z",
            f"no S and Z give more than {count} of the nine; the nearest line is off by {float(error):.0f} steps; "
            f"out of order: {swapped or 'none'}",
            "yes" if count == len(pairs) else "no",
        ),
        Finding(
            "Uniform quantization maps real values to integers (8 bits here)",
            f"min-max: S = {step:.5f}, labkit's Z = {int(params.zero_point)}; largest error "
            f"{float(np.abs(back - reals).max()) / step:.3f} steps",
            "yes" if np.abs(back - reals).max() <= (0.5 + 2.0**-16) * step else "no",
        ),
    ]
    return table, grids, figure, findings


def _whole_numbers(sums: NDArray[np.int64], requantizer: Requantizer) -> NDArray[np.int64]:
    """Eq. 13 and the clamp in Python's own integers."""
    multiplier = requantizer.multiplier
    assert isinstance(multiplier, FixedPointMultiplier)
    mantissa, shift = int(multiplier.mantissa), 31 - int(multiplier.exponent)
    low, high = requantizer.clamp
    values = [min(max((int(s) * mantissa + (1 << (shift - 1))) >> shift, low), high) for s in sums.reshape(-1)]
    return np.array(values, np.int64).reshape(sums.shape)


def _rational(sums: NDArray[np.int64], w: np.float32, x: np.float32, y: np.float32) -> NDArray[np.int64]:
    """Int(S_x S_w / S_y * sum) as a quotient of integers, half up, and the clamp."""
    ratio = Fraction(float(w)) * Fraction(float(x)) / Fraction(float(y))
    values = [(2 * int(s) * ratio.numerator + ratio.denominator) // (2 * ratio.denominator) for s in sums.reshape(-1)]
    return np.clip(np.array(values, np.int64), _GRID.qmin, _GRID.qmax).reshape(sums.shape)
