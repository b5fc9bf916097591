"""Softmax as LiteRT and ONNX Runtime compute it. See `reference` for the functions of the same names.

Like `heads.softmax` they work on groups. The exponentials come from a table of 256 numbers by difference from the largest
element, as in the readable tier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.heads import Groups
from labkit.kernels.fast.shares import share
from labkit.kernels.jit import jit

__all__ = ["softmax_by_reciprocal", "softmax_fixed_point", "softmax_float32"]

Array = NDArray[Any]

_SUM_BITS = 12  # integer bits of the sum of fixed-point exponentials
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1


def _over_groups(of_group: Callable[..., Any], name: str) -> Callable[..., int]:
    def softmax(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        come: Array,
        go: Array,
        groups: Groups,
        table: Array,
        number: Any,
        above: int,
        zero_point: int,
        clamp: tuple[int, int],
    ) -> int:
        """The shares of each group of ``x`` to ``y``.

        part, parts : the share of this call, of all groups of all images
        x, y : [N, H, W, C] of any integer dtype
        come, go, groups : from `heads.groups_along`
        table : [256] exponentials, float32 or int64
        number : the factor, or the largest difference that counts
        above : what the integers are above the numbers stored in ``y``
        zero_point, clamp : of the integers
        """
        count = come.shape[0]
        first, end = share(images * count, part, parts)
        for n in range(first // count, (end + count - 1) // count):
            source, target = x[n].reshape(-1), y[n].reshape(-1)
            for g in range(max(0, first - n * count), min(count, end - n * count)):
                largest: Any = np.int64(source[come[g]])
                for k in range(1, groups.length):
                    largest = max(largest, np.int64(source[come[g] + k * groups.step]))
                of_group(source, target, come[g], go[g], groups, largest, table, number, above, zero_point, clamp)
        return 0

    softmax.__name__ = softmax.__qualname__ = name
    return jit(softmax)


@jit
def _sum_float32(source: Array, start: int, groups: Groups, largest: int, table: Array) -> Any:
    """The exponentials of a group, added one by one in float32."""
    total = np.float32(0)
    for k in range(groups.length):
        total += table[largest - np.int64(source[start + k * groups.step])]
    return total


@jit
def _float32(
    source: Array,
    target: Array,
    start: int,
    into: int,
    groups: Groups,
    largest: int,
    table: Array,
    factor: Any,
    above: int,
    zero_point: int,
    clamp: tuple[int, int],
) -> None:
    """Eq. 40."""
    total = _sum_float32(source, start, groups, largest, table)
    for k in range(groups.length):
        power = table[largest - np.int64(source[start + k * groups.step])]
        whole: Any = np.int64(np.rint(power * factor[0] / total)) + zero_point
        target[into + k * groups.into_step] = min(max(whole, clamp[0]), clamp[1]) - above


@jit
def _by_reciprocal(
    source: Array,
    target: Array,
    start: int,
    into: int,
    groups: Groups,
    largest: int,
    table: Array,
    factor: Any,
    above: int,
    zero_point: int,
    clamp: tuple[int, int],
) -> None:
    """Eq. 43; shares are positive, so that away from zero is up."""
    total = _sum_float32(source, start, groups, largest, table)
    reciprocal = np.float32(1) / (total * factor[0])
    for k in range(groups.length):
        share_of_k = table[largest - np.int64(source[start + k * groups.step])] * reciprocal
        floor = np.floor(share_of_k)
        whole: Any = np.int64(floor) + (1 if share_of_k - floor >= np.float32(0.5) else 0) + zero_point
        target[into + k * groups.into_step] = min(max(whole, clamp[0]), clamp[1]) - above


@jit
def _high_product(a: Any, b: Any) -> Any:
    """The rounding, doubling high half of a product of two int32 in the manner of gemmlowp (eq. 14)."""
    product = np.int64(a) * np.int64(b)
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    return nudged >> 31 if nudged >= 0 else -(-nudged >> 31)


@jit
def _divide(x: Any, exponent: int) -> Any:
    """``x / 2**exponent`` to nearest, ties away from zero; ``exponent`` is at least 1."""
    half = np.int64(1) << (exponent - 1)
    return (x + half) >> exponent if x >= 0 else -((half - x) >> exponent)


@jit
def _saturate(x: Any) -> Any:
    return min(max(x, _INT32_MIN), _INT32_MAX)


@jit
def _reciprocal(x: Any) -> Any:
    """1 / (1 + x) for ``x`` in [0, 1), both with 31 fractional bits: see the function of this name in `reference_litert`."""
    half = (x + _INT32_MAX + 1) >> 1
    estimate = 1515870810 + _high_product(half, -1010580540)
    for _ in range(3):
        error = (1 << 29) - _high_product(half, estimate)
        estimate += _saturate(_high_product(estimate, error) << 2)
    return _saturate(estimate << 1)


@jit
def _fixed_point(
    source: Array,
    target: Array,
    start: int,
    into: int,
    groups: Groups,
    largest: int,
    table: Array,
    farthest: Any,
    above: int,
    zero_point: int,
    clamp: tuple[int, int],
) -> None:
    """Eq. 35; ``farthest`` int64 [1] is the largest difference that counts."""
    total: Any = np.int64(0)
    for k in range(groups.length):
        difference = largest - np.int64(source[start + k * groups.step])
        if difference <= farthest[0]:
            total += _divide(table[difference], _SUM_BITS)
    zeros = 0
    while total << zeros < 1 << 31:  # the largest element alone gives 2**19
        zeros += 1
    reciprocal = _reciprocal((total << zeros) - (1 << 31))
    for k in range(groups.length):
        difference = largest - np.int64(source[start + k * groups.step])
        whole: Any = np.int64(zero_point)
        if difference <= farthest[0]:
            whole += _divide(_high_product(reciprocal, table[difference]), _SUM_BITS - zeros + 31 - 8)
        target[into + k * groups.into_step] = min(max(whole, clamp[0]), clamp[1]) - above


softmax_float32 = _over_groups(_float32, "softmax_float32")
softmax_by_reciprocal = _over_groups(_by_reciprocal, "softmax_by_reciprocal")
softmax_fixed_point = _over_groups(_fixed_point, "softmax_fixed_point")
