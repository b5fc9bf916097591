"""Two 4-bit integers to a byte, low half first (docs/arithmetic.md, section 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.errors import QuantizationError

__all__ = ["pack_int4", "unpack_int4"]


def pack_int4(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Pack integers of -8..7 (or 0..15), any shape, in C order into ``ceil(size / 2)`` bytes.

    Element 2i is in the low four bits of byte i, element 2i + 1 in the high four; an odd end is filled with 0.

    Raises
    ------
    QuantizationError
        A value needs more than four bits, or signed and unsigned ones are mixed.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.size and not ((flat.min() >= -8 and flat.max() <= 7) or (flat.min() >= 0 and flat.max() <= 15)):
        raise QuantizationError(f"Four bits hold -8..7 or 0..15, got {flat.min()}..{flat.max()}.")
    nibbles = (flat.astype(np.int16) & 0xF).astype(np.uint8)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed: NDArray[np.uint8] = nibbles[0::2] | (nibbles[1::2] << np.uint8(4))
    return packed


def unpack_int4(
    packed: NDArray[np.uint8], shape: tuple[int, ...], signed: bool
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Undo `pack_int4`: int8 of -8..7 (``signed``) or uint8 of 0..15, in the given ``shape``.

    Raises
    ------
    QuantizationError
        ``packed`` has not the number of bytes that ``shape`` needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != ((count + 1) // 2,):
        raise QuantizationError(
            f"{count} four-bit integers take {(count + 1) // 2} bytes, got {packed.dtype} {packed.shape}."
        )
    nibbles = np.empty(packed.size * 2, np.uint8)
    nibbles[0::2], nibbles[1::2] = packed & 0xF, packed >> 4
    nibbles = nibbles[:count].reshape(shape)
    if not signed:
        return nibbles
    return ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.int8)  # sign bit 3: flip it, then take its weight away
