"""Exact truths in Python integers and fractions. It imports nothing of labkit, so it cannot agree with it by accident.

Images are nested lists ``x[n][c][h][w]`` (use ``array.tolist()``). A multiplier is an exact fraction; rounding works on
fractions, or, where a rule is defined by its steps in a fixed width, on those steps in Python integers.
Slow on purpose.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import product
from math import floor


def half_up(value):
    """The nearest integer, ties towards +infinity."""
    return floor(value + Fraction(1, 2))


def half_even(value):
    """The nearest integer, ties to even. (`round` of a Fraction does exactly this.)"""
    return round(Fraction(value))


def half_away(value):
    """The nearest integer, ties away from zero."""
    return half_up(value) if value >= 0 else -half_up(-value)


def float32(value):
    """The float32 nearest to an exact fraction, ties to even, as a fraction. Ordinary magnitudes only."""
    value = Fraction(value)
    if value == 0:
        return value
    exponent = 0  # 2**exponent <= |value| < 2**(exponent + 1)
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    assert -126 <= exponent <= 127
    unit = Fraction(2) ** (exponent - 23)
    return half_even(value / unit) * unit


def float64(value):
    """The float64 nearest to an exact fraction, ties to even: what Python's own division of integers gives."""
    value = Fraction(value)
    return Fraction(value.numerator / value.denominator)


def real_of_float32(bits):
    """The exact value of the float32 whose bit pattern is the integer ``bits``."""
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


# Rounding rules. The integer rules take a mantissa and an exponent, multiplier = mantissa * 2**(exponent - 31).


def single(x, mantissa, exponent):
    return half_up(Fraction(x * mantissa) * Fraction(2) ** (exponent - 31))


def dyadic(x, mantissa, exponent):
    return half_even(Fraction(x * mantissa) * Fraction(2) ** (exponent - 31))


def gemmlowp(x, mantissa, exponent):
    """The high half of twice the product, to nearest with ties up, then a rounding shift with ties away from zero."""
    lifted = x * 2 ** max(exponent, 0)
    assert -(2**31) <= lifted < 2**31
    high = half_up(Fraction(lifted * mantissa, 2**31))
    return half_away(Fraction(high, 2 ** max(-exponent, 0)))


def gemmlowp_up(x, mantissa, exponent):
    """As `gemmlowp`, with ties up in both roundings."""
    lifted = x * 2 ** max(exponent, 0)
    assert -(2**31) <= lifted < 2**31
    high = half_up(Fraction(lifted * mantissa, 2**31))
    return half_up(Fraction(high, 2 ** max(-exponent, 0)))


def float32_even(x, multiplier, inside=0):
    """Sum to float32, product in float32, then the zero point added in float32; ties to even each time."""
    return half_even(float32(float32(float32(x) * Fraction(multiplier)) + inside))


def float64_away(x, multiplier, inside=0):
    """The same in float64, the last rounding with ties away from zero."""
    return half_away(float64(float64(Fraction(x) * Fraction(multiplier)) + inside))


def clamp(value, low, high):
    return max(low, min(high, value))


def quantize(value, scale, zero_point, low, high):
    """float32 ``value`` and ``scale`` (exact fractions) to an integer: one float32 division, ties to even."""
    return clamp(half_even(float32(Fraction(value) / Fraction(scale))) + zero_point, low, high)


def window(size, kernel, stride, padding, dilation):
    """For each output position along an axis the input index of each tap, or None outside."""
    before, after = padding
    count = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    positions = [[o * stride - before + t * dilation for t in range(kernel)] for o in range(count)]
    return [[i if 0 <= i < size else None for i in taps] for taps in positions]


def conv2d(x, weight, bias, *, input_zero_point, weight_zero_point, stride, padding, dilation, groups):
    """The exact sums [n][o][h][w] of a convolution, bias added. ``weight_zero_point`` has one integer a channel."""
    outputs, depth = len(weight), len(weight[0])
    rows = window(len(x[0][0]), len(weight[0][0]), stride[0], padding[0], dilation[0])
    columns = window(len(x[0][0][0]), len(weight[0][0][0]), stride[1], padding[1], dilation[1])

    def one(image, o, row, column):
        first = o // (outputs // groups) * depth
        total = bias[o]
        for c, (u, h), (v, w) in product(range(depth), enumerate(row), enumerate(column)):
            if h is not None and w is not None:
                total += (image[first + c][h][w] - input_zero_point) * (weight[o][c][u][v] - weight_zero_point[o])
        return total

    return [[[[one(image, o, r, c) for c in columns] for r in rows] for o in range(outputs)] for image in x]


