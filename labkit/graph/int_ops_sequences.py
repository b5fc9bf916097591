"""Integer operations of transformers: embeddings, products of two tensors, and I-BERT's polynomials (ICML 2021).

A sequence of T tokens with D features has the shape (D, T), as a one-dimensional convolution has it: channels first, and the
length last. What each operation computes is in docs/arithmetic.md, section 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.frozen import frozen_array
from labkit.arithmetic.requantize import Requantizer

__all__ = ["Embedding", "GeluPolynomial", "LayerNorm", "MatMul", "SoftmaxPolynomial"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """Row i of ``weight`` [V, D] for each index i of the input, an index tensor (T,): the result is (D, T) (eq. 44).

    The ``requantizer`` takes integers of the table to the output's scale; where it has multipliers for V rows, each row its own.
    """

    weight: QTensor
    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class MatMul:
    """One matrix product for each index of the first axis, of two tensors (B, m, k) and (B, k, n): (B, m, n) (eq. 45).

    transpose_a : the first tensor is given as (B, k, m).
    transpose_b : the second is given as (B, n, k).

    Zero points are subtracted from both; S_a S_b / S_y is the multiplier, and a constant factor is part of it.
    """

    requantizer: Requantizer
    transpose_a: bool = False
    transpose_b: bool = False


@dataclass(frozen=True, eq=False)
class SoftmaxPolynomial:
    """I-BERT's i-softmax along the last axis (eq. 47), with its polynomial for the exponential (eq. 46).

    The second input, where there is one, is a mask (n,) for the last axis: elements whose mask is 0 take no part and get 0.

    ln2, b, c : `labkit.arithmetic.ibert.ExpConstants` for the input's scale
    multiplier : shape (); takes the exponential to 16 bits
    bits : the output's scale is 2**-bits
    """

    ln2: int
    b: int
    c: int
    multiplier: FixedPointMultiplier
    bits: int


@dataclass(frozen=True, eq=False)
class GeluPolynomial:
    """I-BERT's i-GELU of an input of 16 bits (eq. 48), requantized.

    b, c, one : `labkit.arithmetic.ibert.GeluConstants` for the input's scale.
    """

    b: int
    c: int
    one: int
    requantizer: Requantizer


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """I-BERT's i-LayerNorm along the first axis (eqs. 49 and 50): each column of (D, T) is normalised.

    ``q = clamp((y multipliers + addends + 2**(shift - 1)) >> shift)`` with y the normalised integer of I-BERT, |y| <= 2**30, at
    the scale sqrt(D) / 2**30; ``multipliers`` int32 [D] hold gamma, of either sign, ``addends`` int64 [D] beta. ``epsilon`` is
    added to the sum of squares: D times the real epsilon over the square of the input's scale.
    """

    multipliers: NDArray[np.int32]
    addends: NDArray[np.int64]
    shift: int
    clamp: tuple[int, int]
    epsilon: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", frozen_array(self.multipliers))
        object.__setattr__(self, "addends", frozen_array(self.addends))
