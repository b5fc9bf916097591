"""What is known of a layer's weights, and their packed form: found once for each tensor, however many networks hold it.

A network of sequences is prepared anew for each length, with the same weights. Packed weights are kept as long as a prepared
network uses them, and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor

__all__ = ["WeightFacts", "centred", "facts_of", "packed_once"]

_facts: WeakKeyDictionary[QTensor, WeightFacts] = WeakKeyDictionary()
_packed: WeakKeyDictionary[QTensor, WeakValueDictionary[Hashable, NDArray[Any]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class WeightFacts:
    """Of weights less their zero points: the lowest and highest, and for each output their sum and that of their magnitudes.

    The sums are int64 [O].
    """

    low: int
    high: int
    sums: NDArray[np.int64]
    magnitudes: NDArray[np.int64]

    @property
    def fits_int8(self) -> bool:
        """Whether every weight lies in -128 .. 127."""
        return self.low >= -128 and self.high <= 127

    @property
    def largest(self) -> int:
        """The largest magnitude."""
        return max(-self.low, self.high)


def centred(weight: QTensor) -> NDArray[np.int16]:
    """``weight`` [O, ...] less its zero points, in its own shape; nine bits at the most."""
    zero_point = weight.params.zero_point.reshape([-1] + [1] * (weight.values.ndim - 1))
    return np.asarray(weight.values.astype(np.int16) - zero_point, np.int16)


def facts_of(weight: QTensor) -> WeightFacts:
    """The facts of ``weight`` [O, ...]."""
    found = _facts.get(weight)
    if found is None:
        rows = centred(weight).astype(np.int64).reshape(weight.values.shape[0], -1)
        ends = int(rows.min(initial=0)), int(rows.max(initial=0))
        found = _facts[weight] = WeightFacts(*ends, rows.sum(axis=1), np.abs(rows).sum(axis=1))
    return found


def packed_once(weight: QTensor, order: Hashable, pack: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What ``pack`` makes of ``weight``, or what it made before for the same ``order``, if a network still holds that.

    An array of the shape and dtype that ``pack`` chooses.
    """
    held = _packed.setdefault(weight, WeakValueDictionary())
    found = held.get(order)
    if found is None:
        found = held[order] = pack()
    return found