def linear(x, weight, bias, *, input_zero_point, weight_zero_point):
    """The exact sums [n][o] of a fully connected layer, bias added."""
    return [
        [
            b + sum((value - input_zero_point) * (w - z) for value, w in zip(row, weights, strict=True))
            for weights, b, z in zip(weight, bias, weight_zero_point, strict=True)
        ]
        for row in x
    ]


def max_pool2d(x, *, kernel, stride, padding, dilation):
    """The largest element of each window, without what lies outside (no ceil_mode)."""
    rows = window(len(x[0][0]), kernel[0], stride[0], padding[0], dilation[0])
    columns = window(len(x[0][0][0]), kernel[1], stride[1], padding[1], dilation[1])

    def one(channel, row, column):
        return max(channel[h][w] for h, w in product(row, column) if h is not None and w is not None)

    return [[[[one(channel, r, c) for c in columns] for r in rows] for channel in image] for image in x]


def average_pool2d(x, *, input_zero_point, kernel, stride, padding):
    """The sum of each window, zero point subtracted; what lies outside counts as real 0."""
    rows = window(len(x[0][0]), kernel[0], stride[0], padding[0], 1)
    columns = window(len(x[0][0][0]), kernel[1], stride[1], padding[1], 1)

    def one(channel, row, column):
        inside = [channel[h][w] for h, w in product(row, column) if h is not None and w is not None]
        return sum(value - input_zero_point for value in inside)

    return [[[[one(channel, r, c) for c in columns] for r in rows] for channel in image] for image in x]


def add(a, b, *, zero_points, multipliers, shift, output_zero_point, low, high):
    """One element of a residual addition: both inputs scaled exactly, summed, rounded once, ties up."""
    total = (a - zero_points[0]) * multipliers[0] + (b - zero_points[1]) * multipliers[1]
    return clamp(half_up(Fraction(total, 2**shift)) + output_zero_point, low, high)


def multiply(a, b, *, zero_points):
    """One product of two integers, zero points subtracted: what is requantized."""
    return (a - zero_points[0]) * (b - zero_points[1])


def pad(x, *, padding, zero_point):
    """Each image [h][w] of ``x`` [n][c] with the integer ``zero_point`` around it."""
    (top, bottom), (left, right) = padding

    def one(channel):
        width = left + len(channel[0]) + right
        rows = [[zero_point] * left + row + [zero_point] * right for row in channel]
        return [[zero_point] * width for _ in range(top)] + rows + [[zero_point] * width for _ in range(bottom)]

    return [[one(channel) for channel in image] for image in x]


def exponential(value):
    """exp of an exact fraction that is not positive, to within 2**-200: its power series after halving it ten times."""
    step, total, term = Fraction(value) / 2**10, Fraction(0), Fraction(1)
    for k in range(1, 60):
        total, term = total + term, term * step / k
    for _ in range(10):
        total = Fraction(floor(total * total * 2**220), 2**220)
    return total


def softmax(row, *, table, bits, zero_point, low, high):
    """One group of a softmax: exact shares of the exponentials of ``table``, rounded to steps of 2**-bits, ties up."""
    powers = [table[max(row) - value] for value in row]
    return [clamp(half_up(Fraction(power, sum(powers)) * 2**bits) + zero_point, low, high) for power in powers]


def argmax(row):
    """The index of the largest element, the lowest where there are several."""
    return min(i for i, value in enumerate(row) if value == max(row))


def adaptive_window(size, positions, i):
    """The elements of window ``i``: all that touch the part [i, i + 1) * size / positions of the axis."""
    start, stop = Fraction(i * size, positions), Fraction((i + 1) * size, positions)
    return [k for k in range(size) if k + 1 > start and k < stop]
