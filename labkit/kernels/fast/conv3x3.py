"""Convolution with 3x3 kernels and stride 1 by exact integer Winograd. See `winograd` for why it is exact.

Some tiles of the output are taken together: their patches are transformed into one plane of numbers for each point,
each plane is multiplied by that plane's weights on the register tile, and the products are transformed back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.conv import BLOCK, Windows
from labkit.kernels.fast.finish import CHANNELS, Finish, finish_for
from labkit.kernels.fast.packing import rounded_up
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Registers, product_of
from labkit.kernels.fast.transform import inputs_of, outputs_of
from labkit.kernels.fast.winograd import F2, F4, Transform
from labkit.kernels.jit import jit

__all__ = ["conv3x3_kernel", "plane_shapes", "tiles_at_once"]

Array = NDArray[Any]

_PATCH_BYTES = 1 << 18  # of transformed patches taken together: with the weights of a panel they stay in the cache
FEWEST = 12  # but enough of them to use each weight several times


def tiles_at_once(transform: Transform, lanes: int) -> int:
    """How many tiles to take together where pixels have ``lanes`` channels."""
    patch_bytes = transform.points**2 * lanes * 2
    return min(BLOCK, max(FEWEST, _PATCH_BYTES // patch_bytes))


def plane_shapes(transform: Transform, lanes: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes [planes, length] of the int16 and the int32 scratch for transformed patches and for sums of one panel."""
    rows, planes = tiles_at_once(transform, lanes) + 3, transform.points**2
    return (planes, _odd_lines(rows * lanes, 32)), (planes, _odd_lines(rows * CHANNELS, 16))


def _odd_lines(count: int, line: int) -> int:
    """``count`` numbers filled up to an odd number of cache lines, so that planes do not compete for the same ones."""
    lines = rounded_up(count, line) // line
    return (lines + 1 - lines % 2) * line


@jit
def _fill_tables(tables: Array, x: Array, y: Array, windows: Windows, size: int, first: int, count: int) -> None:
    """Addresses in ``x`` and ``y`` of tiles of ``size`` x ``size`` outputs. The last of a row or column reaches back.

    An output that two tiles share is written twice with the same number.
    """
    down, across = (windows.height + size - 1) // size, (windows.width + size - 1) // size
    image, rest = divmod(first, down * across)
    i, j = divmod(rest, across)
    for at in range(count):
        row, column = min(i * size, windows.height - size), min(j * size, windows.width - size)
        source = image * x.strides[0] + (windows.top + row) * x.strides[1] + (windows.left + column) * x.strides[2]
        target = image * y.strides[0] + (windows.into_top + row) * y.strides[1]
        tables[0, at] = x.ctypes.data + source
        tables[1, at] = y.ctypes.data + target + (windows.into_left + column) * y.strides[2]
        j += 1
        if j == across:
            j = 0
            i += 1
            if i == down:
                i = 0
                image += 1


@jit
def _groups(rows: int, positions: int) -> tuple[int, int]:
    """How many products of ``positions`` (6 or 12) rows and of four cover ``rows``, with at most three to spare."""
    best, least = (0, 0), 1 << 30
    for fours in range(3):
        large = max(0, (rows - 4 * fours + positions - 1) // positions)
        covered = large * positions + 4 * fours
        if rows <= covered < least:
            best, least = (large, fours), covered
    return best


def _multiplier(registers: Registers) -> Callable[..., None]:
    positions = registers.positions
    large_product, product_of_four = product_of(registers, positions), product_of(registers, 4)

    def multiply(patches: Array, sums: Array, panel: Array, rows: int) -> None:
        """``sums[plane] = patches[plane] @ panel[plane]`` for every plane."""
        steps, row_bytes = panel.shape[1], 4 * panel.shape[1]
        large, fours = _groups(rows, positions)
        for plane in range(panel.shape[0]):
            source = patches.ctypes.data + plane * patches.strides[0]
            target = sums.ctypes.data + plane * sums.strides[0]
            weights = panel.ctypes.data + plane * panel.strides[0]
            for _ in range(large):
                large_product(source, row_bytes, target, steps, weights)
                source += positions * row_bytes
                target += positions * 4 * CHANNELS
            for _ in range(fours):
                product_of_four(source, row_bytes, target, steps, weights)
                source += 4 * row_bytes
                target += 4 * 4 * CHANNELS

    multiply.__name__ = multiply.__qualname__ = f"multiply_{registers.value}"
    return jit(multiply)


_MULTIPLY = {registers: _multiplier(registers) for registers in Registers}


def _kernel(registers: Registers, transform: Transform, finish: Finish, name: str) -> Callable[..., int]:
    size, multiply = transform.size, _MULTIPLY[registers]
    transform_inputs, transform_outputs = inputs_of(transform), outputs_of(transform, finish, registers.lanes)

    def conv3x3(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        patches: Array,
        sums: Array,
        tables: Array,
        panels: Array,
        epilogue: Array,
        clamp: tuple[int, int],
        at_once: int,
        windows: Windows,
    ) -> int:
        """The convolution of `conv.conv2d_kernel`.

        part, parts : the share of this call
        x, y : int16 or uint8 [N, H, W, C] (y int32 for sums), the input's and the output's buffer
        patches, sums : int16 and int32, scratch of `plane_shapes`; tables : int64 [2, BLOCK], scratch
        panels : of `winograd.pack_planes`
        epilogue, clamp : as `conv.conv2d_kernel`; not looked at for sums
        at_once : tiles that are taken together
        """
        tiles = images * ((windows.height + size - 1) // size) * ((windows.width + size - 1) // size)
        blocks = (tiles + at_once - 1) // at_once
        if parts > 1:
            blocks = max(blocks, min(parts, tiles // FEWEST))
        lanes = x.shape[3]
        first_block, end_block = share(blocks, part, parts)
        for block in range(first_block, end_block):  # all but equally large
            first = tiles * block // blocks
            count = tiles * (block + 1) // blocks - first
            _fill_tables(tables, x, y, windows, size, first, count)
            for at in range(count):
                target = patches.ctypes.data + 2 * lanes * at
                for c in range(0, lanes, CHANNELS):
                    source = tables[0, at] + c * x.itemsize
                    transform_inputs(x, source, x.strides[1], x.strides[2], target + 2 * c, patches.strides[0])
            for p in range(panels.shape[0]):
                multiply(patches, sums, panels[p], count)
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                for at in range(count):
                    transform_outputs(
                        y,
                        sums.ctypes.data + 4 * CHANNELS * at,
                        sums.strides[0],
                        tables[1, at],
                        y.strides[1],
                        y.strides[2],
                        constants,
                        clamp[0],
                        clamp[1],
                    )
                    tables[1, at] += CHANNELS * y.itemsize
        return 0

    conv3x3.__name__ = conv3x3.__qualname__ = name
    return jit(conv3x3)


_TRANSFORMS = {F2: "f2", F4: "f4"}


@cache
def conv3x3_kernel(registers: Registers, transform: Transform, rule: RoundingRule | None) -> Callable[..., int]:
    """The kernel for ``transform``, finished in registers by ``rule``, or leaving int32 sums where it is None."""
    name = f"conv3x3_{_TRANSFORMS[transform]}_{registers.value}_{rule.value if rule else 'sums'}"
    return _kernel(registers, transform, finish_for(rule), name)
