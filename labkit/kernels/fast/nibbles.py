"""Weights of four bits, two to a byte in memory: how they are packed, and convolutions that unpack them on the way.

A byte holds weights of two neighbouring panels that meet the same inputs: ``16 * w1 + (w0 + 8)``, both -8..7. So the byte
as a signed number, ANDed with 15, gives ``w0 + 8``, and shifted to the right by four gives ``w1``: no vector instruction
has to move a weight to another lane. `nibble_tile` multiplies by such bytes as they are; here panels are unpacked into
a scratch buffer first, some at a time, which costs little where each weight meets many positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.conv import Windows, conv2d_kernel
from labkit.kernels.fast.finish import CHANNELS
from labkit.kernels.fast.packing import aligned_zeros, rounded_up
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Dot, Registers
from labkit.kernels.jit import jit

__all__ = ["LIFT", "conv2d_nibbles_kernel", "fits_nibbles", "pack_nibbles", "panels_at_once", "unpack_panel"]

Array = NDArray[Any]

LIFT = 8  # what is added to the weight in the lower half of a byte
_SCRATCH_BYTES = 1 << 15  # of unpacked weights that are taken together, if a tile does not want more: measured


def fits_nibbles(weights: NDArray[np.integer]) -> bool:
    """Whether every one of ``weights``, integers of any shape, lies in -8 .. 7."""
    return bool(weights.size == 0 or (weights.min() >= -8 and weights.max() <= 7))


def pack_nibbles(panels: NDArray[np.int8]) -> NDArray[np.int8]:
    """Panels ``[P, ...]`` of `packing.pack_panels`, all numbers in -8..7, as int8 ``[P / 2 rounded up, ...]``.

    Panel 2i is in the lower halves and panel 2i + 1 in the upper halves of the bytes of row i. A missing last panel is 0.
    """
    packed = aligned_zeros((-(-panels.shape[0] // 2), *panels.shape[1:]), np.int8)
    packed[...] = panels[0::2] + LIFT
    packed[: panels.shape[0] // 2] += 16 * panels[1::2]
    return packed


@jit
def unpack_panel(packed: Array, panel: int, unpacked: Array) -> None:
    """Write the weights of one ``panel`` of ``packed`` (int8 [pairs, bytes]) to ``unpacked`` (int8 [bytes])."""
    row = packed[panel // 2]
    if panel % 2 == 0:
        for at in range(row.shape[0]):
            unpacked[at] = np.int8((row[at] & np.int8(15)) - np.int8(LIFT))
    else:
        for at in range(row.shape[0]):
            unpacked[at] = row[at] >> np.int8(4)


def panels_at_once(registers: Registers, panels: int, panel_bytes: int) -> int:
    """How many of ``panels``, of ``panel_bytes`` each when unpacked, `conv2d_nibbles_kernel` takes together.

    Whole tiles that fit the scratch, and equally many each time, so that the last time repeats as few as may be.
    """
    of_tile = registers.wide[1]
    most = max(1, _SCRATCH_BYTES // panel_bytes // of_tile) * of_tile
    return min(panels, rounded_up(-(-panels // -(-panels // most)), of_tile))


@cache
def conv2d_nibbles_kernel(registers: Registers, dot: Dot, panels: int, rule: RoundingRule | None) -> Callable[..., int]:
    """`conv.conv2d_kernel` for so many packed ``panels``, finished by ``rule``, or leaving int32 sums where it is None.

    It takes one buffer more, after the tables: int8 [panels_at_once, runs, groups, 16, group], scratch.
    """
    convolve = conv2d_kernel(registers, dot, panels, rule, takes_threes=False)
    is_wide = panels >= registers.wide[1] > 1

    def conv2d_nibbles(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        unpacked: Array,
        packed: Array,
        epilogue: Array,
        runs: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        panels, together = y.shape[3] // CHANNELS, unpacked.shape[0]
        rows = packed.reshape(packed.shape[0], -1)
        scratch = unpacked.reshape(together, -1)
        chunks = (panels + together - 1) // together
        splits = 1 if chunks >= parts else (parts + chunks - 1) // chunks  # of the positions
        first_unit, end_unit = share(chunks * splits, part, parts)
        for unit in range(first_unit, end_unit):
            first = min(unit // splits * together, panels - together)  # may reach back: the same numbers again
            for p in range(together):
                unpack_panel(rows, first + p, scratch[p])
            into, constants = y[:, :, :, first * CHANNELS :], epilogue[first:]
            convolve(unit % splits, splits, images, x, into, tables, unpacked, constants, runs, clamp, windows)
        return 0

    ending = rule.value if rule else "sums"
    name = f"conv2d_nibbles_{registers.value}_{dot.value}_{'wide' if is_wide else 'narrow'}_{ending}"
    conv2d_nibbles.__name__ = conv2d_nibbles.__qualname__ = name
    return jit(conv2d_nibbles)
