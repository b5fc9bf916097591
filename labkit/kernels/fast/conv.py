"""Convolution and fully connected layers on the register tile. See `reference.conv2d` for what they compute.

Activations lie in buffers (N, H, W, C) whose border is real 0, so that padding needs no test: as int16 with their zero
point subtracted, or as bytes, from 0 for the lowest number of the grid on. Of bytes the tile sums ``(x + z) * w``, where
z is the byte that stands for 0; the surplus ``z * sum(w)`` is a number for each channel and part of the bias. Weights
come from `packing.pack_panels`, constants from `packing.pack_epilogue`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.finish import CHANNELS, Finish, finish_for
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import PANELS, Dot, Registers, tile_of
from labkit.kernels.jit import jit

__all__ = [
    "BLOCK",
    "Windows",
    "byte_offsets",
    "conv2d_kernel",
    "conv2d_kernel_for_one",
    "fill_tables",
    "linear_one_kernel",
]

BLOCK = 60  # output positions that share one pass over the weights: their windows stay in the first-level cache
_GAIN_OF_THREES = 1.03  # by how much tiles of three panels are faster than those of two where both are full; measured

Array = NDArray[Any]


class Windows(NamedTuple):
    """Where the windows start: output (i, j) reads from row ``top + i * stride_h``, column ``left + j * stride_w`` on.

    height, width : number of output positions
    into_top, into_left : row and column of the first output position in the target buffer
    """

    height: int
    width: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    into_top: int
    into_left: int


@jit
def fill_tables(tables: Array, x: Array, y: Array, windows: Windows, first: int, count: int, left: int) -> None:
    """Addresses of ``count`` windows of ``x`` and of their results in ``y``, from position ``first`` on.

    ``tables`` is int64 [2, BLOCK]. Only ``left`` positions are there; the last is repeated where ``count`` is more: a
    position computed twice is written twice with the same numbers.
    """
    there, at = min(count, left), 0
    line, j = divmod(first, windows.width)
    while at < there:  # one row of the image at a time
        image, i = divmod(line, windows.height)
        row, column = windows.top + i * windows.stride_h, windows.left + j * windows.stride_w
        source = x.ctypes.data + image * x.strides[0] + row * x.strides[1] + column * x.strides[2]
        row, column = windows.into_top + i, windows.into_left + j
        target = y.ctypes.data + image * y.strides[0] + row * y.strides[1] + column * y.strides[2]
        there_in_row = min(windows.width - j, there - at)
        for k in range(there_in_row):
            tables[0, at + k] = source + k * windows.stride_w * x.strides[2]
            tables[1, at + k] = target + k * y.strides[2]
        at += there_in_row
        line, j = line + 1, 0
    for at in range(there, count):
        tables[0, at] = tables[0, there - 1]
        tables[1, at] = tables[1, there - 1]


def _conv2d(registers: Registers, dot: Dot, shape: tuple[int, int], finish: Finish, name: str) -> Callable[..., int]:
    positions, at_once = shape
    tile = tile_of(registers, dot, positions, at_once, finish)
    tiles_of_block = BLOCK // positions

    def conv2d(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        panels: Array,
        epilogue: Array,
        runs: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        """Convolution with bias, requantization and clamp fused into the tile, or int32 sums without them.

        part, parts : the share of this call: of the blocks of positions, or where they are few of the panels too
        x, y : int16 or uint8 [N, H, W, C] (y int32 for sums), the input's and the output's buffer
        tables : int64 [2, BLOCK], scratch
        panels, epilogue : packed weights and constants; the latter is not looked at for sums
        runs : int64, byte offset of each run from the start of a window
        clamp : lowest and highest result, as they are stored
        """
        outputs = images * windows.height * windows.width
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        steps, width = panels.shape[2], CHANNELS * y.itemsize
        tiles = (outputs + positions - 1) // positions
        blocks = (tiles + tiles_of_block - 1) // tiles_of_block
        groups = (panels.shape[0] + at_once - 1) // at_once
        chunks = 1 if blocks >= parts else min(groups, (parts + blocks - 1) // blocks)
        first_unit, end_unit = share(blocks * chunks, part, parts)
        for unit in range(first_unit, end_unit):
            block, chunk = unit // chunks, unit % chunks
            first = tiles * block // blocks * positions
            count = tiles * (block + 1) // blocks * positions - first
            fill_tables(tables, x, y, windows, first, count, outputs - first)
            written = 0
            for group in range(groups * chunk // chunks, groups * (chunk + 1) // chunks):
                p = min(group * at_once, panels.shape[0] - at_once)  # the last may reach back: the same numbers again
                for at in range(count):
                    tables[1, at] += p * width - written
                written = p * width
                panel = panels.ctypes.data + p * panels.strides[0]
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                following = panel + at_once * panels.strides[0]  # while it is used, the next group is brought near
                for at in range(0, count, positions):
                    tile(
                        y,
                        panels,
                        sources + 8 * at,
                        targets + 8 * at,
                        runs.ctypes.data,
                        runs.shape[0],
                        steps,
                        panel,
                        following + at // positions * panels.strides[0] if at < positions * at_once else panel,
                        constants,
                        clamp[0],
                        clamp[1],
                    )
        return 0

    conv2d.__name__ = conv2d.__qualname__ = name
    return jit(conv2d)


def _linear_one(registers: Registers, dot: Dot, finish: Finish, name: str) -> Callable[..., int]:
    wide_tile, single_tile = (tile_of(registers, dot, 1, panels, finish) for panels in (PANELS, 1))

    def linear_one(
        part: int,
        parts: int,
        images: int,
        x: Array,
        y: Array,
        tables: Array,
        panels: Array,
        epilogue: Array,
        runs: Array,
        clamp: tuple[int, int],
        windows: Windows,
    ) -> int:
        """As `_conv2d` for a single position: a fully connected layer of one image, four panels at a time."""
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        fill_tables(tables, x, y, windows, 0, 1, 1)
        steps, run, width = panels.shape[2], runs.ctypes.data, CHANNELS * y.itemsize
        groups = (panels.shape[0] + PANELS - 1) // PANELS
        first, end = share(groups, part, parts)
        start = tables[1, 0]
        for p in range(first * PANELS, min(end * PANELS, panels.shape[0] - PANELS + 1), PANELS):
            tables[1, 0] = start + p * width
            panel = panels.ctypes.data + p * panels.strides[0]
            constants = epilogue.ctypes.data + p * epilogue.strides[0]
            wide_tile(
                y, panels, sources, targets, run, runs.shape[0], steps, panel, panel, constants, clamp[0], clamp[1]
            )
        whole = panels.shape[0] - panels.shape[0] % PANELS
        for p in range(max(first * PANELS, whole), min(end * PANELS, panels.shape[0])):
            tables[1, 0] = start + p * width
            panel = panels.ctypes.data + p * panels.strides[0]
            constants = epilogue.ctypes.data + p * epilogue.strides[0]
            single_tile(
                y, panels, sources, targets, run, runs.shape[0], steps, panel, panel, constants, clamp[0], clamp[1]
            )
        return 0

    linear_one.__name__ = linear_one.__qualname__ = name
    return jit(linear_one)


@cache
def conv2d_kernel(
    registers: Registers, dot: Dot, panels: int, rule: RoundingRule | None, takes_threes: bool = True
) -> Callable[..., int]:
    """The convolution kernel for so many ``panels``, finished by ``rule``, or leaving int32 sums where it is None.

    It takes some panels at a time: three where they come out even and that is fast, unless it ``takes_threes`` never.
    """
    kind, shape = "narrow", (registers.positions, 1)
    if takes_threes and _has_threes(registers, dot, panels):
        kind, shape = "threes", registers.threes
    elif panels >= registers.wide[1] > 1:
        kind, shape = "wide", registers.wide
    name = f"conv2d_{registers.value}_{dot.value}_{kind}_{rule.value if rule else 'sums'}"
    return _conv2d(registers, dot, shape, finish_for(rule), name)


def conv2d_kernel_for_one(
    registers: Registers, dot: Dot, panels: int, rule: RoundingRule | None, positions: int
) -> Callable[..., int] | None:
    """A faster `conv2d_kernel` for a single image with so few ``positions``, or None.

    A tile of three panels has fewer positions, which may fill its last tile worse: 49 take 7 tiles of 8, but 5 of 10.
    """
    if not _has_threes(registers, dot, panels):
        return None
    threes, wide = (
        -(-positions // there) * there * -(-panels // at_once) * at_once
        for there, at_once in (registers.threes, registers.wide)
    )
    return conv2d_kernel(registers, dot, panels, rule, takes_threes=False) if threes > _GAIN_OF_THREES * wide else None


def _has_threes(registers: Registers, dot: Dot, panels: int) -> bool:
    return panels % 3 == 0 and (registers, dot) == (Registers.BITS_512, Dot.QUADS_VNNI)


@cache
def linear_one_kernel(registers: Registers, dot: Dot, rule: RoundingRule) -> Callable[..., int]:
    """The kernel for a fully connected layer of one image, finished by ``rule``."""
    name = f"linear_one_{registers.value}_{dot.value}_{rule.value}"
    return _linear_one(registers, dot, finish_for(rule), name)


def byte_offsets(
    kernel: tuple[int, int], dilation: tuple[int, int], row_bytes: int, pixel_bytes: int
) -> NDArray[np.int64]:
    """Byte offset of each run, int64 [runs]: one a kernel row, or one a kernel element where columns are dilated."""
    rows = np.arange(kernel[0]) * dilation[0] * row_bytes
    if dilation[1] == 1:
        return rows.astype(np.int64)
    return (rows[:, None] + np.arange(kernel[1]) * dilation[1] * pixel_bytes).reshape(-1).astype(np.int64)
