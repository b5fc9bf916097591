"""Convolution and fully connected layers on the register tile. See `reference.conv2d` for what they compute.

Activations are int16 with their zero point subtracted, in buffers (N, H, W, C) whose border is real 0 = integer 0, so
that padding needs no test. Weights come from `packing.pack_panels`, constants from `packing.pack_epilogue`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.finish import CHANNELS, FINISHES, Finish, unfinished
from labkit.kernels.fast.tile import PANELS, Registers, tile_of
from labkit.kernels.jit import jit

__all__ = ["BLOCK", "CONV2D", "CONV2D_SUMS", "LINEAR_ONE", "Windows", "byte_offsets", "fill_tables"]

BLOCK = 48  # output positions that share one pass over the weights: their windows stay in the first-level cache

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
def fill_tables(tables: Array, x: Array, y: Array, windows: Windows, positions: int, first: int, count: int) -> int:
    """Addresses of ``count`` windows of ``x`` and of their results in ``y``, from position ``first`` on.

    ``tables`` is int64 [2, BLOCK]. The last address is repeated up to whole tiles of ``positions``: a position computed
    twice is written twice with the same numbers. Returns the number of tiles.
    """
    image, rest = divmod(first, windows.height * windows.width)
    i, j = divmod(rest, windows.width)
    tiles = (count + positions - 1) // positions
    for at in range(tiles * positions):
        if at >= count:
            tables[0, at] = tables[0, count - 1]
            tables[1, at] = tables[1, count - 1]
            continue
        row, column = windows.top + i * windows.stride_h, windows.left + j * windows.stride_w
        tables[0, at] = x.ctypes.data + image * x.strides[0] + row * x.strides[1] + column * x.strides[2]
        row, column = windows.into_top + i, windows.into_left + j
        tables[1, at] = y.ctypes.data + image * y.strides[0] + row * y.strides[1] + column * y.strides[2]
        j += 1
        if j == windows.width:
            j = 0
            i += 1
            if i == windows.height:
                i = 0
                image += 1
    return tiles


def _conv2d(registers: Registers, finish: Finish, name: str) -> Callable[..., int]:
    positions = registers.positions
    fused_tile = tile_of(registers, positions, 1, finish)

    def conv2d(
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
        """Convolution with bias, requantization and clamp fused into the tile.

        x, y : int16 [N, H, W, C], the input's and the output's buffer
        tables : int64 [2, BLOCK], scratch
        panels, epilogue : packed weights and constants
        runs : int64, byte offset of each run from the start of a window
        clamp : lowest and highest result, zero point subtracted
        """
        outputs = images * windows.height * windows.width
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        steps = panels.shape[2]
        for first in range(0, outputs, BLOCK):
            tiles = fill_tables(tables, x, y, windows, positions, first, min(BLOCK, outputs - first))
            for p in range(panels.shape[0]):
                panel = panels.ctypes.data + p * panels.strides[0]
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                for at in range(0, tiles * positions, positions):
                    fused_tile(
                        sources + 8 * at,
                        targets + 8 * at,
                        runs.ctypes.data,
                        runs.shape[0],
                        steps,
                        panels,
                        panel,
                        constants,
                        clamp[0],
                        clamp[1],
                    )
                for at in range(tiles * positions):
                    tables[1, at] += CHANNELS * y.itemsize
        return 0

    conv2d.__name__ = conv2d.__qualname__ = name
    return jit(conv2d)


def _conv2d_sums(registers: Registers, name: str) -> Callable[..., int]:
    positions = registers.positions
    sums_tile = tile_of(registers, positions, 1, unfinished)

    def conv2d_sums(
        images: int, x: Array, sums: Array, tables: Array, panels: Array, runs: Array, windows: Windows
    ) -> int:
        """As `_conv2d`, but leaves int32 ``sums`` [N, H', W', C] without bias, for rounding rules that the tile has not."""
        outputs = images * windows.height * windows.width
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        steps = panels.shape[2]
        for first in range(0, outputs, BLOCK):
            tiles = fill_tables(tables, x, sums, windows, positions, first, min(BLOCK, outputs - first))
            for p in range(panels.shape[0]):
                panel = panels.ctypes.data + p * panels.strides[0]
                for at in range(0, tiles * positions, positions):
                    sums_tile(
                        sources + 8 * at,
                        targets + 8 * at,
                        runs.ctypes.data,
                        runs.shape[0],
                        steps,
                        panels,
                        panel,
                        0,
                        0,
                        0,
                    )
                for at in range(tiles * positions):
                    tables[1, at] += CHANNELS * sums.itemsize
        return 0

    conv2d_sums.__name__ = conv2d_sums.__qualname__ = name
    return jit(conv2d_sums)


def _linear_one(registers: Registers, finish: Finish, name: str) -> Callable[..., int]:
    single_tile, wide_tile = tile_of(registers, 1, 1, finish), tile_of(registers, 1, PANELS, finish)

    def linear_one(
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
        """As `_conv2d`, for a fully connected layer and a single image: each weight is used once, four panels at a time."""
        sources, targets = tables.ctypes.data, tables.ctypes.data + tables.strides[0]
        fill_tables(tables, x, y, windows, 1, 0, 1)
        steps, run, low, high = panels.shape[2], runs.ctypes.data, clamp[0], clamp[1]
        whole = panels.shape[0] - panels.shape[0] % PANELS
        for p in range(0, whole, PANELS):
            panel = panels.ctypes.data + p * panels.strides[0]
            constants = epilogue.ctypes.data + p * epilogue.strides[0]
            wide_tile(sources, targets, run, runs.shape[0], steps, panels, panel, constants, low, high)
            tables[1, 0] += PANELS * CHANNELS * y.itemsize
        for p in range(whole, panels.shape[0]):
            panel = panels.ctypes.data + p * panels.strides[0]
            constants = epilogue.ctypes.data + p * epilogue.strides[0]
            single_tile(sources, targets, run, runs.shape[0], steps, panels, panel, constants, low, high)
            tables[1, 0] += CHANNELS * y.itemsize
        return 0

    linear_one.__name__ = linear_one.__qualname__ = name
    return jit(linear_one)


# By the registers and the rounding rule
Kernels = Mapping[tuple[Registers, RoundingRule], Callable[..., int]]
CONV2D: Kernels = MappingProxyType(
    {
        (registers, rule): _conv2d(registers, finish, f"conv2d_{registers.value}_{rule.value}")
        for registers in Registers
        for rule, finish in FINISHES.items()
    }
)
LINEAR_ONE: Kernels = MappingProxyType(
    {
        (registers, rule): _linear_one(registers, finish, f"linear_one_{registers.value}_{rule.value}")
        for registers in Registers
        for rule, finish in FINISHES.items()
    }
)
CONV2D_SUMS: Mapping[Registers, Callable[..., int]] = MappingProxyType(
    {registers: _conv2d_sums(registers, f"conv2d_{registers.value}_sums") for registers in Registers}
)


def byte_offsets(
    kernel: tuple[int, int], dilation: tuple[int, int], row_bytes: int, pixel_bytes: int
) -> NDArray[np.int64]:
    """Byte offset of each run, int64 [runs]: one a kernel row, or one a kernel element where columns are dilated."""
    rows = np.arange(kernel[0]) * dilation[0] * row_bytes
    if dilation[1] == 1:
        return rows.astype(np.int64)
    return (rows[:, None] + np.arange(kernel[1]) * dilation[1] * pixel_bytes).reshape(-1).astype(np.int64)
