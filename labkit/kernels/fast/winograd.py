"""Convolution with 3x3 kernels by fewer products, without losing a bit: the algebra. docs/kernels.md proves it.

Winograd's F(m x m, 3 x 3) computes m x m outputs from a (m + 2) x (m + 2) patch of the input. Patch and kernel are
transformed, multiplied number by number (and summed over the channels), and transformed back: 36 products instead of
144 for m = 4, 16 instead of 36 for m = 2 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016,
section 4.1). The textbook's weight transform has fractions. Here its rows are multiplied up to integers; the outputs
then arrive multiplied by known integers, which are divided out exactly in arithmetic modulo 2**32.

The functions ending in `_transform` are written for anything that can be added, subtracted and shifted: the tests feed
them NumPy integers, `fast/transform.py` feeds them vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.kernels.fast.packing import aligned_zeros, pack_panels

__all__ = ["F2", "F4", "Transform", "is_exact", "pack_planes"]

_INT16_MAX = 2**15 - 1
_WORD = 32  # bits of a sum

Combine = Callable[[Any], list[Any]]


@dataclass(frozen=True, eq=False)
class Transform:
    """F(size x size, 3 x 3) in one dimension; both dimensions are treated alike.

    size : outputs, m
    input_transform : size + 2 inputs to as many points, ``B^T``
    weights : ``G``, integers [size + 2, 3]
    output_transform : points to ``size`` outputs, ``A^T``
    factors : what each output arrives multiplied by; each is ``odd`` times a power of two
    odd : the odd part of the factors
    """

    size: int
    input_transform: Combine
    weights: NDArray[np.int64]
    output_transform: Combine
    factors: tuple[int, ...]
    odd: int

    @property
    def points(self) -> int:
        """Points of one dimension; also inputs of one dimension."""
        return self.size + 2

    @property
    def inverse(self) -> int:
        """What undoes a multiplication by ``odd * odd`` modulo 2**32."""
        return int(pow(self.odd * self.odd, -1, 2**_WORD))

    def shift(self, row: int, column: int) -> int:
        """The power of two that is left in output (row, column) when the odd part is divided out."""
        return (self.factors[row] * self.factors[column] // self.odd**2).bit_length() - 1

    @property
    def limit(self) -> int:
        """Sums of at most this magnitude come out exactly: the largest shift must not push them out of 32 bits."""
        largest = max(self.shift(i, j) for i in range(self.size) for j in range(self.size))
        return (1 << (_WORD - 1 - largest)) - 1


def _input_2(x: Sequence[Any]) -> list[Any]:
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _output_2(p: Sequence[Any]) -> list[Any]:
    return [(p[0] << 1) + (p[1] + p[2]), (p[1] - p[2]) - (p[3] << 1)]


def _input_4(x: Sequence[Any]) -> list[Any]:
    even, odd = x[4] - (x[2] << 2), x[3] - (x[1] << 2)  # the points 1 and -1
    even_2, odd_2 = x[4] - x[2], (x[3] - x[1]) << 1  # the points 2 and -2
    return [
        ((x[0] - x[2]) << 2) + even_2,
        even + odd,
        even - odd,
        even_2 + odd_2,
        even_2 - odd_2,
        (x[5] - x[3]) - (odd_2 << 1),
    ]


def _output_4(p: Sequence[Any]) -> list[Any]:
    even, odd, even_2, odd_2 = p[1] + p[2], p[1] - p[2], p[3] + p[4], p[3] - p[4]
    return [((p[0] + (even << 1)) << 1) + even_2, (odd << 1) + odd_2, even + even_2, odd + ((odd_2 + p[5]) << 1)]


F2 = Transform(
    size=2,
    input_transform=_input_2,
    weights=np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]]),
    output_transform=_output_2,
    factors=(2, 2),
    odd=1,
)
F4 = Transform(
    size=4,
    input_transform=_input_4,
    weights=np.array([[3, 0, 0], [-1, -1, -1], [-1, 1, -1], [1, 2, 4], [1, -2, 4], [0, 0, 3]]),
    output_transform=_output_4,
    factors=(24, 12, 6, 6),
    odd=3,
)


def _transformed(transform: Transform, weights: NDArray[np.integer]) -> NDArray[np.int64]:
    """``G w G^T`` of weights [O, C, 3, 3]: [points * points, O, C]."""
    g = transform.weights
    planes = g @ weights.astype(np.int64) @ g.T
    return np.moveaxis(planes.reshape(*weights.shape[:2], -1), -1, 0)


def _largest(rows: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """The largest magnitude of ``rows @ x`` for any x with elements in ``low .. high``, low <= 0 <= high."""
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.maximum(-rows, 0).sum(axis=1)
    largest: NDArray[np.int64] = np.maximum(positive * high - negative * low, negative * high - positive * low)
    return largest


def is_exact(transform: Transform, weights: NDArray[np.integer], low: int, high: int) -> bool:
    """Whether ``transform`` gives the exact sum of every channel for every input.

    Parameters
    ----------
    transform : `F2` or `F4`
    weights : integers [O, C, 3, 3], zero points subtracted
    low, high : lowest and highest input, zero point subtracted

    Returns
    -------
    True where transformed inputs and weights fit int16 and no sum (without bias) can exceed ``transform.limit``
    """
    one_row = np.array(transform.input_transform(np.eye(transform.points, dtype=np.int64)))
    inputs = _largest(np.kron(one_row, one_row), low, high).max()
    kernels = np.abs(_transformed(transform, weights)).max(initial=0)
    sums = _largest(weights.astype(np.int64).reshape(weights.shape[0], -1), low, high).max(initial=0)
    return bool(max(inputs, kernels) <= _INT16_MAX and sums <= transform.limit)


def pack_planes(transform: Transform, weights: NDArray[np.integer], lanes: int) -> NDArray[np.int16]:
    """Transformed weights as panels int16 ``[O / 16, points * points, lanes / 2, 16, 2]``.

    ``weights`` is [O, C, 3, 3]; its channels are filled up with zeros to the ``lanes`` of the input's buffer.
    """
    planes = _transformed(transform, weights)
    filled = np.zeros((planes.shape[1], planes.shape[0], lanes), np.int16)
    filled[:, :, : weights.shape[1]] = planes.transpose(1, 0, 2)
    panels = pack_panels(filled)
    if panels.dtype == np.int16:
        return panels.astype(np.int16, copy=False)
    wide = aligned_zeros(panels.shape, np.int16)  # one type of weights, so that one kernel is compiled
    wide[...] = panels
    return wide
